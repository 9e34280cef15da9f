"""WebSocketConnection on a fake transport: no sockets, both paths where the path could matter."""

from __future__ import annotations

import gc
import weakref
from collections.abc import AsyncIterator, Callable

import pytest
from structlog.testing import capture_logs

from tellback_server.http import FrontDoor, HttpResponse
from tellback_server.websocket import (
    FRAGMENTS_FREE,
    PeerInfo,
    TransportLimits,
    WebSocketConnection,
    text_frame,
    text_frames,
)
from tests.support.recording_handler import Wire
from tests.support.websocket_frames import (
    BINARY,
    CLOSE,
    CONT,
    PING,
    PONG,
    TEXT,
    client_frame,
    close_payload,
    handshake,
    server_frames,
)

WireMaker = Callable[..., Wire]


@pytest.fixture(params=[True, False], ids=["fast", "library"])
async def make_wire(request: pytest.FixtureRequest) -> AsyncIterator[WireMaker]:
    """Makes wires of one path; all of them end with the test."""
    wires: list[Wire] = []

    def make(**options: object) -> Wire:
        wire = Wire(fast_path=request.param, **options)  # type: ignore[arg-type]
        wires.append(wire)
        return wire

    yield make
    for wire in wires:
        await wire.end()
        assert wire.lost == [wire.connection]
        closings = [event for event in wire.handler.events if event[0] == "closed"]
        assert len(closings) <= 1


def closed_with(wire: Wire) -> tuple[int, bytes]:
    """The code and reason of the close frame that was sent last."""
    opcode, payload = server_frames(wire.transport.sent)[-1]
    assert opcode == CLOSE
    return int.from_bytes(payload[:2], "big"), payload[2:]


# Frames out.


@pytest.mark.parametrize("length", [0, 1, 125, 126, 127, 4095, 4096, 65535, 65536, 100_000])
def test_a_text_frame_has_the_shortest_header(length: int) -> None:
    assert server_frames(text_frame(b"x" * length)) == [(TEXT, b"x" * length)]
    assert server_frames(text_frames([b"x" * length, b"y" * length])) == [(TEXT, b"x" * length), (TEXT, b"y" * length)]


async def test_a_batch_is_one_write(make_wire: WireMaker) -> None:
    wire = make_wire()
    frame = text_frame(b"shared")
    wire.connection.send_text(b"own")
    wire.connection.send_frame(frame)
    assert wire.transport.written == []
    assert wire.connection.write_buffer_bytes == len(frame) + len(text_frame(b"own"))

    wire.connection.flush()
    wire.connection.flush()

    assert wire.transport.written == [text_frame(b"own") + frame]
    assert wire.connection.write_buffer_bytes == 0


async def test_answers_to_one_read_are_one_write_without_a_flush(make_wire: WireMaker) -> None:
    wire = make_wire()

    def answer(connection: WebSocketConnection, data: bytes) -> None:
        connection.send_text(data)
        connection.flush()

    wire.handler.on_text = answer
    wire.feed(client_frame(TEXT, b"a") + client_frame(PING, b"p") + client_frame(TEXT, b"b"))
    assert len(wire.transport.written) == 1
    assert server_frames(wire.transport.sent) == [(TEXT, b"a"), (PONG, b"p"), (TEXT, b"b")]


async def test_a_ping_leaves_at_once_and_its_answer_counts_as_life(make_wire: WireMaker) -> None:
    wire = make_wire()
    wire.connection.ping()
    assert server_frames(wire.transport.sent) == [(PING, b"")]
    before = wire.connection.bytes_received
    wire.feed(client_frame(PONG))
    assert wire.connection.bytes_received == before + 6
    assert wire.handler.events == []


# Frames in.


@pytest.mark.parametrize("length", [0, 1, 125, 126, 65535, 65536])
async def test_a_text_of_any_length_form_is_delivered(make_wire: WireMaker, length: int) -> None:
    wire = make_wire(limits=TransportLimits(hello_bytes_max=100_000))
    wire.feed(client_frame(TEXT, b"x" * length))
    assert wire.handler.texts == [b"x" * length]
    assert type(wire.handler.texts[0]) is bytes


