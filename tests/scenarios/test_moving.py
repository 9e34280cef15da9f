"""A server's chats between users' folders and stores: equal by integrity on both sides, with outcomes and trash."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from tellback_server.commands.store_option import opened
from tests.scenarios.test_import import run
from tests.scenarios.test_store_server_backup import everything
from tests.support import warm
from tests.support.importing import write_files
from tests.support.real_data import real_user
from tests.support.server import Process, TabClient, running
from tests.support.stored import sqlite_url

CHAT = "character:アリス/written here"
GONE = "character:アリス/gone"
LONG = "character:Pip/branched"


async def filled(
    data: Path, *flags: str, winter: str = "character:Kapitän Jonas Thale/The lighthouse winter"
) -> tuple[dict[str, Any], TabClient, dict[str, Any]]:
    """A server with a real folder's chats, one of its own with everything in it, and one in the trash, killed."""
    async with Process(data, *flags) as server:
        tab = await TabClient.join(server.url)
        for chat in (CHAT, GONE):
            await tab.open(chat, create=True)
            await tab.append(chat, "one", "two")
            await tab.write_state("state-update", chat, namespace="memory", base=None, set={"in": chat})
        await tab.write("floor-update", CHAT, namespace="score", base=None, patch=[
            {"op": "add", "path": "/points", "value": 1}
        ])
        await tab.write("metadata-update", CHAT, base="*", merge={"note": "kept"})
        await tab.open(winter, create=True)
        await tab.append(winter, "and one more")
        base = (await tab.open(GONE))["version"]["integrity"]
        assert (await tab.write("chat-delete", GONE, base=base))["type"] == "ack"
        frame = {"type": "append", "chat": CHAT, "op": tab.ops[CHAT] + 1, "base": "*", "messages": [{"mes": "last"}]}
        assert (await tab.ask(**frame))["type"] == "ack"
        was = await everything(tab)
        await server.kill()
    return was, tab, frame


async def same(data: Path, was: dict[str, Any], tab: TabClient, frame: dict[str, Any], **settings: Any) -> None:
    """Told as before, what was sent is known, and no file seems to be somebody else's."""
    async with running(data, **settings) as app:
        again = await TabClient.join(app.urls[0], tab.session)
        found = await everything(again)
        for name, chat in was["chats"].items():
            assert found["chats"].get(name) == chat, name
        assert found == was
        assert (await again.ask(**frame)).get("duplicate") is True
        assert app.counters.outside_edits == 0
        page = await again.ask("history", chat=CHAT, after=0, limit=2)
        assert page["commits"][0]["version"]["seq"] == 1


async def moved(data: Path, to: str) -> None:
    code, _out, errors = await run("move", "--data", data, "--to", to)
    assert code == 0, errors


async def killed(data: Path, to: str, failpoints: str) -> None:
    code, _out, errors = await asyncio.to_thread(
        lambda: warm.run("move", "--data", data, "--to", to, TELLBACK_FAILPOINTS=failpoints)
    )
    assert code == -9, errors


async def test_from_a_store_to_a_folder_and_back_sv12(tmp_path: Path) -> None:
    """[SV12] [Z14]: after a kill, by way of a backup of the whole server; equal by integrity each time."""
    data, url = tmp_path / "data", sqlite_url(tmp_path / "store")
    source = write_files(tmp_path / "source", {
        "chats/Pip/never written.jsonl": '{"chat_metadata":{"a":1},"user_name":"U"}\r\n{"mes":"hi"}\r\n{"mes":"hi"}',
        "chats/Pip/never written.luker-state.memory.json": '{ "n" : 1 }',
        "group chats/old.jsonl": '{"mes":"no header"}\n',
        "groups/1.json": '{"id":"1","chats":["old"],"chat_id":"old","chat_metadata":{"note":"of the group"}}',
    })
    assert (await run("import", "luker", source, "--data", data, "--store", url))[0] == 0
    was, tab, frame = await filled(data, "--store", url, winter="character:アリス/another")
    assert was["chats"]["group:old"]["metadata"] == {"note": "of the group"}
    backup, other, place = tmp_path / "backup", tmp_path / "other", sqlite_url(tmp_path / "place")
    code, _out, errors = await run("backup", "server", backup, "--data", data)
    assert code == 0, errors
    code, _out, errors = await run("backup", "server-restore", backup, "--data", other, "--store", place)
    assert code == 0, errors

    await moved(other, "files")

    await same(other, was, tab, frame)
    for turn in range(2):
        url = sqlite_url(tmp_path / f"again {turn}")
        await moved(other, url)
        assert not list((other / "default-user/chats").rglob("*.jsonl"))
    await same(other, was, tab, frame, store=url)
    code, out, errors = await run("move", "--data", other, "--to", url)
    assert (code, "there already" in errors) == (78, True), out
    async with running(other, store=url) as app:
        again = await TabClient.join(app.urls[0], tab.session)
        address = f"id:{was['trash'][0].partition('-')[2]}"
        again.ops[address] = tab.ops[GONE]
        answer = await again.write("chat-restore", address)
        assert answer["type"] == "ack", answer
        states = (await again.ask("state-get", owner={"chat": GONE}))["states"]
        assert states["memory"]["data"] == {"in": GONE}


