"""The disk's own floor: 200 bytes and an fdatasync, again and again, in one thread with nothing else to do.

Measured beside every repetition, because the disk of a shared machine is not the same from minute to minute.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path

RECORD = b"\x5a" * 200
PREALLOCATED_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Syncs:
    rate: float
    p50_us: float
    p99_us: float


def measure(folder: Path, seconds: float, *, preallocated: bool) -> Syncs:
    """Append and fdatasync for `seconds`: to a growing file, or into one whose blocks were zeroed and synced before."""
    path = folder / f"fdatasync-{os.getpid()}"
    fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_TRUNC, 0o600)
    try:
        if preallocated:
            for _ in range(PREALLOCATED_BYTES // 2**20):
                os.write(fd, bytes(2**20))
            os.fsync(fd)
        took: list[int] = []
        offset = 0
        end = time.perf_counter_ns() + int(seconds * 1e9)
        while (before := time.perf_counter_ns()) < end:
            os.pwrite(fd, RECORD, offset)
            os.fdatasync(fd)
            took.append(time.perf_counter_ns() - before)
            offset = (
                (offset + len(RECORD)) % (PREALLOCATED_BYTES - len(RECORD)) if preallocated else offset + len(RECORD)
            )
    finally:
        os.close(fd)
        path.unlink()
    took.sort()
    return Syncs(len(took) / seconds, took[len(took) // 2] / 1e3, took[len(took) * 99 // 100] / 1e3)
