"""Many tabs, random writes of every kind: each replica, built from effects alone, is the server's chat in the end."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import pytest

from tests.support.model import after
from tests.support.oracle import Replica, effects_of, whole_history
from tests.support.server import TabClient, running

CHAT = "character:Alice/First meeting"
STATES = ("memory", "draft")


class Tab:
    """A tab with a replica that writes at random against what it knows, one op at a time."""

    def __init__(self, client: TabClient, seed: int) -> None:
        self.client = client
        self.random = random.Random(seed)
        self.replica = Replica()
        self.document: dict[str, str | None] = {"chat": None}
        """The version of each document as far as this tab knows."""
        self.accepted: list[tuple[int, dict[str, Any], dict[str, Any]]] = []
        """seq, request and ack of what was acknowledged."""
        self.refused = 0

    async def start(self, *, create: bool = False) -> None:
        self.replica.take(await self.client.open(CHAT, create=create))

    def hear(self, frame: dict[str, Any]) -> None:
        """An integrity frame."""
        assert frame["type"] == "integrity", frame
        self.replica.follow(frame)

    async def write(self) -> None:
        """One random op; everything that comes before its answer is heard first."""
        request = self.random_request()
        op = self.client.ops.get(CHAT, 0) + 1
        self.client.requests += 1
        await self.client.raw.send({**request, "op": op, "id": self.client.requests})
        while True:
            frame = await self.client.raw.receive()
            if frame.get("id") == self.client.requests:
                break
            self.hear(frame)
        self.client.ops[CHAT] = op
        if frame["type"] != "ack":
            assert frame["type"] == "conflict" or frame["retry"] == "never", frame
            self.refused += 1
            return
        self.accepted.append((frame["version"]["seq"], request, frame))
        head = self.replica.head
        assert head is not None
        assert frame["version"]["seq"] == head["seq"] + 1
        self.replica.install(frame["version"], effects_of(request, frame))

    def random_request(self) -> dict[str, Any]:
        """Of every kind; the base is what this tab knows, or what it knew, and sometimes forced or rebased."""
        chance = self.random
        head = self.replica.head
        assert head is not None
        ids = list(self.replica.messages)
        base = head["integrity"]
        more: dict[str, Any] = {"on_conflict": "rebase"} if chance.random() < 0.5 else {}
        kind = chance.choice(["append", "append", "patch", "whole", "delete", "metadata", "state", "merge", "drop",
                              "batch"])
        value = chance.randrange(1000)
        chat: dict[str, Any] = {"chat": CHAT, "base": base, **more}
        namespace = chance.choice(STATES)
        owner = {"owner": {"chat": CHAT}, "namespace": namespace, **more}
        if kind in ("patch", "delete", "whole") and not ids:
            kind = "append"
        match kind:
            case "append":
                messages = [{"mes": f"{value}", "n": number} for number in range(chance.randrange(1, 3))]
                return {"type": "append", **chat, "base": "*", "messages": messages}
            case "patch":
                operation = chance.choice([
                    {"op": "replace", "path": "/mes", "value": f"patched {value}"},
                    {"op": "add", "path": "/extra", "value": {"deep": [value, None, {"ü~/": "\u2028"}]}},
                    {"op": "copy", "from": "/mes", "path": "/copied"},
                    {"op": "move", "from": "/mes", "path": "/mes"},
                ])
                return {"type": "patch", **chat, "message": chance.choice(ids), "patch": [operation]}
            case "whole":
                index = chance.randrange(len(ids))
                operations = chance.choice([
                    [{"op": "replace", "path": f"/messages/{index}/mes", "value": f"whole {value}"}],
                    [{"op": "add", "path": f"/messages/{index}", "value": {"mes": f"inserted {value}"}},
                     {"op": "add", "path": f"/metadata/k{value % 5}", "value": value}],
                    [{"op": "remove", "path": f"/messages/{index}"}],
                    [{"op": "add", "path": "/messages/-", "value": {"mes": f"end {value}"}}],
                ])
                return {"type": "patch", **chat, "patch": operations}
            case "delete":
                return {"type": "delete", **chat, "messages": chance.sample(ids, min(len(ids), 2))}
            case "metadata":
                return {"type": "metadata-update", **chat, "base": "*",
                        "merge": {f"k{value % 5}": chance.choice([None, value, {"nested": [value]}])}}
            case "state":
                known = self.replica.state_versions.get(namespace) if namespace in self.replica.states else None
                return {"type": "state-update", **owner, "base": known, "set": {"value": value}}
            case "merge":
                return {"type": "state-update", **owner, "base": "*", "merge": {f"k{value % 5}": value}}
            case "drop":
                known = self.replica.state_versions.get(namespace, base)
                return {"type": "state-delete", **owner, "base": known}
        return {"type": "batch", "chat": CHAT, "base": "*", "requests": [
            {"type": "append", "messages": [{"mes": f"batched {value}"}]},
            {"type": "metadata-update", "merge": {"last": value}},
            {"type": "state-update", "namespace": namespace, "merge": {"batched": value}},
        ]}


@pytest.mark.parametrize("seed", range(4))
async def test_snapshot_and_deltas_are_a_fresh_snapshot_for_every_tab_and_the_model_and_the_file(
    tmp_path: Path, seed: int
) -> None:
    """[E1] [E7] [D2] [D3]: and the history, carried out by an independent model, is the same document."""
    async with running(tmp_path, checkpoint_interval_s=0.02) as app:
        tabs = [Tab(await TabClient.join(app.urls[0]), seed * 100 + number) for number in range(5)]
        await tabs[0].start(create=True)
        created = tabs[0].replica.head
        for tab in tabs[1:]:
            await tab.start()

        async def work(tab: Tab) -> None:
            for _ in range(250):
                await tab.write()
                if tab.random.random() < 0.05:
                    # It comes back with what it knows.
                    opened = await tab.client.ask("open", chat=CHAT, since=tab.replica.head)
                    while tab.client.raw._kept:
                        tab.hear(await tab.client.raw.receive())
                    if opened["mode"] == "snapshot":
                        states, versions = tab.replica.states, tab.replica.state_versions
                        tab.replica = Replica(states=states, state_versions=versions)
                        tab.replica.take(opened)
                        await self_states(tab)

        async def self_states(tab: Tab) -> None:
            answer = await tab.client.ask("state-get", owner={"chat": CHAT}, namespaces=list(STATES))
            while tab.client.raw._kept:
                tab.hear(await tab.client.raw.receive())
            for namespace, state in answer["states"].items():
                tab.replica.states.pop(namespace, None)
                if state is not None:
                    tab.replica.states[namespace] = state["data"]
                    tab.replica.state_versions[namespace] = state["version"]["integrity"]

        await asyncio.gather(*(work(tab) for tab in tabs))
        reader = await TabClient.join(app.urls[0])
        fresh = await reader.open(CHAT)
        states = (await reader.ask("state-get", owner={"chat": CHAT}))["states"]
        for tab in tabs:
            while tab.replica.head != fresh["head"]:
                tab.hear(await tab.client.raw.receive())
            assert list(tab.replica.messages.values()) == fresh["messages"]
            assert tab.replica.metadata == fresh["metadata"]
            assert tab.replica.states == {name: state["data"] for name, state in states.items()}
        assert sum(len(tab.accepted) for tab in tabs) > 500
        assert sum(tab.refused for tab in tabs) > 0

        # The history, from the beginning.
        history = await whole_history(reader, CHAT)
        replica = Replica()
        replica.head = created
        for commit in history:
            replica.follow(commit)
        assert list(replica.messages.values()) == fresh["messages"]
        # The requests, carried out one after the other by the model, with the ids that the acks told.
        document: dict[str, Any] = {"metadata": {}, "messages": [], "states": {}}
        for _, request, ack in sorted(
            (entry for tab in tabs for entry in tab.accepted), key=lambda entry: entry[0]
        ):
            document = after(document, request, iter(new_ids(ack)))
        assert document["messages"] == fresh["messages"]
        assert document["metadata"] == fresh["metadata"]
        assert document["states"] == {name: state["data"] for name, state in states.items()}

        # [H2]: the chat as it was at any version is what the history says.
        replica = Replica()
        replica.head = created
        for commit in history:
            replica.follow(commit)
            if commit["version"]["seq"] % 25 == 0:
                past = await reader.ask("history", chat=CHAT, at=commit["version"]["seq"])
                assert past["messages"] == list(replica.messages.values())
                assert past["metadata"] == replica.metadata
    path = tmp_path / "default-user/chats/Alice/First meeting.jsonl"
    lines = [json.loads(line) for line in path.read_bytes().split(b"\n") if line]
    assert lines[0]["chat_metadata"] == fresh["metadata"]
    assert lines[1:] == fresh["messages"]
    for name, state in states.items():
        sidecar = path.with_name(f"First meeting.luker-state.{name}.json")
        assert json.loads(sidecar.read_bytes()) == state["data"]


def new_ids(ack: dict[str, Any]) -> list[str]:
    """The ids that the server gave, in order."""
    if "messages" in ack:
        found: list[str] = ack["messages"]
        return found
    return [
        message["id"] for effect in ack.get("ops", ()) if effect["op"] in ("append", "insert")
        for message in effect["messages"]
    ]
