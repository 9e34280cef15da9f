"""Paging: which entries come next, the newest first, while everything may change between two pages. Pure.

    rows = Rows(keys of the files, keys of live chats)     a Key is (when it changed in ns, its name)
    for key in rows.after(cursor): ...                     first down from the cursor, then up what changed meanwhile

Rules of this module (BEHAVIOUR I5):
- A cursor holds two positions: `top`, the newest entry when the first page was made, and `below`, the last one told.
- Entries below `below` follow in order. Behind them comes what is above `top` by then: it changed since, and is told
  once more, the oldest first. So nothing is lost, and what nobody changed is told once.
- Characters and groups have names that stay: their pages follow the names (I15).
- A cursor is opaque to clients and holds nothing that the server has to remember; one that was made up shows nothing
  but another page of the user's own entries.
"""

from __future__ import annotations

import base64
import binascii
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Final

import msgspec

from tellback_protocol.errors import Refused

__all__ = ["BOTTOM", "Cursor", "Key", "Rows", "page_of_names", "read_cursor"]

Key = tuple[int, str]
BOTTOM: Final[Key] = (-1, "")
"""Below every entry: all of them were told."""


class Cursor(msgspec.Struct, frozen=True, array_like=True):
    """Where a page ended."""

    asked: str
    """What was asked for; a cursor continues only that."""
    top: Key
    below: Key
    within: Key | None = None
    """The entry that comes next, when a part of it was told already: `inner` of its messages. As long as it is still
    this entry."""
    inner: int = 0

    def encoded(self) -> str:
        """As clients carry it."""
        return base64.urlsafe_b64encode(msgspec.json.encode(self)).rstrip(b"=").decode()


_decode = msgspec.json.Decoder(Cursor).decode


def read_cursor(text: str, asked: str) -> Cursor:
    """The cursor that a client sent. Raises: Refused `bad-frame`."""
    try:
        data = text.encode("ascii")
        cursor = _decode(base64.b64decode(data + b"=" * (-len(data) % 4), altchars=b"-_", validate=True))
    except (UnicodeEncodeError, binascii.Error, msgspec.MsgspecError):
        raise Refused("bad-frame", "This is no cursor of this server.", pointer="/cursor") from None
    if cursor.asked != asked or cursor.inner < 0:
        raise Refused("bad-frame", "This cursor belongs to another question.", pointer="/cursor")
    return cursor


def page_of_names(
    names: Iterable[str], asked: str, cursor: str | None, limit: int, bytes_max: int, size_of: Callable[[str], int]
) -> tuple[list[str], str | None]:
    """Names in their order, behind where the page before ended: at least one, `limit` and `bytes_max` at most, and what
    asks for the page behind. A name that is there all the while is told once.
    """
    below = read_cursor(cursor, asked).below[1] if cursor is not None else None
    order = sorted(names)
    start = 0 if below is None else bisect_right(order, below)
    page: list[str] = []
    size_bytes = 0
    for name in order[start : start + limit]:
        size_bytes += size_of(name)
        if page and size_bytes > bytes_max:
            break
        page.append(name)
    if start + len(page) == len(order):
        return page, None
    return page, Cursor(asked, BOTTOM, (0, page[-1])).encoded()


class Rows:
    """Keys of what stands in files and of what is live, as one order. A live entry stands for its file's."""

    def __init__(self, stored: Sequence[Key], live: Collection[Key], hidden: Collection[str]) -> None:
        """`stored` is sorted, the oldest first. `hidden` are names whose stored key does not count.

        Cost: sorting what is live.
        """
        self._stored = stored
        self._live = sorted(live)
        self._hidden = hidden

    @property
    def top(self) -> Key:
        """The newest entry, BOTTOM when there is none."""
        return next(self.below(None), BOTTOM)

    def below(self, key: Key | None) -> Iterator[Key]:
        """Entries before `key`, the newest first; all of them for None."""
        stored, live = self._stored, self._live
        at = len(stored) if key is None else bisect_left(stored, key)
        live_at = len(live) if key is None else bisect_left(live, key)
        while at or live_at:
            if at and stored[at - 1][1] in self._hidden:
                at -= 1
            elif not live_at or (at and stored[at - 1] > live[live_at - 1]):
                at -= 1
                yield stored[at]
            else:
                live_at -= 1
                yield live[live_at]

    def above(self, key: Key) -> Iterator[Key]:
        """Entries behind `key`, the oldest first."""
        stored, live = self._stored, self._live
        at, live_at = bisect_right(stored, key), bisect_right(live, key)
        while at < len(stored) or live_at < len(live):
            if at < len(stored) and stored[at][1] in self._hidden:
                at += 1
            elif live_at == len(live) or (at < len(stored) and stored[at] < live[live_at]):
                yield stored[at]
                at += 1
            else:
                yield live[live_at]
                live_at += 1

    def start(self, asked: str) -> Cursor:
        """Where the first page begins: in front of everything."""
        top = self.top
        return Cursor(asked, top, (top[0], top[1] + "\0"))

    @staticmethod
    def inside(before: Cursor, key: Key, inner: int) -> Cursor:
        """Where a page ended that told `inner` messages of `key`, which comes next after `before`."""
        below = before.below if before.below == BOTTOM else (key[0], key[1] + "\0")
        return Cursor(before.asked, before.top, below, key, inner)

    def after(self, cursor: Cursor) -> Iterator[tuple[Key, Cursor]]:
        """What comes next, each with the cursor behind it."""
        for key in self.below(cursor.below):
            yield key, Cursor(cursor.asked, cursor.top, key)
        for key in self.above(cursor.top):
            yield key, Cursor(cursor.asked, key, BOTTOM)
