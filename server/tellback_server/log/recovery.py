"""Recovery: what the log holds after any crash. The numbered steps S1 to S11 are those of STORAGE.md "Recovery".

Rules this module keeps:

- Damage in batch k is corruption when a later batch or segment header knew of k as durable; then nothing is changed and
  LogCorrupt is raised. Otherwise the log ends before k, and everything from k on is saved aside and cut.
- Nothing that was read is believed before it stands in a synced file: batches that no later batch vouches for are
  copied to a fresh segment (RELIABILITY fact 1: after a failed sync the page cache shows what the disk does not have).
- Every start writes into a fresh segment. Old segments are never appended to, so a process that lost its term cannot
  damage what its successor writes.
- Each change is either invisible until one rename, or harmless to repeat: a crash anywhere in here is just another
  start.
- Streaming: one window of a segment and the unchecked batches are in memory, never a whole log.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import msgspec

from tellback_server.clock import Clock
from tellback_server.failpoint import failpoint
from tellback_server.fs import TEMPORARY_SUFFIX, File, Fs
from tellback_server.log.errors import LogCorrupt
from tellback_server.log.format import (
    BATCH_HEADER_BYTES,
    SEGMENT_HEADER_BYTES,
    RecordHeader,
    SegmentHeader,
    encode_batch,
    iterate_records,
)
from tellback_server.log.index import Index, IndexedSegment
from tellback_server.log.segment import (
    Batch,
    Damage,
    Evidence,
    Repair,
    SegmentReader,
    make_spare,
    publish,
    segment_name,
    segment_numbers,
)
from tellback_server.log.term import TermFile, TermLine

__all__ = ["Ending", "Logger", "Recovered", "Seen", "Walk", "index_batch", "missing_segment", "recover"]


Seen = Callable[[RecordHeader, bytes], None]
"""Is told of a record: its header, and the body of its batch."""


class Logger(Protocol):
    """What the log needs of a structured logger."""

    def info(self, event: str, **fields: Any) -> Any:
        """Something worth knowing."""

    def warning(self, event: str, **fields: Any) -> Any:
        """Something a person should look at."""


class Ending(msgspec.Struct, frozen=True, gc=False):
    """Where the last segment stops."""

    path: str
    offset: int
    """The byte after the last whole batch."""
    damage: Damage | None
    """None when only zeros follow."""
    last_nonzero: int
    """The last byte that is not zero; offset - 1 when only zeros follow."""


class Walk:
    """Reads segments in order and says what each piece is. Changes nothing; the inspector uses it too.

    Iterate `batches` to the end; then `ending` is set. Raises LogCorrupt where something that was durable cannot be
    read.
    """

    def __init__(self, fs: Fs, directory: str, numbers: list[int]) -> None:
        self._fs = fs
        self._directory = directory
        self._numbers = numbers
        self.headers: list[SegmentHeader] = []
        """In the order of `numbers`. Set by `read_headers`."""
        self.header_repairs: dict[int, Repair] = {}
        self.next_batch = 1
        self.next_position = 1
        self.previous_crc = 0
        self.durable_batch = 0
        """The highest batch that anything read so far knew as durable."""
        self.ending: Ending | None = None
        """None when there is no segment at all."""

    def path(self, number: int) -> str:
        """The path of segment `number`."""
        return os.path.join(self._directory, segment_name(number))

    def read_headers(self) -> None:
        """S3: every segment has a header, and it says the number in the name. Raises LogCorrupt, FsError."""
        for number in self._numbers:
            path = self.path(number)
            with SegmentReader(self._fs, path) as reader:
                header = reader.header
                if header is None:
                    raise LogCorrupt(path, 0, "the segment header does not match its checksum")
                if header.number != number:
                    raise LogCorrupt(path, 0, f"this is segment {header.number} under the name of segment {number}")
                if reader.header_repair is not None:
                    self.header_repairs[number] = reader.header_repair
                self.headers.append(header)

    def batches(self) -> Iterator[tuple[SegmentHeader, Batch | None]]:
        """S4 to S6: each segment once with None when it begins, then each of its batches."""
        for at, header in enumerate(self.headers):
            path = self.path(header.number)
            following = self.headers[at + 1] if at + 1 < len(self.headers) else None
            self._enter(path, header, is_first=at == 0)
            with SegmentReader(self._fs, path) as reader:
                # The file is opened again, and may be read while a server writes it: the header is the one judged
                # above.
                reader.header = header
                yield header, None
                offset = SEGMENT_HEADER_BYTES
                while following is None or self.next_batch < following.first_batch:
                    found = self._next(reader, offset, header.term)
                    if isinstance(found, Batch):
                        self.next_batch += 1
                        self.next_position += found.header.record_count
                        self.previous_crc = found.header.header_crc
                        self.durable_batch = max(self.durable_batch, found.header.durable_batch)
                        offset = found.end
                        yield header, found
                        continue
                    if following is not None:
                        reason = found.reason if found is not None else "the segment ends too early"
                        known = f"; segment {following.number} begins with batch {following.first_batch}"
                        raise LogCorrupt(path, offset, reason + known, self.next_batch)
                    self.ending = self._end(reader, offset, found)
                    break

    def _enter(self, path: str, header: SegmentHeader, *, is_first: bool) -> None:
        begins = (header.first_batch, header.first_position, header.previous_crc)
        if is_first:
            self.next_batch, self.next_position, self.previous_crc = begins
        if begins != (self.next_batch, self.next_position, self.previous_crc):
            reason = (
                f"the segment begins with batch {header.first_batch}, the one before ends with {self.next_batch - 1}"
            )
            raise LogCorrupt(path, 0, reason, self.next_batch)
        if header.durable_batch < header.first_batch - 1:
            raise LogCorrupt(path, 0, "the segment got its name before the one before it was durable")
        self.durable_batch = max(self.durable_batch, header.durable_batch)

    def _next(self, reader: SegmentReader, offset: int, term: int) -> Batch | Damage | None:
        """The batch, what is wrong with it, or None where only zeros follow."""
        head = reader.read(offset, BATCH_HEADER_BYTES)
        if not head.strip(b"\0") and reader.is_zero_from(offset):
            return None
        return reader.batch_at(offset, self.next_batch, self.next_position, self.previous_crc, term)

    def _end(self, reader: SegmentReader, offset: int, damage: Damage | None) -> Ending:
        if damage is None:
            return Ending(reader.path, offset, None, offset - 1)
        evidence = reader.evidence_after(offset, self.next_batch)
        durable = evidence.durable_batch if evidence is not None else self.durable_batch
        if durable >= self.next_batch:
            raise LogCorrupt(reader.path, offset, damage.reason + _known_by(evidence), self.next_batch)
        return Ending(reader.path, offset, damage, reader.last_nonzero(offset))


def _known_by(evidence: Evidence | None) -> str:
    if evidence is None:
        return "; it was known to be durable"
    return f"; batch {evidence.number} at byte {evidence.offset} knew it to be durable"


class Recovered(msgspec.Struct, gc=False):
    """What a start begins with: a fresh segment, open for writing, and everything known."""

    index: Index
    segment: IndexedSegment
    header: SegmentHeader
    file: File
    offset: int
    size_bytes: int
    next_batch: int
    next_position: int
    previous_crc: int
    term: int


def recover(
    fs: Fs, directory: str, clock: Clock, term_file: TermFile, *, segment_bytes: int, logger: Logger,
    seen: Seen | None = None,
) -> Recovered:
    """Steps S2 to S11. The caller holds the lock on `directory` (S1). `seen` is told of each record, in order, once
    its batch is believed.

    Raises LogCorrupt (nothing was changed but the term), FsError, OSError. May run again after any failure or crash.
    """
    failpoint("log.recovery.begin")
    line = term_file.load()
    names = fs.listdir(directory)
    numbers = [number for number in segment_numbers(names) if number >= line.oldest]
    walk = Walk(fs, directory, numbers)
    missing = missing_segment(numbers, line)
    if missing:
        raise LogCorrupt(walk.path(missing), 0, "the segment is missing")
    walk.read_headers()
    term = 1 + max([line.term, *(header.term for header in walk.headers)])
    line = TermLine(term, line.oldest, line.newest)
    term_file.store(line)
    failpoint("log.recovery.after_term")

    index = Index()
    unchecked: list[tuple[IndexedSegment, Batch]] = []
    repairs: dict[int, list[Repair]] = {number: [found] for number, found in walk.header_repairs.items()}
    segment: IndexedSegment | None = None
    for header, batch in walk.batches():
        if batch is None:
            stat = fs.stat(walk.path(header.number))
            segment = IndexedSegment(
                fs,
                walk.path(header.number),
                header.number,
                header.first_position,
                header.created_ms,
                stat.size_bytes if stat is not None else 0,
            )
            index.add_segment(segment)
        else:
            assert segment is not None
            unchecked.append((segment, batch))
        while unchecked and unchecked[0][1].header.number <= walk.durable_batch:
            holder, checked = unchecked.pop(0)
            repairs.setdefault(holder.number, []).extend(checked.repairs)
            index_batch(index, holder, checked, checked.offset, seen)

    _clean(fs, directory, names, line, logger)
    ending = walk.ending
    if ending is not None and ending.damage is not None:
        _save_aside(fs, ending, clock, names, logger)
    for number, found in repairs.items():
        if found:
            _rewrite(fs, walk.path(number), found, logger)
    failpoint("log.recovery.before_fresh_segment")

    # S9: the fresh segment begins with the unchecked batches, and takes their numbers over from the old one.
    first = unchecked[0][1].header if unchecked else None
    salt = clock.random_bits(32)
    header = SegmentHeader(
        number=numbers[-1] + 1 if numbers else max(1, line.newest + 1),
        first_batch=first.number if first is not None else walk.next_batch,
        first_position=first.first_position if first is not None else walk.next_position,
        term=term,
        durable_batch=walk.next_batch - 1,
        salt=salt,
        previous_crc=first.previous_crc if first is not None else walk.previous_crc,
        created_ms=clock.now_ms(),
        size_bytes=0,
    )
    content, previous_crc = _copy(unchecked, header)
    size_bytes = max(segment_bytes, SEGMENT_HEADER_BYTES + len(content) + BATCH_HEADER_BYTES)
    header = msgspec.structs.replace(header, size_bytes=size_bytes)
    spare = make_spare(fs, directory, size_bytes)
    path = publish(fs, directory, spare, header, content)
    fresh = IndexedSegment(fs, path, header.number, header.first_position, header.created_ms, size_bytes)
    index.add_segment(fresh)
    offset = SEGMENT_HEADER_BYTES
    for _holder, batch in unchecked:
        index_batch(index, fresh, batch, offset, seen)
        offset += BATCH_HEADER_BYTES + len(batch.body)
        for repair in batch.repairs:
            _tell_repair(logger, ending.path if ending is not None else path, repair)
    failpoint("log.recovery.after_fresh_segment")

    if ending is not None and segment is not None:
        _cut(fs, segment, unchecked[0][1].offset if unchecked else ending.offset)
    failpoint("log.recovery.after_cut")
    term_file.store(TermLine(term, numbers[0] if numbers else header.number, header.number))
    failpoint("log.recovery.end")
    logger.info(
        "log-recovered",
        directory=directory,
        term=term,
        segments=len(index.segments),
        first_position=index.first_position,
        last_position=walk.next_position - 1,
        unchecked_batches=len(unchecked),
    )
    return Recovered(
        index=index,
        segment=fresh,
        header=header,
        file=spare.file,
        offset=offset,
        size_bytes=size_bytes,
        next_batch=walk.next_batch,
        next_position=walk.next_position,
        previous_crc=previous_crc,
        term=term,
    )


def missing_segment(numbers: list[int], line: TermLine) -> int:
    """S3: the first segment that should be there and is not; 0 when all between oldest and newest are there."""
    first = line.oldest or (numbers[0] if numbers else 1)
    last = max(line.newest, numbers[-1] if numbers else 0)
    there = set(numbers)
    return next((number for number in range(first, last + 1) if number not in there), 0)


def index_batch(
    index: Index, segment: IndexedSegment, batch: Batch, offset: int, seen: Seen | None = None
) -> None:
    """Notes every record of a batch that lies at `offset` of `segment`."""
    position = batch.header.first_position
    start = offset + BATCH_HEADER_BYTES
    try:
        for record in iterate_records(batch.body, batch.header.record_count):
            segment.offsets.append(start + record.offset)
            index.owner(record.owner.decode(), record.owner).add(position, record.seq)
            position += 1
            if seen is not None:
                seen(record, batch.body)
    except ValueError as error:
        raise LogCorrupt(segment.path, batch.offset, str(error), batch.header.number) from error


def _copy(unchecked: list[tuple[IndexedSegment, Batch]], into: SegmentHeader) -> tuple[bytes, int]:
    """The unchecked batches as the first batches of the fresh segment, and the CRC that the next batch carries."""
    parts: list[bytes] = []
    previous_crc = into.previous_crc
    for _segment, batch in unchecked:
        head, previous_crc = encode_batch(
            batch.body,
            record_count=batch.header.record_count,
            number=batch.header.number,
            durable_batch=batch.header.durable_batch,
            first_position=batch.header.first_position,
            term=into.term,
            previous_crc=previous_crc,
            salt=into.salt,
        )
        parts += (head, batch.body)
    return b"".join(parts), previous_crc


def _clean(fs: Fs, directory: str, names: list[str], line: TermLine, logger: Logger) -> None:
    """S7: removes unfinished files, and segments that retention had given up."""
    for name in names:
        number = segment_numbers([name])
        if name.endswith(TEMPORARY_SUFFIX) or (number and number[0] < line.oldest):
            fs.unlink(os.path.join(directory, name))
            logger.info("log-leftover-removed", path=os.path.join(directory, name))
    parent = os.path.dirname(directory)
    for name in fs.listdir(parent):
        if name.startswith(".term.") and name.endswith(TEMPORARY_SUFFIX):
            fs.unlink(os.path.join(parent, name))


def _save_aside(fs: Fs, ending: Ending, clock: Clock, names: list[str], logger: Logger) -> None:
    """S7: keeps the bytes of a torn tail under `<segment>.torn-<utc ms>`; the same bytes only once."""
    assert ending.damage is not None
    with SegmentReader(fs, ending.path) as reader:
        torn = b"".join(reader.chunks(ending.offset, ending.last_nonzero + 1))
    directory, name = os.path.split(ending.path)
    prefix = f"{name}.torn-"
    for other in names:
        if other.startswith(prefix) and fs.read(os.path.join(directory, other)) == torn:
            return
    path = os.path.join(directory, f"{prefix}{clock.now_ms()}")
    fs.write_atomically(path, torn)
    failpoint("log.recovery.after_save_aside")
    logger.warning(
        "log-torn-tail-cut",
        path=ending.path,
        offset=ending.offset,
        batch=ending.damage.batch,
        reason=ending.damage.reason,
        saved_as=path,
        size_bytes=len(torn),
    )


def _rewrite(fs: Fs, path: str, repairs: list[Repair], logger: Logger) -> None:
    """S8: replaces a segment by one with the flipped bits turned back."""
    data = bytearray(fs.read(path))
    for repair in repairs:
        data[repair.offset] ^= 1 << repair.bit
        _tell_repair(logger, path, repair)
    fs.write_atomically(path, bytes(data))
    failpoint("log.recovery.after_repair")


def _tell_repair(logger: Logger, path: str, repair: Repair) -> None:
    logger.warning("log-bit-repaired", path=path, offset=repair.offset, bit=repair.bit, batch=repair.batch)


def _cut(fs: Fs, segment: IndexedSegment, offset: int) -> None:
    """S10: gives the space behind the end of the old segment back. The fresh segment has superseded it already, so it
    does not matter whether this survives a crash, and nothing is synced."""
    file = fs.open_write(segment.path)
    try:
        file.truncate(offset)
    finally:
        file.close()
    segment.size_bytes = offset