async def test_bytes_one_by_one_are_the_same_messages(make_wire: WireMaker) -> None:
    wire = make_wire()
    stream = client_frame(TEXT, "né".encode()) + client_frame(TEXT, b"y" * 300) + client_frame(BINARY, b"\xff")
    for index in range(len(stream)):
        wire.feed(stream[index : index + 1])
    assert wire.handler.events == [("text", "né".encode()), ("text", b"y" * 300), ("binary", b"\xff")]


async def test_a_fragmented_message_with_control_frames_between_is_one_message(make_wire: WireMaker) -> None:
    wire = make_wire()
    euro = "€".encode()
    wire.feed(
        client_frame(TEXT, euro[:1], fin=False)
        + client_frame(PING, b"1")
        + client_frame(CONT, euro[1:2], fin=False)
        + client_frame(CONT, b"", fin=False)
        + client_frame(CONT, euro[2:])
        + client_frame(TEXT, b"after")
    )
    assert wire.handler.texts == [euro, b"after"]
    assert server_frames(wire.transport.sent) == [(PONG, b"1")]


async def test_a_fragmented_binary_message_is_one_message(make_wire: WireMaker) -> None:
    wire = make_wire()
    wire.feed(client_frame(BINARY, b"\xff", fin=False) + client_frame(CONT, b"\xfe"))
    assert wire.handler.events == [("binary", b"\xff\xfe")]


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        pytest.param([client_frame(TEXT, b"\xff")], 1007, id="invalid UTF-8"),
        pytest.param([client_frame(TEXT, b"\xed\xa0\x80")], 1007, id="a surrogate in UTF-8"),
        pytest.param([client_frame(TEXT, b"\xc0\xaf")], 1007, id="overlong UTF-8"),
        pytest.param([client_frame(TEXT, "€".encode()[:2])], 1007, id="half a character"),
        pytest.param([client_frame(TEXT, b"\xff", fin=False)], 1007, id="invalid UTF-8 in an unfinished message"),
        pytest.param([client_frame(TEXT, b"\xe2", fin=False), client_frame(CONT, b"")], 1007, id="ends in a character"),
        pytest.param([client_frame(TEXT, b"x", mask=None)], 1002, id="unmasked"),
        pytest.param([client_frame(TEXT, b"x", reserved=4)], 1002, id="reserved bit, as compression sets it"),
        pytest.param([client_frame(3, b"x")], 1002, id="unknown data opcode"),
        pytest.param([client_frame(11, b"x")], 1002, id="unknown control opcode"),
        pytest.param([client_frame(CONT, b"x")], 1002, id="continuation of nothing"),
        pytest.param([client_frame(TEXT, b"x", fin=False), client_frame(TEXT, b"x")], 1002, id="text within a message"),
        pytest.param([client_frame(PING, b"x", fin=False)], 1002, id="fragmented ping"),
        pytest.param([client_frame(PING, b"x" * 126)], 1002, id="long ping"),
        pytest.param([client_frame(CLOSE, b"\x03")], 1002, id="close with one byte"),
        pytest.param([client_frame(CLOSE, close_payload(999))], 1002, id="close code 999"),
        pytest.param([client_frame(CLOSE, close_payload(1005))], 1002, id="close code 1005"),
        pytest.param([client_frame(CLOSE, close_payload(1000, b"\xff"))], 1007, id="close reason not UTF-8"),
        pytest.param([client_frame(TEXT, b"", claimed_length=2**63)], 1009, id="a length of 2^63"),
        pytest.param([client_frame(TEXT, b"x" * 65537)], 1009, id="one byte over the limit"),
        pytest.param([client_frame(TEXT, b"x" * 65536, fin=False), client_frame(CONT, b"x")], 1009, id="over in parts"),
    ],
)
async def test_a_violation_fails_only_with_its_code(make_wire: WireMaker, frames: list[bytes], code: int) -> None:
    wire = make_wire()
    wire.feed(client_frame(TEXT, b"before") + b"".join(frames) + client_frame(TEXT, b"after"))
    await wire.settle()
    assert closed_with(wire)[0] == code
    assert wire.transport.eof_written
    assert wire.handler.texts == [b"before"]
    assert wire.handler.events[-1][:2] == ("closed", code)
    wire.feed(client_frame(TEXT, b"x" * 100)[:50])  # Thrown away.
    assert len(wire.connection._held) == 0


