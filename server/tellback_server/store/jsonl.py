"""Jsonl: the bytes of a chat file, read and written. Pure: no files, no clock.

Rules of this module (STORAGE "User files"):
- Only LF ends a line. A CR before it belongs to the line end; U+2028, U+2029 and U+0085 stand inside lines.
- A message keeps the bytes of its line. `render` of what `parse_chat` found gives the same bytes again (F2).
- A line without a usable or with a repeated `id` is *bare*: its id is `sha256(line)[:16]-<occurrence>`, and it is
  written into the line only where the parser would otherwise find another id there (F3).
- A line that is no JSON object is quarantined: it is damage, its bytes stay where they are (F4).
- What only breaks a limit of the wire is not damaged (F5).

Which first line is a header: an object with none of `mes`, `content`, `role`, `is_user`, `swipes`, and with one of
`chat_metadata`, `user_name`, `character_name`, `create_date`, or with an object `metadata` and no `id` (CardShark). In
a character's chat (`headed`) every object without a message's fields is the header, because SillyTavern takes it so.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any, Final

import msgspec
import orjson
from msgspec import UNSET, Raw, UnsetType

from tellback_protocol.chat import EMPTY_METADATA, with_id
from tellback_protocol.frames import Damage
from tellback_protocol.ids import derived_message_id, message_id_problem
from tellback_protocol.moments import utc_text
from tellback_protocol.values import dumps, loads, servable

__all__ = [
    "HEADER",
    "Image",
    "LineIds",
    "ParsedChat",
    "Rendered",
    "header_filled",
    "header_now",
    "image_of_header",
    "inheriting",
    "is_header",
    "line_object",
    "metadata_key_of",
    "new_header",
    "parse_chat",
    "render",
    "render_append",
    "with_metadata",
]

HEADER: Final = ""
"""Stands for the header where a message id is expected; no message has an empty id."""

_BOM: Final = b"\xef\xbb\xbf"
_MESSAGE_FIELDS: Final = frozenset(("mes", "content", "role", "is_user", "swipes"))
_HEADER_FIELDS: Final = frozenset(("chat_metadata", "user_name", "character_name", "create_date"))


class Image(msgspec.Struct, frozen=True, gc=False):
    """What a file has besides its messages: enough to write the same bytes again."""

    headed: bool
    """A character's chat: SillyTavern reads its first line as the header."""
    header: bytes | None = None
    """The header's line without its end; None when there is none."""
    metadata_key: str | None = None
    """`chat_metadata` or `metadata`: where the metadata stands in the header; None when it holds none."""
    metadata: bytes = EMPTY_METADATA
    """The metadata that the header holds, as compact JSON; without a header, what stands in for it (`inheriting`)."""
    lead: bytes = b""
    """Before the first line that is a header or message: a BOM, blank lines, quarantined lines."""
    line_end: bytes = b"\n"
    gaps: dict[str, bytes] = {}
    """Between a line and the next one, by message id (or HEADER), where it is not `line_end`."""
    last: str | None = None
    """Id of the last message (or HEADER); None when the file has neither."""
    tail: bytes = b""
    """Behind the last line: nothing, a line end, blank lines."""

    @property
    def inherited(self) -> Raw | UnsetType:
        """What stands in for the metadata of a header, for base records."""
        return UNSET if self.header is not None or self.headed else Raw(self.metadata)

    @property
    def ends_with_newline(self) -> bool:
        return self.tail.endswith(b"\n")

    @property
    def takes_appends(self) -> bool:
        """False for a file without a line: its first write decides whether a header comes first."""
        return self.last is not None


class ParsedChat(msgspec.Struct, gc=False):
    """A chat file in parts."""

    metadata: bytes
    messages: dict[str, bytes]
    bare: set[str]
    odd: set[str]
    """Ids of messages with half a surrogate pair."""
    damage: list[Damage]
    image: Image


class Rendered(msgspec.Struct, gc=False):
    """A chat file to write."""

    data: bytes
    image: Image
    lines: dict[str, bytes]
    """Bare messages that got their id written into their line, by id."""


# -- reading ---------------------------------------------------------------------------------------------------------


