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

import zlib
from typing import Any

import msgspec
from msgspec import Raw, UnsetType

from .chat import Chat
from .effects import (
    AppendEffect,
    DeleteEffect,
    Effect,
    InsertEffect,
    MetadataEffect,
    PatchEffect,
    StateEffect,
    encode_effects,
)
from .errors import Refused
from .frames import Limits
from .ids import Version, is_integrity, is_reserved_namespace, message_id_problem, namespace_problem
from .patch import (
    COPIED_NODES_MAX,
    Operation,
    Patched,
    apply_patch,
    check_operations,
    join_pointer,
    merge_to_patch,
    parse_pointer,
)
from .requests import (
    Append,
    Base,
    Batch,
    BatchedAppend,
    BatchedDelete,
    BatchedMetadataUpdate,
    BatchedPatch,
    BatchedStateDelete,
    BatchedStateUpdate,
    Delete,
    Malformed,
    MetadataUpdate,
    OpBase,
    Patch,
    StateDelete,
    StateUpdate,
    Write,
)
from .stream import Outcome, Past, StateDocument, Stream, overlap, targets_of, wire_effects
from .values import dumps, loads, read_payload

_encode = msgspec.json.encode
MISSED_BYTES_MAX = 32 << 10
"""Missed commits that a conflict carries; more is answered with `resync` (DESIGN section 5)."""
STEPS_BYTES_MAX = 32 << 20
"""Bytes that the steps of one batch or whole-chat patch may write again and again: about 0.3 s of work."""


class Fresh(msgspec.Struct, frozen=True, gc=False):
    """What only a shell can know: an integrity for the commit, a seed for message ids, the time."""

    integrity: str
    id_seed: int
    """64 random bits: new messages are called seed, seed + 1, ... in hexadecimal."""
    now_ms: int


class Committed(msgspec.Struct, gc=False):
    """An accepted request."""

    version: Version
    effects: list[Effect]
    core: bytes
    """What the others are told, without type and owner."""
    record: bytes
    """What the log keeps."""
    outcome: Outcome
    targets: tuple[str, ...]
    known: dict[str, bytes]
    """Lines worked out while deciding, by message id."""
    chat: Chat | None
    """The chat after several effects, when there was more than one step."""
    states: dict[str, bytes | None]
    """State documents after the commit."""


class Stored(msgspec.Struct, gc=False):
    """A conflict or refusal that is an outcome."""

    outcome: Outcome
    record: bytes


class Duplicate(msgspec.Struct, gc=False):
    """This op already has an outcome."""

    outcome: Outcome


Decision = Committed | Stored | Duplicate


class _Conflict(Exception):
    """The base of a request is not the version of its document."""

    def __init__(self, version: Version | None, since: str | None, namespace: str | None) -> None:
        super().__init__(version, since, namespace)
        self.version = version
        self.since = since
        self.namespace = namespace


def fingerprint(request: Write | Malformed) -> int:
    """A number that tells two bodies apart; the request number and the owner's spelling do not count.

    32 bits of CRC and the length: it guards a client against its own mistakes, not against an attacker.
    """
    if type(request) is Append and not request.force and request.on_conflict == "refuse":
        crc = zlib.crc32(request.base.encode("utf-8", "surrogatepass") if isinstance(request.base, str) else b"?")
        size = 0
        for raw in request.messages:
            crc = zlib.crc32(raw, crc)
            size += len(raw)
        if isinstance(request.base, (str, UnsetType)):
            return crc | (size & 0xFFFFF) << 32
    if isinstance(request, Malformed):
        body = request.body
    else:
        anonymous: Any = msgspec.structs.replace(request, id=None, op=1)
        if hasattr(anonymous, "chat"):
            anonymous.chat = ""
        else:
            anonymous.owner = None
        body = _encode(anonymous)
    return zlib.crc32(body) | (len(body) & 0xFFFFF) << 32


def decide(
    stream: Stream, request: Write | Malformed, session: str, fresh: Fresh, limits: Limits
) -> Decision:
    """What `request` means to `stream` now.

    Raises: Refused when it is not an outcome. Cost: what the request touches.
    """
    op = request.op
    if isinstance(op, UnsetType):
        raise Refused("op-required", "A write carries op, its number in this session on this owner.", pointer="/op")
    print_ = fingerprint(request)
    ops = stream.sessions.get(session)
    last = 0 if ops is None else ops.last
    if op != last + 1:
        return _replay(stream, session, op, last, print_)
    try:
        if isinstance(request, Malformed):
            raise Refused(request.code, request.message, pointer=request.pointer)
        if stream.damage:
            raise Refused("read-only", "The chat's file is damaged; repair it, then send this op again.")
        return _accept(stream, request, session, op, print_, fresh, limits)
    except RecursionError:
        # A user's own old line can be nested deeper than Python writes.
        raise Refused("too-deep", "The document is nested too deeply to be changed.") from None
    except _Conflict as conflict:
        return _stored_conflict(conflict, session, op, print_)
    except Refused as refusal:
        if not refusal.is_outcome:
            raise
        return _stored_refusal(refusal, session, op, print_)


