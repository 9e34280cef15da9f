"""Log: the truth of the process. Appended in the loop thread, made durable in the writer thread, told back in the loop.

Rules this module keeps:

- Two positions, always by these names: sequenced (given out by `append`) >= durable (synced, told).
- `append` never blocks and never waits. What is appended in one iteration of the loop goes to the writer together, at
  the end of the iteration.
- A waiter of `flush` owns nothing: cancelling it leaves the batch alone.
- After the first failure (poison) nothing is told any more: `on_poison` once, every waiter and every later append gets
  LogPoisoned. The outcome of what was not told is unknown, not failed.
- Readers (`read`, `records`, `scan`, `owners`) see durable records only, from any thread.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Final

import structlog

from tellback_server.clock import Clock
from tellback_server.fs import DirectoryLock, Fs
from tellback_server.log.errors import LogClosed, LogPoisoned, RecordMissing, RecordTooLarge
from tellback_server.log.format import (
    BODY_BYTES_MAX,
    OWNER_BYTES_MAX,
    Position,
    Record,
    encode_record_head,
)
from tellback_server.log.index import IndexedSegment
from tellback_server.log.recovery import Logger, Recovered, Seen, recover
from tellback_server.log.term import TermFile, TermLine
from tellback_server.log.writer import BATCH_BYTES_MAX, Gathered, LogStats, Writer

__all__ = ["SEGMENT_BYTES", "Log"]

SEGMENT_BYTES: Final = 16 << 20
"""Large enough that a roll is rare, small enough that retention is fine-grained and a rescan of one is quick."""
SEGMENT_BYTES_MIN: Final = 1 << 10
SEGMENT_BYTES_MAX: Final = 1 << 30  # Offsets in the index are 32 bits.
STARVED_S: Final = 0.002
PAUSE_EVERY_S: Final = 0.0005
PAUSE_S: Final = 0.00003
"""A loop thread that never blocks and whose iterations are shorter than sys.getswitchinterval() starves the writer
thread: each short release of the GIL wakes the writer, which finds it taken again and starts its wait anew (measured:
told after 100 ms to 1 s instead of 0.3 ms). So when nothing became durable for STARVED_S although something waits, the
loop sleeps for PAUSE_S, at most once in PAUSE_EVERY_S. A disk that is slow looks the same; there it costs a few percent
of a loop that waits for the disk anyway."""
RETAIN_BYTES: Final = 1 << 30
RETAIN_S: Final = 7 * 86_400


class Log:
    """One log per process and data folder. Made by `open`; `start` comes before the first `append`."""

    _writer_class: type[Writer] = Writer

    def __init__(
        self,
        fs: Fs,
        directory: str,
        clock: Clock,
        lock: DirectoryLock,
        term_file: TermFile,
        recovered: Recovered,
        *,
        segment_bytes: int,
        retain_bytes: int,
        retain_s: float,
        sync: bool,
        logger: Logger,
    ) -> None:
        """Use `open`."""
        self._fs = fs
        self._clock = clock
        self._lock = lock
        self._term_file = term_file
        self._index = recovered.index
        self._retain_bytes = retain_bytes
        self._retain_s = retain_s
        self._logger = logger
        self._collecting = threading.Lock()
        self.stats = LogStats()
        self.term = recovered.term
        self._writer = self._writer_class(
            fs,
            directory,
            clock,
            recovered,
            term_file,
            segment_bytes=segment_bytes,
            sync=sync,
            stats=self.stats,
            on_synced=self._synced,
            on_failed=self._failed,
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._on_durable: Callable[[Position], None] | None = None
        self._on_poison: Callable[[BaseException], None] | None = None
        self._sequenced = recovered.next_position - 1
        self._durable = self._sequenced
        self._synced_position = self._sequenced
        """The last position the writer made durable. Set in the writer thread, a moment before `durable`."""
        self.uncommitted_bytes = 0
        """Bytes of records that wait for the disk. For back-pressure."""
        self._gathered = Gathered()
        """Encoded records of this iteration of the loop."""
        self._is_kicked = False
        self.handed = self._sequenced
        """The last position the writer has. What comes after it becomes durable with one batch of its own."""
        self._progress_s = 0.0
        """When a batch became durable, or the writer got something to do; set by either thread."""
        self._is_watching = False
        self._refusal: LogPoisoned | LogClosed | None = None
        """Why append refuses; None while the log works. Set once, by either thread."""
        self._is_closed = False
        self._is_poison_told = False
        self._waiters: deque[tuple[int, asyncio.Future[None]]] = deque()

    @classmethod
    def open(
        cls,
        fs: Fs,
        directory: str,
        clock: Clock,
        *,
        segment_bytes: int = SEGMENT_BYTES,
        retain_bytes: int = RETAIN_BYTES,
        retain_s: float = RETAIN_S,
        sync: bool = True,
        logger: Logger | None = None,
        seen: Seen | None = None,
    ) -> Log:
        """Takes the directory (absolute, usually `<data>/.tellback/log`; the term file stands beside it) and recovers.

        Blocks: it reads every retained segment once, and tells `seen` of each record. `sync=False` leaves the fdatasync
        out; for benchmarks only.
        Raises DirectoryLocked, LogCorrupt (nothing was changed but the term), FsError, OSError.
        """
        if not SEGMENT_BYTES_MIN <= segment_bytes <= SEGMENT_BYTES_MAX:
            raise ValueError(f"segment_bytes must lie in {SEGMENT_BYTES_MIN}..{SEGMENT_BYTES_MAX}")
        logger = logger if logger is not None else structlog.get_logger("tellback.log")
        fs.make_directories(directory)
        lock = fs.lock_directory(directory)
        try:
            term_file = TermFile(fs, os.path.join(os.path.dirname(directory), "term"))
            recovered = recover(
                fs, directory, clock, term_file, segment_bytes=segment_bytes, logger=logger, seen=seen
            )
        except BaseException:
            lock.release()
            raise
        return cls(
            fs,
            directory,
            clock,
            lock,
            term_file,
            recovered,
            segment_bytes=segment_bytes,
            retain_bytes=retain_bytes,
            retain_s=retain_s,
            sync=sync,
            logger=logger,
        )

    def start(
        self,
        loop: asyncio.AbstractEventLoop,
        on_durable: Callable[[Position], None],
        on_poison: Callable[[BaseException], None],
    ) -> None:
        """Starts the writer thread.

        `on_durable(position)` is called in the loop once per batch: everything up to `position` is durable.
        `on_poison(LogPoisoned)` is called in the loop at most once; no on_durable comes after it.
        """
        assert self._loop is None, "a log starts once"
        self._loop = loop
        self._on_durable = on_durable
        self._on_poison = on_poison
        self._writer.start()

    # Writing: the loop thread.

    @property
    def sequenced(self) -> Position:
        """The position of the last append; what a crash could still undo."""
        return Position(self._sequenced)

    @property
    def durable(self) -> Position:
        """Everything up to here survives a crash, and has been told."""
        return Position(self._durable)

    @property
    def written(self) -> tuple[int, int]:
        """Number of the segment that is written now, and where the last whole batch in it ends: a copy of all segments
        up to there, and of nothing behind it, is a log.
        """
        return self._writer.written()

    @property
    def first_retained(self) -> Position:
        """The oldest position that can still be read; the next one to come when there is none."""
        return Position(self._index.first_position)

    @property
    def segment_count(self) -> int:
        """Segments on the disk."""
        return len(self._index.segments)

    @property
    def stalled_s(self) -> float:
        """How long the disk has been at work on what waits, without telling anything durable; 0 when nothing waits."""
        if self._synced_position >= self.handed:
            return 0.0
        return self._clock.monotonic_s() - self._progress_s

    @property
    def storage_error(self) -> OSError | None:
        """Why the next segment cannot be prepared (usually ENOSPC), or None.

        What is left of the current segment still works; refuse new writes while this is set (RELIABILITY F9).
        """
        return self._writer.spare_error

    def append(self, kind: int, owner: str, seq: int, body: bytes) -> Position:
        """Gives the record a position and hands it to the next batch. Never blocks; O(size of the record).

        From the loop thread only, after `start`. Raises LogPoisoned, LogClosed, RecordTooLarge, struct.error (kind or
        seq out of range); then nothing was appended.
        """
        return self.append_run(kind, owner, seq, [body])

    def append_run(self, kind: int, owner: str, first_seq: int, bodies: list[bytes]) -> Position:
        """`append` for several records, whose seqs go up by one. Returns the position of the last."""
        if self._refusal is not None:
            raise self._refusal
        entry = self._index.owners.get(owner)
        if entry is None:
            key = owner.encode()
            if len(key) > OWNER_BYTES_MAX:
                raise RecordTooLarge(len(key), OWNER_BYTES_MAX)
        else:
            key = entry.key
        gathered = self._gathered
        pieces, sizes = gathered.pieces, gathered.sizes
        before = len(sizes)
        seq = first_seq
        size = 0
        try:
            for body in bodies:
                if len(body) > BODY_BYTES_MAX:
                    raise RecordTooLarge(len(body), BODY_BYTES_MAX)
                head = encode_record_head(kind, key, seq, body)
                record_bytes = len(head) + len(body)
                size += record_bytes
                sizes.append(record_bytes)
                pieces += (head, body)
                seq += 1
        except BaseException:
            del sizes[before:], pieces[2 * before :]
            raise
        if entry is None:
            entry = self._index.owner(owner, key)
        count = seq - first_seq
        entry.add(self._sequenced + 1, first_seq, count)
        position = self._sequenced = self._sequenced + count
        gathered.size_bytes += size
        self.uncommitted_bytes += size
        if not self._is_kicked:
            self._is_kicked = True
            assert self._loop is not None, "start comes before append"
            self._loop.call_soon(self._kick)
        elif gathered.size_bytes >= BATCH_BYTES_MAX:
            self._hand_over()
        return Position(position)

    async def flush(self) -> None:
        """Waits until everything appended so far is durable; cancelling is harmless. Raises LogPoisoned, LogClosed."""
        if self._durable >= self._sequenced:
            return
        if self._refusal is not None:
            raise self._refusal
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append((self._sequenced, future))
        await future

    def close(self) -> None:
        """Makes everything appended durable, tells it, seals the log, ends the thread, lets the directory go.

        Blocks for as long as the disk takes. Again is harmless. Raises LogPoisoned when the log was or became poisoned;
        the directory is let go all the same.
        """
        if self._is_closed:
            return
        self._is_closed = True
        if self._refusal is None:
            self._hand_over()
            self._refusal = LogClosed()
        self._writer.close()
        try:
            if isinstance(self._refusal, LogPoisoned):
                self._tell_poison()
                raise self._refusal
            self._release(self._synced_position, self.uncommitted_bytes)
        finally:
            self._lock.release()

    def _kick(self) -> None:
        self._is_kicked = False
        self._hand_over()

    def _hand_over(self) -> None:
        if self._gathered.sizes:
            gathered, self._gathered = self._gathered, Gathered()
            self.handed = self._sequenced
            self._writer.submit(gathered)
            if not self._is_watching and self._loop is not None:
                self._is_watching = True
                self._progress_s = self._clock.monotonic_s()
                self._loop.call_later(STARVED_S, self._watch)

    def _watch(self) -> None:
        """While the writer has work: lets it have the interpreter when the loop starves it (see PAUSE_S)."""
        if self._loop is None or self._refusal is not None or self._synced_position >= self.handed:
            self._is_watching = False
            return
        if self._clock.monotonic_s() - self._progress_s > STARVED_S:
            self._clock.pause(PAUSE_S)
            self._loop.call_later(PAUSE_EVERY_S, self._watch)
        else:
            self._loop.call_later(STARVED_S, self._watch)

    def _release(self, position: int, size_bytes: int) -> None:
        """In the loop: everything up to `position` is durable."""
        if position <= self._durable or self._is_poison_told:
            return
        self._durable = position
        self.uncommitted_bytes -= size_bytes
        waiters = self._waiters
        while waiters and waiters[0][0] <= position:
            _wanted, future = waiters.popleft()
            if not future.done():
                future.set_result(None)
        # Last, because whatever it raises must not keep anybody waiting. The waiters only wake in a later iteration.
        if self._on_durable is not None:
            self._on_durable(Position(position))

    def _tell_poison(self) -> None:
        """In the loop: the one and only message of a failure."""
        refusal = self._refusal
        if self._is_poison_told or not isinstance(refusal, LogPoisoned):
            return
        self._is_poison_told = True
        while self._waiters:
            _wanted, future = self._waiters.popleft()
            if not future.done():
                future.set_exception(refusal)
        if self._on_poison is not None:
            self._on_poison(refusal)

    # In the writer thread.

    def _synced(self, position: int, size_bytes: int) -> None:
        self._synced_position = position
        self._progress_s = self._clock.monotonic_s()
        self._call_loop(lambda: self._release(position, size_bytes))

    def _failed(self, error: BaseException) -> None:
        self._refusal = LogPoisoned(error)
        self._logger.warning("log-poisoned", error=repr(error))
        self._call_loop(self._tell_poison)

    def _call_loop(self, callback: Callable[[], None]) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:
            # The loop is closed: nobody is left who could be told. `close` tells what is durable, if it is called.
            return

    # Reading: any thread.

    def read(self, position: Position) -> Record:
        """The durable record of `position`; one read of the file. Raises RecordMissing, LogCorrupt, OSError."""
        if position > self._durable:
            raise RecordMissing(position)
        return self._index.read(position)

    def records(self, owner: str, after_seq: int = 0) -> Iterator[tuple[Position, Record]]:
        """The retained durable records of one owner with seq > after_seq, in log order; one read of the file for each.

        Which records those are is settled at the call. Raises like `read`; RecordMissing when retention removes one
        meanwhile.
        """
        positions = self._index.positions_of(owner, after_seq, self._durable)
        return ((Position(position), self._index.read(Position(position))) for position in positions)

    def seq_within(self, owner: str, after_seq: int, until_seq: int, bytes_max: int) -> int:
        """Where to begin to read, so that the owner's records up to `until_seq` have about `bytes_max`. See Index."""
        return self._index.seq_within(owner, after_seq, until_seq, bytes_max)

    def scan(self, after: int = 0) -> Iterator[tuple[Position, Record]]:
        """Every retained durable record behind `after`, oldest first, read in large pieces. Raises LogCorrupt, OSError.
        """
        return self._index.scan(after, self._durable)

    def owners(self) -> Mapping[str, tuple[int, int]]:
        """Owner -> (first retained seq, last seq), for owners with retained records. Loop thread; O(owners)."""
        return {owner: (entry.seqs[0], entry.seqs[-1]) for owner, entry in self._index.owners.items() if entry.seqs}

    def last_of(self, owner: str) -> Position:
        """Position of the owner's last sequenced record; 0 when none is retained."""
        return Position(self._index.last_of(owner))

    def next_of(self, owner: str, after: Position) -> Position | None:
        """Position of the owner's first retained record behind `after`, or None."""
        found = self._index.next_of(owner, after)
        return None if found is None else Position(found)

    # Retention.

    def collectable(self) -> Position | None:
        """The last position of the segments that are over the retention; None when none is. Any thread."""
        segments = self._index.segments
        count = self._over_retention(segments)
        return Position(segments[count - 1].last_position) if count else None

    def bytes_from(self, position: Position) -> int:
        """Bytes on the disk of the segments that hold `position` and what came after it. Any thread."""
        return sum(segment.size_bytes for segment in self._index.segments if segment.last_position >= position)

    @property
    def over_retention(self) -> int:
        """How many segments are over the retention and still there."""
        return self._over_retention(self._index.segments)

    def _over_retention(self, segments: Sequence[IndexedSegment]) -> int:
        """How many of the oldest segments are too old or too much."""
        total_bytes = sum(segment.size_bytes for segment in segments)
        count = 0
        for segment, following in pairwise(segments):
            age_s = (self._clock.now_ms() - following.created_ms) / 1000
            if age_s <= self._retain_s and total_bytes <= self._retain_bytes:
                break
            total_bytes -= segment.size_bytes
            count += 1
        return count

    def collect(self, releasable: Position | Callable[[Position], bool]) -> int:
        """Removes the oldest whole segments that nobody needs and that are over the retention.

        A segment goes when every position in it is releasable (at most the given position, or the function says so) and
        it is older than retain_s or the log is larger than retain_bytes. The one being written stays. Returns how many
        were removed. Blocks on the disk; from any thread. Raises OSError; then calling it again is harmless.
        """
        with self._collecting:
            segments = self._index.segments
            count = 0
            for segment in segments[: self._over_retention(segments)]:
                if not _is_releasable(releasable, segment.first_position, segment.last_position, self._durable):
                    break
                count += 1
            if count == 0:
                return 0
            line = self._term_file.line
            # The marker first: a segment below it may be gone, one above it may not.
            self._term_file.store(TermLine(line.term, segments[count].number, line.newest))
            self._index.drop_segments(count)
            for segment in segments[:count]:
                self._fs.unlink(segment.path)
            self._fs.fsync_directory(self._lock.path)
            self._logger.info("log-segments-removed", count=count, oldest=segments[count].number)
            return count


def _is_releasable(releasable: Position | Callable[[Position], bool], first: int, last: int, durable: int) -> bool:
    if last > durable:
        return False
    if callable(releasable):
        return all(releasable(Position(position)) for position in range(first, last + 1))
    return last <= releasable
