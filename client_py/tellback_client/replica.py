"""A chat as this client knows it: what the server confirmed, and on top of it the own writes without an answer.

Rules of this module:
- A snapshot and the commits after it give the same chat as a fresh snapshot (`install` is the server's own `apply`).
- A commit is installed only behind the commit it names as its predecessor; `follows` tells (R40).
- Being optimistic is not being the server: an own write is shown as `decide` would carry it out on what is known, and
  forgotten as soon as the server's answer says what happened.
- A state document is *known* when its namespace stands in `stream.states`; what travels without content is unknown
  until it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, overload

import msgspec
from msgspec import UNSET, Raw, UnsetType

from tellback_protocol.chat import Chat, with_id
from tellback_protocol.decide import Committed, Fresh, decide, decide_end
from tellback_protocol.effects import (
    AppendEffect,
    ChatEffect,
    DeletedEffect,
    DeleteEffect,
    Effect,
    FloorEffect,
    MetadataEffect,
    PatchEffect,
    StateEffect,
)
from tellback_protocol.errors import Refused
from tellback_protocol.floors import LOG_SUFFIX
from tellback_protocol.frames import (
    Ack,
    Behind,
    GenerationDeltaFrame,
    GenerationDone,
    GenerationStarted,
    GenerationStored,
    IntegrityFrame,
    Limits,
    Opened,
    Reset,
    SnapshotPart,
    StateValue,
)
from tellback_protocol.generations import Running
from tellback_protocol.ids import Version
from tellback_protocol.requests import (
    Append,
    Batch,
    ChatDelete,
    Delete,
    DocumentWrite,
    FloorUpdate,
    MetadataUpdate,
    OwnerDelete,
    OwnerName,
    Patch,
    StateDelete,
    StateUpdate,
    owner_text,
)
from tellback_protocol.stream import StateDocument, Stream, documents_of
from tellback_protocol.values import dumps, loads

from .own_write import OwnWrite, shown_as

GenerationFrame = GenerationStarted | GenerationDeltaFrame | GenerationStored | GenerationDone
_NOBODY = "0" * 16
_NOT_YET = "00000000-0000-8000-8000-000000000000"
"""The integrity of what is not stored yet; no server ever gives it."""
_LIMITS = Limits(frame_bytes=1 << 62, document_bytes=1 << 62, depth=1 << 30, patch_ops=1 << 30, messages=1 << 30)
"""Limits are the server's to enforce, and it tells them."""


class Replica:
    """The confirmed chat with the state documents that were asked for, at `head`."""

    __slots__ = ("stream", "versions")

    def __init__(self, name: str, chat_id: str, chat: Chat, head: Version) -> None:
        self.stream = Stream("", name, chat_id, chat, head)
        self.versions: dict[str, Version] = {}
        """Versions of state documents, as far as they were told; of a character or preset all that there are."""

    @property
    def head(self) -> Version:
        """The last commit that was installed."""
        return self.stream.head

    @property
    def chat(self) -> Chat:
        """The confirmed chat; not to be changed."""
        return self.stream.chat

    def knows(self, version: Version) -> bool:
        """True when the replica already holds the commit."""
        head = self.head
        return version.epoch < head.epoch or (version.epoch == head.epoch and version.seq <= head.seq)

    def follows(self, version: Version, previous: str | None = None) -> bool:
        """True when a commit is the next one; an ack does not say what came before it (`previous` None)."""
        head = self.head
        return (
            version.epoch == head.epoch
            and version.seq == head.seq + 1
            and (previous is None or previous == head.integrity)
        )

    def install(self, version: Version, effects: Iterable[Effect]) -> None:
        """Install the next commit. Cost: what it changes."""
        changed: set[str] = set()
        for effect in effects:
            if isinstance(effect, StateEffect):
                for namespace in documents_of(effect):
                    if effect.deleted is True:
                        self.versions.pop(namespace, None)
                    else:
                        self.versions[namespace] = effect.version
                self._install_state(effect, effect.namespace in changed)
                changed.add(effect.namespace)
            elif isinstance(effect, ChatEffect):
                self.stream.chat.apply(effect)
                self.stream.chat.version = version
            else:
                self.stream.apply_life(effect)
        self.stream.head = version

    def _install_state(self, effect: StateEffect, again: bool) -> None:
        """`again`: an effect of the same commit changed this document before."""
        states = self.stream.states
        known = states.get(effect.namespace)
        if isinstance(effect, FloorEffect):
            # What happened to the log does not travel.
            states.pop(effect.namespace + LOG_SUFFIX, None)
        if (
            not again and known is not None and known.version is not None
            and known.version.epoch == effect.version.epoch and known.version.seq >= effect.version.seq
        ):
            # The document was asked for and came newer than the commits (R31).
            return
        if effect.deleted is True or isinstance(effect.data, Raw) or (
            isinstance(effect.patch, Raw)
            and known is not None
            and (again or (known.version.integrity if known.version is not None else None) == effect.previous)
        ):
            self.stream.apply_state(effect)
        else:
            # It came without its content, or it changes a document that nobody here asked for.
            states.pop(effect.namespace, None)

    def install_state(self, namespace: str, value: StateValue | None) -> None:
        """A document as the server sent it; None means that there is none. One that is corrupt stays unknown."""
        if value is None:
            self.stream.states[namespace] = StateDocument(None, None)
        elif isinstance(value.version, Version) and isinstance(value.data, Raw):
            document = self.stream.states[namespace] = StateDocument(value.version, bytes(value.data))
            document.skipped = value.skipped if isinstance(value.skipped, list) else []

    def view(self, writes: Iterable[DocumentWrite]) -> Stream:
        """The chat with own writes on top, in order. Cost: one pointer a message, and what the writes change."""
        view = copied(self.stream)
        for write in writes:
            show(view, write)
        return view


