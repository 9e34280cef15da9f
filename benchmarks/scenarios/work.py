"""The work: 100 chats x (1 writer + 2 subscribers), 300-byte messages, at w1 and w16. T1, T2, T5, T9, T10, T16.

Each run has a fresh server and an empty folder, so that no run pays for what an earlier one left.
"""

from benchmarks import chats, generator
from benchmarks import server as servers
from benchmarks.generator import GeneratorError, Run
from benchmarks.scenarios import Scenario
from benchmarks.server import Kind, Server, ServerError

WINDOWS = (1, 16)
FOREIGN_MAX = 0.25  # Cores. Above it somebody else is running on this machine.
RECORDS, BATCHES = "tellback_log_records_total", "tellback_log_batches_total"


class Work(Scenario):
    ids = ("T1", "T2", "T5", "T9", "T10", "T16", "peers")

    def prepare(self) -> None:
        wanted: list[tuple[Kind, bool]] = [
            (servers.ECHO, self._plan.wants("T1", "T2", "peers")),
            (servers.NAIVE, self._plan.wants("T5", "peers")),
            (servers.SOCKETIO, self._plan.wants("peers")),
            (servers.TELLBACK, self._plan.wants("T1", "T2", "T5", "T9", "T10", "T16")),
            (servers.TELLBACK_UNSAFE, self._plan.wants("T9")),
        ]
        self._kinds = [kind for kind, needed in wanted if needed and not kind.missing()]
        if servers.TELLBACK_UNSAFE in self._kinds and (reason := chats.unsafe_is_refused()):
            self._kinds.remove(servers.TELLBACK_UNSAFE)
            for key in ("T9 w1", "T9 w16"):
                self._samples.problem(key, reason)

    def run(self, repetition: int) -> None:
        windows = [window for window in WINDOWS if window == 1 or self._plan.wanted != {"T2"}]
        for window in windows:
            runs: dict[str, Run] = {}
            for kind in list(self._kinds):
                try:
                    runs[kind.name] = self._run(kind, window)
                except (GeneratorError, ServerError) as error:
                    self._samples.failed(f"{kind.name}, the work at w{window}", error)
                    self._kinds.remove(kind)
            self._compare(window, runs)

    def _run(self, kind: Kind, window: int) -> Run:
        """One run. It is discarded and done again, up to twice, when other programs had the cores meanwhile.

        The rule is the same for every server and looks at nothing the server did; the results say how many were
        discarded. The third run counts whatever happened.
        """
        work = f"the work, w{window}"
        for attempt in range(3):
            run, records_per_sync = self._run_once(kind, window)
            if run.foreign_cpu <= FOREIGN_MAX or attempt == 2:
                break
            self._samples.discard(kind.name, work, run)
        self._samples.ran(kind.name, work, run)
        if records_per_sync is not None:
            self._samples.add("T10", records_per_sync)
        return run

    def _run_once(self, kind: Kind, window: int) -> tuple[Run, float | None]:
        """A run, and its records per fdatasync when that is asked for."""
        with Server(kind) as server:
            counted = kind is servers.TELLBACK and window == max(WINDOWS) and self._plan.wants("T10")
            before = server.metrics() if counted else {}
            run = generator.run(
                server,
                chats=100,
                subscribers=0 if kind.wire == "echo" else 2,
                window=window,
                seconds=self._plan.seconds,
                warmup=self._plan.warmup_s,
            )
            after = server.metrics() if counted else {}
        return run, self._records_per_sync(before, after) if counted else None

    def _records_per_sync(self, before: dict[str, float], after: dict[str, float]) -> float | None:
        if RECORDS not in after or BATCHES not in after:
            self._samples.problem("T10", f"/metrics has no {RECORDS} and {BATCHES}")
            return None
        batches = after[BATCHES] - before.get(BATCHES, 0)
        return (after[RECORDS] - before.get(RECORDS, 0)) / max(batches, 1)

    def _compare(self, window: int, runs: dict[str, Run]) -> None:
        add = self._samples.add
        us, echo = runs.get(servers.TELLBACK.name), runs.get(servers.ECHO.name)
        naive, unsafe = runs.get(servers.NAIVE.name), runs.get(servers.TELLBACK_UNSAFE.name)
        if us is None:
            return
        for run in (us, naive):
            # A server that acknowledges and tells nobody would look fast.
            if run and run.deliveries < 0.95 * 2 * run.ops:
                for key in ("T1", "T2 rate", "T2 cpu", f"T5 w{window}", f"T9 w{window}", "T16"):
                    self._samples.problem(key, f"{run.deliveries:,} deliveries of {run.ops:,} ops at w{window}")
                return
        if echo and window == 16:
            add("T1", us.rate / echo.rate, us, echo)
        if echo and window == 1:
            add("T2 rate", us.rate / echo.rate, us, echo)
            add("T2 cpu", us.cpu_us_per_op / echo.cpu_us_per_op)
        if naive:
            add(f"T5 w{window}", us.rate / naive.rate, us, naive)
        if unsafe:
            add(f"T9 w{window}", us.rate / unsafe.rate, us, unsafe)
        if window == 1:
            # At w1 little is under way at the ends of the window, so what arrived in it belongs to its acks.
            add("T16", us.bytes_in / us.ops - 2 * us.message_bytes)
