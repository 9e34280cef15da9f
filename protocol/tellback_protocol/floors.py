"""The log of a floor state: commits that belong to messages and swipes, and the state that the ones shown make.

    {"version": 1, "commits": [{"floor": 3, "swipeId": 0, "patches": [...], "tellback": {"id": ..., "message": ...}}]}

Rules of this module (BEHAVIOUR G1 to G14):
- The format is Luker's. A commit belongs to a message id; the number `floor` is that message's index when the document
  is written out, and finds the message of a commit that has no id yet.
- The state is `{}` with the commits applied in log order whose message shows their swipe. One that does not fit is
  skipped whole, told, and kept.
- Whatever this server does not understand of a log stays in it.
- A log remembers states along the way, close together near its end and far apart before, so that what happens near the
  end is worked out from near the end.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, TypeGuard

from msgspec import UnsetType

from . import swipes
from .chat import Chat
from .effects import FloorLogChange, SkippedCommit
from .errors import Refused
from .patch import Operation, apply_patch, check_operations, deep_copy
from .values import dumps, loads

LOG_SUFFIX = "__floor_log"
ORPHANS_SUFFIX = "__orphans"
KEY = "tellback"
"""The one member that we add to a commit of Luker's."""
SNAPSHOT_COMMITS = 16
"""How far the states near the end of a log are apart: a tenth of a millisecond of replay."""


class FloorCommit:
    """One commit. `message` is None for one that belongs to no message: the base, or one that nobody understands."""

    __slots__ = ("id", "is_base", "message", "patches", "rest", "swipe")

    def __init__(
        self, commit_id: str, message: str | None, swipe: int, patches: bytes, *, is_base: bool = False,
        rest: Any = None,
    ) -> None:
        self.id = commit_id
        self.message = message
        self.swipe = swipe
        self.patches = patches
        self.is_base = is_base
        """What was there before the first commit; it counts whatever is shown."""
        self.rest = rest
        """Members of other programs; the whole commit when it is not understood."""

    @property
    def is_understood(self) -> bool:
        return self.is_base or self.message is not None

    def encoded(self, floor: int | None = None, swipe: int | None = None) -> bytes:
        """The commit as it stands in the document, without `floor` inside an effect."""
        if not self.is_understood:
            return dumps(self.rest if not isinstance(self.rest, dict) else {**self.rest, KEY: {"id": self.id}})
        mark = {"id": self.id, "base": True} if self.is_base else {"id": self.id, "message": self.message}
        rest = dumps(self.rest)[1:-1] + b"," if self.rest else b""
        place = b"" if floor is None else b'"floor":%d,' % floor
        return b'{%b"swipeId":%d,"patches":%b,%b"%b":%b}' % (
            place, self.swipe if swipe is None else swipe, self.patches, rest, KEY.encode(), dumps(mark),
        )

    @classmethod
    def decoded(cls, value: Any) -> FloorCommit:
        """From an effect."""
        mark = value[KEY] if isinstance(value, dict) else {}
        if "message" not in mark and "base" not in mark:
            return cls(mark["id"], None, 0, b"[]", rest={key: inner for key, inner in value.items() if key != KEY})
        rest = {key: inner for key, inner in value.items() if key not in ("floor", "swipeId", "patches", KEY)}
        return cls(
            mark["id"], mark.get("message"), value["swipeId"], dumps(value["patches"]),
            is_base="base" in mark, rest=rest or None,
        )

    def told(self) -> SkippedCommit:
        return SkippedCommit(self.id, self.message, self.swipe)


class Snapshot:
    """The state behind the first `position` commits, as far as they are shown, and which of them did not fit."""

    __slots__ = ("data", "position", "skipped")

    def __init__(self, position: int, data: bytes, skipped: tuple[str, ...]) -> None:
        self.position = position
        self.data = data
        self.skipped = skipped


EMPTY = Snapshot(0, b"{}", ())


