"""A file system whose calls a test can hold up and let go: the log's syncs, or the reading of chats."""

from __future__ import annotations

import threading
from pathlib import Path

from tests.support.injected_fs import InjectedFs
from tests.support.waiting import GUARD_S


class HeldFs(InjectedFs):
    """`hold_syncs` stops the log's next fdatasync, `hold_reads` the next opening of a chat; `let_go` ends both."""

    def __init__(self) -> None:
        super().__init__()
        self._syncs = threading.Event()
        self._reads = threading.Event()
        self.waits = threading.Event()
        """Set while a call is held up."""
        self.let_go()

    def hold_syncs(self) -> None:
        self._syncs.clear()

    def hold_reads(self) -> None:
        self._reads.clear()

    def let_go(self) -> None:
        self._syncs.set()
        self._reads.set()
        self.waits.clear()

    def step(self, verb: str, path: str, size_bytes: int = 0) -> int | None:
        gate = None
        if verb == "fdatasync" and Path(path).parent.name == "log":
            gate = self._syncs
        elif verb == "open" and path.endswith(".jsonl"):
            gate = self._reads
        if gate is not None and not gate.is_set():
            self.waits.set()
            assert gate.wait(GUARD_S), "the test never let go"
        self.calls.clear()
        return super().step(verb, path, size_bytes)
