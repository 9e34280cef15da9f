"""From an owner's name to its live actor, and from the log back to everybody who waits.

Rules of this module:
- One live actor per chat: by name and by id the same one (BEHAVIOUR L1).
- What waits for the disk leaves in the order of the log, all of a batch together, one write a connection (L2).
- Nothing is admitted that could not be stored: a full disk, a poisoned log and a server that stops refuse first (L5).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator
from concurrent.futures import Executor
from typing import Any, Protocol, TypeVar

import structlog

from tellback_protocol.decide import Committed, Fresh
from tellback_protocol.errors import Refused, illegal
from tellback_protocol.frames import Limits
from tellback_protocol.ids import ChatAddress, ChatById, StateOwner, new_name_problem, parse_chat, parse_place
from tellback_protocol.requests import History, Malformed, Open, Request, UserRequest
from tellback_server.actor import Actor
from tellback_server.clock import Clock
from tellback_server.generation_desk import GenerationDesk, GenerationLimits
from tellback_server.log import Log, Position
from tellback_server.metrics import Counters
from tellback_server.outbox import COMMIT_BYTES_MAX
from tellback_server.producers import Producers
from tellback_server.registrar import Registered
from tellback_server.releases import Envelope, Release, Run
from tellback_server.replay import Missed
from tellback_server.tab import Tab
from tellback_server.writes import UNCOMMITTED_BYTES_MAX

log = structlog.get_logger()
Result = TypeVar("Result")

STALLED_S = 5.0
"""A sync of that many seconds is no slow disk any more."""

POLL_S = 0.005
NAMES_LEFT_MAX = 4096
"""Renames and deletions that are remembered for those who are just looking into folders."""


class Shelf(Protocol):
    """Where chats come from and go to; owned by the hub, implemented by `keeper`."""

    @property
    def others_write(self) -> bool:
        """Whether other programs may change what is kept there."""

    def load(self, actor: Actor) -> None:
        """Read the chat in the background; then the actor is told."""

    def became_dirty(self, actor: Actor) -> None:
        """A commit waits to be folded into the files."""

    def create(self, actor: Actor, tab: Tab, request: Open, owner_json: bytes, size_bytes: int) -> None:
        """Make a chat that does not exist."""

    def look(self, actor: Actor, namespaces: Iterable[str] = (), *, around: bool = False) -> bool:
        """True when another program changed the files of a live owner: the actor is busy until that is adopted.

        With `namespaces` only those are looked for, of which no state is known; `around` looks for state files that
        were not there, too.
        """

    def keep_first(self, actor: Actor, letter: Envelope, decision: Committed) -> bool:
        """True when a commit would overwrite or delete much: the actor is busy with a backup, and `letter` comes again.
        """

    async def find(self, user: str, chat_id: str) -> str | None:
        """The name of a chat by its id, None when the user has no such chat. Raises Refused."""

    async def history(self, actor: Actor, request: History) -> tuple[bytes, Iterator[bytes] | None]:
        """The answer to a history request, and the frames of the wire behind it. Raises Refused."""

    async def missed(self, actor: Actor, request: Open) -> Missed | None:
        """What the log tells of the commits behind `since`, up to where the stream goes on. None: it cannot be read."""


class Desk(Protocol):
    """Who answers what is asked of no single owner; owned by the hub, implemented by `catalog`."""

    def submit(self, tab: Tab, request: UserRequest, size_bytes: int) -> None:
        """Answer in the order of the connection's questions; `size_bytes` counts as in flight until then."""

    def left(self, tab: Tab) -> None:
        """The connection is gone: nobody waits for its answers."""


class Lives(Protocol):
    """Who makes, moves and ends owners; owned by the hub, implemented by `lifecycle`."""

    def begin(self, actor: Actor, letter: Envelope) -> None:
        """Carry out a life write of an owner that is there, or in the trash; the actor is busy until then."""

    def create(self, actor: Actor, letter: Envelope) -> None:
        """`chat-create` of a chat that is not there."""

    def former(self, user: str, name: str) -> Registered | None:
        """Who had a name that nobody has now."""

    def answer_former(self, actor: Actor, letter: Envelope, former: Registered) -> None:
        """Answer a request that names an owner by a name that it had."""

    def departed(self, user: str, chat_id: str) -> Actor | None:
        """An actor for a chat in the trash; None when there is no such chat."""


