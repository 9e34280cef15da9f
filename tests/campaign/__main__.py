"""The campaign: crash states of the reference workload against the real start of the whole server.

    python -m tests.campaign FOLDER [--states 100000] [--second 20000] [--seeds 2] [--jobs 2]
    python -m tests.campaign --replay FOLDER/violation-1-strict-4711.json

FOLDER keeps the recorded days, how far each job came, and every violation; the same command goes on where it ended.
The states of each seed are taken evenly from all that the two disks (strict, journaled) may leave.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
import multiprocessing
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from queue import Empty
from typing import Annotated, Any

import structlog
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tests.campaign.states import Judge, Taken, Violation, states_of
from tests.campaign.workload import record
from tests.support.crash_states import NumberedDisk, StrictDisk
from tests.support.journaled_states import JournaledDisk

PROFILES: dict[str, type[StrictDisk]] = {disk.profile: disk for disk in (StrictDisk, JournaledDisk)}
THOROUGH_EVERY = 20
CUTS = 10
"""How often one start is cut."""
VIOLATIONS_MAX = 20
"""That many a job are kept; the others are counted."""
SAVE_EVERY = 200
console = Console()


def quiet() -> None:
    """A start says what it found; here it does so a hundred thousand times."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """`quiet` for as long as it takes."""
    before, level = structlog.get_config(), logging.getLogger("asyncio").level
    quiet()
    try:
        yield
    finally:
        structlog.configure(**before)
        logging.getLogger("asyncio").setLevel(level)


def taken_at(folder: Path, seed: int) -> Taken:
    """The recorded day of a seed, recorded now when it is not there."""
    path = folder / f"day-{seed}.pickle"
    if not path.exists():
        day = Taken.of(asyncio.run(record(seed)), seed)
        path.write_bytes(pickle.dumps(day))
    taken: Taken = pickle.loads(path.read_bytes())
    return taken


def counted(folder: Path, taken: Taken) -> dict[str, int]:
    """How many states there are, by disk."""
    path = folder / f"counts-{taken.seed}.json"
    if not path.exists():
        counts = {name: sum(1 for _ in states_of(taken, disk)) for name, disk in PROFILES.items()}
        path.write_text(json.dumps(counts))
    found: dict[str, int] = json.loads(path.read_text())
    return found


def chosen(taken: Taken, profile: str, total: int, wanted: int) -> Iterator[tuple[int, int, int, NumberedDisk]]:
    """(how many were chosen before, number, calls, disk) of `wanted` of all states, evenly."""
    at = 0
    for number, done, disk in states_of(taken, PROFILES[profile]):
        if (number + 1) * wanted // total > at:
            yield at, number, done, disk
            at += 1


def work(folder: Path, seeds: int, states: int, second: int, job: int, jobs: int, tell: Any) -> None:
    """One job's share of all states."""
    path = folder / f"job-{job}-of-{jobs}.json"
    state: dict[str, Any] = {"through": {}, "states": 0, "second": 0, "violations": 0, "seconds": 0.0}
    if path.exists():
        state = json.loads(path.read_text())
    began_s, before_s = time.monotonic(), state["seconds"]
    tell.put((state["states"], state["second"]))
    every = max(1, states * CUTS // second) if second else 0
    for seed in range(1, seeds + 1):
        taken = taken_at(folder, seed)
        judge, counts = Judge(taken), counted(folder, taken)
        for profile, total in counts.items():
            wanted = min(total, -(-states * total // (seeds * sum(counts.values()))))
            key = f"{seed}-{profile}"
            for at, number, done, disk in chosen(taken, profile, total, wanted):
                if at % jobs != job or at <= state["through"].get(key, -1):
                    continue
                cuts = 0
                is_cut = every and at // jobs % every == 0
                try:
                    # A loop of its own: the timers of servers that were abandoned go with it.
                    asyncio.run(judge.first(done, disk, thorough=at // jobs % THOROUGH_EVERY == 0))
                    if is_cut:
                        cuts = asyncio.run(judge.second(done, disk, CUTS, number, PROFILES[profile]))
                except Violation as violation:
                    if state["violations"] < VIOLATIONS_MAX:
                        keep(folder, taken, profile, number, done, disk, str(violation))
                    state["violations"] += 1
                state["states"] += 1
                state["second"] += cuts
                state["through"][key] = at
                tell.put((1, cuts))
                if state["states"] % SAVE_EVERY == 0:
                    state["seconds"] = before_s + time.monotonic() - began_s
                    save(path, state)
    state["seconds"] = before_s + time.monotonic() - began_s
    save(path, state)


def save(path: Path, state: dict[str, Any]) -> None:
    """How far a job came."""
    aside = path.with_suffix(".new")
    aside.write_text(json.dumps(state))
    aside.replace(path)


def keep(folder: Path, taken: Taken, profile: str, number: int, done: int, disk: NumberedDisk, sentence: str) -> None:
    """A violation, with everything that `--replay` needs."""
    told = max(Judge(taken).told[done], 0)
    path = folder / f"violation-{taken.seed}-{profile}-{number}.json"
    path.write_text(json.dumps({
        "violation": sentence, "seed": taken.seed, "profile": profile, "number": number, "calls": done,
        "last_calls": [repr(call)[:300] for call in taken.trace[max(0, done - 10) : done]],
        "steps": taken.steps[told : told + 2], "worlds": taken.worlds[told : told + 2],
        "disk": {name: None if data is None else base64.b85encode(data).decode() for name, data in disk.items()},
        "files": disk.files,
    }, indent=1))


def replay(path: Path) -> str:
    """Judges a kept state again; the violation, or nothing."""
    kept = json.loads(path.read_text())
    disk = NumberedDisk()
    disk.update({name: None if data is None else base64.b85decode(data) for name, data in kept["disk"].items()})
    disk.files = kept["files"]
    judge = Judge(Taken(kept["seed"], [], {}, {}, kept["worlds"], kept["steps"]))
    try:
        asyncio.run(judge.first(0, disk, thorough=True))
        asyncio.run(judge.second(0, disk, CUTS, kept["number"], PROFILES[kept["profile"]]))
    except Violation as violation:
        return str(violation)
    return ""


def job_main(folder: Path, seeds: int, states: int, second: int, job: int, jobs: int, tell: Any) -> None:
    """A job's process."""
    quiet()
    work(folder, seeds, states, second, job, jobs, tell)


def main(
    folder: Annotated[Path | None, typer.Argument(help="Where progress and violations are kept")] = None,
    states: Annotated[int, typer.Option(help="Crash states")] = 100_000,
    second: Annotated[int, typer.Option(help="Crash states of starts that are cut themselves")] = 20_000,
    seeds: Annotated[int, typer.Option(help="Workloads")] = 2,
    jobs: Annotated[int, typer.Option(help="Processes")] = os.cpu_count() or 1,
    again: Annotated[Path | None, typer.Option("--replay", help="A violation that was kept")] = None,
) -> None:
    """Every disk that a power cut may leave, against the real start of the whole server."""
    quiet()
    if again is not None:
        sentence = replay(again)
        console.print(sentence or "No violation.")
        raise typer.Exit(1 if sentence else 0)
    if folder is None:
        raise typer.BadParameter("Give a folder for progress and violations.")
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(1, seeds + 1):
        counted(folder, taken_at(folder, seed))
    tell: Any = multiprocessing.Queue()
    processes = [
        multiprocessing.Process(target=job_main, args=(folder, seeds, states, second, job, jobs, tell))
        for job in range(jobs)
    ]
    for process in processes:
        process.start()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
               TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        bars = progress.add_task("states", total=states), progress.add_task("cut starts", total=second)
        while any(process.is_alive() for process in processes) or not tell.empty():
            try:
                firsts, seconds = tell.get(timeout=0.5)
            except Empty:
                continue
            progress.advance(bars[0], firsts)
            progress.advance(bars[1], seconds)
    raise typer.Exit(summary(folder, jobs))


def summary(folder: Path, jobs: int) -> int:
    """What came out, for people and as JSON. 1 when a promise was broken or a job did not end."""
    found = [json.loads((folder / f"job-{job}-of-{jobs}.json").read_text()) for job in range(jobs)]
    git = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    total = {
        "states": sum(job["states"] for job in found), "second": sum(job["second"] for job in found),
        "violations": sum(job["violations"] for job in found), "seconds": round(max(job["seconds"] for job in found)),
        "commit": commit, "python": sys.version.split()[0],
        "counts": {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("counts-*.json"))},
    }
    (folder / "summary.json").write_text(json.dumps(total, indent=1) + "\n")
    console.print_json(data=total)
    return 1 if total["violations"] else 0


if __name__ == "__main__":
    typer.run(main)