def install(stream: Stream, session: str, op: int, decision: Committed | Stored, now_ms: int) -> None:
    """Put a decision into the stream. Cannot fail."""
    if isinstance(decision, Committed):
        if decision.chat is not None:
            stream.chat = decision.chat
        for effect in decision.effects:
            if isinstance(effect, StateEffect):
                stream.apply_state(effect, decision.states.get(effect.namespace))
            else:
                if decision.chat is None:
                    stream.chat.apply(effect, decision.known)
                stream.chat.version = decision.version
        stream.head = decision.version
        stream.remember(Past(decision.version.seq, decision.version.integrity, decision.core, decision.targets))
    stream.session(session).add(op, decision.outcome, now_ms)


def conflict_body(stream: Stream, outcome: Outcome, chat_json: bytes) -> bytes:
    """The body of a conflict with the commits that its base missed, as far as they are still remembered.

    Cost: the missed commits, at most 32 KiB.
    """
    stored = msgspec.json.decode(outcome.body)
    since = stored.pop("since", None)
    body = _encode(stored)[1:-1]
    version = stored["version"]
    missed = stream.since_integrity(since) if since is not None and version is not None else None
    if missed is None:
        return body + b',"resync":true'
    frames: list[bytes] = []
    size = 0
    for past in missed:
        if past.seq > version["seq"]:
            break
        size += len(past.core)
        if size > MISSED_BYTES_MAX:
            return body + b',"resync":true'
        frames.append(b'{"type":"integrity","chat":%b,%b}' % (chat_json, past.core))
    return body + b',"missed":[' + b",".join(frames) + b"]"


# -- op numbers ------------------------------------------------------------------------------------------------------


def _replay(stream: Stream, session: str, op: int, last: int, print_: int) -> Duplicate:
    if op > last + 1:
        raise Refused(
            "op-gap", f"Op {op} cannot come before op {last + 1}.", pointer="/op", details={"expected": last + 1}
        )
    outcome = stream.sessions[session].outcomes.get(op)
    if outcome is None:
        raise Refused("op-forgotten", f"The outcome of op {op} is no longer kept.", pointer="/op")
    if outcome.fingerprint != print_:
        raise Refused("op-mismatch", f"Op {op} was used for another request.", pointer="/op")
    return Duplicate(outcome)


def _stored_conflict(conflict: _Conflict, session: str, op: int, print_: int) -> Stored:
    body = b'{"version":%b' % _encode(conflict.version)
    if conflict.namespace is not None:
        body += b',"namespace":%b' % _encode(conflict.namespace)
    if conflict.since is not None:
        body += b',"since":%b' % _encode(conflict.since)
    return _stored("conflict", body + b"}", session, op, print_)


def _stored_refusal(refusal: Refused, session: str, op: int, print_: int) -> Stored:
    return _stored("error", refusal_json(refusal), session, op, print_)


def refusal_json(refusal: Refused) -> bytes:
    """Code, sentence, retry class and pointer of a refusal, as one object."""
    body: dict[str, object] = {"code": refusal.code, "message": refusal.message, "retry": refusal.retry}
    if refusal.pointer is not None:
        body["pointer"] = refusal.pointer
    body.update(refusal.details or {})
    return _encode(body)


def _stored(kind: str, answer: bytes, session: str, op: int, print_: int) -> Stored:
    record = b'{"by":{"session":%b,"op":%d},"fingerprint":%d,"kind":"%b","answer":%b}' % (
        _encode(session), op, print_, kind.encode(), answer,
    )
    body = answer if kind == "conflict" else answer[1:-1]
    return Stored(Outcome(kind, print_, body), record)


class StoredRecord(msgspec.Struct, gc=False):
    """A conflict or refusal as the log keeps it."""

    by: dict[str, Any]
    fingerprint: int
    kind: str
    answer: Raw


_decode_stored = msgspec.json.Decoder(StoredRecord).decode


def fold_stored(stream: Stream, record: bytes, now_ms: int = 0) -> None:
    """Install a conflict or refusal from the log."""
    stored = _decode_stored(record)
    answer = bytes(stored.answer)
    body = answer if stored.kind == "conflict" else answer[1:-1]
    stream.session(stored.by["session"]).add(stored.by["op"], Outcome(stored.kind, stored.fingerprint, body), now_ms)


