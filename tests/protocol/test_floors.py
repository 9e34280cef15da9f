"""Floor states through random histories: what every tab reads is a fresh replay, after every step."""

from __future__ import annotations

import json
import os
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tellback_protocol import codec, floor_work, floors, swipes
from tellback_protocol.chat import Chat
from tellback_protocol.decide import Committed, Fresh, decide, install
from tellback_protocol.effects import decode_commit
from tellback_protocol.frames import IntegrityFrame, Limits
from tellback_protocol.ids import Version
from tellback_protocol.stream import StateDocument, Stream
from tellback_protocol.values import dumps, loads
from tests.support.floor_oracle import FloorOracle

HISTORIES = int(os.environ.get("TELLBACK_FLOOR_HISTORIES", "180"))
"""How many histories of up to 50 steps; 2,000 were run."""
STEPS = 50
PARTS = 6
LIMITS = Limits()
SESSION = "session-of-tab-one"
NAMESPACES = ("score", "memory")


class History:
    """A stream, what a tab holds of it, what recovery makes of its records, and the oracle."""

    def __init__(self) -> None:
        version = Version(1, 0, self.integrity(0))
        self.live = Stream("user", "group:x", "id", Chat(version))
        self.tab = Stream("user", "group:x", "id", Chat(version))
        self.recovered = Stream("user", "group:x", "id", Chat(version))
        self.oracle = FloorOracle()
        self.made = 0

    def integrity(self, number: int) -> str:
        return f"00000000-0000-4000-8000-{number:012d}"

    @property
    def ids(self) -> list[str]:
        return [message.id for message in self.oracle.messages]

    def ask(self, request: dict[str, Any]) -> None:
        """[E2] Carry out a request, tell the tab, and write the log."""
        op = self.live.next_op(SESSION)
        frame = {"chat": "group:x", "op": op, "base": self.live.chat.version.integrity, **request}
        if request["type"].startswith("state-"):
            frame["owner"] = {"chat": frame.pop("chat")}
        decoded: Any = codec.decode_client(dumps(frame), LIMITS)
        fresh = Fresh(self.integrity(op), op << 16, 0)
        before = self.picture() if op % 7 == 0 else None
        decision = decide(self.live, decoded, SESSION, fresh, LIMITS)
        assert isinstance(decision, Committed), (request, decision.outcome.body)
        if before is not None:
            again = decide(self.live, decoded, SESSION, fresh, LIMITS)
            assert isinstance(again, Committed)
            assert again.record == decision.record, "[E2] not the same decision"
            assert self.picture() == before, "[E2] deciding changed the stream"
        install(self.live, SESSION, op, decision, 0)
        self.recovered.fold(decode_commit(decision.record))
        told = msgspec.json.decode(b'{"type":"integrity","chat":"group:x",' + decision.core + b"}", type=IntegrityFrame)
        self.tab.fold_effects(decode_commit(msgspec.json.encode(
            {"version": told.version, "previous": told.previous, "ops": told.ops})))

    def picture(self) -> Any:
        """Everything of the live stream that a decision could disturb, as values of its own."""
        return (
            self.live.head, list(self.live.chat.messages.items()),
            [(name, document.version, document.data, list(document.skipped))
             for name, document in self.live.states.items()],
            [
                ([(commit.id, commit.message, commit.swipe, commit.patches) for commit in log.commits],
                 dict(log.positions), {message: list(at) for message, at in log.by_message.items()}, dict(log.shown),
                 [(snapshot.position, snapshot.data) for snapshot in log.snapshots], log.skipped, log.raw)
                for log in self.live.floors.values()
            ],
        )

    def state_version(self, namespace: str) -> str | None:
        document = self.live.states.get(namespace)
        return None if document is None or document.data is None or document.version is None else (
            document.version.integrity
        )

    def append(self) -> None:
        self.made += 1
        self.oracle.append(f"m{self.made}")
        self.ask({"type": "append", "messages": [{"id": f"m{self.made}", "mes": "text"}]})

    # -- checks

    def check(self) -> None:
        for namespace in NAMESPACES:
            document = self.live.states.get(namespace)
            expected, skipped = self.oracle.state(namespace)
            if document is None or document.data is None:
                assert expected == {}
                assert namespace not in self.live.floors
                continue
            assert canonical(loads(document.data)) == canonical(expected)
            assert len(document.skipped) == skipped
            log = self.live.floors[namespace]
            assert len(log.commits) == self.oracle.kept(namespace)
            # Snapshot and deltas are a fresh snapshot, for a tab and for recovery.
            for other in (self.tab, self.recovered):
                held = other.states[namespace]
                assert canonical(loads(held.data or b"")) == canonical(expected)
                assert held.version == document.version
                assert held.skipped == document.skipped
            written = self.live.states[namespace + floors.LOG_SUFFIX]
            again = self.recovered.states[namespace + floors.LOG_SUFFIX]
            assert written.version == again.version == document.version
            assert written.data == again.data

    def check_fresh(self) -> None:
        """[G3, G11] What the sidecars hold leads to the same states, in a process that knows nothing else."""
        fresh = Stream("user", "group:x", "id", self.live.chat.copy(), self.live.head)
        for name, document in self.live.states.items():
            fresh.states[name] = StateDocument(document.version, document.data)
        before = {name: (document.version, document.data) for name, document in fresh.states.items()}
        fresh.read_floors()
        fresh.settle_floors()
        assert {name: (document.version, document.data) for name, document in fresh.states.items()} == before
        for namespace, log in self.live.floors.items():
            assert fresh.states[namespace].skipped == self.live.states[namespace].skipped
            assert fresh.floors[namespace].shown == log.shown
            for snapshot in log.snapshots:
                assert snapshot.position <= len(log.commits)


