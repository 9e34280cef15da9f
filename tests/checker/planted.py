"""Bugs, planted in a real server: `prepare` replaces parts of its modules in its own process before it starts.

Each is a mistake that a server of this kind has made somewhere (RELIABILITY, "Planted bugs"), with the invariant that
must name it, and the plan of runs in which it shows. The product has no hooks for this.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

SLOW_S = 0.02
"""How long a disk takes that is as slow as one under load."""
POWER = {"power": 1}
KILL = {"kill": 1}
WIRES = {"wires": 1}


class Bug(NamedTuple):
    """A planted bug."""

    caught_by: str
    """The invariant that names it."""
    plant: Callable[[], None]
    plan: dict[str, Any]
    """Of the runs in which it shows."""


BUGS: dict[str, Bug] = {}


def bug(name: str, caught_by: str, **plan: Any) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Registers what plants a bug."""

    def register(plant: Callable[[], None]) -> Callable[[], None]:
        BUGS[name] = Bug(caught_by, plant, plan)
        return plant

    return register


def prepare(name: str) -> None:
    """The server that starts now has this bug."""
    BUGS[name].plant()


class Around:
    """A file system, or a file, with some of its methods replaced."""

    def __init__(self, inner: Any, **methods: Callable[..., Any]) -> None:
        self._inner = inner
        self.__dict__.update(methods)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __enter__(self) -> Around:
        return self

    def __exit__(self, *exception: object) -> None:
        self._inner.close()


def _nothing(*_arguments: Any, **_named: Any) -> None:
    return None


# -- the log and its disk --------------------------------------------------------------------------------------------


@bug("no-fsync", "durable", chaos=POWER)
def _no_fsync() -> None:
    from tellback_server.log.writer import Writer

    Writer._make_durable = lambda self: self._term_file.check()  # type: ignore[method-assign]


@bug("fsync-before-write", "durable", chaos=POWER)
def _fsync_before_write() -> None:
    from tellback_server.log.writer import Writer

    write = Writer._write

    def synced_first(self: Writer, data: bytearray, count: int) -> int:
        self._file.fdatasync()
        return write(self, data, count)

    Writer._write = synced_first  # type: ignore[method-assign]
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

    Writer._write = told_at_once  # type: ignore[method-assign]


def _slow_sync() -> None:
    """No bug: a disk on which the moment between write and sync is long enough to be hit."""
    from tellback_server.log.writer import Writer

    make_durable = Writer._make_durable

    def slow(self: Writer) -> None:
        time.sleep(SLOW_S)
        make_durable(self)

    Writer._make_durable = slow  # type: ignore[method-assign]


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

    Audience.release_later = told_at_once  # type: ignore[method-assign]
    Writes.append_plain = lambda *_arguments: 0  # type: ignore[method-assign]
    _slow_sync()


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

    Audience.release_later = at_once  # type: ignore[method-assign]
    _slow_sync()


@bug("no-directory-sync-of-a-segment", "durable", chaos=POWER)
def _no_directory_sync_of_a_segment() -> None:
    from tellback_server.log import recovery, segment, writer

    publish = segment.publish

    def unsynced(fs: Any, *arguments: Any) -> str:
        return publish(Around(fs, fsync_directory=_nothing), *arguments)  # type: ignore[arg-type]

    writer.publish = recovery.publish = unsynced  # type: ignore[assignment]


@bug("no-directory-sync-of-a-rename", "durable", chaos=POWER, rounds=10)
def _no_directory_sync_of_a_rename() -> None:
    from tests.checker.power import JournalingFs

    sync = JournalingFs.fsync_directory

    def unsynced(self: JournalingFs, path: str) -> None:
        if ".tellback" in path:
            sync(self, path)

    JournalingFs.fsync_directory = unsynced  # type: ignore[method-assign]


@bug("sidecar-without-sync", "integrity-chain", chaos=POWER)
def _sidecar_without_sync() -> None:
    from tellback_server.fs import Fs

    write = Fs.write_atomically

    def unsynced(self: Fs, path: str, data: bytes, **named: Any) -> Any:
        if ".luker-state." not in path:
            return write(self, path, data, **named)
        fs = Around(self, create=lambda name: Around(self.create(name), fsync=_nothing, fdatasync=_nothing))
        return write(fs, path, data, **named)  # type: ignore[arg-type]

    Fs.write_atomically = unsynced  # type: ignore[method-assign]


