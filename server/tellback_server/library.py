"""Library: what lists and searches ask of where chats are kept. Users' folders and stores are libraries.

    Library           catalog and search_page ask it
    FileLibrary       users' folders, by an index of their files
    StoreLibrary      a store, by the summaries that were saved with each chat

Rules of this module:
- Every method blocks and is called in a thread; one look at a time for one user.
- What is live is joined by the catalog: a library tells what is stored.
"""

from __future__ import annotations

from typing import Final, Protocol

import structlog

from tellback_protocol.ids import ChatById, parse_chat
from tellback_server.clock import Clock
from tellback_server.fs import FileMark
from tellback_server.search import Query, Scan
from tellback_server.store.card import Card
from tellback_server.store.chat_index import CardEntry, ChatEntry, ChatIndex, Folder, folder_of_chats
from tellback_server.store.chat_summary import ChatSummary
from tellback_server.store.files import FileStore
from tellback_server.store.groups import GroupEdit, edit_group
from tellback_server.store.held import OutsideEdit
from tellback_server.store.store_state import decode_listing
from tellback_server.store_index import character_of
from tellback_server.vault import Vault

__all__ = ["FileLibrary", "FolderIndex", "Library", "StoreLibrary"]

log = structlog.get_logger()

_MS_NS: Final = 1_000_000


class FolderIndex(Protocol):
    """One user's chats, characters and groups."""

    @property
    def folder(self) -> Folder:
        """As it was found last."""

    @property
    def is_dirty(self) -> bool:
        """What was found is worth saving."""

    def look(self) -> Folder:
        """As it is now. Raises OSError, StoreError."""

    def save(self) -> None:
        """Keep what was found for the next start. Raises OSError."""

    def read_deleted(self, path: str, chat: str) -> ChatEntry | None:
        """What a chat's file in the trash holds; None when it is not there."""


class Library(Protocol):
    """Where chats are kept, for whoever looks at many."""

    def index(self, user: str) -> FolderIndex:
        """A user's, made anew."""

    def scan(self, user: str, chat: str, query: Query, index: int) -> tuple[Scan, int]:
        """A search of a chat that nobody has open, and what was read for it. Raises StoreError."""

    def select(self, user: str, file: str, chat: str) -> None:
        """A group's active chat was chosen: whoever shares the place is told, if that is possible."""


class FileLibrary:
    """See Library."""

    def __init__(self, files: FileStore, clock: Clock) -> None:
        self._files = files
        self._clock = clock

    def index(self, user: str) -> ChatIndex:
        return ChatIndex(self._files, user, self._clock)

    def scan(self, user: str, chat: str, query: Query, index: int) -> tuple[Scan, int]:
        place = parse_chat(chat)
        assert not isinstance(place, str | ChatById), "listed chats have names"
        data = b""
        try:
            data = self._files.fs.read(self._files.chat_path(user, place))
        except OSError as error:
            log.warning("search-passed-over", user=user, chat=chat, error=str(error))
        return Scan.of_file(query, chat, data, index), len(data)

    def select(self, user: str, file: str, chat: str) -> None:
        """SillyTavern shows what its group's file says. When that cannot be written, what was set counts all the same.
        """
        try:
            edit_group(self._files, user, GroupEdit(path=f"groups/{file}", action="select", chat=chat))
        except (OSError, OutsideEdit) as error:
            log.warning("group-not-in-step", user=user, file=file, error=str(error))


class StoreLibrary:
    """See Library."""

    def __init__(self, files: FileStore, vault: Vault, clock: Clock) -> None:
        self._files = files
        self._vault = vault
        self._clock = clock

    def index(self, user: str) -> _StoreFolders:
        return _StoreFolders(self._vault, ChatIndex(self._files, user, self._clock))

    def scan(self, user: str, chat: str, query: Query, index: int) -> tuple[Scan, int]:
        chat_id = self._vault.index.id_of(user, chat)
        value = None if chat_id is None else self._vault.read(user, chat_id)
        lines = [] if value is None else list(value.messages.items())
        return Scan.of_lines(query, chat, lines, index), sum(len(line) for _id, line in lines)

    def select(self, user: str, file: str, chat: str) -> None:
        raise AssertionError("a store holds no groups")


class _StoreFolders:
    """One user's owners in a store, as a folder tells of files. There are no groups, and no cards with a picture."""

    is_dirty = False

    def __init__(self, vault: Vault, trash: ChatIndex) -> None:
        self._vault = vault
        self._trash = trash
        self._changes = -1
        self.folder = trash.folder

    def look(self) -> Folder:
        index, user = self._vault.index, self._trash.user
        if index.changes(user) == self._changes:
            return self.folder
        self._changes, owners = index.owners(user)
        chats: dict[str, ChatEntry] = {}
        cards: dict[str, CardEntry] = {}
        for one in owners.values():
            character = character_of(one.name)
            if character is not None and character not in cards:
                cards[character] = CardEntry("", FileMark(0, 0, 0), Card())
            if isinstance(parse_chat(one.name), str):
                continue
            listing = decode_listing(one.summary)
            chats[one.name] = ChatEntry(
                one.name, FileMark(listing.size_bytes, listing.changed_ms * _MS_NS, 0),
                ChatSummary(listing.count, listing.preview, listing.main_chat), 0, one.chat_id, one.name,
            )
        self.folder = folder_of_chats(chats, dict(sorted(cards.items())), {})
        return self.folder

    def save(self) -> None:
        """It is the store's."""

    def read_deleted(self, path: str, chat: str) -> ChatEntry | None:
        return self._trash.read_deleted(path, chat)
