"""Active: the chats that a source shows become the user's active chats, where nobody chose one here yet.

Rules of this module (BEHAVIOUR I12):
- Written as the second copy of what the log says; a choice in the log or in that file stays.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tellback_server.active_chats import OWNER_ENDING, ActiveChats
from tellback_server.checks.log_image import LogImage
from tellback_server.log import Position, Record
from tellback_server.store.files import FileStore

__all__ = ["chosen", "take_over"]


class _ReadOnly:
    """A log that nobody serves, as far as it is read; what is chosen goes into the file alone."""

    def __init__(self, image: LogImage) -> None:
        self._image = image

    def append(self, kind: int, owner: str, seq: int, body: bytes) -> Position:
        del kind, owner, seq, body
        return Position(0)

    def records(self, owner: str, after_seq: int = 0) -> Iterator[tuple[Position, Record]]:
        return self._image.records(owner, after_seq)


def take_over(
    files: FileStore, image: LogImage, user: str, shown: Mapping[str, tuple[str, str]], now_ms: int
) -> list[str]:
    """Scopes that have an active chat from now on. Durable on return; `shown` are id and name by scope. Cost: the log.

    Raises OSError, LogCorrupt.
    """
    if not shown:
        return []
    active = _loaded(files, image, user)
    known = active.of(user)
    new = [scope for scope in shown if scope not in known]
    for scope in new:
        chat_id, name = shown[scope]
        active.set(user, scope, chat_id, name, now_ms)
    if new:
        active.save([one for one in active.taken() if one[0] == user])
    return new


def chosen(files: FileStore, image: LogImage, user: str) -> list[str]:
    """Names of the chats that are active. Cost: the log. Raises OSError, LogCorrupt."""
    return [one.name for one in _loaded(files, image, user).of(user).values() if one.name is not None]


def _loaded(files: FileStore, image: LogImage, user: str) -> ActiveChats:
    active = ActiveChats(_ReadOnly(image), files)
    active.load([user + OWNER_ENDING])
    return active
