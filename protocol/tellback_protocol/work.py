"""Effects as they are worked out: the chat and the states that a request is carried out on.

Rules of this module:
- Nothing shared is changed: one step works on parsed copies, several steps on a copy of the chat.
- An effect leaves nothing to interpret: tests are evaluated and dropped, merges become patches, indexes become ids.
- For every effect there is its way back, and what it was made from.
"""

from __future__ import annotations

import zlib
from typing import Any

from msgspec import Raw, UnsetType

from . import swipes
from .decision import Fresh
from .effects import (
    AppendEffect,
    ChatEffect,
    DeleteEffect,
    Effect,
    FloorEffect,
    InsertEffect,
    MetadataEffect,
    PatchEffect,
    StateEffect,
)
from .errors import Refused, illegal
from .floor_work import FloorWork
from .floors import FloorCommit
from .frames import Limits
from .ids import Version, message_id_problem
from .patch import (
    COPIED_NODES_MAX,
    Operation,
    Patched,
    apply_patch,
    check_operations,
    deep_copy,
    merge_to_patch,
)
from .requests import (
    BatchedFloorUpdate,
    BatchedMetadataUpdate,
    BatchedStateUpdate,
    BatchedSwipe,
    FloorTarget,
    FloorUpdate,
    MetadataUpdate,
    StateUpdate,
    Swipe,
)
from .stream import Stream
from .values import dumps, loads, read_payload

STEPS_BYTES_MAX = 32 << 20
"""Bytes that the steps of one batch or whole-chat patch may write again and again: about 0.3 s of work."""