async def test_an_oversize_frame_is_refused_before_its_payload_came(make_wire: WireMaker) -> None:
    wire = make_wire()
    wire.feed(client_frame(TEXT, b"", claimed_length=10**9)[:10])
    assert closed_with(wire)[0] == 1009


async def test_the_limit_can_be_raised_by_the_message_before(make_wire: WireMaker) -> None:
    wire = make_wire(limits=TransportLimits(hello_bytes_max=10))

    def welcome(connection: WebSocketConnection, data: bytes) -> None:
        connection.message_limit_bytes = 20

    wire.handler.on_text = welcome
    wire.feed(client_frame(TEXT, b"x" * 10) + client_frame(TEXT, b"y" * 20) + client_frame(TEXT, b"z" * 21))
    assert [len(text) for text in wire.handler.texts] == [10, 20]
    assert closed_with(wire)[0] == 1009
    assert wire.connection.message_limit_bytes == 20


async def test_what_is_held_of_an_unfinished_frame_stays_under_the_limit(make_wire: WireMaker) -> None:
    wire = make_wire(limits=TransportLimits(hello_bytes_max=100_000))
    frame = client_frame(TEXT, b"x" * 100_000)
    for index in range(0, len(frame) - 1, 1000):
        wire.feed(frame[index : min(index + 1000, len(frame) - 1)])
    assert len(wire.connection._held) == len(frame) - 1
    wire.feed(frame[-1:])
    assert len(wire.handler.texts[0]) == 100_000
    assert len(wire.connection._held) == 0


# Rates and times.


async def test_more_control_frames_than_allowed_are_a_policy_violation(make_wire: WireMaker) -> None:
    wire = make_wire(limits=TransportLimits(control_frames_per_s_max=5))
    wire.feed(client_frame(PING) * 3 + client_frame(PONG) * 2)
    assert len(server_frames(wire.transport.sent)) == 3
    wire.feed(client_frame(PING))
    assert closed_with(wire)[0] == 1008


async def test_empty_fragments_without_end_are_a_policy_violation(make_wire: WireMaker) -> None:
    wire = make_wire()
    wire.feed(client_frame(TEXT, b"", fin=False) + client_frame(CONT, b"", fin=False) * (FRAGMENTS_FREE - 1))
    assert wire.transport.written == []
    wire.feed(client_frame(CONT, b"", fin=False))
    assert closed_with(wire)[0] == 1008


@pytest.mark.parametrize(
    "begin",
    [
        pytest.param(client_frame(TEXT, b"x" * 50)[:20], id="frame"),
        pytest.param(client_frame(TEXT, b"x")[:1], id="header"),
        pytest.param(client_frame(TEXT, b"x", fin=False), id="message"),
        pytest.param(client_frame(TEXT, b"x" * 9, reserved=1)[:8], id="doomed frame"),
    ],
)
async def test_what_is_never_finished_is_closed_with_4408(make_wire: WireMaker, begin: bytes) -> None:
    wire = make_wire(limits=TransportLimits(assembly_timeout_s=0.03, hello_bytes_max=1000))
    wire.feed(client_frame(TEXT, b"whole") + begin)
    wire.clock.advance(0.029)
    assert wire.transport.written == []
    wire.clock.advance(0.001)
    assert closed_with(wire)[0] == 4408
    wire.clock.advance(60)
    await wire.settle()
    assert wire.handler.events[-1][:2] == ("closed", 4408)


async def test_a_slow_but_steady_message_earns_its_time(make_wire: WireMaker) -> None:
    wire = make_wire(limits=TransportLimits(assembly_timeout_s=0.03, assembly_bytes_per_s=1000, hello_bytes_max=1000))
    frame = client_frame(TEXT, b"x" * 300)
    for index in range(0, len(frame), 50):  # 50 bytes earn 50 ms and take 15.
        wire.feed(frame[index : index + 50])
        wire.clock.advance(0.015)
    assert len(wire.handler.texts) == 1


