"""The checker from the command line.

    python -m tests.checker --minutes 10 --seed 1       runs one after the other, each with the next seed
    python -m tests.checker --runs 20 --keep artefacts   so many
    python -m tests.checker --replay artefacts/run-7-sound          the verdict over what a failed run left
    python -m tests.checker --replay artefacts/run-7-sound --again  the same plan once more, on a new server
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import tempfile
import time
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from tests.checker.campaign import Plan, hold, judged
from tests.checker.invariants import Violation
from tests.checker.plans import plan_of


def main() -> int:
    """0 when every promise was kept, 1 when one was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.checker", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=0.0, help="how long; each run takes a few seconds")
    parser.add_argument("--runs", type=int, default=1, help="how many, where no minutes are given")
    parser.add_argument("--seed", type=int, default=1, help="of the first run")
    parser.add_argument("--planted", help="plant this bug")
    parser.add_argument("--keep", type=Path, default=Path("checker-artefacts"), help="where failed runs are kept")
    parser.add_argument("--replay", type=Path, help="a kept run: judge it again")
    parser.add_argument("--again", action="store_true", help="with --replay: run its plan again")
    given = parser.parse_args()
    console = Console()
    if given.replay is not None:
        if given.again:
            plan = msgspec.json.decode((given.replay / "plan.json").read_bytes(), type=Plan)
            found = one(plan, given.keep)
        else:
            found = judged(given.replay)
        show(console, found)
        return 1 if found else 0
    return many(console, given)


def one(plan: Plan, keep: Path) -> list[Violation]:
    """A run in a folder that goes when it is over."""
    folder = Path(tempfile.mkdtemp(prefix="tellback-checker-"))
    try:
        return asyncio.run(hold(plan, folder, keep))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def many(console: Console, given: argparse.Namespace) -> int:
    """Runs until the time is over."""
    started_s = time.monotonic()
    broken, done, seed = 0, 0, given.seed
    with Progress(console=console, disable=not sys.stdout.isatty()) as progress:
        task = progress.add_task("runs", total=given.minutes * 60 or given.runs)
        while (time.monotonic() - started_s < given.minutes * 60) if given.minutes else done < given.runs:
            found = one(plan_of(seed, given.planted), given.keep)
            if found:
                broken += 1
                console.print(f"seed {seed}:")
                show(console, found)
            seed, done = seed + 1, done + 1
            progress.update(task, completed=time.monotonic() - started_s if given.minutes else done)
    took_s = time.monotonic() - started_s
    console.print(f"{done} runs in {took_s:.0f} s, {broken} broke a promise; seeds {given.seed} to {seed - 1}")
    return 1 if broken else 0


def show(console: Console, found: list[Violation]) -> None:
    """What was broken."""
    if not found:
        console.print("every promise was kept")
        return
    table = Table("invariant", "what")
    for violation in found:
        table.add_row(violation.invariant, violation.text[:2000])
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
