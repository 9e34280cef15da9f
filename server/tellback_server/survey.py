"""Survey: what the folders say just before a life write is decided: which names are free, what belongs to an owner.

Rules of this module:
- Every function blocks and only reads; the lifecycle calls it in a thread, one life write of a user at a time.
- A name is free when no file stands under it, no state file belongs to it, and no other name differs from it only in
  case or Unicode form.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping
from typing import Final

import msgspec

from tellback_protocol.ids import (
    CharacterChat,
    CharacterOwner,
    ChatName,
    GroupChat,
    Place,
    parse_place,
    sidecar_name,
    stem_of,
)
from tellback_protocol.life import sibling
from tellback_protocol.links import MAIN_CHAT, holds, spellings
from tellback_protocol.values import loads
from tellback_server.fs import FileMissing, FileStat, FsError
from tellback_server.store.files import CHAT_ENDING, STATE_ENDING, SYNC_NAMESPACE, ChatSync, FileStore, twin_key
from tellback_server.store.groups import groups_with
from tellback_server.store.place import file_of

__all__ = ["Live", "OwnerFiles", "all_files", "folder_of", "linked_from", "owner_files", "taken"]

_LINE_BYTES: Final = 1 << 16
"""A header of ordinary size is read with one read."""


class OwnerFiles(msgspec.Struct, kw_only=True):
    """Everything that belongs to an owner."""

    place: Place
    folder: str
    """Below the user's root."""
    files: dict[str, FileStat]
    """Names in the folder: the owner's file first, then all sidecars but chat_sync."""
    sync: ChatSync | None
    sync_stat: FileStat | None
    groups: list[str]
    """Paths of the groups that hold it."""

    def renamed(self, name: str, to: str) -> str:
        """The name of one of the files when the owner is called `to`."""
        return to + name[len(stem_of(self.place)) :]

    @property
    def sync_name(self) -> str:
        return sidecar_name(self.place, SYNC_NAMESPACE)


def folder_of(place: Place) -> str:
    """The owner's folder below the user's root."""
    return "/".join(file_of(place)[0])


def start_of(place: Place) -> str:
    """How the names of an owner's sidecars begin."""
    return sidecar_name(place, "").removesuffix(STATE_ENDING)


def _names(files: FileStore, user: str, folder: str) -> list[str]:
    with contextlib.suppress(FileMissing):
        return files.fs.listdir(files.checked_path(user, folder))
    return []


def owner_files(files: FileStore, user: str, place: Place) -> OwnerFiles:
    """See OwnerFiles. Raises FileUnsafe, OSError."""
    folder, own = folder_of(place), file_of(place)[1]
    names = _names(files, user, folder)
    ending, start, sync_name = own[len(stem_of(place)) :], start_of(place), sidecar_name(place, SYNC_NAMESPACE)
    mark = start[len(stem_of(place)) :]
    others = [name.removesuffix(ending) for name in names if name.endswith(ending) and name != own]
    found: dict[str, FileStat] = {}
    sync_stat: FileStat | None = None
    for name in names:
        is_state = name.startswith(start) and name.endswith(STATE_ENDING)
        if is_state:
            # An owner whose name goes on behind the mark has state files of its own.
            is_state = not any(other.startswith(start) and name.startswith(other + mark) for other in others)
        if not is_state and name != own:
            continue
        stat = files.fs.stat(files.checked_path(user, f"{folder}/{name}"))
        if stat is None or not stat.is_regular:
            continue
        if name == sync_name:
            sync_stat = stat
        else:
            found[name] = stat
    found = dict(sorted(found.items(), key=lambda item: item[0] != own))
    groups: list[str] = []
    if isinstance(place, GroupChat):
        groups = groups_with(files, user, place.chat)
    elif isinstance(place, CharacterOwner):
        groups = groups_with(files, user, own, "members")
    return OwnerFiles(
        place=place, folder=folder, files=found, sync=files.read_sync(user, place), sync_stat=sync_stat, groups=groups,
    )


def all_files(files: FileStore, user: str, folder: str) -> list[str]:
    """Every regular file in a folder, below the user's root."""
    paths = [f"{folder}/{name}" for name in _names(files, user, folder)]
    return [
        path for path in paths
        if (stat := files.fs.stat(files.checked_path(user, path))) is not None and stat.is_regular
    ]


