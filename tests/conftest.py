"""Fixtures shared by the tests of several stages."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.hubserver import Hub, serve_hub

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the whole runs of this folder: the longest files must not be the last, with one process at work."""
    items.sort(key=lambda item: item.path.parent != HERE)


def pytest_collection_finish() -> None:
    """Put aside what imports have made: stages collect garbage before they measure memory, and need not walk it."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve_hub() as server:
        yield server


@pytest.fixture(scope="session")
def real_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact store that all test processes share, so that the embedded model is converted once."""
    own = tmp_path_factory.getbasetemp()
    return (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "real-artifacts"
