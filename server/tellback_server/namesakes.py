"""Namesakes: names that no file has and that are not free all the same, because another chat links to who had them.

Rules of this module (BEHAVIOUR J8):
- Every function blocks and only reads.
- A name that differs only in case or Unicode form is the same name: some file system takes one for the other.
"""

from __future__ import annotations

from typing import Final

from tellback_protocol.ids import ChatName, Place, StateOwner, parse_place, stem_of
from tellback_server.registrar import FormerName, Registrar
from tellback_server.store.files import FileStore
from tellback_server.store.place import file_of
from tellback_server.survey import Live, folder_of, linked_from

__all__ = ["NOBODY", "held_back", "names_of"]

NOBODY: Final[Live] = {}


def held_back(
    registrar: Registrar, files: FileStore, user: str, name: str, now_ms: int, *, own_id: str = "", live: Live = NOBODY
) -> tuple[str, str] | None:
    """Why a name is not free although no file has it: a chat that had it, or one that some file system takes for it, is
    in the trash or has another name now, and another chat links to it (J8). `own_id` is whose name it may become again.
    """
    place = _place(name)
    for registered, was in registrar.had(user, name):
        if registered.chat_id == own_id or isinstance(place, StateOwner):
            continue
        gone = registered.gone
        if gone is None:
            today, stem = registrar.name_today(user, registered.name, now_ms), stem_of(_place(was))
            found = registered.links if stem in registered.linked_as else linked_from(
                files, user, _chat(today), {stem}, live
            )
            if found:
                return "exists", f"{found[0]} links to the chat of this name, now {today}."
        elif gone.linked_from:
            folder = files.checked_path(user, f"trash/{gone.deleted_ms}-{registered.chat_id}")
            if files.fs.stat(folder) is not None:
                links = ", ".join(gone.linked_from[:3])
                return "deleted", (
                    f"The chat {was} is in the trash and {links} links to it: restore id:{registered.chat_id}."
                )
    return None


def names_of(files: FileStore, user: str, name: str, former: list[FormerName], live: Live = NOBODY) -> set[str]:
    """The names alone by which a chat can be linked to: its own, and those that it had and nobody has since."""
    names = {stem_of(_place(name))}
    for one in former:
        was = _place(one.name)
        if not isinstance(was, StateOwner) and folder_of(was) == folder_of(_place(name)):
            is_used = one.name in live or files.fs.stat(
                files.checked_path(user, "/".join((folder_of(was), file_of(was)[1])))
            ) is not None
            if not is_used:
                names.add(was.chat)
    return names


def _place(name: str) -> Place:
    place = parse_place(name)
    assert not isinstance(place, str), "a stored name is an address"
    return place


def _chat(name: str) -> ChatName:
    place = _place(name)
    assert not isinstance(place, StateOwner), "a chat's name"
    return place