def taken(files: FileStore, user: str, target: Place, own: OwnerFiles | None = None) -> str | None:
    """Why `target` is not free, as a sentence, or None. What `own` holds is in nobody's way."""
    folder, file = folder_of(target), file_of(target)[1]
    if isinstance(target, CharacterChat | CharacterOwner):
        mine = stem_of(own.place) if own is not None and isinstance(own.place, CharacterOwner) else None
        for other in _names(files, user, "chats"):
            if other != mine and twin_key(other) == twin_key(target.character):
                if other != target.character:
                    return "A character's folder whose name differs only in case or Unicode form is there."
                if isinstance(target, CharacterOwner):
                    return "Chats of another character stand under that name."
    wanted, start = twin_key(file), twin_key(start_of(target))
    ours = set() if own is None or own.folder != folder else {*own.files, own.sync_name}
    for name in _names(files, user, folder):
        if name in ours:
            continue
        key = twin_key(name)
        if name == file:
            return "The name is taken."
        if key == wanted:
            return "A name that differs only in case or Unicode form is taken."
        if key.startswith(start) and key.endswith(STATE_ENDING):
            return "State files of another owner stand under that name."
    return None


Live = Mapping[str, tuple[bytes, list[bytes]]]
"""Metadata and messages of chats that are open, by full name: their files may trail."""


def linked_from(files: FileStore, user: str, place: ChatName, names: Collection[str], live: Live) -> list[str]:
    """Chats that link to this one by one of `names`, its own among them or not.

    A link comes of a branch, and goes with every branch of the branch. So those that can have one are those that
    `main_chat` joins, however far apart. Cost: the header of each chat beside it, and the files of its family.
    """
    folder = folder_of(place)
    parents: dict[str, object] = {}
    for name in _names(files, user, folder):
        if name.endswith(CHAT_ENDING):
            other = name.removesuffix(CHAT_ENDING)
            parents[other] = None
            with contextlib.suppress(FsError, OSError, ValueError):
                full = sibling(str(place), other)
                path = files.checked_path(user, f"{folder}/{name}")
                header = b'{"chat_metadata":%b}' % live[full][0] if full in live else _first_line(files, path)
                parents[other] = _main_chat(header)
    for full, (metadata, _lines) in live.items():
        beside = parse_place(full)
        other = "" if isinstance(beside, str) else stem_of(beside)
        if other and sibling(str(place), other) == full:
            # Its file may still be to come.
            parents.setdefault(other, _main_chat(b'{"chat_metadata":%b}' % metadata))
    spelled = spellings(names)
    found: list[str] = []
    for other in _family(parents, {place.chat, *names}):
        full = sibling(str(place), other)
        if other == place.chat or other not in parents:
            continue
        with contextlib.suppress(FsError, OSError, ValueError):
            is_linked = parents[other] in names or holds(
                live[full][1] if full in live
                else [files.fs.read(files.checked_path(user, f"{folder}/{other}{CHAT_ENDING}"))],
                spelled,
            )
            if is_linked:
                found.append(full)
    return found


def _family(parents: Mapping[str, object], start: Collection[str]) -> list[str]:
    """Whoever is joined with one of `start`, in the order of the folder."""
    near: dict[str, set[str]] = {}
    for child, parent in parents.items():
        if isinstance(parent, str):
            near.setdefault(child, set()).add(parent)
            near.setdefault(parent, set()).add(child)
    family, unseen = set(start), list(start)
    while unseen:
        for name in near.get(unseen.pop(), ()):
            if name not in family:
                family.add(name)
                unseen.append(name)
    return [name for name in parents if name in family]


def _first_line(files: FileStore, path: str) -> bytes:
    with files.fs.open_read(path) as file:
        data = file.pread(_LINE_BYTES, 0)
        while b"\n" not in data:
            more = file.pread(_LINE_BYTES, len(data))
            if not more:
                break
            data += more
    return data.split(b"\n", 1)[0].removeprefix(b"\xef\xbb\xbf")


def _main_chat(line: bytes) -> object:
    header = loads(line)
    for key in ("chat_metadata", "metadata"):
        metadata = header.get(key) if isinstance(header, dict) else None
        if isinstance(metadata, dict) and MAIN_CHAT in metadata:
            return metadata[MAIN_CHAT]
    return None
