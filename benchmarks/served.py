"""`python -m benchmarks.served`: acknowledged appends a second of a whole server on each store, and on two of them.

The generator's work: 100 chats, a writer each with 16 appends of 300 bytes under way, nobody else. An append is
acknowledged when the log has it, whatever the store does, so this shows what a store takes from the server beside it.
The last column is an orderly stop right behind it: then everything is in the store, and in the backup. Round-robin, a
fresh folder and a fresh store for each run, ratios inside each repetition, medians over the repetitions.
"""

import argparse
import contextlib
import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks import generator, machine
from benchmarks import server as servers
from benchmarks.server import Kind, Server
from tests.support.database_servers import PostgresProcess, ValkeyProcess

RESULTS = Path(__file__).with_name("SERVED.md")
AGAINST = "files"
NAMES = (
    AGAINST, "SQLite", "PostgreSQL", "Redis (Valkey)", "multi: files, SQLite", "multi: SQLite, PostgreSQL",
    "multi: PostgreSQL, SQLite",
)
CHATS, WINDOW = 100, 16


class Stores:
    """A new store of each kind for every run."""

    def __init__(self, postgres: PostgresProcess, valkey: ValkeyProcess) -> None:
        self._postgres = postgres
        self._valkey = valkey
        self._runs = 0

    def flags(self, folder: Path) -> dict[str, list[str]]:
        """How a server is started on each, by what it is called in NAMES."""
        self._runs += 1
        sqlite = f"sqlite://{folder}.db"
        backup = f"sqlite://{folder}.backup.db"
        postgres = self._postgres.url(f"run{self._runs}", "&connections=8")
        valkey = self._valkey.url(self._runs, "?connections=8")
        multi = [["--store", "multi", "--primary", primary, "--backup", other] for primary, other in (
            ("files", backup), (sqlite, postgres), (postgres, backup),
        )]
        return dict(zip(NAMES, [[], *(["--store", url] for url in (sqlite, postgres, valkey)), *multi], strict=True))


@contextlib.contextmanager
def databases() -> Iterator[Stores]:
    with contextlib.ExitStack() as stack:
        postgres, valkey = PostgresProcess(), ValkeyProcess()
        for process in (postgres, valkey):
            stack.callback(process.remove)
            process.start()
        yield Stores(postgres, valkey)


def one(name: str, stores: Stores, seconds: float) -> tuple[float, float, float, float]:
    """Acks a second, p99 in ms, CPU per op in us, and seconds of an orderly stop."""
    kind = Kind(name, lambda folder: [*servers.TELLBACK.arguments(folder), *stores.flags(folder)[name]])
    with Server(kind) as server:
        run = generator.run(
            server, quiet=False, chats=CHATS, subscribers=0, window=WINDOW, seconds=seconds, warmup=0.5
        )
        ended_s = time.monotonic()
        server.stop()
        stop_s = time.monotonic() - ended_s
    return run.rate, run.p99_us / 1000, run.cpu_us_per_op, stop_s


def measure(repetitions: int, seconds: float) -> dict[str, list[tuple[float, float, float, float]]]:
    found: dict[str, list[tuple[float, float, float, float]]] = {}
    with databases() as stores:
        for repetition in range(repetitions):
            for name in NAMES:
                result = one(name, stores, seconds)
                found.setdefault(name, []).append(result)
                rate, p99_ms, cpu_us, stop_s = result
                print(
                    f"{repetition + 1}: {name:28} {rate:>9,.0f} /s  p99 {p99_ms:>7.1f} ms  {cpu_us:>6.1f} us"
                    f"  stop {stop_s:>5.1f} s", flush=True,
                )
                servers.clean()
    return found


def page(found: dict[str, list[tuple[float, float, float, float]]], seconds: float) -> str:
    lines = [
        "# A server on each store", "",
        f"{CHATS} chats with a writer each, {WINDOW} appends of 300 bytes under way, {seconds:g} s a run; acknowledged",
        "appends a second, and the ratio to the server on plain files of the same repetition: median (lowest to",
        "highest).",
        "With multi the first is the primary, the second the backup, which is brought up every 5 s.", "",
        f"Written by `python -m benchmarks.served`, {machine.today()}, commit {machine.commit()}; load average at the",
        f"end: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores, its own and that of the databases included.", "",
        "| store | acks/s | against files | p99 ms | CPU us/op | then a stop, with all of it stored, s |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    if os.getloadavg()[0] > 2 * (os.cpu_count() or 1):
        lines[-2:-2] = ["Others were at work on the machine: the spread of the ratios is theirs.", ""]
    for name, results in found.items():
        rates, p99s, cpus, stops = zip(*results, strict=True)
        ratios = [rate / other[0] for rate, other in zip(rates, found[AGAINST], strict=True)]
        lines.append(
            f"| {name} | {statistics.median(rates):,.0f} | {statistics.median(ratios):.2f} ({min(ratios):.2f} to"
            f" {max(ratios):.2f}) | {statistics.median(p99s):.1f} | {statistics.median(cpus):.0f} |"
            f" {statistics.median(stops):.1f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.served", description=__doc__)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a measured window")
    arguments = parser.parse_args()
    try:
        RESULTS.write_text(page(measure(arguments.repetitions, arguments.seconds), arguments.seconds))
    finally:
        servers.clean()
    print(RESULTS.read_text())


if __name__ == "__main__":
    main()
