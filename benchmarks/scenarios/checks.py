"""`tellback check` of a user's 10,000 chats against reading the same bytes once: what the lines cost. check.

The folder of `list`: 20 characters, 500 chats each, 20 messages a chat. Both are processes of their own, their start
included, one right after the other, with the files in the page cache. Memory is the peak of the checking process.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.chats import message
from benchmarks.samples import Samples
from benchmarks.scenarios import Plan, Scenario
from benchmarks.server import new_folder

CHARACTERS, CHATS, MESSAGES = 20, 500, 20
READ = "import pathlib, sys\nfor path in pathlib.Path(sys.argv[1]).rglob('*.jsonl'): path.read_bytes()"


class Checks(Scenario):
    ids = ("check",)

    def __init__(self, plan: Plan, samples: Samples) -> None:
        super().__init__(plan, samples)
        self._folder: Path | None = None

    def prepare(self) -> None:
        self._folder = new_folder()
        header = json.dumps({"user_name": "unused", "character_name": "unused", "chat_metadata": {}})
        body = "\n".join([header, *(json.dumps(message(300), ensure_ascii=False) for _ in range(MESSAGES))])
        for character in range(CHARACTERS):
            folder = self._folder / "default-user" / "chats" / f"Character {character}"
            folder.mkdir(parents=True)
            for chat in range(CHATS):
                (folder / f"Chat {chat}.jsonl").write_text(body)

    def run(self, repetition: int) -> None:
        assert self._folder is not None
        folder = str(self._folder)
        read_s, _peak = _timed([sys.executable, "-c", READ, folder])
        check_s, peak_bytes = _timed([sys.executable, "-m", "tellback_server", "check", "--json", folder])
        figures = self._samples.figures
        figures["reading 10,000 chats once, s"].append(read_s)
        figures["checking them, s"].append(check_s)
        figures["peak memory of the check, MiB"].append(peak_bytes / (1 << 20))
        self._samples.add("check", check_s / read_s)


def _timed(command: list[str]) -> tuple[float, int]:
    """Seconds, and the peak of the process's memory in bytes."""
    before_s = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    output = process.stdout.read() if process.stdout is not None else b""
    _pid, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, output[-500:]
    return time.perf_counter() - before_s, usage.ru_maxrss * 1024
