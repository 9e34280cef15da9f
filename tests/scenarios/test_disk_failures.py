"""A disk that fails under the real process: nobody is acknowledged, everybody is told, and a restart loses nothing."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.support.forked_server import ForkedServer
from tests.support.oracle import LOST, whole_history
from tests.support.server import Process, TabClient, new_session, texts
from tests.support.waiting import until

CHAT = "character:Alice/First meeting"
FILE = "default-user/chats/Alice/First meeting.jsonl"


class Sender:
    """Appends one after the other and notes what came back until the connection ended."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.session = new_session()
        self.acked: dict[int, dict[str, Any]] = {}
        self.sent = 0
        self.last: list[dict[str, Any]] = []
        self.close_code: int | None = None

    def frame(self, op: int) -> dict[str, Any]:
        message = {"name": self.name, "mes": f"{self.name} {op}"}
        return {"type": "append", "chat": CHAT, "op": op, "base": "*", "messages": [message]}

    async def run(self, url: str) -> None:
        tab = await TabClient.join(url, self.session)
        try:
            await tab.open(CHAT, create=True)
            while True:
                self.sent += 1
                self.acked[self.sent] = answer = await tab.ask(**self.frame(self.sent))
                assert answer["type"] == "ack", answer
        except AssertionError:
            self.last.append(self.acked.pop(self.sent))
        except LOST:
            pass
        with contextlib.suppress(*LOST):
            self.close_code = await tab.raw.wait_closed()
            self.last += list(tab.raw._kept)
        tab.raw.abort()


async def recovered(data: Path, senders: list[Sender]) -> None:
    """Start again: acked ops are there as acked, the unknown one once after its resend, and nothing else."""
    async with ForkedServer(data) as server:
        for sender in senders:
            tab = await TabClient.join(server.url, sender.session)
            opened = await tab.open(CHAT)
            assert opened["type"] == "opened"
            assert opened["next_op"] in (sender.sent, sender.sent + 1)
            again = await tab.ask(**sender.frame(sender.sent))
            assert again["type"] == "ack"
            assert again.get("duplicate", False) is (opened["next_op"] > sender.sent)
            for op, ack in list(sender.acked.items())[-5:]:
                assert (await tab.ask(**sender.frame(op)))["version"] == ack["version"]
        history = await whole_history(tab, CHAT)
        at = {(commit["by"]["session"], commit["by"]["op"]): commit["version"] for commit in history if "by" in commit}
        for sender in senders:
            for op, ack in sender.acked.items():
                assert at[sender.session, op] == ack["version"]
        said = texts((await tab.open(CHAT))["messages"])
        assert sorted(said) == sorted(f"{sender.name} {op}" for sender in senders for op in range(1, sender.sent + 1))
        assert await server.stop() == 0
    lines = (data / FILE).read_bytes().split(b"\n")
    assert [json.loads(line)["mes"] for line in lines[1:] if line] == said


def strace(log: Path, injection: str, data: Path) -> tuple[str, ...]:
    """Fault injection into calls on the log's segments only."""
    paths = [flag for number in range(1, 4) for flag in ("-P", str(segment(data, number)))]
    return ("strace", "-f", "--seccomp-bpf", "-o", str(log), *paths, "-e", "trace=fdatasync,pwrite64",
            "-e", f"inject={injection}")


def segment(data: Path, number: int) -> Path:
    """The name that the log gives its nth segment; found once from a server that ran."""
    return data / ".tellback" / "log" / SEGMENT_NAMES[number - 1]


SEGMENT_NAMES: list[str] = []


async def names_of_segments(folder: Path) -> None:
    """Look at a server's log folder, so that this test needs no knowledge of its format."""
    if not SEGMENT_NAMES:
        async with ForkedServer(folder / "data") as server:
            tab = await TabClient.join(server.url)
            await tab.open(CHAT, create=True)
            await tab.append(CHAT, "x")
        found = sorted(path.name for path in (folder / "data/.tellback/log").iterdir() if path.stat().st_size > 4096)
        assert found, list((folder / "data/.tellback/log").iterdir())
        SEGMENT_NAMES.extend((found + found + found)[:3])