async def test_from_a_folder_into_a_store_and_back_with_its_trash_sv12(tmp_path: Path) -> None:
    """[SV12]: files are put aside, come back with the same bytes, and the trash works as it did."""
    data, url = tmp_path / "data", sqlite_url(tmp_path / "store")
    assert (await run("import", "luker", real_user(), "--data", data))[0] == 0
    was, tab, frame = await filled(data)
    files = {path.name: path.read_bytes() for path in (data / "default-user/chats/Pip").iterdir()}
    await moved(data, url)
    await same(data, was, tab, frame, store=url)
    kept = next((data / "default-user/backups/tellback/moved").iterdir())
    assert {path.name: path.read_bytes() for path in (kept / "chats/Pip").iterdir()} == files
    await moved(data, "files")
    await same(data, was, tab, frame)
    assert {name: one for name, one in files.items() if "chat_sync" not in name} == {
        path.name: path.read_bytes() for path in (data / "default-user/chats/Pip").iterdir()
        if "chat_sync" not in path.name
    }
    async with running(data) as app:
        again = await TabClient.join(app.urls[0], tab.session)
        address = f"id:{was['trash'][0].partition('-')[2]}"
        again.ops[address] = tab.ops[GONE]
        answer = await again.write("chat-restore", address)
        assert answer["type"] == "ack", answer
        opened = await again.open(GONE)
        assert (opened["version"]["epoch"], [one["mes"] for one in opened["messages"]]) == (1, ["one", "two"])
        assert app.counters.outside_edits == 0


async def test_what_cannot_be_moved_stays_sv12(tmp_path: Path) -> None:
    """[SV12]: damage, a store that is not empty, a store that forgets, a folder that is served; nothing is changed."""
    data, url = tmp_path / "data", sqlite_url(tmp_path / "store")
    write_files(data / "default-user", {"chats/A/bad.jsonl": b'{"chat_metadata":{}}\n{torn', "chats/A/x.jsonl": b"{}"})
    code, _out, errors = await run("move", "--data", data, "--to", url)
    assert (code, "bad is damaged" in errors, "Nothing was changed" in errors) == (1, True, True)
    (data / "default-user/chats/A/bad.jsonl").unlink()
    code, _out, errors = await run("move", "--data", data, "--to", f"{url}2?durability=log&synchronous=off")
    assert (code, "may lose" in errors) == (78, True), errors
    async with running(tmp_path / "another", store=f"{url}3") as app:
        tab = await TabClient.join(app.urls[0])
        await tab.open(CHAT, create=True)
    code, _out, errors = await run("move", "--data", data, "--to", f"{url}3")
    assert code == 78, errors
    async with Process(data) as server:
        assert server.url
        code, _out, errors = await run("move", "--data", data, "--to", url)
        assert (code, "Stop it first" in errors) == (73, True), errors
    code, _out, errors = await run("move", "--data", data, "--to", "files")
    assert (code, "already" in errors) == (78, True)
    assert (data / "default-user/chats/A/x.jsonl").read_bytes() == b"{}"


KILLS = [
    ("files", "moving.after_records"), ("store", "moving.after_owner@2"),
    ("files", "moving.after_owner@2"), ("store", "moving.after_records"), ("store", "moving.after_binding"),
]


@pytest.mark.parametrize(("to", "step"), KILLS)
async def test_a_move_that_is_killed_goes_on_sv12(to: str, step: str, tmp_path: Path) -> None:
    """[SV12]: the same command again, and everything is where it belongs, once."""
    data, url = tmp_path / "data", sqlite_url(tmp_path / "store")
    flags = ("--store", url) if to == "files" else ()
    was, tab, frame = await filled(data, *flags, winter="character:アリス/another")
    name, _at, count = step.partition("@")
    target = "files" if to == "files" else url
    await killed(data, target, f"{name}=kill@{count or 1}")
    code, _out, errors = await run("move", "--data", data, "--to", target)
    if step == "moving.after_binding":
        # It was done; files that were not put aside yet are in nobody's way.
        assert (code, "there already" in errors) == (78, True)
    else:
        assert code == 0, errors
    await same(data, was, tab, frame, **({} if to == "files" else {"store": url}))


