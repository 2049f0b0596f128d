"""Fixtures shared by the tests of several stages."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hubserver import Hub, serve_hub


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve_hub() as server:
        yield server
