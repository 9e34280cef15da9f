"""`tellback chats` as a subprocess: on a running server and on a folder that nobody serves."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

from tests.server.test_catalog import write_chat
from tests.support import warm
from tests.support.real_data import COUNTS
from tests.support.server import Process, TabClient, sillytavern_copy
from tests.support.waiting import GUARD_S

Chats = Callable[..., Awaitable[tuple[int, str, str]]]


async def run(*arguments: str, **environment: str) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    return await asyncio.to_thread(lambda: warm.run("chats", *arguments, **{"COLUMNS": "200", **environment}))


def objects(out: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in out.split("\n") if line]


async def test_looking_at_the_chats_of_a_running_server(tmp_path: Path) -> None:
    """[I5] [I7] list, show, search, export."""
    data = sillytavern_copy(tmp_path)
    server = await Process(data).start()
    where = ("--url", server.url)
    try:
        code, out, errors = await run("list", "--json", *where)
        assert (code, errors) == (0, "")
        assert len(objects(out)) == len(COUNTS)
        code, out, _ = await run("list", "--character", "Pip", *where)
        assert code == 0
        assert out.count("character:Pip/") == 3
        code, out, _ = await run("list", "--limit", "5", "--json", *where)
        assert len(objects(out)) == 5
        winter = "character:Kapitän Jonas Thale/The lighthouse winter"
        code, out, _ = await run("show", winter, "--last", "2", *where)
        assert code == 0
        assert "35 messages" in out
        assert "\n#33 " in out
        assert "\n#34 " in out
        assert "\n#32 " not in out
        code, out, _ = await run("show", winter, "--json", *where)
        messages = objects(out)
        assert len(messages) == 35
        word = str(messages[7]["mes"]).split()[0].strip("*\"'.,")
        of = ("--character", "Kapitän Jonas Thale", "--limit", "200")
        code, out, _ = await run("search", word, *of, "--json", *where)
        assert code == 0
        assert messages[7]["id"] in [hit.get("message") for hit in objects(out)] or len(objects(out)) == 200
        assert (await run("search", "nowhere-at-all", *where))[0] == 1
        code, out, _ = await run("export", winter, *where)
        lines = objects(out)
        file = data / "default-user/chats/Kapitän Jonas Thale/The lighthouse winter.jsonl"
        stored = objects(file.read_text())
        assert lines[0] == stored[0]
        assert out.split("\n")[0] == file.read_text().split("\n")[0]
        tab = await TabClient.join(server.url)
        await tab.open(winter)
        await tab.ask("metadata-update", chat=winter, op=1, base="*", merge={"note_prompt": "new"})
        code, out, _ = await run("export", winter, *where)
        changed = objects(out)[0]
        assert changed["chat_metadata"] == {**stored[0]["chat_metadata"], "note_prompt": "new"}
        assert {key: changed[key] for key in ("user_name", "character_name", "create_date")} == {
            key: stored[0][key] for key in ("user_name", "character_name", "create_date")
        }
        assert [line["mes"] for line in lines[1:]] == [line["mes"] for line in stored[1:]]
        code, out, _ = await run("export", winter, "--format", "text", *where)
        assert f"{messages[0]['name']}: " in out

        code, out, errors = await run("show", "character:Pip/Nobody", *where)
        assert (code, out) == (1, "")
        assert errors == "tellback: not-found: There is no such chat.\n"
    finally:
        assert await server.stop() == 0


async def test_the_life_of_a_chat_in_a_folder_that_nobody_serves(tmp_path: Path) -> None:
    """[I6] rename, branch, delete, restore: through a private server that is gone with the command."""
    data = sillytavern_copy(tmp_path)
    where = ("--data", str(data))
    winter = "character:Kapitän Jonas Thale/The lighthouse winter"
    code, out, _ = await run("rename", winter, "The lighthouse summer", "--json", *where)
    assert code == 0
    told = objects(out)[0]
    summer = "character:Kapitän Jonas Thale/The lighthouse summer"
    assert told["chat"] == summer
    code, _, errors = await run("show", winter, *where)
    assert code == 1
    assert errors.startswith("tellback: renamed: ")
    assert errors.endswith(f" {summer}\n")
    code, out, _ = await run("branch", summer, "--at", "3", "--json", *where)
    branch = str(objects(out)[0]["chat"])
    assert branch.startswith(summer)
    code, out, _ = await run("show", branch, "--json", *where)
    assert len(objects(out)) == 4
    code, out, _ = await run("delete", summer, *where)
    assert code == 0
    assert out.startswith(f"deleted: {summer}")
    assert branch in out
    code, out, _ = await run("list", "--deleted", "--json", *where)
    gone = objects(out)
    assert [(chat["chat"], chat["chat_id"]) for chat in gone] == [(summer, told["chat_id"])]
    assert summer not in [chat["chat"] for chat in objects((await run("list", "--json", *where))[1])]
    code, out, _ = await run("restore", f"id:{told['chat_id']}", "--to", "Autumn", "--json", *where)
    assert objects(out) == [{"chat": "character:Kapitän Jonas Thale/Autumn", "chat_id": told["chat_id"]}]
    listed = {str(chat["chat"]): chat for chat in objects((await run("list", "--json", *where))[1])}
    assert listed["character:Kapitän Jonas Thale/Autumn"]["count"] == 35
    assert listed[branch]["main_chat"] in ("The lighthouse summer", "Autumn")
    assert len(listed) == len(COUNTS) + 1
    assert (await run("rename", branch, "a/b", *where))[0] == 1
    assert (await run("branch", branch, "--at", "99", *where))[0] == 1
    assert (await run("restore", "id:nonsense", *where))[0] == 1


async def test_what_stands_in_the_way_is_one_sentence(tmp_path: Path) -> None:
    """[I9] No server; a folder that is served; a token that is missing; texts that could move the cursor."""
    data = tmp_path / "data"
    write_chat(data, "chats/Alice/One.jsonl", "red \x1b[31m alert", "second")
    code, out, errors = await run("list", "--url", "ws://127.0.0.1:9/ws")
    assert (code, out) == (69, "")
    assert errors.count("\n") == 1
    assert "--data" in errors
    code, out, _ = await run("show", "character:Alice/One", "--data", str(data))
    assert code == 0
    assert "\x1b" not in out
    server = await Process(data).start()
    try:
        code, _, errors = await run("list", "--data", str(data))
        assert code == 73
        assert "--url" in errors
        code, out, _ = await run("list", "--json", TELLBACK_URL=server.url)
        assert [chat["chat"] for chat in objects(out)] == ["character:Alice/One"]
        tab = await TabClient.join(server.url)
        await tab.open("character:Alice/One")
        await tab.append("character:Alice/One", "third")
        code, out, _ = await run("show", "character:Alice/One", "--last", "1", "--json", "--url", server.url)
        assert [message["mes"] for message in objects(out)] == ["third"]
    finally:
        await server.kill()
    assert (await run("list", "--url", "http://127.0.0.1:9/ws"))[0] == 1


async def test_a_wrong_data_folder_is_refused_and_nothing_is_made_in_it(tmp_path: Path) -> None:
    """[I9] A path that is not there, a file, a folder without chats;
    but one that was served and is empty yet is fine."""
    (tmp_path / "file").write_text("")
    (tmp_path / "other/inside").mkdir(parents=True)
    for wrong, why in (("missing", "does not exist"), ("file", "is no folder"), ("other", "holds no chats/")):
        code, out, errors = await run("list", "--data", str(tmp_path / wrong))
        assert (code, out) == (78, "")
        assert errors.startswith(f"tellback: --data: {tmp_path / wrong} {why}")
        assert errors.count("\n") == 1
    found = [name for _, folders, files in os.walk(tmp_path) for name in folders + files]
    assert sorted(found) == ["file", "inside", "other"]
    (tmp_path / "served/.tellback").mkdir(parents=True)
    assert (await run("list", "--data", str(tmp_path / "served")))[0] == 0


async def on_terminal(columns: int, *arguments: str) -> list[str]:
    """What the command prints on a terminal of that many columns."""
    master, slave = os.openpty()
    with os.fdopen(slave, "wb", buffering=0) as terminal:
        environment = {"COLUMNS": str(columns), "NO_COLOR": "1", "TERM": "dumb"}
        process = warm.command("chats", *arguments, stdin=terminal, stdout=terminal, stderr=terminal,
                               environment=environment)
    out = b""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(GUARD_S):
        while True:
            try:
                piece = await loop.run_in_executor(None, os.read, master, 65536)
            except OSError:  # EIO: the other side is closed.
                break
            if not piece:
                break
            out += piece
        assert await process.wait() == 0
    os.close(master)
    return out.decode().split("\r\n")


async def test_a_table_never_cuts_an_address(tmp_path: Path) -> None:
    """[I5] In a pipe whatever COLUMNS says, at 80 columns, and of a name wider than the terminal."""
    data = tmp_path / "data"
    short, long = "character:Alice/One", f"character:Alice/{'Eine sehr lange 雪 Unterhaltung ' * 3}Ende"
    for name in (short, long):
        write_chat(data, f"chats/{name.removeprefix('character:')}.jsonl", "red alert " * 9, "second")
    code, out, _ = await run("list", "--data", str(data), COLUMNS="40")
    assert code == 0
    printed = await on_terminal(80, "list", "--data", str(data))
    for lines in (out.split("\n"), printed):
        rows = [line.split() for line in lines if line.startswith("character:")]
        names = sorted(" ".join(row[: -3 if lines is printed else -4]) for row in rows)
        assert names == sorted((short, long))
        assert all("…" not in line for line in lines)
    assert (await run("delete", long, "--data", str(data)))[0] == 0
    (row,) = [line for line in await on_terminal(80, "list", "--data", str(data)) if line.startswith(short)]
    assert len(row.rstrip()) <= 80
    assert row.split()[1] == "2"
    assert row.split()[-1] == "second"
    assert (await run("delete", short, "--data", str(data)))[0] == 0
    gone = objects((await run("list", "--deleted", "--json", "--data", str(data)))[1])
    (chat_id,) = [chat["chat_id"] for chat in gone if chat["chat"] == short]
    printed = await on_terminal(30, "list", "--deleted", "--data", str(data))
    assert any(line.startswith(short) for line in printed)
    assert f"id:{chat_id}" in [line.strip() for line in printed]
