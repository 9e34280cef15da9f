"""The latency of an ack at an everyday load, 1,000 ops a second over 100 writers, above what the disk takes. T12.

An op counts from the moment it was due. The disk's fdatasync is measured just before and after, on a preallocated
file: the faster kind, so the harder comparison.
"""

from benchmarks import disk, generator, machine
from benchmarks import server as servers
from benchmarks.scenarios import Scenario
from benchmarks.server import Server

OPS_PER_SECOND = 1000


class Pace(Scenario):
    ids = ("T12", "peers")

    def prepare(self) -> None:
        kinds = [(servers.NAIVE, "peers"), (servers.TELLBACK, "T12")]
        self._kinds = [kind for kind, id in kinds if self._plan.wants(id) and not kind.missing()]

    def run(self, repetition: int) -> None:
        for kind in self._kinds:
            with Server(kind) as server:
                before = disk.measure(machine.BUILD, 0.5, preallocated=True)
                run = generator.run(
                    server, rate=OPS_PER_SECOND, seconds=max(self._plan.seconds, 2), warmup=self._plan.warmup_s
                )
                after = disk.measure(machine.BUILD, 0.5, preallocated=True)
            self._samples.ran(kind.name, f"{OPS_PER_SECOND:,} ops/s", run)
            if kind is servers.TELLBACK:
                self._samples.add("T12", (run.p50_us - (before.p50_us + after.p50_us) / 2) / 1000, run)
