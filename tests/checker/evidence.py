"""What is looked at when all is over: the server's own history, what a newcomer reads, the files, the store."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import msgspec

from tests.checker.notebook import Frame
from tests.support.oracle import whole_history
from tests.support.server import TabClient
from tests.support.stored import states_of, stored

SIDECAR = ".luker-state."


class Evidence(msgspec.Struct):
    """Everything but the notes."""

    first: Frame
    """`opened` before the tabs came."""
    history: list[Frame] = []
    """Every commit that the server tells."""
    final: Frame = {}
    """`opened` of a newcomer, after a restart."""
    states: Frame = {}
    """The states at `final`: version and data."""
    disk: Frame | None = None
    """`messages`, `metadata`, `states` of the files, and their chat_sync; None where there is a store."""
    stores: dict[str, Frame] = {}
    """The same of each store: `store`, or `primary` and `backup`."""
    problems: list[tuple[str, str]] = []
    """What went wrong while the run was held: invariant and text."""


async def read_server(url: str, chat: str, evidence: Evidence) -> None:
    """What the server tells."""
    reader = await TabClient.join(url)
    final = await reader.open(chat)
    assert final["type"] == "opened", final
    evidence.final = final
    evidence.states = (await reader.ask("state-get", owner={"chat": chat}, timeout_s=30))["states"]
    begins = evidence.first["head"]["seq"]
    evidence.history = [one for one in await whole_history(reader, chat) if one["version"]["seq"] > begins]
    await reader.close()


def read_disk(data: Path, chat_id: str) -> Frame:
    """The files of the chat, found by the id in their chat_sync, read with nothing but json."""
    for sync in data.rglob(f"*{SIDECAR}chat_sync.json"):
        mark = json.loads(sync.read_bytes())
        if mark.get("tellback", {}).get("chat_id") != chat_id or "backups" in sync.parts or "trash" in sync.parts:
            continue
        stem = sync.name.removesuffix(f"{SIDECAR}chat_sync.json")
        header, *lines = [line for line in (sync.parent / f"{stem}.jsonl").read_bytes().split(b"\n") if line]
        states = {}
        for path in sync.parent.iterdir():
            if path.name.startswith(stem + SIDECAR):
                states[path.name.removeprefix(stem + SIDECAR).removesuffix(".json")] = path.read_bytes()
        states.pop("chat_sync")
        return {
            "messages": [json.loads(line) for line in lines], "metadata": json.loads(header).get("chat_metadata", {}),
            "states": {name: json.loads(data) for name, data in states.items()}, "sync": mark,
        }
    raise AssertionError(f"no chat_sync names {chat_id}")


async def read_store(url: str, chat_id: str) -> Frame:
    """What the store holds of the chat."""
    found = await asyncio.to_thread(stored, url, chat_id)
    if found is None:
        return {"messages": [], "metadata": {}, "states": {}, "integrity": None}
    return {
        "messages": [json.loads(line) for line in found.messages.values()], "metadata": json.loads(found.metadata),
        "states": states_of(found), "integrity": found.head.integrity,
    }


def save(evidence: Evidence, path: Path) -> None:
    path.write_bytes(msgspec.json.encode(evidence))


def load(path: Path) -> Evidence:
    found: Any = msgspec.json.decode(path.read_bytes(), type=Evidence)
    return found if isinstance(found, Evidence) else Evidence({})
