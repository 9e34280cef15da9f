"""A slow disk, a forced write, a tab that is told faster than files are written, and the power cut."""

from __future__ import annotations

import asyncio
import json
import random
import time
from pathlib import Path
from typing import Any

from tests.checker import power
from tests.support.forked_server import ForkedServer
from tests.support.injected_fs import InjectedFs
from tests.support.oracle import LOST, whole_history
from tests.support.server import TabClient, new_session, running, texts
from tests.support.waiting import until

CHAT = "character:Alice/First meeting"
FILE = "default-user/chats/Alice/First meeting.jsonl"


class SlowFiles(InjectedFs):
    """Every replaced or appended chat file takes its time, until `quick`."""

    def __init__(self) -> None:
        super().__init__()
        self.is_quick = False
        self.writes: list[str] = []
        self.at_once = 0
        self.at_once_max = 0

    def step(self, verb: str, path: str, size_bytes: int = 0) -> int | None:
        self.calls.clear()
        if verb == "append" and ".tellback" not in path:
            self.writes.append(Path(path).name)
            self.at_once += 1
            self.at_once_max = max(self.at_once_max, self.at_once)
            if not self.is_quick:
                time.sleep(0.3)
            self.at_once -= 1
        return super().step(verb, path, size_bytes)


async def test_R22_slow_files_are_written_less_often_and_not_more(tmp_path: Path) -> None:
    """[K1]: while one save of a chat runs no other of it begins, and what came meanwhile is one save, not one each."""
    fs = SlowFiles()
    async with running(tmp_path, fs=fs, checkpoint_interval_s=0.01) as app:
        tab = await TabClient.join(app.urls[0])
        await tab.open(CHAT, create=True)
        for number in range(300):
            assert (await tab.append(CHAT, f"text {number}"))["type"] == "ack", "the log is what an ack waits for"
        saves = len(fs.writes)
        assert saves < 30, f"{saves} writes for 300 commits: each waited for the one before"
        assert fs.at_once_max <= 1
        fs.is_quick = True
        file = tmp_path / FILE
        await until(lambda: file.exists() and file.read_bytes().count(b'"mes"') == 300)
    assert [json.loads(line)["mes"] for line in file.read_bytes().split(b"\n")[1:-1]] == [
        f"text {number}" for number in range(300)
    ]


async def test_R26_a_forced_write_keeps_what_it_overwrote(tmp_path: Path) -> None:
    """[B9] [H2]: in the chat as it was at the version before, over a kill -9, and told to every tab."""
    async with ForkedServer(tmp_path / "data", checkpoint_interval_s=0.05) as server:
        tab = await TabClient.join(server.url)
        await tab.open(CHAT, create=True)
        first = await tab.append(CHAT, "precious")
        other = await TabClient.join(server.url)
        await other.open(CHAT)
        message, base = first["messages"][0], first["version"]["integrity"]
        newer = await other.write("patch", CHAT, base=base, message=message, patch=[
            {"op": "replace", "path": "/mes", "value": "more precious"}])
        stale: dict[str, Any] = {"base": base, "message": message, "patch": [
            {"op": "replace", "path": "/mes", "value": "overwritten"}]}
        assert (await tab.write("patch", CHAT, **stale))["type"] == "conflict"
        forced = await tab.write("patch", CHAT, force=True, **stale)
        assert forced["type"] == "ack"
        told = await other.raw.receive_until(type="integrity")
        assert told["version"] == forced["version"], "nobody is overwritten in silence"
        await server.kill()
        await server.start()
        reader = await TabClient.join(server.url)
        assert texts((await reader.open(CHAT))["messages"]) == ["overwritten"]
        before = await reader.ask("history", chat=CHAT, at=newer["version"]["seq"])
        assert texts(before["messages"]) == ["more precious"]
        assert [commit["version"]["seq"] for commit in await whole_history(reader, CHAT)] == [1, 2, 3, 4]


async def test_R31_a_newcomer_is_never_behind_what_a_tab_was_told(tmp_path: Path) -> None:
    """[D1] [L2]: files lag by as much as they like, but who opens when a broadcast was heard sees at least that."""
    async with running(tmp_path, checkpoint_interval_s=3600) as app:
        writer = await TabClient.join(app.urls[0])
        await writer.open(CHAT, create=True)
        listener = await TabClient.join(app.urls[0])
        await listener.open(CHAT)
        for number in range(20):
            session = asyncio.create_task(writer.append(CHAT, f"text {number}"))
            told = await listener.raw.receive_until(type="integrity")
            newcomer = await TabClient.join(app.urls[0])
            opened = await newcomer.open(CHAT)
            assert opened["head"]["seq"] >= told["version"]["seq"]
            assert texts(opened["messages"])[-1] == f"text {number}"
            current = await listener.ask("open", chat=CHAT, since=told["version"])
            assert current["mode"] in ("current", "replay"), "what was told is known, and never from the future"
            assert "reset" not in current
            await session
            newcomer.raw.abort()


async def test_R48_a_power_cut_takes_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    """[D1] [V1]: at any moment of a stream of writes, in every way a disk may legally lose what was not synced."""
    data, journal = tmp_path / "data", tmp_path / "journal"
    data.mkdir()
    chance = random.Random(48)
    session, acked, sent = new_session(), 0, 0
    prepare = {"tests.checker.power": {"journal": str(journal), "data": str(data)}}
    async with ForkedServer(
        data, checkpoint_interval_s=0.05, log_segment_bytes=16 << 10, prepare=prepare
    ) as server:
        for _ in range(8):
            tab = await TabClient.join(server.url, session)
            raw = tab.raw
            opened = await tab.open(CHAT, create=True)
            assert opened["type"] == "opened", opened
            said = texts(opened["messages"])
            assert said == [f"text {number}" for number in range(1, len(said) + 1)], "in order, and none twice"
            assert len(said) == opened.get("count", 0), "in one piece or in parts"
            assert len(said) >= acked, f"{acked} were acknowledged, {len(said)} survived"
            assert opened["next_op"] == len(said) + 1, "a text and its number stand or fall together"
            cutting = asyncio.create_task(_cut_soon(server, data, journal, chance))
            try:
                for op in range(opened["next_op"], opened["next_op"] + 400):
                    message = {"mes": f"text {op}"}
                    append = {"type": "append", "id": op, "chat": CHAT, "op": op, "base": "*", "messages": [message]}
                    await raw.send(append)
                    sent = max(sent, op)
                    if op % 4 == 0:
                        acked = max(acked, (await raw.receive_until(type="ack", op=op))["op"])
            except LOST:
                pass
            finally:
                await cutting
                raw.abort()
    assert 0 < acked <= sent


async def _cut_soon(server: ForkedServer, data: Path, journal: Path, chance: random.Random) -> None:
    await asyncio.sleep(chance.uniform(0.02, 0.15))
    await server.kill()
    print(power.cut(journal, data, chance))
    await server.start()
