"""Log repair: a log that refuses to open becomes one that holds everything that can still be read.

    1. Every batch that can be read is read, before and behind the damage, and what is missing is counted.
    2. Records are copied in their order into a new log beside the old one, under positions that were never used.
    3. The old log is put aside whole: `.tellback/log-damaged-<utc ms>/`, with its term file.
    4. The new log takes its place.

Rules of this module (BEHAVIOUR X10):
- A commit whose predecessor is lost is not copied unless its chat's files hold the gap: it would be applied to
  something else than it was made from. It is in the log that was put aside, and it is told.
- A crash leaves the old log, or the new one, or a log folder that is missing; then the start refuses, and the next
  repair goes on.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Final

import msgspec

from tellback_server.checks.findings import Finding
from tellback_server.checks.kinds import ASIDE_PREFIX
from tellback_server.checks.log_image import log_folder
from tellback_server.checks.scope import Scope
from tellback_server.clock import Clock
from tellback_server.failpoint import failpoint
from tellback_server.fs import Fs, FsError
from tellback_server.log.errors import LogCorrupt
from tellback_server.log.format import (
    BATCH_HEADER_BYTES,
    SEGMENT_HEADER_BYTES,
    Position,
    Record,
    SegmentHeader,
    decode_record,
    encode_batch,
    encode_record,
    iterate_records,
)
from tellback_server.log.segment import (
    Batch,
    SegmentReader,
    make_spare,
    publish,
    segment_name,
    segment_numbers,
)
from tellback_server.log.term import TermFile, TermLine, encode_term
from tellback_server.records import ADOPT, ANCHOR, CHECKPOINT, COMMIT, decode_base
from tellback_server.repairs.choices import Choice

__all__ = ["LogRepair", "Salvage", "SalvageReader", "salvaged"]

NEW_FOLDER: Final = "log-repaired"
BATCH_BYTES: Final = 1 << 20
SEGMENT_BYTES: Final = 16 << 20
POSITIONS_SKIPPED: Final = 1 << 20
"""Between the last position that can be read and the first new one: more than can stand in what cannot be read."""

ALL_LOST: Final = 1 << 40
"""Taken for the last position of a log of which nothing can be read: session files remember positions."""


class Salvage(msgspec.Struct):
    """What of a damaged log can be read."""

    records: int = 0
    batches: int = 0
    lost: list[str] = []
    """Where something is missing, as sentences."""
    left_out: dict[str, int] = {}
    """Commits that stand behind a gap of their owner, by owner key."""
    segment: int = 0
    batch: int = 0
    position: int = 0
    term: int = 0
    """The highest seen."""


def salvaged(fs: Fs, directory: str, salvage: Salvage) -> Iterator[Record]:
    """Every record that can be read, in order, but for commits behind a gap of their owner. Fills `salvage`."""
    heads: dict[str, int] = {}
    for record in _readable(fs, directory, salvage):
        if record.kind in (ANCHOR, CHECKPOINT, ADOPT):
            heads[record.owner] = max(heads.get(record.owner, 0), decode_base(record.body).head.seq)
        elif record.kind == COMMIT:
            head = heads.get(record.owner)
            if head is not None and salvage.lost and record.seq > head + 1:
                salvage.left_out[record.owner] = salvage.left_out.get(record.owner, 0) + 1
                continue
            heads[record.owner] = max(head or 0, record.seq)
        salvage.records += 1
        yield record


def _readable(fs: Fs, directory: str, salvage: Salvage) -> Iterator[Record]:
    try:
        numbers = segment_numbers(fs.listdir(directory))
    except FsError:
        return
    seen_batch = 0
    for at, number in enumerate(numbers):
        salvage.segment = max(salvage.segment, number)
        if at and number != numbers[at - 1] + 1:
            salvage.lost.append(f"segment {numbers[at - 1] + 1} is missing")
        path = os.path.join(directory, segment_name(number))
        try:
            with SegmentReader(fs, path) as reader:
                if reader.header is None:
                    salvage.lost.append(f"segment {number}: its header cannot be read, and nothing behind it")
                    continue
                salvage.term = max(salvage.term, reader.header.term)
                for batch in _batches(reader, reader.header, salvage, number):
                    if batch.header.number <= seen_batch:
                        continue  # A tail that a later segment holds again.
                    if seen_batch and batch.header.number != seen_batch + 1:
                        salvage.lost.append(f"batches {seen_batch + 1} to {batch.header.number - 1} are missing")
                    seen_batch = batch.header.number
                    salvage.batch = max(salvage.batch, seen_batch)
                    salvage.batches += 1
                    end = batch.header.first_position + batch.header.record_count
                    salvage.position = max(salvage.position, end)
                    for place in iterate_records(batch.body, batch.header.record_count):
                        record = decode_record(batch.body, place.offset)
                        if record is not None:
                            yield record
        except FsError as error:
            salvage.lost.append(f"segment {number}: {error.reason}")


def _batches(reader: SegmentReader, header: SegmentHeader, salvage: Salvage, number: int) -> Iterator[Batch]:
    """The batches of a segment; behind a damaged one the next header that can be read is looked for."""
    offset = SEGMENT_HEADER_BYTES
    while offset < reader.size_bytes:
        found = reader.next_whole(offset, header.term)
        if found is None:
            if reader.last_nonzero(offset) >= offset:
                salvage.lost.append(f"segment {number} from byte {offset} on")
            return
        if found.offset != offset:
            salvage.lost.append(f"segment {number}, bytes {offset} to {found.offset}")
        yield found
        offset = found.end


class SalvageReader:
    """A damaged log as a LogReader: what can be read of it. Cost: a pass a call."""

    def __init__(self, fs: Fs, directory: str) -> None:
        self._fs = fs
        self._directory = directory

    def records(self, owner: str, after_seq: int = 0) -> Iterator[tuple[Position, Record]]:
        """One owner's. Positions count what can be read."""
        for number, record in enumerate(salvaged(self._fs, self._directory, Salvage()), 1):
            if record.owner == owner and record.seq > after_seq:
                yield Position(number), record

    def seq_within(self, owner: str, after_seq: int, until_seq: int, bytes_max: int) -> int:
        """A repair wants all that there is."""
        del owner, until_seq, bytes_max
        return after_seq


