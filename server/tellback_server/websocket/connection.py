"""One WebSocket connection: socket bytes in, messages out, and back. I/O; it decides nothing about what messages mean.

Rules this module keeps:

- websockets' Sans-I/O ServerProtocol is the law: the handshake, control frames, fragments and every protocol error,
  with its close code and the ping answers, are the library's. The fast path below only takes what the library would
  have delivered unchanged: one complete, unfragmented, masked text frame without reserved bits, within the limit.
- Frames go to the library one whole frame at a time, so that after each of them we know that we stand between two
  frames again. A frame whose header already is an error goes to it at once, together with all that follows, because
  the library answers such a frame before its payload has come.
- Memory of a connection is bounded: at most one incomplete frame and one incomplete message, each within the message
  limit, plus what one read brought. Until `message_limit_bytes` is raised (hello accepted) that limit is small.
- Writes are collected; `flush` makes one transport.write of them. The end of every read flushes by itself.
- `closed` comes exactly once for each `opened`, as soon as the connection is no longer open; no message comes after it.
- Whatever a handler raises closes its own connection with 1011, is logged once, and reaches no peer.
"""

from __future__ import annotations

import asyncio
import email.utils
from typing import Final, cast

import structlog
from websockets.frames import BINARY, CLOSE, CONT, PING, PONG, TEXT, CloseCode, Frame
from websockets.protocol import CONNECTING, OPEN, SEND_EOF
from websockets.server import ServerProtocol
from websockets.speedups import apply_mask

from tellback_protocol.frames import CLOSE_TIMEOUT
from tellback_server.http import HttpResponse, refusal
from tellback_server.websocket.handshake import LIBRARY_LOG, Accepted, Handshake, HttpAnswer
from tellback_server.websocket.message import OpenMessage, TooManyFragments
from tellback_server.websocket.terms import ConnectionSettings, PeerInfo, WebSocketHandler
from tellback_server.websocket.text_frames import PING_FRAME, TEXT_FRAME, text_frame

__all__ = ["WebSocketConnection"]

log = structlog.get_logger()

CLOSE_REASON_BYTES_MAX: Final = 123
"""A control frame carries 125 bytes, two of them the code (RFC 6455 section 5.5)."""

UNFLUSHED_BYTES_MAX: Final = 256 << 10
"""Queued and not yet given to the transport; more has to wait where it is counted."""

_MEMORYVIEW_FROM_BYTES: Final = 16 * 1024
"""From this size on, a view is cheaper than one more copy of the payload; below it, making the view costs more."""

_KNOWN_OPCODES: Final = frozenset((CONT, TEXT, BINARY, CLOSE, PING, PONG))


