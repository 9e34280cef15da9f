"""CardShark's files: headers, dates, variations, ids, faults, and the way back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tellback_protocol.ids import CharacterChat
from tellback_server.store.jsonl import parse_chat
from tellback_server.transfer.anomalies import Notes
from tellback_server.transfer.cardshark import CardSharkChat, character_id_of, from_cardshark, map_of, to_cardshark
from tellback_server.transfer.exporter import text_form
from tellback_server.transfer.item import Item
from tellback_server.transfer.role_content import conversations_of, from_role_content

CHANGED = 1_736_082_309_000
STEM = "chat_Alice_20240301_101500"
HEADER = {
    "user_name": "User", "character_name": "Alice", "character_id": "Alice-0123abcd",
    "create_date": "2024-03-01T10:15:00.000Z", "timestamp": 1709288100000, "version": "1.0",
    "chat_metadata": {"chat_id": "Alice_20240301101500_0a1b2c3d", "tainted": False, "title": "Rain"},
}


def data_of(*values: Any) -> bytes:
    return b"\n".join(value if isinstance(value, bytes) else json.dumps(value).encode() for value in values)


def read(*values: Any) -> tuple[CardSharkChat, list[Any], list[tuple[str, int]]]:
    notes = Notes("x.jsonl")
    chat = from_cardshark(data_of(*values), STEM, CHANGED, notes)
    parsed = []
    for line in chat.data.split(b"\n"):
        try:
            parsed.append(json.loads(line))
        except ValueError:
            parsed.append(line)
    return chat, parsed, [(note.code, note.line) for note in notes.take()]


def test_a_whole_chat_keeps_its_bytes() -> None:
    message = {"name": "Alice", "is_user": False, "mes": "hi", "send_date": "March 1, 2024 10:15am", "extra": {}}
    chat, _, codes = read(HEADER, message)
    assert chat.data == data_of(HEADER, message)
    assert (chat.messages, chat.character, chat.character_id, chat.chat_id, codes) == (
        1, "Alice", "Alice-0123abcd", "Alice_20240301101500_0a1b2c3d", [],
    )


def test_variations_become_swipes_and_extra_id_the_id() -> None:
    _, lines, codes = read(
        HEADER, {"name": "Alice", "mes": "b", "variations": ["a", "b"], "currentVariation": 1, "extra": {"id": "m1"}},
        {"name": "Alice", "mes": "d", "variations": ["c", "d"], "extra": {"id": "m1"}},
        {"name": "Alice", "mes": "d", "variations": ["c"], "swipes": ["d"], "unknown": {"x": 1}},
    )
    assert lines[1] == {
        "id": "m1", "name": "Alice", "mes": "b", "extra": {"id": "m1"}, "swipes": ["a", "b"], "swipe_id": 1,
    }
    assert (lines[2]["swipe_id"], "id" in lines[2], lines[2]["extra"]) == (1, False, {"id": "m1"})
    assert lines[3] == {"name": "Alice", "mes": "d", "variations": ["c"], "swipes": ["d"], "unknown": {"x": 1}}
    assert codes == [("message-id-unusable", 3), ("variations-differ", 4)]


@pytest.mark.parametrize(("date", "expected"), [
    ("2024-03-01T10:15:00Z", 1709288100000), (1709288100000, 1709288100000), (1709288100.5, 1709288100500),
    ("1709288100", 1709288100000), ("March 1, 2024 10:15am", 1709288100000),
    ("2024-3-1 @10h 15m 00s 0ms", 1709288100000),
    ("20240301_101500", 1709288100000), (None, 1709288100000), ("", 1709288100000),
])
def test_a_header_date_of_any_kind_is_a_timestamp(date: object, expected: int) -> None:
    """Without one the name of the file tells it, else the file's own date."""
    header = {key: value for key, value in HEADER.items() if key not in ("timestamp", "create_date")}
    chat, lines, codes = read({**header, "create_date": date})
    assert lines[0]["timestamp"] == chat.created_ms == expected
    assert codes == []


def test_a_date_in_no_form_stays_and_is_told() -> None:
    header = {key: value for key, value in HEADER.items() if key != "timestamp"}
    _, lines, codes = read({**header, "create_date": "long ago"}, {"mes": "x", "send_date": "once"})
    assert (lines[0]["create_date"], lines[0]["timestamp"], lines[1]["send_date"]) == (
        "long ago", 1709288100000, "once",
    )
    assert codes == [("date-unreadable", 1)]


def test_metadata_inside_metadata_are_taken_out() -> None:
    nested = {**HEADER, "chat_metadata": {"chat_metadata": {"chat_metadata": {"a": 1}, "b": 2}, "c": 3}}
    _, lines, codes = read(nested)
    assert lines[0]["chat_metadata"] == {"a": 1, "b": 2, "c": 3}
    assert codes == [("metadata-nested", 1)]


