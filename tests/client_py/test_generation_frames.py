"""Generations of a link with literal frames, in every order that they can come in: no socket, no clock, no server."""

from __future__ import annotations

import hashlib
import random
from typing import Any

import msgspec
import pytest

from tellback_client import generations
from tellback_client.events import GenerationEnded, GenerationStarted
from tellback_client.followed import Followed
from tellback_client.generation import BeginIntent, EndIntent
from tellback_client.generations import ENDED_MAX
from tellback_client.intents import RecordedIntent
from tellback_client.outbox import PendingWrite
from tellback_protocol.generation_requests import GenerationCancel, GenerationEnd, GenerationStart
from tests.client_py.test_link import ID, NAME, SESSION, Wire, ack, appended, commit, integrity, refusal, version

NAMESPACE = "tellback_generations"
TARGET = {"kind": "message"}


def entry(state: str = "running", *, by: str = "another-session-x", message: str = "r1", **fields: Any) -> Any:
    return {"state": state, "target": TARGET, "message": message, "by": by, "started_ms": 1, **fields}


def document(seq: int, generation: str, value: Any) -> dict[str, Any]:
    """The effect of a commit on the chat's document."""
    patch = [{"op": "add", "path": f"/{generation}", "value": value}]
    return {"op": "state", "namespace": NAMESPACE, "version": version(seq), "previous": None, "patch": patch}


def ended(seq: int, text: str, generation: str = "g1", **fields: Any) -> list[dict[str, Any]]:
    """The effects of the commit that ends a reply of its own."""
    value = entry("stored", stored=True, integrity=integrity(seq), ended_ms=2, **fields)
    return [{"op": "append", "messages": [{"id": "r1", "mes": text}]}, document(seq, generation, value)]


def started(text: str = "", generation: str = "g1", **fields: Any) -> dict[str, Any]:
    return {
        "type": "generation-started", "chat": NAME, "generation": generation, "target": TARGET, "message": "r1",
        "state": "running", "by": "another-session-x", "text": text, "offset": len(text), "durable": 0, **fields,
    }


def delta(offset: int, text: str, generation: str = "g1", **fields: Any) -> dict[str, Any]:
    return {"type": "generation-delta", "chat": NAME, "generation": generation, "offset": offset, "text": text,
            "durable": 0, **fields}


def stored(seq: int, generation: str = "g1", **fields: Any) -> dict[str, Any]:
    return {"type": "generation-stored", "chat": NAME, "generation": generation, "message": "r1", "state": "stored",
            "version": version(seq), **fields}