async def test_headers_of_any_length_come_back_and_a_branch_is_made_once_sv12(tmp_path: Path) -> None:
    """[SV12] [IE9] [IE10]: what nobody changed keeps its bytes, however long its header is and however it is written;
    what has to be written anew is the same in the second run of a move that was cut off.
    """
    data, url = tmp_path / "data", sqlite_url(tmp_path / "store")
    header = {"user_name": "U", "character_name": "Pip", "chat_metadata": {"note": "ä" * 9000, "n": 1.5}, "z": [1]}
    texts = {
        "compact": json.dumps(header, ensure_ascii=False, separators=(",", ":")),
        "branched": json.dumps(header, ensure_ascii=False, separators=(",", ":")),
        "spaced": json.dumps(header, ensure_ascii=False),
        "escaped": json.dumps(header, separators=(",", ":")),
    }
    files = {f"chats/Pip/{name}.jsonl": f'{text}\n{{"mes":"hi"}}'.encode() for name, text in texts.items()}
    write_files(data / "default-user", files)
    await moved(data, url)
    async with running(data, store=url) as app:
        tab = await TabClient.join(app.urls[0])
        await tab.open(CHAT, create=True)
        acked = await tab.append(CHAT, "one")
        said = {CHAT: acked["messages"][0], LONG: (await tab.open(LONG))["messages"][0]["id"]}
        for chat, message in said.items():
            answer = await tab.write("chat-branch", chat, base="*", message=message, kind="branch", to="twig")
            assert answer["type"] == "ack", answer
        was = await everything(tab)
    code, _out, errors = await run("export", "sillytavern", tmp_path / "out", "--data", data)
    assert code == 0, errors
    kept = {path: content for path, content in files.items() if "branched" not in path}
    assert {path: next((tmp_path / "out").rglob(os.path.basename(path))).read_bytes() for path in kept} == kept

    await killed(data, "files", "moving.after_records=kill@1")
    await moved(data, "files")

    assert {path: (data / "default-user" / path).read_bytes() for path in kept} == kept
    async with running(data) as app:
        assert await everything(await TabClient.join(app.urls[0])) == was
        assert app.counters.outside_edits == 0


OLD = f"character:アリス/{'x' * 240}"
"""Another program's: no chat_sync can have its name."""


async def test_an_owner_without_chat_sync_keeps_id_and_history_sv12(tmp_path: Path) -> None:
    """[SV12]: names and ids are those of the log, also in the second run of a move that was cut off; so are versions of
    a character's states. Of a name that is too long for one, no chat_sync is written on the way back.
    """
    data, url = tmp_path / "data", sqlite_url(tmp_path / "store")
    write_files(data / "default-user", {
        f"chats/アリス/{'x' * 240}.jsonl": '{"chat_metadata":{}}\n{"mes":"long ago"}\n',
        "characters/アリス.png": b"card", "characters/アリス.state.memory.json": '{"n":1}',
    })
    alice = {"character": "アリス"}
    async with Process(data) as server:
        tab = await TabClient.join(server.url)
        await tab.open(OLD)
        assert (await tab.append(OLD, "today"))["type"] == "ack"
        await tab.ask("open", owner=alice, since=None)
        ack = await tab.ask("state-update", owner=alice, op=1, namespace="plan", base=None, set={"n": 2})
        assert ack["type"] == "ack", ack
        states = (await tab.ask("state-get", owner=alice))["states"]
        await server.kill()
    was, tab, frame = await filled(data, winter="character:アリス/another")
    async with running(data):
        """Everything is folded when it ends."""
    (data / "default-user/chats/アリス/written here.luker-state.chat_sync.json").unlink()

    async def is_same(**settings: Any) -> None:
        await same(data, was, tab, frame, **settings)
        async with running(data, **settings) as app:
            again = await TabClient.join(app.urls[0])
            assert (await again.ask("state-get", owner=alice))["states"] == states
            assert app.counters.outside_edits == 0

    await killed(data, url, "moving.after_records=kill@1")
    await moved(data, url)
    await is_same(store=url)
    await killed(data, "files", "moving.after_records=kill@1")
    await moved(data, "files")
    await is_same()