class Hub:
    """The actors of this process."""

    def __init__(
        self,
        *,
        log: Log,
        clock: Clock,
        limits: Limits,
        counters: Counters,
        loop: asyncio.AbstractEventLoop,
        executor: Executor,
        durable: bool = True,
        outbox_bytes_max: int = COMMIT_BYTES_MAX,
        generation_limits: GenerationLimits | None = None,
    ) -> None:
        self.log = log
        self.clock = clock
        self.limits = limits
        self.counters = counters
        self.loop = loop
        self.executor = executor
        self.outbox_bytes_max = outbox_bytes_max
        self.shelf: Shelf
        """Set once, before the first request."""
        self.lives: Lives
        """As `shelf`."""
        self.desk: Desk
        """Set once, before the first request."""
        self.is_synced = durable
        """False when the log was told not to sync: answers then say so."""
        self.producers = Producers(None)
        """As `shelf`, when there are model servers."""
        self.generations = GenerationDesk(self, generation_limits or GenerationLimits())
        self._by_name: dict[tuple[str, str], Actor] = {}
        self._by_id: dict[tuple[str, str], Actor] = {}
        self.releases: deque[Release | Run] = deque()
        """What waits for the disk, in the order of the log."""
        self.tabs: set[Tab] = set()
        """All connections; reception keeps them."""
        self.names_left: deque[tuple[str, str]] = deque(maxlen=NAMES_LEFT_MAX)
        """User and name of chats that were renamed or deleted, the last one last: who looked into the folders meanwhile
        may have seen them still there."""
        self.names_left_count = 0
        self._tasks: set[asyncio.Task[object]] = set()
        self._refusal: tuple[str, str] | None = None
        """Why nothing is admitted any more: code and sentence."""
        self.held_up: tuple[str, str] | None = None
        """Why nothing is admitted for now."""
        self.is_stalled = False
        """True while the disk does not answer; see `watch_disk`."""
        self.is_open = True
        """True when `admit` had no reason to refuse at the last batch; kept for the hot path."""

    # -- names -------------------------------------------------------------------------------------------------------

    @property
    def actors(self) -> list[Actor]:
        """All that are live. Cost: one pointer each."""
        return list(dict.fromkeys(self._by_name.values()))

    def names(self, user: str) -> dict[str, Actor]:
        """A user's live actors by each name that they have, one that is only reserved for them included."""
        return {name: actor for (of, name), actor in self._by_name.items() if of == user}

    def actor(self, user: str, address: ChatAddress | StateOwner) -> Actor | None:
        """The live actor of an owner, made and loading when there is none; None for an id that nobody has open."""
        if isinstance(address, ChatById):
            return self._chat_by_id(user, address.chat_id)
        name = str(address)
        actor = self._by_name.get((user, name))
        if actor is None:
            actor = self._by_name[user, name] = Actor(self, user, name)
            self.shelf.load(actor)
        return actor

    def _chat_by_id(self, user: str, chat_id: str) -> Actor | None:
        """Characters and presets are asked for by name, in the trash too."""
        actor = self._by_id.get((user, chat_id))
        return actor if actor is not None and actor.is_chat else None

    @property
    def is_loading(self) -> bool:
        """Whether an owner is being read now, or what is known of one in the trash."""
        return any(actor.state == "loading" for actors in (self._by_name, self._by_id) for actor in actors.values())

    def is_live(self, user: str, name: str) -> bool:
        """Whether an owner has an actor, by its one text."""
        return (user, name) in self._by_name

    def same_chat(self, user: str, name: str, chat_id: str) -> Actor | None:
        """A live chat of another name that has this id."""
        other = self._by_id.get((user, chat_id))
        is_live = other is not None and other.is_chat and other.stream is not None and not other.stream.deleted
        return other if is_live and self._by_name.get((user, name)) is not other else None

    def identified(self, actor: Actor) -> None:
        """The actor's id is known now. Only chats are asked for by id."""
        if actor.is_chat:
            self._by_id[actor.user, actor.chat_id] = actor

    def hold(self, actor: Actor) -> None:
        """An owner in the trash is found by its id, whatever it was."""
        self._by_id[actor.user, actor.chat_id] = actor

    def end(self, actor: Actor) -> None:
        """Let an actor go; the next request makes a new one."""
        actor.state = "ended"
        actor.generations.clear()
        if self._by_name.get((actor.user, actor.name)) is actor:
            del self._by_name[actor.user, actor.name]
        if actor.stream is not None and self._by_name.get((actor.user, actor.stream.name)) is actor:
            # What came out of the trash has its name reserved.
            del self._by_name[actor.user, actor.stream.name]
        if self._by_id.get((actor.user, actor.chat_id)) is actor:
            del self._by_id[actor.user, actor.chat_id]

    def reserve(self, actor: Actor, name: str) -> None:
        """`name` is the actor's as well from here on: who asks for it waits until the operation is done."""
        self._by_name[actor.user, name] = actor

    def renamed(self, actor: Actor, old: str, to: str) -> None:
        """The actor has another name; nobody finds it by the old one."""
        if self._by_name.get((actor.user, old)) is actor:
            del self._by_name[actor.user, old]
        self._by_name[actor.user, to] = actor
        actor.name = to
        self.forget_name(actor.user, old)

    def unname(self, actor: Actor) -> None:
        """Nobody finds the actor by name any more; by its id it is found."""
        for name in [name for (user, name), other in self._by_name.items() if other is actor and user == actor.user]:
            del self._by_name[actor.user, name]
            self.forget_name(actor.user, name)

    def forget_name(self, user: str, name: str) -> None:
        """A name changed hands: no connection may go on using the actor that it knew by it."""
        self.names_left.append((user, name))
        self.names_left_count += 1
        for tab in self.tabs:
            if tab.user == user:
                tab.forget(name)

    def left_since(self, user: str, count: int) -> set[str]:
        """Names of the user's chats that were given up since `names_left_count` was `count`."""
        recent = min(self.names_left_count - count, len(self.names_left))
        return {name for of, name in list(self.names_left)[len(self.names_left) - recent :] if of == user}

    async def actor_by_id(self, user: str, chat_id: str) -> Actor | None:
        """The actor of a chat by its id, live, loading or in the trash."""
        actor = self._by_id.get((user, chat_id))
        if actor is not None:
            return actor
        name = await self.shelf.find(user, chat_id)
        if name is None:
            return self._by_id.get((user, chat_id)) or self.lives.departed(user, chat_id)
        place = parse_place(name)
        assert not isinstance(place, str), "a stored name is an address"
        return self.actor(user, place)

    async def settled_chat(self, user: str, chat: str) -> Actor | None:
        """The actor of a chat by its address, as soon as it was read and nothing is done to it; None for an id that
        nobody has. Raises Refused `name-illegal`.
        """
        address = parse_chat(chat)
        if isinstance(address, str):
            raise illegal("name-illegal", address, "/chat")
        actor = (
            await self.actor_by_id(user, address.chat_id) if isinstance(address, ChatById)
            else self.actor(user, address)
        )
        # Many tasks end it, soon; nobody else waits for it.
        while actor is not None and actor.state in ("loading", "busy"):  # noqa: ASYNC110
            await asyncio.sleep(POLL_S)
        return actor

    async def find_and_submit(
        self, tab: Tab, address: ChatAddress | StateOwner, request: Request | Malformed, owner_json: bytes,
        size_bytes: int,
    ) -> None:
        """Submit a request for an id that is not known by heart."""
        try:
            name = await self.shelf.find(tab.user, address.chat_id) if isinstance(address, ChatById) else str(address)
        except Refused as refusal:
            tab.answer_refusal(request, owner_json, size_bytes, refusal)
            return
        if not tab.is_open:
            return
        if name is None:
            departed = None
            if isinstance(address, ChatById):
                if (tab.user, address.chat_id) not in self._by_id:
                    self.lives.departed(tab.user, address.chat_id)
                departed = self._chat_by_id(tab.user, address.chat_id)
            if departed is not None:
                departed.submit(tab, request, owner_json, size_bytes)
                return
            tab.answer_refusal(
                request, owner_json, size_bytes, Refused("not-found", "There is no such chat.", pointer="/chat")
            )
            return
        found = parse_place(name)
        assert not isinstance(found, str), "a stored name is an address"
        actor = self.actor(tab.user, found)
        assert actor is not None, "a name always has an actor"
        actor.submit(tab, request, owner_json, size_bytes)

    async def submit_again(self, actor: Actor, letter: Envelope) -> None:
        """Give a request to the successor of an actor that ended (BEHAVIOUR L4)."""
        address = parse_chat(f"id:{actor.chat_id}") if actor.is_chat else parse_place(actor.name)
        assert not isinstance(address, str), "a live chat has an id, an owner a name"
        await self.find_and_submit(letter.tab, address, letter.request, letter.owner_json, letter.size_bytes)

    def create(self, actor: Actor, tab: Tab, request: Open, owner_json: bytes, size_bytes: int) -> None:
        """`open` with `create` of a chat that does not exist."""
        address = parse_chat(actor.name)
        assert not isinstance(address, str | ChatById), "an actor has a name"
        problem = None
        for part in address.__struct_fields__:
            problem = problem or new_name_problem(getattr(address, part))
        if problem is not None:
            tab.answer_refusal(request, owner_json, size_bytes, illegal("name-illegal", problem, "/chat"))
            return
        actor.state = "loading"
        self.shelf.create(actor, tab, request, owner_json, size_bytes)

    def fresh(self, now_ms: int | None = None) -> Fresh:
        """What a decision needs of clock and randomness."""
        clock = self.clock
        return Fresh(clock.integrity(), clock.random_bits(64), clock.now_ms() if now_ms is None else now_ms)

    # -- durability --------------------------------------------------------------------------------------------------

    def admit(self) -> None:
        """Raises Refused when a write could not be stored now."""
        if self._refusal is not None:
            raise Refused(*self._refusal)
        if self.held_up is not None:
            raise Refused(*self.held_up, details={"after_ms": 5000})
        if self.is_stalled:
            raise Refused("overloaded", "The disk does not answer; send this again.", details={"after_ms": 5000})
        if self.log.uncommitted_bytes > UNCOMMITTED_BYTES_MAX:
            raise Refused("overloaded", "The disk is behind; send this again.", details={"after_ms": 500})
        if self.log.storage_error is not None:
            raise Refused("storage-full", "The disk has no room for the log.", details={"after_ms": 5000})

    def refuse_all(self, code: str, sentence: str) -> None:
        """Admit nothing from here on."""
        self._refusal = (code, sentence)
        self.is_open = False

    def hold_up(self, code: str, sentence: str) -> None:
        """Admit nothing until `go_on`."""
        self.held_up = (code, sentence)
        self.is_open = False

    def go_on(self) -> None:
        """What held everything up is over."""
        self.held_up = None
        self._open_again()

    def watch_disk(self) -> None:
        """Now and then: nothing is admitted while the disk does not answer (BEHAVIOUR L7)."""
        if self.is_stalled != (self.log.stalled_s > STALLED_S):
            self.is_stalled = not self.is_stalled
            log.warning("disk-stalled" if self.is_stalled else "disk-answers", stalled_s=round(self.log.stalled_s, 1))
            self._open_again()

    def _open_again(self) -> None:
        held = self._refusal is not None or self.held_up is not None or self.is_stalled
        self.is_open = not held and self.log.storage_error is None

    @property
    def is_admitting(self) -> bool:
        """True while writes are accepted."""
        return self._refusal is None

    def durability(self, body: bytes) -> bytes:
        """An answer, or its body, honest about a server that was told not to sync."""
        return body if self.is_synced else body.replace(b'"durable":"fsync"', b'"durable":"memory"', 1)

    def release(self, release: Release) -> None:
        """Let something leave when its position is durable; at once when it is and nothing of its actor waits."""
        if not self.releases and release.position <= self.log.durable:
            self._let_go(release)
        else:
            self.releases.append(release)

    def on_durable(self, position: Position) -> None:
        """A batch is on the disk: everything up to `position` may leave."""
        self._open_again()
        releases = self.releases
        touched: set[Tab] = set()
        telling: dict[Actor, None] = {}
        while releases and releases[0].position <= position:
            release = releases.popleft()
            actor = release.actor
            audience = actor.audience
            try:
                waits = (
                    audience.release_run(release, touched) if isinstance(release, Run)
                    else audience.release(release, touched)
                )
                if waits:
                    telling[actor] = None
            except Exception:
                # One chat's fault must not keep the answers of all others.
                log.exception("release-failed", chat=actor.name)
        for actor in telling:
            try:
                actor.audience.broadcast(touched)
            except Exception:
                log.exception("broadcast-failed", chat=actor.name)
        for tab in touched:
            tab.outbox.flush()

    def _let_go(self, release: Release) -> None:
        touched: set[Tab] = set()
        audience = release.actor.audience
        if audience.release(release, touched):
            audience.broadcast(touched)
        for tab in touched:
            tab.outbox.flush()

    # -- tasks -------------------------------------------------------------------------------------------------------

    async def in_thread(self, work: Callable[[], Result]) -> Result:
        """Call what blocks on files."""
        return await self.loop.run_in_executor(self.executor, work)

    def spawn(self, work: Coroutine[Any, Any, object]) -> None:
        """Run something beside the actors. A failure is logged; it never ends the server."""
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[object]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("task-failed", exc_info=task.exception())

    async def finish_tasks(self) -> None:
        """Wait for everything that runs beside the actors."""
        while self._tasks:
            await asyncio.wait(list(self._tasks))
