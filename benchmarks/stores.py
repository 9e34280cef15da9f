"""`python -m benchmarks.stores`: durable saves per second on each store, against the store of plain files.

A save is one append of a message of 300 bytes to a chat that has some already, through the port, with the store's own
promise of durability. Stores are measured round-robin, the ratio is taken inside each repetition, and the median of the
ratios is shown: speed of the disk and of the machine cancel out. PostgreSQL and Valkey are processes on this machine.
"""

import argparse
import contextlib
import os
import statistics
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from msgspec import Raw

from tellback_protocol.effects import AppendEffect
from tellback_server.contract import Saved
from tellback_server.store.base import Store
from tellback_server.store.schemes import open_store
from tests.support.database_servers import PostgresProcess, ValkeyProcess

RESULTS = Path(__file__).with_name("STORES.md")
MESSAGES = (10, 10_000)
WRITERS = (1, 8)
AGAINST = "files"
TEXT = "x" * 280


@contextlib.contextmanager
def opened() -> Iterator[dict[str, Store]]:
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        postgres, valkey = PostgresProcess(), ValkeyProcess()
        for server in (postgres, valkey):
            stack.callback(server.remove)
            server.start()
        urls = {
            "files": f"files://{folder}/files",
            "SQLite": f"sqlite://{folder}/store.db",
            "PostgreSQL": postgres.url("bench", "&connections=8"),
            "Redis (Valkey)": valkey.url(0, "?connections=8"),
            "memory (not durable)": "memory:",
        }
        stores = {}
        for name, url in urls.items():
            stores[name] = stack.enter_context(contextlib.closing(open_store(url)))
            stores[name].check()
        yield stores


def append(saved: Saved) -> None:
    saved.made += 1
    saved.commit(AppendEffect([Raw(b'{"id":"m%d","mes":"%b"}' % (saved.made, TEXT.encode()))]))


def rate(store: Store, owners: list[Saved], seconds: float) -> float:
    """Saves per second, one thread an owner."""
    counts = [0] * len(owners)
    end_s = time.perf_counter() + seconds

    def write(number: int, saved: Saved) -> None:
        while time.perf_counter() < end_s:
            append(saved)
            # With the snapshot that a checkpoint takes: one pointer a message, which is what memory's rate shows.
            saved.save(store)
            counts[number] += 1

    before_s = time.perf_counter()
    threads = [threading.Thread(target=write, args=item) for item in enumerate(owners)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - before_s)


def measure(repetitions: int, seconds: float) -> dict[tuple[str, int, int], list[float]]:
    rates: dict[tuple[str, int, int], list[float]] = {}
    with opened() as stores:
        owners: dict[tuple[str, int], list[Saved]] = {}
        for name, store in stores.items():
            for messages in MESSAGES:
                names = [f"character:Bench/{messages} {uuid.uuid4().hex}" for _ in range(max(WRITERS))]
                owners[name, messages] = [Saved(one) for one in names]
                for saved in owners[name, messages]:
                    saved.append(messages)
                    saved.save(store)
        for repetition in range(repetitions):
            for messages in MESSAGES:
                for writers in WRITERS:
                    for name, store in stores.items():
                        found = rate(store, owners[name, messages][:writers], seconds)
                        rates.setdefault((name, messages, writers), []).append(found)
                        work = f"{messages:>6} messages  {writers} writers"
                        print(f"{repetition + 1}: {name:22} {work} {found:>9,.0f} /s", flush=True)
    return rates


def page(rates: dict[tuple[str, int, int], list[float]]) -> str:
    lines = [
        "# Durable saves on each store", "",
        "One append a save, through the port; ratio to the store of plain files, median of the repetitions (lowest to",
        "highest). The ratios are what counts: other work on the machine moves all rates together.", "",
        "Written by `python -m benchmarks.stores`; load average at the end: "
        f"{os.getloadavg()[0]:.1f} on {os.cpu_count()} cores, its own included.", "",
        "| store | messages in the chat | writers | saves/s | against files |", "| --- | ---: | ---: | ---: | ---: |",
    ]
    for (name, messages, writers), found in rates.items():
        ratios = [one / other for one, other in zip(found, rates[AGAINST, messages, writers], strict=True)]
        lines.append(
            f"| {name} | {messages:,} | {writers} | {statistics.median(found):,.0f} | {statistics.median(ratios):.2f}"
            f" ({min(ratios):.2f} to {max(ratios):.2f}) |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stores", description=__doc__)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a measured window")
    arguments = parser.parse_args()
    RESULTS.write_text(page(measure(arguments.repetitions, arguments.seconds)))
    print(RESULTS.read_text())


if __name__ == "__main__":
    main()