@bug("files-ahead-of-the-log", "integrity-chain", chaos=POWER, settings={"checkpoint_interval_s": 0.01})
def _files_ahead_of_the_log() -> None:
    from tellback_server.log import Log

    async def at_once(_self: Log) -> None:
        return None

    Log.flush = at_once  # type: ignore[method-assign]
    _slow_sync()


@bug("sync-tried-again-after-an-error", "durable", chaos=POWER, fail_syncs=True)
def _sync_tried_again() -> None:
    from tellback_server.log.writer import Writer

    def again(self: Writer) -> None:
        try:
            self._file.fdatasync()
        except OSError:
            self._file.fdatasync()
        self._term_file.check()

    Writer._make_durable = again  # type: ignore[method-assign]


@bug("short-write-ignored", "durable", chaos=KILL)
def _short_write_ignored() -> None:
    from tellback_server.fs import File

    turns = itertools.count(1)

    def short(self: File, data: Any, offset: int) -> None:
        view = memoryview(data)
        cut = len(view) // 2 if len(view) < 8192 and next(turns) % 12 == 0 else len(view)
        os.pwrite(self._descriptor, view[:cut], offset)

    File.pwrite = short  # type: ignore[method-assign]


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

    segment.body_is_whole = lambda _header, _body: True
    index.decode_record = believing


@bug("torn-batch-taken-for-corruption", "durable", chaos=POWER, rounds=14)
def _torn_batch_is_corruption() -> None:
    from tellback_server.log import LogCorrupt
    from tellback_server.log.recovery import Ending, Walk

    end = Walk._end

    def strict(self: Walk, reader: Any, offset: int, damage: Any) -> Ending:
        if damage is not None:
            raise LogCorrupt(reader.path, offset, damage.reason, self.next_batch)
        return end(self, reader, offset, damage)

    Walk._end = strict  # type: ignore[method-assign]
    _slow_sync()


@bug("failed-batch-is-acknowledged", "durable", chaos=POWER, fail_syncs=True)
def _failed_batch_is_acknowledged() -> None:
    from tellback_server.log.writer import Writer

    commit = Writer._commit

    def optimistic(self: Writer, records: list[bytes]) -> None:
        try:
            commit(self, records)
        except OSError:
            self._on_synced(self._next_position + len(records) - 1, 0)
            time.sleep(SLOW_S)
            raise

    Writer._commit = optimistic  # type: ignore[method-assign]


@bug("lock-file-only-and-no-term", "durable", chaos={"rival": 1}, rounds=3)
def _no_lock() -> None:
    import tests.checker.power as power
    from tellback_server.log.log import Log  # noqa: F401  The lock of the log is the same call.
    from tellback_server.log.term import TermFile

    class Unlocked:
        path = ""

        def release(self) -> None:
            return None

    power.JournalingFs.lock_directory = lambda _self, _path: Unlocked()  # type: ignore[assignment, method-assign, return-value]
    TermFile.check = _nothing  # type: ignore[method-assign]
    import tellback_server.lock

    class NoFileLock:
        def __init__(self, *_arguments: Any, **_named: Any) -> None:
            pass

        acquire = release = _nothing

    tellback_server.lock.FileLock = NoFileLock  # type: ignore[assignment, misc]


# -- op numbers ------------------------------------------------------------------------------------------------------


@bug("outcomes-lost-at-a-restart", "exactly-once", chaos=KILL)
def _outcomes_lost() -> None:
    from tellback_server import loading

    load = loading.load_chat

    def forgetful(*arguments: Any, **named: Any) -> Any:
        loaded = load(*arguments, **named)
        if isinstance(loaded, loading.LoadedStream):
            loaded.stream.sessions.clear()
        return loaded

    from tellback_server import file_room

    for module in (loading, file_room):
        if getattr(module, "load_chat", None) is load:
            module.load_chat = forgetful  # type: ignore[attr-defined]


@bug("number-without-a-fingerprint", "exactly-once", chaos=WIRES)
def _no_fingerprint() -> None:
    from tellback_protocol import decide

    decide.fingerprint = lambda _request: 1


@bug("window-of-outcomes-too-small", "exactly-once", chaos=WIRES)
def _window_too_small() -> None:
    from tellback_protocol import outcomes

    outcomes.OUTCOMES_MAX = 1  # type: ignore[misc]


@bug("refusal-not-stored", "exactly-once", chaos=KILL, rounds=14)
def _refusal_not_stored() -> None:
    from tellback_server import records
    from tellback_server.writes import Writes

    log = Writes._log

    def unlogged(self: Writes, kind: int, seq: int, body: bytes) -> int:
        return self._actor.last_position if kind == records.STORED else log(self, kind, seq, body)

    Writes._log = unlogged  # type: ignore[method-assign]


