"""Redis keeps the contract."""

from __future__ import annotations

import uuid

import pytest

from tellback_server.contract import StoreContract
from tests.support.database_servers import ValkeyProcess


class TestRedisStore(StoreContract):
    @pytest.fixture
    def url(self, valkey: ValkeyProcess) -> str:
        return valkey.url(0, f"?prefix={uuid.uuid4().hex}")
