"""Log image: a log folder as somebody reads it who does not own it. Reads only; takes no lock.

    image = LogImage(fs, directory)
    image.facts()                  what it tells of every owner, in one pass
    image.records(owner, after)    as `Log.records` (a LogReader)
    image.error                    set by a pass: why it ended early; what came before it is right

Rules of this module:
- Streaming: one batch and what is told of owners are in memory, never the log.
- On a running log the end is in motion, and old segments may go while they are read: then there is one more pass.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final, Protocol

import msgspec

from tellback_server.fs import FileMissing, Fs, FsError
from tellback_server.log import Log
from tellback_server.log.errors import LogCorrupt
from tellback_server.log.format import Position, Record, decode_record, iterate_records
from tellback_server.log.index import Index, IndexedSegment
from tellback_server.log.inspect import open_walk
from tellback_server.log.recovery import Walk, index_batch
from tellback_server.operations import decode_operation
from tellback_server.owner_past import LogReader
from tellback_server.records import (
    ADOPT,
    ANCHOR,
    CHECKPOINT,
    COMMIT,
    DELTAS,
    DONE,
    INTENT,
    OPERATION,
    STORED,
    Anchor,
    BaseRecord,
    Intent,
    decode_base,
    decode_done,
    decode_intent,
    owner_key,
)

__all__ = ["Image", "LiveLog", "LogImage", "OwnerFacts", "log_folder"]

PASSES_MAX: Final = 4


class OwnerFacts(msgspec.Struct, gc=True):
    """What the log tells of one owner's files."""

    base: BaseRecord | None = None
    intents: list[Intent] = []
    """Behind the base."""
    states: dict[str, set[tuple[int, int]]] = {}
    """Size and CRC-32 of what each sidecar held, two at most: whether there ever was anything else."""
    epoch: int = 0
    seq: int = 0
    """Of the last commit or base record."""
    is_gone: bool = False
    """It is in the trash."""

    @property
    def is_pending(self) -> bool:
        """Commits wait for their files."""
        return self.base is not None and self.seq > self.base.head.seq

    def tell(self, record: Record) -> None:
        """One record of the owner, in the order of the log."""
        self.seq = max(self.seq, record.seq)
        if record.kind in (ANCHOR, CHECKPOINT, ADOPT):
            self.base = decode_base(record.body)
            self.epoch = max(self.epoch, self.base.head.epoch)
            self.intents = []
            self.is_gone = False
            for namespace, mark in self.base.states.items():
                self._held(namespace, (mark.size_bytes, mark.crc32))
        elif record.kind == INTENT:
            intent = decode_intent(record.body)
            self.intents.append(intent)
            for namespace, pair in intent.states.items():
                if pair is not None:
                    self._held(namespace, pair)

    def _held(self, namespace: str, pair: tuple[int, int]) -> None:
        held = self.states.setdefault(namespace, set())
        if len(held) < 2:
            held.add(pair)

    @property
    def has_no_file_yet(self) -> bool:
        """A chat that we made, before its first checkpoint."""
        return isinstance(self.base, Anchor) and self.base.created and self.base.file is None


class Image(LogReader, Protocol):
    """What a check and a repair want of a log."""

    @property
    def directory(self) -> str: ...

    @property
    def error(self) -> LogCorrupt | FsError | None: ...


class LiveLog:
    """The log of the server itself as an image: what recovery has judged is whole."""

    directory = ""
    error: LogCorrupt | FsError | None = None

    def __init__(self, log: Log) -> None:
        self.records = log.records
        self.seq_within = log.seq_within


class LogImage:
    """One log folder."""

    def __init__(self, fs: Fs, directory: str) -> None:
        self._fs = fs
        self.directory = directory
        self.error: LogCorrupt | FsError | None = None
        self._index: Index | None = None

    @property
    def is_there(self) -> bool:
        """Whether there is a log at all."""
        stat = self._fs.stat(self.directory)
        return stat is not None and stat.is_directory

    def scan(self) -> Iterator[tuple[Position, Record]]:
        """Every record that can be read, in order; then `error` says whether that was all. Cost: the log."""
        self.error = None
        if not self.is_there:
            return
        try:
            walk, _term, _torn = open_walk(self._fs, self.directory)
            yield from _records(walk)
        except (LogCorrupt, FsError) as error:
            self.error = error
        except ValueError as error:
            self.error = LogCorrupt(self.directory, 0, str(error))

    def records(self, owner: str, after_seq: int = 0) -> Iterator[tuple[Position, Record]]:
        """One owner's, as far as they can be read. The first call reads the log and keeps where each record lies."""
        if self._index is None:
            self._index = self._indexed()
        for number in self._index.positions_of(owner, after_seq, 1 << 63):
            position = Position(number)
            yield position, self._index.read(position)

    def seq_within(self, owner: str, after_seq: int, until_seq: int, bytes_max: int) -> int:
        """A check or repair wants all that there is."""
        del owner, until_seq, bytes_max
        return after_seq

    def _indexed(self) -> Index:
        index = Index()
        if not self.is_there:
            return index
        try:
            walk, _term, _torn = open_walk(self._fs, self.directory)
            segment: IndexedSegment | None = None
            for header, batch in walk.batches():
                if batch is None:
                    path = walk.path(header.number)
                    segment = IndexedSegment(
                        self._fs, path, header.number, header.first_position, header.created_ms, header.size_bytes
                    )
                    index.add_segment(segment)
                elif segment is not None:
                    index_batch(index, segment, batch, batch.offset)
        except (LogCorrupt, FsError) as error:
            self.error = error
        return index

    def facts(self) -> dict[str, OwnerFacts]:
        """By owner key. Cost: one pass."""
        for turn in range(PASSES_MAX):
            owners: dict[str, OwnerFacts] = {}
            for _position, record in self.scan():
                _tell(owners, record)
            if not isinstance(self.error, FileMissing) or turn == PASSES_MAX - 1:
                break
        return owners


def _records(walk: Walk) -> Iterator[tuple[Position, Record]]:
    for _header, batch in walk.batches():
        if batch is None:
            continue
        position = batch.header.first_position
        for place in iterate_records(batch.body, batch.header.record_count):
            record = decode_record(batch.body, place.offset)
            if record is None:
                raise ValueError(f"record {position} does not match its checksum")
            yield Position(position), record
            position += 1


def _tell(owners: dict[str, OwnerFacts], record: Record) -> None:
    kind = record.kind
    if kind == DONE:
        if decode_done(record.body).gone:
            owners.setdefault(record.owner, OwnerFacts(intents=[])).is_gone = True
        return
    if kind == OPERATION:
        # What its files will hold is recorded when they are moved; until then they may be ahead of what is recorded.
        for base in decode_operation(record.body).bases:
            told = owners.setdefault(owner_key(base.user, base.chat_id), OwnerFacts(intents=[]))
            told.epoch, told.seq = max(told.epoch, base.head.epoch), max(told.seq, base.head.seq)
        return
    if kind not in (COMMIT, STORED, DELTAS, INTENT, ANCHOR, CHECKPOINT, ADOPT):
        return
    facts = owners.get(record.owner)
    if facts is None:
        facts = owners[record.owner] = OwnerFacts(intents=[])
    facts.tell(record)


def log_folder(data_root: str) -> str:
    """Where the log of a data folder is."""
    return os.path.join(data_root, ".tellback", "log")
