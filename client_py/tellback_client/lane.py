"""The own writes to one chat that have no answer yet, in the order of their op numbers.

Rules of this module:
- Numbers are contiguous; the server's `next_op` is the truth about which are used (DESIGN section 5, op ids).
- A number that the server never saw can be given to another body; one that it saw never is.
- A write whose parent is gone is not sent under a number that could now mean something else.
- A write that an earlier process kept is asked for under its number. `op-mismatch` says that a later process used the
  number, so that it was never carried out: it gets the next free one, with its base, and whoever names it as a base
  names the new number. Until all such writes have their answers the server is sent nothing that it does not know.
- A base never vouches for more than was seen. `{"op": m}` only stands for what op m itself touched: m may have been
  rebased over commits that this client had not seen when it asked (the lost update found by test_convergence seed 1).
  Everything else is written against the confirmed version, and what fits neither waits until the lane is clear.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec
from msgspec import Raw

from tellback_protocol.backups import BackupRestore
from tellback_protocol.codec import encode
from tellback_protocol.fields import Base, OpBase
from tellback_protocol.generation_requests import Generate, GenerationCancel, GenerationEnd, GenerationStart
from tellback_protocol.ids import Version
from tellback_protocol.outcomes import OUTCOMES_MAX
from tellback_protocol.past import overlap
from tellback_protocol.requests import (
    Append,
    Batch,
    Batched,
    BatchedAppend,
    BatchedDelete,
    BatchedFloorUpdate,
    BatchedMetadataUpdate,
    BatchedPatch,
    BatchedStateDelete,
    BatchedStateUpdate,
    BatchedSwipe,
    ChatBranch,
    ChatDelete,
    ChatRename,
    Delete,
    DocumentWrite,
    FloorUpdate,
    MetadataUpdate,
    OwnerDelete,
    OwnerRename,
    Patch,
    StateDelete,
    StateUpdate,
    Swipe,
    owner_named,
)
from tellback_protocol.targets import merged_metadata, patched_metadata
from tellback_protocol.values import loads

from .errors import refused
from .outbox import PendingWrite
from .own_write import Beginning, OwnWrite, Unbased, shown_as
from .replica import Replica

Based = (
    DocumentWrite | ChatRename | ChatDelete | ChatBranch | BackupRestore | OwnerRename | OwnerDelete | GenerationStart
    | Generate
)
"""Writes that name the version that they were made against."""
NEAR_WRITES = OUTCOMES_MAX // 2
"""Half of the outcomes that a server keeps for a session, so that `{"op": m}` is known when it arrives."""


class Entangled(Exception):
    """The write builds on own writes in a way that no base can say; ask again when they have their answers."""


class Lane:
    """Writes in order, and the number of the next one."""

    __slots__ = ("doubtful", "next_number", "writes")

    def __init__(self) -> None:
        self.doubtful = 0
        """Kept writes under numbers that the server knows: the answers tell whose these are."""
        self.next_number = 1
        self.writes: list[PendingWrite] = []

    def __len__(self) -> int:
        return len(self.writes)

    def __iter__(self) -> Iterator[PendingWrite]:
        return iter(self.writes)

    def shown(self) -> list[DocumentWrite]:
        """The requests that belong on top of the confirmed chat."""
        writes = [
            shown_as(pending.write) for pending in self.writes
            if pending.write is not None and not pending.installed and not pending.doomed
        ]
        return [write for write in writes if write is not None]

    def add(self, pending: PendingWrite, write: OwnWrite, request_id: int, replica: Replica) -> None:
        """Give a write its base, number and bytes, behind all others. Raises: Entangled, RefusedError."""
        asked = msgspec.structs.replace(self._with_base(write, replica), id=request_id, op=self.next_number)
        try:
            data = encode(asked)
        except UnicodeEncodeError:
            # A name or an id; payloads were read before. Nothing of this write stays behind.
            raise refused("bad-json", "A text holds half of a surrogate pair (a cut emoji).") from None
        pending.targets = tuple(target for request in _requests(write) for target in targets_of_request(request))
        pending.write, pending.data = asked, data
        pending.number, pending.request_id = self.next_number, request_id
        self.next_number += 1
        pending.doomed = pending.installed = pending.sent = pending.journaled = False
        pending.kept = pending.misnumbered = False
        pending.attempts += 1
        self.writes.append(pending)

    def respell(self, pending: PendingWrite, name: str, request_id: int) -> None:
        """Call the owner by another name. That is no other request: the number stays."""
        assert isinstance(pending.write, StateUpdate | StateDelete), "what changes the name itself is for a person"
        pending.write = msgspec.structs.replace(pending.write, owner=owner_named(name))
        _encode(pending, request_id)

    def by_number(self, number: int) -> PendingWrite | None:
        """The write with this number, or None."""
        for pending in self.writes:
            if pending.number == number:
                return pending
        return None

    def remove(self, pending: PendingWrite) -> None:
        """Take a write out; the others keep their numbers."""
        self.writes.remove(pending)
        self._decided(pending)

    def may_send(self, pending: PendingWrite) -> bool:
        """False for what the server does not know, as long as the numbers before it may be other requests'."""
        return pending.kept or not self.doubtful

    def misnumber(self, pending: PendingWrite) -> None:
        """The server used the number of a kept write for another request."""
        self._decided(pending)
        pending.misnumbered = True

    def _decided(self, pending: PendingWrite) -> None:
        if pending.kept:
            pending.kept = False
            self.doubtful -= 1

    def doom_children(self, parent: PendingWrite) -> None:
        """`parent` made no version: what builds on it will be refused."""
        refused = {parent.number}
        for pending in self.writes:
            if pending.number > parent.number and _parents(pending) & refused:
                pending.doomed = True
                refused.add(pending.number)

    def give_back(self, pending: PendingWrite) -> bool:
        """Take out a write whose number was not used. True when no other write is behind it, so the number is free."""
        self.remove(pending)
        if self.next_number == pending.number + 1:
            self.next_number = pending.number
            return True
        return False

    def reconcile(
        self, next_op: int, new_request_id: Callable[[], int]
    ) -> tuple[list[tuple[PendingWrite, int]], list[PendingWrite]]:
        """Bring the numbers in line with the server's `next_op`.

        Returns the writes that got another number, each with its earlier request id, and the writes whose parent is
        gone, taken out.
        """
        expected = next_op
        moved: dict[int, int] = {}
        renumbered: list[tuple[PendingWrite, int]] = []
        orphans: list[PendingWrite] = []
        present = {pending.number for pending in self.writes}
        known = [pending for pending in self.writes if pending.number < next_op]
        self.doubtful = sum(pending.kept and not pending.misnumbered for pending in known)
        for pending in list(self.writes):
            # Others that are doubtful may name the number that one of them has to give up: all change together.
            if pending.number < next_op and (self.doubtful or not pending.misnumbered):
                continue
            pending.kept = False
            if any(parent >= next_op and (parent not in present) for parent in _parents(pending)):
                self.writes.remove(pending)
                present.discard(pending.number)
                orphans.append(pending)
                continue
            if pending.number != expected or any(parent in moved for parent in _parents(pending)):
                moved[pending.number] = expected
                pending.number = expected
                assert pending.write is not None, "a write in the lane has a request"
                pending.write = _reparented(pending.write, moved)
                before = pending.request_id
                _encode(pending, new_request_id())
                renumbered.append((pending, before))
            expected += 1
        self.next_number = expected
        return renumbered, orphans

    def _with_base(self, write: OwnWrite, replica: Replica) -> OwnWrite:
        if isinstance(write, Unbased):
            return write
        if isinstance(write, ChatRename | OwnerRename | OwnerDelete):
            # Only another name is news to it, and the head says which one was seen.
            return msgspec.structs.replace(write, base=replica.head.integrity)
        if isinstance(write, ChatDelete | BackupRestore):
            return msgspec.structs.replace(write, base=self._base(write, replica))
        if isinstance(write, Batch):
            for request in write.requests:
                request.base = self._base(request, replica)
            return msgspec.structs.replace(write, on_conflict="rebase")
        strict = isinstance(write, (StateUpdate, StateDelete))
        return msgspec.structs.replace(
            write, base=self._base(write, replica), on_conflict="refuse" if strict else "rebase"
        )

    def _base(self, request: Based | Batched, replica: Replica) -> Base:
        """What the request was made against. Raises: Entangled."""
        namespace = getattr(request, "namespace", None)
        version: Version | None = replica.chat.version
        if namespace is not None:
            state = replica.stream.states.get(namespace)
            version = None if state is None or not state.exists else state.version
        confirmed = None if version is None else version.integrity
        if isinstance(request, (Append, BatchedAppend)) or (
            isinstance(request, Beginning) and request.target.kind == "message"
        ):
            # Nothing that comes between changes what an append means. Far behind other own writes the confirmed version
            # would be one that the server has forgotten by the time it gets here; a write nearby is remembered.
            near = self.writes[-NEAR_WRITES] if len(self.writes) >= NEAR_WRITES else None
            return confirmed if near is None or near.doomed else OpBase(near.number)
        targets = targets_of_request(request)
        for pending in reversed(self.writes):
            if pending.doomed or pending.installed:
                continue
            if any(_entangled(mine, theirs) for mine in targets for theirs in pending.targets):
                if all(any(_covers(theirs, mine) for theirs in pending.targets) for mine in targets):
                    return OpBase(pending.number)
                raise Entangled
        return confirmed


