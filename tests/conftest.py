"""What holds for every test: nothing is decided by how fast the machine is today, or by the test before."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.support.database_servers import PostgresProcess, ValkeyProcess
from tests.support.logs import logging_restored

settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """A command that ran inside a test told the logging of the whole process what to do."""
    with logging_restored():
        yield


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresProcess]:
    """PostgreSQL, for all tests of this process; whoever kills it starts it again."""
    with PostgresProcess() as server:
        yield server


@pytest.fixture(scope="session")
def valkey() -> Iterator[ValkeyProcess]:
    """Valkey, likewise."""
    with ValkeyProcess() as server:
        yield server