class WebSocketConnection(asyncio.Protocol):
    """The shell around one transport and one ServerProtocol."""

    __slots__ = (
        "_assembly_bytes_before", "_assembly_since_s", "_assembly_timer", "_control_frames", "_control_window_from_s",
        "_doomed", "_failure_logged", "_fast", "_finished", "_handler", "_handshake", "_held", "_held_needed",
        "_in_read", "_is_open", "_limit_bytes", "_limits", "_loop", "_message", "_outgoing", "_outgoing_bytes",
        "_pong_waiting", "_protocol", "_reading_paused", "_refusal", "_settings", "_stopped", "_timer", "_transport",
        "_write_paused", "bytes_received", "peer_address", "peer_port",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        settings: ConnectionSettings,
        *,
        refusal: HttpResponse | None = None,
    ) -> None:
        """`refusal`: answer this instead of reading a request (the gateway is full)."""
        limits = settings.limits
        self._loop = loop
        self._settings = settings
        self._limits = limits
        self._refusal = refusal
        self._limit_bytes = limits.hello_bytes_max
        # None from its end on.
        self._handshake: Handshake | None = Handshake(
            settings.front_door, limits.handshake_bytes_max, limits.hello_bytes_max
        )
        self._protocol: ServerProtocol = self._handshake.protocol
        # Set by connection_made, never None while a callback runs.
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)
        # None until the handshake is accepted, and again when `closed` is told.
        self._handler: WebSocketHandler | None = None
        # From the handshake until the first close frame in either direction (or the loss of the transport).
        self._is_open = False
        # Bytes read and not yet taken: an unfinished frame, or what came while reading is paused. Nothing is done with
        # an unfinished frame before `_held_needed` bytes are there, so slices of one byte cost one append each.
        self._held = bytearray()
        self._held_needed = 0
        # True: the next frame may take the fast path. False while a fragmented message is open, before the handshake,
        # and from the first close frame on.
        self._fast = False
        # True: the frame loop must stop after this frame (reading paused, or nothing more will be read).
        self._stopped = False
        # True: a frame that must fail is at the library, which now gets everything as it comes.
        self._doomed = False
        # True: our side of the TCP connection is shut down; whatever still comes is thrown away.
        self._finished = False
        self._reading_paused = False
        self._write_paused = False
        # True while data_received runs: flush waits for its end.
        self._in_read = False
        self._failure_logged = False
        # The one pong that is owed while the peer does not read (RFC 6455 section 5.5.3 allows answering the latest).
        self._pong_waiting: bytes | None = None
        # The fragmented message that is open.
        self._message: OpenMessage | None = None
        self._outgoing: list[bytes] = []
        self._outgoing_bytes = 0
        """Of `send_frame`, since the last flush."""
        # Handshake timeout, then (from the close on) close timeout.
        self._timer: asyncio.TimerHandle | None = None
        # At most one assembly timer; it re-arms itself while something is unfinished.
        self._assembly_timer: asyncio.TimerHandle | None = None
        self._assembly_since_s: float | None = None
        self._assembly_bytes_before = 0
        self._control_window_from_s = 0.0
        self._control_frames = 0
        self.bytes_received = 0
        """All bytes that ever came from the peer. A heartbeat that sees it unchanged has heard nothing."""
        self.peer_address = ""
        self.peer_port = 0

    # What a session may ask and do.

    @property
    def is_open(self) -> bool:
        """Whether messages can be sent and may still come."""
        return self._is_open

    @property
    def message_limit_bytes(self) -> int:
        """The largest message that is accepted now; a larger one is answered with close 1009."""
        return self._limit_bytes

    @message_limit_bytes.setter
    def message_limit_bytes(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._protocol.max_message_size = limit_bytes

    @property
    def write_buffer_bytes(self) -> int:
        """What was sent and is not yet with the kernel. Costs one pass over what waits for flush."""
        waiting = sum(map(len, self._outgoing))
        return waiting + self._transport.get_write_buffer_size()

    @property
    def write_paused(self) -> bool:
        """Whether enough waits: the write buffer is over its high-water mark, or much was queued since the last flush
        (one read can hold thousands of requests, and their answers are flushed at its end)."""
        return self._write_paused or self._outgoing_bytes > UNFLUSHED_BYTES_MAX

    def send_text(self, payload: bytes) -> None:
        """Queue one text message (UTF-8). Does nothing when the connection is no longer open."""
        if self._is_open:
            self._outgoing.append(text_frame(payload))

    def send_frame(self, frame: bytes) -> None:
        """Queue a frame made by `text_frame`. Does nothing when the connection is no longer open."""
        if self._is_open:
            self._outgoing.append(frame)
            self._outgoing_bytes += len(frame)

    def send_now(self, frames: bytes) -> bool:
        """Give whole frames to the transport at once. False when they have to queue behind others: nothing was sent."""
        if self._write_paused or self._outgoing or self._in_read:
            return False
        # A transport whose peer is gone refuses writes before it tells us of the loss.
        if self._is_open and not self._transport.is_closing():
            self._transport.write(frames)
        return True

    def flush(self) -> None:
        """Give everything that is queued to the transport, in one write. Inside a callback of the same connection it
        waits for the end of the read, which flushes by itself."""
        if not self._in_read and self._outgoing:
            self._write_out()

    def ping(self) -> None:
        """Send an empty ping now; its answer shows in `bytes_received`."""
        if self._is_open:
            self._outgoing.append(PING_FRAME)
            self.flush()

    def close(self, code: int = CloseCode.NORMAL_CLOSURE, reason: str = "") -> None:
        """Start the closing handshake: what is queued is sent before the close frame. When the peer has answered, our
        side is shut down; a peer that does not answer within close_timeout_s is cut off. `closed` is told soon after,
        never inside this call. Before the handshake the connection is just cut."""
        protocol = self._protocol
        if protocol.state is CONNECTING:
            self.abort()
            return
        if not self._is_open:
            return
        protocol.send_close(code, _fitting_reason(reason))
        self._take_library_writes()
        self._leave_open_state()
        self.resume_reading()  # The peer's answer has to be read.
        self.flush()

    def abort(self) -> None:
        """Cut the connection without a word. `closed` follows soon, with 1006 unless a close frame came before."""
        self._is_open = self._fast = False
        self._finished = self._stopped = True
        self._held = bytearray()
        self._outgoing.clear()
        self._transport.abort()

    def pause_reading(self) -> None:
        """Back-pressure: deliver nothing more, not even what has been read, until `resume_reading`."""
        if not self._reading_paused and not self._finished and self._protocol.state is OPEN:
            self._reading_paused = self._stopped = True
            if not self._transport.is_closing():
                self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Undo `pause_reading`. What had been read already is delivered soon, not inside this call."""
        if self._reading_paused:
            self._reading_paused = False
            if not self._finished and not self._transport.is_closing():
                self._stopped = False
                self._transport.resume_reading()
                self._loop.call_soon(self._continue_reading)

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A peer connected."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=self._limits.write_high_water_bytes)
        peer_name = transport.get_extra_info("peername")
        # The gateway knows the address already, and counts by it; a peer that is gone again has no name.
        if isinstance(peer_name, tuple):
            self.peer_address, self.peer_port = self.peer_address or str(peer_name[0]), int(peer_name[1])
        if self._refusal is not None:
            self._answer(self._refusal)
        else:
            self._timer = self._loop.call_later(self._limits.handshake_timeout_s, self._handshake_timed_out)

    def data_received(self, data: bytes) -> None:
        """Bytes came. Amortised O(bytes): nothing is scanned or copied again for each read."""
        self.bytes_received += len(data)
        if self._finished:
            return
        held = self._held
        self._in_read = True
        if self._handshake is not None:
            self._receive_head(self._handshake, data)
        elif held:
            held += data
            if len(held) >= self._held_needed and not self._stopped:
                self._held = bytearray()
                self._receive_frames(held)
        elif self._stopped:
            held += data
            self._held_needed = 0
        else:
            self._receive_frames(data)
        self._end_read()

    def eof_received(self) -> bool:
        """The peer will send nothing more. Without a close frame that is abnormal (RFC 6455 section 7.1.5)."""
        if not self._finished:
            self._protocol.receive_eof()
            self._take_library_writes()
            self._leave_open_state()
            self.flush()
        # False: the transport sends what is left and closes itself.
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The transport is gone."""
        self._is_open = self._fast = False
        self._finished = self._stopped = True
        self._outgoing.clear()
        self._held = bytearray()
        self._handshake = self._message = None
        for timer in (self._timer, self._assembly_timer):
            if timer is not None:
                timer.cancel()
        self._timer = self._assembly_timer = None
        self._tell_closed()
        self._protocol.parser.close()  # Breaks a cycle, as after the handshake.
        self._settings.lost(self)

    def pause_writing(self) -> None:
        """The write buffer went over its high-water mark."""
        self._write_paused = True
        if self._is_open:
            try:
                self._handler.paused(self)  # type: ignore[union-attr]  # Open: there is a handler.
            except Exception:
                self._handler_failed()

    def resume_writing(self) -> None:
        """The write buffer went down again."""
        self._write_paused = False
        if self._pong_waiting is not None and self._is_open:
            self._outgoing.append(self._pong_waiting)
        self._pong_waiting = None
        if self._is_open:
            try:
                self._handler.writable(self)  # type: ignore[union-attr]  # Open: there is a handler.
            except Exception:
                self._handler_failed()
        self.flush()

    # The handshake.

    def _receive_head(self, handshake: Handshake, data: bytes) -> None:
        outcome = handshake.receive(data, self.peer_address)
        if isinstance(outcome, HttpAnswer):
            self._answer(outcome.response, head_only=outcome.head_only)
        elif outcome is not None:
            self._handshake = None
            self._outgoing += outcome.writes
            # The protocol of the handshake keeps the request; a fresh one that is open from the start does not.
            self._protocol = ServerProtocol(state=OPEN, max_size=self._limit_bytes, logger=LIBRARY_LOG)
            self._open(outcome)
            if outcome.rest and not self._finished:
                if self._stopped:
                    self._held += outcome.rest
                else:
                    self._receive_frames(outcome.rest)

    def _open(self, accepted: Accepted) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        headers = accepted.request.headers
        peer = PeerInfo(
            address=self.peer_address,
            port=self.peer_port,
            origin=headers.get("Origin"),
            host=headers.get("Host"),
            user_agent=", ".join(headers.get_all("User-Agent")) or None,
            subprotocol=accepted.subprotocol,
        )
        self._fast = self._settings.fast_path
        try:
            handler = self._settings.handler_factory(peer)
            self._handler = handler
            self._is_open = True
            handler.opened(self)
        except Exception:
            self._handler_failed()

    def _answer(self, response: HttpResponse, *, head_only: bool = False) -> None:
        """Send a plain HTTP answer and shut our side down."""
        data = response.serialize(head_only=head_only, date=email.utils.formatdate(usegmt=True))
        self._outgoing += (data, SEND_EOF)
        self._finish()
        self.flush()

    def _handshake_timed_out(self) -> None:
        self._timer = None
        if self.bytes_received:
            self._answer(refusal(408, "The request took too long."))
        else:
            self.abort()

    # Frames.

    def _receive_frames(self, data: bytes | bytearray) -> None:
        """Take whole frames from `data`, which starts at the start of a frame, and hold what is left.

         0               1               2 ...
        +-+-+-+-+-------+-+-------------+-------------------------+-----------+---------
        |F|R|R|R| opcode|M| length (7)  | 16 bits if 126, 64 if   | mask (32) | payload
        |I|S|S|S|  (4)  |A|             | 127 (RFC 6455 sec. 5.2) |           |
        +-+-+-+-+-------+-+-------------+-------------------------+-----------+---------
        """
        position = 0
        end = len(data)
        needed = 2
        completed = False  # A frame ended while no fragmented message was open: the assembly clock starts anew.
        handler = self._handler
        while position < end and not self._stopped and not self._doomed:
            available = end - position
            needed = 2
            if available < 2:
                break
            first = data[position]
            second = data[position + 1]
            # Without the mask bit this is no length; such a frame is doomed whatever it says.
            length = second - 128
            start = position + 6
            if length == 126:
                needed = 4
                if available < 4:
                    self._doomed = self._is_doomed(first, 0)
                    break
                length = data[position + 2] << 8 | data[position + 3]
                start = position + 8
            elif length == 127:
                needed = 10
                if available < 10:
                    self._doomed = self._is_doomed(first, 0)
                    break
                length = int.from_bytes(data[position + 2 : position + 10], "big")
                start = position + 14
            stop = start + length
            if first == TEXT_FRAME and self._fast and 0 <= length <= self._limit_bytes:
                if stop > end:
                    needed = stop - position
                    break
                mask = data[start - 4 : start]
                if length < _MEMORYVIEW_FROM_BYTES:
                    payload = apply_mask(data[start:stop], mask)
                else:
                    payload = apply_mask(memoryview(data)[start:stop], mask)
                position = stop
                completed = True
                if not payload.isascii() and not self._is_text(payload):
                    break
                try:
                    handler.text_received(self, payload)  # type: ignore[union-attr]  # Fast: open, with a handler.
                except Exception:
                    self._handler_failed()
                continue
            if self._is_doomed(first, length):
                self._doomed = True
                break
            if stop > end:
                needed = stop - position
                break
            if first & 0x08 and not self._control_frame_allowed():
                self._fail(CloseCode.POLICY_VIOLATION, "too many control frames")
                break
            self._library_receives(bytes(data[position:stop]))
            position = stop
            completed = completed or self._protocol.current_size is None
        if self._finished:
            return
        if self._doomed:
            self._library_receives(bytes(data[position:]))
            position = end
        elif position < end:
            # `data` is never reused by the caller, so an untouched bytearray is kept without a copy.
            self._held = data if position == 0 and isinstance(data, bytearray) else bytearray(data[position:])
            self._held_needed = 0 if self._stopped else needed
        if self._held or self._doomed or not self._fast or self._assembly_since_s is not None:
            self._watch_assembly(completed)

    def _continue_reading(self) -> None:
        """Take what was held while reading was paused."""
        if self._held and not self._stopped and len(self._held) >= self._held_needed:
            held = self._held
            self._held = bytearray()
            self._in_read = True
            self._receive_frames(held)
            self._end_read()

    def _end_read(self) -> None:
        if self._handler is not None:
            try:
                self._handler.read_ended(self)
            except Exception:
                self._handler_failed()
        self._in_read = False
        if self._outgoing:
            self._write_out()

    def _is_doomed(self, first: int, length: int) -> bool:
        """Whether the library is going to fail the connection for this header alone. `length` is negative when the
        frame is not masked."""
        opcode = first & 0x0F
        if length < 0 or first & 0x70 or opcode not in _KNOWN_OPCODES:
            return True
        if length > self._limit_bytes - (self._protocol.current_size or 0):
            return True
        return opcode >= CLOSE and (length > 125 or not first & 0x80)

    def _control_frame_allowed(self) -> bool:
        now_s = self._loop.time()
        if now_s - self._control_window_from_s >= 1.0:
            self._control_window_from_s = now_s
            self._control_frames = 0
        self._control_frames += 1
        return self._control_frames <= self._limits.control_frames_per_s_max

    def _library_receives(self, data: bytes) -> None:
        """Give the library one whole frame (or, when doomed, all there is), carry out what it wants."""
        protocol = self._protocol
        protocol.receive_data(data)
        self._take_library_writes()
        if protocol.state is not OPEN:
            self._leave_open_state()
        for event in protocol.events_received():
            frame = cast(Frame, event)  # Requests and responses come in handshakes only.
            if frame.opcode is TEXT or frame.opcode is BINARY or frame.opcode is CONT:
                self._receive_data_frame(frame)

    def _receive_data_frame(self, frame: Frame) -> None:
        data = bytes(frame.data)
        if frame.opcode is not CONT:
            is_text = frame.opcode is TEXT
            if frame.fin:
                if not is_text:
                    self._deliver_binary(data)
                elif self._is_text(data):
                    self._deliver_text(data)
                return
            self._fast = False
            self._message = OpenMessage(is_text)
        message = self._message
        if message is None:
            return  # It failed, or nothing is taken any more.
        try:
            message.add(data, frame.fin)
        except TooManyFragments:
            self._fail(CloseCode.POLICY_VIOLATION, "too many small fragments")
            return
        except UnicodeDecodeError as exc:
            self._fail_invalid_text(exc)
            return
        if frame.fin:
            self._message = None
            self._fast = self._settings.fast_path and self._is_open
            if message.is_text:
                self._deliver_text(bytes(message))
            else:
                self._deliver_binary(bytes(message))

    def _is_text(self, data: bytes) -> bool:
        """Whether `data` is valid UTF-8; when not, the connection has failed (RFC 6455 section 8.1)."""
        try:
            data.decode()
        except UnicodeDecodeError as exc:
            self._fail_invalid_text(exc)
            return False
        return True

    def _deliver_text(self, data: bytes) -> None:
        """Deliver a message that the library passed on."""
        if self._is_open:
            try:
                self._handler.text_received(self, data)  # type: ignore[union-attr]  # Open: there is a handler.
            except Exception:
                self._handler_failed()

    def _deliver_binary(self, data: bytes) -> None:
        if self._is_open:
            try:
                self._handler.binary_received(self, data)  # type: ignore[union-attr]  # Open: there is a handler.
            except Exception:
                self._handler_failed()

    # Assembly.

    def _watch_assembly(self, completed: bool) -> None:
        """Note since when something is unfinished. One timer serves for as long as anything is."""
        unfinished = bool(self._held) or self._doomed or self._protocol.current_size is not None
        if not unfinished or self._reading_paused:
            self._assembly_since_s = None
            return
        if completed or self._assembly_since_s is None:
            self._assembly_since_s = self._loop.time()
            self._assembly_bytes_before = self.bytes_received
            if self._assembly_timer is None:
                self._assembly_timer = self._loop.call_later(self._limits.assembly_timeout_s, self._assembly_check)

    def _assembly_check(self) -> None:
        self._assembly_timer = None
        if self._assembly_since_s is None or self._finished:
            return
        limits = self._limits
        earned_s = (self.bytes_received - self._assembly_bytes_before) / limits.assembly_bytes_per_s
        left_s = self._assembly_since_s + limits.assembly_timeout_s + earned_s - self._loop.time()
        if left_s > 0:
            self._assembly_timer = self._loop.call_later(left_s, self._assembly_check)
        else:
            self._fail(CLOSE_TIMEOUT, "the message was not finished in time")
            self.flush()

    # Closing.

    def _fail_invalid_text(self, exc: UnicodeDecodeError) -> None:
        # The reason is worded as websockets words it.
        self._fail(CloseCode.INVALID_DATA, f"{exc.reason} at position {exc.start}")

    def _fail(self, code: int, reason: str) -> None:
        """Fail the WebSocket connection (RFC 6455 section 7.1.7): close frame, end of stream, nothing more is read."""
        if self._finished:
            return
        self._protocol.fail(code, reason)
        self._take_library_writes()
        self._leave_open_state()

    def _handler_failed(self) -> None:
        """The handler raised; called inside the except clause. Only the first failure of a connection is logged."""
        if not self._failure_logged:
            self._failure_logged = True
            log.exception("handler-failed", peer=self.peer_address)
        self._fail(CloseCode.INTERNAL_ERROR, "")
        self.flush()

    def _leave_open_state(self) -> None:
        """The first close frame was sent or received: nothing more is sent or delivered, and the peer has
        close_timeout_s to end the connection. Idempotent."""
        self._fast = False
        if self._is_open:
            self._is_open = False
            self._loop.call_soon(self._tell_closed)
        if self._timer is None:
            self._timer = self._loop.call_later(self._limits.close_timeout_s, self.abort)

    def _tell_closed(self) -> None:
        handler = self._handler
        if handler is None:
            return
        self._handler = None
        self._is_open = False
        protocol = self._protocol
        first = protocol.close_rcvd if protocol.close_rcvd_then_sent else protocol.close_sent
        code, reason = (CloseCode.ABNORMAL_CLOSURE, "") if first is None else (first.code, first.reason)
        try:
            handler.closed(self, int(code), reason)
        except Exception:
            self._handler_failed()

    # Writing.

    def _take_library_writes(self) -> None:
        """Queue what the library wants to send; an empty write is the end of the stream."""
        for data in self._protocol.data_to_send():
            if self._write_paused and data[:1] == b"\x8a":
                self._pong_waiting = data
            else:
                self._outgoing.append(data)
                if not data:
                    self._finish()

    def _finish(self) -> None:
        """Nothing more will be taken from the peer; reading goes on only to see the end of its stream."""
        self._finished = self._stopped = True
        self._held = bytearray()
        self._handshake = self._message = None
        if self._reading_paused:
            self._reading_paused = False
            if not self._transport.is_closing():
                self._transport.resume_reading()

    def _write_out(self) -> None:
        outgoing = self._outgoing
        self._outgoing = []
        self._outgoing_bytes = 0
        transport = self._transport
        if transport.is_closing():
            return
        data = outgoing[0] if len(outgoing) == 1 else b"".join(outgoing)
        if data:
            transport.write(data)
        if outgoing[-1] == SEND_EOF:
            self._shut_down(len(data))

    def _shut_down(self, size_bytes: int) -> None:
        """Half-close, so that the peer can read everything, and cut the connection when it does not close its half."""
        transport = self._transport
        if self._timer is not None:
            self._timer.cancel()
        # A page sent over a slow line gets its time, at the same rate as a message from one.
        linger_s = self._limits.close_timeout_s + size_bytes / self._limits.assembly_bytes_per_s
        self._timer = self._loop.call_later(linger_s, self.abort)
        try:
            if transport.can_write_eof():
                transport.write_eof()
            else:
                transport.close()  # TLS has no half-close.
        except OSError:
            transport.abort()  # The peer has reset the connection; connection_lost follows.


def _fitting_reason(reason: str) -> str:
    """A reason cut to what a close frame can carry, between two characters."""
    return reason.encode()[:CLOSE_REASON_BYTES_MAX].decode(errors="ignore")
