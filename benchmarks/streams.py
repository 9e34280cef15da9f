"""The load of replies that are being written: producers that push tokens at a fixed rate, and tabs that hear them.

One process with uvloop and bare protocols, as python_generator.py. A token is the moment at which it was pushed, in 20
digits, so that a tab knows its age; producers push independently, spread over the time between two tokens.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, fields
from typing import Any

import uvloop

from benchmarks import machine
from benchmarks.generator import BUSY_MAX, GeneratorError
from benchmarks.python_generator import Connection, frame, machine_busy_ns, process_cpu_ns
from benchmarks.server import Server

TOKEN = 20
TICK_S = 0.001
QUANTILES = (("p50", 0.5), ("p99", 0.99), ("max", 1.0))


@dataclass(frozen=True)
class StreamsRun:
    """What one run saw in its measured window."""

    pushed: int  # Tokens.
    delivered: int  # Tokens, to all tabs together.
    frames: int  # Deltas that carried them.
    seconds: float
    server_cpu_s: float
    busy: float  # Share of the window that the generator ran.
    foreign_cpu: float  # Cores that neither server nor generator used, but somebody did.
    p50_ms: float  # From push to tab.
    p99_ms: float
    max_ms: float
    durable_p99_ms: float  # From the push of the oldest token to the frame that told it durable; 0 without such frames.
    behind_ms: float  # How late the generator itself pushed, at most.
    missing: int  # Tokens that did not arrive although the tabs waited.

    @property
    def counts(self) -> bool:
        """Whether the latencies are the server's and not the generator's."""
        return self.busy <= BUSY_MAX

    @property
    def cpu_us_per_delivery(self) -> float:
        return self.server_cpu_s * 1e6 / max(self.delivered, 1)


def start(server: Server, **options: Any) -> "subprocess.Popen[str]":
    """A run beside another one; its answer comes from `finish`."""
    arguments = [sys.executable, "-m", "benchmarks.streams", "--port", str(server.port), "--path", server.path]
    arguments += ["--server-pid", str(server.pid)]
    for name, value in options.items():
        arguments += ["--" + name.replace("_", "-"), str(value)]
    return subprocess.Popen(
        arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=machine.ROOT,
        preexec_fn=machine.on_generator_core,
    )


def await_streaming(process: "subprocess.Popen[str]") -> None:
    """Until the tokens come."""
    assert process.stdout is not None
    if not process.stdout.readline().startswith("streaming"):
        finish(process)


def finish(process: "subprocess.Popen[str]") -> StreamsRun:
    out, errors = process.communicate(timeout=300)
    if process.returncode:
        raise GeneratorError(errors.strip()[-700:])
    values: dict[str, Any] = json.loads(out.splitlines()[-1])
    return StreamsRun(**{field.name: values[field.name] for field in fields(StreamsRun)})


def run(server: Server, **options: Any) -> StreamsRun:
    machine.await_quiet()
    return finish(start(server, **options))


class Tab(Connection):
    """Hears the tokens of one chat."""

    heard = 0

    def _text_frame(self, data: bytes, start: int, length: int) -> int:
        if data[start + 9] != 103:  # g: generation-...
            return super()._text_frame(data, start, length)
        if data[start + 20 : start + 22] == b"de":
            self._delta(data, start, start + length)
        return 0

    def _delta(self, data: bytes, start: int, end: int) -> None:
        now, load = time.monotonic_ns(), self._load
        at = data.index(b'"text":"', start, end) + 8
        last = data.index(b'"', at, end)
        load.frames += 1
        for token in range(at, last, TOKEN):
            load.ages_ns.append(now - int(data[token : token + TOKEN]))
        self.heard += (last - at) // TOKEN

    @property
    def _load(self) -> "Load":
        load = self._run
        assert isinstance(load, Load)
        return load


class Producer(Tab):
    """Begins a generation and pushes its tokens."""

    def begin(self) -> None:
        self.begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.pushed_ns: list[int] = []
        self._durable = 0
        chat = f'"chat":"{self._name}","generation":"g"'
        self._head = f'{{"type":"generation-delta",{chat},"offset":'.encode()
        reply = '"reply":{"name":"Alice","is_user":false}'
        self.transport.write(frame(f'{{"type":"generation-start","id":2,"op":1,"base":"*",{chat},{reply}}}'.encode()))

    def push(self) -> None:
        now = time.monotonic_ns()
        self.transport.write(frame(b'%b%d,"text":"%020d"}' % (self._head, TOKEN * len(self.pushed_ns), now)))
        self.pushed_ns.append(now)

    def _text_frame(self, data: bytes, start: int, length: int) -> int:
        if data[start + 9] == 97:  # a: ack.
            self.begun.set_result(None)
            return 0
        return super()._text_frame(data, start, length)

    def _delta(self, data: bytes, start: int, end: int) -> None:
        at = data.index(b'"durable":', start, end) + 10
        durable = int(data[at : end - 1].partition(b",")[0]) // TOKEN
        if durable > self._durable:
            self._load.durable_ns.append(time.monotonic_ns() - self.pushed_ns[self._durable])
            self._durable = durable


class Load:
    """All of them. The fields that `Connection` looks at are as those of the other generator."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.message, self.patch_ids, self.over = "", [], False
        self.seen = argparse.Namespace(bytes_in=0, bytes_out=0, behind=0, others=0, deliveries=0)
        self.frames = 0
        self.ages_ns: list[int] = []
        self.durable_ns: list[int] = []
        self.behind_ns = 0
        self.producers: list[Producer] = []
        self.tabs: list[Tab] = []

    def fail(self, reason: str) -> None:
        print(f"streams: {reason}", file=sys.stderr, flush=True)
        os._exit(1)

    async def _join(self, chat: int, kind: type[Tab]) -> Tab:
        loop = asyncio.get_running_loop()
        _, tab = await loop.create_connection(
            lambda: kind(self, chat, writer=False),
            self.options.host,
            self.options.port,  # type: ignore[arg-type]
        )
        async with asyncio.timeout(30):
            await tab.joined
        return tab

    async def _push_all(self) -> None:
        """Every producer at its own places in time."""
        pause_ns = int(1e9 / self.options.rate)
        began, count = time.monotonic_ns(), len(self.producers)
        due = 0
        while not self.over:
            wanted = (time.monotonic_ns() - began) * count // pause_ns
            if wanted > due:
                self.behind_ns = max(self.behind_ns, (wanted - due) * pause_ns // count)
            while due < wanted:
                self.producers[due % count].push()
                due += 1
            await asyncio.sleep(TICK_S)

    async def work(self) -> str:
        options = self.options
        for chat in range(options.chats):
            producer = await self._join(chat, Producer)
            assert isinstance(producer, Producer)
            self.producers.append(producer)
            self.tabs += [await self._join(chat, Tab) for _ in range(options.tabs)]
        for producer in self.producers:
            producer.begin()
        await asyncio.gather(*(producer.begun for producer in self.producers))
        print("streaming", flush=True)
        pushing = asyncio.create_task(self._push_all())
        await asyncio.sleep(options.warmup)
        self.ages_ns, self.durable_ns, self.frames, self.behind_ns = [], [], 0, 0
        server, busy, own = process_cpu_ns(options.server_pid), machine_busy_ns(), time.process_time_ns()
        from_ns, pushed = time.monotonic_ns(), sum(len(producer.pushed_ns) for producer in self.producers)
        await asyncio.sleep(options.seconds)
        took_ns = time.monotonic_ns() - from_ns
        ages, durable, frames, behind_ns = sorted(self.ages_ns), sorted(self.durable_ns), self.frames, self.behind_ns
        pushed = sum(len(producer.pushed_ns) for producer in self.producers) - pushed
        own = time.process_time_ns() - own
        server, busy = process_cpu_ns(options.server_pid) - server, machine_busy_ns() - busy
        self.over = True
        await pushing
        wanted = options.tabs * sum(len(producer.pushed_ns) for producer in self.producers)
        for _ in range(100):
            if (missing := wanted - sum(tab.heard for tab in self.tabs)) <= 0:
                break
            await asyncio.sleep(0.05)
        return json.dumps(
            {
                "pushed": pushed,
                "delivered": len(ages),
                "frames": frames,
                "seconds": took_ns / 1e9,
                "server_cpu_s": server / 1e9,
                "busy": own / took_ns,
                "foreign_cpu": max(busy - server - own, 0) / took_ns,
                **{f"{name}_ms": ages[int(q * (len(ages) - 1))] / 1e6 if ages else 0.0 for name, q in QUANTILES},
                "durable_p99_ms": durable[int(0.99 * (len(durable) - 1))] / 1e6 if durable else 0.0,
                "behind_ms": behind_ns / 1e6,
                "missing": missing,
            }
        )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, text in {"host": "127.0.0.1", "path": "/ws", "chat-prefix": "character:Streams/"}.items():
        parser.add_argument(f"--{name}", default=text)
    for name, number in {"port": 0, "chats": 200, "tabs": 3, "server-pid": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=number)
    for name, seconds in {"rate": 50.0, "seconds": 2.0, "warmup": 0.5}.items():
        parser.add_argument(f"--{name}", type=float, default=seconds)
    parser.set_defaults(wire="tellback", create=1)
    return parser.parse_args()


async def _main() -> None:
    print(await Load(_parse()).work(), flush=True)
    os._exit(0)  # Closing some hundred transports one by one is of no use to anybody.


if __name__ == "__main__":
    uvloop.run(_main())
