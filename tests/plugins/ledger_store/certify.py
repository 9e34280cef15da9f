"""What the author of a store runs: `pytest certify.py`, with tellback and the package installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tellback_server.contract import StoreContract


class TestLedgerStore(StoreContract):
    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return f"ledger://{tmp_path}/chats.ledger"
