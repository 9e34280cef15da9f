"""Leftovers: what the log tells at the start: names of chats by their ids, operations that a crash cut off, and chats
whose commits it kept out of the files.

    leftovers = Leftovers()
    Log.open(..., seen=leftovers.see)      each record, while recovery reads it anyway
    leftovers.unfinished()                 to be carried out again
    leftovers.add(record)                  what was appended since
    leftovers.names, leftovers.unfolded()

Rules of this module:
- The log is read once, by recovery; only small records are copied and decoded.
"""

from __future__ import annotations

import msgspec

from tellback_protocol.effects import decode_commit
from tellback_protocol.generations import NAMESPACE, states_told
from tellback_server.log import Record
from tellback_server.log.format import RECORD_HEADER_BYTES, RecordHeader
from tellback_server.operations import Operation, decode_operation
from tellback_server.records import ADOPT, ANCHOR, CHECKPOINT, COMMIT, DONE, OPERATION, decode_base, decode_done

__all__ = ["Leftovers"]

GENERATIONS = NAMESPACE.encode()
_TOLD = frozenset((ADOPT, ANCHOR, CHECKPOINT, DONE, OPERATION))


class _Seen(msgspec.Struct):
    user: str = ""
    name: str = ""
    committed: int = 0
    folded: int = 0
    running: set[str] = msgspec.field(default_factory=set)
    """Generations."""


class Leftovers:
    """See the module. Records come in the order of the log."""

    def __init__(self) -> None:
        self.names: dict[tuple[str, str], str] = {}
        """By user and chat_id; of two chats with one name the later one comes last."""
        self._owners: dict[bytes, _Seen] = {}
        self._open: dict[str, Operation] = {}
        """Without a DONE, by the integrity of the COMMIT without which they never happened."""
        self._counted: set[str] = set()
        """Those whose COMMIT was seen."""

    def see(self, header: RecordHeader, batch: bytes) -> None:
        """One record of a batch that recovery believes. Cost: a search of its bytes."""
        start = header.offset + RECORD_HEADER_BYTES + len(header.owner)
        end = header.offset + header.size_bytes
        if header.kind == COMMIT:
            seen = self._owners.get(header.owner)
            if seen is None:
                seen = self._owners[header.owner] = _Seen()
            seen.committed = header.seq
            if self._open or batch.find(GENERATIONS, start, end) >= 0:
                self._commit(seen, batch[start:end])
        elif header.kind in _TOLD:
            self._tell(header.kind, header.owner, batch[start:end])

    def add(self, record: Record) -> None:
        """One record that was appended behind what recovery found."""
        owner = record.owner.encode()
        if record.kind in _TOLD:
            self._tell(record.kind, owner, record.body)
        elif record.kind == COMMIT:
            seen = self._owners.setdefault(owner, _Seen())
            seen.committed = record.seq
            self._commit(seen, record.body)

    def unfinished(self) -> list[Operation]:
        """The operations that a crash cut off, in the order of the log."""
        return [operation for integrity, operation in self._open.items() if integrity in self._counted]

    def unfolded(self) -> list[tuple[str, str]]:
        """User and name of chats with commits behind their last checkpoint, or with a generation that ran."""
        return [
            (seen.user, seen.name) for seen in self._owners.values()
            if seen.name and (seen.committed > seen.folded or seen.running)
        ]

    def _commit(self, seen: _Seen, body: bytes) -> None:
        is_named = [one for one in self._open if body.find(one.encode()) >= 0]
        if not is_named and GENERATIONS not in body:
            return
        commit = decode_commit(body)
        if commit.version.integrity in is_named:
            self._counted.add(commit.version.integrity)
        for generation_id, state in states_told(commit.ops).items():
            (seen.running.add if state == "running" else seen.running.discard)(generation_id)

    def _tell(self, kind: int, key: bytes, body: bytes) -> None:
        if kind == OPERATION:
            operation = decode_operation(body)
            self._open[operation.integrity] = operation
        elif kind == DONE:
            done = decode_done(body)
            operation_done = self._open.pop(done.integrity, None)
            self._counted.discard(done.integrity)
            if operation_done is not None:
                self._follow(operation_done)
            if done.gone:
                seen = self._owners.pop(key, None)
                if seen is not None:
                    self.names.pop((seen.user, key.decode().removeprefix(f"{seen.user}/")), None)
        else:
            base = decode_base(body)
            seen = self._owners.setdefault(key, _Seen())
            seen.user, seen.name = base.user, base.name
            self.names.pop((base.user, base.chat_id), None)
            self.names[base.user, base.chat_id] = base.name
            # What an adoption put on top of another program's file is not in the file yet.
            if kind != ANCHOR:
                seen.folded = base.head.seq - 1 if kind == ADOPT else base.head.seq

    def _follow(self, operation: Operation) -> None:
        """The chats of a character that was renamed have its new name."""
        if not operation.folder_moves and (operation.stored is None or not operation.stored.renames):
            return
        old, new = f"{operation.name}/", f"{operation.registered[0].name}/"
        for (user, chat_id), name in list(self.names.items()):
            if user == operation.user and name.startswith(old):
                self.names[user, chat_id] = new + name.removeprefix(old)
        for seen in self._owners.values():
            if seen.user == operation.user and seen.name.startswith(old):
                seen.name = new + seen.name.removeprefix(old)
