"""Group files: `groups/<id>.json`, which tell whose chats the group chats are.

Rules of this module:
- An edit says what it wants (a chat in, out, under another name) and is carried out on whatever the file holds then, so
  another program's edit of the moment before is kept, and a second time changes nothing.
- Every other field stays, and so does the file's indentation.
- A chat that the server makes of another one's stands in the groups of that one (STORAGE F14).
"""

from __future__ import annotations

import contextlib
import errno
import json
from collections.abc import Iterable
from typing import Any, Final, Literal

import msgspec
import structlog

from tellback_protocol.chat import EMPTY_METADATA
from tellback_protocol.ids import existing_name_problem
from tellback_protocol.values import dumps, loads
from tellback_server.fs import FileMissing, FsError
from tellback_server.store.files import FileStore
from tellback_server.store.held import OutsideEdit
from tellback_server.store.touch import replace_state

__all__ = [
    "GroupEdit", "edit_group", "edited", "group_path", "groups_with", "list_beside", "metadata_told", "shown_instead",
    "with_id",
]

log = structlog.get_logger()

FOLDER: Final = "groups"
TRIES_MAX: Final = 8
"""How often an edit starts anew because another program was faster."""


class GroupEdit(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What to do to one group's file. Persisted in the log: keep stable."""

    path: str
    """Below the user's root."""
    action: Literal["add", "replace", "remove", "select"]
    chat: str
    """The chat's name alone, or of a member the name of its card."""
    to: str = ""
    """Its new name, for `replace`."""
    was: str = ""
    """For `add` of a chat that comes back the name that it went under: what is kept under that one follows. For
    `select` the chat that must still be shown."""
    among: Literal["chats", "members"] = "chats"


def group_path(files: FileStore, user: str, group: str) -> str | None:
    """The path of a group's file below the user's root, by its id; None when there is none that can be read."""
    if existing_name_problem(group) is not None:
        return None
    path = f"{FOLDER}/{group}.json"
    return path if _read(files, user, path) is not None else None


def groups_with(files: FileStore, user: str, name: str, among: Literal["chats", "members"] = "chats") -> list[str]:
    """Paths of the groups that have a chat or member of this name. Cost: every group's file."""
    folder = files.checked_path(user, FOLDER)
    try:
        names = files.fs.listdir(folder)
    except FileMissing:
        return []
    found: list[str] = []
    for file in names:
        path = f"{FOLDER}/{file}"
        group = _read(files, user, path) if file.endswith(".json") and existing_name_problem(file) is None else None
        if group is not None and (name in _listed(group, among) or (among == "chats" and group.get("chat_id") == name)):
            found.append(path)
    return found


def shown_instead(files: FileStore, user: str, paths: list[str], name: str) -> dict[str, str]:
    """What each of these groups that shows the chat will show once it is taken out."""
    found: dict[str, str] = {}
    for path in paths:
        group = _read(files, user, path)
        if group is not None and group.get("chat_id") == name:
            rest = [chat for chat in _listed(group, "chats") if chat != name]
            if rest and isinstance(rest[-1], str):
                found[path] = rest[-1]
    return found


def inherited_metadata(files: FileStore, user: str, name: str) -> bytes | None:
    """The metadata that the group's file holds for a chat of this name: `chat_metadata` of the one that is shown,
    `past_metadata` of the others. None when a file that may hold them cannot be read. Cost: every group's file.

    Old group chats have no header line of their own (F12).
    """
    folder = files.checked_path(user, FOLDER)
    try:
        names = sorted(files.fs.listdir(folder))
    except FileMissing:
        return EMPTY_METADATA
    is_known = True
    for file in names:
        if not file.endswith(".json") or existing_name_problem(file) is not None:
            continue
        group = _read(files, user, f"{FOLDER}/{file}")
        if group is None:
            is_known = False
            continue
        told = metadata_told(group, name)
        if told is not None:
            return told
    return EMPTY_METADATA if is_known else None


def metadata_told(group: dict[str, Any], name: str) -> bytes | None:
    """The metadata that one group's file holds for a chat of this name; None when it holds none."""
    is_shown = group.get("chat_id") == name
    if not is_shown and name not in _listed(group, "chats"):
        return None
    past = group.get("past_metadata")
    told = [group.get("chat_metadata")] if is_shown else []
    told += [past.get(name)] if isinstance(past, dict) else []
    return next((dumps(metadata) for metadata in told if isinstance(metadata, dict) and metadata), None)


def _read(files: FileStore, user: str, path: str) -> dict[str, Any] | None:
    try:
        group = loads(files.read(files.checked_path(user, path)).data)
    except (FsError, ValueError):
        return None
    return group if isinstance(group, dict) else None


def _listed(group: dict[str, Any], among: str) -> list[Any]:
    names = group.get(among)
    return names if isinstance(names, list) else []


def edited(data: bytes, edit: GroupEdit) -> bytes | None:
    """The file with the edit in it; None when there is nothing to do or the file is no group."""
    try:
        group = loads(data)
    except ValueError:
        return None
    if not isinstance(group, dict):
        return None
    chats = list(_listed(group, edit.among))
    before = json.dumps(group)
    if edit.among == "members":
        # SillyTavern lists the ones that are silent apart.
        for key in ("members", "disabled_members"):
            if edit.action == "replace" and edit.chat in _listed(group, key):
                group[key] = [edit.to if name == edit.chat else name for name in _listed(group, key)]
        return None if json.dumps(group) == before else _written(group, data)
    match edit.action:
        case "add":
            if edit.chat not in chats:
                group["chats"] = [*chats, edit.chat]
            if edit.was and edit.was not in chats:
                _follow(group, edit.was, edit.chat)
        case "remove":
            rest = [chat for chat in chats if chat != edit.chat]
            if rest != chats:
                group["chats"] = rest
            if group.get("chat_id") == edit.chat and rest:
                # As SillyTavern does: the last one that is left is shown next.
                _show(group, rest[-1])
        case "select":
            if edit.chat in chats and edit.was in ("", group.get("chat_id")):
                _show(group, edit.chat)
        case "replace":
            if edit.chat in chats:
                group["chats"] = [edit.to if chat == edit.chat else chat for chat in chats]
            _follow(group, edit.chat, edit.to)
    return None if json.dumps(group) == before else _written(group, data)


def with_id(data: bytes, group_id: str) -> bytes:
    """The file under another id; what is no group is returned as it is."""
    try:
        group = loads(data)
    except ValueError:
        return data
    if not isinstance(group, dict) or "id" not in group:
        return data
    return _written({**group, "id": group_id}, data)


def _follow(group: dict[str, Any], old: str, new: str) -> None:
    """What the group keeps under a chat's name, under its new one."""
    if group.get("chat_id") == old:
        group["chat_id"] = new
    past = group.get("past_metadata")
    if isinstance(past, dict) and old in past and new not in past:
        group["past_metadata"] = {new if key == old else key: value for key, value in past.items()}


def _show(group: dict[str, Any], chat: str) -> None:
    """Another chat is shown. `chat_metadata` is the shown one's: it changes places with `past_metadata`, as it does in
    SillyTavern, so that no chat gets another one's.
    """
    before = group.get("chat_id")
    if before == chat:
        return
    group["chat_id"] = chat
    past, shown = group.get("past_metadata"), group.get("chat_metadata")
    past = dict(past) if isinstance(past, dict) else {}
    if isinstance(before, str) and isinstance(shown, dict) and shown:
        past[before] = shown
    if past or shown:
        group["chat_metadata"] = past.get(chat, {})
        group["past_metadata"] = past


def _written(group: dict[str, Any], data: bytes) -> bytes:
    """The file as other programs write it, with the indentation that it had."""
    return json.dumps(group, ensure_ascii=False, indent=_indent(data), separators=_separators(data)).encode(
        "utf-8", "surrogatepass"
    )


def _indent(data: bytes) -> int | None:
    lines = data.split(b"\n", 2)
    return None if len(lines) < 2 else len(lines[1]) - len(lines[1].lstrip(b" ")) or None


def _separators(data: bytes) -> tuple[str, str]:
    return (",", ": ") if b"\n" in data else (",", ":")


def edit_group(files: FileStore, user: str, edit: GroupEdit) -> None:
    """Carry an edit out; a group that is gone needs none. Durable on return. Raises FsError, OSError, OutsideEdit."""
    path = files.checked_path(user, edit.path)
    for attempt in range(TRIES_MAX):
        try:
            standing = files.read(path)
        except FileMissing:
            return
        data = edited(standing.data, edit)
        if data is None:
            # Perhaps a try that was cut off wrote it and did not come to the sync.
            with contextlib.suppress(FileMissing):
                files.make_durable(path)
            return
        try:
            replace_state(files, path, data, standing.identity, "groups")
            return
        except OutsideEdit:
            if attempt == TRIES_MAX - 1:
                raise


def list_beside(files: FileStore, user: str, chat: str, made: str, others: Iterable[str]) -> None:
    """Put a chat that was made beside another one into that one's groups, and of `others`, made before, those that no
    group has: a crash came before they were listed. Durable on return; a group's file that may not be written stays as
    it is. Raises OSError.
    """
    groups = groups_with(files, user, chat)
    for name in (*(one for one in others if groups and not groups_with(files, user, one)), made):
        for path in groups:
            try:
                edit_group(files, user, GroupEdit(path=path, action="add", chat=name))
            except FileMissing:
                continue
            except (OSError, OutsideEdit) as error:
                if isinstance(error, OSError) and error.errno not in (errno.EACCES, errno.EPERM):
                    raise
                log.warning("group-not-in-step", user=user, file=path, chat=name, error=str(error))