class Work:
    """Effects as they are worked out. With `several` steps the chat is a copy that each effect is applied to."""

    __slots__ = (
        "chat", "checked", "copies_left", "draft", "effects", "floors", "fresh", "given", "known", "limits", "plain",
        "states", "steps_bytes", "stream", "told", "undo", "version", "was",
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
        self.checked: dict[int, list[Operation]] = {}
        """Operations of patches that are not carried out yet, by the `id` of their request; read with its base."""
        self.copies_left = COPIED_NODES_MAX
        self.steps_bytes = 0
        self.floors = FloorWork(stream)
        self.told = b""
        """What else the ack says, as one JSON object."""

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
        if self.draft and isinstance(effect, ChatEffect):
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
                raise illegal("message-illegal", problem, f"{pointer}/id")
            if self.is_taken(message_id) or message_id in index_id:
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
            if not self.is_taken(message_id) and message_id not in taken:
                return message_id

    def is_taken(self, message_id: str) -> bool:
        """Whether a message has this id, or one that is being generated will have it."""
        return message_id in self.chat.messages or (bool(self.stream.running) and any(
            generation.message == message_id and generation.state == "running"
            for generation in self.stream.generations.values()
        ))

    def append(self, messages: list[Raw]) -> list[str]:
        """The ids of the messages."""
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
            if self.floors.is_touched(message_id):
                self.floors.returned(message_id, loads(line))
        self.add(AppendEffect([Raw(line) for line in lines.values()]))
        self.undo.append(DeleteEffect(list(lines)))
        return list(lines)

    def delete(self, ids: list[str], pointer: str = "/messages") -> None:
        wanted = list(dict.fromkeys(ids))
        if not wanted:
            raise Refused("bad-frame", "messages names at least one message.", pointer=pointer)
        for index, message_id in enumerate(wanted):
            if message_id not in self.chat.messages:
                raise Refused(
                    "message-unknown", f"The chat has no message {message_id[:64]!r}.", pointer=f"{pointer}/{index}"
                )
        self.spend_order()
        gone = set(wanted)
        after: str | None = None
        back: list[Effect] = []
        for message_id in self.chat.order():
            if message_id in gone:
                back.append(InsertEffect(after, [Raw(self.chat.served(message_id))]))
                self.was[message_id] = zlib.crc32(self.chat.messages[message_id])
                if self.floors.concerns(message_id):
                    self.floors.deleted(message_id)
            after = message_id
        self.undo.extend(reversed(back))
        self.add(DeleteEffect(wanted))

    def spend_order(self) -> None:
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
        undo = patched.undo
        if kept and isinstance(value.get("swipes"), list):
            # The values of `operations` may be part of `value`, and are still to be sent.
            value = deep_copy(value)
            change = swipes.follow(self.chat.value(message_id), value)
            if change is not None and change.operations:
                value = change.value
                undo = [*change.undo, *undo]
                raw = raw.rstrip()[:-1] + b"," + dumps(change.operations)[1:]
                self.plain = False
        if kept and self.floors.concerns(message_id):
            self.floors.edited(message_id, self.chat.value(message_id), value)
        self._set_message(message_id, old, value, raw if kept else None, undo, where)

    def _set_message(
        self, message_id: str, old: bytes, value: dict[str, Any], raw: bytes | None, undo: list[Operation], where: str
    ) -> None:
        """The message is `value` now; `raw` are the operations that make it so, None when nothing changed."""
        line = dumps(value)
        if len(line) > self.limits.document_bytes:
            raise Refused(
                "patch-too-large", f"A message has at most {self.limits.document_bytes} bytes.", pointer=where
            )
        self.spend(len(line))
        if raw is None:
            return
        self.was.setdefault(message_id, zlib.crc32(old))
        self.known[message_id] = line
        self.undo.append(PatchEffect(message_id, Raw(dumps(undo))))
        self.add(PatchEffect(message_id, Raw(raw)))

    def swipe(self, request: Swipe | BatchedSwipe) -> None:
        """Put a swipe behind the others, show one, or take one away."""
        message_id = request.message
        old = self.chat.messages.get(message_id)
        if old is None:
            raise Refused("message-unknown", f"The chat has no message {message_id[:64]!r}.", pointer="/message")
        value = self.chat.value(message_id)
        if request.action == "add":
            content = read_payload(_raw(request.content), "/content", self.limits.depth)
            if not isinstance(content, dict):
                raise Refused("swipe-illegal", "The content of a swipe is a JSON object.", pointer="/content")
            change = swipes.add(value, content, select=request.select)
        else:
            assert isinstance(request.swipe, int), "checked before the base"
            change = (swipes.select if request.action == "select" else swipes.delete)(value, request.swipe)
        if self.floors.concerns(message_id):
            if request.action == "delete":
                assert isinstance(request.swipe, int), "checked before the base"
                self.floors.swipe_deleted(message_id, request.swipe, change.value)
            else:
                self.floors.edited(message_id, self.chat.value(message_id), change.value)
        raw = dumps(change.operations) if change.operations else None
        self.plain = False
        self._set_message(message_id, old, change.value, raw, change.undo, "/content")

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
            operations = operations_of(request.patch, self.limits)
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
        if self.floors.has_log(namespace):
            raise Refused("floor-state", "This namespace is a floor state: use floor-update.", pointer="/namespace")
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
                operations = operations_of(request.patch, self.limits)
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
        if self.floors.has_log(namespace):
            effect, back = self.floors.delete(namespace, self.version)
            self.undo.append(back)
            self.states[namespace] = None
            self.plain = False
            self.add(effect)
            return
        data = self.state_now(namespace)
        if data is not None:
            self.undo.append(StateEffect(namespace, self.version, None, data=Raw(data)))
        self.states[namespace] = None
        self.add(StateEffect(namespace, self.version, self._state_previous(namespace), deleted=True))

    def floor_update(self, request: FloorUpdate | BatchedFloorUpdate) -> None:
        """RFC 6902 on a floor state, kept with the message and swipe that it belongs to."""
        namespace, floors = request.namespace, self.floors
        floors.check_namespace(namespace)
        message_id, swipe, shown = self._floor_target(request.at)
        floors.settle()
        is_new = not floors.has_log(namespace)
        draft = floors.draft(namespace, self.state_now(namespace))
        raw = _one_line(bytes(request.patch))
        operations = operations_of(request.patch, self.limits)
        kept = [deep_copy(operation) for operation in operations if operation["op"] != "test"]
        patched = self.patched(loads(draft.data), operations, "/patch")
        if not isinstance(patched.value, dict):
            raise Refused("patch-failed", "A floor state stays a JSON object.", pointer="/patch")
        new = dumps(patched.value)
        if len(new) > self.limits.document_bytes:
            raise Refused("patch-too-large", f"A state has at most {self.limits.document_bytes} bytes.")
        self.spend(len(new))
        if not kept:
            if is_new:
                floors.drafts.pop(namespace)
            return
        floors.begin(draft, self.new_id({}))
        draft.add(FloorCommit(self.new_id({}), message_id, swipe, raw), kept, new, shown)
        if swipe != shown or draft.operations is None:
            self.plain = False

    def _floor_target(self, at: FloorTarget | UnsetType) -> tuple[str, int, int]:
        """Message, swipe, and the swipe that the message shows."""
        if not self.chat.messages:
            raise Refused("message-unknown", "The chat has no message that this could belong to.", pointer="/at")
        target = FloorTarget() if isinstance(at, UnsetType) else at
        if isinstance(target.message, str) and isinstance(target.floor, int):
            raise Refused("bad-frame", "Name the message by id or by index, not both.", pointer="/at")
        if isinstance(target.message, str):
            message_id = target.message
            if message_id not in self.chat.messages:
                raise Refused(
                    "message-unknown", f"The chat has no message {message_id[:64]!r}.", pointer="/at/message"
                )
        elif isinstance(target.floor, int):
            size = len(self.chat.messages)
            if target.floor >= size:
                raise Refused(
                    "message-unknown", f"The chat has no message {target.floor}: it has {size}.", pointer="/at/floor"
                )
            message_id = self.chat.order()[target.floor]
        else:
            message_id = next(reversed(self.chat.messages))
        value = self.chat.value(message_id)
        shown = swipes.active(value)
        if not isinstance(target.swipe, int):
            return message_id, shown, shown
        if target.swipe >= swipes.count(value):
            raise Refused("swipe-unknown", f"The message has no swipe {target.swipe}.", pointer="/at/swipe")
        return message_id, target.swipe, shown

    def finish(self) -> None:
        """All steps are done: what became of the floor states joins the effects."""
        floors = self.floors
        floors.settle()
        if not floors.drafts:
            return
        done, undo, documents = floors.effects(self.version)
        if self.effects and done:
            # Nobody asked for what a change of messages does to a floor state.
            self.plain = False
        for effect in done:
            if not isinstance(effect, FloorEffect) or isinstance(effect.skipped, list):
                self.plain = False
            self.add(effect)
        self.undo.extend(undo)
        self.states.update(documents)

    def _state_previous(self, namespace: str) -> str | None:
        document = self.stream.states.get(namespace)
        return document.version.integrity if document is not None and document.version is not None else None


def _raw(value: Raw | UnsetType) -> bytes:
    assert isinstance(value, Raw), "checked by _exactly_one"
    return bytes(value)


def _one_line(data: bytes) -> bytes:
    """JSON without line ends between its tokens: inside strings they are always escaped."""
    if b"\n" in data or b"\r" in data:
        return data.replace(b"\r", b" ").replace(b"\n", b" ")
    return data


def operations_of(patch: Raw, limits: Limits) -> list[Operation]:
    """The checked operations of a payload. Raises: Refused."""
    return check_operations(read_payload(bytes(patch), "/patch", limits.depth), "/patch", limits.patch_ops)


def _refuse_id_paths(operations: list[Operation], where: str) -> None:
    for index, operation in enumerate(operations):
        if operation["op"] == "test":
            continue
        if operation["path"] == "/id" or (operation["op"] == "move" and operation["from"] == "/id"):
            raise Refused("id-immutable", "The id of a message cannot be changed.", pointer=f"{where}/{index}/path")
