"""What a request means: the only place that knows.

    decide(stream, write, session, fresh, limits)
        -> Committed    effects, and everything that the log, the sender and the others get
        -> Stored       a conflict or refusal that uses up the op's number
        -> Duplicate    the outcome that this op already had
        raises Refused  not carried out and not an outcome: the same op can be sent again

Rules of this module:
- `decide` changes nothing; `install` puts what it found into the stream (BEHAVIOUR E2).
- Indexes become ids, tests are evaluated and dropped, merges become patches, ids are given: an effect leaves nothing to
  interpret (BEHAVIOUR E1).
- Fresh ids are handed in; the same arguments always give the same decision.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec
from msgspec import UNSET, Raw, UnsetType

from . import links
from .backups import BackupRestore
from .bases import Bases
from .decision import (
    Committed,
    Conflicting,
    Decision,
    Duplicate,
    Fresh,
    Stored,
    answered,
    conflict_body,
    fingerprint,
    fold_stored,
    refusal_json,
    stored_conflict,
    stored_refusal,
)
from .effects import AppendEffect, Author, ChatEffect, StateEffect, encode_effects
from .errors import Refused, illegal
from .fields import Base
from .floors import LOG_SUFFIX
from .frames import Limits
from .generation_requests import Generate, GenerationError, GenerationStart, GenerationWrite
from .generation_work import Ending, acknowledge, carry_out_generation, finish, finish_strays, swipe_deleted
from .ids import is_reserved_namespace, namespace_problem, state_file_problem
from .life import NO_FACTS, Facts, carry_out_life
from .outcomes import Outcome
from .past import Past, core_json, targets_of, wire_effects
from .requests import (
    UNREADING,
    Append,
    Batch,
    BatchedAppend,
    BatchedDelete,
    BatchedFloorUpdate,
    BatchedMetadataUpdate,
    BatchedPatch,
    BatchedStateDelete,
    BatchedStateUpdate,
    BatchedSwipe,
    ChatBranch,
    ChatCreate,
    ChatRestore,
    Delete,
    FloorUpdate,
    LifeWrite,
    Malformed,
    MetadataUpdate,
    OwnerRestore,
    Patch,
    StateDelete,
    StateUpdate,
    Swipe,
    Write,
)
from .stream import StateDocument, Stream
from .targets import chat_targets, metadata_targets, overwrites_only_tested, places_hold
from .values import NestedTooDeeply
from .whole_chat import WholeChat
from .work import Work, operations_of

__all__ = [
    "Committed",
    "Decision",
    "Duplicate",
    "Facts",
    "Fresh",
    "Stored",
    "answered",
    "conflict_body",
    "decide",
    "decide_acks",
    "decide_end",
    "decide_links",
    "fingerprint",
    "fold_stored",
    "install",
    "install_commit",
    "refusal_json",
]

_encode = msgspec.json.encode


def decide(
    stream: Stream, request: Write | Malformed, session: str, fresh: Fresh, limits: Limits, facts: Facts = NO_FACTS,
    models: Sequence[str] = (),
) -> Decision:
    """What `request` means to `stream` now; `facts` were gathered for a life write, `models` are for `generate`.

    Raises: Refused when it is not an outcome. Cost: what the request touches.
    """
    op = request.op
    if isinstance(op, UnsetType):
        raise Refused("op-required", "A write carries op, its number in this session on this owner.", pointer="/op")
    print_ = fingerprint(request)
    ops = stream.sessions.get(session)
    last = 0 if ops is None else ops.last
    if op != last + 1:
        return _replay(stream, request, session, op, last, print_)
    # Whatever the log got would end the contradiction that the next load has to see.
    if stream.contradiction and (not isinstance(request, BackupRestore) or isinstance(request.to, str)):
        raise stream.undecided()
    try:
        if isinstance(request, Malformed):
            raise Refused(request.code, request.message, pointer=request.pointer)
        if stream.deleted and not isinstance(request, ChatRestore | OwnerRestore | BackupRestore):
            raise Refused(
                "deleted", stream.in_trash(), pointer="/chat",
                details={"chat_id": stream.chat_id},
            )
        if stream.damage and not isinstance(request, UNREADING):
            raise Refused("read-only", "The chat's file is damaged; repair it, then send this op again.")
        return _accept(stream, request, session, op, print_, fresh, limits, facts, models)
    except (RecursionError, NestedTooDeeply):
        # A user's own old line can be nested deeper than Python writes.
        raise Refused("too-deep", "The document is nested too deeply to be changed.") from None
    except Conflicting as conflict:
        if stream.contradiction:
            raise stream.undecided("The base is not the version that is served.") from None
        return stored_conflict(conflict, session, op, print_)
    except Refused as refusal:
        if stream.contradiction and refusal.is_outcome:
            raise stream.undecided(refusal.message) from None
        # A chat that was not made has no stream that could keep the refusal (BEHAVIOUR J2).
        if not refusal.is_outcome or isinstance(request, ChatCreate):
            raise
        return stored_refusal(refusal, session, op, print_)


def install(stream: Stream, session: str, op: int, decision: Committed | Stored, now_ms: int) -> None:
    """Put a decision into the stream. Cannot fail."""
    if isinstance(decision, Committed):
        install_commit(stream, decision)
    stream.session(session).add(op, decision.outcome, now_ms)


def install_commit(stream: Stream, decision: Committed) -> None:
    """Put a commit into the stream that is nobody's op. Cannot fail."""
    _install_effects(stream, decision)
    stream.head = decision.version
    stream.remember((Past(decision.version, decision.core, decision.targets),))