def copied(stream: Stream) -> Stream:
    """A chat and its states, to put something on top of. Cost: one pointer a message."""
    copy = Stream("", stream.name, stream.chat_id, stream.chat.copy(), stream.head)
    for namespace, document in stream.states.items():
        copy.states[namespace] = StateDocument(document.version, document.data)
    return copy


def show(view: Stream, write: OwnWrite) -> None:
    """Put an own write on top of `view`. A write that does not fit shows nothing: the server will refuse it."""
    shown = shown_as(write)
    if shown is None:
        return
    free: DocumentWrite = msgspec.structs.replace(shown, op=1, base=_NOT_YET, force=True, on_conflict="refuse")
    if isinstance(free, Batch):
        free.requests = [msgspec.structs.replace(request, base=UNSET) for request in free.requests]
    try:
        decision = decide(view, free, _NOBODY, Fresh(_NOT_YET, 0, 0), _LIMITS)
    except Refused:
        return
    if not isinstance(decision, Committed):
        return
    _install(view, decision)


def _install(view: Stream, decision: Committed) -> None:
    version = view.chat.version
    if decision.chat is not None:
        view.chat = decision.chat
    for effect in decision.effects:
        if isinstance(effect, StateEffect):
            view.apply_state(effect, decision.states.get(effect.namespace))
        elif decision.chat is None:
            view.chat.apply(effect, decision.known)
    view.chat.version = version


def finished(stream: Stream, running: Mapping[str, Running]) -> Stream:
    """A copy in which generations have ended as they stand now: what `decide` would make of them."""
    view = copied(stream)
    for one_id, text in running.items():
        if one_id not in view.generations:
            continue
        view.running[one_id] = text
        try:
            decision = decide_end(view, one_id, "stored", Fresh(_NOT_YET, 0, 0), _LIMITS)
        except Refused:
            continue
        _install(view, decision)
    return view


def asked_effects(
    write: OwnWrite, ack: Ack, states: Mapping[str, StateDocument]
) -> list[Effect]:
    """The effects of an ack: those it carries, or else what was asked, with the ids that it gives.

    `states` are the confirmed documents: an accepted write stands on them.
    """
    if not isinstance(ack.ops, UnsetType):
        return ack.ops
    if ack.resync is True:
        return []
    match write:
        case Append():
            ids = ack.messages if not isinstance(ack.messages, UnsetType) else []
            return [AppendEffect([_with_id(bytes(raw), message_id)
                                  for raw, message_id in zip(write.messages, ids, strict=True)])]
        case Patch(message=str(message)):
            kept = _without_tests(write.patch)
            return [PatchEffect(message, kept)] if kept is not None else []
        case Delete():
            return [DeleteEffect(list(dict.fromkeys(write.messages)))]
        case MetadataUpdate() if isinstance(write.patch, Raw):
            kept = _without_tests(write.patch)
            return [MetadataEffect(kept)] if kept is not None else []
        case StateUpdate() if isinstance(write.set, Raw):
            return [StateEffect(write.namespace, ack.version, None, data=write.set)]
        case StateUpdate() if isinstance(write.patch, Raw):
            known = states.get(write.namespace)
            previous = known.version.integrity if known is not None and known.version is not None else None
            patch = _without_tests(write.patch) or Raw(b"[]")
            return [StateEffect(write.namespace, ack.version, previous, patch=patch)]
        case FloorUpdate():
            known = states.get(write.namespace)
            previous = known.version.integrity if known is not None and known.version is not None else None
            kept = _without_tests(write.patch)
            return [FloorEffect(write.namespace, ack.version, previous, patch=kept)] if kept is not None else []
        case StateDelete():
            return [StateEffect(write.namespace, ack.version, None, deleted=True)]
        case ChatDelete() | OwnerDelete():
            return [DeletedEffect()]
        case _:
            # Batches, merges and patches of the whole chat are written out by the server.
            return []


def _with_id(line: bytes, message_id: str) -> Raw:
    value = loads(line)
    return Raw(line if value.get("id") == message_id else with_id(line, message_id))


def _without_tests(patch: Raw) -> Raw | None:
    """The operations that change something; None when there are none."""
    operations = loads(bytes(patch))
    kept = [operation for operation in operations if operation["op"] != "test"]
    if len(kept) == len(operations):
        return patch if kept else None
    return Raw(dumps(kept)) if kept else None


def text_of(frame: Opened | IntegrityFrame | SnapshotPart | Reset | Behind | GenerationFrame) -> str:
    """The one text of the owner that a frame is about; empty when it names none."""
    if isinstance(frame.chat, str):
        return frame.chat
    owner = getattr(frame, "owner", None)
    return (owner_text(owner) or "") if isinstance(owner, OwnerName) else ""


class Messages(Sequence[dict[str, Any]]):
    """The messages of a chat, parsed when they are looked at; what is handed out is the caller's to change.

    Iterating sees the chat as it was when it began.
    """

    __slots__ = ("_chat",)

    def __init__(self, chat: Chat) -> None:
        self._chat = chat

    def __len__(self) -> int:
        return len(self._chat.messages)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        order = self._chat.order()
        if isinstance(index, slice):
            return [self._chat.value(message_id) for message_id in order[index]]
        return self._chat.value(order[index])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        lines = list(self._chat.served_all())
        return (loads(line) for line in lines)

    def get(self, message_id: str) -> dict[str, Any] | None:
        """The message with this id, or None."""
        return self._chat.value(message_id) if message_id in self._chat.messages else None

    def ids(self) -> list[str]:
        """The ids in order."""
        return list(self._chat.order())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, (str, bytes)):
            return NotImplemented
        return list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<Messages: {len(self)}>"
