"""What waits to be sent, on a wire that takes as many bytes as the test says."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable

from tellback_protocol.ids import Version
from tellback_server.outbox import ANSWER_BYTES_MAX, COMMIT_BYTES_MAX, PUMP_BYTES, URGENT_BYTES_MAX, Outbox


class NarrowWire:
    """Takes `room` bytes; then it is full until it is given more."""

    def __init__(self, room: int = 1 << 40) -> None:
        self.room = room
        self.sent: list[bytes] = []
        self.flushes = 0

    @property
    def write_paused(self) -> bool:
        return self.room <= 0

    def send_frame(self, frame: bytes) -> None:
        self.sent.append(frame)
        self.room -= len(frame)

    def flush(self) -> None:
        self.flushes += 1


class Case:
    """An outbox on a wire, and what it said about lanes."""

    def __init__(self, room: int = 1 << 40) -> None:
        self.wire = NarrowWire(room)
        self.demoted: list[tuple[Hashable, Version]] = []
        self.overfull = 0
        self.outbox = Outbox(
            self.wire, asyncio.get_running_loop(), lambda lane, last: self.demoted.append((lane, last)), self._overfull
        )

    def _overfull(self) -> None:
        self.overfull += 1

    async def give_room(self, room: int) -> None:
        """The socket takes `room` bytes more."""
        self.wire.room = room
        self.outbox.writable()
        await self.settle()

    async def settle(self) -> None:
        """Let the pump run; it goes on by itself while there is room."""
        for _ in range(200):
            await asyncio.sleep(0)


def version(seq: int) -> Version:
    return Version(1, seq, f"00000000-0000-4000-8000-{seq:012d}")


async def test_while_the_socket_takes_it_nothing_waits() -> None:
    case = Case()
    case.outbox.answer("a", b"1")
    case.outbox.commit("a", b"2", version(1))
    case.outbox.urgent(b"3")
    assert case.wire.sent == [b"1", b"2", b"3"]
    assert not case.outbox.is_waiting
    assert case.outbox.waiting_bytes == 0
    assert case.outbox.is_clear


async def test_urgent_frames_overtake_everything_that_waits() -> None:
    """[C7]"""
    case = Case(room=0)
    case.outbox.answer("a", b"answer")
    case.outbox.commit("a", b"commit", version(1))
    case.outbox.parts("b", iter([b"part"]))
    case.outbox.urgent(b"pong")
    await case.give_room(1000)
    assert case.wire.sent == [b"pong", b"answer", b"commit", b"part"]
    assert not case.outbox.is_waiting


async def test_one_lane_keeps_its_order_and_lanes_take_turns() -> None:
    """[D2]"""
    case = Case(room=0)
    for number in range(3):
        case.outbox.answer("a", b"a%d" % (2 * number))
        case.outbox.commit("a", b"a%d" % (2 * number + 1), version(number))
    for number in range(3):
        case.outbox.commit("b", b"b%d" % number, version(number))
    await case.give_room(1000)
    assert [frame for frame in case.wire.sent if frame[:1] == b"a"] == [b"a%d" % number for number in range(6)]
    assert [frame for frame in case.wire.sent if frame[:1] == b"b"] == [b"b%d" % number for number in range(3)]
    assert case.wire.sent[:4] == [b"a0", b"b0", b"a1", b"b1"]


async def test_parts_come_last_and_one_at_a_time() -> None:
    """[R5]: a part is made when there is room for it, so a slow tab costs no memory of a snapshot."""
    case = Case()
    made = 0

    def frames(name: bytes) -> object:
        nonlocal made
        for number in range(50):
            made += 1
            yield name + b"%d" % number + b"x" * 1000

    case.wire.room = 3000
    case.outbox.parts("a", frames(b"a"))  # type: ignore[arg-type]
    case.outbox.parts("b", frames(b"b"))  # type: ignore[arg-type]
    await case.settle()
    assert made == 3
    assert [frame[:2] for frame in case.wire.sent] == [b"a0", b"b0", b"a1"]
    case.outbox.commit("c", b"commit", version(1))
    await case.give_room(1 << 20)
    assert case.wire.sent[3] == b"commit"
    assert made == 100
    assert not case.outbox.is_waiting


async def test_past_1_mib_the_fullest_lane_is_demoted_and_the_others_stay() -> None:
    """[D4]: where it stands is the version before its first dropped commit; its answers are kept."""
    case = Case(room=0)
    frame = b"x" * (COMMIT_BYTES_MAX // 10)
    case.outbox.commit("small", b"small", version(7))
    case.outbox.answer("big", b"answer")
    for number in range(9):
        case.outbox.commit("big", frame, version(100 + number))
    assert case.demoted == []
    case.outbox.commit("big", frame, version(109))
    case.outbox.commit("big", frame, version(110))
    assert case.demoted == [("big", version(100))]
    assert case.outbox.waiting_bytes < 2 * len(frame)
    await case.give_room(1 << 30)
    assert [sent for sent in case.wire.sent if len(sent) < 10] == [b"answer", b"small"] or case.wire.sent[:2] == [
        b"small", b"answer"]


async def test_answers_are_never_dropped_and_their_reserve_ends_the_connection() -> None:
    """[D5]"""
    case = Case(room=0)
    frame = b"x" * (ANSWER_BYTES_MAX // 4)
    for _ in range(4):
        case.outbox.answer("a", frame)
    assert case.overfull == 0
    case.outbox.answer("a", b"x")
    assert case.overfull == 1
    assert case.demoted == []


async def test_heartbeats_for_a_peer_that_never_reads_have_a_reserve_too() -> None:
    """[D5] [C7]: whether something waits behind them or not; while the socket takes them there is no bound."""
    for waits in (False, True):
        case = Case(room=0)
        if waits:
            case.outbox.answer("a", b"answer")
        frame = b"x" * (URGENT_BYTES_MAX // 4)
        for _ in range(4):
            case.outbox.urgent(frame)
        assert case.overfull == 0
        await case.give_room(1 << 30)
        for _ in range(8):
            case.outbox.urgent(frame)
        assert (len(case.wire.sent), case.overfull) == (12 + waits, 0)
        case.wire.room = 0
        if waits:
            case.outbox.answer("a", b"answer")
        for _ in range(4):
            case.outbox.urgent(frame)
        assert case.overfull == 0
        case.outbox.urgent(b"x")
        assert case.overfull == 1


async def test_a_closed_chat_leaves_only_its_answers() -> None:
    """[D4]"""
    case = Case(room=0)
    case.outbox.answer("a", b"answer")
    case.outbox.commit("a", b"commit", version(1))
    case.outbox.parts("a", iter([b"part"]))
    case.outbox.parts("b", iter([b"other part"]))
    case.outbox.forget("a")
    case.outbox.forget("never seen")
    await case.give_room(1000)
    assert case.wire.sent == [b"answer", b"other part"]


async def test_the_pump_looks_at_the_socket_again_after_64_kib() -> None:
    case = Case(room=0)
    for number in range(20):
        case.outbox.answer(number, b"x" * (PUMP_BYTES // 4))
    await case.give_room(PUMP_BYTES // 2)
    assert sum(map(len, case.wire.sent)) <= PUMP_BYTES + PUMP_BYTES // 4
    assert case.outbox.is_waiting
    await case.give_room(1 << 30)
    assert len(case.wire.sent) == 20


async def test_who_waits_only_because_much_was_queued_in_this_turn_is_sent_in_the_next() -> None:
    """Nobody calls `writable` then: the socket itself was never full."""
    case = Case(room=10)
    case.outbox.answer("a", b"x" * 20)
    case.outbox.answer("a", b"second")
    assert case.outbox.is_waiting
    case.wire.room = 1000  # What a flush does.
    await case.settle()
    assert case.wire.sent[-1] == b"second"
    assert not case.outbox.is_waiting
