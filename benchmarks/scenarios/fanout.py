"""One chat with 500 subscribers, one writer at w1: CPU per delivery against `websockets.broadcast`. T15."""

from benchmarks import generator
from benchmarks import server as servers
from benchmarks.scenarios import Scenario
from benchmarks.server import Server

SUBSCRIBERS = 500


class Fanout(Scenario):
    ids = ("T15", "peers")

    def prepare(self) -> None:
        kinds = [servers.BROADCAST, *([servers.TELLBACK] if self._plan.wants("T15") else [])]
        self._kinds = [kind for kind in kinds if not kind.missing()]

    def run(self, repetition: int) -> None:
        cost: dict[str, float] = {}
        for kind in self._kinds:
            with Server(kind) as server:
                run = generator.run(
                    server, chats=1, subscribers=SUBSCRIBERS, seconds=self._plan.seconds, warmup=self._plan.warmup_s
                )
            self._samples.ran(kind.name, f"1 writer, {SUBSCRIBERS} tabs", run)
            cost[kind.name] = run.server_cpu_s * 1e6 / max(run.deliveries, 1)
            self._samples.figures[f"CPU per delivery, {kind.name}, us"].append(cost[kind.name])
            self._samples.figures[f"deliveries a second, {kind.name}"].append(run.deliveries / run.seconds)
            if run.deliveries < 0.99 * run.ops * SUBSCRIBERS:
                self._samples.problem("T15", f"{kind.name}: {run.deliveries:,} deliveries of {run.ops:,} ops")
                return
        if servers.TELLBACK.name in cost:
            self._samples.add("T15", cost[servers.TELLBACK.name] / cost[servers.BROADCAST.name])
