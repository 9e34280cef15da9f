"""Status: how a server is, as GET /statusz tells it and `tellback status` shows it."""

from __future__ import annotations

import msgspec

from tellback_server.backing import StoreReport

__all__ = ["Status"]


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """One look at a server."""

    server: str
    ready: bool
    """Whether writes are admitted."""
    state: str
    """What is wrong with a store, for people; empty when nothing is."""
    connections: int
    chats: int
    """Owners in memory."""
    log_segments: int
    checkpoint_lag_s: float
    """Age of the oldest durable write that is not where chats are kept."""
    stores: list[StoreReport]
