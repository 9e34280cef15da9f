"""A server without sockets, clock or disk, and the bad network in front of it: for driving many clients in one thread.

    link --collect--> cable --to_server--> TabServer --to_client--> cable --> link.received

Rules of this module:
- The brain is the real one: `decide` and `install` of the protocol; only what carries its answers is simulated.
- Both directions keep their order until the cable is cut; a cut loses what was on its way, in both directions.
- Everything is drawn from one seed, so a failing seed fails again.
"""

from __future__ import annotations

import random
import uuid
from collections import deque
from typing import Any

from tellback_client.link import Link
from tellback_protocol import codec
from tellback_protocol.chat import Chat
from tellback_protocol.decide import Committed, Duplicate, Fresh, conflict_body, decide, install
from tellback_protocol.errors import Refused
from tellback_protocol.frames import Behind, Closed, Hello, Limits, Opened, Ping, Pong, Reset, StateFrame, StateValue
from tellback_protocol.frames import Welcome as WelcomeFrame
from tellback_protocol.ids import Version
from tellback_protocol.past import Past
from tellback_protocol.requests import Close, Open, StateGet
from tellback_protocol.stream import Stream
from tellback_protocol.values import dumps

NAME = "character:Alice/First meeting"
PART_MESSAGES = 3


class Cable:
    """One connection: two queues and an end."""

    def __init__(self) -> None:
        self.to_server: deque[bytes] = deque()
        self.to_client: deque[bytes] = deque()
        self.session = ""
        self.cut = False
        self.chat: str | None = None
        """How this connection named the chat; None while it is not open."""
        self.held_back: Version | None = None
        """Set while broadcasts to it are dropped because it was too slow."""


class TabServer:
    """One chat, many connections."""

    def __init__(self, seed: random.Random) -> None:
        self.random = seed
        self.chat_id = str(uuid.UUID(int=seed.getrandbits(128), version=4))
        self.stream = Stream("user", NAME, self.chat_id, Chat(Version(1, 0, self.uuid())))
        self.limits = Limits(in_flight=8, frame_bytes=2000)
        self.cables: list[Cable] = []
        self.overloaded_share = 0.0
        self.lost_broadcast_share = 0.0
        self.repeated_share = 0.0
        self.past: dict[str, tuple[tuple[bytes, ...], bytes]] = {}
        """Every chat there ever was, by the integrity of the commit that made it."""
        self._remember()

    def uuid(self) -> str:
        """A fresh integrity."""
        return str(uuid.UUID(int=self.random.getrandbits(128), version=4))

    def _remember(self) -> None:
        self.past[self.stream.head.integrity] = lines_of(self.stream.chat)

    def connect(self) -> Cable:
        """A new connection."""
        cable = Cable()
        self.cables.append(cable)
        return cable

    def disconnect(self, cable: Cable) -> None:
        """The connection ends, with everything on its way."""
        cable.cut = True
        cable.to_server.clear()
        cable.to_client.clear()
        self.cables.remove(cable)

    def outside_edit(self) -> None:
        """Another program changed the file: a new epoch, and nothing before it can be replayed."""
        stream = self.stream
        stream.chat.metadata = dumps({"edited": self.random.random()})
        stream.head = Version(stream.head.epoch + 1, stream.head.seq + 1, self.uuid())
        stream.chat.version = stream.head
        stream.forget_history()
        self._remember()
        for cable in self.cables:
            if cable.chat is not None:
                cable.to_client.append(codec.encode(Reset("outside-edit", stream.head, cable.chat)))
                cable.chat = None

    def slow_down(self, cable: Cable) -> None:
        """The connection is too slow: what it misses from here on it has to ask for."""
        if cable.chat is not None and cable.held_back is None:
            cable.held_back = self.stream.head

    def catch_up(self, cable: Cable) -> None:
        """Tell a slow connection what it missed."""
        if cable.chat is not None and cable.held_back is not None:
            cable.to_client.append(codec.encode(Behind(cable.held_back, self.stream.head, cable.chat)))
            cable.chat = None
        cable.held_back = None

    def handle(self, cable: Cable) -> None:
        """The next frame from this connection."""
        try:
            frame = codec.decode_client(cable.to_server.popleft(), self.limits)
        except codec.FrameProblem as problem:
            cable.to_client.append(codec.error(problem.refusal, problem.echo))
            return
        match frame:
            case Hello():
                self._take_over(frame.session, cable)
                cable.session = frame.session
                cable.to_client.append(codec.encode(WelcomeFrame(1, "tab_server", "user", self.limits, 25_000)))
            case Ping():
                cable.to_client.append(codec.encode(Pong(frame.id)))
            case Open():
                self._open(cable, frame)
            case Close():
                cable.chat = None
                cable.to_client.append(codec.encode(Closed(frame.chat, frame.id)))
            case StateGet():
                self._states(cable, frame)
            case _:
                self._write(cable, frame)

    def _take_over(self, session: str, cable: Cable) -> None:
        for other in list(self.cables):
            if other is not cable and other.session == session:
                self.disconnect(other)

    def _open(self, cable: Cable, frame: Open) -> None:
        stream = self.stream
        cable.chat = frame.chat
        cable.held_back = None
        head = stream.head
        missed = None if frame.since is None else stream.since(frame.since)
        next_op = stream.next_op(cable.session)
        if missed is not None and self.random.random() < 0.8:
            past = list(missed)
            mode = "replay" if past else "current"
            answer = Opened(mode, head, next_op, frame.chat, self.chat_id, stream.chat.version, id=frame.id)
            cable.to_client.append(codec.opened(answer))
            self._replay(cable, past)
            return
        answer = Opened("snapshot", head, next_op, frame.chat, self.chat_id, stream.chat.version, id=frame.id)
        if frame.since is not None and missed is None:
            answer.reset = "ahead" if frame.since.epoch == head.epoch else "epoch"
        lines = list(stream.chat.served_all())
        answer.count = len(lines)
        if len(lines) <= PART_MESSAGES or self.random.random() < 0.3:
            cable.to_client.append(codec.opened(answer, stream.chat.metadata, lines))
            return
        groups = [lines[start : start + PART_MESSAGES] for start in range(0, len(lines), PART_MESSAGES)]
        answer.parts = len(groups)
        cable.to_client.append(codec.opened(answer, stream.chat.metadata))
        for number, group in enumerate(groups, 1):
            cable.to_client.append(codec.snapshot_part(codec.chat_json(frame.chat), number, len(groups), group))

    def _replay(self, cable: Cable, past: list[Past]) -> None:
        assert cable.chat is not None
        for commit in past:
            cable.to_client.append(codec.integrity(codec.chat_json(cable.chat), commit.core))

    def _states(self, cable: Cable, frame: StateGet) -> None:
        values: dict[str, Any] = {}
        assert isinstance(frame.namespaces, list)
        for namespace in frame.namespaces:
            document = self.stream.states.get(namespace)
            values[namespace] = None
            if document is not None and document.data is not None and document.version is not None:
                values[namespace] = StateValue(document.version, codec.msgspec.Raw(document.data))
        cable.to_client.append(codec.encode(StateFrame(frame.owner, values, frame.id)))

    def _write(self, cable: Cable, frame: Any) -> None:
        chat = frame.chat if hasattr(frame, "chat") else frame.owner.chat
        name = codec.chat_json(chat) if hasattr(frame, "chat") else codec.owner_json(frame.owner)
        echo = {"id": frame.id, "op": frame.op, "chat": chat}
        try:
            if self.random.random() < self.overloaded_share:
                raise Refused("overloaded", "Try again.", details={"after_ms": self.random.choice((0, 5, 20))})
            fresh = Fresh(self.uuid(), self.random.getrandbits(64), 0)
            decision = decide(self.stream, frame, cable.session, fresh, self.limits)
        except Refused as refusal:
            cable.to_client.append(codec.error(refusal, echo))
            return
        if not isinstance(decision, Duplicate):
            install(self.stream, cable.session, frame.op, decision, 0)
        outcome = decision.outcome
        body = outcome.body
        if outcome.kind == "conflict":
            body = conflict_body(self.stream, outcome, codec.chat_json(chat))
        cable.to_client.append(
            codec.answer(outcome.kind, frame.id, name, frame.op, body, isinstance(decision, Duplicate))
        )
        if isinstance(decision, Committed):
            self._remember()
            for other in self.cables:
                if other is not cable and other.chat is not None and other.held_back is None:
                    self._broadcast(other, decision.core)

    def _broadcast(self, cable: Cable, core: bytes) -> None:
        if self.random.random() < self.lost_broadcast_share:
            return
        assert cable.chat is not None
        times = 2 if self.random.random() < self.repeated_share else 1
        for _ in range(times):
            cable.to_client.append(codec.integrity(codec.chat_json(cable.chat), core))


