"""200 replies at once, 50 tokens a second each, three tabs each, the journal on: how old a token is when a tab has it,
what a delivery costs against a raw relay of the same bytes, and what durable appends of other chats keep meanwhile.

Tokens are 20 characters (the moment of their push); producers and tabs are 800 connections in one process on the
generator's core, whose CPU the figures do not count. While others append both generators share that core, so that the
rate that is kept is that of a server and half a generator.
"""

import itertools

from benchmarks import generator, streams
from benchmarks import server as servers
from benchmarks.scenarios import Scenario
from benchmarks.server import Server
from benchmarks.streams import StreamsRun

LOAD = {"chats": 200, "tabs": 3, "rate": 50}
APPENDS = {"chats": 100, "subscribers": 2, "chat_prefix": "character:Others/"}
SETTLE_S = 1.0


# Latencies at a fixed rate are those of the machine when others use it: measured again, and then not counted.
FOREIGN_MAX = 0.25
TRIES = 3
NUMBERS = itertools.count()


def _problem(one: StreamsRun) -> str | None:
    if one.missing:
        return f"{one.missing} tokens missing"
    if not one.counts:
        return f"generator {one.busy:.0%} busy"
    return f"others used {one.foreign_cpu:.0%} of a core" if one.foreign_cpu > FOREIGN_MAX else None


class Streams(Scenario):
    ids = ("gen",)

    def prepare(self) -> None:
        return

    def run(self, repetition: int) -> None:
        seconds = max(self._plan.seconds, 2.0)
        runs: dict[str, StreamsRun] = {}
        for kind in (servers.RELAY, servers.TELLBACK):
            with Server(kind) as server:
                for _ in range(TRIES):
                    runs[kind.name] = one = streams.run(
                        server,
                        seconds=seconds,
                        warmup=SETTLE_S,
                        chat_prefix=f"character:Streams {next(NUMBERS)}/",
                        **LOAD,
                    )
                    if one.foreign_cpu <= FOREIGN_MAX:
                        break
        for name, one in runs.items():
            self._tell(name, one)
            if reason := _problem(one):
                for target in ("gen p99", "gen durable", "gen cpu"):
                    self._samples.problem(target, f"{name}: {reason}")
                return
        ours, relay = runs[servers.TELLBACK.name], runs[servers.RELAY.name]
        self._samples.add("gen p99", ours.p99_ms)
        self._samples.add("gen durable", ours.durable_p99_ms)
        self._samples.add("gen cpu", ours.cpu_us_per_delivery / relay.cpu_us_per_delivery)
        self._appends_meanwhile(seconds)

    def _tell(self, name: str, one: StreamsRun) -> None:
        figures = self._samples.figures
        figures[f"replies: CPU per delivered token, {name}, us"].append(one.cpu_us_per_delivery)
        figures[f"replies: push to tab p50, {name}, ms"].append(one.p50_ms)
        figures[f"replies: push to tab p99, {name}, ms"].append(one.p99_ms)
        figures[f"replies: push to tab longest, {name}, ms"].append(one.max_ms)
        figures[f"replies: tokens a frame, {name}"].append(one.delivered / max(one.frames, 1))
        print(
            f"    {name:30} {one.delivered / one.seconds:>9,.0f} tokens/s  {one.cpu_us_per_delivery:>6.1f} us CPU  "
            f"p99 {one.p99_ms:.1f} ms  durable p99 {one.durable_p99_ms:.0f} ms  generator {one.busy:.0%}  "
            f"foreign {one.foreign_cpu:.0%}",
            flush=True,
        )

    def _appends_meanwhile(self, seconds: float) -> None:
        for _ in range(TRIES):
            with Server(servers.TELLBACK) as server:
                alone = generator.run(server, seconds=seconds, warmup=0.5, **APPENDS)
                load = streams.start(server, seconds=2 * seconds + 4, warmup=0.5, **LOAD)
                try:
                    streams.await_streaming(load)
                    meanwhile = generator.run(server, quiet=False, seconds=seconds, warmup=0.5, **APPENDS)
                    streamed = streams.finish(load)
                finally:
                    load.kill()
            # To one generator the other is foreign.
            foreign = max(alone.foreign_cpu, meanwhile.foreign_cpu - streamed.busy)
            if foreign <= FOREIGN_MAX:
                break
        self._samples.ran(servers.TELLBACK.name, "w1, nothing else", alone)
        self._samples.ran(servers.TELLBACK.name, "w1 beside 200 replies", meanwhile)
        self._samples.figures["replies: push to tab p99 beside appends at w1, ms"].append(streamed.p99_ms)
        if foreign > FOREIGN_MAX:
            self._samples.problem("gen appends", f"others used {foreign:.0%} of a core")
        else:
            self._samples.add("gen appends", meanwhile.rate / alone.rate, alone, meanwhile)
