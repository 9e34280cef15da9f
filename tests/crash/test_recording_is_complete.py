"""What the crash tests reason about is what a real process does: the recorded calls against those that strace sees.

A call that went past RecordingFs would be missing from every crash state, and no enumeration could notice (STORAGE A1
to A4; RELIABILITY L0).
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import defaultdict
from pathlib import Path

from tests.support.shared import CHECKOUT
from tests.support.system_calls import TRACED, Event, from_strace, joined


async def traced(folder: Path, kind: str) -> tuple[list[Event], list[Event]]:
    """What strace saw of the workload, and what the process says it recorded."""
    data = folder / "data"
    told = folder / "strace"
    data.mkdir(parents=True)
    process = await asyncio.create_subprocess_exec(
        "strace", "-f", "-y", "-s", "0", "-qq", "-o", str(told), "-e", f"trace={TRACED}", "-e", "signal=none",
        sys.executable, "-m", "tests.support.system_calls", str(data), kind,
        cwd=CHECKOUT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )
    out, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()[-3000:]
    recorded = json.loads(out.decode().splitlines()[-1]) if kind == "recording" else []
    return from_strace(told.read_text().splitlines(), str(data)), [tuple(event) for event in recorded]


def by_place(events: list[Event]) -> dict[str, list[Event]]:
    """What happened to each path, in order, with what a process draws at random or by the clock made equal."""
    places: dict[str, list[Event]] = defaultdict(list)
    for event in events:
        places[event[1]].append((event[0], *event[2:]))
    return places


async def test_the_recording_misses_no_call_and_invents_none(tmp_path: Path) -> None:
    """Call for call, in one order over all files and threads."""
    seen, recorded = await traced(tmp_path / "recording", "recording")
    assert joined(seen) == recorded
    kinds = {event[0] for event in seen}
    assert kinds >= {"made", "created", "wrote", "synced", "renamed", "exchanged", "linked", "unlinked",
                     "synced-directory"}, kinds
    # With the real file system alone, each file is treated in the same way.
    plain, _ = await traced(tmp_path / "plain", "plain")
    assert sorted(kinds_of(plain)) == sorted(kinds_of(seen))


def kinds_of(events: list[Event]) -> list[tuple[str, tuple[str, ...]]]:
    """What happened to each path in order, without sizes; random parts of names are left out."""
    ways = []
    for place, happened in by_place(events).items():
        stable = "temporary" if place.endswith(".tellback-tmp") else ""
        kinds = tuple(event[0] for event in happened)
        ways.append((stable, in_one_batch(kinds) if place.endswith(".log") else kinds))
    return ways


def in_one_batch(kinds: tuple[str, ...]) -> tuple[str, ...]:
    """How many batches of the log there are is the scheduler's: full pairs of wrote and synced count once."""
    batch = ("wrote", "synced")
    kept: list[str] = []
    for kind in kinds:
        kept.append(kind)
        if tuple(kept[-4:]) == batch * 2:
            del kept[-2:]
    return tuple(kept)


def test_a_missing_sync_is_seen_however_many_batches_there_are() -> None:
    wrote, synced = "wrote", "synced"
    assert in_one_batch((wrote, synced) * 5) == in_one_batch((wrote, synced) * 4) == (wrote, synced)
    for missing in ((wrote, wrote, synced), (wrote, synced, wrote), (wrote, synced, wrote, wrote, synced)):
        assert in_one_batch(missing) != (wrote, synced), missing
