"""Adoption: who wins after an outside edit, as a pure decision (STORAGE "User files" F7)."""

from __future__ import annotations

import zlib

import pytest
from msgspec import Raw

from tellback_protocol.chat import Chat
from tellback_protocol.effects import (
    AppendEffect,
    Commit,
    DeleteEffect,
    Effect,
    InsertEffect,
    MetadataEffect,
    PatchEffect,
)
from tellback_protocol.ids import Version
from tellback_protocol.values import loads
from tellback_server.adoption import decide_adoption, known_from_log

VERSION = Version(1, 3, "c60e05dd-48f2-4b52-8682-acc155cd5312")


def line(message_id: str, text: str) -> bytes:
    return b'{"id":"%b","mes":"%b"}' % (message_id.encode(), text.encode())


def chat(metadata: bytes = b"{}", **texts: str) -> Chat:
    return Chat(VERSION, metadata, {key: line(key, text) for key, text in texts.items()})


def commit(seq: int, *effects: Effect, **was: bytes) -> Commit:
    return Commit(
        Version(1, seq, "i"), "p", list(effects), was={key: zlib.crc32(value) for key, value in was.items()}
    )


def appended(message_id: str, text: str) -> AppendEffect:
    return AppendEffect([Raw(line(message_id, text))])


def patched(message_id: str, text: str) -> PatchEffect:
    return PatchEffect(message_id, Raw(b'[{"op":"replace","path":"/mes","value":"%b"}]' % text.encode()))


def texts(found: Chat) -> dict[str, str]:
    return {value["id"]: value["mes"] for value in found.values()}


def test_appended_messages_always_apply_and_only_once() -> None:
    theirs = chat(a="a", x="theirs", n="already there")
    pending = [commit(4, AppendEffect([Raw(line("n", "ours")), Raw(line("m", "ours"))]))]

    decision = decide_adoption(theirs, chat(a="a"), pending, b"{}", is_damaged=False)

    assert texts(decision.chat) == {"a": "a", "x": "theirs", "n": "already there", "m": "ours"}
    assert decision.refused == []


@pytest.mark.parametrize(
    ("effect", "applies", "result"),
    [
        (patched("a", "ours"), {"a": "ours", "b": "b"}, {"a": "theirs", "b": "b"}),
        (DeleteEffect(["a"]), {"b": "b"}, {"a": "theirs", "b": "b"}),
    ],
    ids=["patch", "delete"],
)
def test_a_change_applies_only_to_the_bytes_it_was_made_from(
    effect: Effect, applies: dict[str, str], result: dict[str, str]
) -> None:
    pending = [commit(4, effect, a=line("a", "a"))]

    same = decide_adoption(chat(a="a", b="b"), chat(b="b"), pending, b"{}", is_damaged=False)
    other = decide_adoption(chat(a="theirs", b="b"), chat(b="b"), pending, b"{}", is_damaged=False)

    assert (texts(same.chat), same.refused) == (applies, [])
    assert (texts(other.chat), other.refused) == (result, [4])


def test_a_line_that_was_only_spelled_anew_is_the_same_one() -> None:
    spelled = Chat(VERSION, b"{}", {"a": b'{ "id": "a", "mes": "a" }'})
    pending = [commit(4, patched("a", "ours"), a=line("a", "a"))]

    assert decide_adoption(spelled, spelled, pending, b"{}", is_damaged=False).refused == []


def test_a_chain_of_changes_applies_in_order() -> None:
    """The second patch was made from the first one's result, and a patch of our own append needs nothing of theirs."""
    pending = [
        commit(4, patched("a", "one"), a=line("a", "a")),
        commit(5, patched("a", "two"), a=line("a", "one")),
        commit(6, appended("n", "new")),
        commit(7, patched("n", "newer"), n=line("n", "new")),
        commit(8, appended("o", "o"), patched("o", "in one batch"), o=line("o", "o")),
    ]

    decision = decide_adoption(chat(a="a"), chat(a="two"), pending, b"{}", is_damaged=False)

    assert texts(decision.chat) == {"a": "two", "n": "newer", "o": "in one batch"}
    assert decision.refused == []
    assert decision.was == {"a": zlib.crc32(line("a", "a"))}


def test_the_effects_applied_again_to_the_file_give_the_same_chat() -> None:
    """A restart behind the ADOPT record does exactly that."""
    theirs = chat(a="a", b="b", n="taken")
    pending = [
        commit(4, patched("a", "one"), a=line("a", "a")),
        commit(5, AppendEffect([Raw(line("n", "ours")), Raw(line("m", "m"))])),
        commit(6, InsertEffect("a", [Raw(line("i", "i"))])),
        commit(7, DeleteEffect(["b", "gone"]), b=line("b", "b")),
        commit(8, patched("missing", "x"), missing=b"{}"),
        commit(9, MetadataEffect(Raw(b'[{"op":"add","path":"/k","value":1}]'))),
    ]
    decision = decide_adoption(theirs, theirs, pending, b"{}", is_damaged=False)

    again = theirs.copy()
    for effect in decision.effects:
        again.apply(effect)

    assert (again.messages, again.metadata) == (decision.chat.messages, decision.chat.metadata)
    assert decision.refused == [8]


def changed(path: str, value: bytes) -> MetadataEffect:
    return MetadataEffect(Raw(b'[{"op":"add","path":"%b","value":%b}]' % (path.encode(), value)))


