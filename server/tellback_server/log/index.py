"""Index: where each retained record lies, and which records an owner has. In memory only; recovery rebuilds it.

Rules this module keeps:

- About 20 bytes a record, in arrays: 4 for its place in its segment, 8 for its position and 8 for its seq under its
  owner. No Python object per record.
- `OwnerRecords` is filled by the loop thread at append (sequenced), offsets are filled by the writer thread when the
  batch is durable; readers stop at `durable`, so they never see one without the other.
- An owner that was seen once keeps its (empty) entry: removing it could race with an append.
"""

from __future__ import annotations

import threading
from array import array
from bisect import bisect_right
from collections.abc import Iterator

from tellback_server.fs import File, Fs
from tellback_server.log.errors import LogCorrupt, RecordMissing
from tellback_server.log.format import RECORD_HEADER_BYTES, Position, Record, decode_record, record_size

__all__ = ["Index", "IndexedSegment", "OwnerRecords"]

_GUESS_BYTES = 1024  # One read is enough for a record of ordinary size.
_WINDOW_BYTES = 1 << 20


class IndexedSegment:
    """One segment: which positions it holds and where. The last one grows."""

    __slots__ = ("_file", "_fs", "created_ms", "first_position", "number", "offsets", "path", "size_bytes")

    def __init__(self, fs: Fs, path: str, number: int, first_position: int, created_ms: int, size_bytes: int) -> None:
        self._fs = fs
        self.path = path
        self.number = number
        self.first_position = first_position
        self.created_ms = created_ms
        self.size_bytes = size_bytes
        self.offsets = array("I")
        """Byte offset of the record of position first_position + i."""
        self._file: File | None = None

    @property
    def last_position(self) -> int:
        """Position of the last indexed record; first_position - 1 when there is none."""
        return self.first_position + len(self.offsets) - 1

    def file(self) -> File:
        """The file for reading, opened at the first use. It is closed when the last holder drops it, so that a reader
        in another thread never reads from a descriptor that was reused. Raises FsError."""
        file = self._file
        if file is None:
            file = self._file = self._fs.open_read(self.path)
        return file


class OwnerRecords:
    """The retained records of one owner, in log order."""

    __slots__ = ("is_ordered", "key", "positions", "seqs")

    def __init__(self, key: bytes) -> None:
        self.key = key
        """The owner key in UTF-8."""
        self.positions = array("Q")
        self.seqs = array("Q")
        self.is_ordered = True
        """Whether seqs never go down, so that a binary search may be used."""

    def add(self, position: int, seq: int, count: int = 1) -> None:
        """Appends `count` records, the first of this position, which is the highest so far, and this seq."""
        seqs = self.seqs
        if seqs and seq < seqs[-1]:
            self.is_ordered = False
        if count == 1:
            self.positions.append(position)
            seqs.append(seq)
        else:
            self.positions.extend(range(position, position + count))
            seqs.extend(range(seq, seq + count))


