"""The Nth call of each kind fails once, and then the disk is well again (RELIABILITY L2; STORAGE G1, G2, S12).

Whatever fails, and whenever: what was told stays, a start after it needs nobody, and nothing is told after the failure.
"""

from __future__ import annotations

import asyncio
import errno
import random

import pytest

from tellback_server.log import LogPoisoned, Record
from tests.support.log_workload import DATA, open_log, recovered, some_record
from tests.support.sim_fs import SimFs

METHODS = ["create", "pwrite", "fdatasync", "fsync", "rename", "fsync_directory", "close", "unlink"]
BATCHES = [1, 3, 1, 6, 2, 4, 1]


async def live(fs: SimFs, appended: list[Record], told: list[int]) -> bool:
    """One life. Returns whether it ended well. What was appended and not told is of unknown fate."""
    try:
        log = open_log(fs)
    except OSError:
        return False
    assert log.durable >= max(told, default=0)
    del appended[log.durable :]
    chance = random.Random(len(appended))
    poisoned: list[BaseException] = []
    log.start(asyncio.get_running_loop(), told.append, poisoned.append)
    for count in BATCHES:
        try:
            for _ in range(count):
                record = some_record(len(appended) + 1, chance)
                log.append(record.kind, record.owner, record.seq, record.body)
                appended.append(record)
            await log.flush()
        except LogPoisoned:
            break
    told_before = len(told)
    try:
        log.close()
    except LogPoisoned:
        assert len(told) == told_before, "nothing is told after a failure"
        assert len(poisoned) == 1
        return False
    return not poisoned


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("method", METHODS)
async def test_any_single_failure_loses_nothing_that_was_told(method: str, number: int) -> None:
    bad = 0
    for after in range(60):
        fs = SimFs(DATA)
        appended: list[Record] = []
        told: list[int] = []
        fs.fail(method, number, after=after)
        for _ in range(3):
            bad += not await live(fs, appended, told)
        fs.heal()
        found = recovered(fs)
        assert found == appended[: len(found)], f"{method} {after}"
        assert len(found) >= max(told, default=0), f"{method} {after}"
    assert bad > 0
