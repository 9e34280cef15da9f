"""Checkpoint: durable effects become lines and sidecars of the user's files.

    job = CheckpointJob.take(stream, held, now_ms)      loop, synchronous: what to write; held.pending starts anew
    await log.flush()                                   the caller: only durable effects are folded
    done = await checkpoint(job, files, log, executor, lambda: stream.head.seq)
    done.install(stream, held)                          loop, synchronous
        raises OutsideEdit          load the chat again (loading.load_chat with ours=stream)
               CheckpointFailed     the files are as they were, or the log knows; try again later
        on any exception the job's changes are pending again

Rules of this module (STORAGE "User files"):
- Before a file is touched, the log durably holds the size and CRC to come: a crash is told from an outside edit (F8).
- A file is appended to, or replaced by a verified one; never edited in place (F6). Untouched lines keep their bytes
  (F2).
- What was swapped out is looked at after the swap: an edit of the very last moment is swapped back (F7).
- Order: chat file, sidecars, chat_sync, CHECKPOINT record. Each is durable before the next.
- A half-done append is cut off again when the disk refuses the rest, unless somebody wrote behind it.
- Nothing here runs in the loop but taking, logging and installing. A cancelled caller does not stop a running step.
"""

from __future__ import annotations

import asyncio
import contextlib
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from typing import TypeVar

import msgspec

from tellback_protocol.floors import LOG_SUFFIX
from tellback_protocol.ids import Place, StateOwner, Version
from tellback_protocol.stream import Stream
from tellback_server.failpoint import failpoint
from tellback_server.fs import FileUnreadable, FileUnsafe
from tellback_server.log import Log
from tellback_server.records import (
    CHECKPOINT,
    INTENT,
    Checkpointed,
    FileIdentity,
    Intent,
    StateMark,
    encode,
    owner_key,
)
from tellback_server.store.files import FileStore, SyncMark, Watermark
from tellback_server.store.held import FileState, OutsideEdit, Pending, check_file, state_mark
from tellback_server.store.jsonl import Image, render, render_append
from tellback_server.store.touch import Plan, SyncFailed, append, create, remove_state, replace_state, rewrite

__all__ = ["CheckpointDone", "CheckpointFailed", "CheckpointJob", "OutsideEdit", "checkpoint", "in_thread"]

_Result = TypeVar("_Result")


