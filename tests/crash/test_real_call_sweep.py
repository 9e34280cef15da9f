"""The Nth system call of a real process fails, by strace: EIO, ENOSPC, EDQUOT, EROFS, a write that writes nothing, and
by a limit on file sizes a write of the log that is really short.

The same promise as of the sweep over the simulated disk (test_syscall_sweep), on the whole stack below Python: nobody
is acknowledged what is not durable, a failed log ends the process with 70, a start needs nobody, and a short day ends
as it does without a fault. A seeded part; TELLBACK_REAL_SWEEP is how many cases.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import resource
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.support.oracle import LOST, whole_history
from tests.support.server import Process, TabClient, new_session, texts
from tests.support.waiting import GUARD_S

CASES = int(os.environ.get("TELLBACK_REAL_SWEEP", "2"))
SEED = int(os.environ.get("TELLBACK_REAL_SWEEP_SEED") or random.SystemRandom().randrange(1 << 31))
CALLS = ("pwrite64", "fdatasync", "fsync", "rename", "renameat2", "link", "linkat", "unlink", "mkdir", "ftruncate")
"""Only `fs` makes them in a server's process."""
FAULTS = ("error=EIO", "error=ENOSPC", "error=EDQUOT", "error=EROFS")
CHAT = "character:Alice/First meeting"
FLAGS = ("--checkpoint-interval", "0.02", "--log-segment-bytes", "65536")
HEALS_AFTER_S = 1.0
TRIES_MAX = 40


class Insistent:
    """A tab that asks until it has its answer; a process that ended is started again, on a disk that is well."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.session = new_session()
        self.ops: Counter[str] = Counter()
        self.ends: list[int] = []
        self._tab: TabClient | None = None

    async def ask(self, type: str, **fields: Any) -> dict[str, Any]:
        answer: dict[str, Any] = {}
        for _ in range(TRIES_MAX):
            try:
                if self._tab is None:
                    self._tab = await TabClient.join(self.process.url, self.session)
                answer = await self._tab.ask(type, **fields)
            except (*LOST, AssertionError):
                self._tab = None
                await self._again()
                continue
            if answer["type"] != "error" or answer["code"] not in RETRIED:
                return answer
            await asyncio.sleep(0.1)
        raise AssertionError(f"never answered: {type} {fields}: {answer}")

    async def write(self, type: str, chat: str, **fields: Any) -> dict[str, Any]:
        self.ops[chat] += 1
        answer = await self.ask(type, chat=chat, op=self.ops[chat], **fields)
        assert answer["type"] == "ack", answer
        return answer

    async def _again(self) -> None:
        code = await self.process.ended(GUARD_S)
        assert code == 70, self.process.errors.read_text()[-3000:]
        self.ends.append(code)
        await self.process.start()


RETRIED = ("storage-full", "storage-failed", "unreadable", "overloaded", "stopping")


async def a_day(tab: Insistent) -> list[str]:
    """Returns what is said at its end."""
    opened = await tab.ask("open", chat=CHAT, create=True, since=None)
    chat = f"id:{opened['chat_id']}"
    first = await tab.write("append", chat, base="*", messages=[{"mes": "one"}, {"mes": "two"}])
    await asyncio.sleep(0.1)
    await tab.write("patch", chat, base="*", message=first["messages"][0], patch=[
        {"op": "test", "path": "/mes", "value": "one"}, {"op": "replace", "path": "/mes", "value": "uno"},
    ])
    tab.ops[chat] += 1
    state = await tab.ask(
        "state-update", owner={"chat": chat}, op=tab.ops[chat], namespace="memory", base=None, set={"a": 1}
    )
    assert state["type"] == "ack", state
    await asyncio.sleep(0.1)
    await tab.write("chat-rename", chat, base="*", to="Second")
    await tab.write("append", chat, base="*", messages=[{"mes": "x" * 40_000}])
    await tab.write("append", chat, base="*", messages=[{"mes": "y" * 40_000}])
    assert (await tab.ask("backup-create", chat=chat))["type"] == "backup-created"
    await tab.write("chat-delete", chat, base=first["version"]["integrity"], force=True)
    await tab.write("chat-restore", chat)
    last = await tab.write("append", chat, base="*", messages=[{"mes": "last"}])
    again = await tab.ask("append", chat=chat, op=tab.ops[chat], base="*", messages=[{"mes": "last"}])
    assert (again["version"], again["duplicate"]) == (last["version"], True)
    shown = await tab.ask("open", chat=chat, since=None)
    states = await tab.ask("state-get", owner={"chat": chat}, namespaces=["memory"])
    assert states["states"]["memory"]["data"] == {"a": 1}
    assert shown["chat"] == chat
    reader = await TabClient.join(tab.process.url)
    told = texts((await reader.open("character:Alice/Second"))["messages"])
    history = await whole_history(reader, chat)
    made = [commit["by"]["op"] for commit in history if "by" in commit]
    assert made == list(range(1, tab.ops[chat] + 1)), "each op once"
    await reader.close()
    return told


def strace(trace: Path, injection: str = "") -> tuple[str, ...]:
    what = ("-e", f"inject={injection}") if injection else ()
    return ("strace", "-f", "--seccomp-bpf", "-o", str(trace), "-e", "trace=" + ",".join(CALLS), *what)


def server_pid(process: Process) -> int:
    """Of the server itself: the process may be a strace that runs it."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return int(children[0]) if children else process.pid


