"""Writer: the one thread that writes the log. Everything that waits becomes one batch: one write, one fdatasync.

Rules this module keeps:

- One thread, one descriptor: what wrote a batch is what syncs it. Not an executor, which other work could fill.
- Order of a commit: write, sync, check the term, tell (STORAGE S12). Nothing is told before the sync returned.
- The first error of a write, sync or close ends it for ever (poison). Nothing is tried again, nothing is told any more.
- A batch lies in one segment. Where it does not fit, a new segment is published first.
- The next segment is filled with zeros ahead of time, in a helper thread, once the current one is half full.
- After 50 ms without work one empty batch seals the log, so that an idle log does not end in a batch nobody vouches
  for.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from itertools import accumulate
from queue import Empty, SimpleQueue
from typing import Final

import msgspec

from tellback_server.clock import Clock
from tellback_server.failpoint import failpoint, kill_this_process
from tellback_server.fs import File, Fs
from tellback_server.log.format import (
    BATCH_HEADER_BYTES,
    SEGMENT_HEADER_BYTES,
    SegmentHeader,
    encode_batch,
)
from tellback_server.log.index import Index, IndexedSegment
from tellback_server.log.recovery import Recovered
from tellback_server.log.segment import Spare, make_spare, publish
from tellback_server.log.term import TermFile

__all__ = ["BATCH_BYTES_MAX", "Gathered", "LogStats", "Writer"]

BATCH_BYTES_MAX: Final = 4 << 20
"""A batch stops gathering past this, so that the first record in it does not wait for the bytes of the last."""
SEAL_AFTER_S: Final = 0.05
_SYNC_SAMPLES: Final = 4096
_SPARE_RETRY_S: Final = 1.0


class LogStats(msgspec.Struct, gc=False):
    """Counters since the start. Written by the writer thread; read by anyone, each number on its own."""

    batches: int = 0
    """Batches with records; seals are not counted."""
    seals: int = 0
    records: int = 0
    bytes: int = 0
    """Bytes of record data, without batch headers."""
    sync_s: deque[float] = msgspec.field(default_factory=lambda: deque(maxlen=_SYNC_SAMPLES))
    """The latest durations of write and sync together, in seconds, oldest first."""
    batch_records: deque[int] = msgspec.field(default_factory=lambda: deque(maxlen=_SYNC_SAMPLES))
    """How many records the latest batches had."""


class Gathered(msgspec.Struct, gc=False):
    """Encoded records, in order. They are joined once, where their batch is put together."""

    pieces: list[bytes] = []
    sizes: list[int] = []
    """Of the records."""
    size_bytes: int = 0
    """Of all of them."""


class _Stop:
    """The last thing in the queue."""


class Writer:
    """Takes encoded records and makes them durable. `submit` and `close` by the loop thread.

    `on_synced(last position, records' bytes)` and `on_failed(error)` are called in the writer thread.
    """

    def __init__(
        self,
        fs: Fs,
        directory: str,
        clock: Clock,
        recovered: Recovered,
        term_file: TermFile,
        *,
        segment_bytes: int,
        sync: bool,
        stats: LogStats,
        on_synced: Callable[[int, int], None],
        on_failed: Callable[[BaseException], None],
    ) -> None:
        self._fs = fs
        self._directory = directory
        self._clock = clock
        self._term_file = term_file
        self._segment_bytes = segment_bytes
        self._sync = sync
        self._stats = stats
        self._on_synced = on_synced
        self._on_failed = on_failed
        self._index: Index = recovered.index
        self._segment: IndexedSegment = recovered.segment
        self._header: SegmentHeader = recovered.header
        self._file: File = recovered.file
        self._offset = recovered.offset
        self._size_bytes = recovered.size_bytes
        self._next_batch = recovered.next_batch
        self._next_position = recovered.next_position
        self._previous_crc = recovered.previous_crc
        self._term = recovered.term
        self._written = recovered.header.number, recovered.offset
        """Set as one, because another thread reads it."""
        self._is_sealed = True
        self._queue: SimpleQueue[Gathered | _Stop] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="tellback-log", daemon=True)
        self._spare: Spare | None = None
        self._spare_thread: threading.Thread | None = None
        self._spare_failed_s = 0.0
        self.spare_error: OSError | None = None
        """Why the next segment could not be prepared (a full disk); None when all is well. Set by the helper thread."""

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def submit(self, records: Gathered) -> None:
        """Hands encoded records over, in order. Never blocks. They are the writer's from now on."""
        self._queue.put(records)

    def close(self) -> None:
        """Commits what waits, seals, ends both threads, closes the file. Blocks for as long as the disk takes."""
        if self._thread.ident is None:
            self._finish()
            return
        self._queue.put(_Stop())
        self._thread.join()

    def written(self) -> tuple[int, int]:
        """The segment that is written now, and where the last whole batch in it ends. From any thread."""
        return self._written

    # In the writer thread from here on.

    def _run(self) -> None:
        try:
            self._serve()
            self._finish()
        except BaseException as error:
            # Whatever it is, a commit may be half done: poison.
            self._on_failed(error)

    def _serve(self) -> None:
        get = self._queue.get
        soft_limit = min(BATCH_BYTES_MAX, self._segment_bytes - SEGMENT_HEADER_BYTES - BATCH_HEADER_BYTES)
        while True:
            try:
                item = get(timeout=self._patience_s)
            except Empty:
                if not self._is_sealed:
                    self._seal()
                if self.spare_error is not None:
                    # Writes are refused meanwhile, so no batch would ever ask for it again.
                    self._prepare_spare()
                continue
            # What waits now, and not what comes while it is gathered: a busy loop thread could feed that for ever.
            waiting = self._queue.qsize()
            records: Gathered | None = None
            while not isinstance(item, _Stop):
                if records is None:
                    records = item
                else:
                    records.pieces += item.pieces
                    records.sizes += item.sizes
                    records.size_bytes += item.size_bytes
                if waiting == 0 or records.size_bytes >= soft_limit:
                    break
                waiting -= 1
                # Nobody else takes from the queue, so what was counted is there.
                item = self._queue.get_nowait()
            if records is not None:
                self._commit(records)
            if isinstance(item, _Stop):
                return

    @property
    def _patience_s(self) -> float | None:
        """How long to wait for the next batch; None when there is nothing else to do."""
        if not self._is_sealed:
            return SEAL_AFTER_S
        is_making = self._spare_thread is not None and self._spare_thread.is_alive()
        return _SPARE_RETRY_S if is_making or self.spare_error is not None else None

    def _commit(self, records: Gathered) -> None:
        """One batch. When it returns, the batch is durable and told."""
        # Joined once, with room for the header in front: a second copy would cost as much as a checksum.
        data = bytearray().join((bytes(BATCH_HEADER_BYTES), *records.pieces))
        count, size_bytes = len(records.sizes), records.size_bytes
        started_s = self._clock.monotonic_s()
        offset = self._write(data, count)
        self._make_durable()
        stats = self._stats
        took_s = self._clock.monotonic_s() - started_s
        stats.sync_s.append(took_s)
        stats.batch_records.append(count)
        stats.batches += 1
        stats.records += count
        stats.bytes += size_bytes
        offsets = accumulate(records.sizes, initial=offset + BATCH_HEADER_BYTES)
        self._segment.offsets.extend(offsets)
        # accumulate also yields the end of the last record.
        del self._segment.offsets[-1]
        self._next_position += count
        self._is_sealed = False
        self._announce(self._next_position - 1, size_bytes)
        if self._offset * 2 > self._size_bytes:
            self._prepare_spare()

    def _seal(self) -> None:
        """An empty batch, which says that the one before it is durable."""
        self._write(bytearray(BATCH_HEADER_BYTES), 0)
        self._make_durable()
        self._stats.seals += 1
        self._is_sealed = True

    def _write(self, data: bytearray, count: int) -> int:
        """Writes the next batch, into a new segment when it does not fit. Returns its offset in the segment.

        `data` begins with room for the header, which is put there.
        """
        if self._offset + len(data) > self._size_bytes:
            self._roll(len(data))
        data[:BATCH_HEADER_BYTES], self._previous_crc = encode_batch(
            memoryview(data)[BATCH_HEADER_BYTES:],
            record_count=count,
            number=self._next_batch,
            durable_batch=self._next_batch - 1,
            first_position=self._next_position,
            term=self._term,
            previous_crc=self._previous_crc,
            salt=self._header.salt,
        )
        offset = self._offset
        failpoint("log.before_write")
        torn = failpoint("log.write")
        if torn is not None:
            self._file.pwrite(data[:torn], offset)
            kill_this_process()
        self._file.pwrite(data, offset)
        failpoint("log.after_write")
        self._offset = offset + len(data)
        self._written = self._header.number, self._offset
        self._next_batch += 1
        return offset

    def _make_durable(self) -> None:
        if self._sync:
            self._file.fdatasync()
        failpoint("log.after_sync")
        # After the sync: a successor raises the term before it reads, so an unchanged term means it will read this
        # batch.
        self._term_file.check()

    def _announce(self, position: int, size_bytes: int) -> None:
        failpoint("log.before_tell")
        self._on_synced(position, size_bytes)

    def _roll(self, needed_bytes: int) -> None:
        """Publishes the next segment and goes on in it. Every batch before it is durable."""
        failpoint("log.roll.begin")
        self._join_spare_thread()
        spare, self._spare = self._spare, None
        if spare is None or spare.size_bytes < SEGMENT_HEADER_BYTES + needed_bytes:
            if spare is not None:
                self._discard(spare)
            spare = make_spare(self._fs, self._directory, max(self._segment_bytes, SEGMENT_HEADER_BYTES + needed_bytes))
        header = SegmentHeader(
            number=self._header.number + 1,
            first_batch=self._next_batch,
            first_position=self._next_position,
            term=self._term,
            durable_batch=self._next_batch - 1,
            salt=self._clock.random_bits(32),
            previous_crc=self._previous_crc,
            created_ms=self._clock.now_ms(),
            size_bytes=spare.size_bytes,
        )
        path = publish(self._fs, self._directory, spare, header)
        old = self._file
        self._file = spare.file
        self._header = header
        self._offset = SEGMENT_HEADER_BYTES
        self._size_bytes = spare.size_bytes
        self._segment = IndexedSegment(
            self._fs, path, header.number, header.first_position, header.created_ms, spare.size_bytes
        )
        self._index.add_segment(self._segment)
        failpoint("log.roll.before_close")
        old.close()

    def _prepare_spare(self) -> None:
        """Starts the helper thread, unless a spare is there, is being made, or failed a moment ago."""
        if self._spare is not None or (self._spare_thread is not None and self._spare_thread.is_alive()):
            return
        if self.spare_error is not None and self._clock.monotonic_s() - self._spare_failed_s < _SPARE_RETRY_S:
            return
        self._spare_thread = threading.Thread(target=self._make_spare, name="tellback-log-spare", daemon=True)
        self._spare_thread.start()

    def _make_spare(self) -> None:
        try:
            self._spare = make_spare(self._fs, self._directory, self._segment_bytes)
            self.spare_error = None
        except OSError as error:
            # Nothing that was promised is in the spare: the roll tries once more, and poisons if it has to.
            self.spare_error = error
            self._spare_failed_s = self._clock.monotonic_s()

    def _join_spare_thread(self) -> None:
        thread, self._spare_thread = self._spare_thread, None
        if thread is not None:
            thread.join()

    def _discard(self, spare: Spare) -> None:
        spare.file.close()
        self._fs.unlink(spare.path)

    def _finish(self) -> None:
        """Seals, and lets go of everything."""
        if not self._is_sealed:
            self._seal()
        self._join_spare_thread()
        if self._spare is not None:
            self._discard(self._spare)
            self._spare = None
        self._file.close()