@bug("resent-op-is-carried-out-again", "exactly-once", chaos=WIRES)
def _carried_out_again() -> None:
    """Numbers are not looked at: a resent op is a new one."""
    from tellback_server import writes

    decide = writes.decide

    def again(stream: Any, request: Any, session: str, *arguments: Any, **named: Any) -> Any:
        if isinstance(request.op, int) and request.op < stream.next_op(session):
            ops = stream.sessions[session]
            request = msgspec.structs.replace(request, op=ops.last + 1)
        return decide(stream, request, session, *arguments, **named)

    writes.decide = again


# -- what a write means ----------------------------------------------------------------------------------------------


@bug("patch-applied-by-half", "model-equality", chaos=WIRES)
def _patch_by_half() -> None:
    from tellback_protocol.errors import Refused
    from tellback_protocol.work import Work

    whole = Work.patch_message

    def by_half(self: Work, message_id: str, raw: bytes, operations: list[Any], where: str) -> None:
        try:
            whole(self, message_id, raw, operations, where)
        except Refused:
            fitting = operations[:-1]
            whole(self, message_id, msgspec.json.encode(fitting), fitting, where)

    Work.patch_message = by_half  # type: ignore[method-assign]


@bug("base-not-compared", "conflict-justified", chaos=WIRES)
def _base_not_compared() -> None:
    from tellback_protocol.bases import Bases

    Bases._check = _nothing  # type: ignore[method-assign]


@bug("conflict-for-nothing", "conflict-justified", chaos=WIRES)
def _conflict_for_nothing() -> None:
    from tellback_protocol import bases

    check = bases.Bases._check
    turns = itertools.count(1)

    def moody(self: Any, base: Any, version: Any, namespace: Any, *rest: Any) -> None:
        if version is not None and base == version.integrity and next(turns) % 5 == 0:
            raise bases.Conflicting(version, None, namespace or None)
        check(self, base, version, namespace, *rest)

    bases.Bases._check = moody  # type: ignore[method-assign]


@bug("parent-refused-and-carried-out-all-the-same", "session-order", chaos=WIRES, rounds=12)
def _parent_does_not_matter() -> None:
    from tellback_protocol.bases import Bases
    from tellback_protocol.outcomes import Outcome

    def any_outcome(self: Bases, base: Any) -> Outcome:
        found = self.stream.sessions[self.session].outcomes[base.op]
        return found if found.integrity is not None else Outcome("ack", 0, b"", self.stream.head.integrity)

    Bases._ack_of = any_outcome  # type: ignore[method-assign]


@bug("answer-lies", "no-phantom", chaos=WIRES)
def _answer_lies() -> None:
    """What was stored is told as refused."""
    from tellback_server import writes

    answer = writes.codec.answer
    turns = itertools.count(1)

    def lying(kind: str, *arguments: Any) -> bytes:
        if kind == "ack" and next(turns) % 15 == 0:
            request_id, owner_json, op, _body, *rest = arguments
            error = b'"code":"bad-frame","message":"no","retry":"never"'
            return answer("error", request_id, owner_json, op, error, *rest)
        return answer(kind, *arguments)

    class Codec:
        def __getattr__(self, name: str) -> Any:
            return lying if name == "answer" else getattr(writes_codec, name)

    writes_codec = writes.codec
    writes.codec = Codec()  # type: ignore[assignment]


@bug("integrity-used-twice", "integrity-chain", chaos=WIRES)
def _integrity_twice() -> None:
    from tellback_server.clock import Clock

    fresh = Clock.integrity
    last: list[str] = []

    def tired(self: Clock) -> str:
        if len(last) < 12:
            last.append(fresh(self))
            return last[-1]
        return last.pop(0)

    Clock.integrity = tired  # type: ignore[method-assign, assignment]


# -- what tabs are told ----------------------------------------------------------------------------------------------


@bug("closed-tab-takes-its-commit-along", "broadcast-stream", chaos=WIRES, rounds=14)
def _closed_tab() -> None:
    from tellback_server.audience import Audience

    release, release_run = Audience.release, Audience.release_run

    def only_if_open(self: Audience, one: Any, touched: Any) -> bool:
        if one.tab is not None and not one.tab.is_open:
            self.unreleased -= 1
            return False
        return release(self, one, touched)

    def run_only_if_open(self: Audience, run: Any, touched: Any) -> bool:
        if not run.tab.is_open:
            self.unreleased -= len(run.acks)
            return False
        return release_run(self, run, touched)

    Audience.release = only_if_open  # type: ignore[method-assign]
    Audience.release_run = run_only_if_open  # type: ignore[method-assign]
    _slow_sync()


