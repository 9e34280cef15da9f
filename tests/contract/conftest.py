"""The database servers of a test session, one of each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.database_servers import PostgresProcess, ServerProcess, ValkeyProcess


def _running(server: ServerProcess) -> Iterator[ServerProcess]:
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture(scope="session")
def postgres() -> Iterator[ServerProcess]:
    yield from _running(PostgresProcess())


@pytest.fixture(scope="session")
def valkey() -> Iterator[ServerProcess]:
    yield from _running(ValkeyProcess())
