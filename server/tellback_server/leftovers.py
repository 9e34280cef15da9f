"""What the log tells at the start: names of chats by their ids, and chats whose commits a crash kept out of the files.

Rules of this module:
- One streaming pass over the retained log; only small records are decoded.
"""

from __future__ import annotations

import msgspec

from tellback_protocol.effects import decode_commit
from tellback_protocol.generations import NAMESPACE, states_told
from tellback_server.log import Log
from tellback_server.operations import Operation, decode_operation
from tellback_server.records import ADOPT, ANCHOR, CHECKPOINT, COMMIT, DONE, OPERATION, decode_base, decode_done

GENERATIONS = NAMESPACE.encode()


class Leftovers(msgspec.Struct):
    """See the module."""

    names: dict[tuple[str, str], str]
    """By user and chat_id; of two chats with one name the later one comes last."""
    unfolded: list[tuple[str, str]]
    """User and name of chats with commits behind their last checkpoint, or with a generation that ran."""


class _Seen(msgspec.Struct):
    user: str = ""
    name: str = ""
    committed: int = 0
    folded: int = 0
    running: set[str] = msgspec.field(default_factory=set)
    """Generations."""


def find_leftovers(log: Log) -> Leftovers:
    """Blocks: reads the retained log."""
    owners: dict[str, _Seen] = {}
    names: dict[tuple[str, str], str] = {}
    moving: dict[str, Operation] = {}
    for _position, record in log.scan():
        if record.kind == OPERATION:
            operation = decode_operation(record.body)
            if operation.folder_moves or (operation.stored is not None and operation.stored.renames):
                moving[operation.integrity] = operation
            continue
        done = decode_done(record.body) if record.kind == DONE else None
        if done is not None and done.integrity in moving:
            _follow(moving.pop(done.integrity), owners, names)
        if done is not None and done.gone:
            seen = owners.pop(record.owner, None)
            if seen is not None:
                names.pop((seen.user, record.owner.removeprefix(f"{seen.user}/")), None)
            continue
        if record.kind not in (ANCHOR, CHECKPOINT, ADOPT, COMMIT):
            continue
        seen = owners.setdefault(record.owner, _Seen())
        if record.kind == COMMIT:
            seen.committed = record.seq
            if GENERATIONS in record.body:
                for generation_id, state in states_told(decode_commit(record.body).ops).items():
                    (seen.running.add if state == "running" else seen.running.discard)(generation_id)
            continue
        base = decode_base(record.body)
        seen.user, seen.name = base.user, base.name
        names.pop((base.user, base.chat_id), None)
        names[base.user, base.chat_id] = base.name
        if record.kind != ANCHOR:
            seen.folded = base.head.seq
        # What an adoption put on top of another program's file is not in the file yet.
        if record.kind == ADOPT:
            seen.folded = base.head.seq - 1
    unfolded = [
        (seen.user, seen.name) for seen in owners.values()
        if seen.name and (seen.committed > seen.folded or seen.running)
    ]
    return Leftovers(names, unfolded)


def _follow(operation: Operation, owners: dict[str, _Seen], names: dict[tuple[str, str], str]) -> None:
    """The chats of a character that was renamed have its new name."""
    old, new = f"{operation.name}/", f"{operation.registered[0].name}/"
    for (user, chat_id), name in list(names.items()):
        if user == operation.user and name.startswith(old):
            names[user, chat_id] = new + name.removeprefix(old)
    for seen in owners.values():
        if seen.user == operation.user and seen.name.startswith(old):
            seen.name = new + seen.name.removeprefix(old)