# -- bases -----------------------------------------------------------------------------------------------------------


class _Bases:
    """Compares bases with documents, before the first effect of a request is worked out."""

    __slots__ = ("force", "rebase", "rebased", "session", "stream")

    def __init__(self, stream: Stream, session: str, force: bool, rebase: bool) -> None:
        self.stream = stream
        self.session = session
        self.force = force
        self.rebase = rebase
        self.rebased = False

    def check_chat(self, base: Base, targets: tuple[str, ...], any_allowed: bool) -> None:
        """The chat's own document: metadata and messages."""
        if base == "*":
            if not any_allowed:
                raise Refused(
                    "base-illegal",
                    'base "*" is for writes whose result does not depend on what is there: append, merge, and a patch '
                    "that tests every path before it replaces or removes it.",
                    pointer="/base",
                )
            return
        self._check(base, self.stream.chat.version, None, targets)

    def check_state(self, base: Base, namespace: str, document: StateDocument | None, any_allowed: bool) -> None:
        """One state document; a base of null means that there must be none."""
        if base == "*":
            if not any_allowed:
                raise Refused("base-illegal", 'base "*" is for merge; name a version or null.', pointer="/base")
            return
        exists = document is not None and document.data is not None
        version = document.version if document is not None else None
        if base is None:
            if exists and not self.force:
                raise _Conflict(version, None, namespace)
            return
        self._check(base, version, namespace, (f"s:{namespace}",))

    def _check(
        self, base: Base, version: Version | None, namespace: str | None, targets: tuple[str, ...]
    ) -> None:
        if isinstance(base, UnsetType):
            raise Refused(
                "base-required",
                "Name the version this was made against: an integrity, or what the page on bases says.",
                pointer="/base",
            )
        if base is None:
            raise Refused("base-illegal", "A base of null is for a state that must not exist yet.", pointer="/base")
        known = self._integrity_of(base) if isinstance(base, OpBase) else base
        if version is not None and known == version.integrity:
            return
        if not is_integrity(known):
            raise Refused("base-illegal", 'A base is an integrity, null, "*" or {"op": number}.', pointer="/base")
        missed = self.stream.since_integrity(known)
        touched = None if missed is None else [target for past in missed for target in past.targets]
        if touched is not None and version is not None and not _touches(touched, namespace):
            # The base is a later commit of this stream that left the document alone.
            return
        if self.force:
            return
        if self.rebase and touched is not None and not _overlapping(touched, targets):
            self.rebased = True
            return
        raise _Conflict(version, None if touched is None else known, namespace)

    def _integrity_of(self, base: OpBase) -> str:
        ops = self.stream.sessions.get(self.session)
        outcome = None if ops is None else ops.outcomes.get(base.op)
        if outcome is None:
            raise Refused("base-illegal", f"The outcome of op {base.op} is not known.", pointer="/base/op")
        if outcome.kind != "ack" or outcome.integrity is None:
            raise Refused("parent-refused", f"Op {base.op} made no version: it was refused.", pointer="/base/op")
        return outcome.integrity


def _touches(touched: list[str], namespace: str | None) -> bool:
    if namespace is not None:
        return f"s:{namespace}" in touched
    return any(not target.startswith("s:") for target in touched)


def _overlapping(touched: list[str], targets: tuple[str, ...]) -> bool:
    return any(overlap(mine, theirs) for mine in targets for theirs in touched)


# -- what is asked ---------------------------------------------------------------------------------------------------


