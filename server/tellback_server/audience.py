"""Who has one owner open, and what they are told.

Rules of this module:
- What comes here is durable; the hub hands it on in the order of the log (BEHAVIOUR D1, L2).
- A tab gets an owner's frames in the order of the stream, and of its own commits only the acks (D2, D3).
- A frame is built once for all tabs that know the owner by the same name.
- A tab that reads slowly is demoted past its bound, and costs nobody else's time (D4).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tellback_protocol import codec
from tellback_protocol.frames import Behind
from tellback_protocol.ids import Version
from tellback_server.backlog import AT_ONCE_BYTES, Backlog
from tellback_server.releases import told_frames
from tellback_server.websocket import text_frame, text_frames

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tellback_server.actor import Actor
    from tellback_server.hub import Hub
    from tellback_server.outbox import Outbox
    from tellback_server.releases import Following, Release, Run, Subscription, Told
    from tellback_server.tab import Tab

__all__ = ["Audience"]


class Audience:
    """See the module. Made with its actor, which is its lane in every outbox."""

    __slots__ = ("_actor", "_author", "_hub", "_told", "durable_head", "subscriptions", "unreleased")

    def __init__(self, actor: Actor, hub: Hub) -> None:
        self._actor = actor
        self._hub = hub
        self.subscriptions: dict[Tab, Subscription] = {}
        self.durable_head = Version(1, 0, "")
        """The version up to which everybody may know."""
        self.unreleased = 0
        """How many answers and commits wait for the disk."""
        self._told: list[Told] = []
        """Commits of the batch that is being released, all by `_author`."""
        self._author: Tab | None = None

    # -- what is released --------------------------------------------------------------------------------------------

    def release_later(self, release: Release) -> None:
        """Let something leave when its position is durable."""
        self.unreleased += 1
        self._hub.release(release)

    def release(self, release: Release, touched: set[Tab]) -> bool:
        """`release.position` is durable: tell whom it concerns. `touched` collects the tabs that must be flushed.

        True when a commit waits for `broadcast`, which the hub calls before anything else of this actor is released
        to somebody who did not see it, and at the end of the batch.
        """
        self.unreleased -= 1
        tab = release.tab
        if tab is not None and tab.is_open:
            if release.subscribe is not None and tab in self.subscriptions:
                self.unsubscribe(tab)
            if release.answer is not None:
                self._answer(tab, [release.answer], touched)
            if release.size_bytes:
                tab.answered(release.size_bytes)
            if release.subscribe is not None:
                self.broadcast(touched)
                self._subscribe(release.subscribe)
                if release.following is not None:
                    self._follow(tab, release.subscribe, release.following)
                    touched.add(tab)
        waits = release.commit is not None and self._tell([release.commit], tab, touched)
        if release.then is not None:
            self.broadcast(touched)
            release.then(touched)
            return False
        return waits

    def release_run(self, run: Run, touched: set[Tab]) -> bool:
        """As `release`, for plain appends that became durable together."""
        acks, tab = run.acks, run.tab
        self.unreleased -= len(acks)
        if tab.is_open:
            self._answer(tab, acks, touched)
            tab.answered(run.size_bytes, len(acks))
        return self._tell(run.commits, tab, touched)

    def tell(self, tab: Tab, frame: bytes, touched: set[Tab]) -> None:
        """A frame that is never dropped, in the order of the stream."""
        self._queue_answer(tab, text_frame(frame))
        touched.add(tab)

    def _answer(self, tab: Tab, answers: list[bytes], touched: set[Tab]) -> None:
        if self._told and self._author is not tab and tab in self.subscriptions:
            # The order of the stream: what others committed before travels before this answer.
            self.broadcast(touched)
        frames = text_frames(answers)
        # All the answers that are due go at once; else they are joined with others into one write.
        if tab.session.in_flight != len(answers) or not tab.outbox.send_now(frames):
            self._queue_answer(tab, frames)
            touched.add(tab)

    def _tell(self, commits: Sequence[Told], author: Tab | None, touched: set[Tab]) -> bool:
        """True when the commits wait for `broadcast`."""
        if not self.subscriptions:
            self.durable_head = commits[-1].version
            return False
        if self._told and self._author is not author:
            # One author at a time: his own tab gets only acks.
            self.broadcast(touched)
        self._author = author
        self._told += commits
        return True

    def broadcast(self, touched: set[Tab]) -> None:
        """Tell the commits of one author to everybody else, each frame built once for all."""
        told = self._told
        if not told:
            return
        self._told = []
        author = self._author
        before = self.durable_head
        self.durable_head = told[-1].version
        frames: bytes | None = None
        built_for = b""
        for tab, subscription in list(self.subscriptions.items()):
            if tab is author:
                continue
            outbox = tab.outbox
            if frames is None or subscription.owner_json != built_for:
                built_for = subscription.owner_json
                frames = told_frames(told, built_for)
            if not outbox.is_waiting and outbox.wire.send_now(frames):
                continue
            touched.add(tab)
            if outbox.is_clear:
                outbox.send(frames)
            else:
                self._tell_one_by_one(outbox, subscription, told, before)

    def _tell_one_by_one(
        self, outbox: Outbox, subscription: Subscription, told: list[Told], before: Version
    ) -> None:
        """To a tab that reads slowly: each frame is counted, and the tab may be demoted at any of them."""
        for commit in told:
            if not subscription.active:
                return
            frame = text_frame(commit.frame(subscription.owner_json))
            version = commit.version
            if subscription.backlog is None:
                outbox.commit(self._actor, frame, before)
            else:
                subscription.backlog.commit(frame, version)
                self._bound(subscription)
            before = version

    def _queue_answer(self, tab: Tab, frame: bytes) -> None:
        """An answer that has to wait its turn: behind a long replay, or in the outbox."""
        subscription = self.subscriptions.get(tab)
        if subscription is None or subscription.backlog is None:
            tab.outbox.answer(self._actor, frame)
        else:
            subscription.backlog.answer(frame)
            self._bound(subscription)

    # -- who listens -------------------------------------------------------------------------------------------------

    def owner_json(self, tab: Tab) -> bytes:
        """The owner member with the name that `tab` knows it by."""
        subscription = self.subscriptions.get(tab)
        return codec.owner_member(self._actor.name) if subscription is None else subscription.owner_json

    def _subscribe(self, subscription: Subscription) -> None:
        subscription.active = True
        self.subscriptions[subscription.tab] = subscription
        subscription.tab.chats.add(self._actor)
        self._actor.idle_since_s = None

    def _follow(self, tab: Tab, subscription: Subscription, following: Following) -> None:
        """A replay is made of ordinary integrity frames; they keep their order with what is committed meanwhile."""
        previous = following.since
        if sum(past.size_bytes for past in following.replay) > AT_ONCE_BYTES:
            assert previous is not None, "a replay begins somewhere"

            def done() -> None:
                subscription.backlog = None
                self._hub.generations.mark(self._actor.generations)

            subscription.backlog = Backlog(subscription.owner_json, previous, following.replay, done)
            tab.outbox.parts(self._actor, subscription.backlog.pieces())
            return
        for past in following.replay:
            assert previous is not None, "a replay begins somewhere"
            frame = text_frame(past.frame(subscription.owner_json))
            tab.outbox.commit(self._actor, frame, previous)
            previous = past.version
            if not subscription.active:
                return
        if following.parts is not None:
            tab.outbox.parts(self._actor, following.parts)

    def unsubscribe(self, tab: Tab) -> None:
        """`tab` hears nothing more of this owner."""
        subscription = self.subscriptions.pop(tab, None)
        if subscription is not None:
            subscription.active = False
            tab.outbox.forget(self._actor)
            if subscription.backlog is not None:
                for frame in subscription.backlog.answers():
                    tab.outbox.answer(self._actor, frame)
            tab.chats.discard(self._actor)
            if not self.subscriptions:
                self._actor.idle_since_s = self._hub.clock.monotonic_s()

    def dismiss(self) -> None:
        """Nobody hears anything more of this owner."""
        for tab in list(self.subscriptions):
            self.unsubscribe(tab)

    def fell_behind(self, tab: Tab, last: Version) -> None:
        """`tab` reads too slowly for this owner: it gets no more of it, and one frame that says so."""
        subscription = self.subscriptions.get(tab)
        if subscription is None:
            return
        self._hub.counters.behind += 1
        tab.behind += 1
        behind = Behind(last, self.durable_head)
        tab.outbox.urgent(text_frame(codec.of_owner(behind, subscription.owner_json)))
        self.unsubscribe(tab)

    def _bound(self, subscription: Subscription) -> None:
        backlog = subscription.backlog
        if backlog is not None and backlog.waiting_bytes > self._hub.outbox_bytes_max:
            self.fell_behind(subscription.tab, backlog.last)
