"""Role/content messages: their shapes, and the way back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tellback_server.transfer.anomalies import Notes
from tellback_server.transfer.role_content import conversations_of, from_role_content, read_message, to_role_content


def lines(*values: Any) -> bytes:
    return b"\n".join(value if isinstance(value, bytes) else json.dumps(value).encode() for value in values)


def test_a_message_a_line_is_one_chat() -> None:
    notes = Notes("talk.jsonl")
    data = lines({"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi", "timestamp": 1736082309})
    [chat] = conversations_of(b"\xef\xbb\xbf" + data + b"\r\n\r\n", False, notes)
    assert [json.loads(line) for line in chat.lines] == [
        {"name": "System", "is_user": False, "is_system": True, "mes": "Be brief.", "role": "system"},
        {"name": "User", "is_user": True, "is_system": False, "send_date": "2025-01-05T13:05:09.000Z", "mes": "hi",
         "role": "user", "timestamp": 1736082309},
    ]
    assert notes.take() == []
    header = json.loads(from_role_content(chat, "talk", 5).split(b"\n")[0])
    assert header["chat_metadata"] == {}


def test_a_conversation_a_line_is_a_chat_each_and_its_fields_stay() -> None:
    notes = Notes("all.jsonl")
    data = lines(
        {"title": "One", "model": "m", "messages": [{"role": "user", "content": "a"}]},
        {"id": "c-2", "messages": [{"role": "assistant", "content": [{"type": "text", "text": "b"}]}]},
        {"messages": []},
    )
    found = conversations_of(data, False, notes)
    assert [(one.line, one.title, one.messages) for one in found] == [(1, "One", 1), (2, "c-2", 1), (3, "", 0)]
    assert json.loads(found[1].lines[0])["mes"] == "b"
    assert json.loads(found[1].lines[0])["content"] == [{"type": "text", "text": "b"}]
    header = json.loads(from_role_content(found[0], "One", 5).split(b"\n")[0])
    assert header["chat_metadata"]["imported"] == {"title": "One", "model": "m"}
    assert [one.code for one in notes.take()] == ["conversation-empty"]


@pytest.mark.parametrize("value", [
    [{"role": "user", "content": "a"}],
    {"messages": [{"role": "user", "content": "a"}]},
    [{"messages": [{"role": "user", "content": "a"}]}],
])
def test_a_json_file_holds_messages_or_conversations(value: Any) -> None:
    [chat] = conversations_of(json.dumps(value, indent=2).encode(), True, Notes("a.json"))
    assert json.loads(chat.lines[0])["mes"] == "a"


def test_lines_that_cannot_be_read_stay_where_they_are() -> None:
    notes = Notes("talk.jsonl")
    [chat] = conversations_of(lines({"role": "user", "content": "a"}, b'{"role": "us', b"[1]", {"x": 1}), False, notes)
    assert chat.lines[1:3] == [b'{"role": "us', b"[1]"]
    assert [(one.code, one.line, one.severity) for one in notes.take()] == [
        ("line-not-json", 2, "damage"), ("line-not-object", 3, "damage"), ("line-not-message", 4, "warning"),
    ]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=5,
)
MESSAGES = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system", "tool", "developer", "function", "weird"]),
     "content": st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
     | st.none() | st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": st.text(max_size=5)}), max_size=2)},
    optional={
        "name": st.sampled_from(["Bob", "User", "Assistant", "", "佐藤"]) | st.none() | st.integers(),
        "id": st.sampled_from(["m1", "call_x"]), "timestamp": st.integers(1, 2_000_000_000) | st.just("soon"),
        "tool_calls": JSON, "tool_call_id": st.just("x"), "refusal": st.none(), "original": JSON,
    },
)


@given(MESSAGES)
def test_a_message_comes_back_as_it_was(message: dict[str, Any]) -> None:
    """And again from what came back."""
    ours = read_message(message, Notes("x"))
    assert isinstance(ours["mes"], str)
    back = to_role_content(ours)
    assert back == message
    assert read_message(back, Notes("x")) == ours


def test_an_edited_text_counts() -> None:
    message = {"role": "assistant", "content": [{"type": "text", "text": "old"}]}
    ours = read_message(message, Notes("x"))
    ours["mes"] = "new"
    assert to_role_content(ours) == {"role": "assistant", "content": "new"}
    shown = {"name": "Pip", "is_user": False, "mes": "x", "extra": {}, "swipes": ["x", "y"]}
    assert to_role_content({**shown, "send_date": "January 5, 2025 1:05pm"}) == {
        "role": "assistant", "content": "x", "name": "Pip", "timestamp": "2025-01-05T13:05:00.000Z",
    }