@bug("replay-misses-the-last-commit", "broadcast-stream", chaos=WIRES)
def _replay_misses_one() -> None:
    from tellback_server.audience import Audience

    follow = Audience._follow

    def shorter(self: Audience, tab: Any, subscription: Any, following: Any) -> None:
        if len(following.replay) > 1:
            following.replay = following.replay[:-1]
        follow(self, tab, subscription, following)

    Audience._follow = shorter  # type: ignore[method-assign]


@bug("clock-decides-the-order", "broadcast-stream", chaos=WIRES)
def _clock_decides() -> None:
    """What became durable together leaves in the order of somebody's clock."""
    from tellback_server.hub import Hub

    on_durable = Hub.on_durable

    def sorted_first(self: Hub, position: Any) -> None:
        due = [release for release in self.releases if release.position <= position]
        for _ in due:
            self.releases.popleft()
        for release in sorted(due, key=lambda one: id(one.tab), reverse=True)[::-1]:
            self.releases.appendleft(release)
        on_durable(self, position)

    Hub.on_durable = sorted_first  # type: ignore[method-assign]
    _slow_sync()


@bug("told-twice", "broadcast-stream", chaos=WIRES)
def _told_twice() -> None:
    from tellback_server.audience import Audience

    broadcast = Audience.broadcast

    def twice(self: Audience, touched: Any) -> None:
        told = list(self._told)
        broadcast(self, touched)
        if len(told) > 1:
            self._told = told
            broadcast(self, touched)

    Audience.broadcast = twice  # type: ignore[method-assign]


@bug("opened-shows-the-checkpoint", "read-your-writes", chaos=WIRES, settings={"checkpoint_interval_s": 5.0})
def _opened_is_stale() -> None:
    """A newcomer gets the version that the files have, not the one that is durable."""
    from tellback_server import reads

    answer = reads.answer_open
    heads: dict[str, bytes] = {}

    def stale(stream: Any, *arguments: Any, **named: Any) -> Any:
        opened, frame, following = answer(stream, *arguments, **named)
        now = b'"head":' + stream.head.encoded()
        before = heads.setdefault(stream.chat_id, now)
        return opened, frame.replace(now, before), following

    reads.answer_open = stale


# -- files and stores ------------------------------------------------------------------------------------------------


@bug("files-forget-a-message", "model-equality", chaos=KILL)
def _files_forget_a_message() -> None:
    from tellback_server import checkpoint

    append = checkpoint.render_append
    whole = checkpoint.render

    def fewer(image: Any, appended: dict[str, bytes]) -> Any:
        return append(image, dict(list(appended.items())[:1]))

    checkpoint.render_append = fewer
    checkpoint.render = whole


@bug("sidecar-forgotten", "model-equality", chaos=KILL)
def _sidecar_forgotten() -> None:
    from tellback_server.checkpoint import CheckpointJob

    take = CheckpointJob.take.__func__  # type: ignore[attr-defined]
    turns = itertools.count(1)

    def forgetful(cls: Any, stream: Any, held: Any, now_ms: int) -> Any:
        if next(turns) % 3 == 0:
            held.pending.states.clear()
        return take(cls, stream, held, now_ms)

    CheckpointJob.take = classmethod(forgetful)  # type: ignore[assignment]


@bug("rename-forgets-a-sidecar", "model-equality", chaos=KILL, rounds=14)
def _rename_forgets_a_sidecar() -> None:
    from tellback_server import operations

    move_all = operations._move_all

    def without_states(files: Any, operation: Any) -> None:
        operation.moves = [
            move for move in operation.moves if ".luker-state." not in move.source or "chat_sync" in move.source
        ]
        move_all(files, operation)

    operations._move_all = without_states


@bug("store-told-as-written-before-its-commit", "backends", chaos=KILL, store="sqlite://{folder}/store/chats.db")
def _flushed_before_commit() -> None:
    from tellback_server.store.sqlite import SqliteStore

    save = SqliteStore.save
    waiting: list[tuple[Any, ...]] = []

    def later(self: Any, *arguments: Any) -> None:
        waiting.append(arguments)
        if len(waiting) > 1:
            save(self, *waiting.pop(0))

    SqliteStore.save = later  # type: ignore[method-assign]