def listed(text: str, generation: str = "g1", **fields: Any) -> dict[str, Any]:
    return {"id": generation, "target": TARGET, "message": "r1", "state": "running", "by": "another-session-x",
            "text": text, "offset": len(text.encode("utf-16-le")) // 2, "durable": 0, **fields}


def states(asked: dict[str, Any], seq: int, **entries: Any) -> dict[str, Any]:
    return {"type": "state", "id": asked["id"], "owner": asked["owner"],
            "states": {NAMESPACE: {"version": version(seq), "data": entries}}}


def one(wire: Wire, generation: str = "g1") -> Followed:
    return wire.subscription.generations.known[generation]


def text(wire: Wire, generation: str = "g1") -> str:
    return str(one(wire, generation).running.text)


def error(code: str, **fields: Any) -> dict[str, Any]:
    retry = "now" if code == "generation-gap" else "backoff" if code == "overloaded" else "never"
    return {"type": "error", "id": None, "chat": NAME, "generation": "g1", "code": code, "message": code,
            "retry": retry, **fields}


def running(text: str = "") -> Wire:
    """A chat in which another session writes a reply."""
    wire = Wire()
    wire.open()
    wire.receive(commit(2, document(2, "g1", entry())), started())
    if text:
        wire.receive(delta(0, text))
    wire.subscription.events.clear()
    return wire


class Producer(Wire):
    """A link that writes a reply itself."""

    def __init__(self) -> None:
        super().__init__()
        self.open()
        self.started: list[Any] = []
        self.begin()

    def begin(self) -> None:
        self.started = self.write(BeginIntent(GenerationStart("", "g1")))
        (frame,) = self.sent()
        self.start_frame = frame
        assert (frame["type"], frame["op"], frame["base"]) == ("generation-start", 1, integrity(1))
        self.receive(ack(frame, 2, ops=[document(2, "g1", entry(by=SESSION))], generation="g1", message="r1"))

    def push(self, piece: str, reasoning: str = "") -> None:
        units, reasoning_units = one(self).place
        one(self).running.add(units, piece, reasoning_units, reasoning)

    def end(self, **fields: Any) -> list[Any]:
        sending = one(self).sending
        assert sending is not None
        sending.is_closing = True
        return self.write(EndIntent(GenerationEnd("", "g1", length=one(self).place[0], **fields)))

    def reopen(self, seq: int, *, next_op: int = 2, **fields: Any) -> list[dict[str, Any]]:
        """Another connection; what is sent behind its `opened`."""
        self.link.disconnected()
        (asked,) = self.connect()
        self.opened(asked, seq, mode="current", next_op=next_op, **fields)
        return self.sent()


# -- listening -------------------------------------------------------------------------------------------------------


def test_text_is_heard_and_the_commit_that_ends_it_settles_it() -> None:
    """[T16] The frame that follows the commit is no news; a delta behind the end is late."""
    wire = running("Once ")
    wire.receive(delta(5, "upon", reasoning_offset=0, reasoning="hm", durable=5))
    assert (text(wire), str(one(wire).running.reasoning), one(wire).durable) == ("Once upon", "hm", 5)
    assert "r1" not in wire.ids()
    wire.receive(commit(3, *ended(3, "Once upon a time")), delta(9, " a"), stored(3))
    result = one(wire).result
    assert result is not None
    assert (result.state, result.version.seq, result.message, result.integrity) == ("stored", 3, "r1", integrity(3))
    assert text(wire) == "Once upon a time"
    assert [event for event in wire.subscription.events if isinstance(event, GenerationEnded)] == [
        GenerationEnded("g1", result, False)
    ]
    # Another session began it: nothing to acknowledge.
    assert wire.sent() == []


@pytest.mark.parametrize("seed", range(20))
def test_t5_t6_r15_deltas_again_and_overlapping_and_cut_anywhere_give_the_text(seed: int) -> None:
    """Repeated, in other pieces, with emoji: the text is exact, and a gap is asked for and filled."""
    draw = random.Random(seed)
    whole = "".join(draw.choice(["ha", "ha", "\U0001f600", "e\u0301", "\u200d", "ok "]) for _ in range(200))
    wire = running()
    at = 0
    attached = False
    while text(wire) != whole:
        known = len(text(wire))
        start = draw.randint(max(0, known - 20), known + (3 if draw.random() < 0.1 else 0))
        piece = whole[start : start + draw.randint(0, 12)]
        wire.receive(delta(len(whole[:start].encode("utf-16-le")) // 2, piece))
        assert whole.startswith(text(wire))
        assert len(text(wire)) >= at
        at = len(text(wire))
        asked = [frame for frame in wire.sent() if frame["type"] == "generation-attach"]
        if asked:
            attached = True
            (frame,) = asked
            assert (frame["chat"], frame["generation"], "salvage" in frame) == (ID, "g1", False)
            wire.receive(started(whole[: at + draw.randint(0, 5)]))
    assert attached or seed


def test_r40_a_gap_is_attached_to_once_and_deltas_meanwhile_do_no_harm() -> None:
    wire = running("Once ")
    wire.receive(delta(9, " a"), delta(11, " time"))
    (attach,) = wire.sent()
    assert attach == {"type": "generation-attach", "chat": ID, "generation": "g1", "id": None}
    wire.receive(delta(16, "."))
    assert wire.sent() == []
    wire.receive(started("Once upon a time."), delta(17, "!"))
    assert text(wire) == "Once upon a time.!"


def test_text_of_a_generation_that_nobody_here_heard_of_is_asked_for() -> None:
    """Deltas before the answer to attaching."""
    wire = Wire()
    wire.open()
    wire.receive(delta(5, "upon", "g7"))
    assert [frame["generation"] for frame in wire.sent()] == ["g7"]
    wire.receive(delta(9, " a", "g7"))
    wire.sent()
    wire.receive(started("Once upon a", "g7"), delta(11, " time", "g7"))
    assert text(wire, "g7") == "Once upon a time"
    assert [event.id for event in wire.subscription.events if isinstance(event, GenerationStarted)] == ["g7"]


def test_t17_what_a_crash_took_from_the_server_is_given_back_and_refused_text_is_replaced() -> None:
    wire = running("a\U0001f600 longer")
    wire.link.disconnected()
    (asked,) = wire.connect()
    wire.opened(asked, 2, mode="current", generations=[listed("a\U0001f600")])
    (attach,) = wire.sent()
    assert attach["salvage"] == {
        "offset": 3, "text": " longer", "prefix_sha256": hashlib.sha256("a\U0001f600".encode()).hexdigest(),
    }
    assert text(wire) == "a\U0001f600 longer"
    # Its producer came back first, and says something else.
    wire.receive(error("generation-mismatch"))
    (attach,) = wire.sent()
    assert "salvage" not in attach
    wire.receive(started("a\U0001f600 other", offset=9))
    assert text(wire) == "a\U0001f600 other"


def test_t17_reasoning_is_given_back_too_and_each_of_the_two_without_the_other() -> None:
    wire = running()
    wire.receive(delta(0, "", reasoning_offset=0, reasoning="why \U0001f600 not"))
    wire.link.disconnected()
    (asked,) = wire.connect()
    wire.opened(asked, 2, mode="current", generations=[listed("", reasoning="why \U0001f600", reasoning_offset=6)])
    (attach,) = wire.sent()
    assert attach["salvage"] == {
        "offset": 0, "text": "", "prefix_sha256": hashlib.sha256(b"").hexdigest(), "reasoning_offset": 6,
        "reasoning": " not", "reasoning_prefix_sha256": hashlib.sha256("why \U0001f600".encode()).hexdigest(),
    }
    wire.receive(started("", reasoning="why \U0001f600 not", reasoning_offset=10))
    assert wire.sent() == []

    # The text is given back, the reasoning is another one there and is taken as it is.
    wire.receive(delta(0, "Once upon"))
    wire.link.disconnected()
    (asked,) = wire.connect()
    wire.opened(asked, 2, mode="current", generations=[listed("Once", reasoning="other", reasoning_offset=5)])
    (attach,) = wire.sent()
    assert attach["salvage"] == {
        "offset": 4, "text": " upon", "prefix_sha256": hashlib.sha256(b"Once").hexdigest(),
    }
    assert (text(wire), str(one(wire).running.reasoning)) == ("Once upon", "other")


@pytest.mark.parametrize("code", ["overloaded", "too-large", "generation-mismatch"])
def test_t17_what_the_server_does_not_take_back_is_given_back_once(code: str) -> None:
    """However often it tells its text: then that is the text."""
    wire = running("Once upon")
    wire.link.disconnected()
    (asked,) = wire.connect()
    wire.opened(asked, 2, mode="current", generations=[listed("Once")])
    assert "salvage" in wire.sent()[0]
    wire.receive(error(code))
    (attach,) = wire.sent()
    assert "salvage" not in attach
    wire.receive(started("Once"))
    assert wire.sent() == []
    assert text(wire) == "Once"


def test_t17_more_than_a_frame_takes_is_not_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generations, "SALVAGE_CHARS_MAX", 4)
    wire = running("Once upon")
    wire.link.disconnected()
    (asked,) = wire.connect()
    wire.opened(asked, 2, mode="current", generations=[listed("Once")])
    assert wire.sent() == []
    assert text(wire) == "Once"


def test_behind_opens_again_and_takes_the_text_so_far() -> None:
    wire = running("Once ")
    wire.receive({"type": "behind", "chat": NAME, "from": version(2), "to": version(2)}, delta(5, "upon"))
    (asked,) = wire.sent()
    assert asked["type"] == "open"
    wire.receive(delta(9, " a"))
    wire.opened(asked, 2, mode="current", generations=[listed("Once upon a")])
    wire.receive(delta(11, " time"))
    assert text(wire) == "Once upon a time"
    assert wire.sent() == []


def test_r13_an_end_that_was_missed_is_read_from_the_replay_or_from_the_document() -> None:
    wire = running("Once ")
    wire.link.disconnected()
    (asked,) = wire.connect()
    wire.opened(asked, 3, mode="replay", generations=[])
    assert not one(wire).is_over
    wire.receive(commit(3, *ended(3, "Once upon")))
    assert text(wire) == "Once upon"
    assert wire.sent() == []

    wire = running("Once ")
    wire.link.disconnected()
    (asked,) = wire.connect()
    wire.opened(asked, 9, generations=[], messages=[{"id": "r1", "mes": "Once upon"}], reset="trimmed")
    (asked,) = wire.sent()
    assert (asked["type"], asked["namespaces"]) == ("state-get", [NAMESPACE])
    wire.receive(states(asked, 9, g1=entry("cancelled", stored=True, integrity=integrity(4))))
    result = one(wire).result
    assert result is not None
    assert (result.state, result.integrity, result.version.seq) == ("cancelled", integrity(4), 9)
    assert text(wire) == "Once upon"


def test_a_generation_that_the_chat_knows_nothing_of_any_more_is_lost_and_not_waited_for() -> None:
    """A backup from before it was restored."""
    wire = running("Once ")
    woken: list[int] = []
    one(wire).watchers.append(lambda: woken.append(1))
    wire.receive({"type": "reset", "chat": NAME, "reason": "restored", "version": version(7, 2)})
    (asked,) = wire.sent()
    assert asked["since"] is None
    wire.opened(asked, 7, head=version(7, 2), version=version(7, 2), reset="epoch", generations=[])
    (asked,) = wire.sent()
    wire.receive(states(asked, 7))
    assert "generation-unknown" in str(one(wire).error)
    assert woken

    wire = running("Once ")
    patch = [{"op": "remove", "path": "/g1"}]
    wire.receive(commit(3, {**document(3, "g1", None), "patch": patch}))
    assert one(wire).error is not None


def test_r31_a_document_that_is_newer_than_the_replica_settles_nothing() -> None:
    """A result is there when its message is."""
    wire = running("Once ")
    wire.receive(stored(3))
    (asked,) = wire.sent()
    wire.receive(states(asked, 3, g1=entry("stored", stored=True, integrity=integrity(3))))
    assert not one(wire).is_over
    wire.receive(commit(3, *ended(3, "Once upon")))
    assert (text(wire), one(wire).is_over) == ("Once upon", True)


def test_an_end_whose_commit_tells_no_details_is_looked_up() -> None:
    """State over 64 KiB travels as version only; the frame that ends it makes this look."""
    wire = running("Once ")
    effect = {**document(3, "g1", None)}
    del effect["patch"]
    wire.receive(commit(3, {"op": "append", "messages": [{"id": "r1", "mes": "Once upon"}]}, effect))
    assert not one(wire).is_over
    wire.receive(stored(3))
    (asked,) = wire.sent()
    assert asked["type"] == "state-get"
    wire.receive(states(asked, 3, g1=entry("stored", stored=True, integrity=integrity(3))))
    assert text(wire) == "Once upon"


def test_a_swipe_that_is_not_shown_and_a_continuation_give_their_own_text() -> None:
    wire = Wire()
    wire.open(messages=[{"id": "r1", "mes": "one", "swipes": ["one"], "swipe_id": 0}])
    target = {"kind": "continue", "message": "r1"}
    value = entry("stored", stored=True, integrity=integrity(3), swipe=0)
    wire.receive(
        commit(2, document(2, "g1", {**entry(), "target": target, "swipe": 0})), started(target=target),
        delta(0, " and"),
        commit(3, {"op": "patch", "message": "r1", "patch": [
            {"op": "replace", "path": "/mes", "value": "one and two"},
            {"op": "replace", "path": "/swipes/0", "value": "one and two"},
        ]}, document(3, "g1", {**value, "target": target})),
    )
    assert text(wire) == " and two"
    target = {"kind": "swipe", "message": "r1"}
    wire.receive(
        commit(4, document(4, "g2", {**entry(), "target": target})),
        commit(5, {"op": "patch", "message": "r1", "patch": [
            {"op": "add", "path": "/swipes/-", "value": "hidden"},
        ]}, document(5, "g2", {**value, "target": target, "swipe": 1})),
    )
    assert text(wire, "g2") == "hidden"


def test_few_that_ended_are_kept() -> None:
    wire = Wire()
    wire.open()
    for number in range(ENDED_MAX + 20):
        value = entry("cancelled", integrity=integrity(number + 2))
        wire.receive(commit(number + 2, document(number + 2, f"g{number}", value)))
    assert len(wire.subscription.generations.known) == ENDED_MAX


# -- results of one's own --------------------------------------------------------------------------------------------


def test_t14_t15_an_offered_result_is_acknowledged_when_the_replica_holds_it() -> None:
    wire = Wire()
    (asked,) = wire.connect()
    offer = {**listed("", by=SESSION), "state": "orphaned", "stored": True, "integrity": integrity(4)}
    del offer["text"], offer["offset"]
    wire.opened(asked, 4, generations=[offer], parts=1, messages=[])
    assert wire.sent() == []
    assert not one(wire).is_over
    wire.receive({"type": "snapshot-part", "chat": NAME, "part": 1, "of": 1, "messages": [{"id": "r1", "mes": "x"}]})
    (asked,) = wire.sent()
    wire.receive(states(asked, 4, g1=entry("orphaned", by=SESSION, stored=True, integrity=integrity(4))))
    result = one(wire).result
    assert result is not None
    assert (result.state, one(wire).offered, text(wire)) == ("orphaned", True, "x")
    assert wire.sent() == [
        {"type": "generation-ack", "chat": ID, "generation": "g1", "integrity": integrity(4), "id": None}
    ]
    # It did not arrive: it is offered again, and acknowledged again.
    wire.link.disconnected()
    (asked,) = wire.connect()
    wire.opened(asked, 4, mode="current", generations=[offer])
    assert [frame["type"] for frame in wire.sent()] == ["generation-ack"]
    wire.receive(commit(5, document(5, "g1", entry("orphaned", by=SESSION, integrity=integrity(4), acked=[SESSION]))))
    assert wire.sent() == []
    wire.receive(error("version-unknown"))
    assert wire.subscription.phase == "live"


def test_stored_before_the_ack_of_the_end_is_one_result() -> None:
    """[T16] The frame may come before the answer, when the answer waits for the replica."""
    wire = Producer()
    wire.push("Once")
    outcome = wire.end()
    first, last = wire.sent()
    assert (first["type"], first["text"], last["type"], last["length"]) == (
        "generation-delta", "Once", "generation-end", 4)
    wire.receive(stored(3))
    assert not one(wire).is_over
    wire.receive(ack(last, 3, ops=ended(3, "Once", by=SESSION), generation="g1", message="r1", state="stored"))
    assert outcome[0].version.seq == 3
    result = one(wire).result
    assert result is not None
    assert result.version.seq == 3
    assert "generation-ack" in [frame["type"] for frame in wire.sent()]


# -- writing ---------------------------------------------------------------------------------------------------------


def test_text_that_comes_fast_goes_together_and_the_first_at_once() -> None:
    wire = Producer()
    wire.push("a")
    assert [frame["text"] for frame in wire.sent()] == ["a"]
    wire.push("b")
    wire.push("\U0001f600", "hm")
    assert wire.sent() == []
    assert wire.link.deadline_s == pytest.approx(wire.now_s + 0.01)
    wire.now_s += 0.01
    (frame,) = wire.sent()
    assert (frame["offset"], frame["text"]) == (1, "b\U0001f600")
    assert (frame["reasoning_offset"], frame["reasoning"]) == (0, "hm")
    wire.push("x" * 100_000)
    wire.now_s += 0.01
    frames = wire.sent()
    assert len(frames) > 1
    assert "".join(frame["text"] for frame in frames) == "x" * 100_000
    wire.receive(delta(4, "", durable=4))
    assert one(wire).durable == 4


def test_t20_after_a_lost_connection_text_goes_on_where_the_server_has_it_and_the_end_behind_it() -> None:
    wire = Producer()
    wire.push("a\U0001f600")
    assert len(wire.sent()) == 1
    wire.link.disconnected()
    wire.push("bcd")
    outcome = wire.end()
    (asked,) = wire.connect()
    assert asked["type"] == "open"
    wire.opened(asked, 2, mode="current", next_op=2, generations=[listed("a", by=SESSION)])
    text_frame, end_frame = wire.sent()
    assert (text_frame["offset"], text_frame["text"]) == (1, "\U0001f600bcd")
    assert (end_frame["type"], end_frame["length"], end_frame["op"]) == ("generation-end", 6, 2)
    # The server took the end, and its answer was lost: the same op, and no more text.
    frames = wire.reopen(2, generations=[])
    assert [frame["type"] for frame in frames] == ["state-get", "generation-end"]
    wire.receive(ack(frames[1], 3, ops=ended(3, "a\U0001f600bcd", by=SESSION), duplicate=True))
    assert outcome[0].duplicate


def test_t20_a_producer_with_nothing_to_send_yet_says_that_it_goes_on() -> None:
    wire = Producer()
    wire.push("Once")
    assert len(wire.sent()) == 1
    frames = wire.reopen(2, generations=[listed("Once", by=SESSION)])
    assert [frame["type"] for frame in frames] == ["generation-attach"]
    wire.receive(started("Once", by=SESSION))
    assert wire.sent() == []


def test_a_gap_told_at_the_end_is_filled_and_the_same_op_sent_again() -> None:
    """[T7]"""
    wire = Producer()
    wire.push("Once upon")
    outcome = wire.end()
    _text, end_frame = wire.sent()
    wire.receive(refusal(end_frame, "generation-gap", "now", expected=4, generation="g1"))
    (attach,) = wire.sent()
    assert attach["type"] == "generation-attach"
    wire.receive(started("Once", by=SESSION))
    text_frame, again = wire.sent()
    assert (text_frame["offset"], text_frame["text"]) == (4, " upon")
    assert again == end_frame
    wire.receive(ack(again, 3, ops=ended(3, "Once upon", by=SESSION)))
    assert outcome[0].version.seq == 3


def test_t18_text_that_the_server_has_no_room_for_now_is_sent_later() -> None:
    wire = Producer()
    wire.push("Once")
    wire.sent()
    wire.receive(error("overloaded", after_ms=500), error("generation-gap", expected=0))
    (attach,) = wire.sent()
    assert attach["type"] == "generation-attach"
    wire.push(" upon")
    wire.end()
    wire.receive(started("", by=SESSION))
    assert wire.sent() == []
    wire.now_s += 0.5
    text_frame, end_frame = wire.sent()
    assert (text_frame["offset"], text_frame["text"], end_frame["type"]) == (0, "Once upon", "generation-end")


@pytest.mark.parametrize("code", ["generation-mismatch", "too-large", "bad-offset", "not-producer"])
def test_text_that_the_server_will_never_take_is_told_and_holds_no_write_up(code: str) -> None:
    wire = Producer()
    wire.push("Once")
    wire.sent()
    wire.receive(error(code, expected=2))
    sending = one(wire).sending
    assert sending is not None
    assert sending.refusal is not None
    assert sending.refusal.code == code
    wire.push("more")
    wire.append()
    assert [frame["type"] for frame in wire.sent()] == ["append"]


def test_another_text_at_the_server_is_a_mismatch() -> None:
    """Another program used the session meanwhile."""
    wire = Producer()
    wire.push("Once upon")
    wire.reopen(2, generations=[listed("Twice", by=SESSION)])
    sending = one(wire).sending
    assert sending is not None
    assert sending.refusal is not None
    assert sending.refusal.code == "generation-mismatch"


def test_t8_a_stop_by_another_tab_settles_what_the_producer_follows() -> None:
    wire = Producer()
    wire.push("Once")
    wire.sent()
    wire.push(" upon")
    wire.receive(error("generation-ended", state="cancelled"))
    assert wire.sent() == []
    value = entry("cancelled", by=SESSION, stored=True, integrity=integrity(3))
    wire.receive(commit(3, *ended(3, "Once")[:1], document(3, "g1", value)))
    result = one(wire).result
    assert result is not None
    assert (result.state, text(wire)) == ("cancelled", "Once")


def test_the_turn_is_shown_at_once_and_a_start_far_back_keeps_its_place() -> None:
    wire = Wire()
    wire.open()
    start = GenerationStart("", "g1", [msgspec.Raw(b'{"id":"u1","mes":"And then?"}')])
    wire.write(BeginIntent(start))
    wire.write(EndIntent(GenerationCancel("", "g1")))
    assert wire.ids() == ["u1"]
    frames = wire.sent()
    assert [(frame["type"], frame["op"]) for frame in frames] == [("generation-start", 1), ("generation-cancel", 2)]
    wire.receive(ack(frames[0], 2, ops=[appended("u1"), document(2, "g1", entry(by=SESSION))], message="r1"))
    assert wire.ids() == ["u1"]


def test_r13_a_start_that_an_earlier_process_left_does_not_leave_a_chat_that_waits_for_text() -> None:
    """[R45] The turn is stored; nobody will produce the reply."""
    wire = Wire()
    wire.open()
    start = GenerationStart("", "g1", [msgspec.Raw(b'{"id":"u1","mes":"And then?"}')])
    wire.subscription.submit(PendingWrite(RecordedIntent(start)))
    (frame,) = wire.sent()
    wire.receive(ack(frame, 2, ops=[appended("u1"), document(2, "g1", entry(by=SESSION))], message="r1"))
    (frame,) = wire.sent()
    assert (frame["type"], frame["generation"], frame["op"]) == ("generation-cancel", "g1", 2)


def test_t20_what_is_resumed_begins_with_what_the_server_has() -> None:
    """Also when it has more than this client heard: a tab gave text back after a crash."""
    wire = Wire()
    wire.open(generations=[listed("Once", by=SESSION)])
    wire.subscription.generations.resumed(one(wire))
    (attach,) = wire.sent()
    assert attach["type"] == "generation-attach"
    wire.receive(started("Once upon", by=SESSION))
    assert text(wire) == "Once upon"
    one(wire).running.add(9, " a time")
    (frame,) = wire.sent()
    assert (frame["offset"], frame["text"]) == (9, " a time")


def test_an_end_that_an_earlier_process_left_without_its_text_is_given_up() -> None:
    """[R45] The text died with the process: the lease stores what the server has, and no other write is held up."""
    wire = Wire()
    wire.open()
    outcome: list[Any] = []
    pending = PendingWrite(RecordedIntent(GenerationEnd("", "g1", length=9)), outcome.append)
    wire.subscription.submit(pending)
    (end_frame,) = wire.sent()
    wire.receive(refusal(end_frame, "generation-gap", "now", expected=4, generation="g1"))
    assert outcome[0].code == "generation-gap"
    wire.append()
    (frame,) = wire.sent()
    assert (frame["type"], frame["op"]) == ("append", 1)
