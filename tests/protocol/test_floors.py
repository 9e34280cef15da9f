"""Floor states through random histories: what every tab reads is a fresh replay, after every step."""

from __future__ import annotations

import json
import os
import random
from typing import Any

import msgspec
import pytest

from tellback_protocol import codec, floors, swipes
from tellback_protocol.chat import Chat
from tellback_protocol.decide import Committed, Fresh, decide, install
from tellback_protocol.effects import decode_commit
from tellback_protocol.frames import IntegrityFrame, Limits
from tellback_protocol.ids import Version
from tellback_protocol.stream import StateDocument, Stream
from tellback_protocol.values import dumps, loads
from tests.support.floor_oracle import FloorOracle

HISTORIES = int(os.environ.get("TELLBACK_FLOOR_HISTORIES", "300"))
"""How many histories of 50 steps; the full count is 2,000."""
STEPS = 50
GROUP = 50
LIMITS = Limits()
SESSION = "session-of-tab-one"
NAMESPACES = ("score", "memory")


class History:
    """A stream, what a tab holds of it, what recovery makes of its records, and the oracle."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        version = Version(1, 0, self.integrity(0))
        self.live = Stream("user", "group:x", "id", Chat(version))
        self.tab = Stream("user", "group:x", "id", Chat(version))
        self.recovered = Stream("user", "group:x", "id", Chat(version))
        self.oracle = FloorOracle()
        self.known = dict.fromkeys(NAMESPACES, b"")
        self.made = 0
        self.base: dict[str, str | None] = {}

    def integrity(self, number: int) -> str:
        return f"00000000-0000-4000-8000-{number:012d}"

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

    # -- steps

    def step(self) -> None:
        pick = self.random.random()
        ids = [message.id for message in self.oracle.messages]
        if not ids or pick < 0.1:
            self.append()
        elif pick < 0.55:
            self.update(ids)
        elif pick < 0.85:
            self.swipe(ids)
        elif pick < 0.9:
            count = self.random.choice((1, 1, 2))
            gone = self.random.choices(ids, k=count) if self.random.random() < 0.6 else ids[-count:]
            self.oracle.delete(gone)
            self.ask({"type": "delete", "messages": gone})
        elif pick < 0.96 and len(ids) > 1:
            index, to = self.random.randrange(len(ids)), self.random.randrange(len(ids))
            self.oracle.move(index, to)
            self.ask({"type": "patch", "patch": [
                {"op": "move", "from": f"/messages/{index}", "path": f"/messages/{to}"}]})
        elif pick < 0.98:
            self.batch(ids)
        else:
            namespace = self.random.choice(NAMESPACES)
            if self.state_version(namespace) is not None:
                self.oracle.forget(namespace)
                self.ask({"type": "state-delete", "namespace": namespace, "base": self.state_version(namespace)})

    def append(self) -> None:
        self.made += 1
        self.oracle.append(f"m{self.made}")
        self.ask({"type": "append", "messages": [{"id": f"m{self.made}", "mes": "text"}]})

    def update(self, ids: list[str]) -> None:
        namespace = self.random.choice(NAMESPACES)
        message_id = ids[-1] if self.random.random() < 0.7 else self.random.choice(ids)
        message = self.oracle.message(message_id)
        ordinal = message.shown if self.random.random() < 0.8 else self.random.randrange(len(message.swipes))
        at: dict[str, Any] = {"message": message_id, "swipe": ordinal}
        if self.random.random() < 0.5:
            at = {"floor": ids.index(message_id), "swipe": ordinal}
        if message_id == ids[-1] and ordinal == message.shown and self.random.random() < 0.8:
            at = {}
        patch = self.patch(self.oracle.state(namespace)[0])
        self.oracle.update(namespace, patch, message_id, ordinal)
        request: dict[str, Any] = {"type": "floor-update", "namespace": namespace, "patch": patch,
                                   "base": self.state_version(namespace)}
        self.ask({**request, "at": at} if at else request)

    def patch(self, state: dict[str, Any]) -> list[dict[str, Any]]:
        """Operations that fit the state as it is read now; built on one another, so that some will not fit later."""
        keys = sorted(state)
        operations: list[dict[str, Any]] = []
        key = f"k{self.random.randrange(4)}"
        pick = self.random.random()
        if pick < 0.05:
            return [{"op": "replace", "path": "", "value": {"root": self.made, **({"k1": []} if pick < 0.02 else {})}}]
        if keys and pick < 0.25:
            operations.append({"op": "remove", "path": f"/{self.random.choice(keys)}"})
        elif keys and pick < 0.45:
            chosen = self.random.choice(keys)
            if self.random.random() < 0.4:
                operations.append({"op": "test", "path": f"/{chosen}", "value": state[chosen]})
            operations.append({"op": "replace", "path": f"/{chosen}", "value": self.random.randrange(9)})
        elif keys and pick < 0.55:
            operations.append({"op": self.random.choice(("move", "copy")), "from": f"/{self.random.choice(keys)}",
                               "path": f"/{key}"})
            if operations[0]["from"] == operations[0]["path"]:
                operations[0]["path"] = "/other"
        else:
            lists = [name for name in keys if isinstance(state[name], list)]
            if lists and pick < 0.8:
                operations.append({"op": "add", "path": f"/{lists[0]}/-", "value": self.random.randrange(9)})
            else:
                value: Any = self.random.choice((1, "x", [], [1, 2], {"a": 1}, None, 1.5))
                operations.append({"op": "add", "path": f"/{key}", "value": value})
        return operations

    def swipe(self, ids: list[str]) -> None:
        message_id = ids[-1] if self.random.random() < 0.6 else self.random.choice(ids)
        message = self.oracle.message(message_id)
        request: dict[str, Any] = {"type": "swipe", "message": message_id}
        pick = self.random.random()
        if pick < 0.3 or len(message.swipes) == 1:
            select = self.random.random() < 0.8
            self.oracle.swipe_add(message_id, select=select)
            self.ask({**request, "action": "add", "content": {"mes": "other"}, "select": select})
            return
        ordinal = self.random.randrange(len(message.swipes))
        if pick < 0.75:
            self.oracle.swipe_select(message_id, ordinal)
            if self.random.random() < 0.7:
                self.ask({**request, "action": "select", "swipe": ordinal})
            else:
                self.ask({"type": "patch", "message": message_id,
                          "patch": [{"op": "add", "path": "/swipe_id", "value": ordinal}]})
        else:
            self.oracle.swipe_delete(message_id, ordinal)
            self.ask({**request, "action": "delete", "swipe": ordinal})

    def batch(self, ids: list[str]) -> None:
        """A deletion, a new message and an update of its own, as one commit."""
        self.made += 1
        new = f"m{self.made}"
        gone = self.random.choice(ids)
        self.oracle.delete([gone])
        self.oracle.append(new)
        patch = self.patch(self.oracle.state("score")[0])
        self.oracle.update("score", patch, new, 0)
        chat = self.live.chat.version.integrity
        self.ask({"type": "batch", "requests": [
            {"type": "delete", "messages": [gone], "base": chat},
            {"type": "append", "messages": [{"id": new, "mes": "text"}], "base": chat},
            {"type": "floor-update", "namespace": "score", "patch": patch, "base": self.state_version("score")},
        ]})

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


def canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


@pytest.mark.parametrize("first", range(0, HISTORIES, GROUP))
def test_every_tab_reads_a_fresh_replay_after_every_step(first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """[G3, G4, G5, G6, G7, G8, G9, G13] Random histories of 50 steps; the seed is the number of the history.

    States are remembered every 3 commits, so that histories this short are worked out from them too.
    """
    monkeypatch.setattr(floors, "SNAPSHOT_COMMITS", 3)
    for seed in range(first, min(first + GROUP, HISTORIES)):
        history = History(seed)
        for step in range(STEPS):
            try:
                history.step()
                history.check()
            except Exception as error:
                error.add_note(f"history {seed}, step {step}")
                raise
        history.check_fresh()


def long_stream(commits: int, *, messages: int = 0) -> Stream:
    """A chat with a floor state that has one commit for each message, and two swipes of the last one."""
    history = History(1)
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
    history = History(1)
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
    history = History(2)
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
