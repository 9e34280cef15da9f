"""What was measured: ratios by target key, figures of each server, and what could not be measured and why."""

import statistics
from collections import defaultdict

from benchmarks.disk import Syncs
from benchmarks.generator import Run


class Samples:
    def __init__(self) -> None:
        self.values: dict[str, list[float]] = defaultdict(list)  # By target key, one per repetition.
        self.problems: dict[str, set[str]] = defaultdict(set)  # By target key: why a repetition does not count.
        self.runs: dict[tuple[str, str], list[Run]] = defaultdict(list)  # By server and kind of work.
        self.discarded: dict[tuple[str, str], int] = defaultdict(int)  # Runs done again, by the same.
        self.figures: dict[str, list[float]] = defaultdict(
            list
        )  # Other numbers worth showing, by their label with unit.
        self.failures: list[str] = []  # What was left out altogether, and why.
        self.syncs: dict[str, list[Syncs]] = defaultdict(list)  # By kind of file.

    def add(self, key: str, value: float, *used: Run) -> None:
        """One repetition's value, from the rates or latencies of `used`: not counted if one was not valid."""
        for run in used:
            if not run.counts:
                self.problem(key, f"generator {run.generator_busy:.0%} busy")
                return
            if run.behind or run.late:
                self.problem(key, f"{run.behind} tabs demoted, {run.late} ops not sent in time")
                return
        self.values[key].append(value)

    def problem(self, key: str, reason: str) -> None:
        """Why a repetition has no value; it must not have been added."""
        self.problems[key].add(reason)

    def discard(self, server: str, work: str, run: Run) -> None:
        """A run that is done again because of what else ran on the machine."""
        self.discarded[server, work] += 1
        print(f"    {server:30} {work:24} discarded: others used {run.foreign_cpu:.0%} of a core", flush=True)

    def ran(self, server: str, work: str, run: Run) -> None:
        self.runs[server, work].append(run)
        latency = f"p50 {run.p50_us / 1000:>7.2f} ms  p99 {run.p99_us / 1000:>7.2f} ms"
        busy = f"generator {run.generator_busy:>3.0%}  foreign {run.foreign_cpu:>3.0%}"
        print(
            f"    {server:30} {work:24} {run.rate:>9,.0f} /s  {run.cpu_us_per_op:>7.1f} us CPU  {latency}  {busy}"
            + ("" if run.counts else "  GENERATOR TOO BUSY"),
            flush=True,
        )

    def failed(self, what: str, error: Exception) -> None:
        """A server or scenario that is left out from now on."""
        self.failures.append(f"{what}: {(str(error) or repr(error)).splitlines()[0]}")
        print(f"    FAILED {what}: {error!r}", flush=True)


def median(values: list[float]) -> float:
    return statistics.median(values)
