"""The load generator for machines without a C compiler: the same options, the same one line of JSON.

uvloop, one `asyncio.Protocol` per connection, no WebSocket library. An op is two `bytes` templates around its number;
it is masked with the key zero, which is legal, leaves the text as it is, and costs the server what any key costs. Of an
answer the header and the letter that tells its type are looked at. Measured against E it was 57 % busy at w1 and 64 %
at w16 where generator.c was 45 % and 47 %; a faster server brings it over the limit sooner. It knows neither openers
nor the wires of socketio and ShareDB.
"""

import argparse
import asyncio
import json
import os
import secrets
import sys
import time
from pathlib import Path
from typing import cast

import uvloop

UPGRADE = (
    "GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{protocol}\r\n"
)
TEXT = "She put the lantern down — slowly, as if the café were asleep — and asked what the letter had said. "
WINDOW_MAX = 64


def frame(text: bytes) -> bytes:
    """A masked text frame with the key zero."""
    length = len(text)
    if length < 126:
        return bytes((0x81, 0x80 | length, 0, 0, 0, 0)) + text
    return b"\x81\xfe" + length.to_bytes(2, "big") + bytes(4) + text


def message(size_bytes: int) -> str:
    head = '{"name":"User","is_user":true,"send_date":"2025-01-01T00:00:00.000Z","mes":"'
    room = size_bytes - len(head) - 2
    text = (TEXT * (room // len(TEXT) + 1)).encode()[:room].decode(errors="ignore")
    return head + text + "." * (room - len(text.encode())) + '"}'


class Counted:
    """What was seen since the measured window began."""

    def __init__(self) -> None:
        self.acks = self.deliveries = self.bytes_in = self.bytes_out = self.others = self.behind = self.late = 0
        self.gap_max_ns = 0
        self.last_ack_ns = time.perf_counter_ns()
        self.latencies_ns: list[int] = []


class Connection(asyncio.Protocol):
    """One WebSocket. After `joined` a writer answers every ack with the next op, unless the rate is fixed."""

    def __init__(self, run: "Generator", chat: int, *, writer: bool) -> None:
        self._run = run
        self._writer = writer
        name = f"{run.options.chat_prefix}{chat}"
        self._name = name
        append = f',"base":"*","messages":[{run.message}]}}'
        self._append = f'{{"type":"append","chat":"{name}","id":'.encode(), append.encode()
        target = run.patch_ids[chat] if run.patch_ids else ""
        patch = f'}},"message":"{target}","patch":[{{"op":"replace","path":"/mes","value":"{TEXT}'
        self._patch = f'{{"type":"patch","chat":"{name}","id":'.encode(), patch.encode()
        self._pending = b""
        self._upgraded = False
        self.op = self.acked = 0
        self._sent_ns = [0] * WINDOW_MAX
        self.joined: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's does not inherit from it.
        options = self._run.options
        protocol = "Sec-WebSocket-Protocol: tellback.v1\r\n" if options.wire == "tellback" else ""
        self.transport.write(UPGRADE.format(path=options.path, port=options.port, protocol=protocol).encode())

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._run.over:
            self._run.fail(f"a connection was closed: {exc}")

    def send_ops(self, count: int, started_ns: int) -> None:
        frames = []
        for _ in range(count):
            self.op += 1
            op = self.op
            self._sent_ns[op % WINDOW_MAX] = started_ns
            if op == 1 or self._run.options.op == "append":
                head, tail = self._append
                frames.append(frame(b'%b%d,"op":%d%b' % (head, op + 1, op, tail)))
            else:
                head, tail = self._patch
                frames.append(frame(b'%b%d,"op":%d,"base":{"op":%d%b%d"}]}' % (head, op + 1, op, op - 1, tail, op)))
        data = b"".join(frames)
        self._run.seen.bytes_out += len(data)
        self.transport.write(data)

    def data_received(self, data: bytes) -> None:
        seen = self._run.seen
        seen.bytes_in += len(data)
        if self._pending:
            data = self._pending + data
        at, end = 0, len(data)
        if not self._upgraded:
            at = data.find(b"\r\n\r\n") + 4
            if at < 4:
                self._pending = data
                return
            if data[8:12] != b" 101":
                self._run.fail(data[:at].decode(errors="replace"))
            self._upgraded = True
            self._greet()
        acks = 0
        while end - at >= 2:
            length, start = data[at + 1] & 127, at + 2
            if length == 126:
                length, start = int.from_bytes(data[at + 2 : at + 4], "big"), at + 4
            elif length == 127:
                length, start = int.from_bytes(data[at + 2 : at + 10], "big"), at + 10
            if start + length > end:
                break
            if data[at] == 0x81:
                acks += self._text_frame(data, start, length)
            elif data[at] == 0x88:
                self._run.fail(f"the server closed: {data[start : start + length]!r}")
            elif data[at] == 0x89:
                self.transport.write(bytes((0x8A, 0x80 | length, 0, 0, 0, 0)) + data[start : start + length])
            at = start + length
        self._pending = data[at:]
        if acks and self._writer:
            self._acked(acks)

    def _text_frame(self, data: bytes, start: int, length: int) -> int:
        """Returns 1 for an ack."""
        if self._run.options.wire == "echo":
            return 1
        kind = data[start + 9]
        if kind == 97:  # a: ack.
            return 1
        if kind == 105:  # i: integrity.
            self._run.seen.deliveries += 1
        elif kind == 119:  # w: welcome.
            create = "true" if self._run.options.create else "false"
            opening = f'{{"type":"open","id":1,"chat":"{self._name}","create":{create},"since":null}}'
            self.transport.write(frame(opening.encode()))
        elif kind == 111:  # o: opened.
            self.joined.set_result(None)
        elif kind == 98:  # b: behind.
            self._run.seen.behind += 1
        elif kind in b"ecgr":
            self._run.fail(f"the server said {data[start : start + min(length, 600)].decode(errors='replace')}")
        else:
            self._run.seen.others += 1
        return 0

    def _greet(self) -> None:
        if self._run.options.wire == "echo":
            self.joined.set_result(None)
        else:
            hello = {"type": "hello", "protocol": 1, "session": secrets.token_urlsafe(16), "token": None}
            self.transport.write(frame(json.dumps(hello).encode()))

    def _acked(self, acks: int) -> None:
        now, seen = time.perf_counter_ns(), self._run.seen
        for _ in range(acks):
            self.acked += 1
            seen.latencies_ns.append(now - self._sent_ns[self.acked % WINDOW_MAX])
        seen.acks += acks
        seen.gap_max_ns = max(seen.gap_max_ns, now - seen.last_ack_ns)
        seen.last_ack_ns = now
        if not self._run.over and not self._run.options.rate:
            self.send_ops(acks, now)


def process_cpu_ns(pid: int) -> int:
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir() if pid else ():
        total += int((task / "schedstat").read_text().split()[0])
    return total


def machine_busy_ns() -> int:
    user, nice, kernel, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + kernel + irq + softirq + steal) * (10**9 // os.sysconf("SC_CLK_TCK"))


class Generator:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.message = message(options.message_bytes)
        self.patch_ids = Path(options.patch_ids).read_text().split() if options.patch_ids else []
        self.seen = Counted()
        self.over = False

    def fail(self, reason: str) -> None:
        print(f"generator: {reason}", file=sys.stderr, flush=True)
        os._exit(1)

    async def _join(self, chat: int, *, writer: bool) -> Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(
            lambda: Connection(self, chat, writer=writer), self.options.host, self.options.port
        )
        async with asyncio.timeout(30):
            await connection.joined
        return connection

    async def idle(self) -> None:
        loop = asyncio.get_running_loop()
        for i in range(1, self.options.idle + 1):
            await self._join(i % self.options.chats, writer=False)
            if i in (self.options.warm, self.options.idle):
                print(f"ready {i}", flush=True)
                await loop.run_in_executor(None, sys.stdin.readline)
        self.over = True

    async def _pace(self, writers: list[Connection]) -> None:
        started, count = time.perf_counter_ns(), 0
        while not self.over:
            due = started + int(count * 1e9 / self.options.rate)
            if (wait := due - time.perf_counter_ns()) > 0:
                await asyncio.sleep(wait / 1e9)
            writer = writers[count % len(writers)]
            if writer.op - writer.acked >= WINDOW_MAX - 1:
                self.seen.late += 1
            else:
                writer.send_ops(1, due)
            count += 1

    async def _until(self, ops: int, seconds: float) -> None:
        end = time.perf_counter() + seconds
        while self.seen.acks < ops if ops else time.perf_counter() < end:
            await asyncio.sleep(0.001 if ops else max(end - time.perf_counter(), 0))
            if time.perf_counter_ns() - self.seen.last_ack_ns > 20 * 10**9:
                self.fail("no ack for 20 s")

    async def work(self) -> str:
        options = self.options
        writers = []
        for chat in range(options.chats):
            writers.append(await self._join(chat, writer=True))
            for _ in range(options.subscribers):
                await self._join(chat, writer=False)
        writers = writers[: options.senders] if options.senders >= 0 else writers
        pacing = asyncio.create_task(self._pace(writers)) if options.rate else None
        for writer in () if pacing else writers:
            writer.send_ops(options.window, time.perf_counter_ns())
        await self._until(options.warmup_ops, options.warmup)
        self.seen = Counted()
        server, machine, own = process_cpu_ns(options.server_pid), machine_busy_ns(), time.process_time_ns()
        from_ns = time.perf_counter_ns()
        await self._until(options.ops, options.seconds)
        took_ns, seen = time.perf_counter_ns() - from_ns, self.seen
        own = time.process_time_ns() - own
        server, machine = process_cpu_ns(options.server_pid) - server, machine_busy_ns() - machine
        self.over = True
        took = sorted(seen.latencies_ns) or [0]
        ops = max(seen.acks, 1)
        return json.dumps(
            {
                "ops": seen.acks,
                "seconds": took_ns / 1e9,
                "rate": ops / took_ns * 1e9,
                "deliveries": seen.deliveries,
                "bytes_in": seen.bytes_in,
                "bytes_out": seen.bytes_out,
                "server_cpu_s": server / 1e9,
                "cpu_us_per_op": server / 1e3 / ops,
                "generator_busy": own / took_ns,
                "foreign_cpu": max(machine - server - own, 0) / took_ns,
                **{f"{name}_us": took[int(q * (len(took) - 1))] / 1e3 for name, q in QUANTILES},
                "gap_max_us": max(seen.gap_max_ns, time.perf_counter_ns() - seen.last_ack_ns) / 1e3,
                "behind": seen.behind,
                "others": seen.others,
                "late": seen.late,
                "opens": 0,
                "open_bytes": 0,
                "open_ms_max": 0.0,
                "open_ms_mean": 0.0,
                "message_bytes": options.message_bytes,
            }
        )


QUANTILES = (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1.0))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in {
        "host": "127.0.0.1",
        "path": "/ws",
        "chat-prefix": "character:Bench/",
        "op": "append",
    }.items():
        parser.add_argument(f"--{name}", default=default)
    parser.add_argument("--wire", choices=("tellback", "echo"), default="tellback")
    parser.add_argument("--patch-ids", default=None)
    numbers = {"port": 0, "chats": 100, "subscribers": 2, "senders": -1, "window": 1, "message-bytes": 300, "ops": 0}
    numbers |= {"warmup-ops": 0, "server-pid": 0, "idle": 0, "warm": 0, "create": 1}
    for name, number in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=number)
    for name, seconds in {"seconds": 2.0, "warmup": 0.5, "rate": 0.0}.items():
        parser.add_argument(f"--{name}", type=float, default=seconds)
    return parser.parse_args()


async def _main() -> None:
    options = _parse()
    generator = Generator(options)
    if options.idle:
        await generator.idle()
    else:
        print(await generator.work(), flush=True)
    os._exit(0)  # Closing some hundred transports one by one is of no use to anybody.


if __name__ == "__main__":
    uvloop.run(_main())
