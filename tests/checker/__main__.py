"""The checker from the command line.

    python -m tests.checker --minutes 10 --seed 1       runs one after the other, each with the next seed
    python -m tests.checker --runs 20 --keep artefacts   so many
    python -m tests.checker --minutes 10 --databases     a third of the runs on PostgreSQL and Valkey, which are killed
    python -m tests.checker --replay artefacts/run-7-sound          the verdict over what a failed run left
    python -m tests.checker --replay artefacts/run-7-sound --again  the same plan once more, on a new server
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from tests.checker.campaign import Plan, hold, judged
from tests.checker.invariants import Violation
from tests.checker.plans import plan_of
from tests.support.database_servers import PostgresProcess, ServerProcess, ValkeyProcess


def main() -> int:
    """0 when every promise was kept, 1 when one was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.checker", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=0.0, help="how long; each run takes a few seconds")
    parser.add_argument("--runs", type=int, default=1, help="how many, where no minutes are given")
    parser.add_argument("--seed", type=int, default=1, help="of the first run")
    parser.add_argument("--databases", action="store_true", help="with PostgreSQL and Valkey, which are killed, too")
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


def one(plan: Plan, keep: Path, databases: Sequence[ServerProcess] = ()) -> list[Violation]:
    """A run in a folder that goes when it is over."""
    folder = Path(tempfile.mkdtemp(prefix="tellback-checker-"))
    try:
        return asyncio.run(hold(plan, folder, keep, databases))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def many(console: Console, given: argparse.Namespace) -> int:
    """Runs until the time is over."""
    started_s = time.monotonic()
    broken, done, seed = 0, 0, given.seed
    what: Counter[str] = Counter()
    with contextlib.ExitStack() as stack, Progress(console=console, disable=not sys.stdout.isatty()) as progress:
        databases: list[ServerProcess] = []
        if given.databases:
            postgres, valkey = PostgresProcess(), ValkeyProcess()
            databases += [postgres, valkey]
            for database in databases:
                stack.callback(database.remove)
                database.start()
        task = progress.add_task("runs", total=given.minutes * 60 or given.runs)
        while (time.monotonic() - started_s < given.minutes * 60) if given.minutes else done < given.runs:
            urls = [postgres.url(f"run{seed}"), valkey.url(seed % 512)] if databases else []
            plan = plan_of(seed, given.planted, urls)
            found = one(plan, given.keep, databases)
            what.update(told(plan))
            if found:
                broken += 1
                console.print(f"seed {seed}:")
                show(console, found)
            seed, done = seed + 1, done + 1
            progress.update(task, completed=time.monotonic() - started_s if given.minutes else done)
    took_s = time.monotonic() - started_s
    console.print(", ".join(f"{count} {name}" for name, count in what.most_common()))
    console.print(f"{done} runs in {took_s:.0f} s, {broken} broke a promise; seeds {given.seed} to {seed - 1}")
    return 1 if broken else 0


def told(plan: Plan) -> list[str]:
    """What kind of run it was."""
    places = [url.split(":")[0] for url in (plan.store, plan.backup) if url]
    kinds = ["on " + " and ".join(places or ["plain files"])]
    if "edit" in plan.chaos:
        kinds.append("with other programs' edits")
    return kinds


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
