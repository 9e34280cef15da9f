"""The store in memory keeps the contract, and its snapshots go their own way."""

from __future__ import annotations

import uuid

import pytest

from tellback_server.contract import Saved, StoreContract, same
from tellback_server.store.memory import MemoryStore


class TestMemoryStore(StoreContract):
    outlives_process = False

    @pytest.fixture
    def url(self) -> str:
        return f"memory:{uuid.uuid4()}"


def test_a_snapshot_stays_as_it_was() -> None:
    store, saved = MemoryStore(), Saved()
    saved.append()
    before = saved.save(store)
    snapshot = store.snapshot()
    saved.append()
    after = saved.save(store)
    same(snapshot.load("default-user", saved.chat_id), before)
    same(store.load("default-user", saved.chat_id), after)