class CheckpointFailed(Exception):
    """The disk refused. `cause` is the OSError."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(cause)
        self.cause = cause

    def __str__(self) -> str:
        return f"the files could not be written: {self.cause}"


class CheckpointJob(msgspec.Struct, kw_only=True):
    """What one checkpoint writes: a snapshot taken in the loop."""

    user: str
    name: str
    place: Place
    chat_id: str
    version: Version
    head: Version
    now_ms: int
    identity: FileIdentity | None
    image: Image
    marks: dict[str, StateMark]
    state_files: dict[str, FileIdentity]
    lines: int
    metadata: bytes
    appended: dict[str, bytes]
    """New messages, when only those are written."""
    messages: dict[str, bytes] | None
    """All messages, when the file is written whole; else None."""
    bare: set[str]
    states: dict[str, tuple[Version, bytes | None]]
    """Changed state documents; None: removed."""
    taken: Pending
    held: FileState

    @classmethod
    def take(cls, stream: Stream, held: FileState, now_ms: int) -> CheckpointJob | None:
        """A snapshot of everything pending at the stream's head, or None when nothing is.

        Cost: the new messages; one pointer a message when the file must be written whole.
        """
        pending = held.pending
        if not pending:
            return None
        assert not (stream.damage and (pending.rewrite or pending.appended)), "a damaged chat takes no commits"
        chat = stream.chat
        whole = pending.rewrite or held.identity is None or (bool(pending.appended) and not held.image.takes_appends)
        whole = whole and not isinstance(held.place, StateOwner)
        states: dict[str, tuple[Version, bytes | None]] = {}
        for namespace in pending.states:
            document = stream.states[namespace]
            assert document.version is not None, "a commit gave it one"
            states[namespace] = (document.version, document.data)
        if pending.reordered:
            for namespace, version, data in _moved_logs(stream, held):
                states.setdefault(namespace, (version, data))
        job = cls(
            user=stream.user,
            name=stream.name,
            place=held.place,
            chat_id=stream.chat_id,
            version=chat.version,
            head=stream.head,
            now_ms=now_ms,
            identity=held.identity,
            image=held.image,
            marks=dict(held.states),
            state_files=dict(held.state_files),
            lines=len(chat.messages),
            metadata=chat.metadata,
            appended={} if whole else {message_id: chat.messages[message_id] for message_id in pending.appended},
            messages=dict(chat.messages) if whole else None,
            bare=set(chat.bare) if whole else set(),
            states=states,
            taken=pending,
            held=held,
        )
        held.pending = Pending()
        return job

    def give_back(self, *, rewrite: bool = False) -> None:
        """The job was not done: its changes are pending again."""
        self.taken.rewrite = self.taken.rewrite or rewrite
        self.held.pending.give_back(self.taken)
        self.taken = Pending()


def _moved_logs(stream: Stream, held: FileState) -> Iterator[tuple[str, Version, bytes]]:
    """Logs of floor states whose file counts messages that have moved. Cost: those logs."""
    for namespace in stream.floors:
        document = stream.states[namespace + LOG_SUFFIX]
        mark = held.states.get(namespace + LOG_SUFFIX)
        if document.version is None or mark is None or (data := document.data) is None:
            continue
        if (mark.size_bytes, mark.crc32) != (len(data), zlib.crc32(data)):
            yield namespace + LOG_SUFFIX, document.version, data


class CheckpointDone(msgspec.Struct, kw_only=True):
    """What the files hold now."""

    identity: FileIdentity | None
    image: Image
    version: Version
    head: Version
    states: dict[str, StateMark]
    state_files: dict[str, FileIdentity]
    lines: int
    written: dict[str, tuple[bytes, bytes]]
    """Bare messages whose line got its id: line before and after."""
    size_bytes: int
    """Bytes written."""

    def install(self, stream: Stream, held: FileState) -> None:
        """Move what is known of the files on."""
        held.identity = self.identity
        held.image = self.image
        held.version = self.version
        held.head = self.head
        held.states = self.states
        held.state_files = self.state_files
        held.lines = self.lines
        for message_id, (before, after) in self.written.items():
            if stream.chat.messages.get(message_id) is before:
                stream.chat.messages[message_id] = after
                stream.chat.bare.discard(message_id)


async def checkpoint(
    job: CheckpointJob, files: FileStore, log: Log, executor: Executor, record_seq: Callable[[], int]
) -> CheckpointDone:
    """Folds a job into the files. Everything in `job` must be durable in the log already.

    `record_seq` tells the stream's seq now, for the records that this makes. Durable on return but for the CHECKPOINT
    record, without which a restart recognises the files by the INTENT. Raises OutsideEdit, CheckpointFailed, FileUnsafe
    and FileUnreadable (a link or directory in the way), LogPoisoned, LogClosed.
    """
    owner = owner_key(job.user, job.chat_id)
    try:
        plan = await in_thread(executor, lambda: _prepare(job, files))
        log.append(INTENT, owner, record_seq(), encode(_intent(job, plan)))
        await log.flush()
        failpoint("checkpoint.after_intent")
        done = await in_thread(executor, lambda: _carry_out(job, plan, files))
    except SyncFailed as error:
        # What the page cache holds cannot be believed any more: next time a new file is written (RELIABILITY fact 1).
        job.give_back(rewrite=True)
        raise CheckpointFailed(error.cause) from error.cause
    except (FileUnsafe, FileUnreadable):
        job.give_back()
        raise
    except OSError as error:
        job.give_back()
        raise CheckpointFailed(error) from error
    except BaseException:
        job.give_back()
        raise
    log.append(CHECKPOINT, owner, record_seq(), encode(_record(job, done)))
    return done


async def in_thread(executor: Executor, step: Callable[[], _Result]) -> _Result:
    """A step in its thread. A cancelled caller waits for its end: files are not left alone half-way."""
    future = asyncio.get_running_loop().run_in_executor(executor, step)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        while not future.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([future])
        if not future.cancelled():
            # Nobody is left who would want to know.
            future.exception()
        raise


def _intent(job: CheckpointJob, plan: Plan) -> Intent:
    states = {
        namespace: None if data is None else (len(data), zlib.crc32(data))
        for namespace, (_version, data) in job.states.items()
    }
    return Intent(plan.kind, job.head.seq, plan.identity, plan.size_bytes, plan.crc32, states)


def _record(job: CheckpointJob, done: CheckpointDone) -> Checkpointed:
    return Checkpointed(
        user=job.user,
        name=job.name,
        chat_id=job.chat_id,
        file=done.identity,
        version=done.version,
        head=done.head,
        states=done.states,
        inherited=done.image.inherited,
        # A chat that is damaged takes states only.
        rotten=job.held.rotten,
    )


# -- in the thread: first looking ------------------------------------------------------------------------------------


def _prepare(job: CheckpointJob, files: FileStore) -> Plan:
    """Checks that the files are those we know and works out the bytes to come. Writes nothing."""
    path = files.owner_path(job.user, job.place)
    if isinstance(job.place, StateOwner):
        if not files.has_owner(job.user, job.place):
            raise OutsideEdit(path, "is gone")
        identity, stat = None, None
    else:
        identity, stat = check_file(files, path, job.identity)
    for namespace in job.states:
        check_file(
            files, files.state_path(job.user, job.place, namespace), job.state_files.get(namespace), namespace
        )
    failpoint("checkpoint.after_check")
    plan = Plan(
        user=job.user,
        place=job.place,
        chat_id=job.chat_id,
        seq=job.head.seq,
        now_ms=job.now_ms,
        kind="none",
        path=path,
        data=b"",
        image=job.image,
        identity=identity,
        stat=stat,
        size_bytes=0 if identity is None else identity.size_bytes,
        crc32=0 if identity is None else identity.crc32,
        written={},
    )
    if job.messages is not None:
        rendered = render(job.image, job.messages, job.bare, job.metadata, job.chat_id, job.now_ms)
        plan.written = {key: (job.messages[key], line) for key, line in rendered.lines.items()}
        return _whole(plan, rendered.data, rendered.image)
    if job.appended:
        assert identity is not None, "without a file, all messages are in the job"
        assert stat is not None, "a known file has a stat"
        block, image = render_append(job.image, job.appended)
        if stat.links > 1:
            # Somebody's backup made of hard links must not grow with us: give this name a file of its own.
            return _whole(plan, files.read(path).data + block, image)
        plan.kind = "append"
        plan.data = block
        plan.image = image
        plan.size_bytes = identity.size_bytes + len(block)
        plan.crc32 = zlib.crc32(block, identity.crc32)
    return plan


def _whole(plan: Plan, data: bytes, image: Image) -> Plan:
    crc32 = zlib.crc32(data)
    plan.image = image
    if plan.identity is None:
        plan.kind = "create"
    elif not plan.identity.same_bytes(len(data), crc32):
        plan.kind = "rewrite"
    plan.data = data
    plan.size_bytes = len(data)
    plan.crc32 = crc32
    return plan


# -- in the thread: then touching ------------------------------------------------------------------------------------


def _carry_out(job: CheckpointJob, plan: Plan, files: FileStore) -> CheckpointDone:
    """Writes chat file, sidecars and chat_sync, each durable before the next."""
    identity = plan.identity
    if plan.kind != "none":
        with files.operation(plan.kind, plan.path, size_bytes=len(plan.data), crc32=plan.crc32):
            match plan.kind:
                case "append":
                    stat = append(plan, files)
                case "rewrite":
                    stat = rewrite(plan, files)
                case "create":
                    stat = create(plan, files)
        identity = FileIdentity(plan.size_bytes, plan.crc32, stat.mtime_ns, stat.inode)
    failpoint("checkpoint.after_chat")
    marks = dict(job.marks)
    state_files = dict(job.state_files)
    size_bytes = len(plan.data)
    for namespace, (version, data) in job.states.items():
        path = files.state_path(job.user, job.place, namespace)
        check_file(files, path, job.state_files.get(namespace), namespace)
        failpoint("checkpoint.before_state")
        if data is not None:
            stat = replace_state(files, path, data, job.state_files.get(namespace), namespace)
            marks[namespace] = state_mark(version, data, stat)
            state_files[namespace] = FileIdentity(len(data), zlib.crc32(data), stat.mtime_ns, stat.inode)
            size_bytes += len(data)
        else:
            remove_state(files, path, job.state_files.get(namespace), namespace)
            marks.pop(namespace, None)
            state_files.pop(namespace, None)
        failpoint("checkpoint.after_state")
    failpoint("checkpoint.before_sync_file")
    if identity is not None or isinstance(job.place, StateOwner):
        watermark = Watermark(0, 0, 0)
        if identity is not None:
            watermark = Watermark(identity.size_bytes, job.lines, identity.crc32)
        mark = SyncMark(job.chat_id, job.name, job.version, job.head, watermark, marks)
        files.write_sync(job.user, job.place, mark, job.now_ms)
    failpoint("checkpoint.after_sync_file")
    return CheckpointDone(
        identity=identity,
        image=plan.image,
        version=job.version,
        head=job.head,
        states=marks,
        state_files=state_files,
        lines=job.lines,
        written=plan.written,
        size_bytes=size_bytes,
    )
