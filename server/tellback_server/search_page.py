"""Search page: one page of a search, filled chat by chat within a bound of time and bytes.

Rules of this module (BEHAVIOUR I7-I9):
- Chats are searched in the order of lists; a page ends at its limit, after its time, or after its bytes, wherever that
  is, and its cursor goes on from there. It moves on by at least a few messages each time.
- What stands in files is read in a thread, many chats in one go; what is live is copied in the loop (pointers only).
- A chat that cannot be read is passed over; a search shows what it can.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from functools import partial
from typing import Final, Protocol, TypeVar

from tellback_protocol.catalog_frames import FoundMessage
from tellback_server.actor import Actor
from tellback_server.library import Library
from tellback_server.paging import Cursor, Key, Rows
from tellback_server.search import Query, Scan, found_name

__all__ = ["SearchPage"]

PAGE_S: Final = 0.25
PAGE_BYTES: Final = 64 << 20

Result = TypeVar("Result")


class Run(Protocol):
    """Runs something in a thread."""

    def __call__(self, work: Callable[[], Result], /) -> Awaitable[Result]: ...


class SearchPage:
    """One page being filled. Used once."""

    def __init__(
        self, query: Query, limit: int, library: Library, user: str, now_s: Callable[[], float],
        is_wanted: Callable[[], bool],
    ) -> None:
        self.found: list[FoundMessage] = []
        self.searched = 0
        """Chats that were read, wholly or in part."""
        self.following: Cursor | None = None
        """Where the next page goes on; None at the end."""
        self._query = query
        self._limit = limit
        self._library = library
        self._user = user
        self._now_s = now_s
        self._is_wanted = is_wanted
        self._until_s = now_s() + PAGE_S
        self._bytes_left = PAGE_BYTES
        self._next: tuple[Key, Cursor] | None = None
        """A live chat that comes next."""

    async def fill(self, rows: Rows, live: Mapping[str, Actor], at: Cursor, run: Run) -> None:
        """Search on from `at`. `run` runs something in a thread."""
        items = rows.after(at)
        while True:
            at = await run(partial(self._stored, items, live, at))
            if self._next is None:
                return
            key, behind = self._next
            actor = live[key[1]]
            stream = actor.stream if actor.state in ("ready", "busy") else None
            if stream is None:
                # It was folded and let go meanwhile: its file has everything.
                await run(partial(self._file, key, at))
            else:
                scan = partial(Scan.of_lines, self._query, actor.name, list(stream.chat.messages.items()))
                await run(partial(self._chat, key, at, scan))
            if self.following is not None:
                return
            at = behind

    @property
    def _is_over(self) -> bool:
        return self._bytes_left <= 0 or self._now_s() > self._until_s or not self._is_wanted()

    def _stored(
        self, items: Iterator[tuple[Key, Cursor]], live: Mapping[str, Actor], at: Cursor
    ) -> Cursor:
        """Search files until one is live or the page is full. Returns where that is."""
        self._next = None
        for key, behind in items:
            if self._is_over and self.searched:
                self.following = at
                return at
            if key[1] in live:
                self._next = (key, behind)
                return at
            self._file(key, at)
            if self.following is not None:
                return at
            at = behind
        return at

    def _file(self, key: Key, at: Cursor) -> None:
        def scan(index: int) -> Scan:
            one, size_bytes = self._library.scan(self._user, key[1], self._query, index)
            self._bytes_left -= size_bytes
            return one

        self._chat(key, at, scan)

    def _chat(self, key: Key, at: Cursor, scan: Callable[[int], Scan]) -> None:
        """Search one chat: its name first, which counts as the first thing told of it."""
        name = key[1]
        told = at.inner if at.within == key else 0
        self.searched += 1
        if told == 0:
            hit = found_name(self._query, name, name.partition("/")[2] or name.partition(":")[2])
            if hit is not None:
                self.found.append(hit)
                if len(self.found) >= self._limit:
                    self.following = Rows.inside(at, key, 1)
                    return
        one = scan(max(0, told - 1))
        if not one.run(self.found, self._limit, lambda: self._is_over):
            self.following = Rows.inside(at, key, one.index + 1)
