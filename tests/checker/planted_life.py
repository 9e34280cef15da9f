"""Planted bugs of what becomes of a chat as a whole: recovery, retention, trash, backups, edits of other programs."""

from __future__ import annotations

from typing import Any

import msgspec

from tests.checker.planted import KILL, bug, nothing, replace

BACKUPS = {"backup": 1, "copy": 1, "restore": 2}
EDITS = {"edit": 3, "wires": 1}


# -- recovery --------------------------------------------------------------------------------------------------------


@bug("tail-cut-in-the-middle", "durable", chaos={"rot": 1}, rounds=10)
def _tail_cut_in_the_middle() -> None:
    """Damage ends the log, whatever a later batch knew to be durable."""
    from tellback_server.log import segment
    from tellback_server.log.recovery import Ending, Walk

    def lenient(_self: Walk, reader: Any, offset: int, damage: Any) -> Ending:
        return Ending(reader.path, offset, damage, reader.last_nonzero(offset))

    replace(segment, "repair_body", nothing)
    replace(Walk, "_end", lenient)


@bug("length-not-capped", "durable", chaos={"rot-length": 1}, rounds=10)
def _length_not_capped() -> None:
    """How long a batch is, its header says; nobody asks for the header's checksum."""
    from tellback_server.log import segment

    decode = segment.decode_batch_header

    def believing(data: bytes, salt: int, offset: int = 0) -> Any:
        from tellback_server.log import format

        found = decode(data, salt, offset)
        if found is None and data[offset : offset + 4] == format.BATCH_MAGIC:
            _magic, crc, *fields, _reserved = format._BATCH_STRUCT.unpack_from(data, offset)
            found = format.BatchHeader(*fields, crc)
        return found

    replace(segment, "decode_batch_header", believing)
    replace(segment, "repair_body", nothing)


@bug("recovery-does-it-twice", "durable", chaos=KILL, settings={"checkpoint_interval_s": 0.01})
def _recovery_does_it_twice() -> None:
    """What the files hold already is put into them once more."""
    from tellback_server.owner_past import OwnerPast

    pending = OwnerPast.pending

    def again(self: OwnerPast) -> Any:
        found = pending(self)
        return [*self.done()[-1:], *found] if self.base is not None else found

    replace(OwnerPast, "pending", again)


@bug(
    "log-let-go-before-the-files-hold-it", "durable", chaos=KILL,
    settings={
        "log_segment_bytes": 16 << 10, "log_retain_bytes": 0, "checkpoint_interval_s": 60.0,
        "checkpoint_debounce_s": 60.0,
    },
)
def _log_let_go() -> None:
    from tellback_server import keeper
    from tellback_server.log import Log

    collect = Log.collect

    def greedy(self: Log, _releasable: Any) -> int:
        return collect(self, lambda _position: True)

    replace(Log, "collect", greedy)
    for name in ("COLLECT_S", "SWEEP_S"):
        replace(keeper, name, 0.02)


# -- branches, backups, edits ------------------------------------------------------------------------------------------


@bug("branch-takes-all", "model-equality", chaos={"wires": 1}, rounds=16)
def _branch_takes_all() -> None:
    """The new chat has the messages behind its branch point, too."""
    from tellback_server import file_room, planning

    stage = planning.stage_branch

    def whole(files: Any, plan: Any, stream: Any, held: Any, twig: Any, *rest: Any) -> Any:
        twig = msgspec.structs.replace(twig, messages={**stream.chat.messages, **twig.messages})
        return stage(files, plan, stream, held, twig, *rest)

    for module in (planning, file_room):
        if hasattr(module, "stage_branch"):
            replace(module, "stage_branch", whole)


@bug("backup-without-what-waits", "read-your-writes", chaos=BACKUPS, settings={
    "checkpoint_interval_s": 5.0, "checkpoint_debounce_s": 5.0,
})
def _backup_without_what_waits() -> None:
    """A backup calls itself by the version of the chat, and holds what the files hold."""
    from tellback_server.backups import Backups

    async def at_once(self: Backups, actor: Any, reason: Any) -> Any:
        return await self.take(actor, reason)

    replace(Backups, "keep", at_once)


@bug("another-backup-restored", "model-equality", chaos=BACKUPS, rounds=12)
def _another_backup_restored() -> None:
    from tellback_server.backup_folder import BackupFolder

    find = BackupFolder.find

    def newest(self: BackupFolder, user: str, chat_id: str, backup: str) -> Any:
        return find(self, user, chat_id, backup) and find(self, user, chat_id, "last")

    replace(BackupFolder, "find", newest)


@bug("given-up-without-a-backup", "durable", chaos=EDITS, rounds=12, settings={"checkpoint_interval_s": 0.01})
def _given_up_without_a_backup() -> None:
    """Another program's file lacks our messages, and nobody keeps them."""
    from tellback_server.store.files import FileStore

    replace(FileStore, "backup", lambda _self, _user, chat_id, *_rest: chat_id)


@bug("edit-undone", "durable", chaos={"edit": 1}, rounds=12, settings={"checkpoint_interval_s": 0.01})
def _edit_undone() -> None:
    """The server writes the file as it knows it, over what another program has written."""
    from tellback_server import adoption, loading

    decide = adoption.decide_adoption

    def stubborn(theirs: Any, ours: Any, *rest: Any, **named: Any) -> Any:
        found = decide(ours, ours, *rest, **named)
        del theirs
        return found

    replace(loading, "decide_adoption", stubborn)
