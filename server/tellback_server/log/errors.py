"""Errors: everything the log can raise.

LogError                  base
  LogCorrupt              the disk's fault: what was durable cannot be read any more; nothing was changed or skipped
  LogPoisoned             the disk's fault: a write or sync failed; whether the batch survived is unknown
  LogClosed               ours: append or flush after close
  RecordTooLarge          ours: a record over the limits of the format
  RecordMissing           no retained record has that position (trimmed, or not durable yet)
  TermSuperseded          another process took the data folder over; the cause inside a LogPoisoned
"""

from __future__ import annotations

__all__ = [
    "LogClosed",
    "LogCorrupt",
    "LogError",
    "LogPoisoned",
    "RecordMissing",
    "RecordTooLarge",
    "TermSuperseded",
]


class LogError(Exception):
    """Base of the log's errors."""


class LogCorrupt(LogError):
    """Something that was durable is damaged beyond a one-bit repair. The log refuses to open; no byte was changed.

    `path` and `offset` (bytes from the start of the file) say where the damage begins, `batch` which batch cannot be
    read (0 when the damage is not inside one).
    """

    def __init__(self, path: str, offset: int, reason: str, batch: int = 0) -> None:
        super().__init__(path, offset, reason, batch)
        self.path = path
        self.offset = offset
        self.reason = reason
        self.batch = batch

    def __str__(self) -> str:
        inside = f" (batch {self.batch})" if self.batch else ""
        return f"{self.path} is damaged at byte {self.offset}{inside}: {self.reason}"


class LogPoisoned(LogError):
    """A write, sync or close failed. Nothing is acknowledged any more; the process has to end and recover."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__(cause)
        self.cause = cause

    def __str__(self) -> str:
        return f"the log is poisoned: {self.cause}"


class LogClosed(LogError):
    """The log was closed by us."""

    def __str__(self) -> str:
        return "the log is closed"


class RecordTooLarge(LogError):
    """A body or an owner key is over the limit of the format."""

    def __init__(self, size_bytes: int, limit_bytes: int) -> None:
        super().__init__(size_bytes, limit_bytes)
        self.size_bytes = size_bytes
        self.limit_bytes = limit_bytes

    def __str__(self) -> str:
        return f"{self.size_bytes} bytes are over the limit of {self.limit_bytes}"


class RecordMissing(LogError):
    """No retained, durable record has this position."""

    def __init__(self, position: int) -> None:
        super().__init__(position)
        self.position = position

    def __str__(self) -> str:
        return f"no retained record has position {self.position}"


class TermSuperseded(LogError):
    """The term file no longer carries our term. `found` is 0 when the file is gone."""

    def __init__(self, ours: int, found: int) -> None:
        super().__init__(ours, found)
        self.ours = ours
        self.found = found

    def __str__(self) -> str:
        if self.found == 0:
            return f"the term file of our term {self.ours} is gone"
        return f"another process took over with term {self.found}; ours is {self.ours}"
