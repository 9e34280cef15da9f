"""Questions to the server: they change nothing, so they are asked again on the next connection.

Rules of this module:
- Each has one answer, a frame or an error; the end of a subscription is answered by the end of the connection too.
- An answer in parts is handed over when it is whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from msgspec import UnsetType

from tellback_protocol.frames import HistoryFrame, HistoryPart

from .errors import TellbackError

__all__ = ["Questions", "Read", "Waiter"]

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


class Questions:
    """Those without an answer."""

    def __init__(self) -> None:
        self._reads: dict[int, Read] = {}
        self._closes: dict[int, Waiter] = {}
        """Who waits for the end of a subscription."""
        self._histories: dict[int | None, HistoryFrame] = {}
        """Answers to `history` whose parts are still coming, by request."""

    def ask(self, read: Read) -> None:
        """Take a question on."""
        self._reads[read.request_id] = read

    def closing(self, request_id: int, waiter: Waiter) -> None:
        """A subscription is being ended."""
        self._closes[request_id] = waiter

    def unsent(self) -> Iterator[Read]:
        """Those to send on this connection."""
        return (read for read in self._reads.values() if not read.sent)

    @property
    def asked(self) -> list[int]:
        """Numbers of those that were sent on this connection."""
        return [read.request_id for read in self._reads.values() if read.sent]

    def disconnected(self) -> None:
        """The connection is gone, and with it what was open on it."""
        self._histories.clear()
        closes, self._closes = list(self._closes.values()), {}
        for waiter in closes:
            waiter(None)
        for read in self._reads.values():
            read.sent = False

    def fail(self, error: TellbackError) -> None:
        """There will be no answers."""
        reads, self._reads = list(self._reads.values()), {}
        for read in reads:
            read.waiter(error)

    def answer(self, request_id: int | None, answer: object) -> None:
        """A frame or an error with the number of a request."""
        if request_id is None:
            return
        waiter = self._closes.pop(request_id, None)
        if waiter is not None:
            waiter(answer)
            return
        read = self._reads.pop(request_id, None)
        if read is not None:
            read.waiter(answer)

    def history(self, frame: HistoryFrame) -> None:
        """The answer to `history`, whole or with parts to come."""
        if isinstance(frame.parts, UnsetType):
            self.answer(frame.id, frame)
        else:
            frame.messages = []
            self._histories[frame.id] = frame

    def history_part(self, frame: HistoryPart) -> None:
        """Messages of one with parts."""
        whole = self._histories.get(frame.id)
        if whole is None or isinstance(whole.messages, UnsetType):
            return
        whole.messages.extend(frame.messages)
        if frame.part == frame.of:
            del self._histories[frame.id]
            self.answer(frame.id, whole)