class FloorLog:
    """The commits of one namespace, in order."""

    __slots__ = (
        "by_message", "commits", "found", "is_unwritten", "positions", "raw", "rest", "shown", "skipped", "snapshots",
    )

    def __init__(self) -> None:
        self.commits: list[FloorCommit] = []
        self.rest: dict[str, Any] = {}
        """Members of the document that other programs wrote."""
        self.positions: dict[str, int] = {}
        self.by_message: dict[str, list[int]] = {}
        """Positions of each message's commits, ascending."""
        self.shown: dict[str, int] = {}
        """The swipe that each message with commits shows; what the snapshots stand on."""
        self.snapshots: list[Snapshot] = []
        """Ascending by position, without the empty beginning."""
        self.skipped: tuple[str, ...] = ()
        """Ids of shown commits that do not fit."""
        self.raw: bytes | None = None
        """The document as it was read, while nothing in it has changed."""
        self.found: bytes | None = None
        """A state document of another program that differs from what the log makes."""
        self.is_unwritten = False
        """The state document was worked out, not read: no file and no record holds it."""

    # -- what effects do ---------------------------------------------------------------------------------------------

    def change(self, change: FloorLogChange) -> None:
        """Install a change. What is gone already or there already changes nothing."""
        self.raw = None
        removed = set(change.remove)
        if removed or change.swipes:
            first = min((at for one in (*removed, *change.swipes) if (at := self.positions.get(one)) is not None),
                        default=None)
            for commit_id, swipe in change.swipes.items():
                at = self.positions.get(commit_id)
                if at is not None:
                    self.commits[at].swipe = swipe
            if removed and first is not None:
                self.commits = [commit for commit in self.commits if commit.id not in removed]
                self._index()
            if first is not None:
                self._forget(first)
        for added in change.add:
            commit = FloorCommit.decoded(loads(bytes(added.commit)))
            if commit.id in self.positions:
                continue
            if isinstance(added.after, UnsetType):
                self._append(commit)
            else:
                at = 0 if added.after is None else self.positions.get(added.after, len(self.commits) - 1) + 1
                self.commits.insert(at, commit)
                self._index()
                self._forget(at)

    def _append(self, commit: FloorCommit) -> None:
        position = len(self.commits)
        self.commits.append(commit)
        self.positions[commit.id] = position
        if commit.message is not None:
            self.by_message.setdefault(commit.message, []).append(position)

    def _index(self) -> None:
        commits, self.commits = self.commits, []
        self.positions.clear()
        self.by_message.clear()
        for commit in commits:
            self._append(commit)
        self.shown = {message: swipe for message, swipe in self.shown.items() if message in self.by_message}

    def show(self, message: str, swipe: int) -> None:
        """The message shows this swipe now. States that stood on another one are forgotten."""
        if self.shown.get(message) != swipe:
            if message in self.shown:
                self._forget(self.by_message[message][0])
            self.shown[message] = swipe

    def _forget(self, position: int) -> None:
        while self.snapshots and self.snapshots[-1].position > position:
            self.snapshots.pop()

    def settled(self, data: bytes, skipped: tuple[str, ...]) -> None:
        """`data` is the state behind all commits. It is remembered when the last remembered one is far away."""
        self.skipped = skipped
        self.is_unwritten = False
        self.found = None
        self._remember(Snapshot(len(self.commits), data, skipped))

    def _remember(self, snapshot: Snapshot) -> None:
        known = self.snapshots
        if snapshot.position - (known[-1].position if known else 0) < SNAPSHOT_COMMITS:
            return
        known.append(snapshot)
        for index in range(len(known) - 2, 0, -1):
            # Gaps grow with the distance from the end, so their number grows with the logarithm of the length.
            if known[index + 1].position - known[index - 1].position <= snapshot.position - known[index + 1].position:
                del known[index]

    # -- replay ------------------------------------------------------------------------------------------------------

    def before(self, position: int) -> Snapshot:
        """The last remembered state that does not hold the commit at `position`."""
        for snapshot in reversed(self.snapshots):
            if snapshot.position <= position:
                return snapshot
        return EMPTY

    def is_shown(self, commit: FloorCommit) -> bool:
        return commit.is_base or (commit.message is not None and self.shown.get(commit.message) == commit.swipe)

    def rebuild(self, chat: Chat) -> bytes:
        """Drop what belongs to no message of the chat, see what is shown, and replay all: the state. Cost: the log."""
        gone = [commit.id for commit in self.commits if commit.message is not None
                and commit.message not in chat.messages]
        if gone:
            self.change(FloorLogChange(remove=gone))
        self.shown = {message: swipes.active(chat.value(message)) for message in self.by_message}
        self.snapshots.clear()
        replay = Replay(EMPTY)
        for position, commit in enumerate(self.commits):
            if position and position % SNAPSHOT_COMMITS == 0:
                self._remember(replay.snapshot(position))
            if self.is_shown(commit):
                replay.apply(commit)
        self.skipped = tuple(replay.skipped)
        return replay.data()

    # -- the document ------------------------------------------------------------------------------------------------

    def document(self, chat: Chat) -> bytes:
        """The log as its sidecar holds it. Cost: the log, and the chat once."""
        if self.raw is not None:
            return self.raw
        index = {message: at for at, message in enumerate(chat.messages)}
        first = swipes.active(chat.value(next(iter(index)))) if index else 0
        rest = dumps(self.rest)[1:-1] + b"," if self.rest else b""
        lines = [
            commit.encoded(0, first) if commit.is_base
            else commit.encoded(index.get(commit.message, 0)) if commit.message is not None else commit.encoded()
            for commit in self.commits
        ]
        return b'{"version":1,%b"commits":[%b]}' % (rest, b",".join(lines))

    def moved(self) -> None:
        """Messages were put between others or taken out: the numbers of the document are not what they were."""
        self.raw = None


