"""The memory of 2,000 connections that joined one of four chats and then say nothing. T14.

The first 200 are not counted: they pay for what the server and its allocator get once.
"""

from benchmarks import server as servers
from benchmarks.generator import IdleConnections
from benchmarks.scenarios import Scenario
from benchmarks.server import Server

WARM, COUNTED, CHATS = 200, 2000, 4


class Memory(Scenario):
    ids = ("T14", "peers")

    def prepare(self) -> None:
        kinds = [(servers.NAIVE, "peers"), (servers.TELLBACK, "T14")]
        self._kinds = [kind for kind, id in kinds if self._plan.wants(id) and not kind.missing()]

    def run(self, repetition: int) -> None:
        for kind in self._kinds:
            with Server(kind) as server:
                idle = IdleConnections(server, WARM + COUNTED, WARM, CHATS)
                before = server.rss_bytes()
                idle.join_rest()
                each_kib = (server.rss_bytes() - before) / COUNTED / 1024
                idle.close()
            print(f"    {kind.name:32} {COUNTED:,} idle connections    {each_kib:.1f} KiB each", flush=True)
            self._samples.figures[f"memory per idle connection, {kind.name}, KiB"].append(each_kib)
            if kind is servers.TELLBACK:
                self._samples.add("T14", each_kib)