def _install_effects(stream: Stream, decision: Committed) -> None:
    if decision.chat is not None:
        stream.chat = decision.chat
    for effect in decision.effects:
        if isinstance(effect, StateEffect):
            stream.apply_state(effect, decision.states.get(effect.namespace))
        elif isinstance(effect, ChatEffect):
            if decision.chat is None:
                stream.chat.apply(effect, decision.known)
            stream.chat.version = decision.version
            if stream.floors:
                stream.follow(effect)
        else:
            stream.apply_life(effect)


# -- op numbers ------------------------------------------------------------------------------------------------------


def _replay(
    stream: Stream, request: Write | Malformed, session: str, op: int, last: int, print_: int
) -> Duplicate:
    if op > last + 1:
        raise Refused(
            "op-gap", f"Op {op} cannot come before op {last + 1}.", pointer="/op", details={"expected": last + 1}
        )
    outcome = stream.sessions[session].outcome(op)
    if isinstance(request, ChatCreate) and (outcome is None or outcome.fingerprint != print_):
        raise Refused("exists", "The name is taken.", pointer="/chat")
    if outcome is None:
        raise Refused("op-forgotten", f"The outcome of op {op} is no longer kept.", pointer="/op")
    if outcome.fingerprint != print_:
        raise Refused("op-mismatch", f"Op {op} was used for another request.", pointer="/op")
    return Duplicate(outcome)


def _accept(
    stream: Stream, request: Write, session: str, op: int, print_: int, fresh: Fresh, limits: Limits,
    facts: Facts = NO_FACTS, models: Sequence[str] = (),
) -> Committed:
    if isinstance(request, LifeWrite):
        return _accept_life(stream, request, session, op, print_, fresh, limits, facts)
    if isinstance(request, GenerationWrite):
        return _accept_generation(stream, request, session, op, print_, fresh, limits, models)
    bases = Bases(stream, session, request.force, request.on_conflict == "rebase")
    several = isinstance(request, Batch) or (isinstance(request, Patch) and isinstance(request.message, UnsetType))
    work = Work(stream, fresh, limits, several=several)
    if isinstance(request, Batch):
        if len(request.requests) > limits.patch_ops:
            raise Refused("too-large", f"A batch has at most {limits.patch_ops} requests.", pointer="/requests")
        for index, inner in enumerate(request.requests):
            shared = isinstance(inner.base, UnsetType)
            try:
                _check_base(bases, work, inner, request.base if shared else inner.base)
            except Refused as refusal:
                if shared and refusal.pointer is not None and refusal.pointer.startswith("/base"):
                    raise
                raise _inside(refusal, index) from None
        for index, inner in enumerate(request.requests):
            try:
                _carry_out(work, inner, request.force)
            except Refused as refusal:
                raise _inside(refusal, index) from None
    else:
        if type(request) is not Append:
            _check_base(bases, work, request, request.base)
        else:
            bases.check_chat(request.base, ("a",), True)
        _carry_out(work, request, request.force)
    committed = _committed(work, bases.rebased_from, Author(session, op), print_)
    committed.forced = bases.forced
    return committed


def _accept_life(
    stream: Stream, request: LifeWrite, session: str, op: int, print_: int, fresh: Fresh, limits: Limits, facts: Facts
) -> Committed:
    rebase = isinstance(request, ChatBranch) and request.on_conflict == "rebase"
    bases = Bases(stream, session, getattr(request, "force", False), rebase)
    work = Work(stream, fresh, limits, several=isinstance(request, ChatCreate))
    carry_out_life(work, request, bases, facts)
    return _committed(work, bases.rebased_from, Author(session, op), print_)


