"""The store of plain files keeps the contract; crashes in the middle, edits of others, and SillyTavern's layout."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tellback_protocol.ids import existing_name_problem
from tellback_server.contract import StoreContract
from tellback_server.contract.saved import ODD_TEXTS


class TestFolderStore(StoreContract):
    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return f"files://{tmp_path}/mirror"

    def odd_texts(self) -> Sequence[str]:
        return [text for text in ODD_TEXTS if existing_name_problem(text) is None]
