"""Writers that note every invocation and every answer, and the checker of RELIABILITY's invariants over their notes.

The notes live in the test's process, so the end of a server does not take them along. An ack carries its seq: the
server supplies the order, and checking it costs one sort.

    Replica      a chat that follows effects, written from PROTOCOL.md alone; it fails on a gap
    Writer       a tab with ops in flight that resends what has no answer, with the same numbers
    check        invariants 1 to 10 (RELIABILITY "Exactly-once / linearizability checker")
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonpatch
from websockets.exceptions import WebSocketException

from tests.support.raw_client import RawClient
from tests.support.server import TabClient, new_session
from tests.support.waiting import until

LOST = (OSError, TimeoutError, WebSocketException)
"""What a client sees of a server that was killed."""


@dataclass
class Replica:
    """What a tab knows of a chat. `head` is the version of the last commit it heard of."""

    messages: dict[str, Any] = field(default_factory=dict)
    metadata: Any = field(default_factory=dict)
    states: dict[str, Any] = field(default_factory=dict)
    head: dict[str, Any] | None = None
    state_versions: dict[str, str] = field(default_factory=dict)

    def take(self, opened: dict[str, Any]) -> None:
        """Install a snapshot; its states are asked for separately."""
        self.messages = {message["id"]: message for message in opened["messages"]}
        self.metadata = opened["metadata"]
        self.head = opened["head"]

    def follow(self, commit: dict[str, Any]) -> bool:
        """Install an integrity frame. False when it was known already; a gap is an AssertionError."""
        assert self.head is not None
        version = commit["version"]
        if version["seq"] <= self.head["seq"]:
            return False
        assert version["epoch"] == self.head["epoch"], "an epoch changes by reset only"
        assert version["seq"] == self.head["seq"] + 1, f"a gap: {self.head} -> {version}"
        assert commit["previous"] == self.head["integrity"], "the chain is broken"
        self.install(version, commit["ops"])
        return True

    def install(self, version: dict[str, Any], effects: Iterable[dict[str, Any]]) -> None:
        """Install the effects of one commit."""
        for effect in effects:
            match effect["op"]:
                case "append":
                    for message in effect["messages"]:
                        self.messages.setdefault(message["id"], message)
                case "insert":
                    self._insert(effect)
                case "patch":
                    if effect["message"] in self.messages:
                        self.messages[effect["message"]] = jsonpatch.apply_patch(
                            self.messages[effect["message"]], effect["patch"]
                        )
                case "delete":
                    for message_id in effect["messages"]:
                        self.messages.pop(message_id, None)
                case "metadata":
                    self.metadata = jsonpatch.apply_patch(self.metadata, effect["patch"])
                case "state":
                    self._state(effect)
                case other:
                    raise AssertionError(f"an effect outside the closed set: {other}")
        self.head = version

    def _insert(self, effect: dict[str, Any]) -> None:
        order = list(self.messages.items())
        ids = list(self.messages)
        after = effect["after"]
        index = 0 if after is None else ids.index(after) + 1 if after in self.messages else len(ids)
        fresh = [(message["id"], message) for message in effect["messages"]]
        self.messages = dict(order[:index] + fresh + order[index:])

    def _state(self, effect: dict[str, Any]) -> None:
        namespace = effect["namespace"]
        self.state_versions[namespace] = effect["version"]["integrity"]
        if effect.get("deleted"):
            self.states.pop(namespace, None)
        elif "data" in effect:
            self.states[namespace] = effect["data"]
        elif "patch" in effect:
            self.states[namespace] = jsonpatch.apply_patch(self.states.get(namespace, {}), effect["patch"])
        else:
            raise AssertionError("these tests write no state over 64 KiB")


@dataclass
class Invocation:
    """One op, from its first sending on."""

    session: str
    op: int
    frame: dict[str, Any]
    invoked_s: float
    returned_s: float | None = None
    answer: dict[str, Any] | None = None
    """The first outcome."""
    sent: int = 0


@dataclass
class Notes:
    """What all writers saw."""

    invocations: dict[tuple[str, int], Invocation] = field(default_factory=dict)
    observed: dict[str, int] = field(default_factory=dict)
    """Every integrity that stood in any frame, with its seq."""
    duplicates: int = 0
    connections: int = 0

    def see(self, version: dict[str, Any] | None) -> None:
        """A version stood in a frame."""
        if version is not None:
            known = self.observed.setdefault(version["integrity"], version["seq"])
            assert known == version["seq"], "one integrity, two seqs"


class Writer:
    """A tab with up to `window` ops in flight: appends, patches of a shared message, state writes."""

    def __init__(self, chat: str, notes: Notes, seed: int, *, window: int = 4, ops_max: int = 10**9) -> None:
        self.chat = chat
        self.notes = notes
        self.random = random.Random(seed)
        self.session = new_session()
        self.name = f"w{seed}"
        self.window = window
        self.ops_max = ops_max
        self.replica = Replica()
        self.last_op = 0
        self.pending: dict[int, Invocation] = {}
        self.shared: list[str] = []
        """Ids of messages that everybody patches."""

    async def run(self, url: str, stop: asyncio.Event) -> None:
        """Connect again and again until `stop`, then until every op has its answer."""
        while not stop.is_set() or self.pending:
            raw: RawClient | None = None
            try:
                raw = await RawClient.connect(url)
                await self._connected(raw, stop)
            except LOST:
                await asyncio.sleep(0.01)
            finally:
                if raw is not None:
                    raw.abort()

    async def _connected(self, raw: RawClient, stop: asyncio.Event) -> None:
        self.notes.connections += 1
        await raw.send({"type": "hello", "protocol": 1, "session": self.session, "token": None})
        await raw.receive_until(type="welcome")
        await raw.send({"type": "open", "id": 0, "chat": self.chat, "since": self.replica.head})
        opened = await raw.receive_until(id=0)
        if opened.get("retry") == "backoff":
            raise OSError(opened["code"])
        assert opened["type"] == "opened", opened
        self._opened(opened)
        assert min(self.pending, default=self.last_op + 1) <= opened["next_op"] <= self.last_op + 1
        for invocation in self.pending.values():
            await self._send(raw, invocation)
        while self.pending or not stop.is_set():
            while len(self.pending) < self.window and not stop.is_set() and self.last_op < self.ops_max:
                await self._send(raw, self._invoke())
            if not self.pending:
                return
            self._received(await raw.receive())

    def _opened(self, opened: dict[str, Any]) -> None:
        self.notes.see(opened["head"])
        self.notes.see(opened["version"])
        if opened["mode"] == "snapshot":
            assert self.replica.head is None, f"a snapshot where a replay was due: {opened.get('reset')}"
            self.replica.take(opened)
            self.shared = list(self.replica.messages)[:3]
        elif opened["mode"] == "current":
            assert opened["head"] == self.replica.head
        assert self.replica.head is not None
        assert opened["head"]["seq"] >= self.replica.head["seq"], "reads never go back"

    async def _send(self, raw: RawClient, invocation: Invocation) -> None:
        invocation.sent += 1
        await raw.send({**invocation.frame, "id": invocation.op})

    def _invoke(self) -> Invocation:
        self.last_op += 1
        op = self.last_op
        assert self.replica.head is not None
        text = f"{self.name} {op}"
        kind = self.random.random()
        frame: dict[str, Any]
        if kind < 0.7:
            message = {"name": self.name, "mes": text}
            frame = {"type": "append", "chat": self.chat, "base": "*", "messages": [message]}
        elif kind < 0.85 and self.shared:
            frame = {
                "type": "patch", "chat": self.chat, "base": self.replica.head["integrity"],
                "message": self.random.choice(self.shared),
                "patch": [{"op": "add", "path": "/extra_note", "value": text}],
            }
        else:
            frame = {
                "type": "state-update", "owner": {"chat": self.chat}, "namespace": "memory",
                "base": self.replica.state_versions.get("memory"), "set": {"by": text},
            }
        invocation = Invocation(self.session, op, {**frame, "op": op}, time.monotonic())
        self.pending[op] = self.notes.invocations[self.session, op] = invocation
        return invocation

    def _received(self, frame: dict[str, Any]) -> None:
        match frame["type"]:
            case "integrity":
                self.notes.see(frame["version"])
                self.replica.follow(frame)
            case "ack" | "conflict" | "error":
                self._answered(frame)
            case "goaway":
                return
            case other:
                raise AssertionError(f"nobody asked for {other}: {frame}")

    def _answered(self, frame: dict[str, Any]) -> None:
        assert frame["type"] != "error", frame
        invocation = self.pending.pop(frame["op"])
        invocation.returned_s = time.monotonic()
        invocation.answer = frame
        self.notes.see(frame["version"])
        for missed in frame.get("missed", ()):
            self.notes.see(missed["version"])
        if frame.get("duplicate"):
            self.notes.duplicates += 1
            assert invocation.sent > 1, "a duplicate of what was sent once"
        if frame["type"] == "conflict" and invocation.frame["type"] == "state-update" and frame["version"]:
            self.replica.state_versions["memory"] = frame["version"]["integrity"]
        if frame["type"] == "ack":
            assert self.replica.head is not None
            if frame["version"]["seq"] > self.replica.head["seq"]:
                assert frame["version"]["seq"] == self.replica.head["seq"] + 1, "the ack came before what it stands on"
                self.replica.install(frame["version"], effects_of(invocation.frame, frame))


def effects_of(request: dict[str, Any], ack: dict[str, Any]) -> list[dict[str, Any]]:
    """What an accepted request did, as its sender works it out from the ack."""
    if "ops" in ack:
        found: list[dict[str, Any]] = ack["ops"]
        return found
    match request["type"]:
        case "append":
            messages = [
                {"id": message_id, **message}
                for message_id, message in zip(ack["messages"], request["messages"], strict=True)
            ]
            return [{"op": "append", "messages": messages}]
        case "patch":
            return [{"op": "patch", "message": request["message"], "patch": request["patch"]}]
        case "delete":
            return [{"op": "delete", "messages": request["messages"]}]
        case "metadata-update":
            return [{"op": "metadata", "patch": request["patch"]}]
        case "state-update":
            state = {"op": "state", "namespace": request["namespace"], "version": ack["version"]}
            return [{**state, "data": request["set"]} if "set" in request else {**state, "patch": request["patch"]}]
        case "floor-update":
            floor = {"op": "floor", "namespace": request["namespace"], "version": ack["version"]}
            return [{**floor, "patch": request["patch"]}]
        case "state-delete":
            return [{"op": "state", "namespace": request["namespace"], "version": ack["version"], "deleted": True}]
    raise AssertionError(f"the ack of {request['type']} has no ops")


async def links_told(data: Path) -> None:
    """Until no chat with another name waits for those that link to it."""
    folder = data / ".tellback/names/default-user"
    await until(lambda: all('"links":[]' in entry.read_text() for entry in folder.glob("[!.]*.json")))


async def whole_history(tab: TabClient, chat: str) -> list[dict[str, Any]]:
    """Every commit of a chat, page by page."""
    commits: list[dict[str, Any]] = []
    while True:
        page = await tab.ask("history", chat=chat, after=len(commits), limit=1000)
        assert page["type"] == "history", page
        commits.extend(page["commits"])
        if not page["more"]:
            return commits


def check(
    notes: Notes,
    history: list[dict[str, Any]],
    first: dict[str, Any],
    final: dict[str, Any],
    final_states: dict[str, Any],
    writers: list[Writer],
) -> None:
    """Invariants 1 to 10 over everything that was seen. `first` and `final` are `opened` snapshots."""
    by_op: dict[tuple[str, int], dict[str, Any]] = {}
    seq_of = {first["head"]["integrity"]: first["head"]["seq"]}
    previous = first["head"]
    model = Replica()
    model.take(first)
    touched: dict[str, list[int]] = {"chat": [first["version"]["seq"]], "memory": []}
    for commit in history:
        version = commit["version"]
        # 4: one chain, no integrity twice, no hole.
        assert version["seq"] == previous["seq"] + 1
        assert commit["previous"] == previous["integrity"]
        assert version["integrity"] not in seq_of
        seq_of[version["integrity"]] = version["seq"]
        previous = version
        key = (commit["by"]["session"], commit["by"]["op"])
        # 2 and 3: at most once, and somebody asked for exactly this.
        assert key not in by_op, f"{key} twice"
        by_op[key] = commit
        assert key in notes.invocations, f"a phantom: {commit}"
        assert payload(notes.invocations[key].frame) == carried(commit), key
        touched["memory" if commit["ops"][0]["op"] == "state" else "chat"].append(version["seq"])
        # 10: an independent replica applies it.
        assert model.follow(commit)
    assert previous == final["head"]
    # 8: whatever anybody saw is in the history.
    for integrity, seq in notes.observed.items():
        assert seq_of.get(integrity) == seq, f"somebody saw seq {seq} {integrity}, which a crash undid"
    outcomes: Counter[str] = Counter()
    for key, invocation in notes.invocations.items():
        answer = invocation.answer
        assert answer is not None, "every op got its answer in the end"
        outcomes[answer["type"]] += 1
        commit = by_op.get(key)
        if answer["type"] == "ack":
            # 1: durable, where the ack said.
            assert commit is not None, f"the acknowledged {key} is lost"
            assert commit["version"] == answer["version"]
        else:
            # 3: what was refused is not there. 7: and it was refused for a reason.
            assert commit is None, f"{key} was refused and is there"
            _justified(invocation, answer, seq_of, touched)
    _real_time(notes, by_op)
    _session_order(by_op)
    # 9: all replicas are the server's chat.
    assert list(model.messages.values()) == final["messages"]
    assert model.metadata == final["metadata"]
    assert model.states == final_states
    for writer in writers:
        assert writer.replica.head is not None
        assert seq_of[writer.replica.head["integrity"]] == writer.replica.head["seq"]
    assert outcomes["ack"] > 0
    assert outcomes["conflict"] > 0, "the writers were in each other's way"


def payload(frame: dict[str, Any]) -> str:
    """What an op wanted, without ids that the server gives."""
    match frame["type"]:
        case "append":
            return json.dumps(frame["messages"])
        case "patch":
            return json.dumps([frame["message"], frame["patch"][0]["path"], frame["patch"][0]["value"]])
    return json.dumps(frame["set"])


def carried(commit: dict[str, Any]) -> str:
    """The same of a commit."""
    [effect] = commit["ops"]
    match effect["op"]:
        case "append":
            return json.dumps([{key: message[key] for key in message if key != "id"} for message in effect["messages"]])
        case "patch":
            return json.dumps([effect["message"], effect["patch"][0]["path"], effect["patch"][0]["value"]])
    return json.dumps(effect["data"] if "data" in effect else effect["patch"][0]["value"])


def _justified(
    invocation: Invocation, answer: dict[str, Any], seq_of: dict[str, int], touched: dict[str, list[int]]
) -> None:
    """7: between the base and the version that the conflict names, a commit touched the document."""
    base = invocation.frame["base"]
    document = "memory" if invocation.frame["type"] == "state-update" else "chat"
    base_seq = -1 if base is None else seq_of[base]
    version = answer["version"]
    assert version is not None
    assert version["seq"] in touched[document], "the version of the document, not of something else"
    assert version["seq"] > base_seq, "nothing came between"


def _real_time(notes: Notes, by_op: dict[tuple[str, int], dict[str, Any]]) -> None:
    """5: what returned before another was invoked has the lower seq."""
    points: list[tuple[float, int, int]] = []
    for key, commit in by_op.items():
        invocation = notes.invocations[key]
        assert invocation.returned_s is not None
        points.append((invocation.invoked_s, 0, commit["version"]["seq"]))
        points.append((invocation.returned_s, 1, commit["version"]["seq"]))
    highest_returned = 0
    for _, is_return, seq in sorted(points):
        if is_return:
            highest_returned = max(highest_returned, seq)
        else:
            assert seq > highest_returned, "a later op got an earlier place"


def _session_order(by_op: dict[tuple[str, int], dict[str, Any]]) -> None:
    """6: the ops of one session keep their order."""
    last: dict[str, int] = {}
    for (session, _op), commit in sorted(by_op.items()):
        assert commit["version"]["seq"] > last.get(session, 0)
        last[session] = commit["version"]["seq"]