async def test_a_busy_connection_never_times_out_for_frames_that_lie_across_reads(make_wire: WireMaker) -> None:
    wire = make_wire(limits=TransportLimits(assembly_timeout_s=0.03))
    frame = client_frame(TEXT, b"x" * 20)
    wire.feed(frame[:10])
    for _ in range(8):
        wire.clock.advance(0.01)
        wire.feed(frame[10:] + frame[:10])
    assert len(wire.handler.texts) == 8
    assert wire.transport.written == []


async def test_time_in_which_we_do_not_read_is_not_the_peers(make_wire: WireMaker) -> None:
    wire = make_wire(limits=TransportLimits(assembly_timeout_s=0.02))
    wire.connection.pause_reading()
    wire.connection.data_received(client_frame(TEXT, b"late")[:5])
    wire.clock.advance(0.05)
    assert wire.transport.written == []
    wire.connection.resume_reading()
    await wire.settle()
    wire.feed(client_frame(TEXT, b"late")[5:])
    assert wire.handler.texts == [b"late"]


# Back-pressure.


async def test_pausing_holds_back_what_was_read_already(make_wire: WireMaker) -> None:
    wire = make_wire()
    wire.handler.on_text = lambda connection, data: connection.pause_reading()
    wire.feed(client_frame(TEXT, b"1") + client_frame(TEXT, b"2") + client_frame(TEXT, b"3")[:4])
    assert wire.handler.texts == [b"1"]
    assert not wire.transport.reading
    wire.connection.data_received(client_frame(TEXT, b"3")[4:])  # Was on its way already.
    assert wire.handler.texts == [b"1"]

    for count in (2, 3):
        wire.connection.resume_reading()
        assert wire.transport.reading
        assert len(wire.handler.texts) == count - 1  # Not inside the call.
        await wire.settle()
        assert len(wire.handler.texts) == count


async def test_order_is_kept_when_bytes_come_between_resuming_and_delivering(make_wire: WireMaker) -> None:
    wire = make_wire()
    wire.connection.pause_reading()
    wire.connection.data_received(client_frame(TEXT, b"1"))
    wire.connection.resume_reading()
    wire.connection.data_received(client_frame(TEXT, b"2"))
    await wire.settle()
    assert wire.handler.texts == [b"1", b"2"]


async def test_pausing_after_a_frame_that_came_in_parts_holds_and_gives_back_a_short_one(make_wire: WireMaker) -> None:
    wire = make_wire()
    wire.handler.on_text = lambda connection, data: connection.pause_reading()
    long = client_frame(TEXT, b"x" * 1000)
    wire.feed(long[:500])
    wire.feed(long[500:])
    wire.connection.data_received(client_frame(TEXT, b"short"))
    wire.connection.resume_reading()
    await wire.settle()
    assert wire.handler.texts == [b"x" * 1000, b"short"]


async def test_a_peer_that_does_not_read_is_reported_and_owed_one_pong(make_wire: WireMaker) -> None:
    wire = make_wire(drains=False, limits=TransportLimits(write_high_water_bytes=1000))
    wire.connection.send_text(b"x" * 2000)
    wire.connection.flush()
    assert wire.handler.events == [("paused",)]
    assert wire.connection.write_paused
    assert wire.connection.write_buffer_bytes == 2004
    wire.transport.written.clear()

    for number in range(50):
        wire.feed(client_frame(PING, str(number).encode()))
    assert wire.transport.written == []

    wire.transport.drain()
    assert wire.handler.events == [("paused",), ("writable",)]
    assert server_frames(wire.transport.sent) == [(PONG, b"49")]


async def test_an_owed_pong_is_forgotten_when_the_connection_ends_first(make_wire: WireMaker) -> None:
    wire = make_wire(drains=False, limits=TransportLimits(write_high_water_bytes=1000))
    wire.connection.send_text(b"x" * 2000)
    wire.connection.flush()
    wire.feed(client_frame(PING, b"owed"))
    wire.feed(client_frame(TEXT, b"x", mask=None))
    assert wire.transport.eof_written
    wire.transport.drain()  # The fake fails on a write after the end.
    assert closed_with(wire)[0] == 1002


# Closing.


