"""Server-sent events: bytes in, events out (WHATWG HTML, section 9.2).

Rules this module keeps:

- Pure: no clock, no sockets. Chunks may be cut anywhere, also inside a character or between CR and LF: lines are split
  as bytes, and neither CR nor LF is ever part of a longer UTF-8 sequence.
- Lenient where real model servers are: an event at the very end needs no blank line and its line no newline, a line
  that is a bare JSON object counts as data, and a field named `error` is an event of that type.
- Nothing grows without bound: an event, or a line that is not complete yet, has at most `event_bytes_max` bytes.
"""

from __future__ import annotations

from typing import Final

import msgspec

__all__ = ["SseEvent", "SseParser", "SseTooLarge"]

_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


class SseEvent(msgspec.Struct, frozen=True):
    """One event. `kind` is the field `event`, "message" when it was not given."""

    data: bytes
    kind: str = "message"


class SseTooLarge(Exception):
    """An event or a line outgrew its bound."""

    def __init__(self, bytes_max: int) -> None:
        super().__init__(bytes_max)
        self.bytes_max = bytes_max

    def __str__(self) -> str:
        return f"an event has more than {self.bytes_max} bytes"


class SseParser:
    """Collects chunks until events are whole. After SseTooLarge it is of no further use."""

    def __init__(self, event_bytes_max: int) -> None:
        self._event_bytes_max = event_bytes_max
        # The beginning of a line whose end has not come; in parts, so that a line in many chunks costs its length once.
        self._line: list[bytes] = []
        self._line_bytes = 0
        self._data: list[bytes] = []
        self._data_bytes = 0
        self._kind = ""
        # True after a CR at the end of a chunk: a LF that comes next belongs to it.
        self._is_after_cr = False
        self._is_first_line = True

    def feed(self, chunk: bytes) -> list[SseEvent]:
        """The events that `chunk` completes. Raises: SseTooLarge."""
        if not chunk:
            return []
        if self._is_after_cr and chunk.startswith(b"\n"):
            chunk = chunk[1:]
        self._is_after_cr = chunk.endswith(b"\r")
        if b"\r" in chunk:
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *complete, begun = chunk.split(b"\n")
        events: list[SseEvent] = []
        for line in complete:
            if self._line:
                line = b"".join((*self._line, line))
                self._line.clear()
                self._line_bytes = 0
            self._take(line, events)
        if begun:
            self._line.append(begun)
            self._line_bytes += len(begun)
            self._check(self._line_bytes)
        return events

    def finish(self) -> list[SseEvent]:
        """What the end of the stream completes: at most one event. Raises: SseTooLarge."""
        events: list[SseEvent] = []
        self._take(b"".join(self._line), events)
        self._line.clear()
        self._take(b"", events)
        return events

    def _take(self, line: bytes, events: list[SseEvent]) -> None:
        if self._is_first_line:
            line = line.removeprefix(_BYTE_ORDER_MARK)
            self._is_first_line = False
        if not line:
            data = b"\n".join(self._data)
            if data:
                events.append(SseEvent(data, self._kind or "message"))
            self._data.clear()
            self._data_bytes = 0
            self._kind = ""
            return
        if line.startswith(b"{"):
            name, value = b"data", line
        else:
            name, _, value = line.partition(b":")
            value = value[1:] if value.startswith(b" ") else value
        if name == b"event":
            self._kind = value.decode("utf-8", "replace")
        elif name in (b"data", b"error"):
            if name == b"error":
                self._kind = "error"
            self._data.append(value)
            self._data_bytes += len(value) + 1
            self._check(0)

    def _check(self, further_bytes: int) -> None:
        if self._data_bytes + further_bytes > self._event_bytes_max:
            raise SseTooLarge(self._event_bytes_max)
