"""The client's half of one session, without I/O: bytes in, bytes out, across any number of connections.

    offline --connected--> greeting --welcome--> ready --disconnected--> offline        any --fail--> closed

    shell                                   link
      connected(now)                          queues hello
      received(bytes, now)                    changes subscriptions, settles writes
      collect(now) -> frames to send          opens, reads, writes within the server's window, ping
      journal() -> records to sync first      writes go out only when theirs is on the disk
      deadline_s                              when to call collect again without a frame

Rules of this module:
- All chats are opened again on every connection, from where their replicas stand (R35).
- Answers are matched by request id; ids are unique in a session, also across processes that share an outbox file.
- A frame that nobody here understands changes nothing; a frame that is broken ends the connection, not the program.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from tellback_protocol.codec import encode
from tellback_protocol.frames import (
    PROTOCOL,
    Ack,
    Auth,
    Behind,
    Conflict,
    Error,
    GenerationDeltaFrame,
    GenerationDone,
    GenerationStarted,
    GenerationStored,
    Goaway,
    Hello,
    HistoryFrame,
    HistoryPart,
    IntegrityFrame,
    Limits,
    ModelServer,
    Opened,
    Ping,
    Pong,
    Reset,
    ServerFrame,
    SnapshotPart,
    StateFrame,
    Welcome,
)
from tellback_protocol.requests import History, StateGet, owner_named

from .errors import ProtocolViolation, TellbackError, error_of
from .heartbeat import Backoff, Heartbeat
from .incoming import frame_in, is_of_generation, is_unnamed, request_of
from .outbox import Entry, PendingWrite, Record
from .question import Questions, Read, Waiter
from .replica import GenerationFrame, text_of
from .subscription import Subscription

PAUSE_FIRST_S = 0.1
PAUSE_MAX_S = 5.0
"""Between resends that an overloaded or full server asked for, when it did not say how long."""

State = Literal["offline", "greeting", "ready", "closed"]


class Link:
    """All chats of one session, over one connection at a time."""

    def __init__(
        self, session: str, draw: Callable[[], float], *, token: str | None = None, software: str = "tellback-python",
        journaling: bool = False,
    ) -> None:
        self.session = session
        self.token = token
        self.state: State = "offline"
        self.limits = Limits()
        self.user = ""
        """Set by welcome."""
        self.upstreams: list[ModelServer] = []
        self.subscriptions: list[Subscription] = []
        self.error: TellbackError | None = None
        """Why the link is closed for ever."""
        self.refusal: Error | None = None
        """The last error that named no request: a close code follows it."""
        self.goaway: Goaway | None = None
        """The server stops reading; connect again."""
        self.useful = False
        """Something was opened or answered on this connection: the backoff starts anew."""
        self.needs_token = False
        """A write was refused until a fresh token is sent."""
        self._one_by_one = False
        """One of the requests that wait cannot be read by the server: each is sent when the one before is answered."""
        self._draw = draw
        self._software = software
        self._journaling = journaling
        self._heartbeat: Heartbeat | None = None
        self._control: list[bytes] = []
        self._questions = Questions()
        self._opens: dict[int, Subscription] = {}
        self._state_gets: dict[int, tuple[Subscription, list[str]]] = {}
        self._aliases: dict[str, Subscription] = {}
        self._records: list[Record] = []
        """Of subscriptions that were dropped."""
        self._request_id = 0
        self._now_s = 0.0

    # -- what the shell calls ----------------------------------------------------------------------------------------

    def connected(self, now_s: float) -> None:
        """A connection is there."""
        self.state = "greeting"
        self._heartbeat = Heartbeat(now_s, 25.0)
        self.goaway = self.refusal = None
        self.useful = self.needs_token = False
        self._control = [encode(Hello(PROTOCOL, self.session, self.token, self._software))]

    def disconnected(self) -> None:
        """The connection is gone."""
        if self.state != "closed":
            self.state = "offline"
        self._heartbeat = None
        self._control.clear()
        self._opens.clear()
        self._state_gets.clear()
        self._questions.disconnected()
        for subscription in self.subscriptions:
            subscription.disconnected()

    def fail(self, error: TellbackError) -> None:
        """There will be no further connection: everything that waits gets the error."""
        self.disconnected()
        self.state = "closed"
        self.error = error
        self._questions.fail(error)
        for subscription in self.subscriptions:
            subscription.fail(error)

    def collect(self, now_s: float) -> list[bytes]:
        """Frames to send now, in order."""
        self._now_s = now_s
        if self.state not in ("greeting", "ready"):
            return []
        if self._heartbeat is not None and self.state == "ready" and self._heartbeat.due(now_s):
            self._control.append(encode(Ping(self.new_request_id())))
        frames, self._control = self._control, []
        if self.state == "ready" and self.goaway is None:
            self._collect_opens(frames, now_s)
            self._collect_reads(frames)
            for subscription in self.subscriptions:
                if subscription.may_send:
                    frames += subscription.generations.collect(subscription.address, now_s)
            self._collect_writes(frames, now_s)
        return frames

    def is_dead(self, now_s: float) -> bool:
        """True when the peer did not answer in time: end the connection (R33)."""
        return self._heartbeat is not None and self._heartbeat.is_dead(now_s)

    @property
    def deadline_s(self) -> float | None:
        """When `collect` and `is_dead` are to be asked again although nothing happened."""
        if self._heartbeat is None:
            return None
        times = [self._heartbeat.deadline_s]
        for subscription in self.subscriptions:
            if subscription.wants_open:
                times.append(subscription.open_at_s)
            elif len(subscription.lane) and subscription.paused_until_s:
                times.append(subscription.paused_until_s)
            if subscription.may_send:
                times += subscription.generations.deadlines_s
        later = [time for time in times if time > self._now_s]
        return min(later) if later else None

    def journal(self) -> list[Record]:
        """Records for the outbox file, in order; each is handed out once."""
        records, self._records = self._records, []
        for subscription in self.subscriptions:
            records.extend(subscription.records)
            subscription.records.clear()
        return records

    @staticmethod
    def journaled(records: list[Record]) -> None:
        """The records are on the disk: their writes may be sent."""
        for record in records:
            if isinstance(record.pending, PendingWrite) and record.pending.request_id == record.request_id:
                record.pending.journaled = True

    # -- what the user asks ------------------------------------------------------------------------------------------

    def new_request_id(self) -> int:
        """A number that no other request of this session has."""
        self._request_id += 1
        return self._request_id

    def subscribe(self, name: str, *, create: bool = False) -> Subscription:
        """The subscription to a chat; there is one for each chat (R46)."""
        known = self._aliases.get(name)
        if known is not None and known.phase != "gone":
            return known
        subscription = Subscription(
            name, self.session, self.new_request_id, Backoff(self._draw, PAUSE_FIRST_S, PAUSE_MAX_S), create=create
        )
        self.subscriptions.append(subscription)
        self._aliases[name] = subscription
        if self.error is not None:
            subscription.fail(self.error)
        return subscription

    def forget(self, subscription: Subscription) -> None:
        """Drop a subscription whose chat could not be opened, or was closed."""
        if subscription in self.subscriptions:
            self.subscriptions.remove(subscription)
            self._records.extend(subscription.records)
        self._aliases = {name: known for name, known in self._aliases.items() if known is not subscription}

    def unsubscribe(self, subscription: Subscription, waiter: Waiter) -> None:
        """Close a chat; `waiter` gets `closed` or an error."""
        self.forget(subscription)
        if subscription.phase in ("closed", "gone") or self.error is not None:
            waiter(None)
            return
        request_id = self.new_request_id()
        self._questions.closing(request_id, waiter)
        # Ahead of all opens: the same chat may be opened again at once.
        self._control.append(encode(subscription.close_frame(request_id)))

    def ask(self, request_id: int, data: bytes, waiter: Waiter) -> Read:
        """Send a question; `waiter` gets the answering frame or an error."""
        read = Read(request_id, data, waiter)
        if self.error is not None:
            waiter(self.error)
        else:
            self._questions.ask(read)
        return read

    def states(self, subscription: Subscription, waiter: Waiter) -> None:
        """Ask for all state documents; `waiter` is called when the replica has them."""

        def answered(answer: Any) -> None:
            if isinstance(answer, StateFrame):
                subscription.states_received(answer)
            waiter(answer)

        request_id = self.new_request_id()
        self.ask(request_id, encode(StateGet(owner_named(subscription.address), id=request_id)), answered)

    def history(self, chat: str, waiter: Waiter, **fields: int) -> None:
        """Ask for a page of commits, or for the chat as it was."""
        request_id = self.new_request_id()
        self.ask(request_id, encode(History(chat, id=request_id, **fields)), waiter)

    def authenticate(self, token: str) -> None:
        """Send a fresh token on this connection, and use it for the next."""
        self.token = token
        self.needs_token = False
        if self.state == "ready":
            self._control.append(encode(Auth(token, self.new_request_id())))

    def restore(self, entries: list[Entry]) -> None:
        """Take over the writes of an earlier process; their chats are opened to send them (R45)."""
        by_chat: dict[str, list[Entry]] = {}
        for entry in entries:
            by_chat.setdefault(entry.address, []).append(entry)
            self._request_id = max(self._request_id, entry.request_id)
        for address, of_chat in by_chat.items():
            self.subscribe(address).restore(of_chat)

    # -- collecting --------------------------------------------------------------------------------------------------

    def _collect_opens(self, frames: list[bytes], now_s: float) -> None:
        for subscription in self.subscriptions:
            if subscription.wants_open and now_s >= subscription.open_at_s and self._turn():
                request_id = self.new_request_id()
                self._opens[request_id] = subscription
                frames.append(encode(subscription.open_frame(request_id)))

    def _collect_reads(self, frames: list[bytes]) -> None:
        for subscription in self.subscriptions:
            wanted = [name for name in subscription.wanted_states if name not in subscription.asked_states]
            if not wanted or subscription.phase not in ("replaying", "live"):
                continue
            together = [name for name in wanted if name not in subscription.lone_states]
            alone = [[name] for name in wanted if name in subscription.lone_states]
            for names in [*([together] if together else []), *alone]:
                if not self._turn():
                    break
                request_id = self.new_request_id()
                subscription.asked_states.update(names)
                self._state_gets[request_id] = (subscription, names)
                frames.append(encode(StateGet(owner_named(subscription.address), names, request_id)))
        for read in self._questions.unsent():
            if self._turn():
                read.sent = True
                read.asked += 1
                frames.append(read.data)

    def _collect_writes(self, frames: list[bytes], now_s: float) -> None:
        """Writes in order within each chat, as far as the server's window reaches."""
        flying = [pending for subscription in self.subscriptions for pending in subscription.lane if pending.sent]
        room = self.limits.in_flight - len(flying)
        room_bytes = self.limits.in_flight_bytes - sum(len(pending.data) for pending in flying)
        for subscription in self.subscriptions:
            if not subscription.may_send or now_s < subscription.paused_until_s:
                continue
            for pending in list(subscription.lane):
                if pending.sent or not subscription.lane.may_send(pending):
                    continue
                if not subscription.generations.may_send(pending.write):
                    break
                if room <= 0 or not self._turn() or (room_bytes < len(pending.data) and flying):
                    return
                if self._journaling and not pending.journaled:
                    break
                if len(pending.data) > self.limits.frame_bytes:
                    subscription.refuse_locally(
                        pending, "too-large",
                        f"A frame has at most {self.limits.frame_bytes} bytes, this one has {len(pending.data)}.",
                    )
                    break
                pending.sent = True
                flying.append(pending)
                frames.append(pending.data)
                room -= 1
                room_bytes -= len(pending.data)

    def _turn(self) -> bool:
        """Whether one more request may be sent."""
        return not self._one_by_one or not (
            self._asked() or any(write.sent for held in self.subscriptions for write in held.lane)
        )

    # -- receiving ---------------------------------------------------------------------------------------------------

    def received(self, data: bytes, now_s: float) -> None:
        """A text message from the server. Raises: ProtocolViolation, for a broken frame; end the connection then."""
        self._now_s = now_s
        if self._heartbeat is not None:
            self._heartbeat.heard(now_s)
        frame = frame_in(data)
        if frame is not None:
            self._receive(frame)

    def _receive(self, frame: ServerFrame) -> None:
        match frame:
            case IntegrityFrame():
                self._of(frame, lambda subscription: subscription.commit(frame))
            case Ack() | Conflict():
                self.useful = True
                found = self._write(frame)
                if found is not None:
                    before = found[0].name
                    found[0].answered(found[1], frame)
                    self._renamed(found[0], before)
                else:
                    self._questions.answer(frame.id, frame)
            case Error():
                self._error(frame)
            case Opened():
                self.useful = True
                self._opened(frame)
            case SnapshotPart():
                self._of(frame, lambda subscription: subscription.part(frame))
            case StateFrame():
                asked = self._state_gets.pop(frame.id if frame.id is not None else -1, None)
                if asked is not None:
                    asked[0].states_received(frame)
                else:
                    self._questions.answer(frame.id, frame)
            case Reset():
                self._of(frame, lambda subscription: subscription.reset(frame))
            case Behind():
                self._of(frame, lambda subscription: subscription.resync())
            case Welcome():
                self._welcome(frame)
            case Goaway():
                self.goaway = frame
            case HistoryFrame():
                self._questions.history(frame)
            case HistoryPart():
                self._questions.history_part(frame)
            case GenerationStarted() | GenerationDeltaFrame() | GenerationStored() | GenerationDone():
                self._of(frame, lambda subscription: subscription.generation(frame))
            case Pong():
                pass
            case _:  # All others answer a question, and nothing else changes.
                self._questions.answer(frame.id, frame)

    def _of(
        self, frame: IntegrityFrame | SnapshotPart | Opened | Reset | Behind | GenerationFrame,
        act: Callable[[Subscription], None],
    ) -> None:
        """A frame about an owner that was closed meanwhile is late, not wrong."""
        subscription = self._aliases.get(text_of(frame))
        if subscription is None:
            return
        before = subscription.name
        act(subscription)
        self._renamed(subscription, before)

    def _renamed(self, subscription: Subscription, before: str) -> None:
        """Whoever asks for the new name gets this subscription; the old one is free for another chat."""
        if subscription.name != before:
            if self._aliases.get(before) is subscription:
                del self._aliases[before]
            self._aliases[subscription.name] = subscription

    def _welcome(self, frame: Welcome) -> None:
        self.limits = frame.limits
        self.user = frame.user
        self.upstreams = frame.upstreams if isinstance(frame.upstreams, list) else []
        if self.state == "greeting":
            self.state = "ready"
            self._heartbeat = Heartbeat(self._now_s, frame.heartbeat_ms / 1000)

    def _opened(self, frame: Opened) -> None:
        subscription = self._opens.pop(frame.id if frame.id is not None else -1, None)
        if subscription is None or subscription not in self.subscriptions:
            self._questions.answer(frame.id, frame)
            self._of(frame, lambda held: held.opened_beside(frame))
            return
        earlier = self._aliases.get(f"id:{frame.chat_id}")
        if earlier is not None and earlier.phase == "gone":
            # It was in the trash, and is back: what ended then does not come alive again.
            earlier = None
        if earlier is not None and earlier is not subscription and subscription.chat_id is None:
            # The same chat by another name, or one with writes from the outbox file: one subscription (R46).
            self.subscriptions.remove(subscription)
            earlier.on_opened.extend(subscription.on_opened)
            earlier.name = subscription.name if earlier.name.startswith("id:") else earlier.name
            self._aliases = {
                name: earlier if known is subscription else known for name, known in self._aliases.items()
            }
            subscription = earlier
        self._aliases[text_of(frame)] = subscription
        if subscription.is_chat:
            self._aliases[f"id:{frame.chat_id}"] = subscription
        if subscription.replica is None:
            subscription.take_over(self.subscriptions, f"id:{frame.chat_id}")
        subscription.opened(frame)

    def _write(self, frame: Ack | Conflict | Error) -> tuple[Subscription, PendingWrite] | None:
        """The write that a frame answers; None for the second answer to a resend."""
        for subscription in self.subscriptions:
            for pending in subscription.lane:
                if pending.request_id == frame.id:
                    return subscription, pending
        return None

    def _error(self, frame: Error) -> None:
        if is_of_generation(frame):
            written = self._aliases.get(str(frame.chat))
            if written is not None:
                written.generations.refused(frame, self._now_s)
                written.look_up()
            return
        if self.state == "ready" and is_unnamed(frame):
            frame.id = self._unnamed(frame)
        if frame.id is None:
            self.refusal = frame
            return
        opening = self._opens.pop(frame.id, None)
        if opening is not None:
            if opening.phase == "opening":
                opening.open_refused(frame, self._now_s)
            return
        asked = self._state_gets.pop(frame.id, None)
        if asked is not None:
            asked[0].states_refused(asked[1], error_of(frame))
            return
        found = self._write(frame)
        if found is not None:
            found[0].write_refused(found[1], frame, self._now_s)
            self.needs_token = self.needs_token or frame.retry == "after-auth"
            return
        self._questions.answer(frame.id, error_of(frame))

    def _unnamed(self, frame: Error) -> int | None:
        """The request that the server could not read. Raises: ProtocolViolation, to find it among several."""
        waiting = self._asked()
        waiting.extend(write.request_id for held in self.subscriptions for write in held.lane if write.sent)
        found = request_of(frame, self._aliases.get(frame.chat) if isinstance(frame.chat, str) else None, waiting)
        if found is None and waiting:
            self._one_by_one = True
            raise ProtocolViolation("the server could not read a request and does not say which")
        self._one_by_one = False
        return found

    def _asked(self) -> list[int]:
        """Numbers of the opens and questions that wait for their answers."""
        return [*self._opens, *self._state_gets, *self._questions.asked]
