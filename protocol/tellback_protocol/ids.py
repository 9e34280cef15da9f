"""Ids, positions and legal names: the words that both sides use to point at things.

Rules of this module:
- A name that is *made* must be legal as it stands; it is refused, never altered (BEHAVIOUR N1).
- A name that *exists* is taken as it is, as long as it cannot leave its folder (BEHAVIOUR N2).
- Nothing here touches a disk: a legal name may still be missing.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from typing import Annotated, NewType

import msgspec

ChatId = NewType("ChatId", str)
"""The immutable identity of a chat, a UUID in lower case."""
MessageId = NewType("MessageId", str)
"""The permanent id of a message, unique in its chat."""
Integrity = NewType("Integrity", str)
"""A UUID that is new for every commit."""
Namespace = NewType("Namespace", str)

WIRE_INTEGER_MAX = 2**53
"""Integers in frame fields stay within what a browser can hold (DESIGN section 5)."""

NAME_BYTES_MAX = 128
"""UTF-8 bytes of a new name: `<name>.luker-state.<96 bytes>.json` stays under 255, the limit of file systems."""
FILE_NAME_BYTES_MAX = 255
NAMESPACE_CHARS_MAX = 96
MESSAGE_ID_CHARS_MAX = 128

SIDECAR_MARK = ".luker-state."
CHARACTER_SIDECAR_MARK = ".state."

_SESSION = re.compile(r"[\x21-\x7e]{16,64}")
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_NAMESPACE = re.compile(r"[a-z0-9._-]{1,96}")
_RESERVED_NAMESPACE = re.compile(r"chat_sync|.*__floor_log|.*__orphans|tellback_.*")
# What `sanitize-filename` (used by SillyTavern) would take out, so that our files stay reachable from there.
_ILLEGAL_CHARACTERS = re.compile(r'[/?<>\\:*|"\x00-\x1f\x7f-\x9f]')
_WINDOWS_DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?", re.IGNORECASE)
# Marks that turn the direction of text: a name that reads as another one.
_BIDI = re.compile("[\u061c\u202a-\u202e\u2066-\u2069\u200e\u200f]")


class Version(msgspec.Struct, frozen=True, gc=False):
    """Where a document or a stream stands: `epoch` from 1, `seq` from 0, `integrity` a UUID.

    `seq` 0 means that the document came from a file and this server never changed it.
    """

    epoch: Annotated[int, msgspec.Meta(ge=1, le=WIRE_INTEGER_MAX)]
    seq: Annotated[int, msgspec.Meta(ge=0, le=WIRE_INTEGER_MAX)]
    integrity: str

    def encoded(self) -> bytes:
        """The version as JSON, the same bytes as `msgspec.json.encode(self)`."""
        return b'{"epoch":%d,"seq":%d,"integrity":"%b"}' % (self.epoch, self.seq, self.integrity.encode())


class CharacterChat(msgspec.Struct, frozen=True, gc=False):
    """`character:<character>/<chat>`: a chat in `chats/<character>/<chat>.jsonl`."""

    character: str
    chat: str

    def __str__(self) -> str:
        return f"character:{self.character}/{self.chat}"


class GroupChat(msgspec.Struct, frozen=True, gc=False):
    """`group:<chat>`: a chat in `group chats/<chat>.jsonl`."""

    chat: str

    def __str__(self) -> str:
        return f"group:{self.chat}"


class ChatById(msgspec.Struct, frozen=True, gc=False):
    """`id:<chat_id>`: a chat by its immutable id."""

    chat_id: str

    def __str__(self) -> str:
        return f"id:{self.chat_id}"


class CharacterOwner(msgspec.Struct, frozen=True, gc=False):
    """A character: `characters/<character>.png`. Its stream holds state documents only."""

    character: str

    def __str__(self) -> str:
        return f"character:{self.character}"


class PresetOwner(msgspec.Struct, frozen=True, gc=False):
    """A preset: `<folder>/<preset>.json`. Its stream holds state documents only."""

    folder: str
    preset: str

    def __str__(self) -> str:
        return f"preset:{self.folder}/{self.preset}"


StateOwner = CharacterOwner | PresetOwner
"""Owners without messages."""
ChatName = CharacterChat | GroupChat
ChatAddress = CharacterChat | GroupChat | ChatById
Place = ChatName | StateOwner
"""Where an owner's files are. Its text names every owner apart: a character's name holds no slash, a chat's does."""