class Replay:
    """Commits being applied one after the other."""

    __slots__ = ("skipped", "value")

    def __init__(self, start: Snapshot) -> None:
        self.value: Any = loads(start.data)
        self.skipped: list[str] = list(start.skipped)

    def apply(self, commit: FloorCommit) -> None:
        """Apply a commit whole, or skip it."""
        try:
            operations = check_operations(loads(commit.patches), "/patches", 1 << 30)
        except Refused:
            self.skipped.append(commit.id)
            return
        self.value, fits = _applied(self.value, operations)
        if not fits:
            self.skipped.append(commit.id)

    def snapshot(self, position: int) -> Snapshot:
        return Snapshot(position, self.data(), tuple(self.skipped))

    def data(self) -> bytes:
        return dumps(self.value)


def _applied(value: Any, operations: list[Operation]) -> tuple[Any, bool]:
    """The value behind all operations and True, or as it was and False."""
    # A move that fails half-way has no way back.
    kept = deep_copy(value) if any(operation["op"] == "move" for operation in operations) else None
    back: list[list[Operation]] = []
    for operation in operations:
        try:
            patched = apply_patch(value, [operation])
        except Refused:
            if kept is not None:
                return kept, False
            for undo in reversed(back):
                value = apply_patch(value, undo).value
            return value, False
        value = patched.value
        back.append(patched.undo)
    return value, True


def read_log(data: bytes, order: list[str], known: FloorLog | None = None) -> FloorLog | None:
    """The log of a document; None when it is none. `order` are the ids of the messages that `floor` counts, `known` is
    the same log as it was read before: what belonged to a message then still does.

    A document without `commits` is an empty log. A commit that is not understood is kept where it is and counts for
    nothing.
    """
    value = loads(data)
    commits = value.get("commits", []) if isinstance(value, dict) else None
    if not isinstance(commits, list):
        return None
    log = FloorLog()
    log.rest = {key: inner for key, inner in value.items() if key not in ("version", "commits")}
    seen: dict[str, int] = {}
    for commit in commits:
        found = _commit_of(commit, order, seen, known)
        if found.id not in log.positions:
            log._append(found)
    log.raw = data
    return log


def _commit_of(value: Any, order: list[str], seen: dict[str, int], known: FloorLog | None) -> FloorCommit:
    mark = value.get(KEY) if isinstance(value, dict) else None
    commit_id = mark.get("id") if isinstance(mark, dict) else None
    is_ours = isinstance(commit_id, str)
    if not isinstance(commit_id, str):
        digest = hashlib.sha256(dumps(value)).hexdigest()[:16]
        seen[digest] = seen.get(digest, 0) + 1
        commit_id = f"{digest}-{seen[digest]}"
    assert isinstance(commit_id, str), "read or made"
    if isinstance(value, dict):
        floor, swipe, patches = value.get("floor"), value.get("swipeId"), value.get("patches")
        if _is_ordinal(floor) and _is_ordinal(swipe) and isinstance(patches, list) and patches:
            rest = {key: inner for key, inner in value.items() if key not in ("floor", "swipeId", "patches", KEY)}
            message = mark.get("message") if isinstance(mark, dict) else None
            is_base = isinstance(mark, dict) and mark.get("base") is True
            if known is not None and not is_ours and commit_id in known.positions:
                message = known.commits[known.positions[commit_id]].message
            elif not isinstance(message, str) and not is_base and not is_ours and floor < len(order):
                # One of ours without a message found none when it was read first, and shall not get somebody else's.
                message = order[floor]
            if is_base or isinstance(message, str):
                return FloorCommit(
                    commit_id, None if is_base else message, swipe, dumps(patches), is_base=is_base, rest=rest or None
                )
        value = {key: inner for key, inner in value.items() if key != KEY}
    return FloorCommit(commit_id, None, 0, b"[]", rest=value)


def _is_ordinal(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def branched(floors: Mapping[str, FloorLog], chat: Chat) -> dict[str, bytes]:
    """The sidecars of a branch, by namespace: of every floor state the log, cut to the messages that `chat` (the
    branch) has, and the state that its swipes make. All other namespaces are copied whole by the caller.

    Cost: the logs.
    """
    sidecars: dict[str, bytes] = {}
    for namespace, log in floors.items():
        branch = FloorLog()
        branch.rest = log.rest
        for commit in log.commits:
            branch._append(
                FloorCommit(commit.id, commit.message, commit.swipe, commit.patches, is_base=commit.is_base,
                            rest=commit.rest)
            )
        sidecars[namespace] = branch.rebuild(chat)
        sidecars[namespace + LOG_SUFFIX] = branch.document(chat)
    return sidecars