def _accept_generation(
    stream: Stream, request: GenerationWrite, session: str, op: int, print_: int, fresh: Fresh, limits: Limits,
    models: Sequence[str],
) -> Committed:
    force, rebase = False, False
    if isinstance(request, GenerationStart | Generate):
        force, rebase = request.force, request.on_conflict == "rebase"
    bases = Bases(stream, session, force, rebase)
    work = Work(stream, fresh, limits, several=False)
    carry_out_generation(work, request, session, bases, models)
    return _committed(work, bases.rebased_from, Author(session, op), print_)


def decide_end(
    stream: Stream, generation: str, state: Ending, fresh: Fresh, limits: Limits,
    error: GenerationError | UnsetType = UNSET,
) -> Committed:
    """The server itself ends a generation that runs: its producer is gone, or was the server. Raises Refused."""
    work = Work(stream, fresh, limits, several=False)
    finish(work, generation, state, None, error)
    return _committed(work, None, None, None)


def decide_strays(stream: Stream, fresh: Fresh, limits: Limits) -> Committed:
    """Texts whose generations another program took away go into the chat. Raises Refused."""
    work = Work(stream, fresh, limits, several=len(stream.stray) > 1)
    finish_strays(work)
    return _committed(work, None, None, None)


def decide_acks(stream: Stream, holders: dict[str, list[str]], fresh: Fresh, limits: Limits) -> Committed | None:
    """Sessions acknowledged results: `holders` by generation. None when that is no news."""
    work = Work(stream, fresh, limits, several=False)
    acknowledge(work, holders)
    return _committed(work, None, None, None) if work.effects else None


def decide_links(stream: Stream, names: Collection[str], to: str, fresh: Fresh, limits: Limits) -> Committed | None:
    """Another chat, which had `names`, is called `to` now: the links to it follow. None when there are none."""
    work = Work(stream, fresh, limits, several=False)
    links.follow(work, names, to)
    work.plain = False
    return _committed(work, None, None, None) if work.effects else None


def _inside(refusal: Refused, index: int) -> Refused:
    """The refusal of one request of a batch, its pointer as seen from the frame."""
    pointer = f"/requests/{index}{refusal.pointer or ''}"
    return Refused(refusal.code, refusal.message, pointer=pointer, details=refusal.details)


_Inner = (
    Append | Patch | Delete | MetadataUpdate | StateUpdate | StateDelete | Batch | BatchedAppend | BatchedPatch
    | BatchedDelete | BatchedMetadataUpdate | BatchedStateUpdate | BatchedStateDelete | Swipe | BatchedSwipe
    | FloorUpdate | BatchedFloorUpdate
)


def _check_base(bases: Bases, work: Work, request: _Inner, base: Base) -> None:
    match request:
        case Swipe() | BatchedSwipe():
            _check_swipe(request)
            bases.check_chat(base, (f"m:{request.message}",), False)
        case FloorUpdate() | BatchedFloorUpdate():
            document = _state_document(work.stream, request.namespace)
            bases.check_state(base, request.namespace, document, False)
        case Append() | BatchedAppend():
            bases.check_chat(base, ("a",), True)
        case Delete() | BatchedDelete():
            bases.check_chat(base, tuple(f"m:{message_id}" for message_id in request.messages), False)
        case Patch() | BatchedPatch():
            operations = work.checked[id(request)] = operations_of(request.patch, work.limits)
            if isinstance(request.message, UnsetType):
                targets = chat_targets(work.stream.chat.order(), operations)
                bases.check_chat(base, targets, False, lambda count: places_hold(operations, count))
            else:
                bases.check_chat(base, (f"m:{request.message}",), base == "*" and _may_be_anywhere(work, request))
        case MetadataUpdate() | BatchedMetadataUpdate():
            _exactly_one(request.set, request.merge, request.patch)
            merging = isinstance(request.merge, Raw)
            bases.check_chat(base, metadata_targets(request, work.limits), merging)
        case StateUpdate() | BatchedStateUpdate():
            _exactly_one(request.set, request.merge, request.patch)
            document = _state_document(work.stream, request.namespace)
            bases.check_state(base, request.namespace, document, isinstance(request.merge, Raw))
        case StateDelete() | BatchedStateDelete():
            document = _state_document(work.stream, request.namespace)
            bases.check_state(base, request.namespace, document, False)


