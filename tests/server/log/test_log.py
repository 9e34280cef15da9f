"""Log: positions, group commit, poison, restart, retention, two processes. Rule ids are those of STORAGE.md."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import uvloop

from tellback_server.clock import Clock
from tellback_server.fs import DirectoryLocked, Fs
from tellback_server.log import (
    BODY_BYTES_MAX,
    Log,
    LogClosed,
    LogPoisoned,
    Position,
    Record,
    RecordMissing,
    RecordTooLarge,
    TermSuperseded,
)
from tellback_server.log.term import TermFile, TermLine
from tellback_server.log.writer import SEAL_AFTER_S
from tests.support.log_workload import DATA, DIRECTORY, Quiet, open_log
from tests.support.sim_fs import SimFs
from tests.support.waiting import until


class Told:
    """What a log told."""

    def __init__(self) -> None:
        self.positions: list[int] = []
        self.poison: list[BaseException] = []

    def start(self, log: Log) -> Log:
        """Starts `log` in the running loop."""
        log.start(asyncio.get_running_loop(), self.positions.append, self.poison.append)
        return log


class SlowSync(SimFs):
    """A disk whose fdatasync waits until the test lets it go."""

    def __init__(self) -> None:
        super().__init__(DATA)
        self.go = threading.Semaphore(0)
        self.is_slow = False
        self.waiting = threading.Event()

    def strike(self, method: str, path: str) -> None:
        if method == "fdatasync" and self.is_slow:
            self.waiting.set()
            assert self.go.acquire(timeout=10)
        super().strike(method, path)


async def wait_until(event: threading.Event) -> None:
    """Without blocking the loop."""
    assert await asyncio.to_thread(event.wait, 10)


async def test_positions_count_from_one_and_go_on_after_a_restart() -> None:
    fs, told = SimFs(DATA), Told()
    log = told.start(open_log(fs))
    assert [log.append(1, "u/a", number, b"") for number in (1, 2, 3)] == [1, 2, 3]
    assert (log.sequenced, log.durable) == (3, 0)
    await log.flush()
    assert (log.sequenced, log.durable, told.positions) == (3, 3, [3])
    log.close()
    log = told.start(open_log(fs))
    assert (log.sequenced, log.durable) == (3, 3)
    assert log.append(1, "u/a", 4, b"") == 4
    log.close()


async def test_what_is_appended_in_one_iteration_of_the_loop_is_one_batch() -> None:
    """STORAGE [W1]"""
    log = Told().start(open_log(SimFs(DATA), segment_bytes=1 << 20))
    for number in range(100):
        log.append(1, f"u/{number % 7}", number, b"body")
    await log.flush()
    assert (log.stats.batches, log.stats.records) == (1, 100)
    log.close()


async def test_the_next_batch_gathers_while_the_current_one_syncs() -> None:
    """STORAGE [W1]: one write and one sync for all of it."""
    fs, told = SlowSync(), Told()
    log = told.start(open_log(fs, segment_bytes=1 << 20))
    fs.is_slow = True
    log.append(1, "u/a", 1, b"")
    await wait_until(fs.waiting)
    for number in range(2, 50):
        log.append(1, "u/a", number, b"")
        await asyncio.sleep(0)
    assert (told.positions, log.durable, log.sequenced) == ([], 0, 49)
    fs.is_slow = False
    fs.go.release(1)
    await log.flush()
    assert told.positions == [1, 49]
    assert (log.stats.batches, log.stats.records) == (2, 49)
    log.close()


async def test_a_cancelled_waiter_leaves_the_batch_alone() -> None:
    fs, told = SlowSync(), Told()
    log = told.start(open_log(fs))
    fs.is_slow = True
    log.append(1, "u/a", 1, b"one")
    waiter = asyncio.create_task(log.flush())
    other = asyncio.create_task(log.flush())
    await wait_until(fs.waiting)
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    fs.is_slow = False
    fs.go.release()
    await other
    assert log.read(Position(1)).body == b"one"
    log.close()


async def test_uncommitted_bytes_go_back_to_zero() -> None:
    log = Told().start(open_log(SimFs(DATA)))
    log.append(1, "u/a", 1, b"x" * 100)
    assert log.uncommitted_bytes > 100
    await log.flush()
    assert log.uncommitted_bytes == 0
    log.close()
    assert log.uncommitted_bytes == 0


async def test_close_makes_durable_and_tells_what_was_appended_just_before() -> None:
    fs, told = SimFs(DATA), Told()
    log = told.start(open_log(fs))
    log.append(1, "u/a", 1, b"last words")
    log.close()
    log.close()
    assert told.positions == [1]
    with pytest.raises(LogClosed):
        log.append(1, "u/a", 2, b"")
    assert open_log(fs).read(Position(1)).body == b"last words"


@pytest.mark.parametrize("method", ["pwrite", "fdatasync"])
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS])
async def test_s12_a_failed_write_or_sync_poisons_and_tells_nothing(method: str, number: int) -> None:
    fs, told = SimFs(DATA), Told()
    log = told.start(open_log(fs, segment_bytes=1 << 16))
    log.append(1, "u/a", 1, b"good")
    await log.flush()
    fs.fail(method, number)
    log.append(1, "u/a", 2, b"unknown")
    first = asyncio.create_task(log.flush())
    second = asyncio.create_task(log.flush())
    for waiter in (first, second):
        with pytest.raises(LogPoisoned) as caught:
            await waiter
        assert isinstance(caught.value.cause, OSError)
        assert caught.value.cause.errno == number
    assert told.positions == [1]
    assert len(told.poison) == 1
    with pytest.raises(LogPoisoned):
        log.append(1, "u/a", 3, b"")
    with pytest.raises(LogPoisoned):
        await log.flush()
    with pytest.raises(LogPoisoned):
        log.close()
    await asyncio.sleep(0)
    assert (told.positions, len(told.poison)) == ([1], 1), "the disk healed, and still nothing is told"
    log = open_log(fs)
    bodies = [record.body for _position, record in log.scan()]
    assert bodies in ([b"good"], [b"good", b"unknown"])
    log.close()


@pytest.mark.parametrize("method", ["create", "rename", "fsync_directory", "close"])
async def test_s12_a_failure_inside_a_roll_poisons(method: str) -> None:
    fs, told = SimFs(DATA), Told()
    log = told.start(open_log(fs, segment_bytes=4096))
    log.append(1, "u/a", 1, b"x" * 300)
    await log.flush()
    fs.fail(method, errno.EIO)
    # The segment is not half full yet, so there is no spare: the roll has to make its own.
    log.append(1, "u/a", 2, b"y" * 5000)
    with pytest.raises(LogPoisoned):
        await log.flush()
    with pytest.raises(LogPoisoned):
        log.close()
    log = open_log(fs)
    assert [record.seq for _position, record in log.scan()] in ([1], [1, 2])
    log.close()


async def test_a_full_disk_is_seen_before_the_segment_is_full() -> None:
    """RELIABILITY F9: what is left of the segment works on; the owner of the log hears that there is no next one."""
    fs, told = SimFs(DATA), Told()
    log = told.start(open_log(fs, segment_bytes=8192))
    fs.fail("create", errno.ENOSPC)
    log.append(1, "u/a", 1, b"x" * 4500)
    await log.flush()
    await until(lambda: log.storage_error is not None)
    assert log.storage_error is not None
    assert log.storage_error.errno == errno.ENOSPC
    log.append(1, "u/a", 2, b"still fits")
    await log.flush()
    assert told.positions == [1, 2]
    log.close()


async def test_a_record_larger_than_a_segment_gets_a_segment_of_its_own() -> None:
    fs, told = SimFs(DATA), Told()
    log = told.start(open_log(fs))
    bodies = [b"a", b"b" * 50_000, b"c"]
    for number, body in enumerate(bodies, 1):
        log.append(1, "u/a", number, body)
        await log.flush()
    log.close()
    log = open_log(fs)
    assert [record.body for _position, record in log.scan()] == bodies
    assert [log.read(Position(number)).body for number in (1, 2, 3)] == bodies
    log.close()


async def test_a_batch_larger_than_a_segment_is_one_batch() -> None:
    fs = SimFs(DATA)
    log = Told().start(open_log(fs))
    for number in range(1, 101):
        log.append(1, "u/a", number, b"z" * 100)
    await log.flush()
    log.close()
    log = open_log(fs)
    assert [record.seq for _position, record in log.scan()] == list(range(1, 101))
    log.close()


async def test_what_breaks_the_limits_is_refused_and_takes_no_position() -> None:
    log = Told().start(open_log(SimFs(DATA)))
    with pytest.raises(RecordTooLarge):
        log.append(1, "u" * 1025, 1, b"")
    with pytest.raises(RecordTooLarge):
        log.append(1, "u/a", 1, bytes(BODY_BYTES_MAX + 1))
    for kind, seq in ((256, 1), (-1, 1), (1, -1), (1, 1 << 64)):
        with pytest.raises(Exception, match=r"format|range|argument"):
            log.append(kind, "u/a", seq, b"")
    assert log.sequenced == 0
    assert log.owners() == {}
    assert log.append(255, "u/a", (1 << 64) - 1, b"") == 1
    await log.flush()
    assert log.read(Position(1)) == Record(255, "u/a", (1 << 64) - 1, b"")
    log.close()


async def test_records_of_an_owner_come_in_order_before_and_after_a_restart() -> None:
    fs = SimFs(DATA)
    log = Told().start(open_log(fs))
    expected: dict[str, list[tuple[int, int]]] = {}
    for number in range(1, 61):
        owner = f"u/é{number % 4}"
        position = log.append(number % 3, owner, number // 4 + 1, b"%d" % number)
        expected.setdefault(owner, []).append((position, number // 4 + 1))
        if number % 7 == 0:
            await log.flush()
    await log.flush()
    for _ in range(2):
        for owner, records in expected.items():
            assert [(position, record.seq) for position, record in log.records(owner)] == records
            after = [pair for pair in records if pair[1] > 6]
            assert [(position, record.seq) for position, record in log.records(owner, 6)] == after
            assert log.owners()[owner] == (records[0][1], records[-1][1])
        assert list(log.records("nobody")) == []
        log.close()
        log = open_log(fs)
    log.close()


async def test_records_whose_seqs_go_down_are_found_all_the_same() -> None:
    log = Told().start(open_log(SimFs(DATA)))
    for seq in (5, 3, 9, 1, 7):
        log.append(1, "u/a", seq, b"")
    await log.flush()
    assert [record.seq for _position, record in log.records("u/a", 4)] == [5, 9, 7]
    log.close()


async def test_what_is_not_durable_cannot_be_read() -> None:
    fs = SlowSync()
    log = Told().start(open_log(fs))
    fs.is_slow = True
    log.append(1, "u/a", 1, b"")
    await wait_until(fs.waiting)
    with pytest.raises(RecordMissing):
        log.read(Position(1))
    assert list(log.records("u/a")) == []
    assert list(log.scan()) == []
    fs.is_slow = False
    fs.go.release()
    await log.flush()
    assert log.read(Position(1)).seq == 1
    for position in (0, 2):
        with pytest.raises(RecordMissing):
            log.read(Position(position))
    log.close()


async def test_an_idle_log_is_sealed_once() -> None:
    """STORAGE [W5]"""
    log = Told().start(open_log(SimFs(DATA)))
    await asyncio.sleep(3 * SEAL_AFTER_S)
    assert log.stats.seals == 0, "a log that got nothing has nothing to seal"
    for number in (1, 2):
        log.append(1, "u/a", number, b"")
        await until(lambda seals=number: log.stats.seals == seals)
        await asyncio.sleep(3 * SEAL_AFTER_S)
        assert log.stats.seals == number
    log.close()
    assert log.stats.seals == 2


async def filled(fs: SimFs, **options: Any) -> Log:
    """A log of several segments, five records each or so."""
    log = Told().start(open_log(fs, **options))
    for number in range(1, 41):
        log.append(1, f"u/{number % 2}", number, b"x" * 300)
        await log.flush()
    return log


async def test_retention_removes_whole_oldest_segments_that_are_released_and_over_the_limit() -> None:
    """STORAGE [R1]"""
    fs = SimFs(DATA)
    log = await filled(fs, retain_bytes=6 * 2048, retain_s=1e9)
    segments = len([path for path in fs.files() if path.endswith(".log")])
    assert log.collect(Position(0)) == 0, "nothing is released"
    removed = log.collect(Position(40))
    assert removed == segments - 6
    first = log.first_retained
    assert first > 1
    assert [position for position, _record in log.scan()] == list(range(first, 41))
    with pytest.raises(RecordMissing):
        log.read(Position(first - 1))
    assert log.owners()["u/0"][0] in (first, first + 1)
    assert log.collect(Position(40)) == 0
    log.append(1, "u/0", 41, b"")
    await log.flush()
    log.close()
    log = open_log(fs)
    assert [position for position, _record in log.scan()] == list(range(first, 42))
    log.close()


async def test_retention_by_age_asks_about_every_position_and_keeps_the_active_segment() -> None:
    """STORAGE [R1]"""
    fs = SimFs(DATA)
    log = await filled(fs, retain_s=-1)
    asked: list[int] = []

    def releasable(position: Position) -> bool:
        asked.append(position)
        return position != 20

    assert log.collect(releasable) > 0
    assert log.first_retained <= 20
    assert max(asked) == 20
    log.collect(lambda position: True)
    assert log.first_retained <= 41
    assert log.durable == 40
    log.append(1, "u/a", 41, b"")
    await log.flush()
    log.close()


async def test_a_retention_that_was_cut_short_is_finished_at_the_next_start() -> None:
    fs = SimFs(DATA)
    log = await filled(fs, retain_s=-1)
    fs.fail("unlink", errno.EIO)
    with pytest.raises(OSError, match=r"Input/output"):
        log.collect(Position(30))
    first = log.first_retained
    log.close()
    log = open_log(fs)
    assert log.first_retained == first
    assert sorted(path for path in fs.files() if path.endswith(".log"))[0] > f"{DIRECTORY}/{1:020d}.log"
    log.close()


async def test_s12_a_higher_term_poisons_before_anything_is_told() -> None:
    """RELIABILITY F20: somebody took the lock from a paused process."""
    fs, told = SimFs(DATA), Told()
    log = told.start(open_log(fs))
    log.append(1, "u/a", 1, b"ours")
    await log.flush()
    fs.locks.clear()
    successor = open_log(fs)
    assert successor.term == log.term + 1
    log.append(1, "u/a", 2, b"too late")
    with pytest.raises(LogPoisoned) as caught:
        await log.flush()
    assert isinstance(caught.value.cause, TermSuperseded)
    assert told.positions == [1]
    with pytest.raises(LogPoisoned):
        log.close()
    assert [record.body for _position, record in successor.scan()] == [b"ours"]
    successor.close()


async def test_s12_a_vanished_data_folder_poisons() -> None:
    fs, told = SimFs(DATA), Told()
    log = told.start(open_log(fs))
    fs.unlink("/data/.tellback/term")
    log.append(1, "u/a", 1, b"")
    with pytest.raises(LogPoisoned):
        await log.flush()
    with pytest.raises(LogPoisoned):
        log.close()


async def test_our_own_rewrite_of_the_term_file_is_no_takeover() -> None:
    fs = SimFs(DATA)
    term = TermFile(fs, "/data/term")
    term.store(TermLine(3, 1, 1))
    term.check()
    TermFile(fs, "/data/term").store(TermLine(3, 2, 2))
    term.check()
    TermFile(fs, "/data/term").store(TermLine(4, 2, 2))
    with pytest.raises(TermSuperseded):
        term.check()


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file below `folder`."""
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_s1_a_second_log_in_the_same_process_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    directory = str(tmp_path / ".tellback" / "log")
    log = open_log(Fs(), directory=directory)
    before = files_of(tmp_path)
    with pytest.raises(DirectoryLocked):
        open_log(Fs(), directory=directory)
    assert files_of(tmp_path) == before
    log.close()
    open_log(Fs(), directory=directory).close()