ANYTHING = "*"
"""The target of a request that names messages by index: it is entangled with every change of the chat."""


def targets_of_request(request: OwnWrite | Batched) -> tuple[str, ...]:
    """What a request touches: `m:<message id>`, `M:<metadata path>`, `s:<namespace>`; an append what it makes."""
    match request:
        case Append() | BatchedAppend():
            return tuple(f"m:{loads(bytes(raw)).get('id')}" for raw in request.messages)
        case Patch(message=str(message)) | BatchedPatch(message=str(message)):
            return (f"m:{message}",)
        case Patch() | BatchedPatch():
            return (ANYTHING,)
        case Delete() | BatchedDelete():
            return tuple(f"m:{message_id}" for message_id in request.messages)
        case MetadataUpdate() | BatchedMetadataUpdate():
            return _metadata_targets(request)
        case StateUpdate() | StateDelete() | BatchedStateUpdate() | BatchedStateDelete():
            return (f"s:{request.namespace}",)
        case ChatRename() | OwnerRename() | OwnerDelete():
            return ("o:",)
        case ChatDelete() | BackupRestore():
            return (ANYTHING,)
        case Swipe() | BatchedSwipe() | ChatBranch():
            return (f"m:{request.message}",)
        case FloorUpdate() | BatchedFloorUpdate():
            return (f"s:{request.namespace}",)
        case GenerationStart() | Generate():
            aimed = (f"m:{request.target.message}",) if isinstance(request.target.message, str) else ()
            return (*targets_of_request(Append(request.chat, request.messages)), *aimed)
        case GenerationEnd() | GenerationCancel():
            return (f"g:{request.generation}",)
        case Batch():
            return tuple(target for inner in request.requests for target in targets_of_request(inner))


