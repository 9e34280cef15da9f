"""`tellback backup` and `tellback trash` as subprocesses: on a running server and on a folder that nobody serves."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from tellback_server.__main__ import app
from tests.support import warm
from tests.support.server import Process, TabClient, texts

CHAT = "character:アリス/First meeting"


async def process(*arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout, stderr of a command as people start it."""
    return await asyncio.to_thread(lambda: warm.run(*arguments, COLUMNS="40"))


async def run(*arguments: str) -> tuple[int, str, str]:
    """As `process`, in this one: a command that only asks starts in no time here."""
    done = await asyncio.to_thread(CliRunner(env={"COLUMNS": "40"}).invoke, app, arguments)
    return done.exit_code, done.stdout, done.stderr


async def told(*arguments: str) -> list[dict[str, Any]]:
    """What a command that does its work writes with --json."""
    code, out, errors = await run(*arguments, "--json")
    assert (code, errors) == (0, ""), (arguments, out, errors)
    return [json.loads(line) for line in out.split("\n") if line]


async def test_backups_and_the_trash_of_a_running_server_and_of_a_folder(tmp_path: Path) -> None:
    """[Z7] [Z9] [Z11] [Z12]: as a person would: take, look, compare, restore, delete, bring back, empty."""
    data = tmp_path / "data"
    async with Process(data) as server:
        where = ("--url", server.url)
        tab = await TabClient.join(server.url)
        await tab.open(CHAT, create=True)
        await tab.append(CHAT, "one", "two")
        await tab.write_state("state-update", CHAT, namespace="memory", base=None, set={"n": 1})
        [taken] = await told("backup", "create", "--all", *where)
        assert taken["is_new"]
        assert not (await told("backup", "create", CHAT, *where))[0]["is_new"]
        backup, chat_id = taken["backup"]["backup"], taken["chat_id"]
        code, out, _ = await run("backup", "list", *where)
        assert (code, f"id:{chat_id}" in out, CHAT in out) == (0, True, True)
        code, out, _ = await run("backup", "list", CHAT, *where)
        assert (code, backup in out, "memory" in out) == (0, True, True)
        assert [one["mes"] for one in await told("backup", "show", CHAT, *where)] == ["one", "two"]
        assert (await run("backup", "diff", CHAT, *where))[:2] == (0, (await run("backup", "diff", CHAT, *where))[1])

        first = (await tab.open(CHAT))["messages"][0]["id"]
        await tab.append(CHAT, "three")
        await tab.write("patch", CHAT, base="*", message=first, patch=[
            {"op": "test", "path": "/mes", "value": "one"}, {"op": "replace", "path": "/mes", "value": "uno"},
        ])
        await tab.write_state("state-update", CHAT, namespace="memory", base="*", merge={"n": 2})
        code, out, _ = await run("backup", "diff", CHAT, backup, *where)
        assert code == 1
        for line in ("~ #0 User: uno", '    - /mes "one"', '    + /mes "uno"', "+ #2 User: three", "~ state memory",
                     "    - /n 1", "    + /n 2"):
            assert line in out.splitlines(), line
        code, out, _ = await run("backup", "diff", CHAT, backup, "--json", *where)
        assert (code, [one["what"] for one in json.loads(out)["messages"]]) == (1, ["changed", "added"])

        code, out, _ = await run("backup", "restore", CHAT, backup, *where)
        assert (code, out.startswith(f"restored: {CHAT}")) == (0, True)
        assert texts((await tab.open(CHAT))["messages"]) == ["one", "two"]
        [beside] = await told("backup", "restore", CHAT, backup, "--to", "as it was", *where)
        assert beside["chat"] == "character:アリス/as it was"
        for arguments, sentence in (
            (("restore", CHAT, "1-1"), "backup-unknown: The chat has no backup '1-1'."),
            (("show", "character:アリス/never"), "not-found: There is no such chat."),
            (("create", CHAT, "character:アリス/never"), "character:アリス/never: not-found"),
        ):
            code, _out, errors = await run("backup", *arguments, *where)
            assert (code, sentence in errors) == (1, True), errors
        assert (await run("backup", "create", *where))[0] == 2

        for name in (CHAT, beside["chat"]):
            assert (await run("chats", "delete", name, *where))[0] == 0
        entries = await told("trash", "list", *where)
        assert {one["name"] for one in entries} == {CHAT, beside["chat"]}
        code, out, _ = await run("trash", "show", f"id:{chat_id}", *where)
        assert (code, "chats/アリス/First meeting.jsonl" in out) == (0, True)
        assert (await run("trash", "restore", f"id:{beside['chat_id']}", *where))[0] == 0
        code, out, errors = await run("trash", "empty", "--all", *where)
        assert (code, "Remove 1 entries" in errors) == (1, True), (out, errors)
        assert len(await told("trash", "list", *where)) == 1
        assert (await told("trash", "empty", "--older-than", "30", "-y", *where))[0]["entries"] == []
        assert len((await told("trash", "empty", "--all", "-y", *where))[0]["entries"]) == 1
        assert await told("trash", "list", *where) == []
        code, _out, errors = await run("trash", "restore", f"id:{chat_id}", *where)
        assert (code, "not-found" in errors) == (1, True)
        # Emptied for good, and still in a backup.
        assert (await run("backup", "restore", f"id:{chat_id}", backup, *where))[0] == 0
        assert texts((await tab.open(CHAT))["messages"]) == ["one", "two"]
        assert (await run("backup", "list", "--data", str(data)))[0] == 73
        assert await server.stop() == 0

    code, out, _ = await process("backup", "diff", CHAT, backup, "--data", str(data))
    assert (code, "nothing is different now" in out) == (0, True)
    code, out, _ = await process("trash", "list", "--json", "--data", str(data))
    assert (code, out) == (0, "")
    assert (await run("backup", "list", "--url", "ws://127.0.0.1:1/ws"))[0] == 69
