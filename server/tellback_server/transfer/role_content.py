"""Role/content: messages as model servers take them, to and from the messages of a chat's file. Pure.

    {"role": "user", "content": "hi"}                                   one message a line: one chat
    {"messages": [{"role": ..., "content": ...}, ...], ...}             one conversation a line: many chats
    [ ... ]                                                              a JSON file: messages, or conversations

Rules of this module:
- A message gets SillyTavern's fields (`name`, `is_user`, `is_system`, `mes`), so that every program shows it, and keeps
  all others; a `content` that is plain text becomes `mes`, any other stays beside it.
- Back again, `mes` counts where it says something else than `content`: it was edited.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

import msgspec

from tellback_protocol.ids import message_id_problem
from tellback_protocol.moments import utc_text
from tellback_protocol.values import dumps, loads
from tellback_server.store.chat_summary import message_text
from tellback_server.store.jsonl import line_object, new_header
from tellback_server.transfer.anomalies import Notes
from tellback_server.transfer.dates import moment_ms

__all__ = [
    "Conversation", "conversations_in", "conversations_of", "from_role_content", "read_message", "to_role_content",
]

_BOM: Final = b"\xef\xbb\xbf"
_DATES: Final = ("send_date", "timestamp", "created_at", "create_time", "created", "date")
_USER: Final = frozenset(("user", "human", "you"))
_SYSTEM: Final = frozenset(("system", "developer"))
_NAMES: Final = {"assistant": "Assistant", "user": "User", "system": "System", "developer": "System", "tool": "Tool"}
_OURS: Final = frozenset((
    "name", "is_user", "is_system", "is_name", "send_date", "mes", "extra", "swipes", "swipe_id", "swipe_info",
    "gen_started", "gen_finished", "force_avatar", "original_avatar", "is_group", "title", "role", "content",
))
"""Fields of a chat's message that a role/content message has no place for."""


class Conversation(msgspec.Struct):
    """One chat of a file."""

    line: int
    """Where it stands in the file, from 1; 0 when it is the whole file."""
    title: str
    """What it says that it is called; empty when it says nothing."""
    fields: dict[str, Any]
    """What stands beside the messages."""
    lines: list[bytes]
    """The messages, as lines of a chat's file; lines that could not be read as they stood."""
    messages: int


def conversations_of(data: bytes, is_document: bool, notes: Notes) -> list[Conversation]:
    """The chats of a file. `is_document`: it is one JSON value and not one a line, if it can be read so."""
    if is_document:
        try:
            return _of_document(loads(data.removeprefix(_BOM)), notes)
        except (ValueError, RecursionError):
            pass  # Many a file with the ending of JSON has a value a line.
    return list(conversations_in(data.split(b"\n"), notes))


def conversations_in(lines: Iterable[bytes], notes: Notes) -> Iterator[Conversation]:
    """The chats of a file of lines, as they come; that of single messages is the last. Memory: one of them."""
    is_any = False
    alone = Conversation(0, "", {}, [], 0)
    for number, raw in enumerate(lines, 1):
        line = (raw.removeprefix(_BOM) if number == 1 else raw).removesuffix(b"\r")
        if not line.strip():
            continue
        value, problem = line_object(line)
        if value is None:
            code = "line-not-object" if problem == "not a JSON object" else "line-not-json"
            notes.add(code, "kept as it is; the chat is read-only until `tellback repair`", detail=problem, line=number)
            alone.lines.append(line)
        elif isinstance(value.get("messages"), list):
            is_any = True
            yield _conversation(value, number, notes)
        elif not alone.lines and _is_heading(value):
            alone.fields = value
            alone.title = _title(value)
        else:
            _take(alone, value, line, number, notes)
    if alone.lines or not is_any:
        yield alone


def _of_document(value: Any, notes: Notes) -> list[Conversation]:
    if isinstance(value, dict):
        return [_conversation(value, 0, notes)]
    if not isinstance(value, list):
        raise ValueError("neither messages nor conversations")
    if any(isinstance(one, dict) and isinstance(one.get("messages"), list) for one in value):
        return [
            _conversation(one if isinstance(one, dict) else {"messages": [one]}, number, notes)
            for number, one in enumerate(value, 1)
        ]
    return [_conversation({"messages": value}, 0, notes)]


def _conversation(value: dict[str, Any], line: int, notes: Notes) -> Conversation:
    messages = value.get("messages")
    fields = {key: one for key, one in value.items() if key != "messages"}
    found = Conversation(line, _title(value), fields, [], 0)
    if not isinstance(messages, list):
        raise ValueError("no list of messages")
    for message in messages:
        if isinstance(message, dict):
            _take(found, message, b"", line, notes)
        else:
            notes.add("line-not-object", "kept as the text of a message", line=line)
            _take(found, {"content": message if isinstance(message, str) else dumps(message).decode()}, b"", 0, notes)
    if not found.lines:
        notes.add("conversation-empty", "imported as a chat without messages", line=line)
    return found


