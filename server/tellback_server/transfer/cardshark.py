"""CardShark: its chat files, its map of folders and its ids, to and from those of a data folder. Pure.

    {"user_name", "character_name", "character_id", "create_date", "timestamp", "version", "chat_metadata": {...}}
    {"metadata": {...}, "version", "chat_id", "timestamp"}                        later files
    {"name", "is_user", "mes", "send_date", "extra": {"id"}, "variations", "currentVariation"}

Rules of this module:
- A line in which nothing has to change keeps its bytes; one that cannot be read stays where it is.
- `variations` and `currentVariation` become `swipes` and `swipe_id`, an `extra.id` the id of the message; everything
  else stays, `character_id` and `chat_metadata.chat_id` too.
- Dates stay as they are; the header's `timestamp` is theirs in milliseconds.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any, Final

import msgspec

from tellback_protocol.ids import derived_uuid, message_id_problem
from tellback_protocol.moments import utc_text
from tellback_protocol.values import dumps, equal, loads
from tellback_server.checks.broken import cause_of
from tellback_server.repairs.header import date_in_name, unnested
from tellback_server.store.jsonl import is_header, line_object, metadata_key_of
from tellback_server.transfer.anomalies import Notes
from tellback_server.transfer.dates import compact_text, moment_ms

__all__ = [
    "CardSharkChat", "CardSharkFile", "character_id_of", "clean_name", "from_cardshark", "map_of", "to_cardshark",
]

_BOM: Final = b"\xef\xbb\xbf"
_FILE: Final = re.compile(r"chat_.+_\d{8}_\d{6}")
_UNCLEAN: Final = re.compile(r'[<>:"/\\|?*\x00-\x1f]')
_OUR_NAME: Final = "tellback_chat"
"""Header field: the chat's name here, for the way back."""


class CardSharkChat(msgspec.Struct):
    """A chat's file, converted."""

    data: bytes
    messages: int
    character: str
    """As the header tells it; empty when it does not."""
    character_id: str
    chat_id: str
    name: str
    """What it was called in a data folder; empty when it never was in one."""
    created_ms: int


class CardSharkFile(msgspec.Struct):
    """A chat as CardShark keeps it."""

    data: bytes
    stem: str
    """The file's name without its ending."""
    character_id: str
    chat_id: str


def map_of(data: bytes) -> dict[str, str] | None:
    """`folders.json` or `active_chats.json`; None when it is no map of texts."""
    try:
        value = loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    return {key: one for key, one in value.items() if isinstance(one, str)}


# -- from CardShark --------------------------------------------------------------------------------------------------


def from_cardshark(data: bytes, stem: str, changed_ms: int, notes: Notes) -> CardSharkChat:
    """A chat's file as a data folder has it. Never fails."""
    found = CardSharkChat(b"", 0, "", "", "", "", changed_ms)
    lines: list[bytes] = []
    ids: set[str] = set()
    is_first = True
    whole = data.removeprefix(_BOM).split(b"\n")
    for number, raw in enumerate(whole, 1):
        end = b"\r" if raw.endswith(b"\r") else b""
        line = raw.removesuffix(b"\r")
        if not line.strip():
            lines.append(raw)
            continue
        value, problem = line_object(line)
        if value is None:
            code = "line-not-object" if problem == "not a JSON object" else "line-not-json"
            detail = cause_of(line, is_tail=number == len(whole))
            notes.add(code, "kept as it is; the chat is read-only until `tellback repair`", detail=detail, line=number)
            lines.append(raw)
        elif is_first and is_header(value, headed=True):
            lines.append(_header(value, line, stem, changed_ms, found, notes) + end)
        else:
            if is_first:
                notes.add("header-missing", "one was put in front", line=number)
                lines.append(_header({}, b"", stem, changed_ms, found, notes) + end)
            found.messages += 1
            try:
                lines.append(_message(value, line, ids, notes, number) + end)
            except RecursionError:
                # What is nested as deeply as it can be read cannot be written anew.
                lines.append(raw)
        is_first = False
    if is_first:
        lines.insert(0, _header({}, b"", stem, changed_ms, found, notes))
        lines = lines[:1]
    found.data = b"\n".join(lines)
    return found


