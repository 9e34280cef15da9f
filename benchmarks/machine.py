"""The machine: its two cores, who runs on which, where files may go, and what it is called in the results."""

import os
import platform
import subprocess
import time
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


class _Patience:
    """How long the whole session may still wait for other programs to be done."""

    left_s = 240.0


def _busy_cores(over_s: float) -> float:
    """How many cores were busy, over the next `over_s`, with whatever it was."""
    busy = []
    for wait_s in (over_s, 0.0):
        user, nice, kernel, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
        busy.append(user + nice + kernel + irq + softirq + steal)
        time.sleep(wait_s)
    return (busy[1] - busy[0]) / os.sysconf("SC_CLK_TCK") / over_s


def await_quiet(limit_cores: float = 0.2) -> None:
    """Wait before a measurement until nothing else runs here; on a machine that never rests, for some minutes in all.

    Before, and not by looking at what was measured, so that it favours nobody.
    """
    while _Patience.left_s > 0:
        started = time.monotonic()
        if _busy_cores(0.25) <= limit_cores:
            return
        _Patience.left_s -= time.monotonic() - started


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
