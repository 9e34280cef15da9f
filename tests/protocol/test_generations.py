"""Generations as values: texts that arrive in any disorder are exact, or the error says what is wrong."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET, Raw

from tellback_protocol.decide import Committed, Fresh, decide_acks, decide_end, decide_strays, install_commit
from tellback_protocol.errors import Refused
from tellback_protocol.frames import Limits
from tellback_protocol.generation_requests import GenerationTarget, Salvage
from tellback_protocol.generations import (
    CHUNK_CHARS,
    NAMESPACE,
    Generation,
    Running,
    StreamedText,
    as_line,
    units_of,
)
from tellback_protocol.stream import Stream
from tests.support import vectors
from tests.support.vectors import CHAT_ID, LIMITS

ME = "session-of-tab-one"
OTHER = "session-of-tab-two"
TEXTS = st.text(st.sampled_from(["a", "b", "é", "\n", '"', "\U0001f600", "\U0001d11e", "中", "\u0301"]), max_size=40)


def utf16(text: str) -> bytes:
    return text.encode("utf-16-le")


@given(TEXTS, st.data())
def test_whatever_happens_to_deltas_the_text_is_exact(text: str, data: st.DataObject) -> None:
    """[T5, T6] Duplicated, reordered, overlapping, cut inside pairs: installed as a piece of the text, or refused."""
    running = Running()
    raw = utf16(text)
    total = len(raw) // 2
    for _ in range(data.draw(st.integers(0, 30))):
        start = data.draw(st.integers(0, total))
        end = data.draw(st.integers(start, total))
        try:
            piece = raw[2 * start : 2 * end].decode("utf-16-le")
        except UnicodeDecodeError:
            # JSON cannot carry half a pair; a producer that cuts there sends from the next whole character on.
            continue
        before = str(running.text)
        try:
            running.add(start, piece)
        except Refused as refusal:
            assert str(running.text) == before
            assert refusal.code == ("generation-gap" if start > running.text.units else "bad-offset")
            assert refusal.details == {"expected": running.text.units}
        assert text.startswith(str(running.text))
        assert running.text.units == units_of(str(running.text))
    running.add(running.text.units, raw[2 * running.text.units :].decode("utf-16-le"))
    assert str(running.text) == text
    assert running.text.units == total
    assert running.text.size_bytes == len(json.dumps(text, ensure_ascii=False).encode()) - 2


@given(TEXTS, st.integers(0, 100))
def test_an_offset_inside_a_surrogate_pair_is_told_apart(text: str, offset: int) -> None:
    """[T5]"""
    streamed = StreamedText(text)
    raw = utf16(text)
    try:
        wanted: str | None = raw[2 * offset :].decode("utf-16-le")
    except UnicodeDecodeError:
        wanted = None
    assert streamed.since(offset) == wanted
    if wanted is None:
        with pytest.raises(Refused, match="bad-offset"):
            streamed.rest(offset, "x", "offset")


def test_text_and_reasoning_that_are_given_back_stand_behind_what_is_there() -> None:
    """[T17] Each by its own hash; what of one does not fit refuses both."""
    def sha256(text: str) -> str:
        return hashlib.sha256(text.encode()).hexdigest()

    running = Running("On", "why \U0001f600")
    both = Salvage(2, "ce", sha256("On"), 6, " not", sha256("why \U0001f600"))
    running.check_given_back(both)
    running.check_given_back(Salvage(2, "", sha256("On"), 4, "\U0001f600 not", sha256("why ")))
    for wrong, code, pointer in (
        ({"prefix_sha256": sha256("No")}, "generation-mismatch", "/salvage"),
        ({"offset": 3}, "generation-gap", "/salvage/offset"),
        ({"reasoning_prefix_sha256": sha256("why")}, "generation-mismatch", "/salvage"),
        ({"reasoning_prefix_sha256": UNSET}, "bad-frame", "/salvage/reasoning_prefix_sha256"),
        ({"reasoning_offset": 5}, "bad-offset", "/salvage/reasoning_offset"),
        ({"reasoning_offset": 7}, "generation-gap", "/salvage/reasoning_offset"),
    ):
        with pytest.raises(Refused) as refused:
            running.check_given_back(msgspec.structs.replace(both, **wrong))
        assert (refused.value.code, refused.value.pointer) == (code, pointer)


@given(st.lists(TEXTS, max_size=30), st.integers(0, 400), st.integers(0, 20))
def test_a_text_in_pieces_is_the_text(pieces: list[str], offset: int, chars: int) -> None:
    streamed = StreamedText()
    for piece in pieces:
        streamed.append(piece * 30)
    text = "".join(piece * 30 for piece in pieces)
    assert str(streamed) == text
    some = streamed.since(offset, chars)
    whole = streamed.since(offset)
    if whole is None or some is None:
        assert whole is some
    else:
        assert whole.startswith(some)
        assert len(some) >= min(chars, len(whole))


def test_identical_tokens_are_kept_and_one_at_a_time_costs_no_copies() -> None:
    """[T6]"""
    running = Running()
    for index in range(10_000):
        running.add(index, "a")
        running.add(index, "a")
    assert str(running.text) == "a" * 10_000
    assert len(running.text._chunks) <= 10_000 // CHUNK_CHARS + 2


def test_a_delta_is_installed_wholly_or_not_at_all() -> None:
    """[T6]"""
    running = Running("abc", "think")
    with pytest.raises(Refused, match="generation-mismatch"):
        running.add(3, "def", 0, "thunk")
    with pytest.raises(Refused, match="generation-mismatch"):
        running.add(1, "bX")
    with pytest.raises(Refused, match="generation-gap"):
        running.add(3, "def", 9, "x")
    assert (str(running.text), str(running.reasoning)) == ("abc", "think")
    added = running.add(1, "bcd", 4, "king")
    assert (added.offset, added.text, added.reasoning_offset, added.reasoning) == (3, "d", 5, "ing")
    with pytest.raises(Refused, match="too-large"):
        running.add(4, "\x01" * 1000, size_bytes_max=4096 + 5000)
    assert running.add(4, "x" * 900, size_bytes_max=4096 + 5000)


# -- what the writes do ----------------------------------------------------------------------------------------------


class Desk:
    """A stream, and a replica that only hears of effects."""

    def __init__(self, *messages: dict[str, Any]) -> None:
        document = {"version": {"epoch": 1, "seq": 0, "integrity": uuid(0)}, "metadata": {}, "messages": list(messages)}
        self.stream = vectors.stream_of(document)
        self.replica = vectors.stream_of(document)
        self.commits = 0
        self.ops: dict[str, int] = {}

    def ask(
        self, type_: str, session: str = ME, limits: Limits = LIMITS, models: tuple[str, ...] = (), **fields: Any
    ) -> dict[str, Any]:
        """Carry out one write; its answer."""
        op = self.ops.get(session, 0) + 1
        frame = {"type": type_, "chat": "group:vectors", "id": 1, "op": op, **fields}
        data = json.dumps(frame).encode()
        answer, decision = vectors.carry_out(self.stream, session, data, self.fresh(), limits, models)
        if decision is not None:
            self.ops[session] = op
        self._follow(decision)
        return answer

    def start(self, generation: str = "g1", session: str = ME, **fields: Any) -> dict[str, Any]:
        return self.ask("generation-start", session, generation=generation, base="*", **fields)

    def end(self, generation: str = "g1", **fields: Any) -> dict[str, Any]:
        return self.ask("generation-end", generation=generation, **fields)

    def text(self, text: str, generation: str = "g1", reasoning: str = "") -> None:
        running = self.stream.running[generation]
        running.add(running.text.units, text, running.reasoning.units, reasoning)

    def by_itself(self, decision: Committed | None) -> None:
        assert decision is not None
        install_commit(self.stream, decision)
        self._follow(decision)

    def fresh(self) -> Fresh:
        self.commits += 1
        return Fresh(uuid(self.commits), 256 * self.commits, 1000 + self.commits)

    def _follow(self, decision: Any) -> None:
        if isinstance(decision, Committed):
            recorded = vectors.commit_of(decision)
            self.replica.fold(recorded)
            assert vectors.document_of(self.replica) == vectors.document_of(self.stream)
            assert self.replica.running.keys() == self.stream.running.keys()

    @property
    def messages(self) -> list[dict[str, Any]]:
        return list(vectors.document_of(self.stream)["messages"])

    def entry(self, generation: str = "g1") -> dict[str, Any]:
        return dict(vectors.document_of(self.stream)["states"][NAMESPACE]["data"][generation])


def uuid(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012d}"


U1 = {"id": "u1", "name": "User", "is_user": True, "mes": "hi"}
A1 = {"id": "a1", "name": "Alice", "is_user": False, "mes": "hello"}
MADE = {
    "send_date": "1970-01-01T00:00:01.003Z", "gen_started": "1970-01-01T00:00:01.001Z",
    "gen_finished": "1970-01-01T00:00:01.003Z",
}
"""Of a reply that the first commit began and the third ended."""


def test_a_start_stores_the_users_turn_and_reserves_the_id_of_the_reply() -> None:
    """[T1, R29]"""
    desk = Desk(A1)
    answer = desk.start(messages=[{"mes": "hi"}], reply={"name": "Alice", "is_user": False, "extra": {"model": "m"}})
    assert answer["type"] == "ack"
    assert [message["mes"] for message in desk.messages] == ["hello", "hi"]
    assert answer["messages"] == [desk.messages[1]["id"]]
    assert answer["message"] not in answer["messages"]
    taken = desk.ask("append", base="*", messages=[{"id": answer["message"], "mes": "mine"}])
    assert taken["code"] == "message-id-taken"
    desk.text("Good ")
    desk.text("evening.", reasoning="She greets.")
    ended = desk.end(length=13)
    assert ended["message"] == answer["message"]
    assert desk.messages[-1] == {
        "id": answer["message"], "name": "Alice", "is_user": False, "mes": "Good evening.", **MADE,
        "extra": {"model": "m", "reasoning": "She greets.", "reasoning_type": "model"},
    }
    entry = desk.entry()
    assert (entry["state"], entry["stored"], entry["integrity"]) == ("stored", True, ended["version"]["integrity"])
    assert "reply" not in entry
    assert desk.stream.running == {}


def test_a_start_sent_again_is_the_first_one_and_its_id_is_used_once() -> None:
    """[T1, T2, R12]"""
    desk = Desk(U1)
    first = desk.start()
    desk.ops[ME] -= 1
    again = desk.start()
    assert again == {**first, "duplicate": True}
    assert desk.start("g1", OTHER)["code"] == "generation-exists"


def test_one_generation_at_a_time_is_written_to_one_place() -> None:
    """[T2]"""
    desk = Desk(U1, A1)
    assert desk.start("g1")["type"] == "ack"
    refused = desk.start("g2", OTHER)
    assert (refused["code"], refused["generation"]) == ("generation-running", "g1")
    assert desk.start("g3", OTHER, target={"kind": "swipe", "message": "a1"})["type"] == "ack"
    refused = desk.start("g4", OTHER, target={"kind": "continue", "message": "a1"})
    assert (refused["code"], refused["generation"]) == ("generation-running", "g3")
    # Another turn is another place.
    assert desk.start("g5", OTHER, messages=[{"mes": "and?"}])["type"] == "ack"


def test_a_reply_stands_behind_what_it_answers_and_at_the_tail_when_that_is_gone() -> None:
    """[T3, R9]"""
    desk = Desk(U1)
    desk.start("g1")
    desk.start("g2", OTHER, messages=[{"id": "u2", "mes": "more"}])
    desk.text("one")
    desk.text("two", "g2")
    desk.end("g1")
    assert [message["mes"] for message in desk.messages] == ["hi", "one", "more"]
    desk.ask("delete", messages=["u2"], base=desk.stream.chat.version.integrity)
    desk.ask("append", base="*", messages=[{"id": "u3", "mes": "later"}])
    desk.ask("generation-cancel", OTHER, generation="g2")
    assert [message["mes"] for message in desk.messages] == ["hi", "one", "later", "two"]


def test_a_swipe_is_added_and_shown_with_the_floor_states_following() -> None:
    """[T3]"""
    desk = Desk(U1, A1)
    assert desk.ask("floor-update", namespace="score", base=None,
                    patch=[{"op": "add", "path": "/points", "value": 1}])["type"] == "ack"
    desk.start(target={"kind": "swipe", "message": "a1"}, reply={"send_date": "now", "extra": {"model": "m"}})
    desk.text("another")
    answer = desk.end()
    assert answer["message"] == "a1"
    message = desk.messages[1]
    assert (message["mes"], message["swipes"], message["swipe_id"]) == ("another", ["hello", "another"], 1)
    assert message["swipe_info"][1] == {
        "extra": {"model": "m"}, "send_date": "now", "gen_started": "1970-01-01T00:00:01.002Z",
        "gen_finished": "1970-01-01T00:00:01.003Z",
    }
    assert desk.entry()["swipe"] == 1
    assert vectors.document_of(desk.stream)["states"]["score"]["data"] == {}


def test_a_continuation_goes_on_with_its_swipe_wherever_that_is_by_then() -> None:
    """[T3, T4]"""
    desk = Desk(U1, {**A1, "swipes": ["zero", "hello", "two"], "swipe_id": 1})
    desk.start(target={"kind": "continue", "message": "a1"})
    desk.text(", world")
    head = desk.stream.chat.version.integrity
    desk.ask("swipe", message="a1", action="delete", swipe=0, base=head)
    assert desk.entry()["swipe"] == 0
    desk.ask("swipe", message="a1", action="select", swipe=1, base={"op": desk.ops[ME]})
    desk.end()
    assert desk.messages[1]["swipes"] == ["hello, world", "two"]
    assert desk.messages[1]["mes"] == "two"
    # And when its swipe was taken away, the text is a swipe of its own.
    desk.start("g2", target={"kind": "continue", "message": "a1"})
    desk.text("!", "g2")
    desk.ask("swipe", message="a1", action="delete", swipe=1, base=desk.stream.chat.version.integrity)
    desk.end("g2")
    assert desk.messages[1]["swipes"] == ["hello, world", "!"]


def test_two_swipes_taken_away_in_one_batch_count_both() -> None:
    """[T3]"""
    desk = Desk(U1, {**A1, "swipes": ["zero", "one", "hello"], "swipe_id": 2})
    desk.start(target={"kind": "continue", "message": "a1"})
    gone = {"type": "swipe", "message": "a1", "action": "delete", "swipe": 0}
    desk.ask("batch", base=desk.stream.chat.version.integrity, requests=[gone, gone])
    assert desk.entry()["swipe"] == 0
    desk.text("!")
    desk.end()
    assert desk.messages[1]["mes"] == "hello!"


def test_a_continuation_of_what_is_shown_keeps_message_and_swipe_in_step() -> None:
    """[T3]"""
    desk = Desk(U1, {**A1, "swipes": ["hello"], "swipe_id": 0, "extra": {"reasoning": "First. "}})
    desk.start(target={"kind": "continue", "message": "a1"}, reply={"gen_finished": 2})
    desk.text(" again", reasoning="Second.")
    desk.end()
    message = desk.messages[1]
    assert (message["mes"], message["swipes"]) == ("hello again", ["hello again"])
    assert message["extra"]["reasoning"] == "First. Second."
    assert message["swipe_info"][0]["gen_finished"] == 2


def test_what_a_client_says_of_its_reply_leads() -> None:
    """[T21]"""
    desk = Desk(U1)
    desk.start(reply={"gen_started": "then", "extra": {"model": "mine", "reasoning": "Given."}})
    desk.text("hello", reasoning="Heard.")
    desk.end(reply={"send_date": "now", "extra": {"api": "here"}})
    message = desk.messages[1]
    assert (message["gen_started"], message["send_date"]) == ("then", "now")
    assert message["gen_finished"] == "1970-01-01T00:00:01.002Z"
    assert message["extra"] == {"model": "mine", "api": "here", "reasoning": "Given.", "reasoning_type": "model"}


@pytest.mark.parametrize("started_ms", [-(10**20), 10**20])
def test_a_moment_that_another_program_made_up_stops_no_reply(started_ms: int) -> None:
    """[T21]"""
    desk = Desk(U1)
    desk.start()
    desk.stream.generations["g1"].started_ms = started_ms
    desk.text("hello")
    assert desk.end()["type"] == "ack"
    assert desk.messages[1]["gen_started"] in ("1970-01-01T00:00:00.000Z", "9999-12-31T23:59:59.999Z")


@pytest.mark.parametrize("kind", ["swipe", "continue"])
def test_text_whose_message_is_gone_becomes_a_message(kind: str) -> None:
    """[T4]"""
    desk = Desk(U1, A1)
    desk.start(target={"kind": kind, "message": "a1"}, reply={"name": "Alice"})
    desk.text("saved")
    desk.ask("delete", messages=["a1"], base=desk.stream.chat.version.integrity)
    answer = desk.end()
    assert (desk.messages[-1]["mes"], desk.messages[-1]["name"]) == ("saved", "Alice")
    assert answer["message"] == desk.messages[-1]["id"] != "a1"
    assert desk.entry()["message"] == answer["message"]


def test_text_that_its_message_cannot_take_becomes_a_message_behind_it() -> None:
    """[T4]"""
    limits = Limits(document_bytes=9000)
    desk = Desk({**A1, "mes": "x" * 4000}, U1)
    desk.ask("generation-start", generation="g1", base="*", target={"kind": "swipe", "message": "a1"}, limits=limits)
    desk.text("y" * 4000)
    desk.ask("generation-end", generation="g1", limits=limits)
    assert [message["mes"][0] for message in desk.messages] == ["x", "y", "h"]
    assert desk.messages[1]["name"] == "Alice"


@pytest.mark.parametrize("kind", ["message", "swipe", "continue"])
def test_text_that_leaves_no_room_for_what_was_to_stand_beside_it_goes_first(kind: str) -> None:
    """[T4, T9] No generation runs for ever because its message would be too large."""
    limits = Limits(document_bytes=9000)
    desk = Desk(U1, A1)
    desk.ask("generation-start", generation="g1", base="*", limits=limits, reply={"title": "x" * 4500},
             target={"kind": kind, **({"message": "a1"} if kind != "message" else {})})
    desk.text("y" * 4800, reasoning="z" * 50)
    desk.by_itself(decide_end(desk.stream, "g1", "orphaned", desk.fresh(), limits))
    message = next(one for one in desk.messages if "y" in one["mes"])
    assert message["mes"].removeprefix("hello") == "y" * 4800
    assert message["extra"]["reasoning"] == "z" * 50
    assert desk.entry()["state"] == "orphaned"


def test_a_text_whose_generation_was_taken_away_by_another_program_goes_where_it_belongs() -> None:
    """[T23]"""
    desk = Desk(U1, A1)
    desk.start(target={"kind": "continue", "message": "a1"})
    desk.start("g2", OTHER, messages=[{"mes": "more?"}], reply={"name": "Alice"})
    desk.start("g3", OTHER, messages=[{"mes": "?"}])
    desk.text(" again")
    desk.text("Nothing known.", "g2", reasoning="Hm.")
    stream = Stream("user", "group:vectors", CHAT_ID, desk.stream.chat, desk.stream.head)
    stream.take_texts(desk.stream.running, {"g1": desk.stream.generations["g1"]})
    assert (list(stream.stray), stream.running) == (["g1", "g2"], {})
    install_commit(stream, decide_strays(stream, desk.fresh(), LIMITS))
    said = [one["mes"] for one in vectors.document_of(stream)["messages"]]
    assert said == ["hi", "hello again", "more?", "?", "Nothing known."]
    assert {one_id: (one.state, one.is_stored) for one_id, one in stream.generations.items()} == {
        "g1": ("orphaned", True), "g2": ("orphaned", True),
    }


@pytest.mark.parametrize(
    ("reply", "wanted"),
    [
        (None, {"mes": "text", "extra": {"reasoning": "Hm."}}),
        (b'{"role":"assistant"}', {"role": "assistant", "content": "text", "extra": {"reasoning": "Hm."}}),
        (b'{"name":"Alice","extra":{"a":1}}', {"name": "Alice", "mes": "text", "extra": {"a": 1, "reasoning": "Hm."}}),
    ],
)
def test_a_text_whose_chat_is_gone_is_a_line_of_a_file(reply: bytes | None, wanted: dict[str, Any]) -> None:
    """[T23]"""
    known = Generation("running", GenerationTarget(), "m1", ME, 0, reply=Raw(reply)) if reply else None
    assert json.loads(as_line(known, Running("text", "Hm."))) == wanted


def test_content_shaped_replies_get_their_text_as_content() -> None:
    """[T3]"""
    desk = Desk({"id": "u1", "role": "user", "content": "hi"})
    desk.start(reply={"role": "assistant", "content": ""})
    desk.text("hello")
    desk.end()
    assert desk.messages[1].keys() == {"id", "role", "content"}
    assert desk.messages[1]["content"] == "hello"
    desk.start("g2", target={"kind": "continue", "message": "u1"})
    desk.text(" there", "g2")
    desk.end("g2")
    assert desk.messages[0] == {"id": "u1", "role": "user", "content": "hi there"}


def test_an_end_may_bring_the_text_as_it_should_stand() -> None:
    """[T7]"""
    desk = Desk(U1)
    desk.start(reply={"name": "Alice", "extra": {"a": 1}})
    desk.text("raw")
    desk.end(reply={"mes": "polished", "extra": {"b": 2}}, length=3)
    message = desk.messages[1]
    assert (message["mes"], message["extra"]) == ("polished", {"a": 1, "b": 2})


def test_an_end_that_misses_text_is_told_what_is_here_and_comes_again_with_the_same_number() -> None:
    """[T7]"""
    desk = Desk(U1)
    desk.start()
    desk.text("ab\U0001f600")
    gap = desk.end(length=9)
    assert (gap["code"], gap["expected"], gap["retry"]) == ("generation-gap", 4, "now")
    desk.text("cdefg")
    assert desk.end(length=9)["type"] == "ack"


def test_only_the_session_that_started_it_ends_it_and_it_ends_once() -> None:
    """[T7, T8, R11]"""
    desk = Desk(U1)
    desk.start()
    desk.text("some")
    assert desk.ask("generation-end", OTHER, generation="g1")["code"] == "not-producer"
    cancelled = desk.ask("generation-cancel", OTHER, generation="g1")
    assert (cancelled["state"], cancelled["stored"]) == ("cancelled", True)
    assert desk.messages[1]["mes"] == "some"
    late = desk.end()
    assert (late["code"], late["state"]) == ("generation-ended", "cancelled")
    assert desk.ask("generation-cancel", generation="g1")["code"] == "generation-ended"
    assert desk.end("g9")["code"] == "generation-unknown"
    assert len(desk.messages) == 2


@pytest.mark.parametrize("how", ["cancelled", "failed", "orphaned", "stored"])
def test_a_generation_without_text_leaves_no_message(how: str) -> None:
    """[T8, T9]"""
    desk = Desk(U1)
    desk.start()
    if how == "orphaned":
        desk.by_itself(decide_end(desk.stream, "g1", "orphaned", desk.fresh(), LIMITS))
    elif how == "cancelled":
        desk.ask("generation-cancel", generation="g1")
    else:
        desk.end(**({"error": {"code": "503", "message": "busy"}} if how == "failed" else {}))
    assert len(desk.messages) == 1
    entry = desk.entry()
    assert entry["state"] == how
    assert "stored" not in entry
    assert entry.get("error") == ({"code": "503", "message": "busy"} if how == "failed" else None)


def test_the_server_ends_what_has_no_producer_and_the_commit_has_no_author() -> None:
    """[T9, R13]"""
    desk = Desk(U1)
    desk.start()
    desk.text("half of a sen")
    decision = decide_end(desk.stream, "g1", "orphaned", desk.fresh(), LIMITS)
    assert b'"by":{' not in decision.core
    desk.by_itself(decision)
    assert desk.messages[1]["mes"] == "half of a sen"
    assert desk.entry()["state"] == "orphaned"


def test_acknowledgements_are_kept_by_session_and_old_ones_are_pruned() -> None:
    """[T14, T15]"""
    desk = Desk(U1)
    for number in range(40):
        desk.start(f"g{number}", messages=[{"mes": "?"}])
        desk.text("!", f"g{number}")
        desk.end(f"g{number}")
        desk.by_itself(decide_acks(desk.stream, {f"g{number}": [OTHER, ME]}, desk.fresh(), LIMITS))
    assert decide_acks(desk.stream, {"g39": [ME], "g99": [ME]}, desk.fresh(), LIMITS) is None
    kept = desk.stream.generations
    assert list(kept) == [f"g{number}" for number in range(8, 40)]
    assert kept["g39"].acked == [OTHER, ME]


def test_results_that_nobody_acknowledged_are_kept_longer() -> None:
    """[T15]"""
    desk = Desk(U1)
    for number in range(150):
        desk.start(f"g{number}", messages=[{"mes": "?"}])
        desk.end(f"g{number}")
    assert next(iter(desk.stream.generations)) == "g22"
    assert len(desk.stream.generations) == 128


@pytest.mark.parametrize(
    ("fields", "code", "pointer"),
    [
        ({"target": {"kind": "swipe"}}, "bad-frame", "/target/message"),
        ({"target": {"kind": "message", "message": "a1"}}, "bad-frame", "/target/message"),
        ({"target": {"kind": "continue", "message": "a1"}, "messages": [{"mes": "x"}]}, "bad-frame", "/messages"),
        ({"target": {"kind": "swipe", "message": "nobody"}}, "message-unknown", "/target/message"),
        ({"target": {"kind": "continue", "message": "odd"}}, "message-illegal", "/target/message"),
        ({"target": {"kind": "swipe", "message": "odd"}}, "swipe-illegal", "/message"),
        ({"target": {"kind": "swipe", "message": "a1"}, "reply": {"id": "x"}}, "id-immutable", "/reply/id"),
        ({"reply": {"mes": "early"}}, "message-illegal", "/reply/mes"),
        ({"reply": {"extra": []}}, "message-illegal", "/reply/extra"),
        ({"reply": {"id": "a1"}}, "message-id-taken", "/reply/id"),
        ({"reply": {"id": ""}}, "message-illegal", "/reply/id"),
        ({"messages": [{"id": "x", "mes": ""}], "reply": {"id": "x"}}, "message-id-taken", "/reply/id"),
        ({"generation": "two words"}, "bad-frame", "/generation"),
        ({"generation": ""}, "bad-frame", "/generation"),
        ({"generation": "g" * 65}, "bad-frame", "/generation"),
        ({"lease_s": 0}, "bad-frame", "/lease_s"),
        ({"base": None}, "base-illegal", "/base"),
    ],
)
def test_a_start_that_makes_no_sense_is_refused(fields: dict[str, Any], code: str, pointer: str) -> None:
    """[T1]"""
    desk = Desk({"id": "odd", "data": 1}, A1)
    answer = desk.ask("generation-start", **{"generation": "g1", "base": "*", **fields})
    assert (answer.get("code"), answer.get("pointer")) == (code, pointer)
    assert len(desk.messages) == 2


def test_a_start_made_against_an_old_chat_is_a_conflict() -> None:
    """[T1]"""
    desk = Desk(U1)
    desk.ask("append", base="*", messages=[{"mes": "news"}])
    answer = desk.ask("generation-start", generation="g1", base=uuid(0), messages=[{"mes": "hi"}])
    assert answer["type"] == "conflict"
    assert desk.stream.generations == {}


def test_a_document_that_another_program_changed_is_read_as_far_as_it_makes_sense() -> None:
    desk = Desk(U1)
    desk.start()
    state = desk.stream.states[NAMESPACE]
    document = json.loads(state.data or b"")
    document.update({"odd": 1, "worse": {"state": "flying"}})
    stream = Stream("user", "group:vectors", CHAT_ID, desk.stream.chat)
    stream.states[NAMESPACE] = state
    state.data = json.dumps(document).encode()
    stream.follow_generations()
    assert list(stream.generations) == ["g1"]
    assert list(stream.running) == ["g1"]


def test_models_are_asked_by_servers_that_can() -> None:
    """[T19]"""
    desk = Desk(U1)
    answer = desk.ask("generate", generation="g1", base="*", upstream="local", body={"messages": []})
    assert answer["code"] == "unsupported"
