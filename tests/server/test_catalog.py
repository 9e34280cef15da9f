"""Lists, search, active chats, characters and groups: raw frames against the whole server."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.support.real_data import COUNTS
from tests.support.server import Process, TabClient, running, sillytavern_copy, tree

ALICE = "character:Alice/First meeting"


def address(path: str) -> str:
    """`chats/A/b.jsonl` as a chat's address."""
    kind, _slash, rest = path.removesuffix(".jsonl").partition("/")
    return f"character:{rest}" if kind == "chats" else f"group:{rest}"


def write_chat(data: Path, path: str, *texts: str, when_s: float | None = None, header: bool = True) -> Path:
    """A chat's file as SillyTavern writes it."""
    lines = [json.dumps({"user_name": "unused", "character_name": "unused", "chat_metadata": {}})] if header else []
    lines += [json.dumps({"name": "User", "is_user": True, "mes": text}) for text in texts]
    file = data / "default-user" / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines))
    if when_s is not None:
        os.utime(file, (when_s, when_s))
    return file


async def pages(tab: TabClient, kind: str = "chat-list", **fields: Any) -> list[list[dict[str, Any]]]:
    """Every page, from the first to the last."""
    found: list[list[dict[str, Any]]] = []
    cursor = None
    while True:
        page = await tab.ask(kind, cursor=cursor, timeout_s=20, **fields)
        assert page["type"] == kind, page
        found.append(page["chats" if kind == "chat-list" else "found"])
        cursor = page["cursor"]
        if cursor is None:
            return found


async def listed(tab: TabClient, **fields: Any) -> dict[str, dict[str, Any]]:
    """All chats by address; none twice."""
    chats = [chat for page in await pages(tab, **fields) for chat in page]
    found = {chat["chat"]: chat for chat in chats}
    assert len(found) == len(chats)
    return found


async def test_every_chat_of_the_real_folder_is_listed_and_nothing_is_written(tmp_path: Path) -> None:
    """[I1] [F1] Names, counts, sizes, the newest first; the folder stays as it is, byte for byte."""
    data = sillytavern_copy(tmp_path)
    before = tree(data)
    async with running(data) as app:
        tab = await TabClient.join(app.urls[0])
        answer = await tab.ask("chat-list")
        assert answer["cursor"] is None
        assert answer["total"] == len(COUNTS)
        found = {chat["chat"]: chat for chat in answer["chats"]}
        assert {name: chat["count"] for name, chat in found.items()} == {
            address(path): count for path, count in COUNTS.items()
        }
        changed = [chat["changed_ms"] for chat in answer["chats"]]
        assert changed == sorted(changed, reverse=True)
        for path in COUNTS:
            chat = found[address(path)]
            assert chat["size_bytes"] == (data / "default-user" / path).stat().st_size
            assert "chat_id" not in chat
            assert "damaged" not in chat
        branch = found["character:Mirelle Ashgrove/Branch #200 - 2024-09-30@18h44m02s"]
        assert branch["main_chat"] == "Mirelle Ashgrove - 2024-09-28@09h30m00s"
        assert found["group:2024-10-12@19h00m00s"]["group"] == "1795229131318"
        assert all(len(chat["preview"]) <= 400 for chat in found.values())
        assert found["character:Pip/Pip - 2024-09-30@09h00m00s"]["preview"]
    assert tree(data) == before
