"""The machine: its two cores, who runs on which, where files may go, and what it is called in the results."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "benchmarks"  # Ignored by git; on the disk the checkout is on.

_CORES = sorted(os.sched_getaffinity(0))
SERVER_CORE = _CORES[0]
GENERATOR_CORE = _CORES[-1]


def on_server_core() -> None:
    """Runs in the child before exec, so that every thread it starts stays there."""
    os.sched_setaffinity(0, {SERVER_CORE})


def on_generator_core() -> None:
    os.sched_setaffinity(0, {GENERATOR_CORE})


def filesystem(path: Path) -> str:
    """The type of the filesystem that holds `path`, as /proc/mounts names it."""
    best = ("", "unknown")
    for line in Path("/proc/mounts").read_text().splitlines():
        _, point, kind, *_ = line.split()
        if str(path).startswith(point) and len(point) > len(best[0]):
            best = (point, kind)
    return best[1]


def describe() -> str:
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        "?",
    )
    memory_kib = int(Path("/proc/meminfo").read_text().split()[1])
    return (
        f"{len(_CORES)} cores of {model}, {memory_kib / 2**20:.0f} GiB, Linux {platform.release()}, "
        f"Python {platform.python_version()}, data on {filesystem(ROOT)}"
    )


def commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    changed = subprocess.run(
        ["git", "status", "--porcelain", "server", "protocol"], cwd=ROOT, capture_output=True, text=True
    )
    return (done.stdout.strip() or "unknown") + (" with changes" if changed.stdout.strip() else "")


def today() -> str:
    return datetime.now(tz=UTC).strftime("%Y-%m-%d %H:%M UTC")