class Index:
    """All of it. `read` and `positions_of` may be called from any thread."""

    def __init__(self) -> None:
        self.segments: list[IndexedSegment] = []
        self.owners: dict[str, OwnerRecords] = {}
        self._firsts: list[int] = []
        self._lock = threading.Lock()

    def add_segment(self, segment: IndexedSegment) -> None:
        """Adds the new last segment."""
        with self._lock:
            self.segments = [*self.segments, segment]
            self._firsts = [*self._firsts, segment.first_position]

    def owner(self, owner: str, key: bytes) -> OwnerRecords:
        """The entry of an owner, made at the first use. Loop thread (or recovery) only."""
        entry = self.owners.get(owner)
        if entry is None:
            entry = self.owners[owner] = OwnerRecords(key)
        return entry

    @property
    def first_position(self) -> int:
        """The oldest retained position; the next one to come when nothing is retained."""
        return self._firsts[0] if self._firsts else 1

    def segment_of(self, position: int) -> IndexedSegment:
        """The segment that holds `position`. Raises RecordMissing."""
        with self._lock:
            at = bisect_right(self._firsts, position) - 1
            # Segments without records share their first position with the next one; bisect finds the last of them.
            if at < 0 or position > self.segments[at].last_position:
                raise RecordMissing(position)
            return self.segments[at]

    def read(self, position: Position) -> Record:
        """The record. Raises RecordMissing, LogCorrupt, FsError, OSError."""
        segment = self.segment_of(position)
        offset = segment.offsets[position - segment.first_position]
        file = segment.file()
        data = file.pread(_GUESS_BYTES, offset)
        if len(data) >= RECORD_HEADER_BYTES and record_size(data) > len(data):
            # The length is not checked yet, so it is bounded by the file.
            size_bytes = min(record_size(data), file.stat().size_bytes - offset)
            data = file.pread(size_bytes, offset)
        record = decode_record(data)
        if record is None:
            raise LogCorrupt(segment.path, offset, f"the record of position {position} does not match its checksum")
        return record

    def positions_of(self, owner: str, after_seq: int, durable: int) -> array[int]:
        """The positions of the owner's records with seq > after_seq, up to `durable`. A copy, in log order."""
        with self._lock:
            entry = self.owners.get(owner)
            if entry is None:
                return array("Q")
            seqs = entry.seqs
            end = bisect_right(entry.positions, durable, 0, len(seqs))
            if entry.is_ordered:
                return entry.positions[bisect_right(seqs, after_seq, 0, end) : end]
            return array("Q", [entry.positions[at] for at in range(end) if seqs[at] > after_seq])

    def seq_within(self, owner: str, after_seq: int, until_seq: int, bytes_max: int) -> int:
        """`after_seq`, or a later one: behind it the owner's records up to `until_seq` have together at most about
        `bytes_max`, but the newest of them always counts. Cost: a step for each record behind it.
        """
        with self._lock:
            entry = self.owners.get(owner)
            if entry is None or not entry.is_ordered:
                return after_seq
            start, end = (bisect_right(entry.seqs, seq) for seq in (after_seq, until_seq))
            seqs, positions = entry.seqs[start:end], entry.positions[start:end]
        size_bytes = 0
        for at in range(len(positions) - 1, -1, -1):
            size_bytes += self._size_of(positions[at])
            if size_bytes > bytes_max:
                return min(seqs[at], seqs[-1] - 1)
        return after_seq

    def _size_of(self, position: int) -> int:
        """About the bytes of a record: to the next one in its segment, 0 for the last one there."""
        try:
            segment = self.segment_of(position)
        except RecordMissing:
            return 0
        at = position - segment.first_position
        return segment.offsets[at + 1] - segment.offsets[at] if at + 1 < len(segment.offsets) else 0

    def last_of(self, owner: str) -> int:
        """Position of the owner's last record, 0 when there is none."""
        with self._lock:
            entry = self.owners.get(owner)
            return entry.positions[-1] if entry is not None and entry.positions else 0

    def next_of(self, owner: str, after: int) -> int | None:
        """Position of the owner's first record behind `after`."""
        with self._lock:
            entry = self.owners.get(owner)
            if entry is None:
                return None
            at = bisect_right(entry.positions, after)
            return entry.positions[at] if at < len(entry.positions) else None

    def drop_segments(self, count: int) -> None:
        """Forgets the oldest `count` segments and the records in them."""
        with self._lock:
            self.segments = self.segments[count:]
            self._firsts = self._firsts[count:]
            first = self.first_position
            for entry in list(self.owners.values()):
                gone = bisect_right(entry.positions, first - 1, 0, len(entry.seqs))
                if gone:
                    # Each deletion is one step for the loop thread, which may append at the same moment.
                    del entry.positions[:gone]
                    del entry.seqs[:gone]

    def scan(self, after: int, durable: int) -> Iterator[tuple[Position, Record]]:
        """Every record behind `after` up to `durable`, oldest first; a window of a segment is in memory. Raises like
        `read`.
        """
        for segment in self.segments:
            first = max(0, after + 1 - segment.first_position)
            count = min(len(segment.offsets), durable + 1 - segment.first_position)
            if first >= count:
                continue
            file = segment.file()
            window = b""
            window_start = 0
            for at in range(first, count):
                start = segment.offsets[at] - window_start
                header_end = start + RECORD_HEADER_BYTES
                if header_end > len(window) or start + record_size(window, start) > len(window):
                    window_start += start
                    window = file.pread(_WINDOW_BYTES, window_start)
                    start = 0
                    if len(window) >= RECORD_HEADER_BYTES and record_size(window) > len(window):
                        size_bytes = min(record_size(window), file.stat().size_bytes - window_start)
                        window = file.pread(size_bytes, window_start)
                record = decode_record(window, start)
                position = segment.first_position + at
                if record is None:
                    reason = f"the record of position {position} does not match its checksum"
                    raise LogCorrupt(segment.path, window_start + start, reason)
                yield Position(position), record