PATCHES = st.fixed_dictionaries({
    "kind": st.sampled_from(
        ("add", "add", "push", "push", "replace", "test and replace", "remove", "move", "copy", "root")),
    "key": st.integers(0, 3), "pick": st.integers(0, 7),
    "value": st.sampled_from((1, "x", [], [1, 2], {"a": 1}, None, 1.5)),
})
"""How a patch is made of a state: see `operations`."""
PLACES = st.integers(0, 30)
"""A message or swipe, counted from the last one, round and round: what Hypothesis makes simple is what happens most."""


def operations(state: dict[str, Any], made: dict[str, Any]) -> list[dict[str, Any]]:
    """Operations that fit the state as it is read now; built on one another, so that some will not fit later."""
    keys, kind, path = sorted(state), made["kind"], f"/k{made['key']}"
    chosen = "/" + keys[made["pick"] % len(keys)] if keys else path
    lists = [name for name in keys if isinstance(state[name], list)]
    if kind == "root":
        return [{"op": "replace", "path": "", "value": {"root": made["pick"], "k1": made["value"]}}]
    if kind == "push" and lists:
        return [{"op": "add", "path": f"/{lists[made['pick'] % len(lists)]}/-", "value": made["value"]}]
    if not keys or kind in ("add", "push"):
        return [{"op": "add", "path": path, "value": made["value"]}]
    if kind == "remove":
        return [{"op": "remove", "path": chosen}]
    if kind in ("move", "copy"):
        return [{"op": kind, "from": chosen, "path": path if path != chosen else "/other"}]
    replace = {"op": "replace", "path": chosen, "value": made["value"]}
    return [{"op": "test", "path": chosen, "value": state[chosen[1:]]}, replace] if "test" in kind else [replace]


def several_swipes(machine: FloorStates) -> bool:
    return any(len(message.swipes) > 1 for message in machine.oracle.messages)