@pytest.mark.parametrize(
    ("before", "theirs", "path", "applies"),
    [
        (b'{"k":1}', b'{ "k": 1 }', "/mine", True),
        # SillyTavern's first save of a chat that has no `integrity` makes one, and its replies leave notes.
        (b"{}", b'{"integrity":"39edbc3e-69fd-4020-a17d-69282e45d450"}', "/note_prompt", True),
        (b'{"lastInContextMessageId":3}', b'{"lastInContextMessageId":7,"tainted":true}', "/note_prompt", True),
        (b'{"v":{"a":1}}', b'{"v":{"a":1,"b":2}}', "/v/a", True),
        (b'{"v":{"a":1}}', b'{"v":{"a":2}}', "/v/a", False),
        (b'{"v":{"a":1}}', b"{}", "/v/a", False),
        (b"{}", b'{"mine":2}', "/mine", False),
        # An index means the element that it meant only in the same list.
        (b'{"l":[1,2]}', b'{"l":[1,2],"k":1}', "/l/1", True),
        (b'{"l":[1,2]}', b'{"l":[0,1,2]}', "/l/1", False),
        (b'{"k":1}', b'{"k":2}', "", False),
    ],
)
def test_metadata_applies_where_theirs_equals_ours_at_the_watermark(
    before: bytes | None, theirs: bytes, path: str, applies: bool
) -> None:
    file = chat(metadata=theirs)

    decision = decide_adoption(file, file, [commit(4, changed(path, b'"of us"'))], before, is_damaged=False)

    assert (decision.refused == []) == applies
    assert (b'"of us"' in decision.chat.metadata) == applies


@pytest.mark.parametrize(
    ("theirs", "path", "back", "applies"),
    [
        (b'{"integrity":"new"}', "/mine", b'{"op":"remove","path":"/mine"}', True),
        (b'{"k":1,"integrity":"new"}', "/k", b'{"op":"replace","path":"/k","value":1}', True),
        (b'{"k":2}', "/k", b'{"op":"replace","path":"/k","value":1}', False),
        (b'{"k":2}', "/k", b'{"op":"remove","path":"/k"}', False),
        (b"{}", "/k", b'{"op":"replace","path":"/k","value":1}', False),
        (b'{"k":"text"}', "/k/a", b'{"op":"remove","path":"/k/a"}', False),
        (b'{"l":[1,2]}', "/l/1", b'{"op":"remove","path":"/l/1"}', False),
        (b'{"k":1}', "/mine", None, False),
    ],
)
def test_a_file_that_does_not_tell_our_metadata_is_asked_by_what_undoes_the_commit(
    theirs: bytes, path: str, back: bytes | None, applies: bool
) -> None:
    """SillyTavern writes the whole file, header first."""
    pending = commit(4, changed(path, b'"of us"'))
    pending.undo = [MetadataEffect(Raw(b"[%b]" % back))] if back is not None else []

    decision = decide_adoption(chat(metadata=theirs), chat(), [pending], None, is_damaged=False)

    assert (decision.refused == []) == applies
    assert (b'"of us"' in decision.chat.metadata) == applies


def test_a_batch_is_undone_from_its_end() -> None:
    pending = commit(4, changed("/k", b'"of us"'), changed("/n", b"2"))
    pending.undo = [
        MetadataEffect(Raw(b'[{"op":"remove","path":"/n"}]')),
        MetadataEffect(Raw(b'[{"op":"replace","path":"/k","value":1}]')),
    ]
    theirs = chat(metadata=b'{"k":1,"integrity":"new"}')

    decision = decide_adoption(theirs, chat(), [pending], None, is_damaged=False)

    assert loads(decision.chat.metadata) == {"k": "of us", "integrity": "new", "n": 2}


def test_metadata_made_from_what_was_refused_are_refused_too() -> None:
    theirs = chat(metadata=b'{"k":"theirs","integrity":"new"}')
    pending = [
        commit(4, changed("/k", b'{"a":1}')), commit(5, changed("/k/b", b"2")),
        commit(6, changed("/own", b"1"), changed("/own", b"2")), commit(7, changed("/own", b"3")),
    ]

    decision = decide_adoption(theirs, theirs, pending, b'{"k":"ours"}', is_damaged=False)

    assert decision.refused == [4, 5]
    assert loads(decision.chat.metadata) == {"k": "theirs", "integrity": "new", "own": 3}


def test_a_damaged_file_takes_nothing_on_top() -> None:
    decision = decide_adoption(chat(), chat(), [commit(4, appended("n", "n"))], b"{}", is_damaged=True)
    assert decision.refused == [4]
    assert decision.effects == []


@pytest.mark.parametrize(
    ("theirs", "lost"),
    [
        (chat(a="a", b="b"), False),
        (chat(a="a"), True),
        (chat(a="a", b="other"), True),
        (chat(a="a", b="b", c="c"), False),
    ],
)
def test_what_is_missing_or_changed_of_ours_is_lost(theirs: Chat, lost: bool) -> None:
    """[F9]"""
    assert decide_adoption(theirs, chat(a="a", b="b"), [], b"{}", is_damaged=False).lost == lost


def test_the_log_alone_tells_what_we_had() -> None:
    """A restart that finds the file replaced still knows every message that a commit carried."""
    theirs = chat(a="a", b="went back")
    done = [
        commit(1, appended("m", "m")),
        commit(2, patched("m", "m two"), m=line("m", "m")),
        commit(3, patched("b", "ours"), b=line("b", "went back")),
        commit(4, appended("d", "d")),
        commit(5, DeleteEffect(["d"]), d=line("d", "d")),
    ]
    pending = [commit(6, appended("n", "n")), commit(7, patched("unknown", "kept"), unknown=b"{}")]

    assert texts(known_from_log(theirs, done, pending)) == {
        "a": "a", "b": "ours", "m": "m two", "n": "n", "unknown": "kept",
    }
