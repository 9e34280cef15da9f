"""Every invariant finds what it is for: a small sound story, and one thing in it that is not so."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.checker.evidence import Evidence
from tests.checker.invariants import INVARIANTS, verify
from tests.checker.linearizability import second_opinion
from tests.checker.notebook import Notes, read

CHAT = "id:c"
Line = dict[str, Any]


def version(seq: int, integrity: str | None = None) -> Line:
    return {"epoch": 1, "seq": seq, "integrity": integrity or f"i{seq}"}


def commit(seq: int, session: str, op: int, *effects: Line) -> Line:
    by = {"session": session, "op": op}
    return {"type": "integrity", "chat": CHAT, "version": version(seq), "previous": f"i{seq - 1}", "by": by,
            "ops": list(effects)}


class Story:
    """Two tabs, a and b: a appends, b patches on an old base and gets a conflict, b patches on the new one; a is cut
    off, sends its append again and opens again."""

    def __init__(self) -> None:
        one, two = {"id": "m1", "mes": "one"}, {"id": "m2", "mes": "two"}
        opened = {
            "type": "opened", "id": 0, "chat": CHAT, "mode": "snapshot", "version": version(1), "head": version(1),
            "next_op": 1, "metadata": {}, "messages": [one],
        }
        append = {"type": "append", "id": 1, "chat": CHAT, "op": 1, "base": "*", "messages": [{"mes": "two"}]}
        ack = {"type": "ack", "id": 1, "chat": CHAT, "op": 1, "version": version(2), "messages": ["m2"]}
        patch = [{"op": "replace", "path": "/mes", "value": "ONE"}]
        stale = {"type": "patch", "id": 1, "chat": CHAT, "op": 1, "base": "i1", "message": "m1", "patch": patch}
        conflict = {"type": "conflict", "id": 1, "chat": CHAT, "op": 1, "version": version(2), "missed": []}
        good = {**stale, "id": 2, "op": 2, "base": "i2"}
        good_ack = {"type": "ack", "id": 2, "chat": CHAT, "op": 2, "version": version(3)}
        self.second = commit(2, "A", 1, {"op": "append", "messages": [two]})
        self.third = commit(3, "B", 2, {"op": "patch", "message": "m1", "patch": patch})
        self.lines: list[Line] = []
        for tab, session in (("a", "A"), ("b", "B")):
            self.note(tab, "connected", session=session)
            self.note(tab, "sent", frame={"type": "open", "id": 0, "chat": CHAT, "since": None})
            self.note(tab, "received", frame=opened)
        self.note("a", "sent", frame=append)
        self.note("a", "received", frame=ack)
        self.note("b", "sent", frame=stale)
        self.note("b", "received", frame=self.second)
        self.note("b", "received", frame=conflict)
        self.note("b", "sent", frame=good)
        self.note("b", "received", frame=good_ack)
        self.note("a", "connected", session="A")
        self.note("a", "sent", frame={"type": "open", "id": 0, "chat": CHAT, "since": version(2)})
        self.note("a", "received", frame={
            "type": "opened", "id": 0, "chat": CHAT, "mode": "replay", "version": version(3), "head": version(3),
            "next_op": 2,
        })
        self.note("a", "received", frame=self.third)
        self.note("a", "sent", frame=append)
        self.note("a", "received", frame={**ack, "duplicate": True})
        self.note("a", "sent", probe=True, frame={**append, "id": 9, "messages": []})
        self.note("a", "received", frame={"type": "error", "id": 9, "op": 1, "code": "op-mismatch", "retry": "never"})
        messages = [{"id": "m1", "mes": "ONE"}, two]
        place = {"messages": messages, "metadata": {}, "states": {}}
        self.evidence = Evidence(
            first=opened, history=[self.second, self.third],
            final={**opened, "version": version(3), "head": version(3), "messages": messages},
            disk={**copy.deepcopy(place), "sync": {"integrity": "i3"}},
            stores={name: {**copy.deepcopy(place), "integrity": "i3"} for name in ("primary", "backup")},
        )

    def note(self, tab: str, what: str, **fields: Any) -> None:
        self.lines.append(copy.deepcopy({"at": float(len(self.lines)), "tab": tab, "what": what, **fields}))

    def received(self, kind: str, which: int = 0) -> Line:
        """A frame that can be changed."""
        frames = [line["frame"] for line in self.lines if line["what"] == "received" and line["frame"]["type"] == kind]
        found: Line = frames[which]
        return found

    def sent(self, kind: str, which: int = 0) -> Line:
        """As `received`."""
        frames = [line["frame"] for line in self.lines if line["what"] == "sent" and line["frame"]["type"] == kind]
        found: Line = frames[which]
        return found

    def notes(self) -> Notes:
        return read(json.dumps(line) for line in self.lines)

    def broken(self) -> set[str]:
        """The invariants that do not hold."""
        return {violation.invariant for violation in verify(self.notes(), self.evidence)}


def lost(story: Story) -> None:
    story.evidence.history.pop()


def another_seq(story: Story) -> None:
    story.received("ack", 1)["version"] = version(4)


def twice(story: Story) -> None:
    story.evidence.history.append(commit(4, "B", 2, {"op": "append", "messages": []}))


def another_outcome(story: Story) -> None:
    story.received("ack", 2)["version"] = version(3)


def body_not_compared(story: Story) -> None:
    story.received("error")["code"] = "bad-frame"


def number_forgotten(story: Story) -> None:
    story.received("opened", 2)["next_op"] = 1


def nobody_asked(story: Story) -> None:
    story.evidence.history.append(commit(4, "C", 1, {"op": "append", "messages": []}))


def refused_and_there(story: Story) -> None:
    story.evidence.history.append(commit(4, "B", 1, {"op": "append", "messages": []}))


def hole(story: Story) -> None:
    story.third["version"] = version(4)


def chain(story: Story) -> None:
    story.evidence.history[1] = {**story.third, "previous": "i1"}


def integrity_again(story: Story) -> None:
    story.evidence.history[1] = {**story.third, "version": version(3, "i1")}


def epoch(story: Story) -> None:
    story.evidence.history[1] = {**story.third, "version": {**version(3), "epoch": 2}}


def out_of_time(story: Story) -> None:
    story.evidence.history[0] = {**story.second, "by": story.third["by"]}
    story.evidence.history[1] = {**story.third, "by": story.second["by"]}


def session_order(story: Story) -> None:
    story.sent("patch", 0)["type"] = "append"
    story.evidence.history[0] = {**story.second, "by": {"session": "B", "op": 3}}


def stands_on_refused(story: Story) -> None:
    story.sent("patch", 1)["base"] = {"op": 1}


def no_reason(story: Story) -> None:
    story.sent("patch", 0)["base"] = "i2"


def over_others(story: Story) -> None:
    story.sent("patch", 1)["base"] = "i1"


def never_existed(story: Story) -> None:
    story.received("conflict")["missed"] = [{"version": version(2, "elsewhere")}]


def gap(story: Story) -> None:
    story.lines = [line for line in story.lines if line.get("frame") != story.second]


def told_otherwise(story: Story) -> None:
    story.received("integrity", 1)["ops"] = []


def means_something_else(story: Story) -> None:
    story.sent("append", 0)["messages"] = [{"mes": "too"}]


def touched_more(story: Story) -> None:
    story.second["ops"].append({"op": "metadata", "patch": [{"op": "add", "path": "/x", "value": 1}]})


def line_lost(story: Story) -> None:
    assert story.evidence.disk is not None
    story.evidence.disk["messages"].pop()


def state_lost(story: Story) -> None:
    story.evidence.states = {"memory": {"data": {}, "version": version(3)}}


def store_behind(story: Story) -> None:
    story.evidence.stores["backup"]["integrity"] = "i2"


def store_differs(story: Story) -> None:
    story.evidence.stores["primary"]["messages"][0] = {"id": "m1", "mes": "one"}


def read_before(story: Story) -> None:
    story.received("opened", 2).update(version=version(2), head=version(2))


def given_up(story: Story) -> None:
    """Another program's edit takes a message along, and nobody keeps it."""
    turn = {"epoch": 2, "seq": 3, "integrity": "t"}
    story.evidence.turns = [turn]
    story.note("", "edited", text="theirs")
    story.note("a", "received", frame={
        **story.received("opened"), "version": turn, "head": turn, "messages": [{"id": "x", "mes": "theirs"}],
    })
    story.evidence.elsewhere = ["ONE", "theirs"]


