"""The catalog: what a user asks of no single owner: lists, search, active chats, characters and groups.

    tab.submit --> one queue a connection --> its worker: look at the folders (thread), join what is live (loop),
    wait until that is durable, answer

Rules of this module (BEHAVIOUR I1-I12):
- Answers come in the order of the questions of a connection; they count as in flight and hold up nobody else's acks.
- Folders are looked at and chats are read in threads of its own; a few searches at once, fewer for one user.
- A page of a search has a bound of time and bytes; a tab that left ends its search at the next look at the clock.
- Reading writes nothing but the index, which is derived.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final, Protocol, TypeVar

import msgspec
import structlog
from msgspec import UNSET, Raw

from tellback_protocol import codec
from tellback_protocol.backups import BackupCreate, BackupGet, BackupList
from tellback_protocol.catalog_frames import (
    ActiveChatFrame,
    Character,
    CharacterListFrame,
    ChatListFrame,
    ChatSearchFrame,
    GroupListFrame,
    ListedChat,
)
from tellback_protocol.errors import Refused
from tellback_protocol.files import FileGet, FileList
from tellback_protocol.repairs import ChatRepair
from tellback_protocol.requests import ActiveChat, CharacterList, ChatList, ChatSearch, GroupList, UserRequest
from tellback_protocol.status import StatusGet
from tellback_protocol.trash import TrashEmpty, TrashList
from tellback_server.active_chats import ActiveChats
from tellback_server.activity import Activity, LiveChat
from tellback_server.actor import Actor
from tellback_server.backup_desk import BackupDesk
from tellback_server.file_desk import FileDesk
from tellback_server.hub import Hub
from tellback_server.library import FolderIndex, Library
from tellback_server.listed import Filter, listed_live, listed_stored, live_chats, live_key
from tellback_server.log import LogClosed, LogPoisoned, Position
from tellback_server.paging import Key, Rows, page_of_names, read_cursor
from tellback_server.repair_desk import RepairDesk
from tellback_server.rooms import store_away
from tellback_server.search import Query
from tellback_server.search_page import SearchPage
from tellback_server.status_desk import StatusDesk
from tellback_server.store.base import StoreError, StoreUnavailable
from tellback_server.store.chat_index import Folder
from tellback_server.store.files import FileStore
from tellback_server.tab import Tab
from tellback_server.trash import Trash, chats_of
from tellback_server.trash_desk import TrashDesk
from tellback_server.websocket import text_frame

log = structlog.get_logger()
Result = TypeVar("Result")

THREADS: Final = 4
SEARCHES_MAX: Final = 2
"""At once, of all users; lists always find a thread."""
SEARCHES_PER_USER_MAX: Final = 1
LOOKS_MAX: Final = 3
"""How often folders are looked at anew because a chat left memory meanwhile."""
SAVE_S: Final = 2.0
"""After a choice or a change of the folders, until the files of ours are written."""
PAGE_BYTES: Final = 1 << 20
"""Of characters or groups in one frame, but for a group that alone is larger."""
CARD_BYTES: Final = 1 << 10
"""What a character takes at most beside the name in its card."""
INDEXES_MAX: Final = 64
"""Users whose index stays in memory."""


class Shelves(Protocol):
    """What is needed of the keeper."""

    async def caught_up(self, user: str) -> None:
        """Until the chats that a crash left unfolded are live."""


class _User:
    """One user's index, and who waits for it."""

    def __init__(self, index: FolderIndex) -> None:
        self.index = index
        self.lock = asyncio.Lock()
        self.begun = 0
        self.done = 0
        self.searches = asyncio.Semaphore(SEARCHES_PER_USER_MAX)


class Found(msgspec.Struct, frozen=True):
    """A user's chats at one moment."""

    folder: Folder
    rows: Rows
    live: dict[str, Actor]
    keys: dict[str, Key]
    """Of what is live."""
    total: int