class LogRepair:
    """Makes the new log. `folders` are the logs that were put aside."""

    def __init__(self, fs: Fs, clock: Clock, scope: Scope) -> None:
        self._fs = fs
        self._clock = clock
        self._own = scope.own_folder
        self._directory = log_folder(scope.data_root)
        self._ready = os.path.join(self._own, NEW_FOLDER, "term")
        """Its term file is written when the new log is whole."""
        self.folders: list[str] = []

    def choice(self, path: str, findings: list[Finding]) -> Choice:
        """What would be done. Cost: the log."""
        if self._unfinished_aside() is not None and self._fs.stat(self._ready) is not None:
            return Choice(path, "", findings, ["the log that was made takes its place"], None, self._run)
        salvage = Salvage()
        for _record in salvaged(self._fs, self._directory, salvage):
            pass
        left_out = sum(salvage.left_out.values())
        actions = [
            f"the {salvage.records:,} records that can be read go into a new log; the old one is put aside whole",
            *(f"lost: {one}" for one in salvage.lost[:20]),
        ]
        if left_out:
            actions.append(
                f"{left_out:,} commits of {len(salvage.left_out)} owners stand behind what is lost and are left in the "
                "old log; what their files hold stays as it is"
            )
        return Choice(path, "", findings, actions, None, self._run)

    def _run(self) -> None:
        """Raises FsError, OSError. May run again after any crash."""
        fs = self._fs
        if self.folders:
            return
        new = os.path.join(self._own, NEW_FOLDER)
        log = os.path.join(new, "log")
        ready = self._ready
        aside = self._unfinished_aside()
        if fs.stat(self._directory) is not None and fs.stat(ready) is not None and aside is None:
            # It was made and not used: the old log may have gone on since.
            self._remove(new)
        if fs.stat(ready) is None:
            if fs.stat(new) is not None:
                self._remove(new)
            self._make(new, log, ready)
        failpoint("repair.log.after_new")
        if aside is None:
            aside = os.path.join(self._own, f"{ASIDE_PREFIX}{self._clock.now_ms()}")
        if fs.stat(self._directory) is not None:
            fs.rename(self._directory, aside)
            fs.fsync_directory(self._own)
        failpoint("repair.log.after_aside")
        fs.rename(log, self._directory)
        fs.fsync_directory(self._own)
        failpoint("repair.log.after_log")
        term = os.path.join(self._own, "term")
        if fs.stat(term) is not None:
            fs.write_atomically(os.path.join(aside, "term"), fs.read(term))
        fs.rename(ready, term)
        fs.fsync_directory(self._own)
        fs.remove_directory(new)
        self.folders.append(aside)

    def _unfinished_aside(self) -> str | None:
        """The old log, when a crash came after it was put aside and before the new one had its place."""
        if self._fs.stat(self._directory) is not None:
            return None
        names = [name for name in self._fs.listdir(self._own) if name.startswith(ASIDE_PREFIX)]
        return os.path.join(self._own, max(names)) if names else None

    def _make(self, new: str, log: str, ready: str) -> None:
        fs = self._fs
        fs.make_directories(log)
        salvage = Salvage()
        for _record in salvaged(fs, self._directory, salvage):
            pass
        with contextlib.suppress(FsError, LogCorrupt):
            salvage.term = max(salvage.term, TermFile(fs, os.path.join(self._own, "term")).load().term)
        maker = _LogMaker(fs, self._clock, log, salvage)
        for record in salvaged(fs, self._directory, Salvage()):
            maker.add(record)
        first, last = maker.close()
        fs.write_atomically(ready, encode_term(TermLine(salvage.term + 1, first, last)))

    def _remove(self, folder: str) -> None:
        fs = self._fs
        for name in fs.listdir(folder):
            path = os.path.join(folder, name)
            stat = fs.stat(path)
            if stat is not None and stat.is_directory:
                self._remove(path)
            else:
                fs.unlink(path)
        fs.remove_directory(folder)