class _Work:
    """Effects as they are worked out. With `several` steps the chat is a copy that each effect is applied to."""

    __slots__ = (
        "chat", "copies_left", "draft", "effects", "fresh", "given", "known", "limits", "plain", "states",
        "steps_bytes", "stream", "undo", "version", "was",
    )

    def __init__(self, stream: Stream, fresh: Fresh, limits: Limits, *, several: bool) -> None:
        self.stream = stream
        self.chat = stream.chat.copy() if several else stream.chat
        self.draft = several
        self.fresh = fresh
        self.limits = limits
        self.version = Version(stream.head.epoch, stream.head.seq + 1, fresh.integrity)
        self.effects: list[Effect] = []
        self.undo: list[Effect] = []
        self.was: dict[str, int] = {}
        self.known: dict[str, bytes] = {}
        self.states: dict[str, bytes | None] = {}
        self.plain = not several
        self.given = 0
        self.copies_left = COPIED_NODES_MAX
        self.steps_bytes = 0

    def spend(self, size_bytes: int) -> None:
        """A step wrote that much; a request of one step may write what the document's limit allows."""
        self.steps_bytes += size_bytes
        if self.draft and self.steps_bytes > STEPS_BYTES_MAX:
            raise Refused("patch-too-large", "The steps of this request write large documents too often.")

    def patched(self, value: Any, operations: list[Operation], where: str) -> Patched:
        """Apply a patch; all patches of a request share one budget for copies."""
        patched = apply_patch(value, operations, where, copied_nodes_max=self.copies_left)
        self.copies_left -= patched.copied_nodes
        return patched

    def add(self, effect: Effect) -> None:
        self.effects.append(effect)
        if self.draft and not isinstance(effect, StateEffect):
            self.chat.apply(effect, self.known)

    # -- messages

    def message_line(self, data: bytes, pointer: str, index_id: dict[str, None]) -> tuple[str, bytes]:
        """Id and line of a message from the wire; it gets an id when it has none."""
        value = read_payload(data, pointer, self.limits.depth)
        if not isinstance(value, dict):
            raise Refused("message-illegal", "A message is a JSON object.", pointer=pointer)
        if len(data) > self.limits.document_bytes:
            raise Refused(
                "too-large", f"A message has at most {self.limits.document_bytes} bytes.", pointer=pointer
            )
        if "id" in value:
            message_id = value["id"]
            problem = message_id_problem(message_id)
            if problem:
                raise Refused("message-illegal", f"{problem[0].upper()}{problem[1:]}.", pointer=f"{pointer}/id")
            if message_id in self.chat.messages or message_id in index_id:
                raise Refused(
                    "message-id-taken", f"The chat already has a message {message_id[:64]!r}.", pointer=f"{pointer}/id"
                )
            return message_id, _one_line(data)
        message_id = self.new_id(index_id)
        if value and data[:1] == b"{":
            return message_id, _one_line(b'{"id":"%b",%b' % (message_id.encode(), data[1:]))
        return message_id, dumps({"id": message_id, **value})

    def new_id(self, taken: dict[str, None]) -> str:
        while True:
            message_id = f"{(self.fresh.id_seed + self.given) & 0xFFFFFFFFFFFFFFFF:016x}"
            self.given += 1
            if message_id not in self.chat.messages and message_id not in taken:
                return message_id

    def append(self, messages: list[Raw]) -> None:
        if not messages:
            raise Refused("bad-frame", "messages holds at least one message.", pointer="/messages")
        if len(messages) > self.limits.messages:
            raise Refused("too-large", f"At most {self.limits.messages} messages at once.", pointer="/messages")
        lines: dict[str, bytes] = {}
        taken: dict[str, None] = {}
        for index, raw in enumerate(messages):
            message_id, line = self.message_line(bytes(raw), f"/messages/{index}", taken)
            taken[message_id] = None
            lines[message_id] = line
        self.add(AppendEffect([Raw(line) for line in lines.values()]))
        self.undo.append(DeleteEffect(list(lines)))

    def delete(self, ids: list[str], pointer: str = "/messages") -> None:
        wanted = list(dict.fromkeys(ids))
        if not wanted:
            raise Refused("bad-frame", "messages names at least one message.", pointer=pointer)
        for index, message_id in enumerate(wanted):
            if message_id not in self.chat.messages:
                raise Refused(
                    "message-unknown", f"The chat has no message {message_id[:64]!r}.", pointer=f"{pointer}/{index}"
                )
        self._spend_order()
        gone = set(wanted)
        after: str | None = None
        back: list[Effect] = []
        for message_id in self.chat.order():
            if message_id in gone:
                back.append(InsertEffect(after, [Raw(self.chat.served(message_id))]))
                self.was[message_id] = zlib.crc32(self.chat.messages[message_id])
            after = message_id
        self.undo.extend(reversed(back))
        self.add(DeleteEffect(wanted))

    def _spend_order(self) -> None:
        """The order is worked out anew after each insertion or deletion."""
        self.spend(16 * len(self.chat.messages))

    def patch_message(self, message_id: str, raw: bytes, operations: list[Operation], where: str) -> None:
        old = self.chat.messages.get(message_id)
        if old is None:
            raise Refused("message-unknown", f"The chat has no message {message_id[:64]!r}.", pointer="/message")
        _refuse_id_paths(operations, where)
        kept = [operation for operation in operations if operation["op"] != "test"]
        if len(kept) != len(operations):
            raw = dumps(kept)
        patched = self.patched(self.chat.value(message_id), operations, where)
        value = patched.value
        if not isinstance(value, dict):
            raise Refused("patch-failed", "A message stays a JSON object.", pointer=where)
        if value.get("id") != message_id:
            raise Refused("id-immutable", "The id of a message cannot be changed.", pointer=where)
        line = dumps(value)
        if len(line) > self.limits.document_bytes:
            raise Refused(
                "patch-too-large", f"A message has at most {self.limits.document_bytes} bytes.", pointer=where
            )
        self.spend(len(line))
        if not kept:
            return
        self.was.setdefault(message_id, zlib.crc32(old))
        self.known[message_id] = line
        self.undo.append(PatchEffect(message_id, Raw(dumps(patched.undo))))
        self.add(PatchEffect(message_id, Raw(raw)))

    def patch_metadata(self, raw: bytes, operations: list[Operation], where: str) -> None:
        kept = [operation for operation in operations if operation["op"] != "test"]
        if len(kept) != len(operations):
            raw = dumps(kept)
        patched = self.patched(self.chat.metadata_value(), operations, where)
        if not isinstance(patched.value, dict):
            raise Refused("patch-failed", "The metadata stays a JSON object.", pointer=where)
        size_bytes = len(dumps(patched.value))
        if size_bytes > self.limits.document_bytes:
            raise Refused(
                "patch-too-large", f"The metadata has at most {self.limits.document_bytes} bytes.", pointer=where
            )
        self.spend(size_bytes)
        if not kept:
            return
        self.undo.append(MetadataEffect(Raw(dumps(patched.undo))))
        self.add(MetadataEffect(Raw(raw)))

    def metadata_update(self, request: MetadataUpdate | BatchedMetadataUpdate) -> None:
        if isinstance(request.patch, Raw):
            raw = bytes(request.patch)
            operations = _operations(request.patch, self.limits)
            self.patch_metadata(raw, operations, "/patch")
            return
        if isinstance(request.merge, Raw):
            merge = read_payload(bytes(request.merge), "/merge", self.limits.depth)
            if not isinstance(merge, dict):
                raise Refused("bad-frame", "merge is a JSON object.", pointer="/merge")
            operations = merge_to_patch(self.chat.metadata_value(), merge)
        else:
            value = read_payload(_raw(request.set), "/set", self.limits.depth)
            if not isinstance(value, dict):
                raise Refused("bad-frame", "The metadata is a JSON object.", pointer="/set")
            operations = [{"op": "replace", "path": "", "value": value}]
        self.plain = False
        self.patch_metadata(dumps(operations), operations, "/patch")

    # -- states

    def state_now(self, namespace: str) -> bytes | None:
        if namespace in self.states:
            return self.states[namespace]
        document = self.stream.states.get(namespace)
        return None if document is None else document.data

    def state_update(self, request: StateUpdate | BatchedStateUpdate, forced: bool) -> None:
        namespace = request.namespace
        data = self.state_now(namespace)
        effect = StateEffect(namespace, self.version, self._state_previous(namespace))
        if isinstance(request.set, Raw):
            raw = bytes(request.set)
            if read_payload(raw, "/set", self.limits.depth) is None:
                raise Refused("bad-frame", "A state of null is no state: use state-delete.", pointer="/set")
            new = _one_line(raw)
            effect.data = Raw(new)
        else:
            operations: list[Operation]
            if isinstance(request.patch, Raw):
                raw = bytes(request.patch)
                operations = _operations(request.patch, self.limits)
                value = loads(data) if data is not None else {}
            else:
                merge = read_payload(_raw(request.merge), "/merge", self.limits.depth)
                value = loads(data) if data is not None else {}
                if not isinstance(merge, dict):
                    raise Refused("bad-frame", "merge is a JSON object.", pointer="/merge")
                operations = merge_to_patch(value if isinstance(value, dict) else {}, merge)
                if not isinstance(value, dict):
                    value = {}
                self.plain = False
            kept = dumps([operation for operation in operations if operation["op"] != "test"])
            was_object = data is None or isinstance(loads(data), dict) or isinstance(request.patch, Raw)
            patched = self.patched(value, operations, "/patch")
            if patched.value is None:
                raise Refused("patch-failed", "A state of null is no state: use state-delete.", pointer="/patch")
            new = dumps(patched.value)
            if was_object:
                effect.patch = Raw(kept)
            else:
                effect.data = Raw(new)
        if len(new) > self.limits.document_bytes:
            raise Refused("patch-too-large", f"A state has at most {self.limits.document_bytes} bytes.")
        self.spend(len(new))
        if forced and data is not None:
            self.undo.append(StateEffect(namespace, self.version, None, data=Raw(data)))
        self.states[namespace] = new
        self.add(effect)

    def state_delete(self, namespace: str) -> None:
        data = self.state_now(namespace)
        if data is not None:
            self.undo.append(StateEffect(namespace, self.version, None, data=Raw(data)))
        self.states[namespace] = None
        self.add(StateEffect(namespace, self.version, self._state_previous(namespace), deleted=True))

    def _state_previous(self, namespace: str) -> str | None:
        document = self.stream.states.get(namespace)
        return document.version.integrity if document is not None and document.version is not None else None

    # -- the whole chat

    def patch_chat(self, operations: list[Operation], where: str) -> None:
        """RFC 6902 on `{"metadata": ..., "messages": [...]}`, turned into effects on ids."""
        for index, operation in enumerate(operations):
            at = f"{where}/{index}"
            try:
                self._one_of_chat(operation, at)
            except Refused as refusal:
                # The operation was carried out as a patch of its own, whose only index is 0.
                pointer = refusal.pointer or at
                if pointer.startswith(f"{at}/0"):
                    pointer = at + pointer[len(at) + 2:]
                raise Refused(refusal.code, refusal.message, pointer=pointer, details=refusal.details) from None

    def _one_of_chat(self, operation: Operation, at: str) -> None:
        kind = operation["op"]
        target = self._split(operation["path"], f"{at}/path", adding=kind in ("add", "move", "copy"))
        if kind in ("move", "copy"):
            source = self._split(operation["from"], f"{at}/from", adding=False)
            self._relocate(kind, source, target, operation, at)
        elif target[0] == "metadata":
            inner = [{**operation, "path": target[2]}]
            self.patch_metadata(dumps(inner), inner, at)
        elif target[2]:
            inner = [{**operation, "path": target[2]}]
            self.patch_message(target[1], dumps(inner), inner, at)
        else:
            self._whole_message(kind, target[1], operation, at)

    def _whole_message(self, kind: str, where_to: str, operation: Operation, at: str) -> None:
        if kind == "add":
            self._insert(where_to, operation["value"], at)
        elif kind == "remove":
            self.delete([where_to], at)
        elif kind == "test":
            self.patch_message(where_to, b"", [{"op": "test", "path": "", "value": operation["value"]}], at)
        else:
            value = operation["value"]
            if not isinstance(value, dict):
                raise Refused("message-illegal", "A message is a JSON object.", pointer=f"{at}/value")
            inner = [{"op": "replace", "path": "", "value": {"id": where_to, **value}}]
            self.patch_message(where_to, dumps(inner), inner, at)

    def _insert(self, position: str, value: Any, at: str) -> None:
        message_id, line = self.message_line(dumps(value), f"{at}/value", {})
        if position == "-" or int(position) == len(self.chat.messages):
            self.add(AppendEffect([Raw(line)]))
        else:
            self._spend_order()
            index = int(position)
            after = self.chat.order()[index - 1] if index else None
            self.add(InsertEffect(after, [Raw(line)]))
        self.undo.append(DeleteEffect([message_id]))

    def _relocate(
        self, kind: str, source: tuple[str, str, str], target: tuple[str, str, str], operation: Operation, at: str
    ) -> None:
        if kind == "move" and f"{operation['path']}/".startswith(f"{operation['from']}/") and (
            operation["path"] != operation["from"]
        ):
            raise Refused("patch-failed", "A value cannot be moved into itself.", pointer=at)
        document = self.chat.metadata_value() if source[0] == "metadata" else self.chat.value(source[1])
        value = self.patched(document, [{"op": "copy", "from": source[2], "path": ""}], at).value
        whole_source = source[0] == "messages" and not source[2]
        if whole_source and kind == "copy" and isinstance(value, dict):
            value.pop("id", None)
        if kind == "move":
            self._one_of_chat({"op": "remove", "path": operation["from"]}, at)
            # Indexes behind the removed message have moved.
            target = self._split(operation["path"], f"{at}/path", adding=True)
        add: Operation = {"op": "add", "path": target[2], "value": value}
        if target[0] == "metadata":
            self.patch_metadata(dumps([add]), [add], at)
        elif target[2]:
            self.patch_message(target[1], dumps([add]), [add], at)
        else:
            self._insert(target[1], value, at)

    def _split(self, path: str, at: str, *, adding: bool) -> tuple[str, str, str]:
        """`metadata`, "", inner path; or `messages`, message id (or index, to add a whole message), inner path."""
        tokens = parse_pointer(path, at)
        if tokens and tokens[0] == "metadata":
            return "metadata", "", join_pointer(tokens[1:])
        if len(tokens) < 2 or tokens[0] != "messages":
            raise Refused("patch-failed", "A path begins with /metadata or /messages/<index>.", pointer=at)
        index_text = tokens[1]
        size = len(self.chat.messages)
        whole_and_new = adding and len(tokens) == 2
        if index_text == "-" and whole_and_new:
            return "messages", "-", ""
        plain = index_text.isascii() and index_text.isdigit() and len(index_text) <= 12
        if not plain or (index_text[0] == "0" and len(index_text) > 1):
            raise Refused("patch-failed", f"{index_text[:32]!r} is no index of a message.", pointer=at)
        index = int(index_text)
        if index >= size + (1 if whole_and_new else 0):
            raise Refused("message-unknown", f"The chat has no message {index}: it has {size}.", pointer=at)
        if whole_and_new:
            return "messages", index_text, ""
        return "messages", self.chat.order()[index], join_pointer(tokens[2:])