def test_the_later_header_is_read_in_place_and_a_missing_one_is_made() -> None:
    later = {"metadata": {"chat_id": "x", "title": "t"}, "version": "2.0", "chat_id": "c", "timestamp": 1709288100000}
    message = {"id": "m1", "role": "user", "content": "hi", "timestamp": 1709288100000}
    chat, lines, codes = read(later, message)
    assert lines[0]["metadata"] == {"chat_id": "x", "title": "t"}
    assert lines[1] == message
    assert (chat.chat_id, codes) == ("x", [])
    chat, lines, codes = read(message)
    assert (lines[0]["chat_metadata"], lines[1], codes) == ({}, message, [("header-missing", 1)])
    assert from_cardshark(b"", STEM, CHANGED, Notes("x")).data.startswith(b'{"user_name":"unused"')


def test_lines_that_cannot_be_read_stay_where_they_are() -> None:
    head = b"\xef\xbb\xbf" + data_of(HEADER) + b"\r"
    chat, lines, codes = read(head, b'{"mes": "x"}\r', b"{torn", b"", b"[1]", b'{"mes"')
    assert chat.data.split(b"\n")[1:] == [b'{"mes": "x"}\r', b"{torn", b"", b"[1]", b'{"mes"']
    assert codes == [("line-not-json", 3), ("line-not-object", 5), ("line-not-json", 6)]
    assert lines[0]["character_name"] == "Alice"


def test_maps_and_ids_of_characters() -> None:
    assert map_of(b'{"a": "Alice", "b": 3}') == {"a": "Alice"}
    assert map_of(b"{}") == {}
    assert map_of(b"[]") is map_of(b"{torn") is None
    assert character_id_of("Alice", {"data": {"extensions": {"uuid": "u-1"}}}) == "u-1"
    assert character_id_of("Alice", {"character_uuid": "u-2", "data": 5}) == "u-2"
    plain = character_id_of("Alice", None)
    assert plain == character_id_of("Alice", {"data": {}})
    assert plain != character_id_of("Alice", {"data": {"description": "tall"}})


MESSAGES = st.fixed_dictionaries(
    {"name": st.sampled_from(["Alice", "User"]), "is_user": st.booleans(), "mes": st.text(max_size=20)},
    optional={
        "extra": st.fixed_dictionaries({}, optional={"id": st.sampled_from(["a", "b", "c"]), "api": st.just("x")}),
        "id": st.sampled_from(["a", "b", "d"]), "variations": st.lists(st.text(max_size=5), max_size=3),
        "currentVariation": st.integers(0, 3), "swipes": st.lists(st.text(max_size=5), max_size=3),
        "send_date": st.sampled_from(["2024-03-01T10:15:00Z", 1709288100000, "?", None]), "unknown": st.integers(),
    },
)


DEEP = b'{"mes":"x","variations":["x"],"deep":' + b"[" * 900 + b"]" * 900 + b"}"


@given(st.lists(st.one_of(
    st.binary(max_size=30), st.just(DEEP), st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from([
            "mes", "id", "extra", "variations", "swipes", "chat_metadata", "metadata", "create_date",
            "currentVariation", "character_name", "send_date", "timestamp", "role", "content", "messages", "name",
        ]), inner, max_size=4), max_leaves=8,
    ).map(lambda value: json.dumps(value).encode()),
), max_size=4))
def test_nothing_makes_a_converter_fail_or_loses_a_line(lines: list[bytes]) -> None:
    """Any shapes and bytes, in every format, there and back."""
    data = b"\n".join(lines)
    notes = Notes("x")
    chat = from_cardshark(data, STEM, CHANGED, notes)
    parsed = parse_chat(chat.data, headed=True)
    assert len(parsed.messages) == chat.messages
    assert to_cardshark(chat.data, "Alice", "n", "id", CHANGED).data.count(b"\n") >= chat.data.count(b"\n")
    for one in conversations_of(data, False, notes):
        from_role_content(one, "n", CHANGED)
    item = Item(
        source="x", target=CharacterChat("A", "n"), data=chat.data, mtime_ns=0, size_bytes=0, messages=chat.messages,
    )
    assert text_form(item, "openai", notes).count(b"\n") <= chat.messages
    text_form(item, "text", notes)


@given(st.lists(MESSAGES, max_size=5), st.booleans(), st.sampled_from([STEM, "My chat", "ü: ö"]))
def test_there_and_back_again_is_the_same(messages: list[dict[str, Any]], has_header: bool, name: str) -> None:
    """import, export, import: the chats are equal, and so is the second export."""
    values = [HEADER, *messages] if has_header else messages
    first = from_cardshark(data_of(*values), STEM, CHANGED, Notes("x"))
    out = to_cardshark(first.data, "Alice", name, "Alice-0123abcd", CHANGED)
    second = from_cardshark(out.data, out.stem, CHANGED, Notes("x"))
    assert (second.name or out.stem, second.character) == (name, "Alice")
    ours, back = ([json.loads(line) for line in one.data.split(b"\n")] for one in (first, second))
    assert len(ours) == len(back)
    for mine, theirs in zip(ours[1:], back[1:], strict=True):
        assert {**theirs, "extra": None} == {**mine, "extra": None}
    assert back[0]["chat_metadata"].items() >= ours[0]["chat_metadata"].items()
    again = to_cardshark(second.data, "Alice", name, "Alice-0123abcd", CHANGED)
    assert (again.data, again.stem, again.chat_id) == (out.data, out.stem, out.chat_id)