def parse_chat(data: bytes, *, headed: bool) -> ParsedChat:
    """The parts of a chat file. Never fails: what cannot be read is in `damage`. Cost: one parse of each line.

    Line by line, so that another thread waits for one line at most.
    """
    messages: dict[str, bytes] = {}
    bare: set[str] = set()
    odd: set[str] = set()
    damage: list[Damage] = []
    gaps: dict[str, bytes] = {}
    ids = LineIds()
    header: bytes | None = None
    metadata_key: str | None = None
    metadata = EMPTY_METADATA
    line_end: bytes | None = None
    lead = b""
    last: str | None = None
    between = b""
    if data.startswith(_BOM):
        lead = _BOM
        data = data[len(_BOM) :]
    lines = data.split(b"\n")
    final = len(lines) - 1
    is_first = True
    for index, raw in enumerate(lines):
        end = b"\n" if index < final else b""
        line = raw
        if line.endswith(b"\r"):
            # Also at the end of the file: the LF that comes with the next line must not change this one's id.
            line = line[:-1]
            end = b"\r" + end
        if not line or line.isspace():
            between += line + end
            continue
        value, problem = line_object(line)
        if value is None:
            damage.append(Damage(index + 1, problem))
            between += line + end
            is_first = False
            continue
        key: str
        if is_first and is_header(value, headed):
            header = line
            metadata_key = metadata_key_of(value)
            if metadata_key is not None:
                metadata = dumps(loads(line)[metadata_key])
            key = HEADER
        else:
            key, is_bare = ids.give(line, value.get("id"))
            messages[key] = line
            if is_bare:
                bare.add(key)
            if problem and servable(line) != line:
                odd.add(key)
        is_first = False
        if last is None:
            lead += between
        elif between != line_end:
            gaps[last] = between
        last = key
        between = end
        if line_end is None and index < final:
            line_end = end
    if last is None:
        lead += between
        between = b""
    # The gap behind the first line was compared with its own end, so a missing line_end means at most one line.
    image = Image(headed, header, metadata_key, metadata, lead, line_end or b"\n", gaps, last, between)
    return ParsedChat(metadata, messages, bare, odd, damage, image)


def inheriting(parsed: ParsedChat, metadata: bytes) -> ParsedChat:
    """A chat without a header line, with metadata that stand elsewhere. The first change of them makes the header."""
    assert parsed.image.header is None, "a header's metadata are the chat's"
    image = msgspec.structs.replace(parsed.image, metadata=metadata)
    return msgspec.structs.replace(parsed, metadata=metadata, image=image)


def line_object(line: bytes) -> tuple[dict[str, Any] | None, str]:
    """A line's object, or None and what is wrong; a remark beside it: only the lenient reader reads it."""
    try:
        value = orjson.loads(line)
        remark = ""
    except orjson.JSONDecodeError:
        try:
            value = loads(line)
        except (ValueError, RecursionError) as error:
            return None, f"not JSON: {error}"[:160]
        remark = "lenient"
    if not isinstance(value, dict):
        return None, "not a JSON object"
    return value, remark


def is_header(value: dict[str, Any], headed: bool) -> bool:
    """Whether the object of the first line is the header."""
    if not _MESSAGE_FIELDS.isdisjoint(value):
        return False
    if headed or not _HEADER_FIELDS.isdisjoint(value):
        return True
    return isinstance(value.get("metadata"), dict) and "id" not in value


def metadata_key_of(header: dict[str, Any]) -> str | None:
    """Where the metadata stands in a header."""
    for key in ("chat_metadata", "metadata"):
        if isinstance(header.get(key), dict):
            return key
    return None


class LineIds:
    """Which id the parser gives to each line: by the lines before it, so that writer and reader agree."""

    __slots__ = ("_seen", "_taken")

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._seen: dict[bytes, int] = {}

    def give(self, line: bytes, explicit: object) -> tuple[str, bool]:
        """The id of the next line, and whether it is derived."""
        if isinstance(explicit, str) and self._is_usable(explicit):
            self._taken.add(explicit)
            return explicit, False
        derived, occurrence = self._next(line)
        self._seen[line] = occurrence + 1
        self._taken.add(derived)
        return derived, True

    def stays(self, line: bytes, explicit: object, message_id: str) -> bool:
        """`give` for a line that has its id already. False when it would get another one: then the id has to be written
        into it, and these bytes are none of the file's.
        """
        if isinstance(explicit, str) and self._is_usable(explicit):
            is_same = explicit == message_id
        else:
            derived, occurrence = self._next(line)
            is_same = derived == message_id
            if is_same:
                self._seen[line] = occurrence + 1
        self._taken.add(message_id)
        return is_same

    def _is_usable(self, explicit: str) -> bool:
        return explicit not in self._taken and message_id_problem(explicit) is None

    def _next(self, line: bytes) -> tuple[str, int]:
        occurrence = self._seen.get(line, 0)
        while (derived := derived_message_id(line, occurrence)) in self._taken:
            occurrence += 1
        return derived, occurrence

    def take(self, message_id: str) -> None:
        """A line that holds its id."""
        self._taken.add(message_id)


# -- writing ---------------------------------------------------------------------------------------------------------


def new_header(metadata: bytes, chat_id: str, now_ms: int) -> bytes:
    """The header line of a chat that we create: SillyTavern's fields and CardShark's."""
    return dumps(
        {
            "user_name": "unused",
            "character_name": "unused",
            "create_date": utc_text(now_ms),
            "version": "1.0",
            "chat_id": chat_id,
            "timestamp": now_ms,
            "chat_metadata": loads(metadata),
        }
    )