def _header(
    value: dict[str, Any], line: bytes, stem: str, changed_ms: int, found: CardSharkChat, notes: Notes
) -> bytes:
    header = dict(value)
    key = metadata_key_of(header)
    if key is not None and isinstance(header[key].get("chat_metadata"), dict):
        header = unnested(header)
        notes.add("metadata-nested", "the inner ones were taken out", line=1)
    header.setdefault("user_name", "unused")
    header.setdefault("character_name", "unused")
    told = next((header[one] for one in ("create_date", "timestamp") if header.get(one) not in (None, "")), None)
    created_ms = moment_ms(told)
    if created_ms is None:
        if told is not None:
            notes.add("date-unreadable", "kept; the date of the name or the file counts", detail=str(told)[:40], line=1)
        created_ms = moment_ms(date_in_name(stem) or "") or changed_ms
    if header.get("create_date") in (None, ""):
        header["create_date"] = utc_text(created_ms)
    if not isinstance(header.get("timestamp"), int):
        header["timestamp"] = created_ms
    if key is None and "chat_metadata" in header:
        notes.add("metadata-not-object", "kept as original_chat_metadata", line=1)
        header["original_chat_metadata"] = header["chat_metadata"]
    if key is None:
        header["chat_metadata"] = {}
        key = "chat_metadata"
    metadata = header[key or "chat_metadata"]
    found.created_ms = created_ms
    found.name = _text(header.pop(_OUR_NAME, ""))
    character = _text(header.get("character_name"))
    found.character = "" if character == "unused" else character
    found.character_id = _text(header.get("character_id")) or _text(metadata.get("character_id"))
    found.chat_id = _text(metadata.get("chat_id")) or _text(header.get("chat_id"))
    return line if line and equal(header, value) else dumps(header)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _message(value: dict[str, Any], line: bytes, ids: set[str], notes: Notes, number: int) -> bytes:
    message = dict(value)
    if "variations" in message:
        _variations(message, notes, number)
    extra = message.get("extra")
    own = message.get("id")
    told = own if own is not None else extra.get("id") if isinstance(extra, dict) else None
    if told is not None:
        usable = isinstance(told, str) and message_id_problem(told) is None and told not in ids
        if not usable:
            done = "kept; the message gets an id of its own"
            notes.add("message-id-unusable", done, detail=str(told)[:40], line=number)
        elif own is None:
            message = {"id": told, **message}
    if isinstance(message.get("id"), str):
        ids.add(message["id"])
    for field in ("send_date", "timestamp"):
        if message.get(field) not in (None, "") and moment_ms(message[field]) is None:
            notes.add("date-unreadable", "kept as it is", detail=str(message[field])[:40], line=number)
    if "send_date" not in message and "mes" in message and moment_ms(message.get("timestamp")) is not None:
        message["send_date"] = utc_text(moment_ms(message["timestamp"]) or 0)
    return line if equal(message, value) and list(message) == list(value) else dumps(message)


def _variations(message: dict[str, Any], notes: Notes, number: int) -> None:
    variations, shown = message["variations"], message.get("currentVariation")
    if not isinstance(variations, list):
        return
    if not variations and "swipes" not in message:
        return
    swipes = message.get("swipes")
    if isinstance(swipes, list) and not equal(swipes, variations):
        notes.add("variations-differ", "both were kept; the swipes count", line=number)
        return
    del message["variations"]
    message.pop("currentVariation", None)
    message["swipes"] = variations
    if isinstance(shown, int) and not isinstance(shown, bool):
        message.setdefault("swipe_id", shown)
    else:
        text = message.get("mes")
        message.setdefault("swipe_id", variations.index(text) if text in variations else 0)


# -- to CardShark ----------------------------------------------------------------------------------------------------


