"""What `recover.base` and the teacher's weights do to a plan: keys, and what is refused before anything runs."""

from __future__ import annotations

import pytest

from helpers.configurations import configuration
from helpers.packings import needs_library
from pipeline.planning.build import build_graph
from pipeline.planning.graph import Node
from stages.errors import UserError

DISTIL = "recover.objective=distillation"
TEACHER = "recover.distillation.teacher_weights"


def roles(*overrides: str) -> dict[str, Node]:
    return dict(build_graph(configuration(*overrides)).roles)


def test_at_the_default_the_options_are_in_no_payload() -> None:
    options = roles(DISTIL)["recover"].payload["config"]["recover"]
    assert "base" not in options
    assert "teacher_weights" not in options["distillation"]


@needs_library
def test_elsewhere_each_is_in_the_key() -> None:
    keys = {roles(DISTIL, *more)["recover"].key for more in ([], ["recover.base=nf4"], [f"{TEACHER}=8bit"])}
    assert len(keys) == 3


@needs_library
def test_masks_are_refused() -> None:
    with pytest.raises(UserError, match="the mask would be lost"):
        roles("prune=sparseml", "recover.base=nf4")


@needs_library
def test_shards_are_refused() -> None:
    with pytest.raises(UserError, match=r"runtime=fsdp shards them"):
        roles("runtime=fsdp", "runtime.workers=2", "recover.base=nf4")


@needs_library
def test_training_all_weights_is_refused() -> None:
    with pytest.raises(UserError, match=r"needs an adapter that leaves the weights"):
        roles("adapter=full", "recover.base=nf4")
