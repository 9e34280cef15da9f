"""The reads of one owner: open and close, a page of its history, its state documents.

Rules of this module:
- An answer shows the stream as it is when the answer is made, and leaves when that is durable (BEHAVIOUR L2).
- What another program may have changed is looked at first: then the request comes again behind the adoption (K3).
- A tab whose `open` waits for the log or for a checkpoint waits alone; what it asks behind it keeps its place.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

import structlog
from msgspec import UNSET, Raw

from tellback_protocol import codec
from tellback_protocol.errors import Refused, illegal
from tellback_protocol.frames import Closed, StateFrame, StateValue
from tellback_protocol.ids import namespace_problem
from tellback_protocol.requests import Close, History, Open, Read, StateGet
from tellback_server.opening import answer_open
from tellback_server.releases import Envelope, Release, Subscription, followed_by, refusal_frame
from tellback_server.replay import Missed, is_beyond_memory
from tellback_server.store.jsonl import header_now
from tellback_server.websocket import text_frame

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from typing import Any

    from tellback_server.actor import Actor
    from tellback_server.hub import Hub
    from tellback_server.tab import Tab

__all__ = ["Reads"]

log = structlog.get_logger()

CHECKPOINT_WAIT_S = 1.0
"""A disk that takes a checkpoint no faster keeps no `open` waiting; the next look finds what others did."""
POLL_S = 0.005


class Reads:
    """See the module. Made with its actor."""

    __slots__ = ("_actor", "_hub", "held")

    def __init__(self, actor: Actor, hub: Hub) -> None:
        self._actor = actor
        self._hub = hub
        self.held: dict[Tab, deque[Envelope]] = {}
        """Tabs whose `open` waits for the log or a checkpoint, and what they asked behind it; all others go on."""

    def handle(self, tab: Tab, request: Read, owner_json: bytes, size_bytes: int) -> None:
        """Answer a request that changes nothing."""
        match request:
            case Open():
                # Another program may have changed the files since they were looked at last.
                if self._actor.folding and self._hub.shelf.others_write:
                    self._hold(tab, self._behind_checkpoint(Envelope(tab, request, owner_json, size_bytes), request))
                elif self._hub.shelf.look(self._actor, around=True):
                    self._actor.put_back(Envelope(tab, request, owner_json, size_bytes))
                else:
                    self._open(tab, request, owner_json, size_bytes)
            case StateGet():
                self._state_get(tab, request, owner_json, size_bytes)
            case History():
                self._hub.spawn(self._history(tab, request, owner_json, size_bytes))
            case Close():
                self._close(tab, request, owner_json, size_bytes)

    def _close(self, tab: Tab, request: Close, owner_json: bytes, size_bytes: int) -> None:
        actor = self._actor
        frame = codec.of_owner(Closed(id=request.id), owner_json)
        # Not before its turn: an `open` in front of it may wait for the disk still.
        actor.audience.release_later(
            Release(actor.last_position, actor, tab, frame, size_bytes,
                    then=lambda _touched: actor.audience.unsubscribe(tab))
        )

    # -- open --------------------------------------------------------------------------------------------------------

    def _open(self, tab: Tab, request: Open, owner_json: bytes, size_bytes: int) -> None:
        actor = self._actor
        if not actor.is_chat and (request.create or request.tail is not UNSET):
            field = "create" if request.create else "tail"
            refusal = Refused("bad-frame", f"{field!r} is for chats.", pointer=f"/{field}")
            actor.refuse(tab, request, owner_json, size_bytes, refusal)
            return
        if request.create and request.since is not None:
            refusal = Refused("create-with-since", "create works only with since null.", pointer="/since")
            actor.refuse(tab, request, owner_json, size_bytes, refusal)
            return
        full = tab.no_room_for(actor, request)
        if full is not None:
            actor.refuse(tab, request, owner_json, size_bytes, full)
            return
        if is_beyond_memory(actor.live_stream, request.since):
            self._hold(tab, self._look_back(Envelope(tab, request, owner_json, size_bytes), request))
            return
        self.opened(tab, request, owner_json, size_bytes)

    def opened(
        self, tab: Tab, request: Open, owner_json: bytes, size_bytes: int, *, missed: Missed | None = None,
        created: bool = False,
    ) -> None:
        """Answer an `open`; the subscription begins when the answer leaves."""
        actor, stream = self._actor, self._actor.live_stream
        actor.generations.returned(tab, owner_json)
        listed, heard = actor.generations.listed(tab.session_id)
        header = None
        if request.header and actor.file is not None:
            now_ms = self._hub.clock.now_ms()
            header = header_now(actor.file.image, stream.chat.metadata, stream.chat_id, now_ms)
        opened, frame, following = answer_open(
            stream, request, tab.session_id, created=created, missed=missed, generations=listed, header=header
        )
        if isinstance(opened.reset, str):
            self._hub.counters.reset(opened.reset)
        subscription = Subscription(tab, owner_json)
        subscription.heard = heard
        actor.idle_since_s = None
        tab.chats.add(actor)
        actor.audience.release_later(
            Release(actor.last_position, actor, tab, frame, size_bytes, None, subscription, following)
        )

    async def _look_back(self, letter: Envelope, request: Open) -> None:
        """Read what the stream does not remember from the log, then answer; the tab's later requests keep their place.

        Nobody else waits: what is committed meanwhile is in the answer, and what comes later is told behind it.
        """
        actor, tab = self._actor, letter.tab
        missed: Missed | None = None
        try:
            missed = await self._hub.shelf.missed(actor, request)
        except Exception:
            # Whatever the log holds, the snapshot needs nothing of it; and who waits here must get an answer.
            log.exception("look-back-failed", chat=actor.name)
        self._give_back(
            letter, lambda: self.opened(tab, request, letter.owner_json, letter.size_bytes, missed=missed)
        )

    async def _behind_checkpoint(self, letter: Envelope, request: Open) -> None:
        """What a checkpoint is writing cannot be told from another program's edit: wait for its end, then look."""
        actor = self._actor
        until_s = self._hub.clock.monotonic_s() + CHECKPOINT_WAIT_S
        while actor.folding and self._hub.clock.monotonic_s() < until_s:  # noqa: ASYNC110  - It ends by itself, soon.
            await asyncio.sleep(POLL_S)
        answer = self._open if actor.folding else actor.submit
        self._give_back(letter, lambda: answer(letter.tab, request, letter.owner_json, letter.size_bytes))

    def _hold(self, tab: Tab, waiting: Coroutine[Any, Any, None]) -> None:
        """The tab's requests wait until `waiting` gives them back."""
        self.held[tab] = deque()
        self._hub.spawn(waiting)

    def _give_back(self, letter: Envelope, answer: Callable[[], None]) -> None:
        """The held `open` is answered, then what its tab asked behind it."""
        actor = self._actor
        held = self.held.pop(letter.tab)
        if actor.state == "ready":
            answer()
            for later in held:
                actor.submit(later.tab, later.request, later.owner_json, later.size_bytes)
        elif actor.state == "ended":
            self._hub.spawn(self._submit_again(letter, *held))
        else:
            # What this tab has in the mailbox came later: it was put there when the actor was busy already.
            actor.put_back(letter, *held)
            # A chat that went to the trash meanwhile stands still no more.
            actor.drain()

    async def _submit_again(self, *letters: Envelope) -> None:
        for letter in letters:
            await self._hub.submit_again(self._actor, letter)

    # -- history and states ------------------------------------------------------------------------------------------

    async def _history(self, tab: Tab, request: History, owner_json: bytes, size_bytes: int) -> None:
        """Only what is durable is shown, so the answer waits for nothing more.

        Parts count as in flight until the last one is sent: a tab that asks and never reads keeps no more of them.
        """
        parts: Iterator[bytes] | None = None
        try:
            frame, parts = await self._hub.shelf.history(self._actor, request)
        except Refused as refusal:
            frame = refusal_frame(request, owner_json, refusal)
        if not tab.is_open:
            return
        tab.outbox.answer(self._actor, text_frame(frame))
        if parts is None:
            tab.answered(size_bytes)
        else:
            tab.outbox.parts(object(), followed_by(parts, lambda: tab.answered(size_bytes)))
        tab.outbox.flush()

    def _state_get(self, tab: Tab, request: StateGet, owner_json: bytes, size_bytes: int) -> None:
        actor, stream = self._actor, self._actor.live_stream
        wanted = list(stream.states) if request.namespaces is UNSET else request.namespaces
        assert isinstance(wanted, list)
        missing = [
            namespace for namespace in wanted
            if ((known := stream.states.get(namespace)) is None or not known.exists)
            and namespace_problem(namespace) is None
        ]
        # Another program may have made it since the owner was read; that must not look like no state.
        is_all = request.namespaces is UNSET
        if (missing or is_all) and self._hub.shelf.look(actor, () if is_all else missing, around=is_all):
            actor.put_back(Envelope(tab, request, owner_json, size_bytes))
            return
        states: dict[str, StateValue | None] = {}
        for index, namespace in enumerate(wanted):
            problem = namespace_problem(namespace)
            document = stream.states.get(namespace)
            is_corrupt = document is not None and document.corrupt
            if (problem or is_corrupt) and not is_all:
                refusal = (
                    illegal("namespace-illegal", problem, f"/namespaces/{index}") if problem
                    else Refused(
                        "state-corrupt", f"The file of {namespace!r} is no JSON; it is kept as it is.",
                        pointer=f"/namespaces/{index}",
                    )
                )
                actor.refuse(tab, request, owner_json, size_bytes, refusal)
                return
            if document is not None and is_corrupt:
                # The others were asked for as well, and are not to suffer.
                states[namespace] = StateValue(document.version or UNSET, error="state-corrupt")
                continue
            data = None if document is None else document.data
            if document is None or data is None or document.version is None:
                if not is_all:
                    states[namespace] = None
            else:
                states[namespace] = StateValue(document.version, Raw(data), skipped=document.skipped or UNSET)
        actor.answer(tab, codec.encode(StateFrame(request.owner, states, request.id)), size_bytes)