def to_cardshark(data: bytes, character: str, name: str, character_id: str, changed_ms: int) -> CardSharkFile:
    """A character's chat as CardShark keeps it."""
    lines = data.removeprefix(_BOM).split(b"\n")
    found = CardSharkFile(b"", "", character_id, "")
    out: list[bytes] = []
    is_first = True
    for raw in lines:
        end = b"\r" if raw.endswith(b"\r") else b""
        line = raw.removesuffix(b"\r")
        value, _problem = line_object(line) if line.strip() else (None, "")
        if value is None:
            out.append(raw)
            is_first = is_first and not line.strip()
        elif is_first and is_header(value, headed=True):
            is_first = False
            out.append(_cardshark_header(value, line, character, name, changed_ms, found) + end)
        else:
            if is_first:
                is_first = False
                out.append(_cardshark_header({}, b"", character, name, changed_ms, found))
            try:
                out.append(_cardshark_message(value, line) + end)
            except RecursionError:
                out.append(raw)
    if is_first:
        out = [_cardshark_header({}, b"", character, name, changed_ms, found)]
    found.data = b"\n".join(out)
    return found


def _cardshark_header(
    value: dict[str, Any], line: bytes, character: str, name: str, changed_ms: int, found: CardSharkFile
) -> bytes:
    header = dict(value)
    if header.get("user_name") in (None, "", "unused"):
        header["user_name"] = "User"
    if header.get("character_name") in (None, "", "unused"):
        header["character_name"] = character
    told = next((header[one] for one in ("create_date", "timestamp") if header.get(one) not in (None, "")), None)
    created_ms = moment_ms(told) or moment_ms(date_in_name(name) or "") or changed_ms
    key = metadata_key_of(header) or "chat_metadata"
    metadata = dict(header[key]) if isinstance(header.get(key), dict) else {}
    header.setdefault("create_date", utc_text(created_ms))
    if not isinstance(header.get("timestamp"), int):
        header["timestamp"] = created_ms
    header.setdefault("version", "1.0")
    found.character_id = _text(header.get("character_id")) or found.character_id
    header.setdefault("character_id", found.character_id)
    compact = compact_text(created_ms)
    unique = derived_uuid(character, name)[:8]
    metadata.setdefault("chat_id", f"{clean_name(character)}_{compact.replace('_', '')}_{unique}")
    metadata.setdefault("title", name)
    found.chat_id = _text(metadata["chat_id"])
    header[key] = metadata
    if _FILE.fullmatch(name):
        found.stem = name
    else:
        found.stem = f"chat_{clean_name(character)}_{compact}"
        header[_OUR_NAME] = name
    return line if line and equal(header, value) else dumps(header)


def _cardshark_message(value: dict[str, Any], line: bytes) -> bytes:
    own, extra = value.get("id"), value.get("extra")
    if isinstance(own, str) and isinstance(extra, dict) and "id" not in extra:
        return dumps({**value, "extra": {**extra, "id": own}})
    return line


def clean_name(name: str) -> str:
    """A name as CardShark writes it into the names of folders and files."""
    return _UNCLEAN.sub("_", name).strip(". ") or "_"


def character_id_of(name: str, card: dict[str, Any] | None) -> str:
    """The id that CardShark has for a character: from its card, else from its name and text."""
    card = card or {}
    inner = card.get("data") if isinstance(card.get("data"), dict) else {}
    assert isinstance(inner, dict), "just looked"
    extensions = inner.get("extensions")
    for value in (
        card.get("character_uuid"), card.get("uuid"), card.get("char_id"),
        extensions.get("uuid") if isinstance(extensions, dict) else None,
    ):
        if isinstance(value, str) and value:
            return value
    texts = [_text(inner.get(key)) or _text(card.get(key)) for key in ("description", "personality")]
    told = "|".join([name, *(text[:100] for text in texts)])
    return f"{name}-{hashlib.md5(told.encode('utf-8', 'surrogatepass'), usedforsecurity=False).hexdigest()[:8]}"
