"""The twelve invariants on every store: what tabs were told, after kills and cut wires, is what the store holds."""

from __future__ import annotations

import random
import uuid
from pathlib import Path

import pytest

from tests.checker.campaign import Plan, hold
from tests.support.database_servers import PostgresProcess, ValkeyProcess


@pytest.mark.timeout(180)
@pytest.mark.parametrize("kind", ["files", "postgresql", "redis", "multi"])
async def test_sv1_no_promise_breaks_on_any_store(request: pytest.FixtureRequest, tmp_path: Path, kind: str) -> None:
    """[SV1] [V1]: SQLite has its turn in tests/checker."""
    url = "files://{folder}/store"
    if kind == "postgresql":
        postgres: PostgresProcess = request.getfixturevalue("postgres")
        url = postgres.url(f"t{uuid.uuid4().hex}")
    elif kind == "redis":
        valkey: ValkeyProcess = request.getfixturevalue("valkey")
        url = valkey.url(0, f"?prefix={uuid.uuid4().hex}")
    seed = random.SystemRandom().randrange(1 << 31)
    backup = "sqlite://{folder}/backup.db" if kind == "multi" else None
    plan = Plan(seed=seed, rounds=2, chaos={"kill": 2, "wires": 1}, store=url, backup=backup)
    found = await hold(plan, tmp_path)
    assert not found, f"seed {seed}: {found}"
