"""Kinds: what a file below a data folder is, told by its path alone. Pure.

    kind_of(("chats", "Pip", "talk.jsonl"))      in a user's folder
    own_kind_of(("sessions", "default-user", "<id>.json"))     in .tellback
"""

from __future__ import annotations

import re
from typing import Final, Literal

import msgspec

from tellback_protocol.floors import LOG_SUFFIX
from tellback_protocol.ids import (
    CHARACTER_SIDECAR_MARK,
    PRESET_FOLDERS,
    SIDECAR_MARK,
    CharacterChat,
    CharacterOwner,
    GroupChat,
    Place,
    PresetOwner,
    existing_name_problem,
    is_integrity,
)
from tellback_server.fs import TEMPORARY_SUFFIX
from tellback_server.store.files import SWAP_PREFIX
from tellback_server.store.marks import SYNC_NAMESPACE
from tellback_server.store.place import CARD_ENDING, CHARACTERS, CHAT_ENDING, STATE_ENDING, is_text, state_of

__all__ = ["Kind", "Sort", "kind_of", "own_kind_of"]

Sort = Literal[
    "chat", "sync", "state", "floor-log", "card", "preset", "group", "backup-chat", "backup-state", "backup-manifest",
    "repair-manifest",
    "repair-file", "manifest", "trashed", "temporary", "swap", "odd-state", "not-text", "other",
    "log", "log-tail", "log-aside", "term", "lock", "session", "active", "name", "index", "binding", "flushed",
    "owner-copy", "journal",
]
_SEGMENT: Final = re.compile(r"\d{20}\.log")
_TAIL: Final = re.compile(r"\d{20}\.log\.torn-\d+")
_BACKUP: Final = re.compile(r"(\d+)-(\d+)(?:\.[a-z0-9._-]+)?\.(jsonl|json)")
REPAIRS_FOLDER: Final = "repairs"
"""In `backups/tellback`: what repairs put aside."""
ASIDE_PREFIX: Final = "log-damaged-"


class Kind(msgspec.Struct, frozen=True):
    """A file's sort, whose it is, and which namespace of it."""

    sort: Sort
    place: Place | None = None
    namespace: str = ""


_OTHER: Final = Kind("other")


def kind_of(parts: tuple[str, ...]) -> Kind:
    """Of a file in a user's folder."""
    *above, name = parts
    folders = tuple(above)
    if not all(is_text(part) for part in parts):
        return Kind("not-text")
    if name.startswith(".") and name.endswith(TEMPORARY_SUFFIX):
        return Kind("swap" if name.startswith(SWAP_PREFIX) else "temporary")
    match folders:
        case ("chats", _) | ("group chats",) | ("characters",):
            return _owned(folders, name)
        case (folder,) if folder in PRESET_FOLDERS:
            return _owned(folders, name)
        case ("groups",) if name.endswith(STATE_ENDING):
            return Kind("group")
        case ("backups", "tellback", *rest):
            return _backup(tuple(rest), name)
        case ("trash", _):
            return Kind("manifest") if name == "manifest.json" else Kind("trashed")
        case ("trash", _, *_rest):
            return Kind("trashed")
    return _OTHER


def _owned(folders: tuple[str, ...], name: str) -> Kind:
    owned = state_of(folders, name)
    if owned is not None:
        place, namespace = owned
        if namespace == SYNC_NAMESPACE:
            return Kind("sync", place, namespace)
        return Kind("floor-log" if namespace.endswith(LOG_SUFFIX) else "state", place, namespace)
    mark = CHARACTER_SIDECAR_MARK if folders == (CHARACTERS,) else SIDECAR_MARK
    if mark in name and name.endswith(STATE_ENDING):
        return Kind("odd-state")
    match folders:
        case ("chats", character) if _is_named(name, CHAT_ENDING):
            return Kind("chat", CharacterChat(character, name.removesuffix(CHAT_ENDING)))
        case ("group chats",) if _is_named(name, CHAT_ENDING):
            return Kind("chat", GroupChat(name.removesuffix(CHAT_ENDING)))
        case ("characters",) if _is_named(name, CARD_ENDING):
            return Kind("card", CharacterOwner(name.removesuffix(CARD_ENDING)))
        case (folder,) if folder in PRESET_FOLDERS and _is_named(name, STATE_ENDING):
            return Kind("preset", PresetOwner(folder, name.removesuffix(STATE_ENDING)))
    return _OTHER


def _is_named(name: str, ending: str) -> bool:
    return name.endswith(ending) and existing_name_problem(name.removesuffix(ending)) is None


def _backup(folders: tuple[str, ...], name: str) -> Kind:
    if folders[:1] == (REPAIRS_FOLDER,):
        is_manifest = len(folders) == 2 and name == "manifest.json"
        return Kind("repair-manifest" if is_manifest else "repair-file")
    found = _BACKUP.fullmatch(name)
    if len(folders) == 1 and found and is_integrity(folders[0]):
        if name == f"{found[1]}-{found[2]}.json":
            return Kind("backup-manifest")
        return Kind("backup-chat" if found[3] == "jsonl" else "backup-state")
    return _OTHER


def own_kind_of(parts: tuple[str, ...]) -> Kind:
    """Of a file in `.tellback`."""
    match parts:
        case ("LOCK",):
            return Kind("lock")
        case ("term",):
            return Kind("term")
        case (folder, *_rest) if folder.startswith(ASIDE_PREFIX):
            return Kind("log-aside")
        case ("log", name):
            if _SEGMENT.fullmatch(name):
                return Kind("log")
            return Kind("log-tail") if _TAIL.fullmatch(name) else _left_over(name)
        case ("sessions", _, "active-chats.json"):
            return Kind("active")
        case ("sessions", _, name) if name.endswith(".json") and not name.startswith("."):
            return Kind("session")
        case ("names", _, name) if name.endswith(".json") and not name.startswith("."):
            return Kind("name")
        case ("store" | "mirror",):
            return Kind("binding")
        case ("flushed",):
            return Kind("flushed")
        case ("staged" | "kept", _, name) if not name.endswith(TEMPORARY_SUFFIX):
            return Kind("owner-copy")
        case ("imports", name) if name.endswith(".jsonl"):
            return Kind("journal")
        case ("index", name) if name.endswith(".jsonl") and not name.startswith("."):
            return Kind("index")
    return _left_over(parts[-1])


def _left_over(name: str) -> Kind:
    return Kind("temporary") if name.endswith(TEMPORARY_SUFFIX) else _OTHER
