"""Faults of the machine under a real process: it stands still, its disk is full, its disk is slow."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest

from tellback_client import connect
from tellback_client.heartbeat import Heartbeat
from tests.support.forked_server import ForkedServer
from tests.support.oracle import LOST
from tests.support.server import Process, TabClient, texts
from tests.support.waiting import until

CHAT = "character:Alice/First meeting"
OTHER = "group:Friends"
FILE = "default-user/chats/Alice/First meeting.jsonl"
HEARTBEAT_MS = 200


async def get(url: str, path: str) -> tuple[int, str]:
    """A plain HTTP answer of a server: status and body."""

    def ask() -> tuple[int, str]:
        try:
            with urllib.request.urlopen(url.replace("ws://", "http://").removesuffix("/ws") + path) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    return await asyncio.to_thread(ask)


async def metric(url: str, name: str) -> float:
    """One number of GET /metrics."""
    _, body = await get(url, "/metrics")
    [line] = [line for line in body.splitlines() if line.startswith(name + " ")]
    return float(line.split()[1])


async def eventually(ask: Callable[[], Awaitable[object]], wanted: object) -> None:
    """Ask over HTTP until this is the answer."""

    async def is_answer() -> bool:
        return await ask() == wanted

    await until(is_answer)


async def test_a_server_that_stands_still_for_longer_than_a_heartbeat_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """[C10] [R1] [O2]: SIGSTOP, clients give the connection up and come back; every write is stored once."""
    monkeypatch.setattr(Heartbeat, "__init__", partialmethod(Heartbeat.__init__, timeout_s=1.0))
    async with (
        ForkedServer(tmp_path / "data", heartbeat_ms=HEARTBEAT_MS) as server,
        connect(server.url) as one,
        connect(server.url) as two,
    ):
        chats = [await one.open(CHAT, create=True), await two.open(CHAT)]
        events = one.events()
        told: list[str] = []

        async def listen() -> None:
            async for event in events:
                told.append(event.status if hasattr(event, "status") else "lost")

        listening = asyncio.create_task(listen())
        writes = []
        for number in range(100):
            if number == 30:
                server.signal(signal.SIGSTOP)
            if number == 70:
                await until(lambda: "offline" in told)
                server.signal(signal.SIGCONT)
            writes.append(asyncio.ensure_future(chats[number % 2].append({"mes": f"{number}"})))
            await asyncio.sleep(0.005)
        await asyncio.gather(*writes)
        await until(lambda: chats[0].head == chats[1].head)
        await until(lambda: told[-1] == "connected")
        shown = [[message["mes"] for message in chat.messages] for chat in chats]
        assert shown[0] == shown[1]
        assert sorted(shown[0], key=int) == [f"{number}" for number in range(100)]
        assert [text for text in shown[0] if int(text) % 2] == [f"{number}" for number in range(1, 100, 2)]
        listening.cancel()
        tab = await TabClient.join(server.url)
        assert texts((await tab.open(CHAT))["messages"]) == shown[0]


async def test_a_full_disk_under_the_chat_files_costs_no_ack_and_is_told(tmp_path: Path) -> None:
    """[K1] [K2] [K6]: the checkpoint is tried again until there is room, log and metric say so, nothing is lost."""
    data = tmp_path / "data"
    points = "checkpoint.before_append=error:ENOSPC@1"
    process = Process(data, "--checkpoint-interval", "0.02", environment={"TELLBACK_FAILPOINTS": points})
    async with process:
        tab = await TabClient.join(process.url)
        await tab.open(CHAT, create=True)
        await until(lambda: (data / FILE).exists())
        for number in range(20):
            assert (await tab.append(CHAT, f"{number}"))["type"] == "ack"
            await asyncio.sleep(0.01)
        await eventually(lambda: metric(process.url, "tellback_checkpoint_failures_total"), 1)
        assert await metric(process.url, "tellback_checkpoint_lag_seconds") > 0
        assert "checkpoint-failed" in process.errors.read_text()
        assert (data / FILE).read_bytes().count(b'"mes"') == 0
        # There is room again.
        await until(lambda: (data / FILE).read_bytes().count(b'"mes"') == 20)
        await eventually(lambda: metric(process.url, "tellback_checkpoint_lag_seconds"), 0.0)
        assert (await tab.append(CHAT, "after"))["type"] == "ack"
        assert await process.stop() == 0
    assert (data / FILE).read_bytes().count(b'"mes"') == 21


async def test_a_log_without_room_for_its_next_segment_refuses_writes_until_there_is_room(tmp_path: Path) -> None:
    """[L5], STORAGE W4: `storage-full` before anything is stored, reads go on, not ready; then it heals by itself.

    Nothing is written meanwhile, not even a checkpoint.
    """
    data = tmp_path / "data"
    points = "log.spare.before_fill=error:ENOSPC@2"
    flags = ("--log-segment-bytes", "65536", "--checkpoint-interval", "600")
    process = Process(data, *flags, environment={"TELLBACK_FAILPOINTS": points})
    async with process:
        tab = await TabClient.join(process.url)
        await tab.open(CHAT, create=True)
        acked: list[str] = []
        answer: dict[str, Any] = {}
        for number in range(200):
            text = f"{number} " + "x" * 1000
            answer = await tab.append(CHAT, text)
            if answer["type"] != "ack":
                break
            acked.append(text)
        assert (answer["code"], answer["retry"]) == ("storage-full", "backoff")
        assert answer["after_ms"] > 0
        assert texts((await tab.open(CHAT))["messages"]) == acked
        assert (await get(process.url, "/readyz"))[0] == 503
        assert (await get(process.url, "/healthz"))[0] == 200
        # Nobody writes, and still it notices that there is room again.
        await eventually(lambda: get(process.url, "/readyz"), (200, "ready\n"))
        assert (await tab.append(CHAT, "after"))["type"] == "ack", "the same op, under the same number"
        await process.kill()
    async with ForkedServer(data) as server:
        tab = await TabClient.join(server.url)
        assert texts((await tab.open(CHAT))["messages"]) == [*acked, "after"]


async def test_a_slow_disk_delays_acks_and_nothing_else(tmp_path: Path) -> None:
    """[D1] [C7]: fdatasync takes 300 ms: no ack before it, and other sockets' pings do not wait for the disk."""
    points = "fs.fdatasync=delay:300"
    process = Process(tmp_path / "data", environment={"TELLBACK_FAILPOINTS": points})
    async with process:
        writers = [await TabClient.join(process.url) for _ in range(3)]
        for writer, chat in zip(writers, (CHAT, OTHER, OTHER), strict=True):
            await writer.open(chat, create=True)
        other = await TabClient.join(process.url)
        stop = asyncio.Event()
        pongs = 0

        async def ping() -> None:
            nonlocal pongs
            while not stop.is_set():
                assert (await other.ask("ping"))["type"] == "pong"
                pongs += 1
                await asyncio.sleep(0.002)

        pinging = asyncio.create_task(ping())
        for _ in range(5):
            sent_s, before = time.monotonic(), pongs
            answers = await asyncio.gather(*(
                writer.append(chat, "slow") for writer, chat in zip(writers, (CHAT, OTHER, OTHER), strict=True)
            ))
            assert time.monotonic() - sent_s >= 0.3
            assert [answer["type"] for answer in answers] == ["ack"] * 3
            assert pongs - before > 5, "one for each sync would have waited for the disk"
        stop.set()
        await pinging


@pytest.mark.parametrize("point", ["log.write=error:ENOSPC@15", "log.roll.begin=error:ENOSPC@1"])
async def test_a_log_that_has_no_room_for_a_batch_fails_closed(tmp_path: Path, point: str) -> None:
    """[L5], STORAGE W6: nobody is told anything more, exit code 70, and a start finds everything acknowledged."""
    data = tmp_path / "data"
    process = Process(data, "--log-segment-bytes", "16384", environment={"TELLBACK_FAILPOINTS": point})
    async with process:
        tab = await TabClient.join(process.url)
        await tab.open(CHAT, create=True)
        acked: list[str] = []
        unknown = ""
        answer: dict[str, Any] = {"type": "ack"}
        with contextlib.suppress(*LOST):
            while answer["type"] == "ack":
                unknown = f"{len(acked)} " + "x" * 300
                answer = await tab.append(CHAT, unknown)
                if answer["type"] == "ack":
                    acked.append(unknown)
        assert await process.ended() == 70
    assert len(acked) > 5
    async with ForkedServer(data) as server:
        tab = await TabClient.join(server.url)
        said = texts((await tab.open(CHAT))["messages"])
        assert said in (acked, [*acked, unknown])