def _accept(
    stream: Stream, request: Write, session: str, op: int, print_: int, fresh: Fresh, limits: Limits
) -> Committed:
    bases = _Bases(stream, session, request.force, request.on_conflict == "rebase")
    several = isinstance(request, Batch) or (isinstance(request, Patch) and isinstance(request.message, UnsetType))
    work = _Work(stream, fresh, limits, several=several)
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
    return _committed(work, bases.rebased, session, op, print_)


def _inside(refusal: Refused, index: int) -> Refused:
    """The refusal of one request of a batch, its pointer as seen from the frame."""
    pointer = f"/requests/{index}{refusal.pointer or ''}"
    return Refused(refusal.code, refusal.message, pointer=pointer, details=refusal.details)


_Inner = (
    Append | Patch | Delete | MetadataUpdate | StateUpdate | StateDelete | Batch | BatchedAppend | BatchedPatch
    | BatchedDelete | BatchedMetadataUpdate | BatchedStateUpdate | BatchedStateDelete
)


def _check_base(bases: _Bases, work: _Work, request: _Inner, base: Base) -> None:
    match request:
        case Append() | BatchedAppend():
            bases.check_chat(base, ("a",), True)
        case Delete() | BatchedDelete():
            bases.check_chat(base, tuple(f"m:{message_id}" for message_id in request.messages), False)
        case Patch() | BatchedPatch():
            operations = _operations(request.patch, work.limits)
            if isinstance(request.message, UnsetType):
                bases.check_chat(base, _chat_targets(work.stream.chat, operations), False)
            else:
                bases.check_chat(base, (f"m:{request.message}",), base == "*" and _tested(operations))
        case MetadataUpdate() | BatchedMetadataUpdate():
            _exactly_one(request.set, request.merge, request.patch)
            merging = isinstance(request.merge, Raw)
            bases.check_chat(base, _metadata_targets(work, request), merging)
        case StateUpdate() | BatchedStateUpdate():
            _exactly_one(request.set, request.merge, request.patch)
            document = _state_document(work.stream, request.namespace)
            bases.check_state(base, request.namespace, document, isinstance(request.merge, Raw))
        case StateDelete() | BatchedStateDelete():
            document = _state_document(work.stream, request.namespace)
            bases.check_state(base, request.namespace, document, False)


