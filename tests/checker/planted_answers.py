"""Planted bugs of op numbers, of what a write means, of what tabs are told, and of files and stores."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec

from tests.checker.planted import KILL, WIRES, bug, nothing, replace
from tests.checker.planted_log import slow_sync

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
            replace(module, "load_chat", forgetful)


@bug("number-without-a-fingerprint", "exactly-once", chaos=WIRES)
def _no_fingerprint() -> None:
    from tellback_protocol import decide

    replace(decide, "fingerprint", lambda _request: 1)


@bug("window-of-outcomes-too-small", "exactly-once", chaos=WIRES)
def _window_too_small() -> None:
    from tellback_protocol import outcomes

    replace(outcomes, "OUTCOMES_MAX", 1)


@bug("refusal-not-stored", "exactly-once", chaos=KILL, rounds=14)
def _refusal_not_stored() -> None:
    from tellback_server import records
    from tellback_server.writes import Writes

    log = Writes._log

    def unlogged(self: Writes, kind: int, seq: int, body: bytes) -> int:
        return self._actor.last_position if kind == records.STORED else log(self, kind, seq, body)

    replace(Writes, "_log", unlogged)


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

    replace(writes, "decide", again)


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

    replace(Work, "patch_message", by_half)


@bug("base-not-compared", "conflict-justified", chaos=WIRES)
def _base_not_compared() -> None:
    from tellback_protocol.bases import Bases

    replace(Bases, "_check", nothing)


@bug("conflict-for-nothing", "conflict-justified", chaos=WIRES)
def _conflict_for_nothing() -> None:
    from tellback_protocol import bases

    check = bases.Bases._check
    turns = itertools.count(1)

    def moody(self: Any, base: Any, version: Any, namespace: Any, *rest: Any) -> None:
        if version is not None and base == version.integrity and next(turns) % 5 == 0:
            raise bases.Conflicting(version, None, namespace or None)
        check(self, base, version, namespace, *rest)

    replace(bases.Bases, "_check", moody)


@bug("parent-refused-and-carried-out-all-the-same", "session-order", chaos=WIRES, rounds=12)
def _parent_does_not_matter() -> None:
    from tellback_protocol.bases import Bases
    from tellback_protocol.outcomes import Outcome

    def any_outcome(self: Bases, base: Any) -> Outcome:
        found = self.stream.sessions[self.session].outcome(base.op)
        assert found is not None
        return found if found.integrity is not None else Outcome("ack", 0, b"", self.stream.head.integrity)

    replace(Bases, "_ack_of", any_outcome)


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
    replace(writes, "codec", Codec())


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

    replace(Clock, "integrity", tired)


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

    replace(Audience, "release", only_if_open)
    replace(Audience, "release_run", run_only_if_open)
    slow_sync()


@bug("replay-misses-the-last-commit", "broadcast-stream", chaos=WIRES)
def _replay_misses_one() -> None:
    from tellback_server.audience import Audience

    follow = Audience._follow

    def shorter(self: Audience, tab: Any, subscription: Any, following: Any) -> None:
        if len(following.replay) > 1:
            following.replay = following.replay[:-1]
        follow(self, tab, subscription, following)

    replace(Audience, "_follow", shorter)


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

    replace(Hub, "on_durable", sorted_first)
    slow_sync()


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

    replace(Audience, "broadcast", twice)


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

    replace(reads, "answer_open", stale)


# -- files and stores ------------------------------------------------------------------------------------------------


@bug("files-forget-a-message", "model-equality", chaos=KILL)
def _files_forget_a_message() -> None:
    from tellback_server import checkpoint

    render = checkpoint.render

    def fewer(image: Any, messages: dict[str, bytes], *rest: Any) -> Any:
        kept = list(messages.items())
        return render(image, dict(kept[:3] + kept[4:]), *rest)

    replace(checkpoint, "render", fewer)


@bug("sidecar-forgotten", "model-equality", chaos=KILL)
def _sidecar_forgotten() -> None:
    from tellback_server.checkpoint import CheckpointJob

    take = CheckpointJob.take.__func__  # type: ignore[attr-defined]
    turns = itertools.count(1)

    def forgetful(cls: Any, stream: Any, held: Any, now_ms: int) -> Any:
        if next(turns) % 3 == 0:
            held.pending.states.clear()
        return take(cls, stream, held, now_ms)

    replace(CheckpointJob, "take", classmethod(forgetful))


@bug("rename-forgets-a-sidecar", "integrity-chain", chaos=KILL, rounds=14)
def _rename_forgets_a_sidecar() -> None:
    from tellback_server import operations

    move_all = operations._move_all

    def without_states(files: Any, operation: Any) -> None:
        moves = [move for move in operation.moves if ".luker-state." not in move.source or "chat_sync" in move.source]
        move_all(files, msgspec.structs.replace(operation, moves=moves))

    replace(operations, "_move_all", without_states)


@bug("store-told-as-written-before-its-commit", "backends", chaos=KILL, store="sqlite://{folder}/store/chats.db")
def _flushed_before_commit() -> None:
    from tellback_server.store.sqlite import SqliteStore

    save = SqliteStore.save
    waiting: list[tuple[Any, ...]] = []

    def later(self: Any, *arguments: Any) -> None:
        waiting.append(arguments)
        if len(waiting) > 1:
            save(self, *waiting.pop(0))

    replace(SqliteStore, "save", later)


@bug(
    "backup-told-as-flushed-before-its-commit", "backends", chaos=KILL, store="files://{folder}/store/files",
    backup="sqlite://{folder}/store/backup.db",
)
def _backup_flushed_before_commit() -> None:
    _flushed_before_commit()