class Catalog:
    """The hub's desk for what concerns no single owner."""

    def __init__(self, hub: Hub, files: FileStore, library: Library, shelves: Shelves) -> None:
        self._hub = hub
        self._files = files
        self._library = library
        self._shelves = shelves
        self._trash = Trash(files)
        self._active = ActiveChats(hub.log, files)
        self.executor = ThreadPoolExecutor(THREADS, thread_name_prefix="tellback-catalog")
        self._users: dict[str, _User] = {}
        self._searches = asyncio.Semaphore(SEARCHES_MAX)
        self._queues: dict[Tab, deque[tuple[UserRequest, int]]] = {}
        self._workers: dict[Tab, asyncio.Task[None]] = {}
        self._saving: asyncio.TimerHandle | None = None
        self.backups: BackupDesk | None = None
        """Who answers for backups; set once, before the first request."""
        self.trash: TrashDesk | None = None
        """As `backups`, for the trash."""
        self.repairs: RepairDesk | None = None
        """As `backups`, for damaged chats."""
        self.files: FileDesk | None = None
        """As `backups`, for files of other programs."""
        self.status: StatusDesk | None = None
        """As `backups`, for how everything stands."""
        self._stopping = False

    async def start(self) -> None:
        """Learn which chats are active."""
        owners = list(self._hub.log.owners())
        await self._run(lambda: self._active.load(owners))
        if self._active.unsaved is not None:
            self._save_soon()

    async def stop(self) -> None:
        """Save what is known. The index is derived: when it cannot be written it is rebuilt."""
        self._stopping = True
        for worker in self._workers.values():
            worker.cancel()
        await asyncio.gather(*self._workers.values(), return_exceptions=True)
        if self._saving is not None:
            self._saving.cancel()
        await self._save()
        self.executor.shutdown(wait=True)

    # -- what the hub asks -------------------------------------------------------------------------------------------

    def submit(self, tab: Tab, request: UserRequest, size_bytes: int) -> None:
        """See Desk."""
        queue = self._queues.setdefault(tab, deque())
        queue.append((request, size_bytes))
        if tab not in self._workers:
            worker = self._workers[tab] = self._hub.loop.create_task(self._work(tab, queue))
            worker.add_done_callback(partial(self._ended, tab))

    def left(self, tab: Tab) -> None:
        """See Desk."""
        self._queues.pop(tab, None)
        worker = self._workers.get(tab)
        if worker is not None:
            worker.cancel()

    def _ended(self, tab: Tab, worker: asyncio.Task[None]) -> None:
        # One that ended by itself may have a successor already.
        if self._workers.get(tab) is worker:
            del self._workers[tab]

    @property
    def needed(self) -> Position | None:
        """The oldest record of the log that is in no file yet."""
        return self._active.unsaved

    async def _work(self, tab: Tab, queue: deque[tuple[UserRequest, int]]) -> None:
        while queue and tab.is_open:
            request, size_bytes = queue.popleft()
            try:
                frame = await self._answer(tab, request)
            except Refused as refusal:
                self._hub.counters.refused(refusal.code)
                frame = codec.error(refusal, {"id": request.id})
            if not tab.is_open:
                return
            tab.outbox.answer(self, text_frame(frame))
            tab.outbox.flush()
            tab.answered(size_bytes)
        # No await since the queue was seen empty: what comes later starts another worker.
        self._queues.pop(tab, None)
        self._workers.pop(tab, None)

    async def _answer(self, tab: Tab, request: UserRequest) -> bytes:
        try:
            match request:
                case ChatList():
                    frame: object = await (self._deleted if request.deleted else self._list)(tab.user, request)
                case ChatSearch():
                    frame = await self._search(tab, request)
                case ActiveChat():
                    frame = await self._active_chat(tab.user, request)
                case CharacterList():
                    frame = await self._characters(tab.user, request)
                case GroupList():
                    frame = await self._groups(tab.user, request)
                case BackupList() | BackupCreate() | BackupGet():
                    assert self.backups is not None, "set before the first request"
                    frame = await self.backups.answer(tab, request)
                case TrashList() | TrashEmpty():
                    assert self.trash is not None, "set before the first request"
                    frame = await self.trash.answer(tab, request)
                case ChatRepair():
                    assert self.repairs is not None, "set before the first request"
                    frame = await self.repairs.answer(tab, request)
                case FileList() | FileGet():
                    assert self.files is not None, "set before the first request"
                    frame = await self.files.answer(tab, request)
                case StatusGet():
                    assert self.status is not None, "set before the first request"
                    frame = self.status.answer(tab, request)
            return codec.encode(frame)
        except (Refused, asyncio.CancelledError):
            raise
        except (LogPoisoned, LogClosed):
            raise Refused("storage-failed", "The disk failed.") from None
        except StoreUnavailable:
            raise store_away() from None
        except (OSError, StoreError) as error:
            log.warning("catalog-failed", user=tab.user, error=str(error))
            raise Refused("unreadable", "What is there cannot be read now.") from None
        except Exception as error:
            log.error("catalog-failed", user=tab.user, exc_info=error)
            raise Refused("internal", "That could not be answered; the server's log says why.") from None

    # -- folders -----------------------------------------------------------------------------------------------------

    def _user(self, user: str) -> _User:
        known = self._users.get(user)
        if known is None:
            while len(self._users) >= INDEXES_MAX:
                idle = next((name for name, other in self._users.items()
                             if not other.lock.locked() and not other.index.is_dirty), None)
                if idle is None:
                    break
                del self._users[idle]
            known = self._users[user] = _User(self._library.index(user))
        else:
            # The one asked last is the last to go.
            self._users[user] = self._users.pop(user)
        return known

    async def _folder(self, user: str) -> Folder:
        """The user's files, as they were at some moment after the call. Whoever waits together is served together."""
        await self._shelves.caught_up(user)
        known = self._user(user)
        begun = known.begun
        async with known.lock:
            if known.done > begun:
                return known.index.folder
            known.begun += 1
            number = known.begun
            folder = await self._run(known.index.look)
            known.done = number
            if known.index.is_dirty:
                self._save_soon()
            return folder

    async def _durable(self) -> None:
        """What was read from memory is shown when it is on the disk."""
        await self._hub.log.flush()

    # -- lists -------------------------------------------------------------------------------------------------------

    def _asked(self, request: ChatList | ChatSearch) -> str:
        """What a cursor belongs to."""
        if isinstance(request.character, str) and isinstance(request.group, str):
            raise Refused("bad-frame", "Ask for a character or for a group.", pointer="/group")
        parts = [request.character if isinstance(request.character, str) else None,
                 request.group if isinstance(request.group, str) else None]
        parts.append(request.query if isinstance(request, ChatSearch) else "deleted" if request.deleted else None)
        return codec.encode([type(request).__name__, *parts]).decode()

    async def _rows(self, user: str, chosen: Filter) -> Found:
        """Files and live chats in one order. What of them is live may be read until the next await."""
        for _try in range(LOOKS_MAX):
            before = live_chats(self._hub.actors, user)
            left_before = self._hub.names_left_count
            folder = await self._folder(user)
            stored = folder.order
            if chosen.prefix:
                stored = await self._run(
                    lambda of=folder: [key for key in of.order if chosen.takes(key[1], of.group_of)]  # type: ignore[misc]
                )
            live = live_chats(self._hub.actors, user)
            # A chat that was folded and let go meanwhile may have a newer file than was seen.
            if before.keys() <= live.keys():
                break
        chosen_live = {name: actor for name, actor in live.items() if chosen.takes(name, folder.group_of)}
        # What is live stands for its file, also for one that has its next name already, or still had the one before
        # when the folders were looked at.
        hidden = {name for name, actor in self._hub.names(user).items() if actor.name in live}
        hidden |= self._hub.left_since(user, left_before)
        keys = {name: live_key(actor) for name, actor in chosen_live.items()}
        doubled = sum(name in folder.chats and chosen.takes(name, folder.group_of) for name in hidden)
        total = len(stored) + len(keys) - doubled
        return Found(folder, Rows(stored, keys.values(), hidden), chosen_live, keys, total)

    async def _list(self, user: str, request: ChatList) -> ChatListFrame:
        asked = self._asked(request)
        cursor = read_cursor(request.cursor, asked) if request.cursor is not None else None
        found = await self._rows(user, Filter.of(request))
        folder, rows, live, keys = found.folder, found.rows, found.live, found.keys
        page: list[ListedChat] = []
        following: str | None = None
        at = cursor or rows.start(asked)
        for key, behind in rows.after(at):
            if len(page) == request.limit:
                following = at.encoded()
                break
            name = key[1]
            page.append(
                listed_live(live[name], keys[name], folder.group_of) if name in live
                else listed_stored(folder.chats[name], folder.chat_id(name), folder.group_of)
            )
            at = behind
        if live:
            await self._durable()
        return ChatListFrame(page, following, found.total, request.id)

    async def _deleted(self, user: str, request: ChatList) -> ChatListFrame:
        asked = self._asked(request)
        cursor = read_cursor(request.cursor, asked) if request.cursor is not None else None
        folder = await self._folder(user)
        index, chosen = self._user(user).index, Filter.of(request)

        def look() -> tuple[list[ListedChat], str | None, int]:
            entries = {
                (entry.deleted_ms, f"{entry.folder}{'/' + chat if chat != entry.name else ''}"): (entry, chat, path)
                for entry in self._trash.entries(user) for chat, path in chats_of(entry)
                if chosen.takes(chat, folder.group_of)
            }
            rows = Rows(sorted(entries), (), ())
            page: list[ListedChat] = []
            at = cursor or rows.start(asked)
            for key, behind in rows.after(at):
                entry, chat, path = entries[key]
                found = index.read_deleted(self._trash.path(user, entry, path), chat)
                if found is not None:
                    if len(page) == request.limit:
                        return page, at.encoded(), len(entries)
                    is_own = chat == entry.name
                    chat_id = entry.id if is_own else self._trash.chat_id(user, entry, path)
                    above = UNSET if is_own else entry.name
                    page.append(listed_stored(found, chat_id, folder.group_of, entry.deleted_ms, above))
                at = behind
            return page, None, len(entries)

        chats, following, total = await self._run(look)
        return ChatListFrame(chats, following, total, request.id)

    # -- search ------------------------------------------------------------------------------------------------------

    async def _search(self, tab: Tab, request: ChatSearch) -> ChatSearchFrame:
        asked = self._asked(request)
        query = Query(request.query)
        if not query.words:
            raise Refused("bad-frame", "There is no word to search for.", pointer="/query")
        at = read_cursor(request.cursor, asked) if request.cursor is not None else None
        async with self._user(tab.user).searches, self._searches:
            found = await self._rows(tab.user, Filter.of(request))
            clock = self._hub.clock
            page = SearchPage(query, request.limit, self._library, tab.user, clock.monotonic_s, lambda: tab.is_open)
            await page.fill(found.rows, found.live, at or found.rows.start(asked), self._run)
            await self._durable()
        following = None if page.following is None else page.following.encoded()
        return ChatSearchFrame(page.found, following, page.searched, request.id)

    # -- characters, groups, active chats ----------------------------------------------------------------------------

    async def _activity(self, user: str) -> tuple[Folder, Activity]:
        folder = (await self._rows(user, Filter(""))).folder
        live = {
            name: LiveChat(actor.chat_id, live_key(actor))
            for name, actor in live_chats(self._hub.actors, user).items()
        }
        remembered = self._active.of(user)
        return folder, Activity(folder, live, remembered, lambda name: self._files.new_id(user, name))

    async def _characters(self, user: str, request: CharacterList) -> CharacterListFrame:
        folder, activity = await self._activity(user)

        def characters() -> tuple[list[Character], str | None]:
            names, following = page_of_names(
                folder.cards, "CharacterList", request.cursor, request.limit, PAGE_BYTES,
                lambda name: CARD_BYTES + 4 * len(folder.cards[name].card.name or ""),
            )
            counts = activity.counts()
            found: list[Character] = []
            for name in names:
                entry = folder.cards[name]
                chat = activity.of(f"character:{name}")
                active = None if chat is None else chat[0].partition("/")[2]
                found.append(Character(name, entry.card.name or name, entry.avatar, active, counts.get(name, 0)))
            return found, following

        listed, following = await self._run(characters)
        await self._durable()
        return CharacterListFrame(listed, following, len(folder.cards), request.id)

    async def _groups(self, user: str, request: GroupList) -> GroupListFrame:
        groups = (await self._folder(user)).groups
        names, following = page_of_names(
            groups, "GroupList", request.cursor, request.limit, PAGE_BYTES, lambda name: len(groups[name].raw)
        )
        return GroupListFrame([Raw(groups[name].raw) for name in names], following, len(groups), request.id)

    async def _active_chat(self, user: str, request: ActiveChat) -> ActiveChatFrame:
        if isinstance(request.character, str) == isinstance(request.group, str):
            raise Refused("bad-frame", "Name a character or a group.", pointer="/character")
        scope = f"character:{request.character}" if isinstance(request.character, str) else f"group:{request.group}"
        wanted = request.chat
        if wanted is not UNSET:
            self._hub.admit()
        folder, activity = await self._activity(user)
        if isinstance(request.group, str) and request.group not in folder.groups:
            raise Refused("not-found", "There is no such group.", pointer="/group")
        if isinstance(wanted, str):
            chat = await self._run(lambda: activity.find(scope, wanted))
        elif wanted is None:
            chat = None
        else:
            chat = await self._run(lambda: activity.of(scope))
        name, chat_id = chat if chat is not None else (None, None)
        if wanted is not UNSET:
            self._hub.admit()
            self._active.set(user, scope, chat_id, name, self._hub.clock.now_ms())
            self._save_soon()
        await self._durable()
        if name is not None and wanted is not UNSET and isinstance(request.group, str):
            file = folder.groups[request.group].file
            await self._run(partial(self._library.select, user, file, name.removeprefix("group:")))
        return ActiveChatFrame(name, chat_id, request.character, request.group, request.id)

    # -- saving ------------------------------------------------------------------------------------------------------

    def _save_soon(self) -> None:
        if self._saving is None and not self._stopping:
            self._saving = self._hub.loop.call_later(SAVE_S, lambda: self._hub.spawn(self._save()))

    async def _save(self) -> None:
        self._saving = None
        try:
            await self._durable()
            taken = self._active.taken()
            if taken:
                await self._run(lambda: self._active.save(taken))
                self._active.saved(taken)
            for known in list(self._users.values()):
                if known.index.is_dirty:
                    await self._run(known.index.save)
        except (OSError, LogPoisoned, LogClosed) as error:
            log.error("catalog-not-saved", error=str(error))
            self._save_soon()

    async def _run(self, work: Callable[[], Result]) -> Result:
        return await self._hub.loop.run_in_executor(self.executor, work)
