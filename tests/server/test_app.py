"""The whole server: how it starts, what it says over HTTP, how it stops."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from tellback_server.app import EXIT_STOPPED, App
from tellback_server.config import Settings
from tellback_server.fs import DirectoryLocked
from tests.support.server import TabClient, leave_all, running, texts

CHAT = "character:Alice/First meeting"


async def get(app: App, path: str) -> tuple[int, str]:
    """A plain HTTP request: status and body."""
    host, port = app.urls[0].removeprefix("ws://").split("/")[0].rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n".encode())
    answer = (await reader.read()).decode()
    writer.close()
    await writer.wait_closed()
    head, _, body = answer.partition("\r\n\r\n")
    return int(head.split(" ")[1]), body


async def test_a_start_that_fails_lets_go_of_the_folder(tmp_path: Path) -> None:
    """The address is taken: the next try, on another one, gets the lock."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        app = App(Settings(data=str(tmp_path / "data"), port=taken.getsockname()[1]))
        with pytest.raises(OSError):
            await app.start()
    async with running(tmp_path / "data") as second:
        tab = await TabClient.join(second.urls[0])
        assert (await tab.open(CHAT, create=True))["type"] == "opened"


async def test_two_servers_on_one_folder_in_one_process(tmp_path: Path) -> None:
    async with running(tmp_path):
        with pytest.raises(DirectoryLocked):
            await App(Settings(data=str(tmp_path), port=0)).start()
    async with running(tmp_path):
        pass


async def test_health_readiness_and_metrics(tmp_path: Path) -> None:
    async with running(tmp_path) as app:
        tab = await TabClient.join(app.urls[0])
        await tab.open(CHAT, create=True)
        await tab.append(CHAT, "one")
        await tab.append(CHAT, "two")
        assert await get(app, "/healthz") == (200, "ok\n")
        assert await get(app, "/readyz") == (200, "ready\n")
        status, body = await get(app, "/metrics")
        assert status == 200
        values = dict(line.rsplit(" ", 1) for line in body.splitlines() if line and not line.startswith("#"))
        assert float(values["tellback_commits_total"]) == 3
        assert float(values["tellback_connections"]) >= 1
        assert float(values["tellback_actors"]) == 1
        assert (await get(app, "/nothing"))[0] == 404
        app._hub.refuse_all("storage-failed", "The disk failed.")
        assert (await get(app, "/readyz"))[0] == 503
        refused = await tab.append(CHAT, "three")
        assert (refused["type"], refused["code"], refused["retry"]) == ("error", "storage-failed", "backoff")


async def test_L5_L6_a_stop_folds_answers_and_can_be_asked_for_twice(tmp_path: Path) -> None:
    """Nothing waits in the log only: the next start reads the files, and writes none."""
    app = App(Settings(data=str(tmp_path), port=0, checkpoint_interval_s=600))
    await app.start()
    served = asyncio.create_task(app.run_until_stopped())
    tab = await TabClient.join(app.urls[0])
    await tab.open(CHAT, create=True)
    await tab.append(CHAT, "one")
    path = tmp_path / "default-user/chats/Alice/First meeting.jsonl"
    assert not path.exists()
    await leave_all()
    app.request_stop("once")
    app.request_stop("twice")
    assert await served == EXIT_STOPPED
    assert b'"one"' in path.read_bytes()
    before = path.stat()
    async with running(tmp_path) as again:
        tab = await TabClient.join(again.urls[0])
        assert texts((await tab.open(CHAT))["messages"]) == ["one"]
    after = path.stat()
    assert (after.st_mtime_ns, after.st_ino) == (before.st_mtime_ns, before.st_ino)


async def test_a_server_that_was_told_not_to_sync_says_memory(tmp_path: Path) -> None:
    """[D1]: it is honest about it in every ack."""
    async with running(tmp_path, unsafe_no_sync=True) as app:
        tab = await TabClient.join(app.urls[0])
        await tab.open(CHAT, create=True)
        for _ in range(3):
            assert (await tab.append(CHAT, "x"))["durable"] == "memory"
        state = await tab.write_state("state-update", CHAT, namespace="n", base=None, set=1)
        assert state["durable"] == "memory"
