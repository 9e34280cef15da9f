"""Cipher settings: the environment variables of Cipher's MultiBackend, read as settings of ours. Pure.

    CIPHER_MULTI_BACKEND         1, true, yes or on: store multi; empty, 0, false, no or off: not
    CIPHER_PG_URL                primary
    CIPHER_WAL_FLUSH_INTERVAL    flush_interval_s, in milliseconds as there

Rules of this module:
- A setting of ours wins, wherever it stands. Without `store multi` the other two say nothing.
- What is no number is an error: taken for one it would be a loop without a pause.
- Cipher's backup is an SQLite file; here it lies in the data folder's `.tellback`, unless `backup` is set.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

from tellback_server.config_problems import ConfigurationError, Problem

__all__ = ["cipher_settings"]

_ON: Final = frozenset({"1", "true", "yes", "on"})
_OFF: Final = frozenset({"", "0", "false", "no", "off"})


def cipher_settings(environment: Mapping[str, str], named: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that the variables make; `named` are those that were set otherwise. Raises ConfigurationError."""
    text = environment.get("CIPHER_MULTI_BACKEND", "").strip().lower()
    if text not in _ON | _OFF:
        what = f"{text[:32]!r} is neither on nor off."
        raise ConfigurationError(Problem("CIPHER_MULTI_BACKEND", what, "Use 1 or 0."))
    if named.get("store", "multi" if text in _ON else None) != "multi":
        return {}
    values: dict[str, Any] = {"store": "multi"}
    url = environment.get("CIPHER_PG_URL", "").strip()
    if url and "primary" not in named:
        values["primary"] = url
    data = named.get("data")
    if text in _ON and "backup" not in named and isinstance(data, str):
        folder = os.path.join(os.path.abspath(os.path.expanduser(data)), ".tellback")
        values["backup"] = f"sqlite://{quote(folder)}/cipher-backup.db"
    interval = environment.get("CIPHER_WAL_FLUSH_INTERVAL", "").strip()
    if interval and "flush_interval_s" not in named:
        values["flush_interval_s"] = _milliseconds(interval) / 1000
    return values


def _milliseconds(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 10 <= int(text[:8]) <= 3_600_000 or len(text) > 7:
        what = f"{text[:32]!r} is no number of milliseconds between 10 and 3600000."
        raise ConfigurationError(Problem("CIPHER_WAL_FLUSH_INTERVAL", what, "Use 5000 for 5 s."))
    return int(text)
