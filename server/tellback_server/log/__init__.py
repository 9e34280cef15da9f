"""The log: what makes a write durable. One per process; STORAGE.md is its law.

Read in this order: format (bytes), segment (one file), recovery (what a crash left), writer (the thread), log (the
whole).
"""

from tellback_server.log.errors import (
    LogClosed,
    LogCorrupt,
    LogError,
    LogPoisoned,
    RecordMissing,
    RecordTooLarge,
    TermSuperseded,
)
from tellback_server.log.format import BODY_BYTES_MAX, Position, Record
from tellback_server.log.log import Log
from tellback_server.log.writer import LogStats

__all__ = [
    "BODY_BYTES_MAX",
    "Log",
    "LogClosed",
    "LogCorrupt",
    "LogError",
    "LogPoisoned",
    "LogStats",
    "Position",
    "Record",
    "RecordMissing",
    "RecordTooLarge",
    "TermSuperseded",
]