def _carry_out(work: _Work, request: _Inner, forced: bool) -> None:
    match request:
        case Append() | BatchedAppend():
            work.append(request.messages)
        case Delete() | BatchedDelete():
            work.delete(request.messages)
        case Patch() | BatchedPatch():
            raw = bytes(request.patch)
            operations = _operations(request.patch, work.limits)
            if isinstance(request.message, UnsetType):
                work.patch_chat(operations, "/patch")
            else:
                work.patch_message(request.message, raw, operations, "/patch")
        case MetadataUpdate() | BatchedMetadataUpdate():
            work.metadata_update(request)
        case StateUpdate() | BatchedStateUpdate():
            work.state_update(request, forced)
        case StateDelete() | BatchedStateDelete():
            work.state_delete(request.namespace)


def _committed(work: _Work, rebased: bool, session: str, op: int, print_: int) -> Committed:
    version = work.version
    effects = work.effects
    ops_json = encode_effects(effects)
    previous = work.stream.head.integrity.encode()
    author = b'"by":{"session":%b,"op":%d}' % (_encode(session), op)
    version_json = version.encoded()
    full = b'"version":%b,"previous":"%b",%b,"ops":%b' % (version_json, previous, author, ops_json)
    extra = b',"fingerprint":%d' % print_
    if rebased:
        extra += b',"rebased":true'
    if work.plain:
        extra += b',"plain":true'
    if work.was:
        extra += b',"was":' + _encode(work.was)
    only_append = len(effects) == 1 and isinstance(effects[0], AppendEffect)
    if work.undo and not only_append:
        work.undo.reverse()
        extra += b',"undo":' + encode_effects(work.undo)
    travelling = wire_effects(effects) if work.states else effects
    core = full
    if travelling is not effects:
        core = b'"version":%b,"previous":"%b",%b,"ops":%b' % (
            version_json, previous, author, encode_effects(travelling),
        )
    body = b'"version":' + version_json + b',"durable":"fsync"'
    if only_append and work.plain:
        ids: list[str] = work.undo[0].messages  # type: ignore[union-attr, assignment]
        body += b',"messages":' + _encode(ids)
        targets: tuple[str, ...] = ("a",)
    else:
        targets = targets_of(effects)
        namespaces = list(work.states)
        if len(effects) == 1 and namespaces:
            body += b',"namespace":' + _encode(namespaces[0])
        if not work.plain:
            body += b',"ops":' + encode_effects(travelling)
    if rebased:
        body += b',"rebased":true'
    return Committed(
        version, effects, core, b"{" + full + extra + b"}", Outcome("ack", print_, body, version.integrity), targets,
        work.known, work.chat if work.draft else None, work.states,
    )