async def test_closing_sends_what_is_queued_then_the_close_frame_and_ends_after_the_answer(
    make_wire: WireMaker,
) -> None:
    wire = make_wire()
    wire.connection.send_text(b"last")
    wire.connection.close(4501, "session taken over")
    assert not wire.connection.is_open
    assert wire.handler.events == []  # Not inside the call.
    await wire.settle()
    assert wire.handler.events == [("closed", 4501, "session taken over")]
    wire.connection.send_text(b"lost")
    wire.connection.ping()
    wire.connection.close()
    wire.connection.flush()
    assert server_frames(wire.transport.sent) == [(TEXT, b"last"), (CLOSE, close_payload(4501, b"session taken over"))]
    assert not wire.transport.eof_written  # The server ends TCP when both have closed (RFC 6455 section 7.1.1).

    wire.feed(client_frame(TEXT, b"was on its way") + client_frame(CLOSE, close_payload(4501)))
    assert wire.transport.eof_written
    assert wire.handler.texts == []


async def test_a_close_from_within_a_message_stops_delivery(make_wire: WireMaker) -> None:
    wire = make_wire()
    wire.handler.on_text = lambda connection, data: connection.close(4502, "")
    wire.feed(client_frame(TEXT, b"1") + client_frame(TEXT, b"2"))
    await wire.settle()
    assert wire.handler.events == [("text", b"1"), ("closed", 4502, "")]


async def test_a_paused_connection_still_sees_the_answer_to_its_close(make_wire: WireMaker) -> None:
    wire = make_wire()
    wire.connection.pause_reading()
    wire.connection.data_received(client_frame(TEXT, b"held"))
    wire.connection.close(1001, "")
    assert wire.transport.reading
    wire.feed(client_frame(CLOSE, close_payload(1001)))
    assert wire.transport.eof_written
    await wire.settle()
    assert wire.handler.events == [("closed", 1001, "")]


async def test_a_peer_that_does_not_answer_a_close_is_cut_off(make_wire: WireMaker) -> None:
    wire = make_wire(limits=TransportLimits(close_timeout_s=0.02))
    wire.connection.close(1001, "going away")
    wire.feed(client_frame(TEXT, b"what close?"))
    wire.clock.advance(0.02)
    await wire.settle()
    assert wire.transport.lost


async def test_a_failed_peer_that_does_not_hang_up_is_cut_off(make_wire: WireMaker) -> None:
    wire = make_wire(limits=TransportLimits(close_timeout_s=0.02))
    wire.feed(client_frame(TEXT, b"x", mask=None))
    wire.clock.advance(60)
    await wire.settle()
    assert wire.transport.lost


@pytest.mark.parametrize(
    ("payload", "code", "reason"),
    [(close_payload(1000), 1000, ""), (close_payload(4000, "ä".encode()), 4000, "ä"), (b"", 1005, "")],
)
async def test_the_peers_close_is_echoed_and_told(make_wire: WireMaker, payload: bytes, code: int, reason: str) -> None:
    wire = make_wire()
    wire.feed(client_frame(CLOSE, payload) + client_frame(TEXT, b"after") + client_frame(PING))
    await wire.settle()
    assert server_frames(wire.transport.sent) == [(CLOSE, payload)]
    assert wire.transport.eof_written
    assert wire.handler.events == [("closed", code, reason)]


async def test_an_end_without_a_close_frame_is_1006(make_wire: WireMaker) -> None:
    wire = make_wire()
    wire.feed(client_frame(TEXT, b"half")[:3])
    wire.feed_eof()
    await wire.settle()
    assert wire.handler.events == [("closed", 1006, "")]
    assert wire.transport.lost


async def test_a_lost_transport_is_1006_and_ends_everything(make_wire: WireMaker) -> None:
    wire = make_wire()
    wire.transport.lose(ConnectionResetError())
    assert wire.handler.events == [("closed", 1006, "")]
    wire.connection.send_text(b"x")
    wire.connection.flush()
    wire.connection.pause_reading()
    wire.connection.resume_reading()
    wire.connection.close()
    wire.connection.abort()
    assert wire.transport.written == []


async def test_an_abort_says_nothing(make_wire: WireMaker) -> None:
    wire = make_wire()
    wire.connection.send_text(b"never")
    wire.connection.abort()
    await wire.settle()
    assert wire.transport.written == []
    assert wire.handler.events == [("closed", 1006, "")]


