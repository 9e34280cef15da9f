"""Inspect: dump and verify, on a whole log, a running one and a damaged one. Nothing is ever changed."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from tellback_server.log.inspect import dump, verify
from tests.support.log_workload import DATA, DIRECTORY, Workload, open_log
from tests.support.sim_fs import SimFs


async def written(batches: list[int]) -> tuple[SimFs, Workload]:
    fs = SimFs(DATA)
    workload = Workload(fs, lambda _what, _value: None)
    await workload.run(batches)
    return fs, workload


async def test_a_whole_log_is_dumped_record_by_record() -> None:
    fs, workload = await written([1, 5, 2, 9])
    before = fs.files()
    entries = list(dump(fs, DIRECTORY))
    records = [entry for entry in entries if entry["what"] == "record"]
    assert [(entry["position"], entry["owner"], entry["seq"], entry["kind"]) for entry in records] == [
        (number, record.owner, record.seq, record.kind) for number, record in enumerate(workload.appended, 1)
    ]
    assert entries[0]["what"] == "term"
    assert entries[-1]["finding"] == "clean"
    assert entries[-1]["last_position"] == 17
    assert {entry["what"] for entry in entries} == {"term", "segment", "batch", "record", "seal", "end"}
    report = verify(fs, DIRECTORY)
    assert (report.records, report.batches, report.seals, report.owners) == (17, 4, 1, 3)
    assert (report.first_position, report.last_position) == (1, 17)
    assert report.is_whole
    assert not report.findings
    assert msgspec.json.encode(report)
    assert fs.files() == before


async def test_a_running_log_can_be_looked_at() -> None:
    fs = SimFs(DATA)
    log = open_log(fs)
    log.start(asyncio.get_running_loop(), lambda _position: None, lambda _error: None)
    for number in range(1, 20):
        log.append(1, "u/a", number, b"x" * 200)
        await log.flush()
        report = verify(fs, DIRECTORY)
        assert report.records == number
        assert not report.findings
    log.close()


async def test_what_is_found_is_named_and_nothing_is_changed() -> None:
    fs, _workload = await written([1, 5, 2, 9])
    path = f"{DIRECTORY}/{1:020d}.log"
    for change, finding in (
        ((600,), "repairable"),
        ((600, 610), "corrupt"),
        ((20,), "repairable"),
        ((20, 30), "corrupt"),
    ):
        copy = SimFs(fs.disk())
        for offset in change:
            copy.content(path)[offset] ^= 1
        before = copy.files()
        report = verify(copy, DIRECTORY)
        assert [found.what for found in report.findings] == [finding]
        assert report.findings[0].path == path
        assert report.is_whole == (finding == "repairable")
        assert list(dump(copy, DIRECTORY))[-1]["finding"] == ("corrupt" if finding == "corrupt" else "clean")
        assert copy.files() == before


async def test_a_torn_tail_is_no_loss() -> None:
    fs, _workload = await written([1])
    newest = max(path for path in fs.files() if path.endswith(".log"))
    content = fs.content(newest)
    end = len(content.rstrip(b"\0"))
    content[end + 5 : end + 30] = b"half a batch, out of order"[:25]
    report = verify(fs, DIRECTORY)
    assert [found.what for found in report.findings] == ["torn-tail"]
    assert report.is_whole
    assert list(dump(fs, DIRECTORY))[-1]["finding"] == "torn-tail"
    open_log(fs).close()
    after = verify(fs, DIRECTORY)
    assert not after.findings
    assert len(after.torn_files) == 1


@pytest.mark.parametrize("missing", [1, 2])
async def test_a_missing_segment_is_corrupt(missing: int) -> None:
    fs, _workload = await written([5, 5, 5])
    open_log(fs).close()
    fs.unlink(f"{DIRECTORY}/{missing:020d}.log")
    report = verify(fs, DIRECTORY)
    assert [(found.what, found.reason) for found in report.findings] == [("corrupt", "the segment is missing")]


def test_a_folder_without_a_log_says_so() -> None:
    report = verify(SimFs(DATA), DIRECTORY)
    assert [found.what for found in report.findings] == ["corrupt"]
    assert list(dump(SimFs(DATA), DIRECTORY))[-1]["finding"] == "corrupt"
