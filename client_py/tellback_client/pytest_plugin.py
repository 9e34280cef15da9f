"""Fixtures for projects that test against tellback: a real server for each test.

    async def test_two_tabs(tellback_server):
        async with connect(tellback_server.url) as client: ...

Rules of this module:
- pytest loads it in every run of every project that has tellback installed, so it imports next to nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .server_process import ServerProcess


@pytest.fixture
def tellback_server(tmp_path: Path) -> Iterator[ServerProcess]:
    """A server of its own for one test: `.url`, `.data`, `.kill()` (SIGKILL), `.restart()`, `.stop()`."""
    from .server_process import ServerProcess

    data = tmp_path / "tellback"
    data.mkdir()
    server = ServerProcess(data)
    server.start()
    try:
        yield server
    finally:
        server.close()