# -- small questions -------------------------------------------------------------------------------------------------


def _raw(value: Raw | UnsetType) -> bytes:
    assert isinstance(value, Raw), "checked by _exactly_one"
    return bytes(value)


def _one_line(data: bytes) -> bytes:
    """JSON without line ends between its tokens: inside strings they are always escaped."""
    if b"\n" in data or b"\r" in data:
        return data.replace(b"\r", b" ").replace(b"\n", b" ")
    return data


def _operations(patch: Raw, limits: Limits) -> list[Operation]:
    return check_operations(read_payload(bytes(patch), "/patch", limits.depth), "/patch", limits.patch_ops)


def _exactly_one(*fields: object) -> None:
    if sum(isinstance(field, Raw) for field in fields) != 1:
        raise Refused("bad-frame", "Give exactly one of set, merge and patch.")


def _state_document(stream: Stream, namespace: str) -> StateDocument | None:
    problem = namespace_problem(namespace)
    if problem:
        raise Refused("namespace-illegal", f"{problem[0].upper()}{problem[1:]}.", pointer="/namespace")
    if is_reserved_namespace(namespace):
        raise Refused("namespace-reserved", f"Only the server writes {namespace!r}.", pointer="/namespace")
    document = stream.states.get(namespace)
    if document is not None and document.corrupt:
        raise Refused(
            "state-corrupt", f"The file of {namespace!r} is no JSON; it is kept as it is.", pointer="/namespace"
        )
    return document


