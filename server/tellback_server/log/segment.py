"""Segment: one file of the log, as a thing to make and a thing to read. No policy: what damage means is recovery's
business.

Rules this module keeps:

- A file gets its final name `<number, 20 digits>.log` only when it is zero-filled, its header is in it and both are
  synced; then the directory is synced, and only then the first record goes in (STORAGE S9). So a file with that name
  and no valid header is damage, never a crash.
- Unfinished files end in `.tellback-tmp` and are removed at the next start.
- Reading keeps at most one window or one batch in memory, and never asks for more bytes than the file has.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Final

import msgspec

from tellback_server.failpoint import failpoint
from tellback_server.fs import TEMPORARY_SUFFIX, File, FileNotVerified, Fs
from tellback_server.log.format import (
    BATCH_HEADER_BYTES,
    BATCH_MAGIC,
    SEGMENT_HEADER_BYTES,
    BatchHeader,
    SegmentHeader,
    body_is_whole,
    decode_batch_header,
    decode_segment_header,
    encode_segment_header,
    repair_batch_header,
    repair_body,
    repair_segment_header,
)

__all__ = [
    "Batch",
    "Damage",
    "Evidence",
    "Repair",
    "SegmentReader",
    "Spare",
    "make_spare",
    "publish",
    "segment_name",
    "segment_numbers",
]

_NAME: Final = re.compile(r"(\d{20})\.log")
_WINDOW_BYTES: Final = 1 << 20


def segment_name(number: int) -> str:
    """The file name of segment `number`."""
    return f"{number:020d}.log"


def segment_numbers(names: list[str]) -> list[int]:
    """The numbers of the segments among `names`, ascending. Other names are not ours to judge."""
    return sorted(int(match[1]) for match in map(_NAME.fullmatch, names) if match)


class Repair(msgspec.Struct, frozen=True, gc=False):
    """One flipped bit that was found and turned back."""

    offset: int
    """Byte in the file."""
    bit: int
    """0 (lowest) to 7."""
    batch: int
    """0 when it was in the segment header."""


class Batch(msgspec.Struct, frozen=True, gc=False):
    """A whole batch, and where it lies in its file."""

    offset: int
    header: BatchHeader
    body: bytes
    repairs: tuple[Repair, ...]

    @property
    def end(self) -> int:
        """The byte after the batch."""
        return self.offset + BATCH_HEADER_BYTES + len(self.body)


class Damage(msgspec.Struct, frozen=True, gc=False):
    """Where reading stopped although there was something, and why."""

    offset: int
    batch: int
    """The number of the batch that should have been there."""
    reason: str


class Evidence(msgspec.Struct, frozen=True, gc=False):
    """A later batch that knew of the missing one as durable."""

    offset: int
    number: int
    durable_batch: int


class SegmentReader:
    """Reads one segment from front to back. Use as a context manager.

    `header` is None when it is damaged beyond repair; `header_repair` says which bit was turned back.
    """

    def __init__(self, fs: Fs, path: str) -> None:
        self.path = path
        self._file = fs.open_read(path)
        try:
            self.size_bytes = self._file.stat().size_bytes
            self._window = b""
            self._window_start = 0
            self.header_repair: Repair | None = None
            data = self._file.pread(SEGMENT_HEADER_BYTES, 0)
            self.header: SegmentHeader | None = decode_segment_header(data)
            if self.header is None:
                repaired = repair_segment_header(data)
                if repaired is not None:
                    self.header, bit = repaired
                    self.header_repair = Repair(bit >> 3, bit & 7, 0)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> SegmentReader:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._file.close()

    def read(self, offset: int, size_bytes: int) -> bytes:
        """Up to `size_bytes` from `offset`; fewer only at the end of the file. Small reads come from a window."""
        start = offset - self._window_start
        if start < 0 or start + size_bytes > len(self._window):
            if size_bytes > _WINDOW_BYTES:
                return self._file.pread(size_bytes, offset)
            self._window = self._file.pread(_WINDOW_BYTES, offset)
            self._window_start = offset
            start = 0
        return self._window[start : start + size_bytes]

    def batch_at(self, offset: int, number: int, position: int, previous_crc: int, term: int) -> Batch | Damage:
        """The batch at `offset`, which has to be exactly the one that follows. One flipped bit in each part is
        repaired.
        """
        assert self.header is not None
        salt = self.header.salt
        data = self.read(offset, BATCH_HEADER_BYTES)
        repairs: list[Repair] = []
        header = decode_batch_header(data, salt)
        if header is None:
            repaired = repair_batch_header(data, salt) if len(data) == BATCH_HEADER_BYTES else None
            if repaired is None:
                return Damage(offset, number, "the batch header does not match its checksum")
            header, bit = repaired
            repairs.append(Repair(offset + (bit >> 3), bit & 7, number))
        expected = (number, position, previous_crc, term)
        if (header.number, header.first_position, header.previous_crc, header.term) != expected:
            return Damage(offset, number, f"batch {header.number} stands where batch {number} belongs")
        start = offset + BATCH_HEADER_BYTES
        if header.body_length > self.size_bytes - start:
            return Damage(offset, number, "the batch is longer than the file")
        body = self.read(start, header.body_length)
        if not body_is_whole(header, body):
            mended = repair_body(header, body)
            if mended is None:
                return Damage(offset, number, "the body of the batch does not match its checksums")
            body, bit = mended
            repairs.append(Repair(start + (bit >> 3), bit & 7, number))
        return Batch(offset, header, body, tuple(repairs))

    def is_zero_from(self, offset: int) -> bool:
        """Whether nothing but zeros follows."""
        return self.last_nonzero(offset) < offset

    def last_nonzero(self, offset: int) -> int:
        """The offset of the last byte at or after `offset` that is not zero; `offset - 1` when there is none."""
        last = offset - 1
        while offset < self.size_bytes:
            data = self._file.pread(_WINDOW_BYTES, offset)
            if not data:
                break
            stripped = data.rstrip(b"\0")
            if stripped:
                last = offset + len(stripped) - 1
            offset += len(data)
        return last

    def evidence_after(self, offset: int, batch: int) -> Evidence | None:
        """A batch header anywhere after `offset` that names `batch` as durable, or None.

        A header is enough: its CRC proves that it was written, whatever became of its body. A header with one flipped
        bit counts as well, outside the magic.
        """
        assert self.header is not None
        salt = self.header.salt
        position = offset + 1
        while position < self.size_bytes:
            data = self._file.pread(_WINDOW_BYTES + BATCH_HEADER_BYTES, position)
            found = data.find(BATCH_MAGIC)
            while found >= 0:
                piece = data[found : found + BATCH_HEADER_BYTES]
                header = decode_batch_header(piece, salt)
                if header is None and len(piece) == BATCH_HEADER_BYTES:
                    repaired = repair_batch_header(piece, salt)
                    header = repaired[0] if repaired is not None else None
                if header is not None and header.number > batch and header.durable_batch >= batch:
                    return Evidence(position + found, header.number, header.durable_batch)
                found = data.find(BATCH_MAGIC, found + 1)
            position += _WINDOW_BYTES
        return None

    def next_whole(self, offset: int, term: int) -> Batch | None:
        """The first batch at or behind `offset` that is whole by its own checksums, whatever went before; None when
        there is none. For repairs: recovery never looks behind damage for anything but evidence.
        """
        position = offset
        while position < self.size_bytes:
            data = self._file.pread(_WINDOW_BYTES + BATCH_HEADER_BYTES, position)
            # A flipped bit in the magic is looked for only where a batch is expected.
            found = 0 if position == offset else data.find(BATCH_MAGIC)
            while found >= 0:
                batch = self._whole_at(position + found, data[found : found + BATCH_HEADER_BYTES], term)
                if batch is not None:
                    return batch
                found = data.find(BATCH_MAGIC, found + 1)
            position += _WINDOW_BYTES
        return None

    def _whole_at(self, offset: int, head: bytes, term: int) -> Batch | None:
        assert self.header is not None
        if len(head) < BATCH_HEADER_BYTES or not head.strip(b"\0"):
            return None
        header = decode_batch_header(head, self.header.salt)
        if header is None:
            repaired = repair_batch_header(head, self.header.salt)
            header = repaired[0] if repaired is not None else None
        start = offset + BATCH_HEADER_BYTES
        if header is None or header.term != term or header.body_length > self.size_bytes - start:
            return None
        body = self.read(start, header.body_length)
        if not body_is_whole(header, body):
            mended = repair_body(header, body)
            if mended is None:
                return None
            body = mended[0]
        return Batch(offset, header, body, ())

    def chunks(self, start: int, end: int) -> Iterator[bytes]:
        """The raw bytes from `start` up to `end`, a window at a time."""
        while start < end:
            data = self._file.pread(min(_WINDOW_BYTES, end - start), start)
            if not data:
                return
            yield data
            start += len(data)


class Spare(msgspec.Struct, gc=False):
    """A zero-filled, synced file that has no name of its own yet."""

    file: File
    path: str
    size_bytes: int


def make_spare(fs: Fs, directory: str, size_bytes: int) -> Spare:
    """Makes the file that will be the next segment. Raises OSError; then nothing is left behind. Blocks: it fills the
    file.
    """
    path = os.path.join(directory, f"spare.{fs.token()}{TEMPORARY_SUFFIX}")
    file = fs.create(path)
    try:
        failpoint("log.spare.before_fill")
        file.preallocate(size_bytes)
        failpoint("log.spare.after_fill")
    except BaseException:
        file.close()
        fs.unlink(path)
        raise
    return Spare(file, path, size_bytes)


def publish(fs: Fs, directory: str, spare: Spare, header: SegmentHeader, content: bytes = b"") -> str:
    """Makes `spare` the segment of `header`, with `content` as its first batches. Returns the path; after that it is
    durable.

    The spare's file stays open for the writer. Raises OSError, FileNotVerified.
    """
    data = encode_segment_header(header) + content
    assert len(data) <= spare.size_bytes
    failpoint("log.publish.before_write")
    spare.file.pwrite(data, 0)
    failpoint("log.publish.after_write")
    spare.file.fdatasync()
    failpoint("log.publish.after_sync")
    if spare.file.pread(len(data), 0) != data:
        raise FileNotVerified(spare.path, "what was read back differs from what was written")
    path = os.path.join(directory, segment_name(header.number))
    fs.rename(spare.path, path)
    failpoint("log.publish.after_rename")
    fs.fsync_directory(directory)
    failpoint("log.publish.after_directory_sync")
    return path
