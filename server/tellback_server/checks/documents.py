"""Documents: the small JSON files beside chats, and those of the server itself. Pure: bytes in, findings out."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, TypeVar

import msgspec

from tellback_protocol.floors import FloorLog, read_log
from tellback_protocol.ids import is_integrity
from tellback_protocol.values import UNDECODABLE, loads
from tellback_server.active_chats import ActiveFile
from tellback_server.checks.findings import Tally
from tellback_server.log.term import decode_term, repaired_term
from tellback_server.registrar import Registered
from tellback_server.sealed import unseal, unseal_line
from tellback_server.sessions import SessionFile
from tellback_server.staged import owner_from
from tellback_server.store.base import StoreDamaged
from tellback_server.store.chat_index import index_problem
from tellback_server.store.marks import ChatSync, sync_of
from tellback_server.store_binding import Binding
from tellback_server.trash import Entry

__all__ = [
    "check_active", "check_binding", "check_floor_log", "check_flushed", "check_group", "check_index", "check_journal",
    "check_manifest", "check_name", "check_owner_copy", "check_preset", "check_session", "check_state", "check_sync",
    "check_term", "object_of",
]

_Kept = TypeVar("_Kept")


def object_of(data: bytes) -> Any:
    """The JSON value. Raises ValueError with what is wrong, shortened."""
    try:
        return loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(str(error)[:120]) from None


def check_state(data: bytes, tally: Tally, *, is_known: bool) -> None:
    """A state sidecar. `is_known`: something tells what else it held."""
    try:
        value = object_of(data)
    except ValueError as error:
        tally.add("state-not-json", str(error), is_known=is_known)
        return
    if not isinstance(value, dict):
        tally.add("state-not-object")


def check_sync(data: bytes, name: str, tally: Tally) -> ChatSync | None:
    """chat_sync; None when it tells nothing."""
    sync = sync_of(data)
    if sync is None:
        tally.add("sync-unusable", "not a JSON object")
    elif "tellback" not in sync.fields:
        tally.add("sync-foreign")
    elif sync.mark is None:
        tally.add("sync-unusable", "what tellback wrote into it does not match its checksum or is incomplete")
    elif sync.mark.name != name:
        tally.add("sync-copied", f"it names {sync.mark.name}")
    elif not is_integrity(sync.mark.chat_id):
        tally.add("sync-unusable", "its chat_id is no UUID")
        return None
    elif sync.fields.get("integrity") not in (sync.mark.version.integrity, sync.mark.head.integrity):
        tally.add("sync-edited")
    return sync


def check_floor_log(data: bytes, ids: list[str] | None, tally: Tally, *, is_known: bool) -> FloorLog | None:
    """The log of a floor state. `ids` are those of the chat's messages, None when they are not known; `is_known` as for
    a state.
    """
    try:
        log = read_log(data, ids or [])
    except (ValueError, RecursionError) as error:
        tally.add("state-not-json", str(error)[:120], is_known=is_known)
        return None
    if log is None:
        tally.add("floor-log-odd", is_known=is_known)
        return None
    standing = set(ids or [])
    for number, commit in enumerate(log.commits):
        if not commit.is_understood:
            tally.add("floor-commit-odd", f"commit {number}")
        elif ids is not None and commit.message is not None and commit.message not in standing:
            tally.add("floor-message-missing", f"commit {number}")
    return log


def check_group(
    data: bytes, file_id: str, chats: Collection[str] | None, cards: Collection[str], tally: Tally
) -> list[str]:
    """A group's file; the chats that it lists. `chats` and `cards` are the names that have a file, None when chats have
    none.
    """
    try:
        group = object_of(data)
    except ValueError as error:
        tally.add("group-not-json", str(error))
        return []
    if not isinstance(group, dict):
        tally.add("group-not-json", "not an object")
        return []
    listed = [name for name in _list(group, "chats") if isinstance(name, str)]
    for name in listed:
        if chats is not None and name not in chats:
            tally.add("group-chat-missing", name[:80])
    for name in _list(group, "members"):
        if not isinstance(name, str) or name not in cards:
            tally.add("group-member-missing", str(name)[:80])
    shown = group.get("chat_id")
    if isinstance(shown, str) and shown not in listed:
        tally.add("group-shown-unlisted", shown[:80])
    if group.get("id") not in (file_id, None) and str(group.get("id")) != file_id:
        tally.add("group-id-differs")
    return listed


def _list(group: Mapping[str, Any], key: str) -> list[Any]:
    value = group.get(key)
    return value if isinstance(value, list) else []


def check_preset(data: bytes, tally: Tally) -> None:
    """A preset."""
    try:
        if not isinstance(object_of(data), dict):
            tally.add("preset-not-json", "not an object")
    except ValueError as error:
        tally.add("preset-not-json", str(error))


# -- the server's own ------------------------------------------------------------------------------------------------


def _sealed_as(kind: type[_Kept], data: bytes, tally: Tally, broken: str) -> _Kept | None:
    """What a sealed file holds; None when it tells nothing, which is then told as `broken`."""
    unsealed = unseal(data)
    if unsealed is None:
        tally.add(broken, "it does not match its checksum")
        return None
    body, was_flipped = unsealed
    if was_flipped:
        tally.add("session-bit-flipped")
    try:
        return msgspec.json.decode(body, type=kind)
    except UNDECODABLE as error:
        tally.add(broken, str(error)[:120])
        return None


def check_session(data: bytes, chat_id: str, tally: Tally) -> SessionFile | None:
    """A session file; None when it tells nothing."""
    saved = _sealed_as(SessionFile, data, tally, "session-unusable")
    if saved is not None and saved.base.chat_id != chat_id:
        tally.add("session-unusable", "it is another chat's")
        return None
    return saved


def check_active(data: bytes, tally: Tally) -> None:
    """The remembered active chats."""
    _sealed_as(ActiveFile, data, tally, "active-unusable")


def check_name(data: bytes, tally: Tally) -> None:
    """What an owner was called before."""
    _sealed_as(Registered, data, tally, "name-unusable")


def check_manifest(data: bytes, folder: str, tally: Tally) -> Entry | None:
    """The manifest of a trash entry; None when it tells nothing."""
    entry = _sealed_as(Entry, data, tally, "manifest-broken")
    if entry is not None and entry.folder != folder:
        tally.add("manifest-broken", "it belongs to another folder")
        return None
    return entry


def check_index(data: bytes, user: str, tally: Tally) -> None:
    """The index of lists."""
    problem = index_problem(data, user)
    if problem is not None:
        tally.add("index-unusable", problem)


def check_binding(data: bytes, tally: Tally) -> None:
    """Which store the folder belongs to."""
    _sealed_as(Binding, data, tally, "binding-unusable")


def check_flushed(data: bytes, tally: Tally) -> None:
    """How far a backup was brought."""
    _sealed_as(dict, data, tally, "flushed-unusable")


def check_owner_copy(data: bytes, name: str, tally: Tally) -> None:
    """An owner of a store, kept by the server itself."""
    try:
        owner_from(data, name)
    except StoreDamaged as error:
        tally.add("owner-copy-broken", str(error)[:120])


def check_journal(data: bytes, tally: Tally) -> None:
    """What was imported."""
    for number, line in enumerate(data.split(b"\n"), 1):
        if line and unseal_line(line) is None:
            tally.add("journal-line-broken", line=number)


def check_term(data: bytes, tally: Tally) -> None:
    """The term file."""
    if decode_term(data) is None:
        tally.add("term-bit-flipped" if repaired_term(data) is not None else "term-unusable")
