"""The stream of one owner: its documents, the outcomes of its ops, and the commits it still remembers.

Rules of this module:
- One counter per owner; a document's version is that of the last commit that touched it (DESIGN section 2).
- An outcome is kept with its op number: resending returns it, whatever it was (BEHAVIOUR O2).
- A stream is a value: nothing here waits, reads a clock or draws a random number.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence

import msgspec

from . import swipes
from .chat import Chat
from .effects import (
    AppendEffect,
    ChatEffect,
    Commit,
    DeletedEffect,
    FloorEffect,
    FloorLogChange,
    PatchEffect,
    RenamedEffect,
    SkippedCommit,
    StateEffect,
)
from .errors import Refused
from .floors import LOG_SUFFIX, FloorCommit, FloorLog, read_log
from .frames import Damage
from .generations import NAMESPACE as GENERATIONS
from .generations import Generation, Running, generations_of
from .ids import Version, derived_uuid
from .outcomes import Outcome, SessionOps
from .past import Past, ack_body, past_of
from .patch import apply_patch
from .values import dumps, equal, loads

HISTORY_COMMITS_MAX = 2048
HISTORY_BYTES_MAX = 1 << 20
"""What a stream remembers in memory; the log holds more."""


class StateDocument:
    """A namespace: `data` is JSON bytes, None when it does not exist; `corrupt` when its file is no JSON."""

    __slots__ = ("_data", "corrupt", "skipped", "source", "version")

    def __init__(self, version: Version | None, data: bytes | None, *, corrupt: bool = False) -> None:
        self.version = version
        self._data = data
        self.corrupt = corrupt
        self.source: Callable[[], bytes] | None = None
        """Writes the document out when it is wanted: the log of a floor state is not kept as bytes."""
        self.skipped: list[SkippedCommit] = []
        """Of a floor state: commits that are shown and do not fit."""

    @property
    def exists(self) -> bool:
        """Whether there is `data`, at no cost."""
        return self.source is not None or self._data is not None

    @property
    def data(self) -> bytes | None:
        """Its bytes. The log of a floor state is written out for them, which costs the whole log each time."""
        return self._data if self.source is None else self.source()

    @data.setter
    def data(self, data: bytes | None) -> None:
        self._data = data
        self.source = None


class Stream:
    """One chat with everything it owns."""

    __slots__ = (
        "_generations", "chat", "chat_id", "contradiction", "damage", "deleted", "deleted_with", "floors", "head",
        "history", "history_bytes", "history_from", "name", "running", "sessions", "states", "stray", "user",
    )

    def __init__(self, user: str, name: str, chat_id: str, chat: Chat, head: Version | None = None) -> None:
        self.user = user
        self.name = name
        self.chat_id = chat_id
        self.chat = chat
        self.head = head if head is not None else chat.version
        self.states: dict[str, StateDocument] = {}
        self.floors: dict[str, FloorLog] = {}
        """The logs of floor states, by the namespace of the state."""
        self.running: dict[str, Running] = {}
        """The text of the generations that run, by id; it has no version."""
        self.stray: dict[str, tuple[Generation | None, Running]] = {}
        """Texts whose generations another program took away, with what was known of them."""
        self._generations: tuple[bytes | None, dict[str, Generation]] = (None, {})
        self.sessions: dict[str, SessionOps] = {}
        self.history: deque[Past] = deque()
        self.history_bytes = 0
        self.history_from = self.head
        """The version before the oldest remembered commit."""
        self.damage: list[Damage] = []
        """Lines that are no messages; while there are any, the chat is read-only."""
        self.contradiction = ""
        """How files and log differ, of which neither is believed: until somebody decides, nothing is stored, not even
        an outcome (BEHAVIOUR X13). Empty when they agree; else `damage` tells of it too."""
        self.deleted = False
        """The owner is in the trash; only the outcomes of its ops are known then."""
        self.deleted_with = ""
        """The character that a deleted chat went with, and comes back with."""

    def in_trash(self) -> str:
        """The sentence of `deleted`."""
        if self.deleted_with:
            return f"It went to the trash with {self.deleted_with}; owner-restore brings both back."
        return f"It is in the trash; restore id:{self.chat_id}."

    def undecided(self, reason: str = "") -> Refused:
        """The refusal of everything that would be stored in spite of the contradiction."""
        sentence = "Files and log contradict each other: repair it, or restore a backup in its place."
        return Refused("read-only", f"{sentence} {reason}" if reason else sentence)

    def next_op(self, session: str) -> int:
        """The op number that this session uses next."""
        ops = self.sessions.get(session)
        return 1 if ops is None else ops.last + 1

    def session(self, session: str) -> SessionOps:
        """The session's ops, made when there are none."""
        ops = self.sessions.get(session)
        if ops is None:
            ops = self.sessions[session] = SessionOps()
        return ops

    def remember(self, pasts: Sequence[Past]) -> None:
        """Add commits to the history in memory and drop the oldest over the bounds."""
        history = self.history
        size_bytes = self.history_bytes
        history.extend(pasts)
        for past in pasts:
            # As `size_bytes`, which is a call.
            size_bytes += len(past.front) + (len(past.line) + 3 if past.line else 0)
        dropped = None
        while len(history) > HISTORY_COMMITS_MAX or (size_bytes > HISTORY_BYTES_MAX and len(history) > 1):
            dropped = history.popleft()
            size_bytes -= len(dropped.front) + (len(dropped.line) + 3 if dropped.line else 0)
        self.history_bytes = size_bytes
        if dropped is not None:
            self.history_from = dropped.version

    def forget_history(self) -> None:
        """Nothing before the head can be replayed: history was changed from outside."""
        self.history.clear()
        self.history_bytes = 0
        self.history_from = self.head

    def since(self, version: Version) -> Iterator[Past] | None:
        """The remembered commits after exactly `version`, or None when it is not remembered (BEHAVIOUR R1)."""
        if version.epoch != self.head.epoch:
            return None
        return self.since_integrity(version.integrity, version.seq)

    def since_integrity(self, integrity: str, seq: int | None = None) -> Iterator[Past] | None:
        """As `since`, by the UUID alone; `seq` must agree when given. Cost: the commits after it."""
        if integrity == self.head.integrity:
            return iter(()) if seq in (None, self.head.seq) else None
        after: list[Past] = []
        for past in reversed(self.history):
            if past.version.integrity == integrity:
                return reversed(after) if seq in (None, past.version.seq) else None
            after.append(past)
        if self.history_from.integrity == integrity and seq in (None, self.history_from.seq):
            return reversed(after)
        return None

    # -- recovery ----------------------------------------------------------------------------------------------------

    def fold(self, commit: Commit, now_ms: int = 0) -> None:
        """Install a commit from the log: documents, history and outcome."""
        self.fold_effects(commit)
        self.remember((past_of(commit),))
        self.head = commit.version
        self.fold_outcome(commit, now_ms)

    def fold_effects(self, commit: Commit) -> None:
        """Install the effects of a commit and the versions it gave to documents."""
        for effect in commit.ops:
            if isinstance(effect, StateEffect):
                self.apply_state(effect)
            elif isinstance(effect, ChatEffect):
                self.chat.apply(effect)
                self.chat.version = commit.version
                if self.floors:
                    self.follow(effect)
            else:
                self.apply_life(effect)

    def fold_outcome(self, commit: Commit, now_ms: int = 0) -> None:
        """Store the ack of a commit from the log."""
        if commit.by is not None and commit.fingerprint is not None:
            outcome = Outcome(
                "ack", commit.fingerprint, ack_body(commit), commit.rebased_from or commit.version.integrity
            )
            self.session(commit.by.session).add(commit.by.op, outcome, now_ms)

    def apply_life(self, effect: RenamedEffect | DeletedEffect) -> None:
        """Install what happened to the owner as a whole."""
        if isinstance(effect, RenamedEffect):
            self.name = effect.to
            self.deleted = False
        else:
            self.deleted = True

    def apply_state(self, effect: StateEffect, known: bytes | None = None) -> None:
        """Install a state effect; `known` is the document when `decide` already worked it out."""
        document = self.states.get(effect.namespace)
        if document is None:
            document = self.states[effect.namespace] = StateDocument(None, None)
        document.version = effect.version
        document.corrupt = False
        if effect.deleted is True:
            document.data = None
        elif known is not None:
            document.data = known
        elif isinstance(effect.data, msgspec.Raw):
            document.data = bytes(effect.data)
        elif isinstance(effect.patch, msgspec.Raw):
            base = loads(document.data) if document.data is not None else {}
            document.data = dumps(apply_patch(base, loads(bytes(effect.patch))).value)
        if isinstance(effect, FloorEffect):
            if isinstance(effect.skipped, list):
                document.skipped = effect.skipped
            self.apply_floor(effect)
        elif effect.namespace.endswith(LOG_SUFFIX):
            self._read_floor(effect.namespace)
        elif effect.namespace == GENERATIONS:
            self.follow_generations()

    # -- generations -------------------------------------------------------------------------------------------------

    @property
    def generations(self) -> dict[str, Generation]:
        """What the chat's document tells of them, oldest first. Not to be changed."""
        document = self.states.get(GENERATIONS)
        data = None if document is None else document.data
        if self._generations[0] is not data:
            self._generations = (data, generations_of(data))
        return self._generations[1]

    def take_texts(self, running: dict[str, Running], known: Mapping[str, Generation]) -> None:
        """The texts that there were before this stream was read; `known` is what was told of their generations."""
        self.running = running
        self.follow_generations()
        self.stray = {
            one_id: (known.get(one_id), one) for one_id, one in running.items()
            if one.size_bytes and one_id not in self.running
        }

    def follow_generations(self) -> None:
        """Keep a text for each generation that runs, and for no other."""
        self.running = {
            generation_id: self.running.get(generation_id) or Running()
            for generation_id, generation in self.generations.items() if generation.state == "running"
        }

    # -- floor states ------------------------------------------------------------------------------------------------

    def apply_floor(self, effect: FloorEffect) -> None:
        """Install what happened to the log of a floor state. What travels on the wire does not tell it."""
        namespace = effect.namespace
        if effect.deleted is True:
            self.floors.pop(namespace, None)
            self.states.setdefault(namespace, StateDocument(None, None)).skipped = []
            self.states[namespace + LOG_SUFFIX] = StateDocument(effect.version, None)
            return
        if not isinstance(effect.log, FloorLogChange):
            return
        log = self.floors.get(namespace)
        if log is None or effect.log.reset is True:
            log = self._hold_floor(namespace, FloorLog())
        log.change(effect.log)
        self.states[namespace + LOG_SUFFIX].version = effect.version
        for added in effect.log.add:
            message = FloorCommit.decoded(loads(bytes(added.commit))).message
            if message is not None and message not in log.shown and message in self.chat.messages:
                log.shown[message] = swipes.active(self.chat.value(message))
        document = self.states.get(namespace)
        if document is not None and document.data is not None:
            log.settled(document.data, tuple(skipped.commit for skipped in document.skipped))

    def follow(self, effect: ChatEffect) -> None:
        """A chat effect was installed: see which swipe the message shows now, and whether the order is another one."""
        for log in self.floors.values():
            if not isinstance(effect, PatchEffect):
                if not isinstance(effect, AppendEffect):
                    log.moved()
            elif effect.message in log.by_message and effect.message in self.chat.messages:
                log.show(effect.message, swipes.active(self.chat.value(effect.message)))

    def _hold_floor(self, namespace: str, log: FloorLog) -> FloorLog:
        self.floors[namespace] = log
        document = self.states.setdefault(namespace + LOG_SUFFIX, StateDocument(None, None))
        document.corrupt = False
        document.source = lambda: log.document(self.chat)
        return log

    def _read_floor(self, name: str, known: Mapping[str, FloorLog] | None = None) -> None:
        namespace, document = name[: -len(LOG_SUFFIX)], self.states[name]
        self.floors.pop(namespace, None)
        state = self.states.get(namespace)
        if document.data is None or document.corrupt or (state is not None and state.corrupt):
            return
        log = read_log(document.data, self.chat.order(), None if known is None else known.get(namespace))
        if log is None:
            document.corrupt = True
        else:
            self._hold_floor(namespace, log)

    def read_floors(self, known: Mapping[str, FloorLog] | None = None) -> None:
        """The logs among the documents; a `floor` in them counts the messages of the chat as it is now, unless the
        commit is `known` from before another program moved the messages."""
        for name in list(self.states):
            if name.endswith(LOG_SUFFIX):
                self._read_floor(name, known)

    def settle_floors(self) -> None:
        """After loading: every floor state is what its log makes of the chat. Cost: the logs.

        A state that another program wrote over is put aside by the next commit of that floor state; nothing is
        written for having been read.
        """
        for namespace, log in self.floors.items():
            document = self.states.setdefault(namespace, StateDocument(None, None))
            known = document.data
            data = log.rebuild(self.chat)
            document.skipped = [log.commits[log.positions[one]].told() for one in log.skipped]
            if not log.commits and known is not None:
                continue
            if known is not None and equal(loads(known), loads(data)):
                continue
            version = self.states[namespace + LOG_SUFFIX].version or self.head
            log.found, log.is_unwritten = known, True
            document.data = data
            document.version = Version(
                version.epoch, version.seq, derived_uuid(version.integrity, namespace, data, known or b"")
            )


def documents_of(effect: StateEffect) -> tuple[str, ...]:
    """The state documents that an effect gives its version to."""
    if isinstance(effect, FloorEffect):
        return effect.namespace, effect.namespace + LOG_SUFFIX
    return (effect.namespace,)
