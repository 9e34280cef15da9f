"""The ground of a context: which chat it shows, the chats it holds, and the events on their way to the listeners.

    commit --installed--> narrator --named events--> queue --one task--> listeners

Rules of this module:
- A verb takes the chat that is shown when it is called; switching afterwards does not move its write (R27).
- Whoever installs commits never waits for a listener: events wait in a bounded queue, and past the bound everything
  that waits becomes one `CHAT_CHANGED`, which means: read the chat again (R40, R44).
- Events about what is in a chat end where `CHAT_CHANGED` to another begins; those not delivered yet are dropped,
  because their indexes would be read against the wrong chat. Events about chats as a whole are always delivered.
- A chat that this context no longer needs is closed when its writes have their answers, unless somebody else holds it
  or a conflict waits in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from tellback_protocol.effects import DeletedEffect

from ..chat import Chat
from ..client import Client
from ..errors import TellbackError, refused
from ..events import (
    ChatDeleted,
    ChatRenamed,
    Committed,
    Conflicted,
    ConnectionChanged,
    Event,
    EventQueue,
    EventsLost,
    Gone,
    Replaced,
    StatusChanged,
)
from ..handle import Handle
from ..intents import Intent
from ..outbox import WriteResult
from .emitter import EventSource, EventTypes
from .narrator import Narrator, Told, name_alone

logger = logging.getLogger("tellback_client.context")

ABOUT_WHOLE_CHATS = frozenset((
    EventTypes.CHAT_CREATED, EventTypes.GROUP_CHAT_CREATED, EventTypes.CHAT_RENAMED, EventTypes.CHAT_DELETED,
    EventTypes.GROUP_CHAT_DELETED, EventTypes.ONLINE_STATUS_CHANGED, EventTypes.WRITE_CONFLICTED,
))
EVENTS_MAX = 1024
"""Events that wait for slow listeners."""
TARGETS_MAX = 16
"""Chats other than the shown one that stay open for `target`."""


class Held:
    """A chat that the context opened."""

    def __init__(
        self, chat: Chat, address: str, tell: Callable[[Held, list[Told], Intent | None, bool], None]
    ) -> None:
        self.chat = chat
        self.address = address
        """`character:<character>/<chat>` or `group:<chat>`, as the chat is named now; `id:...` when only that is known.
        """
        self.indexes: WeakKeyDictionary[Intent, dict[str, int]] = WeakKeyDictionary()
        """Where the messages of own appends came to stand, in the commit itself."""
        self._tell = tell
        # No await between reading the order and watching it.
        self.stop = chat.observe(self._observe)
        self.narrator = Narrator(self._confirmed_ids(), name_alone(address), of_group=address.startswith("group:"))

    def _observe(self, event: Event) -> None:
        told: list[Told] = []
        silent_of: Intent | None = None
        gone = False
        match event:
            case Committed():
                silent_of = event.intent
                told = self.narrator.tell(event)
                gone = any(isinstance(effect, DeletedEffect) for effect in event.effects)
                if event.intent is not None:
                    positions = {
                        arguments[1]["message_id"]: arguments[0] for name, arguments in told
                        if name in (EventTypes.MESSAGE_SENT, EventTypes.MESSAGE_RECEIVED)
                    }
                    if positions:
                        self.indexes[event.intent] = positions
            case Replaced():
                self.narrator.replaced(self._confirmed_ids())
                told = [(EventTypes.CHAT_CHANGED, (self.narrator.name,))]
            case Conflicted():
                told = [(EventTypes.WRITE_CONFLICTED, (event.conflict,))]
            case ChatRenamed():
                # The commit told already, unless it was made while nobody here was connected.
                told = self.narrator.renamed(event.to)
                self.address = event.to
            case Gone():
                gone = True
                if event.code == "deleted":
                    told = [self.narrator.deleted()]
            case ChatDeleted() | StatusChanged() | EventsLost():
                # `Gone` follows; the connection tells for itself; observers lose nothing.
                pass
        self._tell(self, told, silent_of, gone)

    def _confirmed_ids(self) -> list[str]:
        replica = self.chat.subscription.replica
        return [] if replica is None else list(replica.chat.messages)


class ContextBase:
    """What the nouns of a context stand on."""

    def __init__(self, client: Client, *, name1: str = "User") -> None:
        self.client = client
        self.event_source = EventSource()
        self.event_types = EventTypes
        self._name1 = name1
        self._held: Held | None = None
        """The shown chat."""
        self._targets: dict[str, Held] = {}
        """Other open chats by address, the one used last at the end."""
        self._owners: dict[str, Handle] = {}
        """Open characters and presets, the one used last at the end."""
        self._shown = True
        """False after `clear_chat(clear_data=True)`, until a chat is read again."""
        self._silent: WeakSet[Intent] = WeakSet()
        self._switching = asyncio.Lock()
        self._queue: deque[Told] = deque()
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._delivering: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._leaving: set[asyncio.Task[None]] = set()

    # -- life --------------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Any:
        self.start()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()

    def start(self) -> None:
        """Begin to deliver events. `create_context` and `async with` call it."""
        if self._delivering is None:
            # From here on, whenever the task gets its turn.
            connection = self.client.events()
            self._delivering = asyncio.create_task(self._deliver(), name="tellback-context")
            self._watching = asyncio.create_task(self._watch(connection), name="tellback-context-connection")

    async def aclose(self) -> None:
        """Stop delivering events and let go of the chats; the client stays."""
        held, self._held = self._held, None
        for one in [*([held] if held is not None else []), *self._targets.values()]:
            self._leave(one)
        for owner in self._owners.values():
            self._give_back(owner)
        self._targets.clear()
        self._owners.clear()
        if self._leaving:
            await asyncio.gather(*self._leaving, return_exceptions=True)
        tasks = [task for task in (self._delivering, self._watching) if task is not None]
        self._delivering = self._watching = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def events_delivered(self) -> None:
        """Wait until no event waits for a listener. Never to be awaited inside a listener."""
        await self._idle.wait()

    # -- events ------------------------------------------------------------------------------------------------------

    def _happened(self, held: Held, told: list[Told], intent: Intent | None, gone: bool) -> None:
        """Events of a chat; those of a chat that is not shown, and of silent writes, are nobody's."""
        if held is not self._held:
            return
        if intent is None or intent not in self._silent:
            self._tell(told)
        if gone:
            self._held = None
            self._leave(held)
            self._tell([(EventTypes.CHAT_CHANGED, (None,))])

    def _tell(self, told: list[Told]) -> None:
        for event in told:
            if len(self._queue) >= EVENTS_MAX:
                logger.warning("listeners are too slow: %d events became one CHAT_CHANGED", len(self._queue))
                self._drop_contents()
                while len(self._queue) >= EVENTS_MAX:
                    self._queue.popleft()
                self._queue.append((EventTypes.CHAT_CHANGED, (self._chat_name(),)))
                if event[0] not in ABOUT_WHOLE_CHATS:
                    continue
            self._queue.append(event)
            self._idle.clear()
            self._wake.set()

    def _drop_contents(self) -> None:
        """Forget what waits to be told about what is in a chat."""
        self._queue = deque(event for event in self._queue if event[0] in ABOUT_WHOLE_CHATS)

    async def _deliver(self) -> None:
        while True:
            while self._queue:
                name, arguments = self._queue.popleft()
                await self.event_source.emit(name, *arguments)
            self._idle.set()
            self._wake.clear()
            await self._wake.wait()

    async def _write(self, held: Held, intent: Intent, *, silent: bool = False) -> WriteResult:
        """Carry an intent out on a chat. Raises: what a write raises."""
        if silent:
            self._silent.add(intent)
        return await held.chat.write(intent)

    async def _watch(self, connection: EventQueue[ConnectionChanged]) -> None:
        async for change in connection:
            if isinstance(change, ConnectionChanged):
                self._tell([(EventTypes.ONLINE_STATUS_CHANGED, (change.status,))])

    # -- chats -------------------------------------------------------------------------------------------------------

    def _chat_name(self) -> str | None:
        return None if self._held is None else self._held.narrator.name

    def _current(self) -> Held:
        """The shown chat. Raises: RefusedError `not-open`."""
        if self._held is None:
            raise refused("not-open", "The context shows no chat; open one first.", retry="after-sync")
        return self._held

    async def _show(self, address: str | None, *, create: bool = False) -> None:
        """Show a chat, or none. Raises: what `Client.open` raises; then what was shown stays."""
        new: Held | None = None
        if address is not None:
            new = self._targets.pop(address, None) or await self._hold(address, create=create)
        old, self._held = self._held, new
        self._shown = True
        self._drop_contents()
        if old is not None:
            self._leave(old)
        self._tell([(EventTypes.CHAT_CHANGED, (self._chat_name(),))])

    async def _hold(self, address: str, *, create: bool = False) -> Held:
        chat = await self.client.open(address, create=create)
        # An old name leads to the chat under its new one.
        now = address if chat.name.startswith("id:") else chat.name
        return Held(chat, now, self._happened)

    async def _target(self, target: object) -> Chat:
        """The chat that an option `target` names; the shown one without it."""
        if target is None:
            return self._current().chat
        address = address_of(target)
        if self._held is not None and address in (self._held.address, f"id:{self._held.chat.chat_id}"):
            return self._held.chat
        held = self._targets.pop(address, None)
        if held is not None and held.chat.subscription.error is not None:
            self._leave(held)
            held = None
        if held is None:
            held = await self._hold(address)
        self._targets[address] = held
        while len(self._targets) > TARGETS_MAX:
            self._leave(self._targets.pop(next(iter(self._targets))))
        return held.chat

    def _forget_target(self, address: str) -> None:
        held = self._targets.pop(address, None)
        if held is not None:
            self._leave(held)

    async def _owner(self, name: str) -> Handle:
        """A character (`character:<character>`) or preset (`preset:<folder>/<preset>`), kept open for a while."""
        owner = self._owners.pop(name, None)
        if owner is None or owner.subscription.error is not None:
            kind, _, alone = name.partition(":")
            owner = await (self.client.character(alone) if kind == "character" else self.client.preset(alone))
        self._owners[name] = owner
        while len(self._owners) > TARGETS_MAX:
            self._give_back(self._owners.pop(next(iter(self._owners))))
        return owner

    def _leave(self, held: Held) -> None:
        self._give_back(held.chat, held.stop)

    def _give_back(self, owner: Handle, stop: Callable[[], None] | None = None) -> None:
        """Let go of an owner when its writes have their answers."""
        task = asyncio.create_task(self._close(owner, stop), name="tellback-context-close")
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _close(self, owner: Handle, stop: Callable[[], None] | None) -> None:
        with contextlib.suppress(TellbackError):
            await owner.saved()
        if stop is not None:
            stop()
        owner.holders -= 1
        if owner.holders == 0 and not owner.conflicts:
            with contextlib.suppress(TellbackError):
                await owner.close()


def address_of(target: object) -> str:
    """A chat's address out of what extensions pass: an address, or Luker's `{is_group, id, avatar_url, file_name}`.

    Raises: ValueError.
    """
    if isinstance(target, str) and target.startswith(("character:", "group:", "id:")):
        return target
    if isinstance(target, dict):
        if target.get("is_group") and isinstance(target.get("id"), str):
            return "group:" + strip_extension(target["id"])
        avatar, name = target.get("avatar_url"), target.get("file_name")
        if isinstance(avatar, str) and isinstance(name, str):
            return f"character:{avatar.removesuffix('.png')}/{strip_extension(name)}"
    raise ValueError("a target is `character:<character>/<chat>`, `group:<chat>`, `id:<chat_id>`, or an object with "
                     "is_group and id, or with avatar_url and file_name")


def strip_extension(file_name: str) -> str:
    """A chat's name without `.jsonl`."""
    return file_name.removesuffix(".jsonl")
