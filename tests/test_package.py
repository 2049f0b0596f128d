"""What the wheel carries, and the command that it installs."""

from __future__ import annotations

import subprocess
import tomllib
from importlib import resources
from importlib.metadata import EntryPoint

import pytest

import pipeline.__main__
from helpers.world import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = ("pipeline", "stages", "conf")


@pytest.mark.parametrize("package", PACKAGES)
def test_every_file_of_a_package_is_a_module_or_carried_as_its_data(package: str) -> None:
    folder = ROOT / package
    data = {path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    globs = PROJECT["tool"]["setuptools"]["package-data"][package]
    assert data == {path for glob in globs for path in folder.glob(glob)}


@pytest.mark.parametrize("package", PACKAGES)
def test_type_checkers_are_told_that_a_package_is_typed(package: str) -> None:
    assert (resources.files(package) / "py.typed").is_file()


def test_the_command_is_the_pipeline() -> None:
    ((name, value),) = PROJECT["project"]["scripts"].items()
    assert name == "prune-recover"
    assert EntryPoint(name, value, "console_scripts").load() is pipeline.__main__.main


def test_setup_ends_with_what_to_do_next_and_other_targets_do_not() -> None:
    assert make("setup") == (".venv is ready. Next: make plan (what a run would do, in seconds), then make recover\n")
    assert "Next:" not in make("--dry-run", "plan")


def make(*arguments: str) -> str:
    """Return what make prints, where everything is installed."""
    command = ["make", "--old-file=.venv/.installed", "--no-print-directory", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
