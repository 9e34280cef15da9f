"""Planted bugs of the log, of its disk, and of what leaves before it is durable."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
from typing import Any

from tests.checker.planted import KILL, POWER, Around, bug, nothing, replace

SLOW_S = 0.02
"""How long a disk takes that is as slow as one under load."""


@bug("no-fsync", "durable", chaos=POWER)
def _no_fsync() -> None:
    from tellback_server.log.writer import Writer

    replace(Writer, "_make_durable", lambda self: self._term_file.check())


@bug("fsync-before-write", "durable", chaos=POWER)
def _fsync_before_write() -> None:
    from tellback_server.log.writer import Writer

    write = Writer._write

    def synced_first(self: Writer, data: bytearray, count: int) -> int:
        self._file.fdatasync()
        return write(self, data, count)

    replace(Writer, "_write", synced_first)
    _no_fsync()


@bug("ack-before-fsync", "durable", chaos=POWER)
def _ack_before_fsync() -> None:
    from tellback_server.log.writer import Writer

    write = Writer._write

    def told_at_once(self: Writer, data: bytearray, count: int) -> int:
        offset = write(self, data, count)
        if count:
            self._on_synced(self._next_position + count - 1, 0)
        time.sleep(SLOW_S)
        return offset

    replace(Writer, "_write", told_at_once)


def slow_sync() -> None:
    """No bug: a disk on which the moment between write and sync is long enough to be hit."""
    from tellback_server.log.writer import Writer

    make_durable = Writer._make_durable

    def slow(self: Writer) -> None:
        time.sleep(SLOW_S)
        make_durable(self)

    replace(Writer, "_make_durable", slow)


@bug("broadcast-before-fsync", "observed-durable", chaos=POWER)
def _broadcast_before_fsync() -> None:
    from tellback_server.audience import Audience
    from tellback_server.releases import Release
    from tellback_server.writes import Writes

    later = Audience.release_later

    def told_at_once(self: Audience, release: Release) -> None:
        if release.commit is not None:
            touched: set[Any] = set()
            self._tell([release.commit], release.tab, touched)
            self.broadcast(touched)
            release.commit = None
            for tab in touched:
                tab.outbox.flush()
        later(self, release)

    replace(Audience, "release_later", told_at_once)
    replace(Writes, "append_plain", lambda *_arguments: 0)
    slow_sync()


@bug("conflict-shows-what-is-not-durable", "observed-durable", chaos=POWER)
def _conflict_leaks() -> None:
    from tellback_server.audience import Audience
    from tellback_server.releases import Release

    later = Audience.release_later

    def at_once(self: Audience, release: Release) -> None:
        if release.answer is not None and b'"type":"conflict"' in release.answer:
            self.unreleased += 1
            self._hub._let_go(release)
        else:
            later(self, release)

    replace(Audience, "release_later", at_once)
    slow_sync()


@bug("no-directory-sync-of-a-segment", "durable", chaos=POWER)
def _no_directory_sync_of_a_segment() -> None:
    from tellback_server.log import recovery, segment, writer

    publish = segment.publish

    def unsynced(fs: Any, *arguments: Any) -> str:
        return publish(Around(fs, fsync_directory=nothing), *arguments)  # type: ignore[arg-type]

    replace(writer, "publish", unsynced)
    replace(recovery, "publish", unsynced)



@bug("no-directory-sync-of-a-rename", "durable", chaos=POWER, rounds=10)
def _no_directory_sync_of_a_rename() -> None:
    from tests.checker.power import JournalingFs

    sync = JournalingFs.fsync_directory

    def unsynced(self: JournalingFs, path: str) -> None:
        if ".tellback" in path:
            sync(self, path)

    replace(JournalingFs, "fsync_directory", unsynced)


@bug("sidecar-without-sync", "integrity-chain", chaos=POWER)
def _sidecar_without_sync() -> None:
    from tellback_server.fs import Fs

    write = Fs.write_atomically

    def unsynced(self: Fs, path: str, data: bytes, **named: Any) -> Any:
        if ".luker-state." not in path:
            return write(self, path, data, **named)
        fs = Around(self, create=lambda name: Around(self.create(name), fsync=nothing, fdatasync=nothing))
        return write(fs, path, data, **named)  # type: ignore[arg-type]

    replace(Fs, "write_atomically", unsynced)


@bug("files-ahead-of-the-log", "integrity-chain", chaos=POWER, settings={"checkpoint_interval_s": 0.01})
def _files_ahead_of_the_log() -> None:
    from tellback_server.log import Log

    async def at_once(_self: Log) -> None:
        return None

    replace(Log, "flush", at_once)
    slow_sync()


@bug("sync-tried-again-after-an-error", "durable", chaos=POWER, fail_syncs=True)
def _sync_tried_again() -> None:
    from tellback_server.log.writer import Writer

    def again(self: Writer) -> None:
        try:
            self._file.fdatasync()
        except OSError:
            self._file.fdatasync()
        self._term_file.check()

    replace(Writer, "_make_durable", again)


@bug("short-write-ignored", "durable", chaos=KILL)
def _short_write_ignored() -> None:
    from tellback_server.fs import File

    turns = itertools.count(1)

    def short(self: File, data: Any, offset: int) -> None:
        view = memoryview(data)
        cut = len(view) // 2 if len(view) < 8192 and next(turns) % 12 == 0 else len(view)
        os.pwrite(self._descriptor, view[:cut], offset)

    replace(File, "pwrite", short)


@bug("checksum-not-looked-at", "model-equality", chaos={"rot": 1}, rounds=10)
def _checksum_not_looked_at() -> None:
    import zlib

    from tellback_server.log import index, segment

    decode = index.decode_record

    def believing(data: bytes, offset: int = 0) -> Any:
        size = index.record_size(data, offset) if len(data) - offset >= index.RECORD_HEADER_BYTES else 0
        if size > len(data) - offset:
            return None
        body = data[offset + 4 : offset + size]
        return decode(zlib.crc32(body).to_bytes(4, "little") + body)

    replace(segment, "body_is_whole", lambda _header, _body: True)
    replace(index, "decode_record", believing)


@bug("torn-batch-taken-for-corruption", "durable", chaos=POWER, rounds=14)
def _torn_batch_is_corruption() -> None:
    from tellback_server.log import LogCorrupt
    from tellback_server.log.recovery import Ending, Walk

    end = Walk._end

    def strict(self: Walk, reader: Any, offset: int, damage: Any) -> Ending:
        if damage is not None:
            raise LogCorrupt(reader.path, offset, damage.reason, self.next_batch)
        return end(self, reader, offset, damage)

    replace(Walk, "_end", strict)
    slow_sync()


@bug("failed-batch-is-acknowledged", "durable", chaos=POWER, fail_syncs=True)
def _failed_batch_is_acknowledged() -> None:
    from tellback_server.log.writer import Gathered, Writer

    commit = Writer._commit

    def optimistic(self: Writer, records: Gathered) -> None:
        try:
            commit(self, records)
        except OSError:
            self._on_synced(self._next_position + len(records.sizes) - 1, 0)
            time.sleep(SLOW_S)
            raise

    replace(Writer, "_commit", optimistic)


@bug("lock-file-only-and-no-term", "durable", chaos={"rival": 1}, rounds=3)
def _no_lock() -> None:
    from tellback_server import lock
    from tellback_server.log.term import TermFile
    from tests.checker.power import JournalingFs

    class Unlocked:
        release = acquire = nothing

    replace(JournalingFs, "lock_directory", lambda _self, _path: Unlocked())
    replace(lock, "FileLock", lambda *_arguments, **_named: Unlocked())
    replace(TermFile, "check", nothing)


@bug("two-sync-threads", "durable", chaos=POWER)
def _two_sync_threads() -> None:
    """Two threads sync in turn, and a batch is told when the other one's sync returned."""
    from tellback_server.log.writer import Writer

    syncing: list[threading.Thread] = []

    def in_turn(self: Writer) -> None:
        file = self._file

        def sync() -> None:
            time.sleep(SLOW_S)
            with contextlib.suppress(OSError):
                file.fdatasync()

        syncing.append(threading.Thread(target=sync, daemon=True))
        syncing[-1].start()
        if len(syncing) > 1:
            syncing.pop(0).join()

    replace(Writer, "_make_durable", in_turn)
