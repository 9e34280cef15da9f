"""Appends against ShareDB in memory, whose cost grows with the document: 10 chats x (1 writer + 2 subscribers), w1. T3.

Every server is fresh. The chats have 0, 1,000 or 10,000 messages before the first op, and few are added: the window
is so many ops, and for ShareDB, which gets through some 20 a second at the end, fewer of them.
"""

from benchmarks import generator
from benchmarks import server as servers
from benchmarks.chats import Filler
from benchmarks.generator import Run
from benchmarks.scenarios import Scenario
from benchmarks.server import Server

CHATS, SUBSCRIBERS = 10, 2
OPS = {0: 1000, 1_000: 400, 10_000: 50}  # Of ShareDB, by the size of the chats.
OURS_OPS, WARMUP_OPS = 2000, 20
PREFIX = "character:Grown/"


class AgainstShareDB(Scenario):
    ids = ("T3", "peers")

    def prepare(self) -> None:
        self._ours = self._plan.wants("T3") and not servers.TELLBACK.missing()
        self._theirs = servers.sharedb(CHATS, 0).missing() is None
        if not self._theirs:
            for size in OPS:
                self._samples.problem(f"T3 {size}", str(servers.sharedb(CHATS, 0).missing()))

    def run(self, repetition: int) -> None:
        for size in OPS if self._theirs else ():
            theirs = self._run_theirs(size)
            if self._ours:
                ours = self._run_ours(size)
                self._samples.add(f"T3 {size}", ours.rate / theirs.rate, ours, theirs)

    def _run_theirs(self, size: int) -> Run:
        with Server(servers.sharedb(CHATS, size)) as server:
            run = generator.run(
                server,
                chats=CHATS,
                subscribers=SUBSCRIBERS,
                ops=OPS[size],
                warmup_ops=WARMUP_OPS,
                existing=size,
                warmup=0,
            )
        self._samples.ran(server.kind.name, f"10 chats of {size:,}", run)
        return run

    def _run_ours(self, size: int) -> Run:
        with Server(servers.TELLBACK) as server:
            if size:
                with Filler(server) as filler:
                    for k in range(CHATS):
                        filler.fill(f"{PREFIX}{k}", size)
                server.settle()
            run = generator.run(
                server,
                chats=CHATS,
                subscribers=SUBSCRIBERS,
                ops=OURS_OPS,
                warmup_ops=10 * WARMUP_OPS,
                chat_prefix=PREFIX,
            )
        self._samples.ran(server.kind.name, f"10 chats of {size:,}", run)
        return run