def _metadata_targets(request: MetadataUpdate | BatchedMetadataUpdate) -> tuple[str, ...]:
    if isinstance(request.patch, Raw):
        return patched_metadata(loads(bytes(request.patch)))
    if isinstance(request.merge, Raw):
        return merged_metadata(loads(bytes(request.merge)))
    return ("M:",)


def _entangled(mine: str, theirs: str) -> bool:
    if ANYTHING in (mine, theirs):
        return not mine.startswith("s:") and not theirs.startswith("s:")
    return overlap(mine, theirs)


def _covers(theirs: str, mine: str) -> bool:
    """True when the server compared all of `mine` when it accepted `theirs`."""
    return theirs == mine or (theirs.startswith("M:") and mine.startswith(theirs + "/"))


def _requests(write: OwnWrite) -> list[OwnWrite | Batched]:
    return list(write.requests) if isinstance(write, Batch) else [write]


def _encode(pending: PendingWrite, request_id: int) -> None:
    assert pending.write is not None, "the request is given before its bytes"
    pending.misnumbered = False
    pending.request_id = request_id
    pending.write = msgspec.structs.replace(pending.write, id=request_id, op=pending.number)
    pending.data = encode(pending.write)
    pending.sent = pending.journaled = False


def _bases(write: OwnWrite) -> Iterator[Base]:
    if isinstance(write, Unbased):
        return
    yield write.base
    if isinstance(write, Batch):
        for request in write.requests:
            yield request.base


def _parents(pending: PendingWrite) -> set[int]:
    """Numbers of the writes that this one builds on."""
    if pending.write is None:
        return set()
    return {base.op for base in _bases(pending.write) if isinstance(base, OpBase)}


def _reparented(write: OwnWrite, moved: dict[int, int]) -> OwnWrite:
    """The write with the new numbers of its parents."""

    def new(base: Base) -> Base:
        return OpBase(moved.get(base.op, base.op)) if isinstance(base, OpBase) else base

    if isinstance(write, Unbased):
        return write
    if isinstance(write, Batch):
        write = msgspec.structs.replace(
            write, requests=[msgspec.structs.replace(request, base=new(request.base)) for request in write.requests]
        )
    return msgspec.structs.replace(write, base=new(write.base))
