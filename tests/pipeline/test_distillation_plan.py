"""What `recover.objective=distillation` adds to a plan: the dense model as the recovery's teacher."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.configurations import configuration
from pipeline.planning.build import build_graph
from pipeline.planning.graph import Node
from stages.errors import UserError

DISTIL = "recover.objective=distillation"


def roles(*overrides: str) -> dict[str, Node]:
    return dict(build_graph(configuration(*overrides)).roles)


def test_the_model_that_was_cut_teaches_what_is_left_of_it() -> None:
    plain, distilled = roles(), roles(DISTIL)
    assert distilled.keys() == plain.keys()
    assert distilled["recover"].inputs == {
        "model": distilled["prune"],
        "data": distilled["data"],
        "teacher": distilled["model"],
    }
    assert distilled["recover"].key != plain["recover"].key
    assert distilled["prune"].key == plain["prune"].key


def test_it_teaches_itself_where_it_takes_the_same_recovery() -> None:
    fair = roles(DISTIL, "reference=dense_recovered")
    assert fair["recover-dense"].inputs["teacher"] is fair["recover-dense"].inputs["model"] is fair["model"]


def test_a_model_that_comes_pruned_learns_from_what_its_makers_cut() -> None:
    compared = roles("model=sheared-llama-1.3b", DISTIL)
    assert compared["recover"].inputs["teacher"].key == compared["dense"].key

    alone = roles("model=sheared-llama-1.3b", DISTIL, "reference=none")
    assert alone["recover"].inputs["teacher"] is alone["teacher"]
    assert alone["teacher"].key == compared["dense"].key


def test_without_a_dense_model_the_error_says_how_to_name_one(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text('{"model_type": "llama"}')
    (path / "model.safetensors").write_bytes(b"weights")
    with pytest.raises(UserError, match=r"no dense model to learn from\. .*recover\.objective=cross_entropy"):
        roles("model=local", f"model.path={path}", "prune=sheared", "reference=none", DISTIL)


def test_its_options_are_in_its_key_and_in_that_of_no_other_objective() -> None:
    option, plain = "recover.distillation.temperature=2", roles()["recover"].key
    assert roles(DISTIL, option)["recover"].key != roles(DISTIL)["recover"].key
    assert roles(option)["recover"].key == plain
    assert roles("recover.keep=best")["recover"].key != plain


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("recover.objective=destillation",), "did you mean 'distillation'"),
        ((DISTIL, "recover.distillation.temperature=0"), "temperature must be above 0"),
        ((DISTIL, "recover.distillation.cache_teacher=true"), "teacher_top_k=64"),
        (("recover.keep=first",), "recover.keep must be one of last, best"),
    ],
)
def test_mistakes_are_found_in_the_plan(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        roles(*overrides)
