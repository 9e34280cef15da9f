"""The registrar: which names owners had before, and which owners are in the trash.

    Registrar(files).load(users)                in a thread, before serving
    registrar.former(user, name, now_ms)        whose name that was, for 30 days
    registrar.of(user, chat_id)                 what is known of an owner that was renamed or deleted
    write_registered(files, registered)         in a thread; durable on return; then `registrar.put(registered)`

    <data>/.tellback/names/<user>/<chat_id>.json    one Registered; only for owners that were renamed or deleted

Rules of this module (BEHAVIOUR J5, J6):
- One small file an owner: what a rename costs does not grow with the renames before it.
- A name's first chat_id is derived from the name (F1). Once that owner went away with it, the next file of this name
  gets another id, the same after every restart: `new_id`.
- An entry that says nothing any more (30 days old, its owner gone, its id not derived from a name) is removed at the
  start.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from typing import Final

import msgspec

from tellback_protocol.ids import Version, derived_uuid, provisional_chat_id
from tellback_server.fs import FileMissing, FsError
from tellback_server.records import Checkpointed
from tellback_server.sealed import seal, unseal
from tellback_server.store.files import FileStore, twin_key

__all__ = ["ANSWERED_MS", "FormerName", "Gone", "GoneChat", "Registered", "Registrar", "new_id", "write_registered"]

ANSWERED_MS: Final = 30 * 24 * 3600 * 1000
"""How long an old name answers `renamed` or `deleted`."""


class FormerName(msgspec.Struct, frozen=True, gc=False):
    name: str
    left_ms: int


class GoneChat(msgspec.Struct, frozen=True, gc=False):
    """A chat that went with its character."""

    name: str
    chat_id: str
    version: Version | None
    """As chat_sync told them; None for a chat that nobody wrote to."""
    head: Version | None


class Gone(msgspec.Struct, frozen=True, kw_only=True):
    """A deletion, as far as the trash does not tell it."""

    deleted_ms: int
    base: Checkpointed
    """What the files held, at the version of the deletion."""
    linked_from: list[str] = []
    """Chats that linked to it."""
    groups: list[str] = []
    """Paths of the group files that it was taken out of."""
    shown: dict[str, str] = {}
    """Paths of the groups that showed it, and what each shows in its place."""
    with_chats: bool = False
    """A character's chats went with it."""
    chats: list[GoneChat] = []
    """Those."""


class Registered(msgspec.Struct, frozen=True, kw_only=True):
    """An owner that was renamed or deleted. Persisted: keep stable."""

    user: str
    chat_id: str
    name: str
    """Its name now, or the one it had when it was deleted."""
    former: list[FormerName] = []
    """Names that it had before, the oldest first."""
    gone: Gone | None = None
    links: list[str] = []
    """Chats that link to it by a name that it had, as long as they were not told."""
    linked_as: list[str] = []
    """Those names, without their folder."""

    def former_as(self, to: str, now_ms: int) -> list[FormerName]:
        """The names that it had, once it is called `to`."""
        former = [one for one in self.former if one.name != to]
        return former if self.name == to else [*former, FormerName(self.name, now_ms)]


_decode = msgspec.json.Decoder(Registered).decode


def _folder(files: FileStore, user: str) -> str:
    return os.path.join(files.server_root, "names", user)


def write_registered(files: FileStore, registered: Registered) -> None:
    """Durable on return. Raises OSError."""
    folder = _folder(files, registered.user)
    files.fs.make_directories(folder)
    path = os.path.join(folder, f"{registered.chat_id}.json")
    data = seal(msgspec.json.encode(registered))
    with files.operation("write-name", path, size_bytes=len(data)):
        files.fs.write_atomically(path, data)


def new_id(user: str, name: str, used: set[str]) -> str:
    """The id of a file of this name that was never written by us, when owners with `used` ids had the name before."""
    chat_id: str = provisional_chat_id(user, name)
    again = 0
    while chat_id in used:
        again += 1
        chat_id = derived_uuid("chat", user, name, again)
    return chat_id


