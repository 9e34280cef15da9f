"""Generations as values: what the chat's document tells of each, and the text of those that run.

    running --end--> stored | failed      --cancel--> cancelled      --no producer for the lease--> orphaned

Rules of this module (BEHAVIOUR T1 to T20):
- The document `tellback_generations` holds the states and is changed by commits only; text that is still being written
  is beside it, because it has no version.
- Offsets count UTF-16 units. A delta is installed wholly or not at all; repeated or reordered ones do no harm.
- A generation ends once, whoever ends it.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from typing import Any, Final, Literal

import msgspec
from msgspec import UNSET, Raw, UnsetType

from .effects import Effect, StateEffect
from .errors import Refused
from .generation_requests import GenerationError, GenerationTarget, Salvage
from .patch import parse_pointer
from .provenance import Provenance
from .values import dumps, loads

NAMESPACE: Final = "tellback_generations"
FINISHED_MAX: Final = 32
"""Finished generations that the document keeps, the newest."""
CHUNK_CHARS: Final = 2048
"""Text is kept in pieces of about this size, so that one more token costs no copy of what came before."""
ENTRY_BYTES: Final = 4096
"""Room in a message for what stands around the text."""

State = Literal["running", "stored", "cancelled", "failed", "orphaned"]


def units_of(text: str) -> int:
    """Length in UTF-16 units."""
    return len(text) if text.isascii() else len(text.encode("utf-16-le", "surrogatepass")) >> 1


class Generation(msgspec.Struct, omit_defaults=True, gc=False):
    """What the document tells of one generation."""

    state: State
    target: GenerationTarget
    message: str
    """The id that is reserved for the reply, or of the message that gets it; when it is stored, where it is."""
    by: str
    """The session that started it, and whose deltas count."""
    started_ms: int
    after: str | UnsetType | None = UNSET
    """The message that a reply of its own answers; null when the chat was empty."""
    swipe: int | UnsetType | None = UNSET
    """The swipe that is continued, null when it was taken away; when it is stored, the swipe that holds the text."""
    reply: Raw | UnsetType = UNSET
    """Fields of the reply, while it runs."""
    lease_s: int | UnsetType = UNSET
    upstream: str | UnsetType = UNSET
    """The model server that produces the text, when the server itself asks it."""
    model: str | UnsetType = UNSET
    """The model that it was asked for."""
    supersedes: str | UnsetType = UNSET
    ended_ms: int | UnsetType = UNSET
    integrity: str | UnsetType = UNSET
    """Of the commit that ended it."""
    is_stored: bool = msgspec.field(name="stored", default=False)
    """The chat holds what there was of the text."""
    error: GenerationError | UnsetType = UNSET
    acked: list[str] = []
    """Sessions that hold the result."""

    @property
    def producer(self) -> str | None:
        """The session whose text counts; None when the server itself asks a model."""
        return self.by if isinstance(self.upstream, UnsetType) else None

    @property
    def slot(self) -> str:
        """What only one generation can be written to at a time."""
        if isinstance(self.target.message, str):
            return f"m:{self.target.message}"
        return "e:" if not isinstance(self.after, str) else f"a:{self.after}"


_convert = msgspec.convert
_entry = msgspec.json.Encoder().encode


def generations_of(data: bytes | None) -> dict[str, Generation]:
    """The generations of a document, oldest first. What another program put there and is none is left out."""
    if data is None:
        return {}
    document = loads(data)
    if not isinstance(document, dict):
        return {}
    found: dict[str, Generation] = {}
    for generation_id, value in document.items():
        try:
            reply = value.pop("reply", None) if isinstance(value, dict) else None
            generation = _convert(value, Generation)
        except msgspec.ValidationError:
            continue
        if isinstance(reply, dict):
            generation.reply = Raw(dumps(reply))
        found[generation_id] = generation
    return found


def entry_of(generation: Generation) -> Any:
    """A generation as the document holds it."""
    return loads(_entry(generation))


def entries_told(effects: list[Effect]) -> dict[str, Generation | None]:
    """What a commit says of generations, None of one that it took away."""
    told: dict[str, Generation | None] = {}
    for effect in effects:
        if not isinstance(effect, StateEffect) or effect.namespace != NAMESPACE:
            continue
        if isinstance(effect.data, Raw):
            told.update(generations_of(bytes(effect.data)))
        for operation in loads(bytes(effect.patch)) if isinstance(effect.patch, Raw) else ():
            tokens = parse_pointer(operation["path"], "")
            if len(tokens) == 1:
                entry = {tokens[0]: operation["value"]} if "value" in operation else {}
                told[tokens[0]] = generations_of(dumps(entry)).get(tokens[0])
    return told


def states_told(effects: list[Effect]) -> dict[str, str | None]:
    """The states that a commit gave to generations, None when it took one away."""
    return {one_id: None if one is None else one.state for one_id, one in entries_told(effects).items()}


class StreamedText:
    """A text that grows, addressed in UTF-16 units."""

    __slots__ = ("_chunks", "_starts", "size_bytes", "units")

    def __init__(self, text: str = "") -> None:
        self._chunks: list[str] = []
        self._starts: list[int] = []
        """Where each piece begins, in units."""
        self.units = 0
        self.size_bytes = 0
        """As JSON, without quotes."""
        if text:
            self.append(text)

    def append(self, text: str) -> None:
        """Cost: the text, and seldom a piece."""
        if self._chunks and len(self._chunks[-1]) + len(text) <= CHUNK_CHARS:
            self._chunks[-1] += text
        else:
            self._starts.append(self.units)
            self._chunks.append(text)
        self.units += units_of(text)
        self.size_bytes += len(dumps(text)) - 2

    def __str__(self) -> str:
        return "".join(self._chunks)

    def since(self, offset: int, chars: int | None = None) -> str | None:
        """The text from a unit on, or at least `chars` characters of it; None when that lies inside a surrogate pair.

        Cost: what is returned, and a piece.
        """
        if offset >= self.units:
            return ""
        at = bisect_right(self._starts, offset) - 1
        first = self._chunks[at]
        index = _index_of(first, offset - self._starts[at])
        if index is None:
            return None
        found = [first[index:]]
        length = len(found[0])
        for chunk in self._chunks[at + 1 :] if chars is None or length < chars else ():
            found.append(chunk)
            length += len(chunk)
            if chars is not None and length >= chars:
                break
        return "".join(found)

    def rest(self, offset: int, text: str, pointer: str) -> str:
        """What of a delta is new. Raises Refused `generation-gap`, `bad-offset`, `generation-mismatch`."""
        if offset == self.units:
            return text
        if offset > self.units:
            raise Refused(
                "generation-gap", f"The text has {self.units} units; what comes before {offset} is missing.",
                pointer=f"/{pointer}", details={"expected": self.units},
            )
        known = self.since(offset, len(text))
        if known is None:
            raise Refused("bad-offset", f"Offset {offset} lies inside a surrogate pair.", pointer=f"/{pointer}",
                          details={"expected": self.units})
        if known.startswith(text):
            return ""
        if not text.startswith(known):
            raise Refused(
                "generation-mismatch", "This is not the text that is there already.", pointer=f"/{pointer}",
                details={"expected": self.units},
            )
        return text[len(known) :]

    def check_given_back(self, offset: int, text: str, prefix_sha256: str, pointer: str) -> None:
        """Raises Refused unless what stands before `offset` here is what stood before it where `text` comes from."""
        if offset > self.units:
            self.rest(offset, text, pointer)
        behind = self.since(offset)
        if behind is None:
            raise Refused("bad-offset", "The offset lies inside a surrogate pair.", pointer=f"/{pointer}",
                          details={"expected": self.units})
        whole = str(self)
        before = whole[: len(whole) - len(behind)]
        if hashlib.sha256(before.encode()).hexdigest() != prefix_sha256:
            raise Refused("generation-mismatch", "Another text comes before this here.", pointer="/salvage",
                          details={"expected": self.units})


def _index_of(text: str, units: int) -> int | None:
    """The index of the character that begins at a unit; None inside a surrogate pair."""
    if text.isascii():
        return units
    head = text.encode("utf-16-le", "surrogatepass")[: 2 * units]
    try:
        return len(head.decode("utf-16-le"))
    except UnicodeDecodeError:
        return None


class Added(msgspec.Struct, frozen=True, gc=False):
    """What of a delta was new, and where it begins."""

    offset: int
    text: str
    reasoning_offset: int
    reasoning: str

    def __bool__(self) -> bool:
        return bool(self.text or self.reasoning)


class Running:
    """The text of a generation that runs."""

    __slots__ = ("provenance", "reasoning", "text")

    def __init__(self, text: str = "", reasoning: str = "") -> None:
        self.text = StreamedText(text)
        self.reasoning = StreamedText(reasoning)
        self.provenance = Provenance()

    @property
    def size_bytes(self) -> int:
        return self.text.size_bytes + self.reasoning.size_bytes

    def add(
        self, offset: int, text: str, reasoning_offset: int = 0, reasoning: str = "", size_bytes_max: int | None = None
    ) -> Added:
        """Install a delta. Raises Refused; then nothing of it was installed."""
        added = Added(
            self.text.units, self.text.rest(offset, text, "offset") if text or offset else "", self.reasoning.units,
            self.reasoning.rest(reasoning_offset, reasoning, "reasoning_offset") if reasoning else "",
        )
        if size_bytes_max is not None and self._is_over(added, size_bytes_max - ENTRY_BYTES):
            raise Refused(
                "too-large", "The text of a generation has to fit into a message.", pointer="/text",
                details={"expected": self.text.units},
            )
        if added.text:
            self.text.append(added.text)
        if added.reasoning:
            self.reasoning.append(added.reasoning)
        return added

    def check_given_back(self, salvage: Salvage) -> None:
        """Raises Refused unless what a tab gives back stands behind what is here (BEHAVIOUR T17)."""
        self.text.check_given_back(salvage.offset, salvage.text, salvage.prefix_sha256, "salvage/offset")
        if not salvage.reasoning:
            return
        prefix_sha256 = salvage.reasoning_prefix_sha256
        if not isinstance(prefix_sha256, str):
            raise Refused("bad-frame", "Reasoning that is given back has the hash of what comes before it.",
                          pointer="/salvage/reasoning_prefix_sha256")
        self.reasoning.check_given_back(
            salvage.reasoning_offset, salvage.reasoning, prefix_sha256, "salvage/reasoning_offset"
        )

    def _is_over(self, added: Added, size_bytes_max: int) -> bool:
        # A character takes at most 6 bytes as JSON, so seldom has anything to be written out for this.
        if self.size_bytes + 6 * (len(added.text) + len(added.reasoning)) <= size_bytes_max:
            return False
        return self.size_bytes + len(dumps(added.text)) + len(dumps(added.reasoning)) > size_bytes_max


def as_line(generation: Generation | None, running: Running) -> bytes:
    """A text whose chat is gone, as a line of a file. The same text gives the same bytes."""
    fields = {}
    if generation is not None and isinstance(generation.reply, Raw):
        fields = loads(bytes(generation.reply))
    if running.reasoning.units:
        fields["extra"] = {"reasoning": str(running.reasoning), **fields.get("extra", {})}
    return dumps({**fields, text_member(fields): str(running.text)})


def text_member(fields: dict[str, Any]) -> str:
    """Where the text of a reply with these fields goes (BEHAVIOUR T3)."""
    return "content" if "mes" not in fields and ("content" in fields or "role" in fields) else "mes"
