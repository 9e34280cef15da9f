"""Item: one thing to import, whole: a chat with its states, a card, a preset, a group's file. Pure.

Rules of this module:
- An item is known by its content and where it belongs, not by when or from where it comes (`fingerprint`).
- A name that a converter makes up is legal; one that a folder of SillyTavern has is kept as it is.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from typing import Final

import msgspec

from tellback_protocol.ids import (
    NAME_BYTES_MAX,
    PRESET_FOLDERS,
    CharacterChat,
    CharacterOwner,
    GroupChat,
    Place,
    PresetOwner,
    new_name_problem,
    parse_place,
)
from tellback_server.store.groups import FOLDER as GROUPS
from tellback_server.store.place import CARD_ENDING, CHARACTERS, STATE_ENDING, file_of
from tellback_server.transfer.anomalies import Anomaly

__all__ = ["GroupFile", "Item", "Target", "beside", "digest", "legal_name", "path_of", "target_of", "target_of_path"]


class GroupFile(msgspec.Struct, frozen=True, gc=False):
    """`groups/<id>.json`."""

    group: str

    def __str__(self) -> str:
        return f"groups/{self.group}"


Target = Place | GroupFile


class Item(msgspec.Struct, kw_only=True):
    """What a source yields."""

    source: str
    """Where it stands in the source: a path with slashes, and `#<line>` when a file holds many."""
    target: Target
    data: bytes
    """What the owner's own file will hold."""
    content: bytes = b""
    """What it is known by, where `data` also tells what the source does not hold (a date, say); else empty."""
    states: dict[str, bytes] = {}
    mtime_ns: int
    size_bytes: int
    """What was read for it."""
    messages: int = 0
    notes: list[Anomaly] = []
    quarantine: bytes = b""
    """Bytes of the source that the file does not hold."""
    inherited: bytes = b""
    """Metadata of a group's chat without a header, where the group's file tells them."""
    is_bare: bool = False
    """An owner that has states and no file of its own."""
    is_shown: bool = False
    """It is the chat of its character that the source shows."""

    @property
    def fingerprint(self) -> str:
        """Equal for the same content."""
        parts = [digest(self.content or self.data)]
        parts += [f"{namespace}={digest(data)}" for namespace, data in sorted(self.states.items())]
        return digest("\n".join(parts).encode())


def digest(data: bytes) -> str:
    """What tells contents apart."""
    return hashlib.sha256(data).hexdigest()[:32]


def path_of(target: Target) -> tuple[tuple[str, ...], str]:
    """Folders below the user's root, and the file's name."""
    return (("groups",), target.group + STATE_ENDING) if isinstance(target, GroupFile) else file_of(target)


def target_of(text: str) -> Target | None:
    """What a text names (`str` of a Target)."""
    if text.startswith("groups/"):
        return GroupFile(text.removeprefix("groups/"))
    place = parse_place(text)
    return None if isinstance(place, str) else place


def target_of_path(path: str) -> Target | None:
    """What a card, a group's file or a preset at a path below the user's folder is."""
    folder, _slash, name = path.partition("/")
    if folder == GROUPS:
        return GroupFile(name.removesuffix(STATE_ENDING))
    if folder == CHARACTERS:
        return CharacterOwner(name.removesuffix(CARD_ENDING))
    return PresetOwner(folder, name.removesuffix(STATE_ENDING)) if folder in PRESET_FOLDERS else None


def beside(target: Target, number: int) -> Target:
    """Another name for it, the same for every run; `number` counts from 1."""
    mark = " (imported)" if number == 1 else f" (imported {number})"

    def named(name: str) -> str:
        room = NAME_BYTES_MAX - len(mark.encode())
        return name.encode()[:room].decode("utf-8", "ignore").rstrip(". ") + mark

    match target:
        case CharacterChat():
            return CharacterChat(target.character, named(target.chat))
        case GroupChat():
            return GroupChat(named(target.chat))
        case CharacterOwner():
            return CharacterOwner(named(target.character))
        case PresetOwner():
            return PresetOwner(target.folder, named(target.preset))
        case GroupFile():
            return GroupFile(f"{target.group}-imported" + ("" if number == 1 else f"-{number}"))


_ILLEGAL: Final = re.compile(r'[/?<>\\:*|"\x00-\x1f\x7f-\x9f\u061c\u202a-\u202e\u2066-\u2069\u200e\u200f]')
_ENDINGS: Final = re.compile(r"\.(jsonl?|png|tellback-tmp)$", re.IGNORECASE)
_STATE_MARK: Final = re.compile(r"\.(?=(luker-)?state\.)", re.IGNORECASE)


def legal_name(text: str, otherwise: str = "Imported") -> str:
    """`text` as a name that a new chat or character may have, changed as little as possible."""
    name = unicodedata.normalize("NFC", text.encode("utf-8", "replace").decode())
    name = _ILLEGAL.sub("_", name)
    name = "".join("_" if unicodedata.category(one) in ("Zl", "Zp", "Cn", "Co") else one for one in name)
    name = _STATE_MARK.sub("_", name)
    for _turn in range(8):
        name = name.encode()[:NAME_BYTES_MAX].decode("utf-8", "ignore").strip(". ")
        name = _ENDINGS.sub(r"_\1", name)
        problem = new_name_problem(name) if name else "empty"
        if problem is None:
            return name
        name = f"{name}_" if name else otherwise
    return otherwise
