"""Several clients on a bad network: in the end all replicas are the server's chat, and every write is there once.

The server's brain is the real one (`tests.support.tab_server`); clients are real links. After every single frame each
replica is compared with the chat as the server had it at that version: snapshot + deltas == fresh snapshot.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from tellback_client.errors import ConflictError, RefusedError
from tellback_client.intents import (
    AppendIntent,
    BatchIntent,
    DeleteIntent,
    Intent,
    MetadataIntent,
    PatchIntent,
    StateIntent,
    UpdateMessageIntent,
)
from tellback_client.outbox import PendingWrite, WriteResult
from tellback_client.subscription import Subscription
from tests.support.tab_server import NAME, Tab, TabServer, lines_of, settle


class World:
    """Tabs, their writes, and what became of them."""

    def __init__(self, seed: int, tabs: int = 3) -> None:
        self.random = random.Random(seed)
        self.server = TabServer(random.Random(seed + 1))
        self.now_s = 100.0
        self.tabs = [Tab(self.server, number) for number in range(tabs)]
        for tab in self.tabs:
            tab.link.subscribe(NAME, create=True)
        self.outcomes: list[tuple[str, Any, list[WriteResult | Exception]]] = []
        self._next_id = 0
        self.now_s = settle(self.server, self.tabs, self.now_s)

    def new_id(self) -> str:
        self._next_id += 1
        return f"m{self._next_id:06d}"

    def write(self, tab: Tab, kind: str, intent: Intent, note: Any = None) -> None:
        outcome: list[WriteResult | Exception] = []
        subscription = self.subscription(tab)

        def settled(result: WriteResult | Exception) -> None:
            outcome.append(result)
            if isinstance(result, WriteResult) and kind == "append":
                # R39: whoever awaited a write reads it.
                present = subscription.view().chat.messages
                assert all(message_id in present or message_id in self.deleted for message_id in result.message_ids)

        self.outcomes.append((kind, note, outcome))
        subscription.submit(PendingWrite(intent, settled))

    deleted: frozenset[str] | set[str] = frozenset()

    def subscription(self, tab: Tab) -> Subscription:
        (subscription,) = tab.link.subscriptions
        return subscription

    def increment(self, message: dict[str, Any]) -> None:
        message["n"] = message.get("n", 0) + 1

    def random_write(self) -> None:
        tab = self.random.choice(self.tabs)
        ids = list(self.subscription(tab).view().chat.messages)
        some = self.random.choice(ids) if ids else None
        draw = self.random.random()
        if draw < 0.45 or some is None:
            many = self.random.choice((1, 1, 1, 3))
            messages: list[dict[str, Any]] = [{"mes": "ok"} for _ in range(many)]
            self.write(tab, "append", AppendIntent(messages, self.new_id))
        elif draw < 0.60:
            self.write(tab, "increment", UpdateMessageIntent(some, self.increment), some)
        elif draw < 0.68:
            operations = [{"op": "add", "path": "/mes", "value": f"v{self.random.random()}"}]
            self.write(tab, "patch", PatchIntent(some, operations))
        elif draw < 0.74:
            self.deleted = {*self.deleted, some}
            self.write(tab, "delete", DeleteIntent([some]))
        elif draw < 0.80:
            key = self.random.choice("abc")
            self.write(tab, "metadata", MetadataIntent(update=lambda data: data.update({key: data.get(key, 0) + 1})))
        elif draw < 0.92:
            self.write(tab, "state", StateIntent("memory", update=self.increment))
        elif draw < 0.96:
            self.write(tab, "batch", BatchIntent([
                AppendIntent([{"mes": "in a batch"}], self.new_id),
                MetadataIntent(merge={"batch": self.random.random()}),
            ]))
        else:
            self.write(tab, "oversize", AppendIntent([{"mes": "x" * 3000}], self.new_id))

    def step(self, *, cuts: float = 0.04) -> None:
        self.now_s += 0.01
        draw = self.random.random()
        tab = self.random.choice(self.tabs)
        if draw < cuts:
            tab.disconnect()
        elif draw < 0.15:
            tab.connect(self.now_s)
        elif draw < 0.18 and tab.cable is not None:
            self.server.slow_down(tab.cable)
        elif draw < 0.22 and tab.cable is not None:
            self.server.catch_up(tab.cable)
        elif draw < 0.42:
            tab.send(self.now_s)
        elif draw < 0.62:
            cable = tab.cable
            if cable is not None and cable.to_server:
                self.server.handle(cable)
        elif draw < 0.85:
            for _ in range(self.random.choice((1, 1, 2, 8))):
                tab.receive(self.now_s)
                self.check()
        else:
            self.random_write()

    def check(self) -> None:
        """Every replica is the server's chat as it was at the replica's version."""
        for tab in self.tabs:
            replica = self.subscription(tab).replica
            if replica is not None:
                assert lines_of(replica.chat) == self.server.past[replica.head.integrity]

    def finish(self) -> None:
        """Heal everything; then compare."""
        self.server.overloaded_share = self.server.lost_broadcast_share = 0.0
        self.now_s = settle(self.server, self.tabs, self.now_s)
        # A broadcast that was lost silently is seen with the next one (R40).
        for tab in self.tabs:
            self.write(tab, "append", AppendIntent([{"mes": "last"}], self.new_id))
        self.now_s = settle(self.server, self.tabs, self.now_s)
        self.check()
        for tab in self.tabs:
            subscription = self.subscription(tab)
            assert subscription.replica is not None
            assert subscription.replica.head == self.server.stream.head
            assert subscription.replica.chat.version == self.server.stream.chat.version
            assert lines_of(subscription.replica.chat) == lines_of(self.server.stream.chat)
            assert subscription.view() is subscription.replica.stream
            known = subscription.replica.stream.states.get("memory")
            theirs = self.server.stream.states.get("memory")
            if known is not None and known.data is not None:
                assert theirs is not None
                assert known.version == theirs.version
                assert known.data == theirs.data
        for _kind, _note, outcome in self.outcomes:
            assert len(outcome) == 1

    def results(self, kind: str) -> list[tuple[Any, WriteResult | Exception]]:
        return [(note, outcome[0]) for of_kind, note, outcome in self.outcomes if of_kind == kind]

    def check_counts(self) -> None:
        """Exactly once: what was acknowledged is there, what was refused is not."""
        present = set(self.server.stream.chat.messages)
        for _note, result in self.results("append"):
            assert isinstance(result, WriteResult)
            for message_id in result.message_ids:
                assert message_id in self.deleted or message_id in present
        increments: Counter[str] = Counter()
        for note, result in self.results("increment"):
            if isinstance(result, WriteResult):
                increments[note] += 1
            else:
                assert isinstance(result, RefusedError), result
        for message_id in present:
            assert self.server.stream.chat.value(message_id).get("n", 0) == increments[message_id]
        stored = sum(isinstance(result, WriteResult) for _note, result in self.results("state"))
        assert stored == len(self.results("state"))
        memory = self.server.stream.states.get("memory")
        if stored:
            assert memory is not None
            assert memory.data == b'{"n":%d}' % stored
        metadata = self.server.stream.chat.metadata_value()
        counted = sum(isinstance(result, WriteResult) for _note, result in self.results("metadata"))
        assert counted == len(self.results("metadata"))
        assert sum(metadata.get(key, 0) for key in "abc") == counted
        for _note, result in self.results("oversize"):
            assert isinstance(result, RefusedError)
            assert result.code == "too-large"
        for kind in ("patch", "delete"):
            for _note, result in self.results(kind):
                assert isinstance(result, (WriteResult, ConflictError, RefusedError)), result


Trouble = Callable[[World], None]


def calm(world: World) -> None:
    """Nothing but cuts and slow tabs."""


def overloaded(world: World) -> None:
    world.server.overloaded_share = 0.2


def lossy(world: World) -> None:
    world.server.lost_broadcast_share = 0.15
    world.server.repeated_share = 0.15


@pytest.mark.parametrize("trouble", [calm, overloaded, lossy])
@pytest.mark.parametrize("seed", range(60))
def test_r01_r02_r06_r17_r35_r40_r45_every_write_once_and_every_replica_equal(seed: int, trouble: Trouble) -> None:
    world = World(seed)
    trouble(world)

    for _ in range(400):
        world.step()
    world.finish()

    world.check_counts()


@pytest.mark.parametrize("seed", range(40))
def test_r04_r05_r28_an_outside_edit_never_loses_a_write_in_silence(seed: int) -> None:
    """What the server had not seen becomes a conflict; the replica is the new chat; nothing stale is pushed onto it."""
    world = World(seed)

    for round_number in range(300):
        world.step()
        if round_number % 60 == 59:
            world.server.outside_edit()
    world.finish()

    for kind, _note, (outcome,) in world.outcomes:
        if kind in ("append", "increment", "state", "metadata", "batch"):
            assert isinstance(outcome, (WriteResult, ConflictError)) or (
                isinstance(outcome, RefusedError) and outcome.code == "message-unknown"
            )
    present = set(world.server.stream.chat.messages)
    for kind, _note, (outcome,) in world.outcomes:
        if kind == "append" and isinstance(outcome, WriteResult):
            assert all(message_id in present or message_id in world.deleted for message_id in outcome.message_ids)
    for tab in world.tabs:
        subscription = world.subscription(tab)
        shown = {id(conflict) for conflict in subscription.conflicts}
        told = {
            id(outcome.conflict) for _kind, _note, (outcome,) in world.outcomes if isinstance(outcome, ConflictError)
        }
        assert shown <= told


def test_the_same_seed_gives_the_same_chat() -> None:
    def run() -> list[dict[str, Any]]:
        world = World(7)
        for _ in range(300):
            world.step()
        world.finish()
        return world.server.stream.chat.values()

    assert run() == run()
