"""What a change costs in a long chat. T8, T13.

T13: CPU per append and per one-op patch at 10,000 messages against 100. T8: the latency of one client against
SillyTavern's full save at 100, 1,000 and 10,000.

The chats of 10,000 are made once and grow by some hundreds over the repetitions; the smaller ones are made anew for
each.
"""

import http.client
import json
import time
from pathlib import Path
from typing import Any

from benchmarks import chats, generator, machine
from benchmarks import server as servers
from benchmarks.chats import Filled, Filler
from benchmarks.generator import Run
from benchmarks.samples import Samples, median
from benchmarks.scenarios import Plan, Scenario
from benchmarks.server import Server

SIZES = (100, 1_000, 10_000)
WRITERS = 10  # Of T13; each in a chat of its own.
OPS_PER_WRITER, WARMUP_PER_WRITER = 200, 20
ONE_CLIENT_OPS = 100
SAVES = {100: 40, 1_000: 30, 10_000: 12}  # Full saves in one repetition, by the size of the chat.


class Growth(Scenario):
    ids = ("T8", "T13", "peers")

    def __init__(self, plan: Plan, samples: Samples) -> None:
        super().__init__(plan, samples)
        self._server: Server | None = None
        self._full_save: Server | None = None

    def prepare(self) -> None:
        if self._plan.wants("T8", "peers"):
            if reason := servers.FULL_SAVE.missing():
                for target in ("append", "patch"):
                    for size in SIZES:
                        self._samples.problem(f"T8 {target} {size}", reason)
            else:
                self._full_save = Server(servers.FULL_SAVE)
        if self._plan.wants("T8", "T13") and not servers.TELLBACK.missing():
            self._server = Server(servers.TELLBACK)
            count = WRITERS if self._plan.wants("T13") else 1
            self._big = self._fill("character:Big/", SIZES[-1], count)
            self._server.settle()

    def _fill(self, prefix: str, size: int, count: int) -> list[Filled]:
        assert self._server is not None
        with Filler(self._server) as filler:
            return [filler.fill(f"{prefix}{k}", size) for k in range(count)]

    def run(self, repetition: int) -> None:
        saves = {size: self._save_ms(size) for size in SIZES} if self._full_save else {}
        if self._server is None:
            return
        if self._plan.wants("T13"):
            small = self._fill(f"character:Small {repetition}/", 100, WRITERS)
            self._server.settle(10)
            for op in ("append", "patch"):
                in_small = self._drive(f"{op}, 10 chats of 100", f"character:Small {repetition}/", small, op)
                in_big = self._drive(f"{op}, 10 chats of 10,000", "character:Big/", self._big, op)
                self._samples.add(f"T13 {op}", in_big.cpu_us_per_op / in_small.cpu_us_per_op)
        if self._plan.wants("T8"):
            for size in SIZES:
                prefix = f"character:One {repetition} of {size}/" if size < SIZES[-1] else "character:Big/"
                filled = self._fill(prefix, size, 1) if size < SIZES[-1] else self._big[:1]
                for op in ("patch", "append"):
                    run = self._drive(
                        f"{op}, one chat of {size:,}", prefix, filled, op, ONE_CLIENT_OPS, ONE_CLIENT_OPS // 5
                    )
                    if size in saves:
                        self._samples.add(f"T8 {op} {size}", saves[size] / (run.p50_us / 1000), run)

    def _drive(
        self,
        work: str,
        prefix: str,
        filled: list[Filled],
        op: str,
        ops: int = OPS_PER_WRITER,
        warmup_ops: int = WARMUP_PER_WRITER,
    ) -> Run:
        assert self._server is not None
        options: dict[str, Any] = {"chat_prefix": prefix, "chats": len(filled), "subscribers": 0, "create": 0, "op": op}
        options |= {"ops": ops * len(filled), "warmup_ops": warmup_ops * len(filled)}
        if op == "patch":
            ids = Path(machine.BUILD / "patch-ids")
            ids.write_text("".join(f"{one.middle_id}\n" for one in filled))
            options["patch_ids"] = str(ids)
        run = generator.run(self._server, **options)
        self._samples.ran(self._server.kind.name, work, run)
        return run

    def _save_ms(self, size: int) -> float:
        """p50 of saving a whole chat, from the first byte of the request to the last of the answer."""
        assert self._full_save is not None
        header = {"user_name": "User", "character_name": "Bench", "chat_metadata": {"integrity": "0198f2f4"}}
        saved = {"file_name": f"chat of {size}", "chat": [header] + [chats.message(300)] * size}
        body = json.dumps(saved, ensure_ascii=False, separators=(",", ":")).encode()
        connection = http.client.HTTPConnection("127.0.0.1", self._full_save.port)
        took: list[float] = []
        for _ in range(SAVES[size]):
            before = time.perf_counter()
            connection.request("POST", self._full_save.path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            response.read()
            took.append((time.perf_counter() - before) * 1000)
            assert response.status == 200, response.status
        connection.close()
        p50 = median(took)
        print(f"    {servers.FULL_SAVE.name:32} chat of {size:<14,} p50 {p50:.2f} ms", flush=True)
        self._samples.figures[f"full save of {size:,} messages, p50, ms"].append(p50)
        return p50

    def close(self) -> None:
        for server in (self._server, self._full_save):
            if server is not None:
                server.stop()
