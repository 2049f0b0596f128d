"""What the pages say is true: commands and snippets run, files they name are there, links lead somewhere.

Every shell block runs as written, on a tiny model and tiny rows, with three exceptions. What only plans is planned in
this process, by the functions that the command calls. `make test` and its like run dry. A benchmark, which has a test
of its own, runs as far as its `--help`. The blocks of docs/extending.md run in `test_extending.py`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from helpers.commands import Shell, here, noted, shell
from helpers.pages import PAGES, blocks, headings, links
from helpers.world import ROOT, environment, make_world
from pipeline.schema.overrides import groups
from stages.adapters.registry import ADAPTERS
from stages.decoders.shapes import DecoderShape
from stages.model.config import ModelConfig
from stages.prune.registry import METHODS

EXTENDING = "docs/extending.md"
MODELS = "docs/artifacts_and_models.md"
LONGEST = 180
"""Lines of the README: what a stranger reads before deciding."""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """A directory that looks like a checkout, so that nothing lands in the real one."""
    world = make_world(tmp_path_factory.mktemp("pages"))
    folders = ("conf", "pipeline", "stages", "benchmarks", "tests", "docs")
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "README.md", *folders):
        (world.root / name).symlink_to(ROOT / name)
    (world.root / ".venv").symlink_to(sys.prefix)
    return shell(world)


def shell_blocks() -> Iterator[object]:
    for page in PAGES:
        for block in blocks(page, "bash") if page != EXTENDING else ():
            yield pytest.param(block, id=f"{page}: {block.splitlines()[0][:60]}")


@pytest.mark.parametrize("block", shell_blocks())
def test_a_shell_block_of_a_page_runs(
    block: str, checkout: Shell, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done = checkout.run(block)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    monkeypatch.chdir(checkout.world.root)
    with environment(checkout.variables):
        for module, arguments in noted(checkout.noted):
            if module == "pipeline":
                here(module, arguments)
                assert "report" in capsys.readouterr().out  # of every plan the last stage
            else:
                with pytest.raises(SystemExit, match="^0$"):
                    here(module, arguments)


@pytest.mark.parametrize("page", [page for page in PAGES if page != EXTENDING and blocks(page, "python")])
def test_the_snippets_of_a_page_run_one_after_the_other(page: str, checkout: Shell) -> None:
    snippets = "\n".join(blocks(page, "python"))
    done = checkout.start([sys.executable, "-m", "helpers.snippets"], given=snippets)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def test_the_pages_have_the_commands_a_reader_looks_for() -> None:
    text = "".join(block for page in PAGES for block in blocks(page, "bash"))
    for command in ("make recover", "make test", "python -m pipeline -m", "pipeline.inspect ls", "make compare"):
        assert command in text


@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_a_page_is_of_a_kind_that_is_run(page: str) -> None:
    languages = set(re.findall(r"^```(.*)$", (ROOT / page).read_text(), re.MULTILINE)) - {""}
    more = {EXTENDING: {"yaml", "markdown"}, MODELS: {"yaml"}}
    assert languages <= {"bash", "python", "text"} | more.get(page, set())


def test_the_model_file_of_a_page_has_the_fields_of_a_model_and_a_shape_that_can_be_planned() -> None:
    (block,) = blocks(MODELS, "yaml")
    model = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(ModelConfig), OmegaConf.create(block)))
    assert isinstance(model, ModelConfig)
    assert model.shape is not None
    assert DecoderShape.from_config(model.shape).parameters() == 6_738_415_616  # of Llama-2-7B


@pytest.mark.parametrize("page", PAGES)
def test_every_file_a_page_names_exists(page: str) -> None:
    text = (ROOT / page).read_text()
    names = set(re.findall(r"`((?:conf|stages|pipeline|tests|docs|notebooks|benchmarks)/[\w/.-]+)`", text))
    # A page on adding files names files that are not there; its own test makes them.
    if page == EXTENDING:
        names -= {*re.findall(r"^# (\S+)$", text, re.MULTILINE), *(name for name in names if "NAME" in name)}
    assert not [name for name in sorted(names) if not (ROOT / name).exists()]


@pytest.mark.parametrize("page", PAGES)
def test_every_link_of_a_page_leads_to_a_file_and_a_heading(page: str) -> None:
    for target in links(page):
        name, _, anchor = target.partition("#")
        file = (ROOT / page).parent / name if name else ROOT / page
        assert file.exists(), target
        assert not anchor or anchor in headings(file), target


def test_every_page_is_reached_from_the_readme() -> None:
    reached = {Path(target.partition("#")[0]).as_posix() for target in links("README.md")}
    assert {page for page in PAGES if page != "README.md"} <= reached


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= LONGEST


def test_the_readme_names_every_option_of_every_group() -> None:
    named = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", (ROOT / "README.md").read_text(), re.MULTILINE))
    for group, options in groups().items():
        short = {f"{name}-pruned" for name in options} if "`…-pruned`" in named[group] else set()
        assert not [option for option in options if f"`{option}`" not in named[group] and option not in short], group


@pytest.mark.parametrize(("page", "names"), [("docs/pruning.md", METHODS), ("docs/adapters.md", ADAPTERS)])
def test_a_page_has_every_method_there_is(page: str, names: dict[str, object]) -> None:
    text = (ROOT / page).read_text()
    assert not [name for name in names if f"`{name}`" not in text and f"`prune={name}`" not in text]
