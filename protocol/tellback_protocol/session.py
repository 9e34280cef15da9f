"""One connection's side of the conversation, without I/O: hello, limits, what may come when.

    new --hello--> greeting --accept--> ready --close--> closed

Rules of this module:
- Before hello is accepted only `hello` is understood; everything else closes the connection (BEHAVIOUR C1).
- A bad frame costs its sender: after too many in a minute the connection is closed, nobody else notices (C4).
- Writes that wait for their answer are counted in frames and bytes; past the limit reading stops, not the chat (C5).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from msgspec import UNSET, UnsetType

from . import codec
from .codec import FrameProblem
from .errors import Refused, illegal
from .frames import (
    CLOSE_FLOOD,
    CLOSE_PROTOCOL,
    PROTOCOL,
    Auth,
    ClientFrame,
    Hello,
    Limits,
    ModelServer,
    Welcome,
)
from .ids import session_problem
from .requests import Malformed

HELLO_TIMEOUT_S = 10
HELLO_BYTES_MAX = 8 << 10
BAD_FRAMES_PER_MINUTE = 100


class ConnectionClosing(Exception):
    """The connection ends: an `error` frame to send first (or None), then the close code and reason."""

    def __init__(self, code: int, reason: str, frame: bytes | None = None) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason
        self.frame = frame


class ServerSession:
    """The server's half of one connection."""

    __slots__ = (
        "_bad_frames", "_bad_since_s", "in_flight", "in_flight_bytes", "limits", "session", "state", "user",
    )

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.state: Literal["new", "greeting", "ready", "closed"] = "new"
        self.session = ""
        """The session id; set by hello."""
        self.user = ""
        """Set when hello was accepted."""
        self.in_flight = 0
        self.in_flight_bytes = 0
        self._bad_frames = 0
        self._bad_since_s = 0.0

    def receive(self, data: bytes) -> ClientFrame | Malformed:
        """The frame in a text message.

        Raises: FrameProblem (answer it with `refuse`), ConnectionClosing.
        """
        if self.state == "ready":
            frame = codec.decode_client(data, self.limits)
            if type(frame) is Hello:
                raise FrameProblem(Refused("hello-repeated", "hello was already accepted."), codec.echo_in(data))
            return frame
        return self._receive_hello(data)

    def _receive_hello(self, data: bytes) -> Hello:
        if self.state != "new":
            raise self._closing(Refused("hello-required", "Wait for welcome before the next frame."), data)
        if len(data) > HELLO_BYTES_MAX:
            raise self._closing(Refused("too-large", f"hello has at most {HELLO_BYTES_MAX} bytes."), data)
        try:
            frame = codec.decode_client(data, self.limits)
        except FrameProblem as problem:
            raise self._closing(problem.refusal, data) from None
        if not isinstance(frame, Hello):
            raise self._closing(Refused("hello-required", "The first frame is hello."), data)
        if frame.protocol != PROTOCOL:
            raise self._closing(
                Refused("unsupported-protocol", f"This server speaks protocol {PROTOCOL}.", pointer="/protocol"), data
            )
        wrong = session_problem(frame.session)
        if wrong:
            raise self._closing(illegal("session-invalid", wrong, "/session"), data)
        self.session = frame.session
        self.state = "greeting"
        return frame

    def accept(self, user: str, server: str, heartbeat_ms: int, upstreams: Sequence[ModelServer] = ()) -> bytes:
        """The user is who hello said: the `welcome` frame."""
        self.user = user
        self.state = "ready"
        return self._welcome(server, heartbeat_ms, upstreams, UNSET)

    def welcome_again(
        self, auth: Auth, server: str, heartbeat_ms: int, upstreams: Sequence[ModelServer] = ()
    ) -> bytes:
        """The answer to `auth`."""
        return self._welcome(server, heartbeat_ms, upstreams, auth.id)

    def _welcome(
        self, server: str, heartbeat_ms: int, upstreams: Sequence[ModelServer], request_id: int | UnsetType | None
    ) -> bytes:
        return codec.encode(Welcome(
            PROTOCOL, server, self.user, self.limits, heartbeat_ms, request_id, list(upstreams) or UNSET
        ))

    def refuse(self, problem: FrameProblem, now_s: float) -> bytes:
        """The `error` frame for a bad frame. Raises: ConnectionClosing after too many of them."""
        if now_s - self._bad_since_s > 60:
            self._bad_since_s = now_s
            self._bad_frames = 0
        self._bad_frames += 1
        frame = codec.error(problem.refusal, problem.echo)
        if self._bad_frames > BAD_FRAMES_PER_MINUTE:
            self.state = "closed"
            raise ConnectionClosing(CLOSE_FLOOD, "too many bad frames", frame)
        return frame

    def binary(self) -> FrameProblem:
        """What a binary message is answered with."""
        if self.state != "ready":
            raise self._closing(Refused("binary-frame", "Frames are text."))
        return FrameProblem(Refused("binary-frame", "Frames are text."), {})

    def started(self, size_bytes: int) -> bool:
        """A write waits for its answer. True when reading should stop until one is answered."""
        self.in_flight += 1
        self.in_flight_bytes += size_bytes
        limits = self.limits
        return self.in_flight >= limits.in_flight or self.in_flight_bytes >= limits.in_flight_bytes

    def answered(self, size_bytes: int, count: int = 1) -> None:
        """`count` writes of together `size_bytes` have their answer."""
        self.in_flight -= count
        self.in_flight_bytes -= size_bytes

    @property
    def full(self) -> bool:
        """True while reading stops."""
        return self.in_flight >= self.limits.in_flight or self.in_flight_bytes >= self.limits.in_flight_bytes

    def _closing(self, refusal: Refused, data: bytes = b"") -> ConnectionClosing:
        self.state = "closed"
        return ConnectionClosing(CLOSE_PROTOCOL, refusal.code, codec.error(refusal, codec.echo_in(data)))
