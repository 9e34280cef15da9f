"""SIGTERM under load, and two servers on one folder."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.forked_server import ForkedServer
from tests.support.oracle import LOST
from tests.support.server import Process, TabClient, new_session, running, sillytavern_copy, texts
from tests.support.waiting import GUARD_S, until

CHATS = [f"character:Alice/chat {number}" for number in range(3)]


def written(data: Path, chat: str) -> list[str]:
    """What a chat's file says."""
    path = data / "default-user" / "chats" / f"{chat.removeprefix('character:')}.jsonl"
    return [json.loads(line)["mes"] for line in path.read_bytes().split(b"\n")[1:] if line]


async def test_R20_SIGTERM_under_load_answers_what_was_read_and_stores_what_was_answered(tmp_path: Path) -> None:
    """[C8], RELIABILITY F3: goaway, close 1001, exit 0; every acked op is in log and files; the rest can be resent."""
    data = tmp_path / "data"
    async with ForkedServer(data, checkpoint_interval_s=600) as server:
        for turn in range(5):
            acked: dict[str, list[str]] = {chat: [] for chat in CHATS}
            ends: list[int] = []

            async def write(chat: str, turn: int, acked: dict[str, list[str]], ends: list[int]) -> None:
                tab = await TabClient.join(server.url)
                await tab.open(chat, create=True)
                # Without broadcasts this client never has so many unread frames that it stops to see the close.
                await tab.ask("close", chat=chat)
                sent = 0
                try:
                    while True:
                        for _ in range(8):
                            sent += 1
                            await tab.raw.send({"type": "append", "id": sent, "chat": chat, "op": sent, "base": "*",
                                                "messages": [{"mes": f"{turn} {tab.session} {sent}"}]})
                        for _ in range(8):
                            frame = await tab.raw.receive()
                            while frame["type"] not in ("ack", "error"):
                                assert frame["type"] in ("integrity", "goaway"), frame
                                frame = await tab.raw.receive()
                            if frame["type"] == "ack":
                                acked[chat].append(f"{turn} {tab.session} {frame['op']}")
                            else:
                                assert frame["code"] == "shutting-down"
                except LOST:
                    code = await tab.raw.wait_closed()
                    acked[chat] += [
                        f"{turn} {tab.session} {frame['op']}" for frame in tab.raw._kept if frame["type"] == "ack"
                    ]
                    ends.append(code)

            writers = [
                asyncio.create_task(write(chat, turn, acked, ends)) for chat in CHATS for _ in range(2)
            ]
            await until(lambda acked=acked: all(len(of_chat) > 10 for of_chat in acked.values()))
            assert await server.stop() == 0
            await asyncio.gather(*writers)
            assert ends == [1001] * 6
            for chat in CHATS:
                assert len(acked[chat]) > 10
                file = written(data, chat)
                assert len(set(file)) == len(file)
                assert set(acked[chat]) <= set(file), "acknowledged, and not in the file"
            await server.start()
        assert "Traceback" not in server.errors.read_text()


async def test_R21_a_stop_in_the_middle_of_a_checkpoint_ends_it_properly(tmp_path: Path) -> None:
    """[K4]: a big file is being rewritten; the stop waits for it and folds what came since."""
    data = sillytavern_copy(tmp_path)
    chat = "character:佐藤ひなこ/佐藤ひなこ - 2024-07-01@10h00m00s"
    async with ForkedServer(data, checkpoint_interval_s=0.01) as server:
        tab = await TabClient.join(server.url)
        opened = await tab.open(chat)
        patch = [{"op": "replace", "path": "/mes", "value": "changed"}]
        base: Any = opened["version"]["integrity"]
        for number in range(5):
            message = opened["messages"][number]["id"]
            ack = await tab.write("patch", chat, base=base, message=message, patch=patch)
            base = ack["version"]["integrity"]
            await asyncio.sleep(0.02)
        await tab.append(chat, "the last")
        await tab.close()
        assert await server.stop() == 0
        folder = data / "default-user/chats/佐藤ひなこ"
        said = written(data, chat)
        assert said[:5] == ["changed"] * 5
        assert said[-1] == "the last"
        assert len(said) == opened["count"] + 1
        assert not [path.name for path in folder.iterdir() if path.name.startswith(".")], "no temporary is left"
        await server.start()
        tab = await TabClient.join(server.url)
        again = await tab.open(chat, since=ack["version"])
        assert again["mode"] == "replay"
        assert "outside-edit" not in server.errors.read_text()


def start_second(data: Path) -> subprocess.CompletedProcess[str]:
    """Another server on the same folder; it must end by itself."""
    return subprocess.run(
        [sys.executable, "-m", "tellback_server", "serve", "--data", str(data), "--port", "0"],
        capture_output=True, text=True, timeout=GUARD_S, check=False,
    )


