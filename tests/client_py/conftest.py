"""The package's own fixture, with a server that starts in no time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.warm_server import WarmServer


@pytest.fixture
def tellback_server(tmp_path: Path) -> Iterator[WarmServer]:
    """As tellback_client.pytest_plugin makes it; test_pytest_plugin has the real one."""
    data = tmp_path / "tellback"
    data.mkdir()
    with WarmServer(data) as server:
        yield server