@pytest.mark.parametrize(
    ("injection", "is_stored"),
    [("fdatasync:error=EIO:when=40", None), ("fdatasync:error=EIO:when=25+", None),
     ("pwrite64:error=EIO:when=30", False)],
    ids=["sync-once", "sync-for-ever", "write"],
)
async def test_R48_an_EIO_of_the_log_poisons_the_process_and_loses_nothing(
    tmp_path: Path, injection: str, is_stored: bool | None
) -> None:
    """[D1], RELIABILITY F6, F7, F8: no ack for that batch, tabs are told, exit code 70, one outcome after a resend."""
    await names_of_segments(tmp_path)
    data = tmp_path / "failing" / "data"
    data.parent.mkdir()
    process = Process(data)
    await process.start(under=strace(tmp_path / "trace", injection, data))
    senders = [Sender(f"s{number}") for number in range(3)]
    await asyncio.gather(*(sender.run(process.url) for sender in senders))
    assert await process.ended() == 70
    trace = (tmp_path / "trace").read_text()
    assert "INJECTED" in trace
    failed_at = trace.index("INJECTED")
    if "fdatasync" in injection and "+" not in injection:
        assert "fdatasync(" not in trace[failed_at:].partition("\n")[2], "a failed sync is never tried again"
    for sender in senders:
        assert sender.sent == len(sender.acked) + 1, "one op without an answer"
        assert sender.close_code == 1011
        for frame in sender.last:
            if frame["type"] == "error":
                assert frame["code"] == "storage-failed"
        assert "goaway" in [frame["type"] for frame in sender.last]
    log = process.errors.read_text()
    assert "Traceback" not in log
    assert "poisoned" in log
    await recovered(data, senders)


@pytest.mark.parametrize("point", ["log.before_write=error:EIO@20", "fs.fdatasync=error:EIO@30",
                                   "log.before_tell=kill@20"])
async def test_R26_failpoints_of_the_log_lead_to_one_outcome_too(tmp_path: Path, point: str) -> None:
    """[D1]: the same without strace, and with a kill between sync and answer (RELIABILITY F26: a lost ack)."""
    data = tmp_path / "data"
    process = Process(data, "--checkpoint-interval", "600", environment={"TELLBACK_FAILPOINTS": point})
    await process.start()
    senders = [Sender(f"s{number}") for number in range(2)]
    await asyncio.gather(*(sender.run(process.url) for sender in senders))
    assert await process.ended() == (-signal.SIGKILL if "kill" in point else 70)
    await recovered(data, senders)


async def test_R22_a_chat_file_that_cannot_be_written_costs_no_ack_and_is_caught_up_later(tmp_path: Path) -> None:
    """[K1] [K2], RELIABILITY F10: the log has it; the checkpoint is tried again, not in a storm."""
    data = tmp_path / "data"
    points = "checkpoint.before_append=error:ENOSPC"
    process = Process(data, "--checkpoint-interval", "0.02", environment={"TELLBACK_FAILPOINTS": points})
    async with process:
        tab = await TabClient.join(process.url)
        await tab.open(CHAT, create=True)
        await until(lambda: (data / FILE).exists())
        for number in range(20):
            assert (await tab.append(CHAT, f"{number}"))["type"] == "ack"
            await asyncio.sleep(0.01)
        assert texts((await tab.open(CHAT))["messages"]) == [f"{number}" for number in range(20)]
        await until(lambda: "checkpoint-failed" in process.errors.read_text())
        assert process.errors.read_text().count("checkpoint-failed") <= 2, "it waits between two tries"
        await tab.close()
        await process.kill()
    assert (data / FILE).read_bytes().count(b'"mes"') < 20
    async with ForkedServer(data, checkpoint_interval_s=0.02) as server:
        # [K5]: what a crash left unfolded is folded after the start, opened or not.
        await until(lambda: (data / FILE).read_bytes().count(b'"mes"') == 20)
        tab = await TabClient.join(server.url)
        assert (await tab.open(CHAT))["count"] == 20
