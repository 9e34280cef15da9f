"""`python -m benchmarks [targets...]`: run the scenarios that measure them, round-robin, and write the results."""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from websockets.exceptions import WebSocketException

from benchmarks import disk, machine, results
from benchmarks import server as servers
from benchmarks.chats import FillError
from benchmarks.generator import GeneratorError
from benchmarks.samples import Samples
from benchmarks.scenarios import Plan, Scenario
from benchmarks.scenarios.checks import Checks
from benchmarks.scenarios.fanout import Fanout
from benchmarks.scenarios.growth import Growth
from benchmarks.scenarios.lag import Lag
from benchmarks.scenarios.lists import Lists
from benchmarks.scenarios.memory import Memory
from benchmarks.scenarios.pace import Pace
from benchmarks.scenarios.sharedb import AgainstShareDB
from benchmarks.scenarios.streams import Streams
from benchmarks.scenarios.tail import Tail
from benchmarks.scenarios.work import Work
from benchmarks.server import ServerError
from benchmarks.targets import IDS, TARGETS

SCENARIOS: tuple[type[Scenario], ...] = (
    Work, Pace, Fanout, Memory, Growth, Tail, Lag, Lists, Checks, Streams, AgainstShareDB,
)
OURS = (ServerError, GeneratorError, FillError)
RESULTS = Path(__file__).with_name("RESULTS.md")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("targets", nargs="*", help=f"some of {', '.join(IDS)}, or peers; all when none is named")
    parser.add_argument("--quick", action="store_true", help="two repetitions of half a second, to see that it works")
    parser.add_argument("--repetitions", type=int, default=None)
    parser.add_argument("--seconds", type=float, default=None, help="length of a measured window")
    parser.add_argument(
        "--output", type=Path, default=None, help="where the page goes (default: RESULTS.md when all is measured)"
    )
    return parser.parse_args()


def _plan(arguments: argparse.Namespace) -> Plan:
    named = frozenset(arguments.targets)
    if unknown := named - {*IDS, "peers"}:
        sys.exit(f"unknown target: {', '.join(sorted(unknown))}; there are {', '.join(IDS)} and peers")
    repetitions = arguments.repetitions or (2 if arguments.quick else 5)
    seconds = arguments.seconds or (0.5 if arguments.quick else 2.0)
    return Plan(repetitions, seconds, 0.2 if arguments.quick else 0.5, named or frozenset({*IDS, "peers"}))


class Session:
    """The scenarios that are asked for. One that fails is left out from then on, and the results say so."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.samples = Samples()

    def measure(self) -> None:
        if self.plan.wants("T4"):
            self.samples.failures.append("T4: there is no Hocuspocus peer yet")
        for kind in (servers.TELLBACK, servers.SOCKETIO, servers.FULL_SAVE, servers.sharedb(0, 0)):
            if reason := kind.missing():
                self.samples.failures.append(f"{kind.name}: {reason}")
        chosen = [factory(self.plan, self.samples) for factory in SCENARIOS if self.plan.wants(*factory.ids)]
        try:
            live = [scenario for scenario in chosen if self._go_on(scenario, scenario.prepare)]
            for repetition in range(self.plan.repetitions):
                print(f"repetition {repetition + 1} of {self.plan.repetitions}", flush=True)
                self._measure_disk()
                live = [scenario for scenario in live if self._go_on(scenario, partial(scenario.run, repetition))]
        finally:
            for scenario in chosen:
                scenario.close()

    def _go_on(self, scenario: Scenario, step: Callable[[], None]) -> bool:
        try:
            step()
        except (*OURS, OSError, AssertionError, WebSocketException, subprocess.SubprocessError) as error:
            self.samples.failed(f"scenario {type(scenario).__name__.lower()}", error)
            return False
        return True

    def _measure_disk(self) -> None:
        for name, preallocated in (("growing", False), ("preallocated", True)):
            syncs = disk.measure(machine.BUILD, min(self.plan.seconds, 1.0), preallocated=preallocated)
            self.samples.syncs[name].append(syncs)
            took = f"p50 {syncs.p50_us:.0f} us, p99 {syncs.p99_us:.0f} us"
            print(f"    fdatasync, {name} file: {took}, {syncs.rate:,.0f}/s", flush=True)


def main() -> None:
    arguments = _parse()
    plan = _plan(arguments)
    machine.BUILD.mkdir(parents=True, exist_ok=True)
    os.sched_setaffinity(0, {machine.GENERATOR_CORE})
    session = Session(plan)
    try:
        session.measure()
    finally:
        servers.clean()
    page = results.page(plan, session.samples)
    print("\n" + page)
    everything = plan.wanted >= {target.id for target in TARGETS}
    output = arguments.output or (RESULTS if everything and not arguments.quick else None)
    if output:
        output.write_text(page)
        print(f"written to {output}")


if __name__ == "__main__":
    main()
