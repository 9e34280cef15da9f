"""A question to the server: it changes nothing, so it is asked again on the next connection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["Read", "Waiter"]

Waiter = Callable[[Any], None]
"""Gets the frame that answers, or an error."""


class Read:
    """One question."""

    __slots__ = ("asked", "data", "request_id", "sent", "waiter")

    def __init__(self, request_id: int, data: bytes, waiter: Waiter) -> None:
        self.request_id = request_id
        self.data = data
        self.sent = False
        self.asked = 0
        """On how many connections it was sent."""
        self.waiter = waiter
        """Gets the frame, or an error."""
