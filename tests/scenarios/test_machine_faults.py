"""The machine around a real server: descriptors, disks, mounts, limits and clocks that fail (RELIABILITY F9 to F22)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosedError

from tellback_protocol.work import Work
from tellback_server import hub
from tellback_server.clock import Clock
from tellback_server.fs import Fs
from tellback_server.log.term import TermFile, TermLine
from tests.campaign.workload import record
from tests.scenarios.test_faults import eventually, get
from tests.support.forked_server import ForkedServer
from tests.support.headless import Headless, Wire, headless
from tests.support.held_fs import HeldFs
from tests.support.oracle import LOST, whole_history
from tests.support.raw_client import RawClient
from tests.support.server import Process, TabClient, running, texts
from tests.support.waiting import GUARD_S, until

CHAT = "character:Alice/First meeting"
FILE = "default-user/chats/Alice/First meeting.jsonl"


def can_mount() -> bool:
    """Whether this process may mount a file system."""
    return os.geteuid() == 0 and shutil.which("mount") is not None and subprocess.run(
        ["unshare", "-m", "true"], capture_output=True, check=False
    ).returncode == 0


needs_mounts = pytest.mark.skipif(not can_mount(), reason="only root may mount")


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    """A file system in memory on `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def remount(folder: Path, options: str) -> None:
    """Other options for it, while it is in use."""
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


def said(data: Path) -> list[str]:
    """What the chat's file says."""
    return [json.loads(line)["mes"] for line in (data / FILE).read_bytes().split(b"\n")[1:] if line]


async def test_a_disk_that_hangs_makes_the_server_not_ready_and_nothing_is_called_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """[L7], RELIABILITY F15: new writes are `overloaded`, memory does not grow with them, the old one gets its ack."""
    monkeypatch.setattr(hub, "STALLED_S", 0.2)
    fs = HeldFs()
    async with running(tmp_path, fs=fs) as app:
        tab = await TabClient.join(app.urls[0])
        await tab.open(CHAT, create=True)
        await tab.append(CHAT, "before")
        other = await TabClient.join(app.urls[0])
        await other.open("group:Friends", create=True)
        fs.hold_syncs()
        held = {"type": "append", "id": 50, "chat": CHAT, "op": 2, "base": "*", "messages": [{"mes": "held"}]}
        await tab.raw.send(held)
        await eventually(lambda: get(app.urls[0], "/readyz"), (503, "not ready\n"))
        assert (await get(app.urls[0], "/healthz"))[0] == 200
        waiting = app._log.uncommitted_bytes
        for _ in range(20):
            answer = await other.append("group:Friends", "x" * 9000)
            assert (answer["code"], answer["retry"], "after_ms" in answer) == ("overloaded", "backoff", True)
        assert app._log.uncommitted_bytes == waiting
        assert (await other.ask("ping"))["type"] == "pong"
        fs.let_go()
        assert (await tab.raw.receive_until(id=50))["type"] == "ack"
        await eventually(lambda: get(app.urls[0], "/readyz"), (200, "ready\n"))
        assert (await other.append("group:Friends", "after"))["type"] == "ack"


async def test_without_descriptors_those_who_are_there_go_on_and_the_log_is_not_flooded(tmp_path: Path) -> None:
    """RELIABILITY F12: nobody new gets in, appends are acknowledged, and all is well when there are some again."""
    data = tmp_path / "data"
    async with Process(data, "--checkpoint-interval", "0.05") as process:
        tab = await TabClient.join(process.url)
        await tab.open(CHAT, create=True)
        await tab.append(CHAT, "0")
        await until(lambda: (data / FILE).exists())
        soft, hard = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (len(os.listdir(f"/proc/{process.pid}/fd")), hard))

        async def join() -> None:
            # They are in the backlog, and stay there until there is room: their patience is longer than the test.
            (await RawClient.connect(process.url, timeout_s=GUARD_S)).abort()

        strangers = [asyncio.create_task(join()) for _ in range(12)]
        for number in range(1, 40):
            assert (await tab.append(CHAT, f"{number}"))["type"] == "ack"
            await asyncio.sleep(0.03)
        # A checkpoint that ends leaves room for one or two.
        assert not all(stranger.done() for stranger in strangers)
        told = process.errors.read_text()
        assert told.count("accept-failed") in (1, 2), "once a minute"
        # Checkpoints tell of their files, once each; a flood is a line for each turn of the loop.
        assert len(told.splitlines()) < 500, told[-3000:]
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (soft, hard))
        await asyncio.gather(*strangers)
        assert texts((await tab.open(CHAT))["messages"]) == [f"{number}" for number in range(40)]
        assert await process.stop() == 0
    assert said(data) == [f"{number}" for number in range(40)]


@pytest.mark.parametrize("what", ["moved", "replaced", "removed"])
async def test_a_data_folder_that_is_not_ours_any_more_ends_the_server(tmp_path: Path, what: str) -> None:
    """RELIABILITY F21: nothing is acknowledged into nowhere, and nothing is written into a folder of somebody else."""
    data, moved = tmp_path / "data", tmp_path / "moved"
    async with Process(data, "--checkpoint-interval", "0.05") as process:
        tab = await TabClient.join(process.url)
        await tab.open(CHAT, create=True)
        await tab.append(CHAT, "kept")
        await until(lambda: (data / FILE).exists() and said(data) == ["kept"])
        if what == "removed":
            shutil.copytree(data, moved)
            shutil.rmtree(data)
        else:
            data.rename(moved)
        if what == "replaced":
            (data / "default-user/chats/Alice").mkdir(parents=True)
        acked = ["kept"]
        with contextlib.suppress(*LOST):
            for number in range(50):
                answer = await tab.append(CHAT, f"{number}")
                assert answer["type"] != "ack", "acknowledged into nowhere"
        assert await process.ended() == 70
        if what == "replaced":
            assert not list(data.rglob("*.jsonl"))
    async with ForkedServer(moved) as server:
        tab = await TabClient.join(server.url)
        assert texts((await tab.open(CHAT))["messages"])[:1] == acked


@needs_mounts
@pytest.mark.parametrize(("options", "healed"), [
    ("size=64k", "size=64m"), ("nr_inodes=4", "nr_inodes=4000"),
], ids=["space", "inodes"])
async def test_a_full_disk_under_the_files_alone(tmp_path: Path, options: str, healed: str) -> None:
    """RELIABILITY F10, F11: the log is elsewhere, so every ack holds; the files follow when there is room."""
    data = tmp_path / "data"
    data.mkdir()
    with mounted(data / "default-user", options):
        async with Process(data, "--checkpoint-interval", "0.05") as process:
            tab = await TabClient.join(process.url)
            opened = await tab.open(CHAT, create=True)
            assert opened["type"] == "opened", opened
            wanted = [f"{number} " + "x" * 4000 for number in range(40)]
            for text in wanted:
                assert (await tab.append(CHAT, text))["type"] == "ack"
            await until(lambda: "checkpoint-failed" in process.errors.read_text())
            assert (await get(process.url, "/readyz"))[0] == 200
            await process.kill()
        async with Process(data, "--checkpoint-interval", "0.05") as process:
            tab = await TabClient.join(process.url)
            assert texts((await tab.open(CHAT))["messages"]) == wanted
            remount(data / "default-user", healed)
            await until(lambda: (data / FILE).exists() and len(said(data)) == 40, timeout_s=15)
            assert said(data) == wanted
            assert "Traceback" not in process.errors.read_text()


@needs_mounts
async def test_files_that_become_read_only_cost_no_ack(tmp_path: Path) -> None:
    """RELIABILITY F13 for the files; for the log see the sweep over its calls."""
    data = tmp_path / "data"
    data.mkdir()
    with mounted(data / "default-user", "size=64m"):
        async with Process(data, "--checkpoint-interval", "0.05") as process:
            tab = await TabClient.join(process.url)
            await tab.open(CHAT, create=True)
            await tab.append(CHAT, "0")
            await until(lambda: (data / FILE).exists() and said(data) == ["0"])
            remount(data / "default-user", "ro")
            for number in range(1, 20):
                assert (await tab.append(CHAT, f"{number}"))["type"] == "ack"
            await until(lambda: "checkpoint-failed" in process.errors.read_text())
            remount(data / "default-user", "rw")
            await until(lambda: len(said(data)) == 20, timeout_s=15)


@needs_mounts
async def test_a_disk_that_is_full_for_log_and_files_refuses_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    """RELIABILITY F9: `storage-full` or exit code 70, never a lost ack; a bigger disk, and everything is there."""
    data = tmp_path / "data"
    with mounted(data, "size=640k"):
        process = Process(data, "--log-segment-bytes", "65536", "--checkpoint-interval", "0.1")
        async with process:
            tab = await TabClient.join(process.url)
            await tab.open(CHAT, create=True)
            acked: list[str] = []
            answer: dict[str, Any] = {}
            with contextlib.suppress(*LOST):
                for number in range(400):
                    answer = await tab.append(CHAT, f"{number} " + "x" * 3000)
                    if answer["type"] != "ack":
                        break
                    acked.append(f"{number} " + "x" * 3000)
            assert answer.get("code") == "storage-full", answer
            assert len(acked) > 20
            assert texts((await tab.open(CHAT))["messages"]) == acked
            await process.kill()
        remount(data, "size=64m")
        async with process:
            tab = await TabClient.join(process.url)
            found = texts((await tab.open(CHAT))["messages"])
            assert found[: len(acked)] == acked
            assert (await tab.append(CHAT, "after"))["type"] == "ack"


@needs_mounts
async def test_a_disk_that_is_unmounted_under_the_server_ends_it(tmp_path: Path) -> None:
    """RELIABILITY F21."""
    data = tmp_path / "data"
    with mounted(data, "size=64m"):
        async with Process(data, "--log-segment-bytes", "65536") as process:
            tab = await TabClient.join(process.url)
            await tab.open(CHAT, create=True)
            await tab.append(CHAT, "kept")
            await asyncio.to_thread(subprocess.run, ["umount", "-l", str(data)], check=True)
            with contextlib.suppress(*LOST):
                assert (await tab.append(CHAT, "lost"))["type"] != "ack"
            assert await process.ended() == 70
        assert list(data.iterdir()) == [], "the empty mount point stays empty"


async def test_a_limit_on_file_sizes_is_a_full_disk(tmp_path: Path) -> None:
    """RELIABILITY F11 (EFBIG), for a file that is over it: acks hold, the file follows when the limit is gone."""
    data = tmp_path / "data"
    path = data / FILE
    path.parent.mkdir(parents=True)
    path.write_bytes(b'{"chat_metadata":{}}\n' + json.dumps({"mes": "x" * 300_000}).encode() + b"\n")
    async with Process(data, "--checkpoint-interval", "0.05", "--log-segment-bytes", "65536") as process:
        tab = await TabClient.join(process.url)
        await tab.open(CHAT)
        no_limit = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (200_000, no_limit[1]))
        for number in range(12):
            assert (await tab.append(CHAT, f"{number}"))["type"] == "ack"
        await until(lambda: "checkpoint-failed" in process.errors.read_text())
        assert len(said(data)) == 1
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, no_limit)
        await until(lambda: len(said(data)) == 13, timeout_s=15)


async def test_a_second_SIGTERM_ends_at_once_and_loses_nothing(tmp_path: Path) -> None:
    """RELIABILITY F3: what was acknowledged is there, whichever of the two ended it."""
    data = tmp_path / "data"
    acked: list[str] = []
    for turn in range(2):
        async with Process(data, "--checkpoint-interval", "600") as process:
            tabs = [await TabClient.join(process.url) for _ in range(3)]
            for tab in tabs:
                await tab.open(CHAT, create=True)

            async def write(tab: TabClient, turn: int) -> None:
                with contextlib.suppress(*LOST, AssertionError):
                    for number in range(10**6):
                        text = f"{turn} {tab.session[:6]} {number}"
                        answer = await tab.append(CHAT, text)
                        assert answer["type"] == "ack"
                        acked.append(text)

            writing = [asyncio.create_task(write(tab, turn)) for tab in tabs]
            await asyncio.sleep(0.2 + turn * 0.05)
            os.kill(process.pid, signal.SIGTERM)
            await asyncio.sleep(0.001 * turn)
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGTERM)
            assert await process.ended() in (0, 130)
            await asyncio.gather(*writing)
    assert len(acked) > 10
    async with ForkedServer(data) as server:
        tab = await TabClient.join(server.url)
        history = await whole_history(tab, CHAT)
        stored = [message["mes"] for commit in history for effect in commit["ops"] for message in effect["messages"]]
        assert set(acked) <= set(stored)
        assert len(stored) == len(set(stored))


class JumpingClock(Clock):
    """A wall clock that goes 400 days to and fro, stands still, and goes on."""

    __slots__ = ("_jumps", "_now_ms")

    def __init__(self) -> None:
        super().__init__()
        self._jumps = random.Random(22)
        self._now_ms = super().now_ms()

    def now_ms(self) -> int:
        self._now_ms += self._jumps.choice((0, 0, 1, -400 * 86_400_000, 400 * 86_400_000, 1000))
        return max(1, self._now_ms)


class Jumping(Headless):
    """A server on that clock."""

    def __init__(self, fs: Any, **settings: Any) -> None:
        super().__init__(fs, **settings)
        self.clock = JumpingClock()


async def test_a_wall_clock_that_jumps_changes_no_order_and_no_id() -> None:
    """RELIABILITY F22: a day with three lives; order is by seq, ids are unique, a start on any clock shows it all."""
    day = await record(0, app_class=Jumping)
    plain = await record(0)
    def messages(worlds: list[dict[str, Any]]) -> list[list[str]]:
        return [[message["mes"] for message in shown["messages"]] for world in worlds for shown in world.values()
                if isinstance(shown, dict) and "messages" in shown]
    assert messages(day.worlds) == messages(plain.worlds)
    async with headless(day.inner) as app:
        tab = await Wire.join(app)
        told = 0
        for name in ("character:Alicia/Talk", "character:Alicia/Talk - Branch #1"):
            # As far back as the log goes, of which the day lets go.
            commits = (await tab.ask("history", chat=name, after=0, limit=1000))["commits"]
            seqs = [commit["version"]["seq"] for commit in commits]
            assert seqs == list(range(min(seqs, default=0), min(seqs, default=0) + len(seqs)))
            assert len({commit["version"]["integrity"] for commit in commits}) == len(commits)
            told += len(commits)
        assert told


async def test_a_MemoryError_is_that_of_one_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RELIABILITY F35: it costs its connection and nothing else; sent again, it is carried out once."""
    is_tight = True
    patch_message = Work.patch_message

    def patched(self: Work, message_id: str, *rest: Any) -> None:
        patch_message(self, message_id, *rest)
        if is_tight:
            raise MemoryError

    monkeypatch.setattr(Work, "patch_message", patched)
    async with running(tmp_path) as app:
        tab, other = await TabClient.join(app.urls[0]), await TabClient.join(app.urls[0])
        await tab.open(CHAT, create=True)
        message = (await tab.append(CHAT, "one", "two"))["messages"][0]
        batch = {"base": "*", "requests": [
            {"type": "append", "messages": [{"mes": "three"}]},
            {"type": "patch", "message": message, "patch": [
                {"op": "test", "path": "/mes", "value": "one"}, {"op": "replace", "path": "/mes", "value": "uno"},
            ]},
        ]}
        with pytest.raises(ConnectionClosedError):
            await tab.ask("batch", chat=CHAT, op=2, **batch)
        assert tab.raw.close_code == 1011
        assert texts((await other.open(CHAT))["messages"]) == ["one", "two"]
        assert (await other.append(CHAT, "meanwhile"))["type"] == "ack"
        is_tight = False
        tab = await TabClient.join(app.urls[0], tab.session)
        assert (await tab.ask("batch", chat=CHAT, op=2, **batch))["type"] == "ack"
        assert texts((await other.open(CHAT))["messages"]) == ["uno", "two", "meanwhile", "three"]
    assert said(tmp_path) == ["uno", "two", "meanwhile", "three"]


async def test_a_holder_that_stood_still_while_its_lock_was_stolen_tells_nothing_more(tmp_path: Path) -> None:
    """RELIABILITY F20: another one has begun a term on the folder meanwhile; nobody is acknowledged into its log."""
    data = tmp_path / "data"
    async with Process(data) as process:
        tab = await TabClient.join(process.url)
        await tab.open(CHAT, create=True)
        await tab.append(CHAT, "kept")
        os.kill(process.pid, signal.SIGSTOP)
        term = TermFile(Fs(), str(data / ".tellback/term"))
        line = term.load()
        term.store(TermLine(line.term + 1, line.oldest, line.newest))
        os.kill(process.pid, signal.SIGCONT)
        with contextlib.suppress(*LOST):
            answer = await tab.append(CHAT, "into the log of somebody else")
            assert answer["type"] != "ack", answer
        assert await process.ended() == 70
    async with ForkedServer(data) as server:
        tab = await TabClient.join(server.url)
        assert texts((await tab.open(CHAT))["messages"])[:1] == ["kept"]
