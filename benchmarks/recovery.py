"""`python -m benchmarks.recovery`: the start of a server on a log of 1 GiB and one of 100 MiB (row F1 of the fault
table: at most 2 s), against reading the same bytes once.

The log is what a busy server leaves: 10,000 chats with some 150 appends each, all but 100 of them folded into their
files, those 100 not. A start is timed from exec to the printed address, in a process of its own; so is the reading.
Both follow each other, the files in the page cache or not alike. Memory is the peak of the server until it serves.
"""

import argparse
import asyncio
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import NamedTuple

from benchmarks.server import new_folder
from tellback_protocol.ids import CharacterChat, Version
from tellback_server.clock import Clock
from tellback_server.fs import Fs
from tellback_server.loading import create_chat
from tellback_server.log import Log
from tellback_server.records import CHECKPOINT, COMMIT, Checkpointed, FileIdentity, encode, owner_key

RESULTS = Path(__file__).with_name("RECOVERY.md")
CHATS, UNFOLDED = 10_000, 100
SIZES_MIB = [1024, 100]
USER = "default-user"
READ = (
    "import os, pathlib, sys\n"
    "for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):\n"
    "    file = os.open(path, os.O_RDONLY)\n"
    "    while os.read(file, 1 << 20): pass\n"
)
RSS_MIB_MAX = 300


async def build(data: Path, size_bytes: int) -> int:
    """Writes the log. Returns how many records it has."""
    clock, chance = Clock(), random.Random(1)
    log = Log.open(Fs(), str(data / ".tellback/log"), clock, sync=False)
    log.start(asyncio.get_running_loop(), lambda _position: None, lambda _error: None)
    chats: list[tuple[str, str, str]] = []
    before: list[str] = []
    for number in range(CHATS):
        chat_id = str(uuid.UUID(int=chance.getrandbits(128), version=4))
        place = CharacterChat("Alice", f"Chat {number}")
        made = create_chat(USER, place, chat_id, Version(1, 0, clock.uuid4()), clock.now_ms())
        key = owner_key(USER, chat_id)
        for record in made.records:
            log.append(record.kind, record.owner, record.seq, record.body)
        chats.append((key, chat_id, str(place)))
        before.append(made.stream.head.integrity)
    records, written = CHATS, 0
    seq = 0
    while written < size_bytes:
        seq += 1
        for number, (key, _chat_id, _name) in enumerate(chats):
            integrity, text = clock.integrity(), "A sentence of a reply. " * chance.randint(8, 24)
            body = (
                f'{{"version":{{"epoch":1,"seq":{seq},"integrity":"{integrity}"}},"previous":"{before[number]}",'
                f'"by":{{"session":"a-session-of-a-benchmark","op":{seq}}},"ops":[{{"op":"append","messages":'
                f'[{{"id":"{chance.getrandbits(64):016x}","name":"Alice","is_user":false,"mes":"{text}"}}]}}],'
                f'"fingerprint":{chance.getrandbits(40)},"plain":true}}'
            ).encode()
            log.append(COMMIT, key, seq, body)
            written += len(body)
            before[number] = integrity
            records += 1
            if number % 500 == 0:
                await log.flush()
    for number, (key, chat_id, name) in enumerate(chats[UNFOLDED:], UNFOLDED):
        head = Version(1, seq, before[number])
        done = Checkpointed(
            user=USER, name=name, chat_id=chat_id, file=FileIdentity(1, 1, 1, 1), version=head, head=head, states={}
        )
        log.append(CHECKPOINT, key, seq, encode(done))
    await log.flush()
    log.close()
    return records + CHATS - UNFOLDED


def read_s(folder: Path) -> float:
    """Seconds to read everything once."""
    began_s = time.perf_counter()
    subprocess.run([sys.executable, "-c", READ, str(folder)], check=True)
    return time.perf_counter() - began_s


def start_s(data: Path) -> tuple[float, float, float]:
    """Seconds until a server serves, seconds of CPU, and its peak in MiB by then."""
    began_s = time.perf_counter()
    command = [
        sys.executable, "-m", "tellback_server", "serve", "--data", str(data), "--port", "0", "--log-level", "error",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        took_s = time.perf_counter() - began_s
        assert line.startswith("ws://"), line
        ticks = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        cpu_s = sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
        status = Path(f"/proc/{process.pid}/status").read_text()
        peak_mib = int(status.partition("VmHWM:")[2].split()[0]) / 1024
        process.send_signal(signal.SIGKILL)
    return took_s, cpu_s, peak_mib


class Found(NamedTuple):
    """What was measured on a log of one size."""

    size_mib: int
    records: int
    runs: list[tuple[float, float, float, float]]

    def told(self) -> list[str]:
        """The column of this log."""
        reads, starts, cpus, peaks = zip(*self.runs, strict=True)
        ratios = [start / read for read, start in zip(reads, starts, strict=True)]
        return [
            f"{self.records:,}", f"{statistics.median(reads):.2f}", f"{statistics.median(starts):.1f}",
            f"{statistics.median(cpus):.1f}", f"{self.records / statistics.median(cpus):,.0f}",
            f"{statistics.median(ratios):.0f} ({min(ratios):.0f} to {max(ratios):.0f})", f"{max(peaks):.0f}",
        ]


ROWS = (
    "records", "reading once, s", "a start, s", "a start, s of CPU (it has what others leave it)",
    "records a second of CPU", "a start against reading once", f"peak memory, MiB (at most {RSS_MIB_MAX})",
)


def page(found: list[Found]) -> str:
    columns = [one.told() for one in found]
    return "\n".join([
        "# A start on a long log", "",
        f"Logs of {CHATS:,} chats, {UNFOLDED} of them not folded. From exec to the printed address, against a process",
        "that reads the same files once. By `python -m benchmarks.recovery`; load average at the end:",
        f"{os.getloadavg()[0]:.1f} on {os.cpu_count()} cores, its own included. Row F1 of the fault table asks for 2 s",
        "on 100 MB at most.", "",
        "| | " + " | ".join(f"{one.size_mib:,} MiB" for one in found) + " |",
        "| --- |" + " ---: |" * len(found),
        *(f"| {row} | " + " | ".join(column[at] for column in columns) + " |" for at, row in enumerate(ROWS)),
    ]) + "\n"


def measured(size_mib: int, repetitions: int) -> Found:
    data = new_folder()
    try:
        found = Found(size_mib, asyncio.run(build(data, size_mib << 20)), [])
        for _ in range(repetitions):
            read = read_s(data / ".tellback/log")
            found.runs.append((read, *start_s(data)))
            print("read {:.1f} s, start {:.1f} s, CPU {:.1f} s, peak {:.0f} MiB".format(*found.runs[-1]), flush=True)
    finally:
        shutil.rmtree(data, ignore_errors=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recovery", description=__doc__)
    parser.add_argument("--mib", type=int, nargs="+", default=SIZES_MIB)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--output", type=Path, default=None, help=f"default: {RESULTS.name}, for the usual sizes")
    arguments = parser.parse_args()
    text = page([measured(size_mib, arguments.repetitions) for size_mib in arguments.mib])
    output = arguments.output or (RESULTS if arguments.mib == SIZES_MIB else None)
    if output is not None:
        output.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
