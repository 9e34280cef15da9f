"""What a tab still has to hear of one chat, in order: a long replay, and whatever was told behind it meanwhile.

Rules of this module:
- Frames are made when the socket has room for them, about 64 KiB at a time; nothing of the chat overtakes them
  (BEHAVIOUR D2, R8).
- The replay itself is bounded by the snapshot (R2). What comes behind it is bounded like everything that waits for a
  slow tab: past the bound the tab is demoted, and what it did not get of the replay counts as missed again.
- Answers are never dropped: `answers` gives those that were not sent.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

from tellback_protocol.ids import Version
from tellback_protocol.past import Past
from tellback_server.websocket import text_frame

PIECE_BYTES = 64 << 10
AT_ONCE_BYTES = 64 << 10
"""A replay up to this goes to the socket or its queue whole."""


class Backlog:
    """See the module. `done` is called when everything was sent."""

    __slots__ = ("_done", "_frames", "_owner_json", "_replay", "last", "waiting_bytes")

    def __init__(self, owner_json: bytes, since: Version, replay: list[Past], done: Callable[[], None]) -> None:
        self.last = since
        """The version of the last commit that was sent."""
        self.waiting_bytes = 0
        """Of frames that came behind the replay."""
        self._owner_json = owner_json
        self._replay = deque(replay)
        self._frames: deque[tuple[bytes, Version | None]] = deque()
        """Frame, and for a commit its version."""
        self._done = done

    def commit(self, frame: bytes, version: Version) -> None:
        """An integrity frame behind everything that waits."""
        self._frames.append((frame, version))
        self.waiting_bytes += len(frame)

    def answer(self, frame: bytes) -> None:
        """An answer behind everything that waits."""
        self._frames.append((frame, None))
        self.waiting_bytes += len(frame)

    def answers(self) -> list[bytes]:
        """Those that were not sent."""
        return [frame for frame, version in self._frames if version is None]

    def pieces(self) -> Iterator[bytes]:
        """Whole frames, several at a time, each piece made when it is asked for."""
        while self._replay or self._frames:
            piece = bytearray()
            while self._replay and len(piece) < PIECE_BYTES:
                past = self._replay.popleft()
                piece += text_frame(past.frame(self._owner_json))
                self.last = past.version
            while self._frames and len(piece) < PIECE_BYTES:
                frame, version = self._frames.popleft()
                self.waiting_bytes -= len(frame)
                piece += frame
                if version is not None:
                    self.last = version
            yield bytes(piece)
        self._done()
