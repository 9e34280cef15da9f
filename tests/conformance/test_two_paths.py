"""The same client bytes, split anyhow, through the fast path, the library path and the library alone.

The two paths must tell the handler the same things, send the same bytes and end the same way. The third is websockets'
ServerProtocol fed in one piece, with no code of ours but the assembly of messages, so that a mistake in how both paths
find the ends of frames cannot hide.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode
from websockets.protocol import OPEN, State
from websockets.server import ServerProtocol

from tellback_server.websocket import TransportLimits
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
)

LIMIT_BYTES = 300  # Small, so that every form of the length and the limit itself are met often.
LIMITS = TransportLimits(hello_bytes_max=LIMIT_BYTES, control_frames_per_s_max=10**9)


@dataclass(frozen=True)
class Outcome:
    """All that can be seen of a connection from both its sides."""

    messages: list[tuple[str, bytes]]
    sent: bytes
    ended: bool  # The server ended its half of the connection.
    closed: tuple[int, str] | None  # What the handler was told.


async def through_connection(stream: bytes, cuts: list[int], *, fast_path: bool, eof: bool) -> Outcome:
    """Feed `stream`, cut at `cuts`."""
    wire = Wire(fast_path=fast_path, limits=LIMITS)
    for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        if stop > start:
            wire.feed(stream[start:stop])
    if eof:
        wire.feed_eof()
    await wire.settle()
    closed = next(((event[1], event[2]) for event in wire.handler.events if event[0] == "closed"), None)  # type: ignore[misc]
    outcome = Outcome(
        [(event[0], event[1]) for event in wire.handler.events if event[0] in ("text", "binary")],  # type: ignore[misc]
        wire.transport.sent,
        wire.transport.eof_written,
        closed,  # type: ignore[arg-type]
    )
    held_bytes = len(wire.connection._held) + len(wire.connection._message or b"")
    assert held_bytes <= 2 * LIMIT_BYTES + 14
    await wire.end()
    return outcome


def through_library(stream: bytes, *, eof: bool) -> Outcome:
    """The reference. Messages are put together as websockets.asyncio does, but checked fragment by fragment."""
    protocol = ServerProtocol(max_size=LIMIT_BYTES)
    protocol.receive_data(handshake())
    [request] = protocol.events_received()
    protocol.send_response(protocol.accept(request))  # type: ignore[arg-type]
    protocol.data_to_send()
    messages: list[tuple[str, bytes]] = []
    sent: list[bytes] = []
    kind, message = "", b""
    # Byte by byte: the library answers all pings of one piece before anybody could look at its first message.
    for index in range(len(stream)):
        if protocol.eof_sent:
            break
        protocol.receive_data(stream[index : index + 1])
        sent += protocol.data_to_send()
        for frame in protocol.events_received():
            assert isinstance(frame, Frame)
            if frame.opcode in (Opcode.PING, Opcode.PONG, Opcode.CLOSE):
                continue
            if frame.opcode is not Opcode.CONT:
                kind, message = ("text" if frame.opcode is Opcode.TEXT else "binary"), b""
            previous, message = message, message + bytes(frame.data)
            if kind == "text" and (error := utf8_error(previous, bytes(frame.data), frame.fin)) is not None:
                protocol.fail(1007, f"{error.reason} at position {error.start}")
                sent += protocol.data_to_send()
            elif frame.fin:
                messages.append((kind, message))
    if eof and not protocol.eof_sent:
        protocol.receive_eof()
        sent += protocol.data_to_send()
    first = protocol.close_rcvd if protocol.close_rcvd_then_sent else protocol.close_sent
    closed = None
    if protocol.state is not OPEN:
        closed = (1006, "") if first is None else (int(first.code), first.reason)
    assert protocol.state is not State.CONNECTING
    return Outcome(messages, b"".join(sent), protocol.eof_sent, closed)


def utf8_error(previous: bytes, data: bytes, final: bool) -> UnicodeDecodeError | None:
    """The error a decoder meets that has decoded `previous` and gets `data`."""
    # At most the last three bytes of a valid beginning can be an unfinished character.
    for kept in range(min(4, len(previous) + 1)):
        try:
            previous[: len(previous) - kept].decode()
        except UnicodeDecodeError:
            continue
        pending = previous[len(previous) - kept :] if kept else b""
        break
    else:
        raise AssertionError("the beginning was already invalid")
    try:
        (pending + data).decode()
    except UnicodeDecodeError as error:
        unfinished = error.reason == "unexpected end of data" and error.end == len(pending + data)
        return None if unfinished and not final else error
    return None


VALID_TEXT = st.text(max_size=60).map(lambda text: text.encode())
FRAMES = st.one_of(
    # What a good client sends.
    st.builds(lambda data: client_frame(TEXT, data), VALID_TEXT),
    st.builds(lambda data, mask: client_frame(TEXT, data, mask=mask), VALID_TEXT, st.binary(min_size=4, max_size=4)),
    st.builds(lambda size: client_frame(TEXT, b"x" * size), st.integers(120, LIMIT_BYTES + 2)),
    st.builds(lambda data: client_frame(BINARY, data), st.binary(max_size=150)),
    st.builds(lambda data: client_frame(PING, data), st.binary(max_size=125)),
    st.builds(lambda data: client_frame(PONG, data), st.binary(max_size=10)),
    # A fragmented message with something between its parts.
    st.builds(
        lambda parts, between: b"".join(
            client_frame(TEXT if index == 0 else CONT, part, fin=index == len(parts) - 1) + between
            for index, part in enumerate(parts)
        ),
        st.lists(VALID_TEXT, min_size=1, max_size=4),
        st.sampled_from([b"", b"", client_frame(PING, b"between"), client_frame(TEXT, b"intruder")]),
    ),
    # A character cut by fragments.
    st.builds(
        lambda cut: client_frame(TEXT, "a€😀".encode()[:cut], fin=False) + client_frame(CONT, "a€😀".encode()[cut:]),
        st.integers(0, 8),
    ),
    # Any frame at all.
    st.builds(
        lambda opcode, data, fin, reserved, mask, form: client_frame(
            opcode, data, fin=fin, reserved=reserved, mask=mask, length_form=form
        ),
        st.integers(0, 15),
        st.binary(max_size=100),
        st.booleans(),
        st.sampled_from([0, 0, 0, 1, 2, 4, 7]),
        st.sampled_from([b"abcd", b"abcd", b"\0\0\0\0", None]),
        st.sampled_from([None, 16, 64]),
    ),
    st.builds(lambda length: client_frame(TEXT, b"", claimed_length=length), st.sampled_from([301, 2**31, 2**63])),
    # Closings.
    st.builds(
        lambda code, reason: client_frame(CLOSE, close_payload(code, reason)),
        st.sampled_from([999, 1000, 1001, 1004, 1005, 1006, 1007, 1015, 2999, 3000, 4000, 4999, 5000, 65535]),
        st.one_of(VALID_TEXT.filter(lambda text: len(text) <= 123), st.binary(max_size=5)),
    ),
    st.sampled_from([client_frame(CLOSE), client_frame(CLOSE, b"\x03"), b"\x88", b"\x81\xfe\x01"]),
    st.binary(max_size=20),
)


@pytest.mark.parametrize(
    "stream",
    [
        pytest.param(b"\x83\xfe", id="unknown opcode, length unfinished"),
        pytest.param(b"\x83\xff\0\0", id="unknown opcode, long length unfinished"),
        pytest.param(b"\x81\x05", id="unmasked, no payload yet"),
        pytest.param(
            client_frame(TEXT, b"x" * 200, fin=False) + client_frame(CONT, b"y" * 101)[:8],
            id="continuation that would pass the limit, payload unfinished",
        ),
        pytest.param(
            client_frame(TEXT, b"x" * 290, fin=False) + client_frame(PING, b"y" * 11)[:2],
            id="the library counts a ping within a message against the limit",
        ),
        pytest.param(client_frame(PING, b"x" * 126)[:20], id="long ping, payload unfinished"),
        pytest.param(client_frame(TEXT, b"x" * 10, reserved=1)[:8], id="reserved bit, payload unfinished"),
    ],
)
async def test_a_bad_header_is_answered_when_the_library_would(stream: bytes) -> None:
    for tail in (b"", b"\0", b"\0" * 300):
        await assert_same(stream + tail, [[], list(range(1, len(stream + tail)))], eof=False)


async def assert_same(stream: bytes, cut_lists: list[list[int]], *, eof: bool) -> None:
    """Every cutting of `stream`, on both paths, is what the library alone makes of it."""
    expected = through_library(stream, eof=eof)
    for cuts in cut_lists:
        for fast_path in (True, False):
            actual = await through_connection(stream, cuts, fast_path=fast_path, eof=eof)
            assert actual == expected, f"fast_path={fast_path} cuts={cuts} stream={stream.hex()}"


@settings(deadline=None, max_examples=400, suppress_health_check=[HealthCheck.too_slow])
@given(frames=st.lists(FRAMES, max_size=6), data=st.data(), eof=st.booleans())
async def test_every_stream_and_every_cut_is_what_the_library_makes_of_it(
    frames: list[bytes], data: st.DataObject, eof: bool
) -> None:
    stream = b"".join(frames)
    # A stream that stops within a frame shows how early a bad header is answered.
    stream = stream[: len(stream) - data.draw(st.integers(0, min(12, len(stream))))]
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=8).map(sorted))
    await assert_same(stream, [[], cuts, list(range(1, len(stream)))], eof=eof)


def random_stream(source: random.Random) -> bytes:
    """A session that is mostly right, with a mistake somewhere."""
    frames = []
    for _ in range(source.randrange(1, 12)):
        match source.randrange(8):
            case 0:
                frames.append(client_frame(PING, source.randbytes(source.randrange(0, 20))))
            case 1:
                text = ("ü€😀x" * 30).encode()
                cuts = sorted(source.randrange(len(text)) for _ in range(3))
                parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
                frames += [client_frame(TEXT if i == 0 else CONT, part, fin=i == 3) for i, part in enumerate(parts)]
            case 2:
                frames.append(client_frame(BINARY, source.randbytes(source.randrange(0, 200))))
            case _:
                size = source.choice([0, 1, 124, 125, 126, 127, 200, 299, 300])
                frames.append(client_frame(TEXT, b"y" * size, mask=source.randbytes(4)))
    stream = bytearray(b"".join(frames))
    if source.random() < 0.7 and stream:
        stream[source.randrange(len(stream))] ^= 1 << source.randrange(8)
    if source.random() < 0.5:
        del stream[source.randrange(len(stream) + 1) :]
    return bytes(stream)


@pytest.mark.parametrize("seed", range(8))
async def test_damaged_sessions_are_what_the_library_makes_of_them(seed: int) -> None:
    source = random.Random(seed)
    for _ in range(40):
        stream = random_stream(source)
        cuts = sorted(source.randrange(len(stream) + 1) for _ in range(source.randrange(6)))
        await assert_same(stream, [[], cuts, list(range(1, len(stream)))], eof=source.random() < 0.5)