class FloorStates(RuleBasedStateMachine):
    """Everything that can happen to messages, swipes and floor states of one chat."""

    def __init__(self) -> None:
        super().__init__()
        self.history = History()
        self.ask = self.history.ask
        self.oracle = self.history.oracle

    def message(self, place: int) -> str:
        ids = self.history.ids
        return ids[-1 - place % len(ids)]

    @initialize()
    def first(self) -> None:
        self.history.append()

    @rule()
    def append(self) -> None:
        self.history.append()

    @precondition(lambda self: self.history.ids)
    @rule(namespace=st.sampled_from(NAMESPACES), place=PLACES, swipe=st.none() | PLACES,
          named=st.sampled_from(("not", "id", "floor")), patch=PATCHES)
    def update(self, namespace: str, place: int, swipe: int | None, named: str, patch: dict[str, Any]) -> None:
        """At the last message and the swipe it shows, or at any other."""
        self.update_at(namespace, self.message(0 if named == "not" else place), swipe, named, patch)

    def update_at(
        self, namespace: str, message_id: str, swipe: int | None, named: str, patch: dict[str, Any]
    ) -> None:
        message = self.oracle.message(message_id)
        ordinal = message.shown if swipe is None or named == "not" else swipe % len(message.swipes)
        floor = self.history.ids.index(message_id)
        at: dict[str, Any] = {"message": message_id} if named == "id" else {"floor": floor}
        made = operations(self.oracle.state(namespace)[0], patch)
        self.oracle.update(namespace, made, message_id, ordinal)
        request: dict[str, Any] = {"type": "floor-update", "namespace": namespace, "patch": made,
                                   "base": self.history.state_version(namespace)}
        self.ask(request if named == "not" else {**request, "at": {**at, "swipe": ordinal}})

    @precondition(lambda self: self.history.ids)
    @rule(namespace=st.sampled_from(NAMESPACES), patches=st.lists(PATCHES, min_size=2, max_size=6))
    def update_often(self, namespace: str, patches: list[dict[str, Any]]) -> None:
        """A turn of the chat: several updates of the swipe that the last message shows."""
        for patch in patches:
            self.update_at(namespace, self.message(0), None, "not", patch)

    @precondition(lambda self: self.history.ids)
    @rule(place=PLACES, select=st.booleans())
    def add_swipe(self, place: int, select: bool) -> None:
        message_id = self.message(place)
        self.oracle.swipe_add(message_id, select=select)
        self.ask({"type": "swipe", "message": message_id, "action": "add", "content": {"mes": "other"},
                  "select": select})

    def swiped(self, place: int) -> tuple[str, int]:
        """One of the messages that have several swipes, and how many."""
        found = [message for message in self.oracle.messages if len(message.swipes) > 1]
        message = found[-1 - place % len(found)]
        return message.id, len(message.swipes)

    @precondition(several_swipes)
    @rule(place=PLACES, swipe=PLACES, by_patch=st.booleans())
    def show_swipe(self, place: int, swipe: int, by_patch: bool) -> None:
        message_id, count = self.swiped(place)
        self.oracle.swipe_select(message_id, swipe % count)
        if by_patch:
            self.ask({"type": "patch", "message": message_id,
                      "patch": [{"op": "add", "path": "/swipe_id", "value": swipe % count}]})
        else:
            self.ask({"type": "swipe", "message": message_id, "action": "select", "swipe": swipe % count})

    @precondition(several_swipes)
    @rule(place=PLACES, swipe=PLACES)
    def show_and_come_back(self, place: int, swipe: int) -> None:
        """[G7]"""
        message_id, count = self.swiped(place)
        shown = self.oracle.message(message_id).shown
        before = [self.oracle.state(namespace) for namespace in NAMESPACES]
        for ordinal in (swipe % count, shown):
            self.oracle.swipe_select(message_id, ordinal)
            self.ask({"type": "swipe", "message": message_id, "action": "select", "swipe": ordinal})
            self.history.check()
        assert [self.oracle.state(namespace) for namespace in NAMESPACES] == before

    @precondition(several_swipes)
    @rule(place=PLACES, swipe=PLACES)
    def delete_swipe(self, place: int, swipe: int) -> None:
        message_id, count = self.swiped(place)
        self.oracle.swipe_delete(message_id, swipe % count)
        self.ask({"type": "swipe", "message": message_id, "action": "delete", "swipe": swipe % count})

    @precondition(lambda self: self.history.ids)
    @rule(places=st.lists(PLACES, min_size=1, max_size=3))
    def delete(self, places: list[int]) -> None:
        """From the tail and from the middle; named twice counts once."""
        gone = [self.message(place) for place in places]
        self.oracle.delete(gone)
        self.ask({"type": "delete", "messages": gone})

    @precondition(lambda self: len(self.history.ids) > 1)
    @rule(place=PLACES, to=PLACES)
    def move(self, place: int, to: int) -> None:
        count = len(self.history.ids)
        self.oracle.move(place % count, to % count)
        self.ask({"type": "patch", "patch": [
            {"op": "move", "from": f"/messages/{place % count}", "path": f"/messages/{to % count}"}]})

    @precondition(lambda self: self.history.ids)
    @rule(place=PLACES, patch=PATCHES)
    def batch(self, place: int, patch: dict[str, Any]) -> None:
        """A deletion, a new message and an update of its own, as one commit."""
        history = self.history
        history.made += 1
        new, gone = f"m{history.made}", self.message(place)
        self.oracle.delete([gone])
        self.oracle.append(new)
        made = operations(self.oracle.state("score")[0], patch)
        self.oracle.update("score", made, new, 0)
        chat = history.live.chat.version.integrity
        self.ask({"type": "batch", "requests": [
            {"type": "delete", "messages": [gone], "base": chat},
            {"type": "append", "messages": [{"id": new, "mes": "text"}], "base": chat},
            {"type": "floor-update", "namespace": "score", "patch": made, "base": history.state_version("score")},
        ]})

    @precondition(lambda self: len(self.oracle.logs.get("memory", ())) > 9)
    @rule()
    def forget(self) -> None:
        self.oracle.forget("memory")
        self.ask({"type": "state-delete", "namespace": "memory", "base": self.history.state_version("memory")})

    @invariant()
    def every_tab_reads_a_fresh_replay(self) -> None:
        self.history.check()

    def teardown(self) -> None:
        self.history.check_fresh()


def canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("part", range(PARTS))
def test_every_tab_reads_a_fresh_replay_after_every_step(part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """[G3, G4, G5, G6, G7, G8, G9, G13] Histories of 50 steps; one that fails is told as short as it can be made.

    States are remembered every 3 commits, so that histories this short are worked out from them too.
    """
    monkeypatch.setattr(floors, "SNAPSHOT_COMMITS", 3)
    machine = seed(part)(type(f"FloorStates{part}", (FloorStates,), {}))
    run_state_machine_as_test(machine, settings=settings(
        max_examples=HISTORIES // PARTS, stateful_step_count=STEPS, deadline=None, database=None,
        suppress_health_check=list(HealthCheck),
    ))


@pytest.mark.parametrize("forgotten", ["deleted", "swipe_deleted", "edited"])
def test_a_structural_change_that_is_forgotten_is_noticed(forgotten: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted bugs of the kinds that Luker has: floor states that miss a deletion, a swipe deleted, a swipe shown."""
    monkeypatch.setattr(floor_work.FloorWork, forgotten, lambda *_arguments: None)
    with pytest.raises(Exception, match=r"assert|AttributeError|KeyError|Hypothesis found"):
        run_state_machine_as_test(seed(1)(type("Planted", (FloorStates,), {})), settings=settings(
            max_examples=50, stateful_step_count=STEPS, deadline=None, database=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ))


def long_stream(commits: int, *, messages: int = 0) -> Stream:
    """A chat with a floor state that has one commit for each message, and two swipes of the last one."""
    history = History()
    for _ in range(max(commits, messages)):
        history.append()
        if history.made <= commits:
            history.ask({"type": "floor-update", "namespace": "score", "base": history.state_version("score"),
                         "patch": [{"op": "add", "path": f"/k{history.made % 20}", "value": history.made}]})
    last = f"m{history.made}"
    history.ask({"type": "swipe", "message": last, "action": "add", "content": {"mes": "other"}})
    return history.live


def test_remembered_states_are_few_and_the_last_ones_are_near() -> None:
    """[G14] Their number grows with the logarithm; from near the end only the last stretch is replayed."""
    log = long_stream(2000).floors["score"]
    assert len(log.snapshots) < 16
    positions = [snapshot.position for snapshot in log.snapshots]
    assert positions == sorted(positions)
    for back in (1, 10, 100, 500, 1500):
        position = len(log.commits) - back
        assert position - log.before(position).position <= 2 * max(back, floors.SNAPSHOT_COMMITS)


def test_a_swipe_at_the_tail_replays_the_last_stretch_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """[G14] Counted in commits that are applied."""
    live = long_stream(1000)
    applied = 0
    apply = floors.Replay.apply

    def counted(self: floors.Replay, commit: floors.FloorCommit) -> None:
        nonlocal applied
        applied += 1
        apply(self, commit)

    monkeypatch.setattr(floors.Replay, "apply", counted)
    history = History()
    history.live = live
    history.recovered = Stream("", "", "", live.chat.copy())
    history.tab = Stream("", "", "", live.chat.copy())
    for ordinal in (0, 1, 0, 1):
        op = live.next_op(SESSION)
        frame = {"type": "swipe", "chat": "group:x", "op": op, "base": live.chat.version.integrity,
                 "message": "m1000", "action": "select", "swipe": ordinal}
        decoded: Any = codec.decode_client(dumps(frame), LIMITS)
        decision = decide(live, decoded, SESSION, Fresh(history.integrity(op), op << 16, 0), LIMITS)
        assert isinstance(decision, Committed)
        assert [effect.__class__.__name__ for effect in decision.effects] == ["PatchEffect", "FloorEffect"]
        install(live, SESSION, op, decision, 0)
    assert applied <= 4 * 2 * floors.SNAPSHOT_COMMITS


def test_a_branch_gets_the_logs_cut_to_its_messages() -> None:
    """[G11] The state is that of the branch's messages and swipes."""
    history = History()
    for number in range(1, 5):
        history.append()
        history.ask({"type": "floor-update", "namespace": "score", "base": history.state_version("score"),
                     "patch": [{"op": "add", "path": f"/k{number}", "value": number}]})
    history.ask({"type": "swipe", "message": "m2", "action": "add", "content": {"mes": "other"}})
    live = history.live
    branch = Chat(Version(1, 1, history.integrity(99)), b"{}",
                  {message: live.chat.messages[message] for message in ("m1", "m2", "m3")})
    sidecars = floors.branched(live.floors, branch)
    assert loads(sidecars["score"]) == {"k1": 1, "k3": 3}
    log = loads(sidecars["score__floor_log"])
    assert [(commit["floor"], commit["swipeId"]) for commit in log["commits"]] == [(0, 0), (1, 0), (2, 0)]
    shown = branch.value("m2")
    selected = swipes.select(shown, 0).value
    branch.messages["m2"] = dumps(selected)
    assert loads(floors.branched(live.floors, branch)["score"]) == {"k1": 1, "k2": 2, "k3": 3}
    assert loads(live.states["score"].data or b"") == {"k1": 1, "k3": 3, "k4": 4}, "the source is as it was"