async def stopped(process: Process) -> int:
    """SIGTERM; the exit code. It may have ended by itself just before."""
    with contextlib.suppress(ProcessLookupError, FileNotFoundError):
        os.kill(server_pid(process), signal.SIGTERM)
    return await process.ended(GUARD_S)


async def killed(process: Process) -> None:
    with contextlib.suppress(ProcessLookupError, FileNotFoundError):
        os.kill(server_pid(process), signal.SIGKILL)
    await process.kill()


async def held(folder: Path, injection: str = "") -> tuple[list[str], list[int], str]:
    """What the day said, how the process ended on the way, and the trace. The disk is well after the first end."""
    folder.mkdir()  # noqa: ASYNC240  Nothing else runs here.
    process = Process(folder / "data", *FLAGS)
    try:
        await process.start(under=strace(folder / "trace", injection))
    except AssertionError:
        # The start itself was refused; the next one needs nobody.
        assert injection, process.errors.read_text()[-3000:]
        await process.ended()
        await process.start()
    tab = Insistent(process)
    try:
        said = await a_day(tab)
        code = await stopped(process)
        assert code == 0 or (code == 70 and injection), process.errors.read_text()[-3000:]
        tab.ends += [code] if code else []
    finally:
        await killed(process)
    # What the files say is what was told.
    process = Process(folder / "data", *FLAGS)
    async with process:
        reader = await TabClient.join(process.url)
        assert texts((await reader.open("character:Alice/Second"))["messages"]) == said
    assert "Traceback" not in process.errors.read_text()
    return said, tab.ends, (folder / "trace").read_text()


@pytest.mark.timeout(3600)
async def test_whichever_real_call_fails_the_day_ends_as_if_none_had(tmp_path: Path) -> None:
    """[L5] [O1] [J3], RELIABILITY F6, F8 to F11, F13."""
    whole, ends, trace = await held(tmp_path / "well")
    assert whole == ["uno", "two", "x" * 40_000, "y" * 40_000, "last"]
    assert ends == []
    made: Counter[str] = Counter()
    most: Counter[str] = Counter()
    for thread, call in re.findall(r"^(\d+) +(\w+)\(", trace, re.MULTILINE):
        made[thread + call] += 1
        most[call] = max(most[call], made[thread + call])
    faults = {"pwrite64": (*FAULTS, "retval=0")}
    cases = [
        (call, number, fault) for call, count in most.items() for number in range(1, count + 1)
        for fault in faults.get(call, FAULTS)
    ]
    assert len(cases) > 300
    struck = poisoned = 0
    for at, (call, number, fault) in enumerate(random.Random(SEED).sample(cases, CASES)):
        try:
            said, ends, trace = await held(tmp_path / f"{at}", f"{call}:{fault}:when={number}")
            assert said == whole
        except BaseException as error:
            error.add_note(f"seed {SEED}: {call} number {number}: {fault}")
            raise
        struck += "INJECTED" in trace
        poisoned += bool(ends)
    print(f"{CASES} of {len(cases)} cases, {struck} failed a call, {poisoned} ended the server")
    assert struck, f"seed {SEED}"


async def test_a_write_of_the_log_that_is_really_short_is_no_ack(tmp_path: Path) -> None:
    """RELIABILITY F8: the kernel takes half of a batch and then nothing; its tail is cut at the next start."""
    process = Process(tmp_path / "data", "--checkpoint-interval", "600", "--log-segment-bytes", "65536")
    await process.start()
    tab = Insistent(process)
    try:
        await tab.ask("open", chat=CHAT, create=True, since=None)
        await tab.write("append", CHAT, base="*", messages=[{"mes": "whole"}])
        [segment, *_] = sorted((tmp_path / "data/.tellback/log").glob("*.log"), reverse=True)
        end = len(segment.read_bytes().rstrip(b"\0"))
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (end + 900, resource.RLIM_INFINITY))
        await tab.write("append", CHAT, base="*", messages=[{"mes": "torn " + "x" * 3000}])
        assert tab.ends == [70], "the first try was not acknowledged"
        torn = list((tmp_path / "data/.tellback/log").glob("*.torn-*"))
        assert torn, "what was cut is kept aside"
        assert torn[0].read_bytes().count(b"x") > 100
        shown = await tab.ask("open", chat=CHAT, since=None)
        assert texts(shown["messages"]) == ["whole", "torn " + "x" * 3000]
        assert await process.stop() == 0
    finally:
        await process.kill()
