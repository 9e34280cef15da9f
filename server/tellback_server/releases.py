"""What waits to leave an actor: requests on their way in, answers on their way out.

Rules of this module:
- A release leaves when its position is durable, in the order of the log (BEHAVIOUR L2).
- These are values between actor, hub and tab; what is done with them is written there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol

import msgspec
from msgspec import UNSET

from tellback_protocol import codec
from tellback_protocol.errors import Refused
from tellback_protocol.ids import Version
from tellback_protocol.past import Past
from tellback_protocol.requests import Malformed, Request
from tellback_server.websocket.text_frames import HEADERS, text_frame

if TYPE_CHECKING:
    from tellback_server.actor import Actor
    from tellback_server.backlog import Backlog
    from tellback_server.tab import Tab


_CLOSING = b"]}]}"
"""Of a Past with a line."""


class Following(msgspec.Struct, gc=False):
    """What comes behind an `opened`."""

    parts: Iterator[bytes] | None = None
    """Of a snapshot; later commits may overtake them."""
    replay: list[Past] = []
    """Commits, in the order of the stream."""
    since: Version | None = None
    """Where the replay begins."""


class Release(msgspec.Struct, gc=False):
    """What may leave when `position` is durable."""

    position: int
    actor: Actor
    tab: Tab | None = None
    answer: bytes | None = None
    """A frame for `tab`."""
    size_bytes: int = 0
    """Of the request, when it counts as in flight."""
    commit: Told | None = None
    """To be told to everybody else."""
    subscribe: Subscription | None = None
    """Begins when this is released: what was sequenced later is broadcast to it."""
    following: Following | None = None
    then: Callable[[set[Tab]], None] | None = None
    """Called behind everything above; adds the tabs that it sent to."""


class Run(msgspec.Struct, gc=False):
    """Plain appends of one tab to one chat, one right behind the other, that become durable together."""

    position: int
    """Of the last one."""
    actor: Actor
    tab: Tab
    size_bytes: int
    """Of the requests together."""
    acks: list[bytes]
    commits: list[Past]


class Told(Protocol):
    """A commit as everybody else is told of it."""

    @property
    def version(self) -> Version: ...

    def frame(self, owner: bytes) -> bytes: ...


class OwnCommit(msgspec.Struct, frozen=True, gc=False):
    """One that the server made by itself. See Told."""

    core: bytes
    version: Version

    def frame(self, owner: bytes) -> bytes:
        """What the others are told; `owner` from `codec.owner_member`."""
        return codec.integrity(owner, self.core)


def told_frames(told: list[Told], owner: bytes) -> bytes:
    """What the others are told, as one piece of WebSocket frames; `owner` from `codec.owner_member`."""
    if len(told) == 1:
        return text_frame(told[0].frame(owner))
    pieces: list[bytes] = []
    opening = b'{"type":"integrity",%b,' % owner
    around = len(opening) + len(_CLOSING)
    for commit in told:
        if type(commit) is Past and commit.line:
            # As its `frame`, without the copy.
            front, line = commit.front, commit.line
            length = around + len(front) + len(line)
            if length < len(HEADERS):
                pieces += (HEADERS[length], opening, front, line, _CLOSING)
                continue
        pieces.append(text_frame(commit.frame(owner)))
    return b"".join(pieces)


class Subscription:
    """One tab has one owner open, under the name it used."""

    __slots__ = ("active", "backlog", "heard", "owner_json", "tab")

    def __init__(self, tab: Tab, owner_json: bytes) -> None:
        self.tab = tab
        self.owner_json = owner_json
        """`"chat":...` or `"owner":...`, as every frame to this tab says it."""
        self.active = False
        self.backlog: Backlog | None = None
        """Set while a long replay is being sent."""
        self.heard: dict[str, tuple[int, int]] = {}
        """Up to where the tab was told the texts of generations: units of text and of reasoning."""


class Envelope(msgspec.Struct, gc=False):
    """A request as it waits in a mailbox."""

    tab: Tab
    request: Request | Malformed
    owner_json: bytes
    """`"chat":...` or `"owner":...`, for the answer."""
    size_bytes: int


def refusal_frame(request: Request | Malformed, owner_json: bytes, refusal: Refused) -> bytes:
    """The `error` that answers a request, with what the request said of itself."""
    echo: dict[str, object] = {"id": request.id}
    op = getattr(request, "op", UNSET)
    if isinstance(op, int):
        echo["op"] = op
    return codec.error(refusal, echo)[:-1] + b"," + owner_json + b"}"


def followed_by(frames: Iterator[bytes], end: Callable[[], None]) -> Iterator[bytes]:
    """The frames, then `end` is called."""
    yield from frames
    end()
