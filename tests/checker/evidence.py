"""What is looked at when all is over: the server's own history, what a newcomer reads, the files, the store."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from tellback_server.fs import Fs
from tellback_server.log.format import decode_record, iterate_records
from tellback_server.log.inspect import open_walk
from tellback_server.records import ADOPT, CHECKPOINT, decode_base, owner_key
from tests.checker.notebook import Frame
from tests.support.oracle import whole_history
from tests.support.server import TabClient
from tests.support.stored import USER, states_of, stored

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
    turns: list[Frame] = []
    """The versions with which an epoch began that another program's edit or a restored backup made, from the log."""
    elsewhere: list[str] = []
    """The texts of all files of chats that the user has: this one, others, recovered ones, backups, the trash."""
    beside: dict[str, Frame] = {}
    """What a newcomer is told of the chats that were made of this one, by their id: branches, copies of backups."""
    backups: list[Frame] = []
    """Every backup of the chat, as it is listed, with its `messages`, `metadata` and `states`."""
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


async def read_beside(url: str, chat: str, chats: Iterable[str], evidence: Evidence) -> None:
    """The chat's backups, and the chats that were made of it."""
    reader = await TabClient.join(url)
    for chat_id in chats:
        evidence.beside[chat_id] = await reader.open(f"id:{chat_id}")
    listed = await reader.ask("backup-list", chat=chat, timeout_s=30)
    for entry in listed.get("backups", []):
        if "version" not in entry or entry.get("piece"):
            continue
        found: Frame = {"messages": []}
        cursor = None
        while True:
            more: Frame = {} if cursor is None else {"cursor": cursor}
            page = await reader.ask("backup-get", chat=chat, backup=entry["backup"], timeout_s=30, **more)
            assert page["type"] == "backup", page
            found["messages"] += page["messages"]
            found |= {name: page[name] for name in ("metadata", "states") if name in page}
            cursor = page["cursor"]
            if cursor is None:
                break
        evidence.backups.append({**entry, **found})
    await reader.close()


def read_turns(data: Path, chat_id: str) -> list[Frame]:
    """Where epochs of the chat begin, by its base records in the log."""
    walk, _term, _torn = open_walk(Fs(), str(data / ".tellback/log"))
    turns: list[Frame] = []
    for _header, batch in walk.batches():
        if batch is None:
            continue
        for record in iterate_records(batch.body, batch.header.record_count):
            if record.kind in (CHECKPOINT, ADOPT) and record.owner.decode() == owner_key(USER, chat_id):
                whole = decode_record(batch.body, record.offset)
                assert whole is not None, "the server has just read it"
                head: Frame = msgspec.to_builtins(decode_base(whole.body).head)
                if head["epoch"] > (turns[-1]["epoch"] if turns else 1):
                    turns.append(head)
    return turns


def read_elsewhere(data: Path) -> list[str]:
    """The text of every line of every chat file."""
    texts = set()
    for path in data.rglob("*.jsonl"):
        if ".tellback" in path.parts:
            continue
        for line in path.read_bytes().split(b"\n"):
            with contextlib.suppress(ValueError):
                texts.add(json.loads(line).get("mes", ""))
    return sorted(texts)


def chat_file(data: Path, chat_id: str) -> Path | None:
    """The chat's file, found by the id in its chat_sync."""
    for sync in data.rglob(f"*{SIDECAR}chat_sync.json"):
        if "backups" in sync.parts or "trash" in sync.parts:
            continue
        with contextlib.suppress(OSError, ValueError):
            if json.loads(sync.read_bytes()).get("tellback", {}).get("chat_id") == chat_id:
                stem = sync.name.removesuffix(f"{SIDECAR}chat_sync.json")
                return sync.with_name(f"{stem}.jsonl")
    return None


def read_disk(data: Path, chat_id: str) -> Frame:
    """The files of the chat, read with nothing but json."""
    file = chat_file(data, chat_id)
    assert file is not None, f"no chat_sync names {chat_id}"
    stem = file.name.removesuffix(".jsonl")
    header, *lines = [line for line in file.read_bytes().split(b"\n") if line]
    states = {}
    for path in file.parent.iterdir():
        if path.name.startswith(stem + SIDECAR):
            states[path.name.removeprefix(stem + SIDECAR).removesuffix(".json")] = path.read_bytes()
    sync = json.loads(states.pop("chat_sync"))
    return {
        "messages": [json.loads(line) for line in lines], "metadata": json.loads(header).get("chat_metadata", {}),
        "states": {name: json.loads(data) for name, data in states.items()}, "sync": sync,
    }


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