def _carry_out(work: Work, request: _Inner, forced: bool) -> None:
    match request:
        case Append() | BatchedAppend():
            work.append(request.messages)
        case Delete() | BatchedDelete():
            work.delete(request.messages)
        case Patch() | BatchedPatch():
            # Each request's are carried out once: applying them may change their values.
            operations = work.checked.pop(id(request), None) or operations_of(request.patch, work.limits)
            if isinstance(request.message, UnsetType):
                WholeChat(work).patch(operations, "/patch")
            else:
                work.patch_message(request.message, bytes(request.patch), operations, "/patch")
        case Swipe() | BatchedSwipe():
            work.swipe(request)
            if request.action == "delete" and isinstance(request.swipe, int) and work.stream.running:
                swipe_deleted(work, request.message, request.swipe)
        case MetadataUpdate() | BatchedMetadataUpdate():
            work.metadata_update(request)
        case StateUpdate() | BatchedStateUpdate():
            work.state_update(request, forced)
        case StateDelete() | BatchedStateDelete():
            work.state_delete(request.namespace)
        case FloorUpdate() | BatchedFloorUpdate():
            work.floor_update(request)


def _committed(work: Work, rebased_from: str | None, author: Author | None, print_: int | None) -> Committed:
    """Everything that log, sender and others get; `author` and `print_` are None for what the server did by itself."""
    work.finish()
    version = work.version
    effects = work.effects
    previous = work.stream.head.integrity
    full = core_json(version, previous, author, encode_effects(effects))
    extra = b"" if print_ is None else b',"fingerprint":%d' % print_
    if rebased_from is not None:
        extra += b',"rebased_from":"%b"' % rebased_from.encode()
    if work.plain:
        extra += b',"plain":true'
    if work.was:
        extra += b',"was":' + _encode(work.was)
    only_append = len(effects) == 1 and isinstance(effects[0], AppendEffect)
    if work.undo and not only_append:
        work.undo.reverse()
        extra += b',"undo":' + encode_effects(work.undo)
    travelling = wire_effects(effects) if work.states else effects
    core = full if travelling is effects else core_json(version, previous, author, encode_effects(travelling))
    body = b'"version":' + version.encoded() + b',"durable":"fsync"'
    if only_append and work.plain:
        ids: list[str] = work.undo[0].messages  # type: ignore[union-attr, assignment]
        body += b',"messages":' + _encode(ids)
        targets: tuple[str, ...] = ("a",) * len(ids)
    else:
        targets = targets_of(effects)
        namespaces = list(work.states)
        if len(effects) == 1 and namespaces:
            body += b',"namespace":' + _encode(namespaces[0])
        if not work.plain:
            body += b',"ops":' + encode_effects(travelling)
    if rebased_from is not None:
        body += b',"rebased":true'
    if work.told:
        extra += b',"told":' + work.told
        body += b"," + work.told[1:-1]
    outcome = Outcome("ack", print_ or 0, body, rebased_from or version.integrity)
    return Committed(
        version, effects, core, b"{" + full + extra + b"}", outcome, targets,
        work.known, work.chat if work.draft else None, work.states,
    )


# -- small questions -------------------------------------------------------------------------------------------------


def _exactly_one(*fields: object) -> None:
    if sum(isinstance(field, Raw) for field in fields) != 1:
        raise Refused("bad-frame", "Give exactly one of set, merge and patch.")


def _state_document(stream: Stream, namespace: str) -> StateDocument | None:
    problem = namespace_problem(namespace) or state_file_problem(stream.name, namespace)
    if problem:
        raise illegal("namespace-illegal", problem, "/namespace")
    if is_reserved_namespace(namespace):
        raise Refused("namespace-reserved", f"Only the server writes {namespace!r}.", pointer="/namespace")
    document = stream.states.get(namespace)
    for name in (namespace, namespace + LOG_SUFFIX):
        if (found := stream.states.get(name)) is not None and found.corrupt:
            raise Refused(
                "state-corrupt", f"The file of {name!r} is not what it should be; it is kept as it is.",
                pointer="/namespace",
            )
    return document


def _check_swipe(request: Swipe | BatchedSwipe) -> None:
    adding = request.action == "add"
    if adding != isinstance(request.content, Raw):
        raise Refused("bad-frame", "content is what add puts there, and nothing else has it.", pointer="/content")
    if adding == isinstance(request.swipe, int):
        raise Refused("bad-frame", "swipe is which one to select or delete; add has none.", pointer="/swipe")


def _may_be_anywhere(work: Work, request: Patch | BatchedPatch) -> bool:
    """Whether a patch of one message may be made against `"*"`."""
    chat, message = work.stream.chat, request.message
    if not isinstance(message, str) or message not in chat.messages:
        return True
    # Applying may change the operations' own values, so these are read for it alone.
    return overwrites_only_tested(chat.value(message), operations_of(request.patch, work.limits))