CHILD = """
import asyncio, sys
from tellback_server.clock import Clock
from tellback_server.fs import Fs
from tellback_server.log import Log

class Quiet:
    def info(self, event, **fields): pass
    warning = info

async def main():
    log = Log.open(Fs(), sys.argv[1], Clock(), segment_bytes=65536, logger=Quiet())
    def poisoned(error):
        print("poisoned", getattr(error.cause, "errno", error.cause), flush=True)
    log.start(asyncio.get_running_loop(), lambda position: print("durable", position, flush=True), poisoned)
    print("ready", log.durable, flush=True)
    for number in range(log.durable + 1, log.durable + 1 + int(sys.argv[2])):
        log.append(1, "u/a", number, b"body %d" % number)
        try:
            await log.flush()
        except Exception as error:
            print(type(error).__name__, flush=True)
            sys.exit(70)
    if len(sys.argv) > 3:
        await asyncio.sleep(float(sys.argv[3]))
    log.close()

asyncio.run(main())
"""


def child(directory: Path, count: int, *more: str, before: tuple[str, ...] = ()) -> list[str]:
    """The arguments of a process that appends `count` records."""
    return [*before, sys.executable, "-c", CHILD, str(directory), str(count), *more]


def test_s1_a_second_process_is_refused_while_the_first_lives_and_served_after_its_kill(tmp_path: Path) -> None:
    directory = tmp_path / ".tellback" / "log"
    with subprocess.Popen(child(directory, 3, "60"), stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        while "durable 3" not in first.stdout.readline():
            assert first.poll() is None
        second = subprocess.run(child(directory, 1), capture_output=True, text=True, timeout=30, check=False)
        assert "DirectoryLocked" in second.stderr
        assert second.stdout == ""
        first.kill()
    third = subprocess.run(child(directory, 1), capture_output=True, text=True, timeout=30, check=True)
    assert third.stdout.split() == ["ready", "3", "durable", "4"]


@pytest.mark.parametrize("number", ["EIO", "ENOSPC", "EDQUOT"])
def test_s12_a_real_fdatasync_that_fails_poisons_a_real_process(tmp_path: Path, number: str) -> None:
    """RELIABILITY F6, F7: strace lets one fdatasync fail; the ones after it would succeed, and are not tried."""
    directory = tmp_path / ".tellback" / "log"
    subprocess.run(child(directory, 1), capture_output=True, timeout=30, check=True)
    inject = f"inject=fdatasync:error={number}:when=5"
    before = ("strace", "-f", "-qq", "-e", "trace=fdatasync", "-e", inject, "-o", str(tmp_path / "trace"))
    result = subprocess.run(
        child(directory, 10, before=before), capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 70, result.stderr
    lines = result.stdout.splitlines()
    told = [line for line in lines if line.startswith("durable")]
    assert lines[-2:] == [f"poisoned {getattr(errno, number)}", "LogPoisoned"], lines
    assert 0 < len(told) < 10
    assert "INJECTED" in (tmp_path / "trace").read_text().splitlines()[-1], "no sync after the failed one"
    log = open_log(Fs(), directory=str(directory))
    found = [record.seq for _position, record in log.scan()]
    assert found == list(range(1, len(found) + 1))
    assert len(found) >= len(told) + 1
    log.close()


KILLS = [
    "log.before_write=kill@3",
    "log.write=torn:0@3",
    "log.write=torn:63@3",
    "log.write=torn:90@4",
    "log.after_write=kill@3",
    "log.after_sync=kill@3",
    "log.before_tell=kill@4",
    "log.spare.before_fill=kill",
    "log.spare.after_fill=kill",
    "log.publish.before_write=kill",
    "log.publish.after_write=kill",
    "log.publish.after_sync=kill",
    "log.publish.after_rename=kill",
    "log.publish.after_directory_sync=kill",
    "log.recovery.begin=kill",
    "log.recovery.after_term=kill",
    "log.recovery.before_fresh_segment=kill",
    "log.recovery.after_fresh_segment=kill",
    "log.recovery.after_cut=kill",
    "log.recovery.end=kill",
    "fs.atomic.after_write=kill",
    "fs.atomic.after_rename=kill@2",
    "log.after_write=error:EIO@3",
]


@pytest.mark.parametrize("failpoint", KILLS)
def test_a_kill_at_a_named_place_loses_nothing_that_was_told(tmp_path: Path, failpoint: str) -> None:
    """RELIABILITY F2, with a process that really dies."""
    directory = tmp_path / ".tellback" / "log"
    subprocess.run(child(directory, 2), capture_output=True, timeout=30, check=True)
    environment = {**os.environ, "TELLBACK_FAILPOINTS": failpoint}
    result = subprocess.run(
        child(directory, 8), capture_output=True, text=True, timeout=30, env=environment, check=False
    )
    assert result.returncode in (-9, 70), result.stderr
    told = max([2, *(int(line.split()[1]) for line in result.stdout.splitlines() if line.startswith("durable"))])
    log = open_log(Fs(), directory=str(directory))
    found = [(record.seq, record.body) for _position, record in log.scan()]
    assert found == [(number, b"body %d" % number) for number in range(1, len(found) + 1)]
    assert told <= len(found) <= told + 1
    log.close()


def test_open_refuses_a_segment_size_it_cannot_index() -> None:
    for size in (0, 1023, (1 << 30) + 1):
        with pytest.raises(ValueError, match="segment_bytes"):
            Log.open(SimFs(DATA), DIRECTORY, Clock(), segment_bytes=size, logger=Quiet())


async def test_other_threads_read_while_the_log_is_written_and_collected(tmp_path: Path) -> None:
    """On the real file system, because descriptors are what could go wrong."""
    log = Told().start(open_log(Fs(), directory=str(tmp_path / ".tellback" / "log"), segment_bytes=8192, retain_s=-1))
    stop = threading.Event()
    read = [0, 0]

    def reader(which: int) -> None:
        while not stop.is_set():
            for position in range(log.first_retained, log.durable + 1):
                try:
                    record = log.read(Position(position))
                except RecordMissing:
                    continue
                assert record.seq == position
                assert record.body == b"%d" % position * 50
                read[which] += 1
            # Retention may take one away meanwhile.
            with contextlib.suppress(RecordMissing):
                for position, record in log.records(f"u/{which}", log.first_retained):
                    assert record.seq == position
                    break

    readers = [asyncio.create_task(asyncio.to_thread(reader, which)) for which in (0, 1)]
    for number in range(1, 601):
        log.append(1, f"u/{number % 3}", number, b"%d" % number * 50)
        if number % 5 == 0:
            await log.flush()
        if number % 60 == 0:
            await asyncio.to_thread(log.collect, Position(number - 40))
    stop.set()
    await asyncio.gather(*readers)
    assert log.first_retained > 1
    assert min(read) > 0
    log.close()


def test_a_loop_that_never_rests_does_not_starve_the_writer(tmp_path: Path) -> None:
    """Without the pause of `_watch` one to eight batches came through in two seconds on uvloop."""

    async def main() -> int:
        log = open_log(Fs(), directory=str(tmp_path / ".tellback" / "log"), segment_bytes=1 << 20)
        told = Told()
        told.start(log)
        end_s = time.monotonic() + 1.0
        number = 0
        while time.monotonic() < end_s:
            number += 1
            log.append(1, "u/a", number, b"x" * 100)
            await asyncio.sleep(0)
            spin_s = time.monotonic() + 0.0003
            while time.monotonic() < spin_s:
                pass
        await log.flush()
        log.close()
        return len(told.positions)

    assert uvloop.run(main()) >= 20