def edit_undone(story: Story) -> None:
    story.note("", "edited", text="theirs")
    story.evidence.elsewhere = ["ONE", "two"]


def said_again(story: Story) -> None:
    opened = story.received("opened")
    opened["messages"] = [*opened["messages"], {"id": "m9", "mes": "one"}]


def backup_differs(story: Story) -> None:
    story.evidence.backups = [{"backup": "3-1", "version": version(3), "messages": [{"id": "m1", "mes": "one"}]}]


def backup_is_old(story: Story) -> None:
    story.note("b", "sent", frame={"type": "backup-create", "id": 70, "chat": CHAT})
    backup = {"backup": "1-1", "version": version(1)}
    story.note("b", "received", frame={"type": "backup-created", "id": 70, "chat_id": "c", "backup": backup})


LIES: list[tuple[str, Callable[[Story], None]]] = [
    ("durable", lost), ("durable", another_seq), ("exactly-once", twice), ("exactly-once", another_outcome),
    ("exactly-once", body_not_compared), ("exactly-once", number_forgotten), ("no-phantom", nobody_asked),
    ("no-phantom", refused_and_there), ("integrity-chain", hole), ("integrity-chain", chain),
    ("integrity-chain", integrity_again), ("integrity-chain", epoch), ("real-time", out_of_time),
    ("session-order", session_order), ("session-order", stands_on_refused), ("conflict-justified", no_reason),
    ("conflict-justified", over_others), ("observed-durable", never_existed), ("observed-durable", lost),
    ("broadcast-stream", gap), ("broadcast-stream", told_otherwise), ("model-equality", means_something_else),
    ("model-equality", touched_more), ("model-equality", line_lost), ("model-equality", state_lost),
    ("durable", given_up), ("durable", edit_undone), ("exactly-once", said_again), ("model-equality", backup_differs),
    ("read-your-writes", backup_is_old), ("backends", store_behind), ("backends", store_differs),
    ("read-your-writes", read_before),
]


def test_a_sound_story_keeps_every_promise() -> None:
    """[D1] [O2] [V1]: and the search without seqs finds an order for it."""
    story = Story()
    assert verify(story.notes(), story.evidence) == []
    assert second_opinion(story.notes(), story.evidence) == []


@pytest.mark.parametrize(("invariant", "lie"), LIES, ids=lambda part: getattr(part, "__name__", part))
def test_each_invariant_finds_what_it_is_for(invariant: str, lie: Callable[[Story], None]) -> None:
    story = Story()
    lie(story)
    assert invariant in story.broken()


def test_every_invariant_has_a_lie_that_it_finds() -> None:
    assert {invariant for invariant, _lie in LIES} == set(INVARIANTS)


@pytest.mark.parametrize("lie", [over_others, no_reason, read_before])
def test_the_second_opinion_needs_no_seqs(lie: Callable[[Story], None]) -> None:
    """A write over another, a conflict for nothing and a read of the past are in no order at all."""
    story = Story()
    lie(story)
    [problem] = second_opinion(story.notes(), story.evidence)
    assert "no order of the ops explains" in problem
