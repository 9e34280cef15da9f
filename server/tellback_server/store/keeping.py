"""Keeping: what is put aside before anything of ours or theirs is given up.

Rules of this module (STORAGE "User files" F9):
- Everything here is durable on return and found again when it is done twice: a restart in the middle makes no second
  copy.
- A swap file is removed only when its bytes are known to be ours; else it is given its name back, or kept as a backup.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from tellback_protocol.chat import Chat, with_integrity
from tellback_protocol.errors import Refused
from tellback_protocol.ids import NAME_BYTES_MAX, CharacterChat, ChatName, GroupChat, derived_uuid
from tellback_protocol.values import dumps, loads
from tellback_server.failpoint import failpoint
from tellback_server.fs import FileMissing, FileTaken
from tellback_server.owner_past import OwnerPast
from tellback_server.records import FileIdentity
from tellback_server.store.files import FileStore
from tellback_server.store.groups import list_beside
from tellback_server.store.jsonl import parse_chat, render

__all__ = ["keep_recovered", "plain_file", "recovered_names", "settle_swap"]

RECOVERED_MAX = 1000
"""Chats called `<name> - recovered #n` that are tried before giving up."""


def plain_file(chat: Chat) -> bytes:
    """A chat as a file of its own. The same chat gives the same bytes, so a repetition is recognised."""
    header = {"user_name": "unused", "character_name": "unused", "chat_metadata": loads(chat.metadata)}
    image = parse_chat(dumps(header) + b"\n", headed=True).image
    return render(image, chat.messages, chat.bare, image.metadata, "", 0).data


def recovered_names(place: ChatName) -> Iterator[ChatName]:
    """Names for what is recovered of a chat, beside it."""
    stem = place.chat.encode()[: NAME_BYTES_MAX + 64].decode("utf-8", "ignore")
    for number in range(1, RECOVERED_MAX):
        name = f"{stem} - recovered #{number}"
        yield CharacterChat(place.character, name) if isinstance(place, CharacterChat) else GroupChat(name)


def keep_recovered(files: FileStore, user: str, place: ChatName, chat: Chat, beside: Chat | None = None) -> str:
    """Makes the chat `<name> - recovered #n` in the same folder, and lists it in its groups; its full name. Raises
    OSError, Refused `exists`.

    With `beside` one that stands is taken when it has all that this one lacks: a start knows our version from the log
    only, and a kill may have come after it was kept as it was.
    """
    data = _recovered_file(chat)
    others: list[str] = []
    for other in recovered_names(place):
        standing = files.read_chat(user, other)
        if standing is not None and standing.data != data and not _has_all(other, standing.data, chat, beside):
            others.append(other.chat)
            continue
        if standing is not None:
            files.make_durable(files.chat_path(user, other))
        else:
            try:
                files.write_new(user, other, data)
            except (FileTaken, Refused):
                continue
        failpoint("recovered.after_chat")
        if isinstance(place, GroupChat):
            list_beside(files, user, place.chat, other.chat, others)
            failpoint("recovered.after_groups")
        return str(other)
    raise Refused("exists", f"There are {RECOVERED_MAX} recovered chats of this name.")


def _has_all(place: ChatName, data: bytes, chat: Chat, beside: Chat | None) -> bool:
    """Whether a file and `beside` together hold the chat: each message as it is, none that it deleted, its metadata."""
    if beside is None:
        return False
    lacking = {one: line for one, line in chat.messages.items() if beside.messages.get(one) != line}
    kept = parse_chat(data, headed=isinstance(place, CharacterChat))
    wanted = with_integrity(chat.metadata, "")
    return (
        bool(lacking) and all(kept.messages.get(one) == line for one, line in lacking.items())
        and kept.messages.keys().isdisjoint(beside.messages.keys() - chat.messages.keys())
        and any(with_integrity(one, "") == wanted for one in (beside.metadata, kept.metadata))
    )


def _recovered_file(chat: Chat) -> bytes:
    """As `plain_file`. Its own `integrity` is made of what it holds, without that of its source."""
    metadata = with_integrity(chat.metadata, "")
    integrity = derived_uuid("recovered", metadata, *chat.messages.values())
    own = Chat(chat.version, with_integrity(metadata, integrity), chat.messages, bare=chat.bare, odd=chat.odd)
    return plain_file(own)


def settle_swap(files: FileStore, user: str, place: ChatName, chat_id: str, past: OwnerPast, now_ms: int) -> None:
    """Finds out what a crash left at the swap name, while nothing else of this server touches the chat.

        chat file      swap file                    so
        any            bytes that are known ours    the swap was not begun, or was ended: removed
        the base's     anything else                our half-written new file: removed
        an INTENT's    anything else                another program's save, swapped out by us: given its name back
        anything else  anything else                nobody can tell: kept as a backup
    """
    path = files.swap_path(user, place, chat_id)
    if files.fs.stat(path) is None:
        return
    swap = files.read(path)
    standing = files.read_chat(user, place)
    before, after = _known(past)
    if not _among(swap.identity, before | after) and standing is not None:
        if _among(standing.identity, after):
            chat_path = files.chat_path(user, place)
            with files.operation("swap-back", chat_path, size_bytes=swap.identity.size_bytes):
                if not files.fs.exchange(path, chat_path):
                    files.fs.rename(path, chat_path)
        elif not _among(standing.identity, before):
            files.backup(user, chat_id, past.base.head.seq if past.base else 0, now_ms, swap.data)
    elif standing is None and not _among(swap.identity, before | after):
        files.backup(user, chat_id, past.base.head.seq if past.base else 0, now_ms, swap.data)
    with contextlib.suppress(FileMissing):
        files.fs.unlink(path)
    files.fs.fsync_directory(os.path.dirname(path))


def _known(past: OwnerPast) -> tuple[set[tuple[int, int]], set[tuple[int, int]]]:
    before: set[tuple[int, int]] = set()
    after: set[tuple[int, int]] = set()
    if past.base is not None and past.base.file is not None:
        before.add((past.base.file.size_bytes, past.base.file.crc32))
    for intent in past.ours():
        if intent.before is not None:
            before.add((intent.before.size_bytes, intent.before.crc32))
        after.add((intent.size_bytes, intent.crc32))
    return before, after - before


def _among(identity: FileIdentity, known: set[tuple[int, int]]) -> bool:
    return (identity.size_bytes, identity.crc32) in known
