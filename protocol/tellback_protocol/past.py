"""A commit after it was made: as the stream remembers it, the log keeps it, and everybody is told of it.

Rules of this module:
- `core` is the bytes that log and wire share: nothing is serialised twice (PERFORMANCE hot path 2).
- What a commit was answered with is the same bytes before and after a restart (BEHAVIOUR O2).
"""

from __future__ import annotations

import msgspec

from . import codec
from .chat import message_id_of
from .effects import (
    AppendEffect,
    Author,
    Commit,
    DeletedEffect,
    DeleteEffect,
    Effect,
    FloorEffect,
    InsertEffect,
    MetadataEffect,
    PatchEffect,
    RenamedEffect,
    StateEffect,
    encode_effects,
)
from .ids import Version
from .outcomes import Outcome
from .values import loads

STATE_TRAVELS_BYTES_MAX = 64 << 10
"""A larger state document travels as its version only (DESIGN section 5)."""

_encode = msgspec.json.encode
_decode_author = msgspec.json.Decoder(Author).decode


class Past(msgspec.Struct, gc=False):
    """A commit that the stream remembers: `core` is what the wire and the log share of it."""

    version: Version
    front: bytes
    """Of the core: all of it, or what stands before `line`."""
    targets: tuple[str, ...]
    """What it touched: `m:<message id>`, `M:<metadata path>`, `s:<namespace>`; `a` appended, `i` inserted, `d` deleted;
    `o:` the owner as a whole.

    A request may also hold `x`: it names a message by index, so an insertion or deletion since its base moves it."""
    line: bytes = b""
    """Of the one message that was appended: the chat's own bytes, because a copy in a long memory costs as much as
    building it."""
    fingerprint: int = 0
    """Of the request, when there is a `line`."""

    @property
    def core(self) -> bytes:
        """`"version":...,"previous":...,"by":...,"ops":[...]`: an integrity frame without its type and owner."""
        return b"%b%b]}]" % (self.front, self.line) if self.line else self.front

    @property
    def core_json(self) -> bytes:
        """The core as one JSON object."""
        return b"{%b%b]}]}" % (self.front, self.line) if self.line else b"{%b}" % self.front

    @property
    def size_bytes(self) -> int:
        """Of the core."""
        return len(self.front) + (len(self.line) + 3 if self.line else 0)

    def frame(self, owner: bytes) -> bytes:
        """What the others are told; `owner` from `codec.owner_member`."""
        if self.line:
            return b'{"type":"integrity",%b,%b%b]}]}' % (owner, self.front, self.line)
        return codec.integrity(owner, self.front)

    def outcome(self) -> Outcome:
        """The ack of a plain append. Only with a `line`; its id was made here, so nothing in it is escaped."""
        line, version = self.line, self.version
        begin = len(b'{"id":"')
        body = b'"version":%b,"durable":"fsync","messages":["%b"]' % (
            version.encoded(), line[begin : line.index(b'"', begin)]
        )
        return Outcome("ack", self.fingerprint, body, version.integrity)


def targets_of(effects: list[Effect]) -> tuple[str, ...]:
    """What a commit touched, in the words of `Past.targets`."""

    targets: list[str] = []
    for effect in effects:
        match effect:
            case AppendEffect():
                # One for each message: whoever names messages by index asks how many came behind those it knew.
                targets.extend("a" for _ in effect.messages)
            case InsertEffect():
                targets.append("i")
            case PatchEffect():
                targets.append(f"m:{effect.message}")
            case DeleteEffect():
                targets.append("d")
                targets.extend(f"m:{message_id}" for message_id in effect.messages)
            case MetadataEffect():
                for operation in loads(bytes(effect.patch)):
                    targets.append(f"M:{operation['path']}")
                    if "from" in operation:
                        targets.append(f"M:{operation['from']}")
            case StateEffect():
                targets.append(f"s:{effect.namespace}")
            case RenamedEffect() | DeletedEffect():
                targets.append("o:")
    return tuple(targets)


def overlap(one: str, other: str) -> bool:
    """True when two targets are the same, or one metadata path lies inside the other."""
    if one == "x":
        return other in ("i", "d")
    if one == other:
        return one not in ("a", "i", "d")
    if one.startswith("M:") and other.startswith("M:"):
        return one.startswith(other + "/") or other.startswith(one + "/") or "M:" in (one, other)
    return False


def author_of(past: Past) -> Author | None:
    """Who made a remembered commit; None for one that the server made."""
    core = past.core
    # `by` stands before `ops`, and inside a JSON string a quote is never bare.
    end = core.index(b',"ops":[')
    start = core.rfind(b',"by":', 0, end)
    return None if start < 0 else _decode_author(core[start + 6 : end])


def core_json(version: Version, previous: str, author: Author | None, ops: bytes) -> bytes:
    """What the wire and the log share of a commit."""
    by = b"" if author is None else b'"by":{"session":%b,"op":%d},' % (_encode(author.session), author.op)
    return b'"version":%b,"previous":"%b",%b"ops":%b' % (version.encoded(), previous.encode(), by, ops)


def wire_effects(effects: list[Effect]) -> list[Effect]:
    """The effects as they travel: a large state document goes as its version only."""
    if not any(isinstance(effect, StateEffect) for effect in effects):
        return effects
    return [_wire_state(effect) if isinstance(effect, StateEffect) else effect for effect in effects]


def _wire_state(effect: StateEffect) -> StateEffect:
    size_bytes = max(
        len(effect.data) if isinstance(effect.data, msgspec.Raw) else 0,
        len(effect.patch) if isinstance(effect.patch, msgspec.Raw) else 0,
    )
    travels = size_bytes <= STATE_TRAVELS_BYTES_MAX
    wire: StateEffect
    if isinstance(effect, FloorEffect):
        wire = FloorEffect(effect.namespace, effect.version, effect.previous, skipped=effect.skipped)
    elif travels:
        return effect
    else:
        wire = StateEffect(effect.namespace, effect.version, effect.previous)
    if travels:
        wire.data, wire.patch, wire.deleted = effect.data, effect.patch, effect.deleted
    return wire


def wire_core(commit: Commit) -> bytes:
    """The core of a commit from the log."""
    return core_json(commit.version, commit.previous, commit.by, encode_effects(wire_effects(commit.ops)))


def past_of(commit: Commit) -> Past:
    """A commit from the log as the stream remembers it."""
    return Past(commit.version, wire_core(commit), targets_of(commit.ops))


def ack_body(commit: Commit) -> bytes:
    """The body of the ack that a commit was answered with; the same bytes before and after a restart."""
    body = [b'"version":', commit.version.encoded(), b',"durable":"fsync"']
    if commit.plain:
        for effect in commit.ops:
            if isinstance(effect, AppendEffect):
                body.append(b',"messages":' + _encode([message_id_of(bytes(raw)) for raw in effect.messages]))
            elif isinstance(effect, StateEffect):
                body.append(b',"namespace":' + _encode(effect.namespace))
    else:
        namespaces = [effect.namespace for effect in commit.ops if isinstance(effect, StateEffect)]
        if len(commit.ops) == 1 and namespaces:
            body.append(b',"namespace":' + _encode(namespaces[0]))
        body.append(b',"ops":' + encode_effects(wire_effects(commit.ops)))
    if commit.rebased_from is not None:
        body.append(b',"rebased":true')
    if commit.told:
        body.append(b"," + bytes(commit.told)[1:-1])
    return b"".join(body)