def everything(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Every file with its size, mtime and inode."""
    return {
        str(path): (path.stat().st_size, path.stat().st_mtime_ns, path.stat().st_ino)
        for path in folder.rglob("*") if path.is_file()
    }


async def test_R43_a_second_server_on_the_same_folder_exits_73_and_touches_nothing(tmp_path: Path) -> None:
    """RELIABILITY F19: also after the lock file was removed, by another path, and while the first one stands still."""
    data = tmp_path / "data"
    async with Process(data) as process:
        tab = await TabClient.join(process.url)
        await tab.open(CHATS[0], create=True)
        await tab.append(CHATS[0], "mine")
        path = data / "default-user/chats/Alice/chat 0.jsonl"
        await until(lambda: path.exists() and path.with_name("chat 0.luker-state.chat_sync.json").exists())
        # It stands still, so that whatever changes was changed by the second one.
        os.kill(process.pid, signal.SIGSTOP)
        before = everything(data)
        link = tmp_path / "link"
        link.symlink_to(data)

        async def refused(where: Path, *, lock_file: bool) -> None:
            second = await asyncio.to_thread(start_second, where)
            assert second.returncode == 73, second
            assert second.stdout == ""
            assert "Traceback" not in second.stderr
            after = everything(data)
            if not lock_file:
                after = {name: seen for name, seen in after.items() if not name.endswith("LOCK")}
            assert after == {name: seen for name, seen in before.items() if lock_file or not name.endswith("LOCK")}

        await refused(data, lock_file=True)
        (data / ".tellback" / "LOCK").unlink()
        through_a_link = await asyncio.to_thread(start_second, link)
        assert through_a_link.returncode in (73, 78), "a link is no data folder"
        await refused(tmp_path / "x" / ".." / "data", lock_file=False)
        os.kill(process.pid, signal.SIGCONT)
        assert (await tab.append(CHATS[0], "still mine"))["type"] == "ack"
        await tab.close()
        assert await process.stop() == 0
    third = ForkedServer(data)
    async with third:
        tab = await TabClient.join(third.url)
        assert texts((await tab.open(CHATS[0]))["messages"]) == ["mine", "still mine"]


async def test_a_killed_server_leaves_no_lock(tmp_path: Path) -> None:
    """The kernel lets go; the lock file that is left behind stops nobody."""
    async with ForkedServer(tmp_path / "data") as server:
        for _ in range(3):
            await server.kill()
            assert (tmp_path / "data/.tellback/LOCK").exists()
            await server.start()


async def test_R47_what_is_read_back_after_every_kind_of_damage(tmp_path: Path) -> None:
    """[O8]: a torn tail is cut and kept aside, damage before it refuses to start (78), and nothing is skipped."""
    data = tmp_path / "data"
    async with ForkedServer(data, checkpoint_interval_s=600) as server:
        tab = await TabClient.join(server.url)
        await tab.open(CHATS[0], create=True)
        for number in range(30):
            await tab.append(CHATS[0], f"{number} " + "x" * 300)
        await server.kill()
        folder = data / ".tellback/log"
        segment = max(folder.iterdir(), key=lambda path: path.read_bytes().count(b'"mes"'))
        whole = segment.read_bytes()
        shutil.copytree(data, tmp_path / "copy")
        # Rubbish behind the last record, as a torn write leaves it.
        end = len(whole.rstrip(b"\0"))
        segment.write_bytes(whole[:end] + os.urandom(200) + whole[end + 200 :])
        await server.start()
        tab = await TabClient.join(server.url)
        assert (await tab.open(CHATS[0]))["count"] == 30
        await server.kill()
    # Many flipped bytes in an early record: no guess, no skipping.
    copy = tmp_path / "copy"
    segment = copy / ".tellback/log" / segment.name
    at = whole.index(b'"mes":"7 xxx') + 20
    segment.write_bytes(whole[:at] + b"#" * 40 + whole[at + 40 :])
    before = everything(copy)
    damaged = await asyncio.to_thread(start_second, copy)
    assert damaged.returncode == 78, damaged
    assert "log verify" in damaged.stderr
    assert "Traceback" not in damaged.stderr
    after = everything(copy)
    kept = [name for name in before if "/log/" in name]
    assert {name: after.get(name) for name in kept} == {name: before[name] for name in kept}


async def test_R39_a_stop_while_tabs_wait_answers_or_lets_resend(tmp_path: Path) -> None:
    """[O5]: an op that was not admitted any more used up no number; after the restart it is carried out once."""
    data = tmp_path / "data"
    session = new_session()
    async with ForkedServer(data) as server:
        tab = await TabClient.join(server.url, session)
        await tab.open(CHATS[0], create=True)
        stopping = asyncio.create_task(server.stop())
        op = 0
        answers: dict[int, dict[str, Any]] = {}
        with contextlib.suppress(*LOST):
            while True:
                op += 1
                answers[op] = await tab.ask("append", chat=CHATS[0], op=op, base="*", messages=[{"mes": f"{op}"}])
                if answers[op]["type"] != "ack":
                    assert answers[op]["code"] == "shutting-down"
                    assert answers[op]["retry"] == "backoff"
                    break
        assert await stopping == 0
        await server.start()
        back = await TabClient.join(server.url, session)
        next_op = (await back.open(CHATS[0]))["next_op"]
        assert next_op in (op, op + 1)
        again = await back.ask("append", chat=CHATS[0], op=op, base="*", messages=[{"mes": f"{op}"}])
        assert again["type"] == "ack"
        assert texts((await back.open(CHATS[0]))["messages"]) == [f"{number}" for number in range(1, op + 1)]


@pytest.mark.parametrize("reason", ["shutting-down"])
async def test_goaway_comes_before_the_close_and_nothing_is_read_after_it(tmp_path: Path, reason: str) -> None:
    """[C8]: tabs of a server that stops get goaway, then 1001."""
    async with running(tmp_path) as app:
        tab = await TabClient.join(app.urls[0])
        await tab.open(CHATS[0], create=True)
        app.request_stop("test")
        goaway = await tab.raw.receive_until(type="goaway")
        assert goaway["reason"] == reason
        assert await tab.raw.wait_closed() == 1001