class Tab:
    """A link on a cable that can be cut and laid again."""

    def __init__(self, server: TabServer, number: int, *, session: str | None = None) -> None:
        self.server = server
        self.link = Link(session or f"session-of-tab-{number:04d}", lambda: 0.5)
        self.cable: Cable | None = None

    def connect(self, now_s: float) -> None:
        """Lay a cable, when there is none."""
        if self.cable is not None and self.cable.cut:
            self.disconnect()
        if self.cable is None:
            self.cable = self.server.connect()
            self.link.connected(now_s)

    def disconnect(self) -> None:
        """Cut the cable."""
        if self.cable is not None:
            if not self.cable.cut:
                self.server.disconnect(self.cable)
            self.cable = None
            self.link.disconnected()

    def send(self, now_s: float) -> None:
        """Hand over what the link wants to send."""
        self.link.journal()
        if self.cable is not None and not self.cable.cut:
            self.cable.to_server.extend(self.link.collect(now_s))

    def receive(self, now_s: float) -> bool:
        """Take one frame. False when there is none."""
        if self.cable is None or not self.cable.to_client:
            return False
        self.link.received(self.cable.to_client.popleft(), now_s)
        return True


def lines_of(chat: Chat) -> tuple[tuple[bytes, ...], bytes]:
    """What makes two chats equal: the messages' bytes in order, and the metadata."""
    return tuple(chat.served_all()), chat.metadata


def settle(server: TabServer, tabs: list[Tab], now_s: float, steps_max: int = 10_000) -> float:
    """Connect everybody and let everything arrive. Returns the time; fails when it never ends."""
    for _ in range(steps_max):
        busy = False
        now_s += 0.05
        for tab in tabs:
            tab.connect(now_s)
            tab.send(now_s)
        for cable in list(server.cables):
            server.catch_up(cable)
            while cable.to_server:
                busy = True
                server.handle(cable)
        for tab in tabs:
            while tab.receive(now_s):
                busy = True
        waiting = any(subscription.pending or subscription.phase != "live"
                      for tab in tabs for subscription in tab.link.subscriptions)
        if not busy and not waiting:
            return now_s
    phases = [(tab.link.state, [(one.phase, one.pending) for one in tab.link.subscriptions]) for tab in tabs]
    raise AssertionError(f"the tabs never came to rest: {phases}")