def _take(into: Conversation, message: dict[str, Any], line: bytes, number: int, notes: Notes) -> None:
    into.messages += 1
    if "mes" in message:
        # A line of SillyTavern's shape keeps its bytes.
        into.lines.append(line or dumps(message))
        return
    if "role" not in message and "content" not in message:
        notes.add("line-not-message", "kept as a message without a text", line=number)
    try:
        into.lines.append(dumps(read_message(message, notes, number)))
    except RecursionError:
        # What is nested as deeply as it can be read cannot be written anew.
        if line:
            into.lines.append(line)
            return
        raise


def _is_heading(value: dict[str, Any]) -> bool:
    return not {"role", "content", "mes", "name"} & value.keys()


def _title(value: dict[str, Any]) -> str:
    for key in ("title", "name", "conversation_id", "id"):
        title = value.get(key)
        if isinstance(title, str) and title.strip():
            return title.strip()
    return ""


def read_message(message: dict[str, Any], notes: Notes, line: int = 0) -> dict[str, Any]:
    """A role/content message as a message of a chat."""
    role = message.get("role")
    role = role if isinstance(role, str) else ""
    rest = dict(message)
    text = message_text(message)
    has_name = "name" in rest
    name = rest.pop("name", None)
    out: dict[str, Any] = {}
    if "id" in rest:
        out["id"] = rest.pop("id")
        if message_id_problem(out["id"]) is not None:
            notes.add("message-id-unusable", "kept; the message gets an id of its own", line=line)
    out["name"] = name if isinstance(name, str) and name else _name_of(role)
    out["is_user"] = role.lower() in _USER
    out["is_system"] = role.lower() in _SYSTEM
    when = next((rest[key] for key in _DATES if rest.get(key) not in (None, "")), None)
    if when is not None and "send_date" not in rest:
        when_ms = moment_ms(when)
        if when_ms is None:
            notes.add("date-unreadable", "kept in its field; the message has no date", detail=str(when)[:40], line=line)
        else:
            out["send_date"] = utc_text(when_ms)
    out["mes"] = text
    if has_name and not (isinstance(name, str) and name):
        rest["original_name"] = name
    elif has_name and name == _name_of(role):
        # So that the name that was told comes back, and the one that was made up does not.
        rest["has_name"] = True
    if isinstance(rest.get("content"), str):
        del rest["content"]
    return {**out, **rest}


def _name_of(role: str) -> str:
    """Who speaks, when a message tells no name."""
    return _NAMES.get(role.lower(), role or "Assistant")


def from_role_content(chat: Conversation, chat_name: str, when_ms: int) -> bytes:
    """The chat's file."""
    metadata: dict[str, Any] = {}
    fields = dict(chat.fields)
    stored = fields.pop("chat_metadata", None)
    if isinstance(stored, dict):
        metadata.update(stored)
    elif stored is not None:
        fields["chat_metadata"] = stored
    if fields:
        metadata["imported"] = fields
    created = moment_ms(next((fields[key] for key in _DATES if fields.get(key) not in (None, "")), None))
    header = loads(new_header(dumps(metadata), chat_name, when_ms if created is None else created))
    # The id that a chat has here is given here.
    del header["chat_id"]
    return b"\n".join([dumps(header), *chat.lines])


def to_role_content(message: dict[str, Any]) -> dict[str, Any]:
    """A chat's message as a role/content message."""
    role = message.get("role")
    if not isinstance(role, str) or not role:
        is_system = message.get("is_system") is True
        role = "user" if message.get("is_user") is True else "system" if is_system else "assistant"
    text = message_text(message)
    content = message.get("content")
    if "mes" not in message or ("content" in message and message_text({"content": content}) == text):
        said = content if "content" in message else text
    else:
        said = text
    out: dict[str, Any] = {"role": role, "content": said}
    name = message.get("name")
    if "original_name" in message:
        out["name"] = message["original_name"]
    elif isinstance(name, str) and name and (name != _name_of(role) or message.get("has_name") is True):
        out["name"] = name
    if isinstance(message.get("id"), str):
        out["id"] = message["id"]
    if "send_date" in message and not any(key in message for key in _DATES[1:]):
        when_ms = moment_ms(message["send_date"])
        out["timestamp"] = message["send_date"] if when_ms is None else utc_text(when_ms)
    out.update({key: value for key, value in message.items()
                if key not in _OURS and key not in ("id", "original_name", "has_name")})
    return out
