"""The link with literal frames: no socket, no clock, no server."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from tellback_client.errors import (
    ConflictError,
    ForbiddenError,
    OutcomeUnknownError,
    ProtocolViolation,
    RefusedError,
    SessionTakenOver,
    UnauthenticatedError,
    closed,
)
from tellback_client.events import Replaced
from tellback_client.intents import AppendIntent, MetadataIntent, PatchIntent, StateIntent, UpdateMessageIntent
from tellback_client.link import Link
from tellback_client.outbox import Entry, PendingWrite, WriteResult
from tellback_client.subscription import Subscription
from tellback_protocol.fields import OpBase
from tellback_protocol.requests import Patch
from tests.support.tab_server import lines_of

SESSION = "session-of-the-test"
CHAT_ID = "11111111-1111-4111-8111-111111111111"
NAME = "character:Alice/First meeting"
ID = f"id:{CHAT_ID}"
LIMITS = {"frame_bytes": 1000}


def integrity(seq: int) -> str:
    return f"00000000-0000-4000-8000-{seq:012d}"


def version(seq: int, epoch: int = 1) -> dict[str, Any]:
    return {"epoch": epoch, "seq": seq, "integrity": integrity(seq + 1000 * (epoch - 1))}


def commit(seq: int, *ops: dict[str, Any], by: int | None = None) -> dict[str, Any]:
    frame = {
        "type": "integrity", "chat": NAME, "version": version(seq), "previous": integrity(seq - 1), "ops": list(ops),
    }
    return frame if by is None else {**frame, "by": {"session": SESSION, "op": by}}


def appended(*ids: str) -> dict[str, Any]:
    return {"op": "append", "messages": [{"id": message_id, "mes": "hi"} for message_id in ids]}


class Wire:
    """A link, and the frames that go in and out of it."""

    def __init__(self, *, journaling: bool = False) -> None:
        self.link = Link(SESSION, lambda: 0.5, journaling=journaling)
        self.now_s = 100.0
        self.subscription: Subscription = self.link.subscribe(NAME, create=True)
        self._ids = iter(f"m{number}" for number in range(1, 1000))

    def connect(self) -> list[dict[str, Any]]:
        """Connection, hello, welcome; returns what follows."""
        self.link.connected(self.now_s)
        (hello,) = self.sent()
        assert hello["type"] == "hello"
        self.receive({
            "type": "welcome", "protocol": 1, "server": "test", "user": "u", "limits": LIMITS, "heartbeat_ms": 25000,
        })
        return self.sent()

    def open(self, seq: int = 1, **fields: Any) -> None:
        """Connect and answer `open` with an empty snapshot, or with what `fields` say."""
        (asked,) = self.connect()
        self.opened(asked, seq, **fields)

    def opened(self, asked: dict[str, Any], seq: int, **fields: Any) -> None:
        snapshot = {"mode": "snapshot", "metadata": {}, "messages": []} if "mode" not in fields else {}
        self.receive({
            "type": "opened", "id": asked["id"], "chat": asked["chat"], "chat_id": CHAT_ID, "version": version(seq),
            "head": version(seq), "next_op": 1, **snapshot, **fields,
        })

    def receive(self, *frames: dict[str, Any]) -> None:
        for frame in frames:
            self.link.received(json.dumps(frame).encode(), self.now_s)

    def sent(self) -> list[dict[str, Any]]:
        return [json.loads(frame) for frame in self.link.collect(self.now_s)]

    def write(self, intent: Any) -> list[Any]:
        outcome: list[Any] = []
        self.subscription.submit(PendingWrite(intent, outcome.append))
        return outcome

    def append(self) -> list[Any]:
        return self.write(AppendIntent([{"mes": "mine"}], lambda: next(self._ids)))

    def ids(self) -> list[str]:
        return list(self.subscription.view().chat.messages)


def ack(frame: dict[str, Any], seq: int, **fields: Any) -> dict[str, Any]:
    ids = {"messages": [message["id"] for message in frame["messages"]]} if frame["type"] == "append" else {}
    return {"type": "ack", "id": frame["id"], "chat": ID, "op": frame["op"], "version": version(seq),
            "durable": "fsync", **ids, **fields}


def refusal(frame: dict[str, Any], code: str, retry: str, **fields: Any) -> dict[str, Any]:
    return {"type": "error", "id": frame["id"], "chat": ID, "op": frame.get("op", 1), "code": code, "message": code,
            "retry": retry, **fields}


def test_hello_is_first_and_everything_waits_for_welcome() -> None:
    wire = Wire()
    wire.link.connected(wire.now_s)

    assert wire.sent() == [
        {"type": "hello", "protocol": 1, "session": SESSION, "token": None, "client": "tellback-python"}
    ]
    assert wire.sent() == []


def test_r01_an_open_without_an_answer_is_asked_again() -> None:
    wire = Wire()
    (first,) = wire.connect()
    wire.link.disconnected()
    (second,) = wire.connect()

    assert {**first, "id": 0} == {**second, "id": 0}
    assert second["since"] is None
    assert second["create"] is True


def test_r02_resuming_twice_with_nothing_new_changes_nothing() -> None:
    wire = Wire()
    wire.open()
    wire.receive(commit(2, appended("a")))
    for _ in range(2):
        wire.link.disconnected()
        (asked,) = wire.connect()
        assert (asked["chat"], asked["since"], asked["create"]) == (ID, version(2), False)
        wire.opened(asked, 2, mode="current")

    assert wire.ids() == ["a"]
    assert wire.subscription.phase == "live"


def test_a_write_is_shown_at_once_and_settled_by_its_ack() -> None:
    wire = Wire()
    wire.open()
    outcome = wire.append()
    (frame,) = wire.sent()

    assert frame == {
        "type": "append", "chat": ID, "messages": [{"id": "m1", "mes": "mine"}], "id": frame["id"], "op": 1,
        "base": integrity(1), "force": False, "on_conflict": "rebase",
    }
    assert wire.ids() == ["m1"]
    assert outcome == []

    wire.receive(ack(frame, 2))

    assert outcome[0].version.seq == 2
    assert outcome[0].message_ids == ["m1"]
    assert wire.ids() == ["m1"]
    assert wire.subscription.replica is not None
    assert list(wire.subscription.replica.chat.messages) == ["m1"]


def test_r17_r45_a_lost_ack_is_answered_by_the_same_bytes_again() -> None:
    wire = Wire()
    wire.open()
    outcome = wire.append()
    (before,) = wire.link.collect(wire.now_s)
    wire.link.disconnected()
    (asked,) = wire.connect()
    wire.opened(asked, 2, mode="replay", next_op=2)
    (after,) = wire.link.collect(wire.now_s)

    assert before == after

    wire.receive(commit(2, {"op": "append", "messages": [{"id": "m1", "mes": "mine"}]}, by=1))
    assert wire.ids() == ["m1"]
    wire.receive(ack(json.loads(after), 2, duplicate=True))

    assert outcome[0].duplicate
    assert wire.ids() == ["m1"]
    assert wire.append() == []
    assert wire.sent()[0]["op"] == 2


def test_r06_a_duplicate_ack_before_its_replay_waits_for_it() -> None:
    wire = Wire()
    wire.open()
    outcome = wire.append()
    wire.sent()
    wire.link.disconnected()
    (asked,) = wire.connect()
    wire.opened(asked, 3, mode="replay", next_op=2)
    (frame,) = wire.sent()
    wire.receive(ack(frame, 3, duplicate=True))
    assert outcome == []

    wire.receive(commit(2, appended("a")), commit(3, {"op": "append", "messages": [{"id": "m1", "mes": "mine"}]}, by=1))

    assert len(outcome) == 1
    assert wire.ids() == ["a", "m1"]


def test_r06_commits_between_the_parts_of_a_snapshot_come_after_it() -> None:
    wire = Wire()
    (asked,) = wire.connect()
    wire.opened(asked, 5, mode="snapshot", metadata={}, parts=2)
    part = {"type": "snapshot-part", "chat": NAME, "of": 2}
    wire.receive(
        {**part, "part": 1, "messages": [{"id": "a"}]}, commit(6, appended("c")),
        {**part, "part": 2, "messages": [{"id": "b"}]}, commit(6, appended("c")),
    )

    assert wire.ids() == ["a", "b", "c"]
    assert wire.subscription.phase == "live"


@pytest.mark.parametrize("frame", [
    commit(4, appended("late")), {**commit(2, appended("fork")), "previous": integrity(77)},
])
def test_r40_a_commit_that_does_not_follow_opens_the_chat_again(frame: dict[str, Any]) -> None:
    wire = Wire()
    wire.open()
    wire.receive(frame)
    (asked,) = wire.sent()

    assert (asked["type"], asked["chat"], asked["since"]) == ("open", ID, version(1))
    assert wire.ids() == []


def test_a_reset_tells_where_the_own_writes_are_kept() -> None:
    """[K3]: once; the next replacement has nothing to do with it."""
    wire = Wire()
    wire.open()
    wire.receive({"type": "reset", "chat": NAME, "reason": "outside-edit", "version": version(1, 2),
                  "recovered": ["character:Alice/First meeting - recovered #1"], "kept": True})
    (asked,) = wire.sent()
    wire.opened(asked, 1, version=version(1, 2), head=version(1, 2))
    wire.link.disconnected()
    (asked,) = wire.connect()
    wire.opened(asked, 1, version=version(1, 3), head=version(1, 3), reset="epoch")

    first, second = [event for event in wire.subscription.events if isinstance(event, Replaced)]
    assert (first.reason, first.recovered, first.kept) == (
        "outside-edit", ["character:Alice/First meeting - recovered #1"], True)
    assert (second.recovered, second.kept) == ([], False)


def test_behind_opens_the_chat_again_from_its_head() -> None:
    wire = Wire()
    wire.open()
    wire.receive(commit(2, appended("a")), {"type": "behind", "chat": NAME, "from": version(2), "to": version(9)})
    (asked,) = wire.sent()

    assert (asked["type"], asked["since"]) == ("open", version(2))


def test_r08_a_second_answer_to_a_resend_changes_nothing() -> None:
    wire = Wire()
    wire.open()
    outcome = wire.append()
    (frame,) = wire.sent()
    wire.receive(ack(frame, 2), ack(frame, 2, duplicate=True), commit(2, appended("m1")))

    assert len(outcome) == 1
    assert wire.ids() == ["m1"]


def test_r16_another_body_under_a_known_number_is_a_loud_error() -> None:
    wire = Wire()
    wire.open()
    outcome, following = wire.append(), wire.append()
    first, second = wire.sent()
    wire.receive(refusal(first, "op-mismatch", "never"), ack(second, 2))

    assert isinstance(outcome[0], RefusedError)
    assert outcome[0].code == "op-mismatch"
    assert isinstance(following[0], WriteResult)


def test_a_forgotten_outcome_is_said_to_be_unknown() -> None:
    wire = Wire()
    wire.open()
    outcome = wire.append()
    (frame,) = wire.sent()
    wire.receive(refusal(frame, "op-forgotten", "never"))

    assert isinstance(outcome[0], OutcomeUnknownError)


def test_an_overloaded_server_is_asked_again_later_in_order() -> None:
    wire = Wire()
    wire.open()
    wire.append(), wire.append()
    first, second = wire.sent()
    wire.receive(
        refusal(first, "overloaded", "backoff", after_ms=500), refusal(second, "op-gap", "after-sync", expected=1)
    )
    assert wire.sent() == []
    assert wire.link.deadline_s == wire.now_s + 0.5

    wire.now_s += 0.6

    assert wire.sent() == [first, second]


def test_r18_a_write_whose_number_was_not_used_gives_it_to_the_next() -> None:
    wire = Wire()
    wire.open()
    failed, kept = wire.append(), wire.append()
    first, second = wire.sent()
    wire.receive(refusal(first, "too-deep", "never"), refusal(second, "op-gap", "after-sync", expected=1))
    (asked,) = wire.sent()
    wire.opened(asked, 1, mode="current", next_op=1)
    (again,) = wire.sent()

    assert isinstance(failed[0], RefusedError)
    assert (again["op"], again["messages"]) == (1, second["messages"])
    assert again["id"] != second["id"]
    wire.receive(ack(again, 2))
    assert isinstance(kept[0], WriteResult)


def unreadable(code: str = "bad-json", **echo: Any) -> dict[str, Any]:
    return {"type": "error", "id": None, "code": code, "message": "What?", "retry": "never", **echo}


@pytest.mark.parametrize("code", ["bad-json", "too-deep", "too-large"])
def test_r18_an_error_without_a_request_number_goes_to_the_op_that_it_names(code: str) -> None:
    wire = Wire()
    wire.open()
    failed, kept = wire.append(), wire.append()
    first, second = wire.sent()
    wire.receive(unreadable(code, op=1, chat=ID), refusal(second, "op-gap", "after-sync", expected=1))
    (asked,) = wire.sent()
    wire.opened(asked, 1, mode="current", next_op=1)
    (again,) = wire.sent()
    wire.receive(ack(again, 2))

    assert (failed[0].code, again["op"]) == (code, 1)
    assert isinstance(kept[0], WriteResult)
    assert first["op"] == 1


def test_r18_an_error_that_names_nothing_goes_to_the_request_that_waits_alone() -> None:
    wire = Wire()
    wire.open()
    failed = wire.append()
    wire.sent()
    wire.receive(unreadable())
    kept = wire.append()
    (again,) = wire.sent()
    wire.receive(ack(again, 2))

    assert failed[0].code == "bad-json"
    assert (again["op"], isinstance(kept[0], WriteResult)) == (1, True)


def test_r18_among_several_the_unreadable_request_is_found_by_asking_one_by_one() -> None:
    """No write waits for ever, none is taken for another, and the good ones are stored in order."""
    wire = Wire()
    wire.open()
    outcomes = [wire.append() for _number in range(4)]
    sent = wire.sent()
    bad = sent[2]["messages"]
    with pytest.raises(ProtocolViolation):
        wire.receive(unreadable())
    wire.link.disconnected()
    (asked,) = wire.connect()
    wire.opened(asked, 1, mode="current", next_op=1)
    seq = 1
    for _round in range(20):
        frames = wire.sent()
        assert len(frames) <= 1 or seq == 3, "one at a time until it is found"
        for frame in frames:
            if frame["type"] == "open":
                wire.opened(frame, seq, mode="current", next_op=seq)
            elif frame["messages"] == bad:
                wire.receive(unreadable())
            else:
                seq += 1
                wire.receive(ack(frame, seq))

    assert [isinstance(outcome[0], WriteResult) for outcome in outcomes] == [True, True, False, True]
    assert outcomes[2][0].code == "bad-json"
    assert len(wire.subscription.lane) == 0


@pytest.mark.parametrize("next_op", [1, 2])
def test_an_error_of_a_code_that_nobody_here_knows_leaves_the_count_to_the_server(next_op: int) -> None:
    wire = Wire()
    wire.open()
    failed = wire.append()
    (frame,) = wire.sent()
    wire.receive(refusal(frame, "of-a-later-version", "never"))
    kept = wire.append()
    (asked,) = wire.sent()
    wire.opened(asked, 1, mode="current", next_op=next_op)
    (again,) = wire.sent()
    wire.receive(ack(again, 2))

    assert failed[0].code == "of-a-later-version"
    assert (again["op"], isinstance(kept[0], WriteResult)) == (next_op, True)


def test_r23_a_write_over_the_limit_is_refused_here_and_never_sent() -> None:
    wire = Wire()
    wire.open()
    outcome = wire.write(AppendIntent([{"mes": "x" * 2000}], lambda: "big"))
    after = wire.append()

    (frame,) = wire.sent() or wire.sent()

    assert outcome[0].code == "too-large"
    assert frame["type"] in ("open", "append")
    assert after == []
    assert wire.ids() == ["m1"]


def test_a_patch_behind_an_own_write_of_the_same_message_names_its_op() -> None:
    wire = Wire()
    wire.open()
    wire.append()
    wire.write(UpdateMessageIntent("m1", lambda message: message.update(mes="changed")))
    first, second = wire.sent()

    assert first["base"] == integrity(1)
    assert second["base"] == {"op": 1}
    assert second["message"] == "m1"


def test_a_merge_that_takes_a_member_away_stands_on_the_own_write_that_put_it_there() -> None:
    """On the version before, it would be a conflict with oneself."""
    wire = Wire()
    wire.open()
    wire.write(MetadataIntent(merge={"mood": "calm"}))
    wire.write(MetadataIntent(merge={"mood": None}))
    wire.write(MetadataIntent(merge={"other": None}))
    _first, second, third = wire.sent()

    assert second["base"] == {"op": 1}
    assert third["base"] == integrity(1)


def test_a_patch_of_another_message_does_not_stand_on_an_own_write() -> None:
    """`{"op": m}` would hide what others did before m, because m may be rebased over it."""
    wire = Wire()
    wire.open()
    wire.receive(commit(2, appended("a")))
    wire.append()
    wire.write(PatchIntent("a", [{"op": "add", "path": "/mes", "value": "changed"}]))
    _first, second = wire.sent()

    assert second["base"] == integrity(2)


def test_a_conflict_runs_a_function_again_and_leaves_data_to_a_person() -> None:
    wire = Wire()
    wire.open()
    wire.receive(commit(2, appended("a")))
    counted = wire.write(UpdateMessageIntent("a", lambda message: message.update(n=message.get("n", 0) + 1)))
    (first,) = wire.sent()
    theirs = commit(3, {"op": "patch", "message": "a", "patch": [{"op": "add", "path": "/n", "value": 10}]})
    wire.receive(theirs, {
        "type": "conflict", "id": first["id"], "chat": ID, "op": 1, "version": version(3), "missed": [theirs],
    })
    (second,) = wire.sent()
    assert (second["op"], second["base"]) == (2, integrity(3))
    assert second["patch"] == [{"op": "replace", "path": "/n", "value": 11}]
    wire.receive(ack(second, 4))
    assert counted[0].version.seq == 4

    refused = wire.write(PatchIntent("a", [{"op": "replace", "path": "/n", "value": 0}]))
    (third,) = wire.sent()
    other = commit(5, {"op": "patch", "message": "a", "patch": [{"op": "replace", "path": "/n", "value": 12}]})
    wire.receive(other, {
        "type": "conflict", "id": third["id"], "chat": ID, "op": 3, "version": version(5), "missed": [other],
    })

    assert isinstance(refused[0], ConflictError)
    assert refused[0].conflict.missed is not None
    assert refused[0].conflict.mine.value("a")["n"] == 0
    assert wire.subscription.view().chat.value("a")["n"] == 12
    assert wire.sent() == []


def test_r04_r05_another_epoch_makes_conflicts_of_what_the_server_has_not_seen() -> None:
    wire = Wire()
    wire.open()
    outcome = wire.append()
    wire.sent()
    wire.link.disconnected()
    (asked,) = wire.connect()
    wire.receive({
        "type": "opened", "id": asked["id"], "chat": ID, "chat_id": CHAT_ID, "mode": "snapshot", "reset": "epoch",
        "version": version(9, 2), "head": version(9, 2), "next_op": 1, "metadata": {}, "messages": [{"id": "theirs"}],
    })

    assert isinstance(outcome[0], ConflictError)
    assert list(outcome[0].conflict.mine.messages) == ["m1"]
    assert wire.ids() == ["theirs"]
    assert wire.sent() == []
    assert [event.reason for event in wire.subscription.events if isinstance(event, Replaced)] == ["epoch"]


def test_r43_a_server_that_knows_less_is_noticed() -> None:
    wire = Wire()
    wire.open(5)
    wire.link.disconnected()
    (asked,) = wire.connect()
    wire.opened(asked, 3)

    assert wire.subscription.replica is not None
    assert wire.subscription.replica.head.seq == 3
    assert [event.reason for event in wire.subscription.events if isinstance(event, Replaced)] == ["epoch"]


def test_r31_a_state_that_is_newer_than_the_commits_is_not_changed_twice() -> None:
    wire = Wire()
    wire.open()
    arrived: list[Exception | None] = []
    wire.subscription.want_state("memory", arrived.append)
    (asked,) = wire.sent()
    assert asked == {"type": "state-get", "owner": {"chat": ID}, "namespaces": ["memory"], "id": asked["id"]}
    wire.receive(
        {"type": "state", "id": asked["id"], "owner": {"chat": ID},
         "states": {"memory": {"version": version(2), "data": {"n": 1}}}},
        commit(2, {"op": "state", "namespace": "memory", "version": version(2), "previous": None,
                   "patch": [{"op": "add", "path": "/n", "value": 1}]}),
        commit(3, {"op": "state", "namespace": "memory", "version": version(3), "previous": integrity(2),
                   "patch": [{"op": "replace", "path": "/n", "value": 2}]}),
    )

    assert arrived == [None]
    assert wire.subscription.view().states["memory"].data == b'{"n":2}'


def test_a_state_that_came_without_its_content_is_asked_for_before_it_is_changed() -> None:
    wire = Wire()
    wire.open()
    wire.receive(commit(2, {"op": "state", "namespace": "memory", "version": version(2), "previous": None}))
    wire.write(StateIntent("memory", update=lambda memory: memory.update(n=memory["n"] + 1)))
    (asked,) = wire.sent()
    wire.receive({"type": "state", "id": asked["id"], "owner": {"chat": ID},
                  "states": {"memory": {"version": version(2), "data": {"n": 1}}}})
    (frame,) = wire.sent()

    assert frame["base"] == integrity(2)
    assert frame["set"] == {"n": 2}


def test_r45_nothing_is_sent_before_it_is_in_the_outbox_file() -> None:
    wire = Wire(journaling=True)
    wire.open()
    wire.append()
    assert wire.sent() == []
    records = wire.link.journal()
    assert wire.sent() == []

    wire.link.journaled(records)

    assert [frame["type"] for frame in wire.sent()] == ["append"]


def test_r33_silence_is_asked_and_then_ended() -> None:
    wire = Wire()
    wire.open()
    wire.now_s += 25
    # As the connection asks, each time it wakes.
    assert not wire.link.is_dead(wire.now_s)
    assert [frame["type"] for frame in wire.sent()] == ["ping"]
    assert not wire.link.is_dead(wire.now_s + 9)
    assert wire.link.is_dead(wire.now_s + 10)

    wire.receive({"type": "pong"})

    assert not wire.link.is_dead(wire.now_s + 10)


def test_r35_every_chat_is_opened_again() -> None:
    wire = Wire()
    wire.open()
    other = wire.link.subscribe("group:Round table")
    (asked,) = wire.sent()
    assert asked["chat"] == "group:Round table"
    wire.link.disconnected()

    assert [frame["chat"] for frame in wire.connect()] == [ID, "group:Round table"]
    assert other.phase == "opening"


def test_the_window_of_the_server_is_kept() -> None:
    wire = Wire()
    wire.open()
    for _ in range(70):
        wire.append()
    frames = wire.sent()
    assert len(frames) == 64
    wire.receive(ack(frames[0], 2))

    assert [frame["op"] for frame in wire.sent()] == [65]


def test_a_long_queue_of_appends_stands_on_writes_that_the_server_remembers() -> None:
    wire = Wire()
    wire.open()
    for _ in range(300):
        wire.append()
    bases = [pending.write.base for pending in wire.subscription.lane if pending.write is not None]

    assert bases[:128] == [integrity(1)] * 128
    assert [base.op for base in bases[128:] if isinstance(base, OpBase)] == list(range(1, 173))


def test_frames_of_a_later_protocol_are_ignored_and_broken_ones_end_the_connection() -> None:
    wire = Wire()
    wire.open()
    wire.receive({"type": "news", "chat": NAME}, commit(2, appended("a")) | {"flavour": "new"})
    assert wire.ids() == ["a"]
    with pytest.raises(ProtocolViolation):
        wire.receive({"type": "ack"})
    with pytest.raises(ProtocolViolation):
        wire.link.received(b"{", wire.now_s)


def test_close_codes_say_whether_to_come_back() -> None:
    assert all(closed(code, "") is None for code in (None, 1000, 1006, 1012, 4000, 4008, 4408, 4429, 4499))
    assert type(closed(4501, "")) is SessionTakenOver
    assert type(closed(4502, "")) is UnauthenticatedError
    assert type(closed(4503, "")) is ForbiddenError
    assert type(closed(4500, "")) is ProtocolViolation


def test_a_chat_that_is_gone_keeps_what_was_not_stored() -> None:
    wire = Wire()
    wire.open()
    outcome = wire.append()
    wire.sent()
    wire.link.disconnected()
    (by_id,) = wire.connect()
    wire.receive(refusal(by_id, "not-found", "never"))
    (by_name,) = wire.sent()
    assert (by_id["chat"], by_name["chat"], by_name["create"]) == (ID, NAME, False)
    wire.receive(refusal(by_name, "not-found", "never"))

    assert isinstance(outcome[0], ConflictError)
    assert list(outcome[0].conflict.mine.messages) == ["m1"]


def test_r45_an_unsolved_conflict_of_an_earlier_process_waits_again() -> None:
    write = (
        b'{"type":"patch","chat":"id:%b","patch":[{"op":"replace","path":"/mes","value":"mine"}],"message":"a","id":7,'
        b'"op":3,"base":"%b"}' % (CHAT_ID.encode(), integrity(1).encode())
    )
    frame = msgspec.json.decode(write, type=Patch)
    wire = Wire()
    wire.link.restore([
        Entry(7, CHAT_ID, write, frame, conflicted=True),
        Entry(8, CHAT_ID, write.replace(b'"id":7,"op":3', b'"id":8,"op":4'), frame_with(frame, 8, 4)),
    ])
    by_name, by_id = wire.connect()
    wire.opened(by_name, 5, messages=[{"id": "a", "mes": "theirs"}], next_op=4)
    wire.opened(by_id, 5, messages=[{"id": "a", "mes": "theirs"}], next_op=4)
    (subscription,) = wire.link.subscriptions

    assert [conflict.request_id for conflict in subscription.conflicts] == [7]
    assert subscription.conflicts[0].mine.value("a")["mes"] == "mine"
    assert [(sent["id"], sent["op"]) for sent in wire.sent()] == [(8, 4)]
    wire.subscription = subscription
    wire.append()
    assert [(sent["id"] > 8, sent["op"]) for sent in wire.sent()] == [(True, 5)]
    subscription.solved(subscription.conflicts[0])
    assert {record.line for record in wire.link.journal() if record.kind == "done"} == {b'{"done":7}\n'}


def test_kept_writes_get_other_numbers_together_although_the_connection_ends_between_their_answers() -> None:
    """[O3] Who names one of them as its base names its new number, also when its own became known later."""
    first = {"type": "patch", "chat": ID, "patch": [{"op": "replace", "path": "/mes", "value": "mine"}], "message": "a",
             "id": 1, "op": 1, "base": integrity(1)}
    kept = [{**first, "id": op, "op": op, "base": {"op": op - 1} if op > 1 else integrity(1)} for op in range(1, 5)]
    wire = Wire()
    wire.link.restore([
        Entry(frame["id"], CHAT_ID, data, msgspec.json.decode(data, type=Patch))
        for frame in kept for data in [json.dumps(frame).encode()]
    ])
    opens = wire.connect()
    for asked in opens:
        wire.opened(asked, 5, messages=[{"id": "a", "mes": "theirs"}], next_op=3)
    (wire.subscription,) = wire.link.subscriptions
    following = wire.append()
    assert wire.sent() == kept[:2], "what the server does not know waits for the answers"
    wire.receive(refusal(kept[0], "op-mismatch", "never"))
    wire.link.disconnected()
    (asked,) = wire.connect()
    wire.opened(asked, 5, mode="current", next_op=3)
    assert wire.sent() == kept[1:2]
    wire.receive(refusal(kept[1], "op-mismatch", "never"))
    (asked,) = wire.sent()
    assert asked["type"] == "open"
    wire.opened(asked, 5, mode="current", next_op=3)

    sent = wire.sent()
    assert [frame["op"] for frame in sent] == [3, 4, 5, 6, 7]
    assert [frame["base"] for frame in sent[:4]] == [integrity(1), {"op": 3}, {"op": 4}, {"op": 5}]
    wire.receive(refusal(sent[0], "op-mismatch", "never"))
    assert [conflict.op for conflict in wire.subscription.conflicts] == [3], "once is enough"
    assert following == []


def frame_with(frame: Patch, request_id: int, op: int) -> Patch:
    return msgspec.structs.replace(frame, id=request_id, op=op)


def test_snapshot_and_deltas_are_a_fresh_snapshot() -> None:
    wire = Wire()
    wire.open()
    wire.receive(
        commit(2, appended("a", "b", "c")),
        commit(3, {"op": "delete", "messages": ["b"]}, {"op": "insert", "after": "a", "messages": [{"id": "d"}]}),
        commit(4, {"op": "metadata", "patch": [{"op": "add", "path": "/mood", "value": "calm"}]}),
        commit(5, {"op": "patch", "message": "c", "patch": [{"op": "replace", "path": "/mes", "value": "bye"}]}),
    )
    fresh = Wire()
    (asked,) = fresh.connect()
    fresh.opened(asked, 5, mode="snapshot", metadata={"mood": "calm"}, messages=[
        {"id": "a", "mes": "hi"}, {"id": "d"}, {"id": "c", "mes": "bye"}])

    assert wire.subscription.view().chat.values() == fresh.subscription.view().chat.values()
    assert len(lines_of(wire.subscription.view().chat)[0]) == 3
    assert wire.subscription.view().chat.metadata_value() == {"mood": "calm"}
