"""Messages that no person and no model said: their types and their shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SYSTEM_NAME = "System"

SYSTEM_MESSAGE_TYPES = {
    name: name.lower()
    for name in (
        "HELP", "WELCOME", "EMPTY", "GENERIC", "NARRATOR", "COMMENT", "SLASH_COMMANDS", "FORMATTING", "HOTKEYS",
        "MACROS", "WELCOME_PROMPT", "ASSISTANT_NOTE", "ASSISTANT_MESSAGE",
    )
}
"""By name; the value stands in `extra.type`. Only front ends know what HELP and its like say: `text` says it here."""


def system_message(kind: str, text: str, extra: Mapping[str, Any] | None, send_date: str) -> dict[str, Any]:
    """A message of a system type, named in either case. Raises: ValueError for any other."""
    value = SYSTEM_MESSAGE_TYPES.get(kind.upper()) if isinstance(kind, str) else None
    if value is None:
        raise ValueError(f"a system message is one of {', '.join(SYSTEM_MESSAGE_TYPES)}, not {kind!r}")
    return {
        "name": SYSTEM_NAME, "is_user": False, "is_system": True, "send_date": send_date, "mes": text,
        "extra": {**(extra or {}), "type": value},
    }