class Registrar:
    """All users' entries, in memory. Used by one thread at a time for changes; read from any."""

    def __init__(self, files: FileStore) -> None:
        self._files = files
        self._by_id: dict[tuple[str, str], Registered] = {}
        self._by_name: dict[tuple[str, str], list[str]] = {}
        """Ids of owners that had a name, the latest last."""
        self._twins: dict[tuple[str, str], dict[str, None]] = {}
        """Those names, by what some file system takes for one."""
        self._above: dict[tuple[str, str], str] = {}
        """Ids of characters, by the ids of chats that went to the trash with them."""
        files.new_id = self.new_id

    def load(self, users: Iterable[str], now_ms: int) -> None:
        """Read every entry. Blocks; before serving."""
        fs = self._files.fs
        for user in users:
            folder = _folder(self._files, user)
            try:
                names = fs.listdir(folder)
            except FileMissing:
                continue
            found: list[Registered] = []
            for name in names:
                path = os.path.join(folder, name)
                if not name.endswith(".json"):
                    continue
                try:
                    unsealed = unseal(fs.read(path))
                    registered = _decode(unsealed[0] if unsealed is not None else b"")
                except (FsError, msgspec.MsgspecError):
                    continue
                if _says_nothing(registered, now_ms):
                    with contextlib.suppress(OSError):
                        fs.unlink(path)
                else:
                    found.append(registered)
            for registered in sorted(found, key=_left_ms):
                self.put(registered)

    def write(self, registered: Registered) -> None:
        """Make an entry durable that no operation writes; `put` comes behind. Blocks. Raises OSError."""
        write_registered(self._files, registered)

    def put(self, registered: Registered) -> None:
        """Know an entry, in place of what was known of its owner."""
        user, chat_id = registered.user, registered.chat_id
        before = self._by_id.get((user, chat_id))
        for chat in before.gone.chats if before is not None and before.gone is not None else ():
            self._above.pop((user, chat.chat_id), None)
        for chat in registered.gone.chats if registered.gone is not None else ():
            self._above[user, chat.chat_id] = chat_id
        self._by_id[user, chat_id] = registered
        had = [former.name for former in registered.former]
        if registered.gone is not None:
            had.append(registered.name)
        for name in had:
            ids = self._by_name.setdefault((user, name), [])
            self._twins.setdefault((user, twin_key(name)), {})[name] = None
            if chat_id in ids:
                ids.remove(chat_id)
            ids.append(chat_id)

    @property
    def entries(self) -> list[Registered]:
        """All of them."""
        return list(self._by_id.values())

    def of(self, user: str, chat_id: str) -> Registered | None:
        """What is known of an owner; None when it always had its name."""
        return self._by_id.get((user, chat_id))

    def went_with(self, user: str, chat_id: str) -> tuple[GoneChat, Registered] | None:
        """A chat that is in the trash with its character, and that character."""
        above = self._by_id.get((user, self._above.get((user, chat_id), "")))
        if above is None or above.gone is None:
            return None
        return next(((chat, above) for chat in above.gone.chats if chat.chat_id == chat_id), None)

    def former(self, user: str, name: str, now_ms: int) -> Registered | None:
        """Who had this name last and has it no more, for 30 days. A chat of a character that was renamed, or deleted
        with its chats, is answered for by the character.
        """
        found = self._former(user, name, now_ms)
        owner, slash, chat = name.partition("/")
        if found is not None or not slash or not name.startswith("character:"):
            return found
        above = self._former(user, owner, now_ms)
        if above is None or (above.gone is not None and not above.gone.with_chats):
            return None
        name = f"{above.name}/{chat}"
        gone = () if above.gone is None else above.gone.chats
        # The id of a chat that its character took along under another name is not known here.
        chat_id = next((one.chat_id for one in gone if one.name == name), "")
        return msgspec.structs.replace(above, name=name, chat_id=chat_id)

    def had(self, user: str, name: str) -> list[tuple[Registered, str]]:
        """Who had this name or one that some file system takes for it, and has it no more; each with that name.

        However long ago: whoever gives the name away has to look who links to it.
        """
        return [
            (registered, known)
            for known in self._twins.get((user, twin_key(name)), ())
            for registered in (self._by_id[user, chat_id] for chat_id in self._by_name[user, known])
            if registered.gone is not None or registered.name != known
        ]

    def name_today(self, user: str, name: str, now_ms: int) -> str:
        """Where a chat of this name belongs now: its character may have another name."""
        owner, slash, chat = name.partition("/")
        above = self._former(user, owner, now_ms) if slash and name.startswith("character:") else None
        return name if above is None or above.gone is not None else f"{above.name}/{chat}"

    def _former(self, user: str, name: str, now_ms: int) -> Registered | None:
        for chat_id in reversed(self._by_name.get((user, name), ())):
            registered = self._by_id[user, chat_id]
            if registered.gone is not None:
                if registered.name == name and now_ms - registered.gone.deleted_ms < ANSWERED_MS:
                    return registered
            elif registered.name == name:
                # It has it again.
                continue
            for former in registered.former:
                if former.name == name and now_ms - former.left_ms < ANSWERED_MS:
                    return registered
        return None

    def new_id(self, user: str, name: str) -> str:
        """See the function."""
        ids = self._by_name.get((user, name))
        if ids is None:
            return provisional_chat_id(user, name)
        used = {
            chat_id for chat_id in ids
            if self._by_id[user, chat_id].gone is not None or self._by_id[user, chat_id].name != name
        }
        return new_id(user, name, used)


def _left_ms(registered: Registered) -> int:
    if registered.gone is not None:
        return registered.gone.deleted_ms
    return registered.former[-1].left_ms if registered.former else 0


def _says_nothing(registered: Registered, now_ms: int) -> bool:
    if now_ms - _left_ms(registered) < ANSWERED_MS or registered.gone is not None or registered.links:
        return False
    names = {registered.name, *(former.name for former in registered.former)}
    # Long chains are not looked at: an id that was derived again after a rename stays known.
    derived = {provisional_chat_id(registered.user, name) for name in names}
    return registered.chat_id not in derived and registered.chat_id[14] == "4"
