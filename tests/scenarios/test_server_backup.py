"""A backup of a whole running server: a consistent moment, started elsewhere, equal by integrity to what it was."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tellback_server.__main__ import app
from tellback_server.app import App
from tellback_server.config import ConfigurationError, Settings
from tellback_server.control import NoServer, standing_still
from tellback_server.fs import Fs
from tests.support.server import Process, TabClient, running, texts
from tests.support.waiting import until

CHATS = [f"character:アリス/chat {number}" for number in range(4)]


async def command(*arguments: object) -> tuple[int, str, str]:
    done = await asyncio.to_thread(CliRunner().invoke, app, [str(argument) for argument in arguments])
    return done.exit_code, done.stdout, done.stderr


async def taken(data: Path, dest: Path) -> dict[str, Any]:
    code, out, errors = await command("backup", "server", dest, "--data", data, "--json")
    assert code == 0, errors
    told: dict[str, Any] = json.loads(out)
    return told


async def refused(data: Path) -> str:
    """Why a server does not start on a folder."""
    with pytest.raises(ConfigurationError) as failed:
        await App(Settings(data=str(data), port=0)).start()
    return str(failed.value)


class Load:
    """Tabs that write to several chats, and what they were told."""

    def __init__(self) -> None:
        self.acked: dict[str, int] = dict.fromkeys(CHATS, 0)
        self.stop = asyncio.Event()
        self.count = 0

    async def write(self, url: str, chat: str, kind: int) -> None:
        tab = await TabClient.join(url)
        await tab.open(chat, create=True)
        turn = 0
        while not self.stop.is_set():
            turn += 1
            if kind == 0:
                ack = await tab.append(chat, f"{turn}")
            elif kind == 1:
                ack = await tab.write("metadata-update", chat, base="*", merge={"turn": turn})
            else:
                ack = await tab.write_state(
                    "state-update", chat, namespace="memory", base=None if turn == 1 else "*",
                    timeout_s=20, **({"set": {"turn": 1}} if turn == 1 else {"merge": {"turn": turn}}),
                )
            assert ack["type"] == "ack", ack
            self.acked[chat] = max(self.acked[chat], ack["version"]["seq"])
            self.count += 1
            await asyncio.sleep(0.01)


async def test_a_backup_under_load_is_one_moment_of_every_chat_z13(tmp_path: Path) -> None:
    """[Z13]: nothing acknowledged before it is missing; every chat has the version and the document of its position;
    rename, delete and roll of the log while it is taken; writes are acknowledged all the time.
    """
    data, dest, other = tmp_path / "data", tmp_path / "dest", tmp_path / "other"
    flags = "--checkpoint-interval", "0.05", "--log-segment-bytes", "65536", "--idle", "0.3"
    async with Process(data, *flags) as server:
        load = Load()
        tab = await TabClient.join(server.url)
        for chat in CHATS:
            await tab.open(chat, create=True)
        writers = [
            asyncio.create_task(load.write(server.url, chat, kind)) for chat in CHATS for kind in range(3)
        ]

        async def lives() -> None:
            turn = 0
            while not load.stop.is_set():
                turn += 1
                name = f"character:アリス/life {turn}"
                made = await tab.ask("chat-create", chat=name, op=1, messages=[{"mes": "x"}])
                await tab.ask("chat-rename", chat=name, op=2, base="*", to=f"renamed {turn}")
                await tab.ask("chat-delete", chat=f"id:{made['chat_id']}", op=3, force=True,
                              base=made["version"]["integrity"])
                await asyncio.sleep(0.02)

        writers.append(asyncio.create_task(lives()))
        await asyncio.sleep(0.5)
        before = dict(load.acked)
        count = load.count
        told = await taken(data, dest)
        assert load.count > count, "writes went on"
        load.stop.set()
        await asyncio.gather(*writers)
        assert told["position"] > 0

        # Elsewhere; the folder of before is not touched any more.
        shutil.move(dest, other)
        async with running(other) as copy:
            there = await TabClient.join(copy.urls[0])
            for chat in CHATS:
                opened, now = await there.open(chat), await tab.open(chat)
                assert opened["chat_id"] == now["chat_id"]
                head = opened["head"]
                assert before[chat] <= head["seq"] <= load.acked[chat], chat
                # The commit of that number is the same one here, and the chat as it was then is the same document.
                page = await tab.ask("history", chat=chat, after=head["seq"] - 1, limit=1)
                assert page["commits"][0]["version"] == head
                was = await tab.ask("history", chat=chat, at=head["seq"])
                messages = was.get("messages", [])
                for _part in range(was.get("parts", 0)):
                    messages += (await tab.raw.receive_until(type="history-part", chat=chat))["messages"]
                assert (was["metadata"], messages) == (opened["metadata"], opened["messages"])
                state = await there.ask("state-get", owner={"chat": chat}, namespaces=["memory"])
                later = await tab.ask("history", chat=chat, after=0, limit=1000)
                commits = later["commits"]
                while later["more"]:
                    later = await tab.ask("history", chat=chat, after=commits[-1]["version"]["seq"], limit=1000,
                                          timeout_s=20)
                    commits += later["commits"]
                states = [
                    effect["version"] for commit in commits if commit["version"]["seq"] <= head["seq"]
                    for effect in commit["ops"] if effect["op"] == "state"
                ]
                assert state["states"]["memory"]["version"] == states[-1]
            assert copy.counters.outside_edits == 0
            assert (await there.append(CHATS[0], "it goes on"))["type"] == "ack"


async def test_a_folder_that_nobody_serves_and_the_way_back_z13(tmp_path: Path) -> None:
    """[Z13]: links are left out and told; what was cut off goes on and is not served; rot in it is found."""
    data, dest, back = tmp_path / "data", tmp_path / "dest", tmp_path / "back"
    chat = CHATS[0]
    async with running(data) as server:
        tab = await TabClient.join(server.urls[0])
        await tab.open(chat, create=True)
        await tab.append(chat, "one")
        version = (await tab.open(chat))["version"]
    (data / "default-user/chats/アリス/link.jsonl").symlink_to("/etc/passwd")
    (dest / ".tellback").mkdir(parents=True)
    (dest / ".tellback/UNFINISHED").write_text("cut off")
    (dest / "default-user").mkdir()
    (dest / "default-user/gone since.json").write_text("{}")
    assert "the copy is not finished" in await refused(dest)
    assert (await command("backup", "server-restore", dest, "--data", back))[0] == 78

    told = await taken(data, dest)

    assert told["left_out"] == ["default-user/chats/アリス/link.jsonl"]
    assert told["position"] == 0
    assert not (dest / "default-user/gone since.json").exists()
    code, _out, errors = await command("backup", "server", dest, "--data", data)
    assert (code, "finished backup already" in errors) == (78, True)
    code, _out, errors = await command("backup", "server", data / "inside", "--data", data)
    assert (code, "lies in the folder" in errors) == (78, True)
    assert (await command("backup", "server", tmp_path / "x", "--data", tmp_path / "nothing"))[0] == 78

    assert (await command("backup", "server-restore", dest, "--data", back))[0] == 0
    async with running(back) as server:
        tab = await TabClient.join(server.urls[0])
        opened = await tab.open(chat)
        assert (opened["version"], texts(opened["messages"])) == (version, ["one"])
    code, _out, errors = await command("backup", "server-restore", dest, "--data", back)
    assert (code, "is not empty" in errors) == (78, True)

    kept = next(path for path in dest.rglob("*.jsonl"))
    kept.write_bytes(kept.read_bytes()[:-1] + b"!")
    code, _out, errors = await command("backup", "server-restore", dest, "--data", tmp_path / "rotten")
    assert (code, "is not what was written" in errors) == (78, True)
    assert "the copy is not finished" in await refused(tmp_path / "rotten")


async def test_a_standstill_delays_no_ack_and_ends_with_who_asked_z13(tmp_path: Path) -> None:
    """[Z13]: no file changes meanwhile; who goes away without a word lets the server go on."""
    async with running(tmp_path, checkpoint_interval_s=0.02) as server:
        tab = await TabClient.join(server.urls[0])
        await tab.open(CHATS[0], create=True)
        await tab.append(CHATS[0], "one")

        def files() -> dict[str, tuple[int, int]]:
            root = tmp_path / "default-user"
            return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in root.rglob("*")}

        for gone in (False, True):
            with contextlib.suppress(ConnectionAbortedError):
                async with standing_still(Fs(), str(tmp_path / ".tellback")) as place:
                    assert place.position == server._log.durable
                    standing = files()
                    for number in range(5):
                        assert (await tab.append(CHATS[0], f"{gone} {number}"))["durable"] == "fsync"
                    await asyncio.sleep(0.2)
                    assert files() == standing
                    if gone:
                        raise ConnectionAbortedError
            await until(lambda standing=standing: files() != standing)
    with pytest.raises(NoServer):
        async with standing_still(Fs(), str(tmp_path / ".tellback")):
            pass


async def test_a_kill_at_any_file_of_a_backup_and_the_next_run_finishes_it_z13(tmp_path: Path) -> None:
    """[Z13]: the copying program is killed; what it left is no backup until another run ends it."""
    data, dest = tmp_path / "data", tmp_path / "dest"
    async with Process(data, "--checkpoint-interval", "0.02") as server:
        tab = await TabClient.join(server.url)
        for chat in CHATS:
            await tab.open(chat, create=True)
            await tab.append(chat, "one")
        for at in (1, 7):
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tellback_server", "backup", "server", str(dest), "--data", str(data),
                env={**os.environ, "TELLBACK_FAILPOINTS": f"fs.append=kill@{at}"},
                stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
            )
            assert await process.wait() == -9
            await tab.append(CHATS[0], f"after kill {at}")
            assert not (dest / ".tellback/backup.json").exists()
        told = await taken(data, dest)
        assert not list(dest.rglob("*.tellback-tmp"))
    async with running(dest) as copy:
        there = await TabClient.join(copy.urls[0])
        assert texts((await there.open(CHATS[0]))["messages"]) == [
            "one", *(f"after kill {at}" for at in (1, 7))
        ]
        assert told["files"] == len(json.loads(Fs().read(str(dest / ".tellback/backup.json")))["files"])
