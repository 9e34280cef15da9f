"""Servers on a store, for tests: the store's URL, and what stands there, read past the server."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from tellback_server.store.base import StoredChat
from tellback_server.store.schemes import open_store
from tests.support.server import TabClient
from tests.support.waiting import GUARD_S

USER = "default-user"


def sqlite_url(folder: Path) -> str:
    """A store in a file of `folder`, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    return f"sqlite://{folder}/chats.db"


def stored(url: str, chat_id: str) -> StoredChat | None:
    """What the store holds of a chat."""
    store = open_store(url)
    try:
        store.check()
        return store.load(USER, chat_id)
    finally:
        store.close()


async def caught_up(url: str, tab: TabClient, chat: str, timeout_s: float = GUARD_S) -> StoredChat:
    """Wait until the store holds what the server tells, version by version and byte by byte; returns it."""
    async with asyncio.timeout(timeout_s):
        while True:
            opened = await tab.open(chat)
            found = await asyncio.to_thread(stored, url, opened["chat_id"])
            if found is not None and found.head.integrity == opened["head"]["integrity"]:
                break
            await asyncio.sleep(0.05)
    assert [json.loads(line) for line in found.messages.values()] == opened["messages"]
    assert found.version.integrity == opened["version"]["integrity"]
    assert json.loads(found.metadata) == opened["metadata"]
    states = (await tab.ask("state-get", owner={"chat": chat}))["states"]
    assert {name: told["data"] for name, told in states.items()} == states_of(found)
    return found


def states_of(found: StoredChat) -> dict[str, Any]:
    """Its documents, by namespace."""
    return {
        name: json.loads(document.data) for name, document in found.states.items() if document.data is not None
    }