class _LogMaker:
    """Segments of a new log, one after the other, each published whole. Memory: one segment."""

    def __init__(self, fs: Fs, clock: Clock, directory: str, salvage: Salvage) -> None:
        self._fs = fs
        self._clock = clock
        self._directory = directory
        self._term = salvage.term + 1
        self._first = self._segment = salvage.segment + 1
        # What cannot be read may have held more of both.
        self._batch = (salvage.batch or ALL_LOST) + POSITIONS_SKIPPED
        self._position = (salvage.position or ALL_LOST) + POSITIONS_SKIPPED
        self._records: list[bytes] = []
        self._records_bytes = 0
        self._bodies: list[tuple[bytes, int]] = []
        self._bodies_bytes = 0
        self._previous_crc = 0

    def add(self, record: Record) -> None:
        """One record more. Raises OSError."""
        data = encode_record(record.kind, record.owner.encode(), record.seq, record.body)
        self._records.append(data)
        self._records_bytes += len(data)
        if self._records_bytes >= BATCH_BYTES:
            self._end_batch()

    def _end_batch(self) -> None:
        if not self._records:
            return
        body = b"".join(self._records)
        self._bodies.append((body, len(self._records)))
        self._bodies_bytes += len(body) + BATCH_HEADER_BYTES
        self._records, self._records_bytes = [], 0
        if self._bodies_bytes >= SEGMENT_BYTES - BATCH_BYTES:
            self._publish()

    def close(self) -> tuple[int, int]:
        """Writes the rest; the first and the last segment's number. There is always one."""
        self._end_batch()
        if self._bodies or self._segment == self._first:
            self._publish()
        return self._first, self._segment - 1

    def _publish(self) -> None:
        salt = self._clock.random_bits(32)
        header = SegmentHeader(
            number=self._segment, first_batch=self._batch, first_position=self._position, term=self._term,
            durable_batch=self._batch - 1, salt=salt, previous_crc=self._previous_crc,
            created_ms=self._clock.now_ms(), size_bytes=SEGMENT_HEADER_BYTES + self._bodies_bytes,
        )
        parts: list[bytes] = []
        for body, count in self._bodies:
            head, self._previous_crc = encode_batch(
                body, record_count=count, number=self._batch, durable_batch=self._batch - 1,
                first_position=self._position, term=self._term, previous_crc=self._previous_crc, salt=salt,
            )
            parts += (head, body)
            self._batch += 1
            self._position += count
        spare = make_spare(self._fs, self._directory, header.size_bytes)
        publish(self._fs, self._directory, spare, header, b"".join(parts))
        spare.file.close()
        self._segment += 1
        self._bodies, self._bodies_bytes = [], 0