async def test_a_long_close_reason_is_cut_between_two_characters(make_wire: WireMaker) -> None:
    wire = make_wire()
    wire.connection.close(4000, "€" * 100)
    assert closed_with(wire) == (4000, "€".encode() * 41)


async def test_a_protocol_is_freed_without_the_garbage_collector(make_wire: WireMaker) -> None:
    wire = make_wire(upgrade=False)
    gc.disable()
    try:
        of_handshake = weakref.ref(wire.connection._protocol)
        wire.feed(handshake())
        assert of_handshake() is None
        of_frames = weakref.ref(wire.connection._protocol)
        wire.transport.lose()
        del wire.connection._protocol
        assert of_frames() is None
    finally:
        gc.enable()


async def test_nothing_is_left_behind_by_calls_after_the_end(make_wire: WireMaker) -> None:
    wire = make_wire()
    wire.transport.lose()
    wire.connection.close()
    wire.connection.abort()
    assert wire.connection._timer is None
    assert wire.connection._assembly_timer is None


# Handlers that raise.


async def test_a_handler_that_raises_closes_its_own_connection_with_1011_and_no_detail(make_wire: WireMaker) -> None:
    wire = make_wire()

    def fail(connection: WebSocketConnection, data: bytes) -> None:
        raise RuntimeError("canary: a secret of the server")

    wire.handler.on_text = fail
    with capture_logs() as logs:
        wire.feed(client_frame(TEXT, b"1") + client_frame(TEXT, b"2"))
        await wire.settle()
    assert server_frames(wire.transport.sent) == [(CLOSE, close_payload(1011))]
    assert wire.handler.events == [("text", b"1"), ("closed", 1011, "")]
    assert [entry["event"] for entry in logs] == ["handler-failed"]


@pytest.mark.parametrize("callback", ["opened", "binary_received", "paused", "writable", "closed"])
async def test_every_callback_may_raise(make_wire: WireMaker, callback: str) -> None:
    wire = make_wire(upgrade=False, drains=False, limits=TransportLimits(write_high_water_bytes=1000))

    def fail(*arguments: object) -> None:
        raise RuntimeError("canary")

    setattr(wire.handler, callback, fail)
    with capture_logs() as logs:
        wire.feed(handshake())
        wire.connection.send_text(b"x" * 2000)
        wire.connection.flush()
        wire.transport.drain()
        wire.feed(client_frame(BINARY, b"x"))
        wire.feed(client_frame(CLOSE, close_payload(1000)))
        await wire.settle()
    assert [entry["event"] for entry in logs] == ["handler-failed"]
    assert b"canary" not in wire.transport.sent
    if callback != "closed":
        assert wire.transport.sent.endswith(b"\x88\x02\x03\xf3")  # Close, 1011.


async def test_a_factory_that_raises_closes_with_1011(make_wire: WireMaker) -> None:
    wire = make_wire(upgrade=False)

    def fail(peer: PeerInfo) -> None:
        raise RuntimeError("canary")

    object.__setattr__(wire.connection._settings, "handler_factory", fail)
    with capture_logs() as logs:
        wire.feed(handshake())
    assert wire.transport.sent.endswith(b"\x88\x02\x03\xf3")
    assert len(logs) == 1


# The handshake.


async def test_the_handshake_may_come_byte_by_byte_with_frames_right_behind(make_wire: WireMaker) -> None:
    wire = make_wire(upgrade=False)
    stream = handshake(headers={"Origin": "http://localhost:3000", "User-Agent": "x"}) + client_frame(TEXT, b"hello")
    for index in range(len(stream)):
        wire.feed(stream[index : index + 1])
    assert wire.handler.events == [("opened",), ("text", b"hello")]
    assert wire.handler.peer == PeerInfo("192.0.2.1", 50000, "http://localhost:3000", "127.0.0.1:8000", "x", None)


async def test_frames_in_the_same_read_as_the_handshake_wait_for_it(make_wire: WireMaker) -> None:
    wire = make_wire(upgrade=False)
    wire.feed(handshake() + client_frame(TEXT, b"hello") + client_frame(TEXT, b"again")[:3])
    wire.feed(client_frame(TEXT, b"again")[3:])
    assert wire.handler.events == [("opened",), ("text", b"hello"), ("text", b"again")]


