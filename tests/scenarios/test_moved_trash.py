"""What is in the trash when a server's chats move into a store: it comes back there as it would have in files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.scenarios.test_moving import killed, moved, run
from tests.support.importing import contents, write_files
from tests.support.server import TabClient, running
from tests.support.stored import sqlite_url

OLD, PIP = "group:old", {"character": "Pip"}
CHAT, READ = "character:Pip/with it", "character:Pip/only read"
NOTE = {"note": "of the group"}
ODD = {"characters/Pip.png": b"card", "chats/Pip/notes.txt": b"mine", "chats/Pip/gone.luker-state.x.json": b"{}"}
"""Of no owner that a store could hold."""


def folder(data: Path) -> None:
    write_files(data / "default-user", {
        "group chats/old.jsonl": '{"mes":"no header"}\n',
        "groups/1.json": json.dumps({"id": "1", "chats": ["old"], "chat_id": "old", "chat_metadata": NOTE}),
        "chats/Pip/with it.jsonl": '{"chat_metadata":{}}\n{"mes":"hi"}\n',
        "chats/Pip/only read.jsonl": '{"chat_metadata":{}}\n{"mes":"hi"}\n{"mes":"hi"}\n',
        "chats/Pip/only read.luker-state.memory.json": '{"n":1}',
        **ODD,
    })


async def told(tab: TabClient, chat: str) -> dict[str, Any]:
    opened = await tab.open(chat)
    states = (await tab.ask("state-get", owner={"chat": chat}))["states"]
    return {"states": states, **{key: opened[key] for key in ("chat_id", "version", "messages", "metadata")}}


async def test_metadata_of_a_group_and_versions_of_states_come_back_sv12(tmp_path: Path) -> None:
    """[SV7] [SV12]: of a chat that was deleted by itself and of those that went with their character, after a cut; the
    metadata stay when the chats move back, although no group's file tells them any more.
    """
    data, url = tmp_path / "data", sqlite_url(tmp_path / "store")
    folder(data)
    async with running(data) as app:
        only_read = await told(await TabClient.join(app.urls[0]), READ)
    async with running(data) as app:
        tab = await TabClient.join(app.urls[0])
        for chat in (OLD, CHAT):
            await tab.open(chat)
            for namespace in ("first", "second"):
                await tab.write_state("state-update", chat, namespace=namespace, base=None, set={"in": chat})
            await tab.append(chat, "last")
        was = {READ: only_read, **{chat: await told(tab, chat) for chat in (OLD, CHAT)}}
        answer = await tab.write("chat-delete", OLD, base=was[OLD]["version"]["integrity"])
        assert answer["type"] == "ack", answer
        await tab.ask("open", owner=PIP, since=None)
        answer = await tab.ask("owner-delete", owner=PIP, op=1, base="*", chats=True, force=True)
        assert answer["type"] == "ack", answer
        trash = (await tab.ask("trash-list"))["entries"]
        ids = {one["name"]: one["entry"].partition("-")[2] for one in trash}
    await killed(data, url, "moving.after_trashed=kill@1")
    await moved(data, url)
    async with running(data, store=url) as app:
        again = await TabClient.join(app.urls[0], tab.session)
        answer = await again.ask("chat-restore", chat=f"id:{ids[OLD]}", op=tab.ops[OLD] + 1)
        assert answer["type"] == "ack", answer
        answer = await again.ask("owner-restore", owner=PIP, op=2)
        assert answer["type"] == "ack", answer
        for chat, one in was.items():
            assert await told(again, chat) == one
    assert {path: (data / "default-user" / path).read_bytes() for path in ODD} == ODD
    assert not list((data / "default-user/trash").iterdir())
    await moved(data, "files")
    async with running(data) as app:
        again = await TabClient.join(app.urls[0])
        for chat, one in was.items():
            assert await told(again, chat) == one
        assert app.counters.outside_edits == 0


async def test_damage_in_the_trash_stops_a_move_sv12(tmp_path: Path) -> None:
    """[SV12]: a store has no place for lines that are no messages; nothing is changed until somebody decided. Nor for a
    state that is no JSON.
    """
    data, url = tmp_path / "data", sqlite_url(tmp_path / "store")
    folder(data)
    torn, odd = data / "default-user/chats/Pip/with it.jsonl", "group chats/old.luker-state.memory.json"
    torn.write_text('{"chat_metadata":{}}\n{torn\n{"mes":"hi"}\n')
    write_files(data / "default-user", {odd: "{torn"})
    async with running(data) as app:
        tab = await TabClient.join(app.urls[0])
        await tab.ask("open", owner=PIP, since=None)
        answer = await tab.ask("owner-delete", owner=PIP, op=1, base="*", chats=True, force=True)
        assert answer["type"] == "ack", answer
    was = contents(data)
    code, _out, errors = await run("move", "--data", data, "--to", url)
    assert (code, "with it is damaged in the trash" in errors) == (1, True), errors
    assert "the state memory of group:old is damaged" in errors
    assert contents(data) == was
    code, _out, errors = await run("trash", "empty", "--data", data, "--all", "--yes")
    assert code == 0, errors
    (data / "default-user" / odd).unlink()
    await moved(data, url)
