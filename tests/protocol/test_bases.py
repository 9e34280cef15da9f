"""Bases that stand for an op of one's own, across a rebase."""

from __future__ import annotations

from msgspec import Raw

from tellback_protocol.chat import Chat
from tellback_protocol.decide import Committed, Fresh, Stored, decide, install
from tellback_protocol.effects import decode_commit
from tellback_protocol.fields import OpBase
from tellback_protocol.frames import Limits
from tellback_protocol.ids import Version
from tellback_protocol.requests import Append, Patch, Write
from tellback_protocol.stream import Stream

MINE, THEIRS = "session-mine-0001", "session-theirs-01"


def integrity(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012d}"


def stream() -> Stream:
    return Stream("user", "group:x", "chat", Chat(Version(1, 1, integrity(1)), b"{}", {"X": b'{"id":"X","n":1}'}))


def ask(chat: Stream, session: str, request: Write, number: int) -> Committed | Stored:
    decision = decide(chat, request, session, Fresh(integrity(number), number, 0), Limits())
    assert isinstance(decision, Committed | Stored)
    assert isinstance(request.op, int)
    install(chat, session, request.op, decision, 0)
    return decision


def set_n(op: int, base: str | OpBase) -> Patch:
    return Patch("group:x", Raw(b'[{"op":"replace","path":"/n","value":2}]'), "X", op=op, base=base)


def test_b6_an_op_that_was_rebased_vouches_for_its_own_base_so_that_no_update_is_lost() -> None:
    chat = stream()
    ask(chat, THEIRS, set_n(1, integrity(1)), 2)
    append = Append("group:x", [Raw(b'{"mes":"hi"}')], op=1, base=integrity(1), on_conflict="rebase")
    rebased = ask(chat, MINE, append, 3)
    assert isinstance(rebased, Committed)
    assert b'"rebased":true' in rebased.outcome.body

    second = ask(chat, MINE, set_n(2, OpBase(1)), 4)

    assert isinstance(second, Stored)
    assert second.outcome.kind == "conflict"


def test_b6_the_same_holds_after_a_restart() -> None:
    chat, again = stream(), stream()
    first = ask(chat, THEIRS, set_n(1, integrity(1)), 2)
    append = Append("group:x", [Raw(b'{"mes":"hi"}')], op=1, base=integrity(1), on_conflict="rebase")
    second = ask(chat, MINE, append, 3)
    assert isinstance(first, Committed)
    assert isinstance(second, Committed)
    for decision in (first, second):
        again.fold(decode_commit(decision.record))

    assert again.session(MINE).outcome(1) == second.outcome
    third = ask(again, MINE, set_n(2, OpBase(1)), 4)
    assert third.outcome.kind == "conflict"


def test_b6_an_op_on_a_base_that_held_vouches_for_its_version() -> None:
    chat = stream()
    ask(chat, MINE, Append("group:x", [Raw(b'{"mes":"hi"}')], op=1, base=integrity(1), on_conflict="rebase"), 2)

    assert isinstance(ask(chat, MINE, set_n(2, OpBase(1)), 3), Committed)


def test_b6_what_the_session_did_itself_up_to_that_op_does_not_count_as_missed() -> None:
    chat = stream()
    ask(chat, THEIRS, Append("group:x", [Raw(b'{"mes":"theirs"}')], op=1, base="*"), 2)
    first = Patch("group:x", Raw(b'[{"op":"replace","path":"/n","value":2}]'), "X", op=1, base=integrity(1))
    first.on_conflict = "rebase"
    assert b'"rebased":true' in ask(chat, MINE, first, 3).outcome.body
    second = Patch("group:x", Raw(b'[{"op":"replace","path":"/n","value":3}]'), "X", op=2, base=OpBase(1))
    second.on_conflict = "rebase"
    assert isinstance(ask(chat, MINE, second, 4), Committed)

    # Op 3 was made before op 2 was thought of: what op 2 did to the same message is news to it.
    third = Patch("group:x", Raw(b'[{"op":"replace","path":"/n","value":9}]'), "X", op=3, base=OpBase(1))
    third.on_conflict = "rebase"
    assert isinstance(ask(chat, MINE, third, 5), Stored)
