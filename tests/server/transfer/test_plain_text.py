"""Transcripts: what people have, and the way back of our own."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tellback_server.transfer.anomalies import Notes
from tellback_server.transfer.plain_text import from_text, to_text

WHEN = 1_736_082_309_123


def read(text: str | bytes, **options: Any) -> tuple[list[dict[str, Any]], list[str]]:
    notes = Notes("talk.txt")
    data = text.encode() if isinstance(text, str) else text
    lines = from_text(data, WHEN, notes, **options).data.split(b"\n")
    header = json.loads(lines[0])
    assert header["chat_metadata"] == {}
    assert "chat_id" not in header
    return [json.loads(line) for line in lines[1:]], [note.code for note in notes.take()]


def said(messages: list[dict[str, Any]]) -> list[tuple[str, bool, str]]:
    return [(one["name"], one["is_user"], one["mes"]) for one in messages]


def test_names_begin_messages_and_other_lines_belong_to_them() -> None:
    text = "Alice: Good morning.\nIt is raining.\n\nhttps://a.example\n\nYou: Is it?\n\n\nAlice:\nYes.\n"
    messages, codes = read(text)
    assert said(messages) == [
        ("Alice", False, "Good morning.\nIt is raining.\n\nhttps://a.example"), ("You", True, "Is it?"),
        ("Alice", False, "\nYes."),
    ]
    assert codes == []


def test_who_is_told_to_be_the_user_and_who_speaks_at_all() -> None:
    text = "Bob: hi\nNote: this is no speaker\nAlice: well"
    messages, _ = read(text, me=("bob",), speakers=("Bob", "Alice"))
    assert said(messages) == [("Bob", True, "hi\nNote: this is no speaker"), ("Alice", False, "well")]
    assert len(read(text)[0]) == 3


def test_a_moment_in_brackets_is_the_date_of_the_message() -> None:
    messages, _ = read("[2025-01-05 13:05] Alice: hi\n[aside] Bob: hm")
    assert messages[0]["send_date"] == "2025-01-05T13:05:00.000Z"
    assert said(messages) == [("Alice", False, "hi\n[aside] Bob: hm")]


def test_text_without_a_speaker_marks_and_line_ends_are_kept_and_told() -> None:
    messages, codes = read("\ufeffOnce upon a time\r\nAlice: hi\r\n")
    assert said(messages) == [("Narrator", False, "Once upon a time"), ("Alice", False, "hi")]
    assert codes == ["text-without-speaker"]
    assert said(read("Alice: ü".encode("utf-16"))[0]) == [("Alice", False, "ü")]
    messages, codes = read(b"Alice: caf\xe9")
    assert said(messages) == [("Alice", False, "caf\ufffd")]
    assert codes == ["text-not-utf8"]
    assert read("") == ([], ["text-empty"])


NAMES = st.text(st.characters(exclude_characters=":[\n\r", exclude_categories=["Cs"]), min_size=1, max_size=20).map(
    lambda name: " ".join(name.split())
).filter(lambda name: name and not name[0].isspace())
LINES = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    st.sampled_from(["", "    ", "        ", "     x", "Note: x", "    Note: x", "a:", "[2025-01-05] A: b", "\r",
                     "  "]),
)
TEXTS = st.lists(LINES, max_size=5).map("\n".join)


@given(st.lists(st.tuples(NAMES, TEXTS), min_size=1, max_size=5))
def test_what_was_written_is_read_as_it_was(pairs: list[tuple[str, str]]) -> None:
    """Any text, blank lines at its end, lines that look like a speaker, and spaces before lines."""
    messages = [{"name": name, "is_user": False, "mes": text} for name, text in pairs]
    text = to_text(messages)
    found, _ = read(text)
    assert [(one["name"], one["mes"]) for one in found] == pairs
    assert to_text(found) == text


@given(st.binary(max_size=200))
def test_any_bytes_become_a_chat_and_no_letter_of_them_is_lost(data: bytes) -> None:
    messages, _codes = read(data)
    kept = "".join(one["name"] + one["mes"] for one in messages)
    if not data.startswith((b"\xff\xfe", b"\xfe\xff")):
        letters = [one for one in data.decode("utf-8", "replace") if one.isalpha() and one != "\ufffd"]
        assert set(letters) <= set(kept + "Narrator")