def _refuse_id_paths(operations: list[Operation], where: str) -> None:
    for index, operation in enumerate(operations):
        if operation["op"] == "test":
            continue
        if operation["path"] == "/id" or (operation["op"] == "move" and operation["from"] == "/id"):
            raise Refused("id-immutable", "The id of a message cannot be changed.", pointer=f"{where}/{index}/path")


def _tested(operations: list[Operation]) -> bool:
    """True when every replaced, removed or read path was tested before (DESIGN section 5, base "*")."""
    tested: set[str] = set()
    for operation in operations:
        kind = operation["op"]
        if kind == "test":
            tested.add(operation["path"])
            continue
        read = operation["path"] if kind in ("replace", "remove") else operation.get("from")
        if read is not None and kind != "add" and read not in tested:
            return False
    return True


def _chat_targets(chat: Chat, operations: list[Operation]) -> tuple[str, ...]:
    """What a patch of the whole chat touches; an index that only a later operation makes is nobody else's."""
    targets: list[str] = []
    for operation in operations:
        for member in ("path", "from"):
            path = operation.get(member)
            if not isinstance(path, str):
                continue
            parts = path.split("/")
            if len(parts) > 1 and parts[1] == "metadata":
                targets.append("M:" + path[len("/metadata"):])
            elif len(parts) > 2 and parts[2].isascii() and parts[2].isdigit() and len(parts[2]) < 12:
                index = int(parts[2])
                if index < len(chat.messages):
                    # An index is a view: any change of the order since the base moves it.
                    targets.append(f"m:{chat.order()[index]}")
                targets.append("x")
    return tuple(targets)


def _metadata_targets(work: _Work, request: MetadataUpdate | BatchedMetadataUpdate) -> tuple[str, ...]:
    if isinstance(request.patch, Raw):
        operations = _operations(request.patch, work.limits)
    elif isinstance(request.merge, Raw):
        merge = read_payload(bytes(request.merge), "/merge", work.limits.depth)
        # A member that is taken away is touched as well, so the names decide, not the operations.
        return tuple("M:" + join_pointer([key]) for key in merge) if isinstance(merge, dict) else ("M:",)
    else:
        return ("M:",)
    members = ("path", "from")
    return tuple(f"M:{operation[member]}" for operation in operations for member in members if member in operation)

