"""Moments, as the fields of messages and headers tell them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

LAST_MS: Final = 253_402_300_799_999
"""The end of the year 9999."""


def utc_text(moment_ms: int) -> str:
    """ISO 8601 in UTC with milliseconds, as browsers write it. A moment that has no such text becomes the nearest one:
    another program may have written the document that it comes from.
    """
    seconds, milliseconds = divmod(min(max(0, moment_ms), LAST_MS), 1000)
    moment = datetime.fromtimestamp(seconds, UTC).replace(microsecond=1000 * milliseconds)
    return text_of(moment)


def text_of(moment: datetime) -> str:
    """The same of a moment in UTC."""
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
