"""The checker finds each lie that a server could tell: a green run means something."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.oracle import Invocation, Notes, Replica, Writer, check

CHAT = "group:x"


def version(seq: int) -> dict[str, Any]:
    return {"epoch": 1, "seq": seq, "integrity": f"i{seq}"}


class Story:
    """Two writers, three appends and a conflict, as a right server would have it."""

    def __init__(self) -> None:
        self.notes = Notes()
        self.first = {"head": version(0), "version": version(0), "messages": [], "metadata": {}}
        self.history: list[dict[str, Any]] = []
        self.messages: list[dict[str, Any]] = []
        self.now_s = 0.0
        self.append("a", 1)
        self.append("b", 1)
        self.conflict("b", 2)
        self.append("a", 2)

    def invoke(self, session: str, op: int, frame: dict[str, Any]) -> Invocation:
        found = Invocation(session, op, {**frame, "chat": CHAT, "op": op}, self.now_s)
        found.returned_s = self.now_s + 0.5
        self.now_s += 1
        self.notes.invocations[session, op] = found
        return found

    def append(self, session: str, op: int) -> None:
        seq = len(self.history) + 1
        text = {"mes": f"{session}{op}"}
        found = self.invoke(session, op, {"type": "append", "base": "*", "messages": [text]})
        message = {"id": f"m{seq}", **text}
        self.messages.append(message)
        self.history.append({
            "version": version(seq), "previous": f"i{seq - 1}", "by": {"session": session, "op": op},
            "ops": [{"op": "append", "messages": [message]}],
        })
        found.answer = {"type": "ack", "op": op, "version": version(seq), "messages": [message["id"]]}
        self.notes.see(version(seq))

    def conflict(self, session: str, op: int) -> None:
        frame = {"type": "patch", "base": "i1", "message": "m1", "patch": [{"op": "add", "path": "/x", "value": 1}]}
        self.invoke(session, op, frame).answer = {"type": "conflict", "op": op, "version": version(2)}

    def check(self) -> None:
        final = {"head": self.history[-1]["version"], "messages": self.messages, "metadata": {}}
        writer = Writer(CHAT, self.notes, 1)
        writer.replica = Replica(head=self.history[-1]["version"])
        check(self.notes, self.history, self.first, final, {}, [writer])


def lose_an_acked_op(story: Story) -> None:
    story.history.pop()
    story.messages.pop()
    del story.notes.observed["i3"]


def undo_what_was_seen(story: Story) -> None:
    story.notes.see(version(9))


def carry_out_twice(story: Story) -> None:
    again = copy.deepcopy(story.history[-1])
    again["version"], again["previous"] = version(4), "i3"
    again["ops"][0]["messages"][0]["id"] = "m4"
    story.history.append(again)
    story.messages.append(again["ops"][0]["messages"][0])


def carry_out_what_was_refused(story: Story) -> None:
    story.notes.invocations["a", 2].answer = {"type": "conflict", "op": 2, "version": version(3)}


def invent_an_op(story: Story) -> None:
    del story.notes.invocations["a", 2]


def change_the_payload(story: Story) -> None:
    story.history[1]["ops"][0]["messages"][0]["mes"] = "something else"


def break_the_chain(story: Story) -> None:
    story.history[1]["previous"] = "i0"


def use_an_integrity_twice(story: Story) -> None:
    story.history[2]["version"] = {**version(3), "integrity": "i1"}


def leave_a_hole(story: Story) -> None:
    del story.history[1]


def order_against_time(story: Story) -> None:
    story.notes.invocations["b", 1].invoked_s = -2
    story.notes.invocations["b", 1].returned_s = -1


def order_against_the_session(story: Story) -> None:
    one, two = story.notes.invocations["a", 1], story.notes.invocations["a", 2]
    story.history[0]["by"], story.history[2]["by"] = story.history[2]["by"], story.history[0]["by"]
    one.frame, two.frame = two.frame, one.frame
    assert one.answer is not None
    assert two.answer is not None
    one.answer, two.answer = two.answer, one.answer
    one.invoked_s = two.invoked_s = 0
    one.returned_s = two.returned_s = 9


def refuse_without_a_reason(story: Story) -> None:
    story.notes.invocations["b", 2].frame["base"] = "i2"


def ack_another_version(story: Story) -> None:
    answer = story.notes.invocations["b", 1].answer
    assert answer is not None
    answer["version"] = version(1)


def never_answer(story: Story) -> None:
    story.notes.invocations["b", 1].answer = None


def show_another_chat(story: Story) -> None:
    story.messages.reverse()


LIES = [lose_an_acked_op, undo_what_was_seen, carry_out_twice, carry_out_what_was_refused, invent_an_op,
        change_the_payload, break_the_chain, use_an_integrity_twice, leave_a_hole, order_against_time,
        order_against_the_session, refuse_without_a_reason, ack_another_version, never_answer, show_another_chat]


def test_the_truth_passes() -> None:
    Story().check()


@pytest.mark.parametrize("lie", LIES)
def test_every_lie_is_found(lie: Callable[[Story], None]) -> None:
    story = Story()
    lie(story)
    with pytest.raises(AssertionError):
        story.check()


def test_a_replica_sees_a_gap_and_a_fork() -> None:
    replica = Replica(head=version(1))
    assert not replica.follow({"version": version(1), "previous": "i0", "ops": []})
    with pytest.raises(AssertionError, match="a gap"):
        replica.follow({"version": version(3), "previous": "i2", "ops": []})
    with pytest.raises(AssertionError, match="chain"):
        replica.follow({"version": version(2), "previous": "another", "ops": []})
    with pytest.raises(AssertionError, match="epoch"):
        replica.follow({"version": {**version(2), "epoch": 2}, "previous": "i1", "ops": []})