async def test_the_answer_is_that_of_the_rfcs_example(make_wire: WireMaker) -> None:
    wire = make_wire(upgrade=False)
    wire.feed(handshake(headers={"Sec-WebSocket-Extensions": "permessage-deflate; client_max_window_bits"}))
    answer = wire.transport.sent.decode()
    assert "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in answer  # RFC 6455 section 1.3.
    assert "Extensions" not in answer  # Compression is a memory bomb (RELIABILITY fact 6).
    assert "Sec-WebSocket-Protocol" not in answer


@pytest.mark.parametrize(
    ("offered", "status"), [("tellback.v1", 101), ("other, tellback.v1", 101), ("other", 400), ("a b", 400)]
)
async def test_the_subprotocol_is_chosen_when_offered_and_never_assumed(
    make_wire: WireMaker, offered: str, status: int
) -> None:
    wire = make_wire(upgrade=False)
    wire.feed(handshake(headers={"Sec-WebSocket-Protocol": offered}))
    assert wire.transport.sent.startswith(f"HTTP/1.1 {status} ".encode())
    assert (b"Sec-WebSocket-Protocol: tellback.v1\r\n" in wire.transport.sent) == (status == 101)


async def test_a_handshake_that_is_not_finished_in_time_is_answered_408(make_wire: WireMaker) -> None:
    wire = make_wire(upgrade=False, limits=TransportLimits(handshake_timeout_s=0.02))
    wire.feed(b"GET /ws HTTP/1.1\r\n")
    wire.clock.advance(0.02)
    assert wire.transport.sent.startswith(b"HTTP/1.1 408 ")
    assert wire.transport.eof_written


async def test_a_connection_that_says_nothing_is_cut_off(make_wire: WireMaker) -> None:
    wire = make_wire(upgrade=False, limits=TransportLimits(handshake_timeout_s=0.02))
    wire.clock.advance(0.02)
    await wire.settle()
    assert wire.transport.written == []
    assert wire.transport.lost


async def test_a_head_beyond_the_limit_is_refused_while_it_comes(make_wire: WireMaker) -> None:
    wire = make_wire(upgrade=False)
    wire.feed(b"GET /ws HTTP/1.1\r\n")
    line = b"X-Filler: " + b"x" * 4000 + b"\r\n"
    for _ in range(5):
        wire.feed(line)
    assert wire.transport.sent.startswith(b"HTTP/1.1 431 ")
    assert len(wire.connection._held) == 0


async def test_a_close_before_the_handshake_cuts(make_wire: WireMaker) -> None:
    wire = make_wire(upgrade=False)
    wire.connection.close(1001, "")
    await wire.settle()
    assert wire.transport.lost
    assert wire.handler.events == []


async def test_an_end_of_stream_before_the_handshake_is_quiet(make_wire: WireMaker) -> None:
    wire = make_wire(upgrade=False)
    wire.feed(b"GET /ws HT")
    wire.feed_eof()
    await wire.settle()
    assert wire.transport.lost
    assert wire.handler.events == []


async def test_a_route_is_answered_and_the_connection_ends(make_wire: WireMaker) -> None:
    door = FrontDoor(routes={"/healthz": lambda: HttpResponse(200, b"ok\n")})
    wire = make_wire(upgrade=False, front_door=door)
    wire.feed(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    assert wire.transport.sent.count(b"HTTP/1.1 200 OK\r\n") == 1
    assert b"\r\nDate: " in wire.transport.sent
    assert wire.transport.sent.endswith(b"\r\n\r\nok\n")
    assert wire.transport.eof_written


async def test_a_route_that_raises_is_a_500_without_detail(make_wire: WireMaker) -> None:
    def fail() -> HttpResponse:
        raise RuntimeError("canary")

    wire = make_wire(upgrade=False, front_door=FrontDoor(routes={"/metrics": fail}))
    with capture_logs() as logs:
        wire.feed(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    assert wire.transport.sent.startswith(b"HTTP/1.1 500 ")
    assert b"canary" not in wire.transport.sent
    assert [entry["event"] for entry in logs if entry["log_level"] == "error"] == ["route-failed"]