PRESET_FOLDERS = frozenset((
    "KoboldAI Settings", "NovelAI Settings", "OpenAI Settings", "TextGen Settings", "instruct", "context", "sysprompt",
))
"""The folders in which SillyTavern keeps presets."""


def parse_chat(text: str) -> ChatAddress | str:
    """The address in a frame's `chat`, or a sentence that says why it is none."""
    kind, colon, rest = text.partition(":")
    if not colon:
        return 'a chat is named "character:<character>/<chat>", "group:<chat>" or "id:<chat_id>"'
    if kind == "id":
        return ChatById(rest) if _UUID.fullmatch(rest) else "a chat_id is a UUID in lower case"
    if kind == "group":
        problem = existing_name_problem(rest)
        return problem or GroupChat(rest)
    if kind == "character":
        character, slash, chat = rest.partition("/")
        if not slash:
            return 'a character\'s chat is named "character:<character>/<chat>"'
        problem = existing_name_problem(character) or existing_name_problem(chat)
        return problem or CharacterChat(character, chat)
    return f"unknown kind of chat {kind[:32]!r}: use character, group or id"


def parse_state_owner(text: str) -> StateOwner | str:
    """The owner that `character:<character>` or `preset:<folder>/<preset>` names, or a sentence that says why none."""
    kind, _colon, rest = text.partition(":")
    if kind == "character":
        return existing_name_problem(rest) or CharacterOwner(rest)
    if kind != "preset":
        return "an owner without messages is a character or a preset"
    folder, slash, preset = rest.partition("/")
    if not slash:
        return 'a preset is named "<folder>/<preset>"'
    problem = existing_name_problem(folder) or existing_name_problem(preset)
    if problem is None and SIDECAR_MARK in preset:
        problem = f"what is called {SIDECAR_MARK!r} is a state file and no preset"
    return problem or PresetOwner(folder, preset)


def parse_place(text: str) -> Place | str:
    """The owner whose text this is (`str` of a Place), or a sentence that says why there is none."""
    is_owner = text.startswith("preset:") or (text.startswith("character:") and "/" not in text)
    place = parse_state_owner(text) if is_owner else parse_chat(text)
    return "an id is no place" if isinstance(place, ChatById) else place


def sidecar_name(place: Place, namespace: str) -> str:
    """The name of a state's file, beside the owner's."""
    match place:
        case CharacterOwner():
            return f"{place.character}{CHARACTER_SIDECAR_MARK}{namespace}.json"
        case PresetOwner():
            return f"{place.preset}{SIDECAR_MARK}{namespace}.json"
        case _:
            return f"{place.chat}{SIDECAR_MARK}{namespace}.json"


def stem_of(place: Place) -> str:
    """The owner's name alone, as its files begin."""
    stem: str = getattr(place, place.__struct_fields__[-1])
    return stem


_SURELY_SHORT_CHARS = 50
"""Four bytes each, and what stands around them, still fit a file name."""


def state_file_problem(owner: str, namespace: str) -> str | None:
    """Why the owner with this text cannot have a state of this namespace, or None (BEHAVIOUR N3)."""
    if len(owner) + len(namespace) <= _SURELY_SHORT_CHARS:
        return None
    place = parse_place(owner)
    if isinstance(place, str) or len(sidecar_name(place, namespace).encode()) <= FILE_NAME_BYTES_MAX:
        return None
    return "the owner's name and this namespace together are too long for a file's name"


def existing_name_problem(name: str) -> str | None:
    """Why `name` cannot be the name of a file that exists, or None (BEHAVIOUR N2)."""
    if not name:
        return "a name cannot be empty"
    if name in (".", "..") or "/" in name or "\x00" in name:
        return "a name cannot leave its folder"
    try:
        size_bytes = len(name.encode())
    except UnicodeEncodeError:
        return "a name cannot hold half a surrogate pair"
    if size_bytes + len(".jsonl") > FILE_NAME_BYTES_MAX:
        return f"a name of {size_bytes} bytes cannot be a file's name"
    return None


