"""One connection's handler: its session, its outbox, and the chats it has open.

Rules of this module:
- A frame is decoded once and handed on; what it means is not decided here.
- The name of a chat is looked up once a connection; after that a write goes straight to its actor.
- Reading stops while too many of this connection's writes wait for the disk (BEHAVIOUR C5).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog
from msgspec import UNSET

from tellback_protocol import codec
from tellback_protocol.codec import FrameProblem
from tellback_protocol.errors import Refused
from tellback_protocol.frames import (
    CLOSE_FORBIDDEN,
    CLOSE_SLOW,
    CLOSE_TAKEN_OVER,
    CLOSE_TIMEOUT,
    CLOSE_UNAUTHENTICATED,
    Auth,
    Goaway,
    Hello,
    ModelServer,
    Ping,
    Pong,
)
from tellback_protocol.generation_requests import GenerationDelta
from tellback_protocol.ids import Version
from tellback_protocol.requests import (
    Append,
    Close,
    Malformed,
    Open,
    OwnerName,
    Request,
    UserRequest,
    address_of,
    owner_named,
    owner_of,
)
from tellback_protocol.session import HELLO_TIMEOUT_S, ConnectionClosing, ServerSession
from tellback_server.outbox import Outbox
from tellback_server.releases import refusal_frame
from tellback_server.websocket import PeerInfo, WebSocketConnection, text_frame

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Hashable, Sequence

    from tellback_server.actor import Actor
    from tellback_server.auth import Identity
    from tellback_server.generation import ChatGenerations
    from tellback_server.hub import Hub
    from tellback_server.reception import Reception

log = structlog.get_logger()

TARGETS_MAX = 1024
"""Names of chats that a connection remembers the actor of."""


class Tab:
    """A browser tab, a phone or a program: whatever is at the other end of one connection."""

    __slots__ = (
        "_append_sizes", "_appends", "_appends_to", "_bytes_seen", "_hello_timer", "_hub", "_pinged", "_reception",
        "_targets", "_throttled", "behind", "chats", "client", "connected_ms", "connection",
        "identity", "is_open", "outbox", "peer", "producing", "session", "session_id", "session_json",
        "user",
    )

    def __init__(self, hub: Hub, reception: Reception, peer: PeerInfo) -> None:
        self._hub = hub
        self._reception = reception
        self.peer = peer
        self.session = ServerSession(hub.limits)
        self.session_id = ""
        self.session_json = b""
        """The session id as JSON."""
        self.user = ""
        self.identity: Identity | None = None
        """Who hello said it is; None before."""
        self.client = ""
        """The software, as hello named it."""
        self.connected_ms = 0
        """When the handshake was done."""
        self.behind = 0
        """How often it was too slow for an owner."""
        self.chats: set[Actor] = set()
        """What it has open, or will have when the answer leaves."""
        self.producing: set[ChatGenerations] = set()
        """Chats with a generation whose text came from here."""
        self.is_open = False
        self.connection: WebSocketConnection
        self.outbox: Outbox
        self._targets: dict[str | OwnerName, tuple[Actor, bytes]] = {}
        """By a chat's name, or by a character or preset; with what answers to a chat's frames say of their owner."""
        self._appends: list[Append] = []
        """Those of this read, all for `_appends_to`."""
        self._append_sizes: list[int] = []
        self._appends_to: tuple[Actor, bytes] | None = None
        self._hello_timer: asyncio.TimerHandle | None = None
        self._throttled = False
        self._bytes_seen = -1
        self._pinged = False

    # -- what the connection tells -----------------------------------------------------------------------------------

    def opened(self, connection: WebSocketConnection) -> None:
        """The handshake is done: begin to wait for hello."""
        self.connection = connection
        self.outbox = Outbox(
            connection, self._hub.loop, self._demoted, self._overfull, self._hub.outbox_bytes_max
        )
        self.is_open = True
        self.connected_ms = self._hub.clock.now_ms()
        self._reception.arrived(self)
        self._hello_timer = self._hub.loop.call_later(HELLO_TIMEOUT_S, self._no_hello)

    def text_received(self, connection: WebSocketConnection, data: bytes) -> None:
        """One frame."""
        try:
            frame = self.session.receive(data)
        except FrameProblem as problem:
            self._bad_frame(problem)
            return
        except ConnectionClosing as end:
            self._end(end)
            return
        if type(frame) is Append:
            target = self._targets.get(frame.chat)
            if target is not None and target[0].state != "ended":
                # It waits for the others that the same read brought: what they share is done once.
                if target is not self._appends_to:
                    self._submit_appends()
                    self._appends_to = target
                self._appends.append(frame)
                self._append_sizes.append(len(data))
                if self.session.started(len(data)):
                    self._throttle()
                return
        if self._appends:
            self._submit_appends()
        if type(frame) is GenerationDelta:
            target = self._targets.get(frame.chat)
            if target is not None and target[0].take_text(self, frame, target[1]):
                self._hub.counters.frames_received += 1
                return
        if isinstance(frame, Hello):
            self._reception.hello(self, frame)
        elif isinstance(frame, Ping):
            self.outbox.urgent(text_frame(codec.encode(Pong(frame.id))))
        elif isinstance(frame, Auth):
            self._reception.authenticate_again(self, frame)
        else:
            self._request(frame, len(data))

    def binary_received(self, connection: WebSocketConnection, data: bytes) -> None:
        """Frames are text."""
        try:
            self._bad_frame(self.session.binary())
        except ConnectionClosing as end:
            self._end(end)

    def closed(self, connection: WebSocketConnection, code: int, reason: str) -> None:
        """The connection is gone; what it had sent is carried out all the same."""
        self.is_open = False
        if self._hello_timer is not None:
            self._hello_timer.cancel()
        for actor in list(self.chats):
            actor.audience.unsubscribe(self)
        for chat in self.producing:
            chat.lost(self)
        self.producing.clear()
        self._targets.clear()
        self._hub.desk.left(self)
        self._reception.left(self)
        if self.session.session:
            log.info("tab-closed", user=self.user, session=self.session_id[:8], code=code)

    def read_ended(self, connection: WebSocketConnection) -> None:
        """Everything that one read brought has been told."""
        if self._appends:
            self._submit_appends()

    def paused(self, connection: WebSocketConnection) -> None:
        """The peer reads slowly: frames wait in the outbox from now on."""

    def writable(self, connection: WebSocketConnection) -> None:
        """The peer reads again."""
        self.outbox.writable()

    # -- requests ----------------------------------------------------------------------------------------------------

    def _submit_appends(self) -> None:
        appends, sizes, target = self._appends, self._append_sizes, self._appends_to
        if target is not None and appends:
            self._appends = []
            self._append_sizes = []
            self._hub.counters.frames_received += len(appends)
            target[0].submit_appends(self, appends, target[1], sizes)

    def _request(self, frame: Request | UserRequest | Malformed, size_bytes: int) -> None:
        hub = self._hub
        hub.counters.frames_received += 1
        if isinstance(frame, UserRequest):
            self._count(size_bytes)
            hub.desk.submit(self, frame, size_bytes)
            return
        owner = getattr(frame, "owner", UNSET)
        try:
            name = owner_of(frame)
            key = owner if isinstance(owner, OwnerName) and owner.chat is UNSET else name
            target = self._targets.get(key)
            if target is None and isinstance(frame, Close):
                target = self._open_as(codec.owner_member(name))
            if target is None or target[0].state == "ended":
                address = address_of(frame, name)
        except Refused as refusal:
            self._bad_request(frame, refusal)
            return
        owner_json = codec.owner_json(owner) if isinstance(owner, OwnerName) else b""
        if target is None or target[0].state == "ended":
            if len(self._targets) >= TARGETS_MAX:
                self._targets.clear()
            actor = hub.actor(self.user, address)
            if actor is None:
                # The id is not known by heart: somebody has to look into the folders.
                self._count(size_bytes)
                hub.spawn(hub.find_and_submit(self, address, frame, owner_json or codec.chat_json(name), size_bytes))
                return
            target = self._targets[key] = (actor, codec.owner_member(name))
        self._count(size_bytes)
        target[0].submit(self, frame, owner_json or target[1], size_bytes)

    def _count(self, size_bytes: int) -> None:
        if self.session.started(size_bytes):
            self._throttle()

    def _throttle(self) -> None:
        if not self._throttled:
            self._throttled = True
            self.connection.pause_reading()

    def _open_as(self, owner_json: bytes) -> tuple[Actor, bytes] | None:
        """What is open under a name that it had when it was opened."""
        for actor in self.chats:
            subscription = actor.audience.subscriptions.get(self)
            if subscription is not None and subscription.owner_json == owner_json:
                return actor, owner_json
        return None

    def no_room_for(self, actor: Actor, request: Open) -> Refused | None:
        """Why it may not open this owner, too; None when it may (BEHAVIOUR C11)."""
        most = self._hub.limits.open_chats
        if actor in self.chats or len(self.chats) < most:
            return None
        sentence = f"A connection has at most {most} chats open; close one first."
        return Refused("too-large", sentence, pointer="/chat" if request.chat else "/owner")

    def forget(self, name: str) -> None:
        """The name changed hands: look it up again."""
        self._targets.pop(name, None)
        self._targets.pop(owner_named(name), None)

    def answered(self, size_bytes: int, count: int = 1) -> None:
        """`count` requests of together `size_bytes` have their answer: reading may go on."""
        session = self.session
        session.answered(size_bytes, count)
        if self._throttled and not session.full:
            self._throttled = False
            self.connection.resume_reading()

    def answer_refusal(
        self, request: Request | Malformed, owner_json: bytes, size_bytes: int, refusal: Refused
    ) -> None:
        """Answer a request that never reached an actor."""
        self.outbox.answer(self, text_frame(refusal_frame(request, owner_json, refusal)))
        self.outbox.flush()
        self.answered(size_bytes)

    def _bad_request(self, frame: Request | UserRequest | Malformed, refusal: Refused) -> None:
        echo: dict[str, object] = {"id": frame.id}
        op = getattr(frame, "op", UNSET)
        if isinstance(op, int):
            echo["op"] = op
        chat, owner = getattr(frame, "chat", None), getattr(frame, "owner", UNSET)
        if isinstance(chat, str) and chat:
            echo["chat"] = chat[:1024]
        if isinstance(owner, OwnerName):
            echo["owner"] = owner
        self._bad_frame(FrameProblem(refusal, echo))

    def _bad_frame(self, problem: FrameProblem) -> None:
        self._hub.counters.refused(problem.refusal.code)
        try:
            frame = self.session.refuse(problem, self._hub.clock.monotonic_s())
        except ConnectionClosing as end:
            self._end(end)
            return
        self.outbox.answer(self, text_frame(frame))
        self.outbox.flush()

    # -- hello -------------------------------------------------------------------------------------------------------

    def accept(
        self, identity: Identity, server_name: str, heartbeat_ms: int, upstreams: Sequence[ModelServer] = ()
    ) -> None:
        """The user is known: from here on all frames are understood."""
        if self._hello_timer is not None:
            self._hello_timer.cancel()
            self._hello_timer = None
        self.user = identity.user
        self.session_id = self.session.session
        self.session_json = codec.encode(self.session_id)
        self.identity = identity
        # A frame over the limit is answered, one over twice the limit ends the connection (BEHAVIOUR W5).
        self.connection.message_limit_bytes = 2 * self.session.limits.frame_bytes
        welcome = self.session.accept(identity.user, server_name, heartbeat_ms, upstreams)
        self.outbox.urgent(text_frame(welcome))
        self.outbox.flush()

    def refuse_user(self, refusal: Refused, request_id: int | None = None) -> None:
        """The token is not good (or not for this): say so, to the request if there was one, and close."""
        code = CLOSE_FORBIDDEN if refusal.code == "forbidden" else CLOSE_UNAUTHENTICATED
        self.outbox.urgent(text_frame(codec.error(refusal, {"id": request_id})))
        self.close(code, refusal.code)

    def taken_over(self) -> None:
        """Another connection said hello with this session."""
        refusal = Refused("session-taken-over", "Another connection uses this session now.")
        self.outbox.urgent(text_frame(codec.error(refusal, {})))
        self.close(CLOSE_TAKEN_OVER, "session taken over")

    def goaway(self, reason: str, after_ms: int = 0) -> None:
        """The server stops reading this connection."""
        if self.is_open:
            self.connection.pause_reading()
            self.outbox.urgent(text_frame(codec.encode(Goaway(reason, after_ms))))
            self.outbox.flush()

    def close(self, code: int, reason: str) -> None:
        """End the connection in order."""
        self.outbox.flush()
        self.connection.close(code, reason)

    def check_alive(self) -> None:
        """Once a heartbeat: a peer that was silent gets a ping, one that stays silent is cut off."""
        seen = self.connection.bytes_received
        if seen != self._bytes_seen:
            self._bytes_seen = seen
            self._pinged = False
        elif self._pinged:
            self.connection.abort()
        else:
            self._pinged = True
            self.connection.ping()

    def _no_hello(self) -> None:
        self._hello_timer = None
        self.close(CLOSE_TIMEOUT, "no hello in time")

    def _end(self, end: ConnectionClosing) -> None:
        if end.frame is not None:
            self.outbox.urgent(text_frame(end.frame))
        self.close(end.code, end.reason)

    def _demoted(self, lane: Hashable, last: Version) -> None:
        lane.audience.fell_behind(self, last)  # type: ignore[attr-defined]  # Lanes with commits are actors.

    def _overfull(self) -> None:
        self.close(CLOSE_SLOW, "too slow")
        self.connection.abort()