def render(
    image: Image,
    messages: Mapping[str, bytes],
    bare: AbstractSet[str],
    metadata: bytes,
    chat_id: str,
    now_ms: int,
) -> Rendered:
    """The whole file. Untouched lines keep their bytes; the header changes only with the metadata. Cost: the chat."""
    header = image.header
    metadata_key = image.metadata_key
    if metadata != image.metadata or _lacks_header(image, messages):
        metadata_key = metadata_key or "chat_metadata"
        header = _header_with(image.header, metadata_key, metadata, chat_id, now_ms)
    ids = LineIds()
    written: dict[str, bytes] = {}
    gaps: dict[str, bytes] = {}
    lead = image.lead
    if not lead.endswith(b"\n") and lead not in (b"", _BOM):
        lead += image.line_end
    parts: list[bytes] = [lead]
    last: str | None = None

    def put(key: str, line: bytes) -> None:
        nonlocal last
        if last is not None:
            gap = _gap(image, last)
            if gap != image.line_end:
                gaps[last] = gap
            parts.append(gap)
        parts.append(line)
        last = key

    if header is not None:
        put(HEADER, header)
    for message_id, line in messages.items():
        if message_id in bare:
            explicit = loads(line).get("id") if b'"id"' in line or b"\\u00" in line else None
            if not ids.stays(line, explicit, message_id):
                line = written[message_id] = with_id(line, message_id)
        else:
            ids.take(message_id)
        put(message_id, line)
    if last is None:
        tail = b""
        lead = image.lead
        parts = [lead]
    elif last == image.last:
        tail = image.tail
    else:
        tail = image.line_end if image.ends_with_newline else b""
    parts.append(tail)
    new = Image(image.headed, header, metadata_key, metadata, lead, image.line_end, gaps, last, tail)
    return Rendered(b"".join(parts), new, written)


def render_append(image: Image, lines: Mapping[str, bytes]) -> tuple[bytes, Image]:
    """The bytes to append for new messages, and the image afterwards. Cost: the new lines.

    Begins with a line end where the file has none at its end; keeps the file's habit about a line end at the end.
    """
    assert image.last is not None, "an empty file is written whole"
    assert lines, "there is something to append"
    needs_end = not image.ends_with_newline
    gap = _gap(image, image.last)
    gaps = image.gaps if gap == image.line_end else {**image.gaps, image.last: gap}
    body = image.line_end.join(lines.values())
    tail = image.line_end if image.ends_with_newline else b""
    data = (_missing_end(image) if needs_end else b"") + body + tail
    last = list(lines)[-1]
    return data, msgspec.structs.replace(image, gaps=gaps, last=last, tail=tail)


def _lacks_header(image: Image, messages: Mapping[str, bytes]) -> bool:
    """Whether the first message would be taken for the header, by SillyTavern or by our own parser."""
    if image.header is not None or not messages:
        return False
    if image.lead.removeprefix(_BOM).strip():
        # A quarantined line stands first; the parser looks for a header there only.
        return False
    if image.headed and image.last is None:
        return True
    value, _remark = line_object(next(iter(messages.values())))
    return value is not None and is_header(value, image.headed)


def _gap(image: Image, key: str) -> bytes:
    """What stands behind a line once another one follows it."""
    if key == image.last:
        return image.tail if image.ends_with_newline else image.tail + _missing_end(image)
    return image.gaps.get(key, image.line_end)


def _missing_end(image: Image) -> bytes:
    """What makes the end of the file the end of a line."""
    return b"\n" if image.tail.endswith(b"\r") else image.line_end


def header_now(image: Image, metadata: bytes, chat_id: str, now_ms: int) -> bytes | None:
    """The header as a rewrite now would leave it; None when the file has none."""
    if image.header is None or metadata == image.metadata:
        return image.header
    return _header_with(image.header, image.metadata_key or "chat_metadata", metadata, chat_id, now_ms)


def with_metadata(image: Image, metadata: bytes, chat_id: str, now_ms: int) -> Image:
    """A file's image with these metadata in its header, which is made when there was none."""
    if metadata == image.metadata:
        return image
    key = image.metadata_key or "chat_metadata"
    header = _header_with(image.header, key, metadata, chat_id, now_ms)
    return msgspec.structs.replace(image, header=header, metadata_key=key, metadata=metadata)


def header_filled(header: bytes, metadata: bytes) -> bytes:
    """A header with other metadata, where it has some, and nothing else changed; as compact JSON."""
    value = loads(header)
    key = metadata_key_of(value)
    return header if key is None else dumps({**value, key: loads(metadata)})


def image_of_header(header: bytes | None, *, headed: bool) -> Image:
    """What is known of a file by its header alone."""
    if header is None:
        return Image(headed)
    value = loads(header)
    key = metadata_key_of(value)
    return Image(headed, header, key, EMPTY_METADATA if key is None else dumps(value[key]))


def _header_with(header: bytes | None, key: str, metadata: bytes, chat_id: str, now_ms: int) -> bytes:
    if header is None:
        value: dict[str, Any] = {"user_name": "unused", "character_name": "unused"}
    else:
        value = loads(header)
    value.setdefault("version", "1.0")
    value["chat_id"] = chat_id
    value["timestamp"] = now_ms
    value[key] = loads(metadata)
    return dumps(value)
