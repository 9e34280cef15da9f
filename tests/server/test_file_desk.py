"""Cards, files of groups and presets on the wire: those and no others, in pages and pieces."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Any

from tests.support.importing import write_files
from tests.support.server import TabClient, running


async def every(tab: TabClient, limit: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    cursor = None
    while True:
        page = await tab.ask("file-list", limit=limit, cursor=cursor)
        assert len(page["files"]) <= limit
        found += page["files"]
        cursor = page["cursor"]
        if cursor is None:
            return found


async def test_what_is_told_and_what_is_not_i16(tmp_path: Path) -> None:
    """[I16]: no chat, no state, nothing of the server, nothing behind a link, nothing of another folder."""
    large = os.urandom(500_000)
    told = {
        "OpenAI Settings/Default.json": b"{}", "characters/Alice.png": large, "characters/アリス.png": b"png",
        "groups/1.json": b'{"name":"Friends"}', "instruct/x.json": b"[]",
    }
    write_files(tmp_path / "default-user", {
        **told, "chats/Alice/x.jsonl": b"{}", "characters/Alice.state.mood.json": b"{}", "characters/note.txt": b"x",
        "OpenAI Settings/Default.luker-state.memory.json": b"{}", "settings.json": b"{}", "characters/.hidden.png": b"",
        "secret.json": b"{}",
    })
    (tmp_path / "default-user/groups/2.json").symlink_to(tmp_path / "default-user/secret.json")
    (tmp_path / "default-user/characters/folder.png").mkdir()
    async with running(tmp_path) as app:
        tab = await TabClient.join(app.urls[0])
        for limit in (1, 2, 500):
            listed = await every(tab, limit)
            assert [one["path"] for one in listed] == sorted(told), limit
        assert {one["path"]: one["size_bytes"] for one in listed} == {path: len(data) for path, data in told.items()}
        for one in listed:
            data = b""
            while len(data) < one["size_bytes"]:
                piece = await tab.ask("file-get", path=one["path"], offset=len(data))
                assert (piece["file"], piece["offset"]) == (one, len(data))
                data += base64.b64decode(piece["data"])
            assert data == told[one["path"]]
        for path in (
            "settings.json", "chats/Alice/x.jsonl", "characters/Alice.state.mood.json", "groups/../secret.json",
            "characters/../../x.png", "groups/9.json", "characters/.hidden.png", "/etc/passwd", "groups/a/b.json",
        ):
            answer = await tab.ask("file-get", path=path)
            assert (answer["code"], answer.get("pointer")) == ("not-found", "/path"), path
        for path in ("groups/2.json", "characters/folder.png"):
            assert (await tab.ask("file-get", path=path))["type"] == "error"
        behind = await tab.ask("file-get", path="groups/1.json", offset=1000)
        assert behind["data"] == ""