async def test_metadata_that_changed_in_the_groups_file_meanwhile_are_an_outside_edit_sv12(tmp_path: Path) -> None:
    """[SV12] [F12]: on the way back a group chat without a header has what its group's file tells then, in a new epoch;
    nothing else is told under a version that was told before. So has one that comes out of the trash there.
    """
    data, url, chat, gone = tmp_path / "data", sqlite_url(tmp_path / "store"), "group:old", "group:gone"

    def group(note: str) -> dict[str, Any]:
        fields = {"id": "1", "chats": ["old", "gone"], "chat_id": "old", "chat_metadata": {"note": note}}
        return {"groups/1.json": json.dumps({**fields, "past_metadata": {"gone": {"note": note}}})}

    chats = {f"group chats/{name}.jsonl": '{"mes":"no header"}\n' for name in ("old", "gone")}
    write_files(data / "default-user", {**chats, **group("first")})
    await moved(data, url)
    async with running(data, store=url) as app:
        tab = await TabClient.join(app.urls[0])
        for one in (chat, gone):
            assert (await tab.open(one))["metadata"] == {"note": "first"}
            await tab.append(one, "ours")
        was = await tab.open(gone)
        answer = await tab.write("chat-delete", gone, base=was["version"]["integrity"])
        assert answer["type"] == "ack", answer
    write_files(data / "default-user", group("second"))
    await moved(data, "files")
    async with running(data) as app:
        again = await TabClient.join(app.urls[0], tab.session)
        answer = await again.ask("chat-restore", chat=f"id:{was['chat_id']}", op=tab.ops[gone] + 1)
        assert answer["type"] == "ack", answer
        for one in (chat, gone):
            opened = await again.open(one)
            assert (opened["metadata"], opened["version"]["epoch"]) == ({"note": "second"}, 2), one
            assert [message["mes"] for message in opened["messages"]] == ["no header", "ours"]


async def test_what_marks_a_filling_that_came_to_its_end_misleads_nobody_sv12(tmp_path: Path) -> None:
    """[SV12]: a power cut left it beside the binding: the store it names is no more half full than any other."""
    data, url = tmp_path / "data", sqlite_url(tmp_path / "store")
    write_files(data / "default-user", {"chats/A/x.jsonl": '{"chat_metadata":{}}\n{"mes":"hi"}\n'})
    await moved(data, url)
    binding, mark = data / ".tellback/store", data / ".tellback/filling"
    assert not mark.exists()
    mark.write_bytes(binding.read_bytes())
    await moved(data, f"{url}2")
    mark.write_bytes(binding.read_bytes())
    await moved(data, "files")
    code, _out, errors = await run("move", "--data", data, "--to", f"{url}2")
    assert (code, "holds chats already" in errors) == (78, True), errors
    await moved(data, f"{url}3")


@pytest.mark.parametrize("of", ["files", "store"])
async def test_what_went_between_two_runs_is_not_in_the_store_sv12(of: str, tmp_path: Path) -> None:
    """[SV12]: a move was cut off, the server went on where it was, and the move began anew much later: the store has
    what there is then, and a chat that was made and one that got its name meanwhile are two.
    """
    data, url = tmp_path / "data", sqlite_url(tmp_path / "store")
    settings = {} if of == "files" else {"store": sqlite_url(tmp_path / "first")}
    async with running(data, **settings) as app:
        tab = await TabClient.join(app.urls[0])
        for chat in (CHAT, GONE):
            await tab.open(chat, create=True)
            await tab.append(chat, "one")
    await killed(data, url, "moving.after_owner=kill@2")
    async with running(data, **settings) as app:
        tab = await TabClient.join(app.urls[0], tab.session)
        gone = await tab.write("chat-delete", GONE, base=(await tab.open(GONE))["version"]["integrity"])
        assert gone["type"] == "ack", gone
        was = await everything(tab)
    await moved(data, url)
    async with running(data, store=url) as app:
        again = await TabClient.join(app.urls[0])
        assert await everything(again) == was
    with opened(url) as store:
        assert [one.name for one in store.list("default-user")] == [CHAT]


async def test_files_of_a_run_that_was_cut_off_do_not_come_back_as_chats_sv12(tmp_path: Path) -> None:
    """[SV12]: a chat that the store's server deleted or renamed since then is not in the folder under its old name."""
    data, url, to = tmp_path / "data", sqlite_url(tmp_path / "store"), "character:アリス/other name"
    async with running(data, store=url) as app:
        tab = await TabClient.join(app.urls[0])
        for chat in (CHAT, GONE):
            await tab.open(chat, create=True)
            await tab.append(chat, "one")
    await killed(data, "files", "moving.after_owner=kill@2")
    async with running(data, store=url) as app:
        tab = await TabClient.join(app.urls[0], tab.session)
        gone = await tab.write("chat-delete", GONE, base=(await tab.open(GONE))["version"]["integrity"])
        assert gone["type"] == "ack", gone
        await tab.open(CHAT)
        named = await tab.write("chat-rename", CHAT, to="other name", base="*")
        assert named["type"] == "ack", named
        was = await everything(tab)
    code, _out, errors = await run("move", "--data", data, "--to", "files")
    assert code == 1, errors
    assert "gone.jsonl is of a chat that was deleted" in errors
    assert f"written here.jsonl is of a chat that is {to} now" in errors
    for path in (data / "default-user/chats").rglob("*"):
        if path.is_file():
            path.unlink()
    await moved(data, "files")
    async with running(data) as app:
        assert await everything(await TabClient.join(app.urls[0])) == was
