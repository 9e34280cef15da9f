"""Place: the names of an owner's files in a user's folder, and back from a file's name to its owner. Pure.

    chats/<character>/<chat>.jsonl        <chat>.luker-state.<namespace>.json
    group chats/<chat>.jsonl              <chat>.luker-state.<namespace>.json
    characters/<character>.png            <character>.state.<namespace>.json
    <preset folder>/<preset>.json         <preset>.luker-state.<namespace>.json

Rules of this module:
- A state file belongs to the longest owner's name that leaves a legal namespace: what another program names oddly is
  never taken for a state of somebody else.
"""

from __future__ import annotations

import unicodedata
from typing import Final

from tellback_protocol.ids import (
    CHARACTER_SIDECAR_MARK,
    FILE_NAME_BYTES_MAX,
    PRESET_FOLDERS,
    SIDECAR_MARK,
    CharacterChat,
    CharacterOwner,
    GroupChat,
    Place,
    PresetOwner,
    existing_name_problem,
    namespace_problem,
    sidecar_name,
)

__all__ = [
    "CARD_ENDING", "CHAT_ENDING", "OWNER_FOLDERS", "STATE_ENDING", "file_of", "is_nameable", "is_text", "state_of",
    "twin_key",
]

CHAT_ENDING: Final = ".jsonl"
CARD_ENDING: Final = ".png"
STATE_ENDING: Final = ".json"
CHARACTERS: Final = "characters"
OWNER_FOLDERS: Final = (CHARACTERS, *sorted(PRESET_FOLDERS))
"""Where owners without messages live."""


def file_of(place: Place) -> tuple[tuple[str, ...], str]:
    """Folders below the user's root, and the name of the file without which the owner does not exist."""
    match place:
        case CharacterChat():
            return ("chats", place.character), place.chat + CHAT_ENDING
        case GroupChat():
            return ("group chats",), place.chat + CHAT_ENDING
        case CharacterOwner():
            return (CHARACTERS,), place.character + CARD_ENDING
        case PresetOwner():
            return (place.folder,), place.preset + STATE_ENDING


def is_nameable(place: Place, namespace: str) -> bool:
    """Whether a file system can hold the state file's name; that of an old, long name may be too long."""
    return len(sidecar_name(place, namespace).encode()) <= FILE_NAME_BYTES_MAX


def state_of(folders: tuple[str, ...], name: str) -> tuple[Place, str] | None:
    """Owner and namespace of a state file by its name; None for any other file."""
    mark = CHARACTER_SIDECAR_MARK if folders == (CHARACTERS,) else SIDECAR_MARK
    stem, found, rest = name.rpartition(mark)
    namespace = rest.removesuffix(STATE_ENDING)
    if not found or namespace == rest or namespace_problem(namespace) or existing_name_problem(stem):
        return None
    match folders:
        case ("chats", character):
            return CharacterChat(character, stem), namespace
        case ("group chats",):
            return GroupChat(stem), namespace
        case ("characters",):
            return CharacterOwner(stem), namespace
        case (folder,):
            return PresetOwner(folder, stem), namespace
    return None


def twin_key(name: str) -> str:
    """Equal for names that some file system takes for one."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def is_text(name: str) -> bool:
    """False for a file name that is no UTF-8: no frame can name it."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