def new_name_problem(name: str) -> str | None:
    """Why a chat, character or preset cannot be created as `name`, or None (BEHAVIOUR N1)."""
    problem = existing_name_problem(name)
    if problem:
        return problem
    size_bytes = len(name.encode())
    if size_bytes > NAME_BYTES_MAX:
        return f"a new name has at most {NAME_BYTES_MAX} bytes of UTF-8, this one has {size_bytes}"
    illegal = _ILLEGAL_CHARACTERS.search(name)
    if illegal:
        return f"the character {illegal.group()!r} cannot be part of a new name"
    if name[0] in ". " or name[-1] in ". ":
        return "a new name cannot begin or end with a full stop or a space"
    if _WINDOWS_DEVICE.fullmatch(name):
        return "this name is a device on Windows"
    if _BIDI.search(name):
        return "a new name cannot hold marks that turn the direction of text"
    if unicodedata.normalize("NFC", name) != name:
        return "a new name is written in Unicode's composed form (NFC)"
    if any(unicodedata.category(character) in ("Zl", "Zp", "Cn", "Co") for character in name):
        return "a new name cannot hold line separators or characters without a meaning"
    lower = name.lower()
    if lower.endswith((".json", ".jsonl", ".png", ".tellback-tmp")):
        return "a new name does not carry a file's ending"
    if SIDECAR_MARK in lower or CHARACTER_SIDECAR_MARK in lower:
        return f"a new name cannot contain {SIDECAR_MARK!r} or {CHARACTER_SIDECAR_MARK!r}: state files are named so"
    return None


def namespace_problem(namespace: str) -> str | None:
    """Why `namespace` cannot be used, or None (BEHAVIOUR N3)."""
    if not _NAMESPACE.fullmatch(namespace):
        return f"a namespace has 1 to {NAMESPACE_CHARS_MAX} of the characters a-z 0-9 . _ -"
    if SIDECAR_MARK in f".{namespace}." or CHARACTER_SIDECAR_MARK in f".{namespace}.":
        return f"a namespace cannot contain {SIDECAR_MARK!r} or {CHARACTER_SIDECAR_MARK!r}"
    return None


def is_reserved_namespace(namespace: str) -> bool:
    """True for the namespaces that only the server writes (BEHAVIOUR N4)."""
    return _RESERVED_NAMESPACE.fullmatch(namespace) is not None


def session_problem(session: str) -> str | None:
    """Why `session` cannot be a session id, or None."""
    return None if _SESSION.fullmatch(session) else "a session is 16 to 64 printable ASCII characters without spaces"


def is_integrity(text: str) -> bool:
    """True for a UUID in lower case."""
    return _UUID.fullmatch(text) is not None


def message_id_problem(value: object) -> str | None:
    """Why `value` cannot be a message's permanent id, or None (BEHAVIOUR M2)."""
    if not isinstance(value, str):
        return "a message's id is a string"
    if not 1 <= len(value) <= MESSAGE_ID_CHARS_MAX:
        return f"a message's id has 1 to {MESSAGE_ID_CHARS_MAX} characters"
    if any(ord(character) < 32 or 0xD800 <= ord(character) <= 0xDFFF for character in value):
        return "a message's id cannot hold control characters"
    return None


def derived_message_id(line: bytes, occurrence: int) -> MessageId:
    """The stable id of a line that carries none: it changes only when the line does (BEHAVIOUR M3)."""
    return MessageId(f"{hashlib.sha256(line).hexdigest()[:16]}-{occurrence}")


def derived_uuid(*parts: bytes | str | int) -> str:
    """A UUID version 8 (RFC 9562) from SHA-256 over the parts, each with its length before it."""
    digest = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else str(part).encode("utf-8", "surrogatepass")
        digest.update(b"%d:" % len(data))
        digest.update(data)
    hexadecimal = digest.hexdigest()
    variant = "89ab"[int(hexadecimal[16], 16) & 3]
    return (
        f"{hexadecimal[:8]}-{hexadecimal[8:12]}-8{hexadecimal[13:16]}-{variant}{hexadecimal[17:20]}-{hexadecimal[20:32]}"
    )


def file_integrity(epoch: int, seq: int, name: str, content: bytes) -> Integrity:
    """The version's UUID of a file that this server did not write (DESIGN section 6): equal bytes, equal id."""
    return Integrity(derived_uuid(epoch, seq, name, content))


def provisional_chat_id(user: str, name: str) -> ChatId:
    """The chat_id of a file that was never written by us: the same after a restart, without writing anything.

    It becomes the chat's permanent id with the first write.
    """
    return ChatId(derived_uuid("chat", user, name))
