"""Floor states as they become in one commit: updates, and what changes of messages and swipes do to them.

Rules of this module (BEHAVIOUR G1 to G14):
- Nothing shared is changed: a draft holds what is different, and reads the rest from the log.
- All changes of a floor state become one effect, worked out when the request's steps are done, or before the next step
  that reads the state.
- A commit in a chat without floor logs pays for one look at an empty mapping.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from msgspec import UNSET, Raw, UnsetType

from . import swipes
from .effects import FloorCommitAdded, FloorEffect, FloorLogChange, SkippedCommit, StateEffect
from .errors import Refused
from .floors import LOG_SUFFIX, ORPHANS_SUFFIX, FloorCommit, FloorLog, Replay
from .ids import Version, namespace_problem
from .patch import Operation, difference
from .stream import Stream
from .values import dumps, equal, loads


class FloorDraft:
    """One floor state as it becomes in a commit; the log itself stays as it is."""

    def __init__(self, log: FloorLog, data: bytes | None, *, reset: bool = False) -> None:
        self.log = log
        self.reset = reset
        self.data = data if data is not None else b"{}"
        self.skipped = log.skipped
        self.operations: list[Operation] | None = None if log.is_unwritten else []
        """What was done to the state; None when it is told whole."""
        self.added: list[FloorCommit] = []
        self.removed: dict[str, FloorCommit] = {}
        self.swipes: dict[str, int] = {}
        self.shown: dict[str, int | None] = {}
        self.first_affected: int | None = None
        self._lowest = 1 << 60
        self._before = self.data

    def swipe_of(self, commit: FloorCommit) -> int:
        return self.swipes.get(commit.id, commit.swipe)

    def shown_of(self, message: str) -> int | None:
        return self.shown[message] if message in self.shown else self.log.shown.get(message)

    def is_shown(self, commit: FloorCommit) -> bool:
        return commit.is_base or (
            commit.message is not None and self.shown_of(commit.message) == self.swipe_of(commit)
        )

    def commits_of(self, message: str) -> Iterable[tuple[int, FloorCommit]]:
        """Position and commit of everything that belongs to a message."""
        found = [(at, self.log.commits[at]) for at in self.log.by_message.get(message, ())]
        start = len(self.log.commits)
        found += [(start + at, commit) for at, commit in enumerate(self.added) if commit.message == message]
        return [(at, commit) for at, commit in found if commit.id not in self.removed]

    def _affect(self, position: int) -> None:
        self._lowest = min(self._lowest, position)
        self.first_affected = position if self.first_affected is None else min(self.first_affected, position)

    def show(self, message: str, swipe: int | None) -> None:
        """The message shows this swipe now; None: it is gone, and its commits with it."""
        old = self.shown_of(message)
        for position, commit in self.commits_of(message):
            if swipe is None:
                self._remove(position, commit)
            elif old != swipe and self.swipe_of(commit) in (old, swipe):
                self._affect(position)
        self.shown[message] = swipe

    def _remove(self, position: int, commit: FloorCommit) -> None:
        if self.is_shown(commit):
            self._affect(position)
        # What stands behind moves up, so no later state is where it was.
        self._lowest = min(self._lowest, position)
        self.removed[commit.id] = commit

    def swipe_deleted(self, message: str, ordinal: int) -> None:
        """A swipe is gone, and those behind it have moved up."""
        for position, commit in self.commits_of(message):
            swipe = self.swipe_of(commit)
            if swipe == ordinal:
                self._remove(position, commit)
            elif swipe > ordinal:
                self._lowest = min(self._lowest, position)
                self.swipes[commit.id] = swipe - 1
        shown = self.shown_of(message)
        if shown is not None and shown >= ordinal:
            # Of the deleted one nothing is shown until `show` says what took its place.
            self.shown[message] = shown - 1 if shown > ordinal else -1

    def swipes_cut(self, message: str, before: int, now: int) -> None:
        """An edit left only `now` of `before` swipes."""
        for position, commit in self.commits_of(message):
            if now <= self.swipe_of(commit) < before:
                self._remove(position, commit)

    def settle(self) -> None:
        """Replay what was affected. Cost: the commits from there on, and the state."""
        if self.first_affected is None:
            return
        self.first_affected = None
        start = self.log.before(self._lowest)
        replay = Replay(start)
        for position in range(start.position, len(self.log.commits)):
            self._replay(replay, self.log.commits[position])
        for commit in self.added:
            self._replay(replay, commit)
        self.skipped = tuple(replay.skipped)
        old = loads(self.data)
        if not equal(old, replay.value):
            if self.operations is not None:
                self.operations.extend(difference(old, replay.value))
            self.data = replay.data()

    def _replay(self, replay: Replay, commit: FloorCommit) -> None:
        if commit.id not in self.removed and self.is_shown(commit):
            replay.apply(commit)

    def add(self, commit: FloorCommit, operations: list[Operation], data: bytes, shown: int) -> None:
        """One more commit at the end, made on the settled state; `data` is the state behind it when it is shown."""
        self.added.append(commit)
        assert commit.message is not None, "a new commit belongs to a message"
        if self.shown_of(commit.message) is None:
            self.shown[commit.message] = shown
        if commit.swipe == shown:
            self.data = data
            if self.operations is not None:
                self.operations.extend(operations)

    def log_change(self) -> FloorLogChange:
        added = [commit for commit in self.added if commit.id not in self.removed]
        mine = {commit.id for commit in self.added}
        return FloorLogChange(
            add=[FloorCommitAdded(Raw(commit.encoded(swipe=self.swipe_of(commit)))) for commit in added],
            remove=[commit_id for commit_id in self.removed if commit_id not in mine],
            swipes={commit_id: swipe for commit_id, swipe in self.swipes.items()
                    if commit_id not in mine and commit_id not in self.removed},
            reset=self.reset or UNSET,
        )

    def log_undo(self) -> FloorLogChange:
        """The change that leads back."""
        known = self.log.positions
        lost = sorted((known[one], commit) for one, commit in self.removed.items() if one in known)
        return FloorLogChange(
            add=[
                FloorCommitAdded(Raw(commit.encoded()), self.log.commits[at - 1].id if at else None)
                for at, commit in lost
            ],
            remove=[commit.id for commit in self.added if commit.id not in self.removed],
            swipes={one: self.log.commits[known[one]].swipe for one in self.swipes
                    if one in known and one not in self.removed},
        )

    def skipped_told(self) -> list[SkippedCommit] | UnsetType:
        """All that is skipped now, when that changed."""
        if self.skipped == self.log.skipped and not any(one in self.swipes for one in self.skipped):
            return UNSET
        own = {commit.id: commit for commit in self.added}
        found = [own[one] if one in own else self.log.commits[self.log.positions[one]] for one in self.skipped]
        return [SkippedCommit(commit.id, commit.message, self.swipe_of(commit)) for commit in found]

    @property
    def data_before(self) -> bytes:
        return self._before


class FloorWork:
    """What a request does to the floor states of its chat."""

    __slots__ = ("_gone", "_stream", "_touched", "drafts")

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self.drafts: dict[str, FloorDraft] = {}
        self._gone: set[str] = set()
        """Namespaces whose log this request took away."""
        self._touched: dict[str, int | None] = {}
        """Messages with commits, and the swipe that each shows now; None for those that are gone."""

    def concerns(self, message: str) -> bool:
        """Whether a floor state has commits of this message."""
        if not self._stream.floors and not self.drafts:
            return False
        return any(message in log.by_message for log in self._stream.floors.values()) or any(
            commit.message == message for draft in self.drafts.values() for commit in draft.added
        )

    def has_log(self, namespace: str) -> bool:
        """Whether a namespace is a floor state."""
        return namespace in self.drafts or (namespace in self._stream.floors and namespace not in self._gone)

    # -- what happens to messages ------------------------------------------------------------------------------------

    def edited(self, message: str, before: dict[str, Any], after: dict[str, Any]) -> None:
        """A message that is concerned was changed."""
        had, has = swipes.count(before), swipes.count(after)
        if has < had:
            for draft in self._drafts_of(message):
                draft.swipes_cut(message, had, has)
        self._touched[message] = swipes.active(after)

    def swipe_deleted(self, message: str, ordinal: int, after: dict[str, Any]) -> None:
        """One swipe of a message that is concerned was taken away."""
        self._settle_shown()
        for draft in self._drafts_of(message):
            draft.swipe_deleted(message, ordinal)
        self._touched[message] = swipes.active(after)

    def deleted(self, message: str) -> None:
        """A message that is concerned is gone."""
        self._touched[message] = None

    def is_touched(self, message: str) -> bool:
        return message in self._touched

    def returned(self, message: str, value: dict[str, Any]) -> None:
        """A message was put in; when it was taken out by the same request, it was only moved."""
        if message in self._touched:
            self._touched[message] = swipes.active(value)

    def _drafts_of(self, message: str) -> list[FloorDraft]:
        for namespace, log in self._stream.floors.items():
            if namespace not in self._gone and message in log.by_message:
                self.draft(namespace)
        return [draft for draft in self.drafts.values() if any(True for _ in draft.commits_of(message))]

    def draft(self, namespace: str, data: bytes | None = None) -> FloorDraft:
        """The floor state as it is in this commit. `data` is the document of a namespace that has no log yet."""
        draft = self.drafts.get(namespace)
        if draft is None:
            log = None if namespace in self._gone else self._stream.floors.get(namespace)
            if log is not None:
                data = self._stream.states[namespace].data
            draft = FloorDraft(log or FloorLog(), data, reset=log is None)
            self.drafts[namespace] = draft
        return draft

    def _settle_shown(self) -> None:
        touched, self._touched = self._touched, {}
        for message, swipe in touched.items():
            for draft in self._drafts_of(message):
                draft.show(message, swipe)

    def settle(self) -> None:
        """Bring every floor state in line with what happened so far. Cost: the commits behind the first affected."""
        if self._touched or self.drafts:
            self._settle_shown()
            for draft in self.drafts.values():
                draft.settle()

    # -- requests ----------------------------------------------------------------------------------------------------

    def check_namespace(self, namespace: str) -> None:
        """Raises: Refused `namespace-illegal` when the log could not have a name."""
        problem = namespace_problem(namespace + LOG_SUFFIX)
        if problem:
            raise Refused("namespace-illegal", f"The name of the log: {problem}.", pointer="/namespace")

    def begin(self, draft: FloorDraft, commit_id: str) -> None:
        """Before a commit: what stands in a document without commits becomes the base, which belongs to no message."""
        if draft.log.commits or draft.added:
            return
        base = loads(draft.data)
        if base != {}:
            operations: list[Operation] = [{"op": "replace", "path": "", "value": base}]
            if isinstance(base, dict):
                operations = difference({}, base)
            draft.added.append(FloorCommit(commit_id, None, 0, dumps(operations), is_base=True))

    def delete(self, namespace: str, version: Version) -> tuple[FloorEffect, FloorEffect]:
        """State and log are taken away: what does it, and the way back."""
        self.drafts.pop(namespace, None)
        log = self._stream.floors.get(namespace)
        document = self._stream.states.get(namespace)
        effect = FloorEffect(namespace, version, self._previous(namespace), deleted=True)
        back = FloorEffect(namespace, version, None)
        if document is not None and document.data is not None:
            back.data = Raw(document.data)
        if log is not None:
            back.log = FloorLogChange(
                add=[FloorCommitAdded(Raw(commit.encoded())) for commit in log.commits if commit.is_understood],
                reset=True,
            )
        self._gone.add(namespace)
        return effect, back

    def effects(self, version: Version) -> tuple[list[StateEffect], list[StateEffect], dict[str, bytes]]:
        """What changed, the way back where something was given up, and the documents by namespace. All is settled."""
        done: list[StateEffect] = []
        undo: list[StateEffect] = []
        documents: dict[str, bytes] = {}
        for namespace, draft in self.drafts.items():
            change = draft.log_change()
            skipped = draft.skipped_told()
            is_same = draft.data == draft.data_before
            if is_same and skipped is UNSET and not (change.add or change.remove or change.swipes):
                continue
            effect = FloorEffect(namespace, version, self._previous(namespace), skipped=skipped, log=change)
            patch = None if draft.operations is None else dumps(draft.operations)
            if patch is None or len(patch) > len(draft.data) + 64:
                effect.data = Raw(draft.data)
            else:
                effect.patch = Raw(patch)
            done.append(effect)
            documents[namespace] = draft.data
            if draft.log.found is not None:
                done.append(self._orphans(namespace, draft.log.found, version))
            if draft.removed:
                back = difference(loads(draft.data), loads(draft.data_before))
                undo.append(FloorEffect(namespace, version, None, patch=Raw(dumps(back)), log=draft.log_undo()))
        return done, undo, documents

    def _orphans(self, namespace: str, found: bytes, version: Version) -> StateEffect:
        """A document that another program wrote over the state is put aside, not lost."""
        namespace += ORPHANS_SUFFIX
        document = self._stream.states.get(namespace)
        if document is not None and document.corrupt:
            raise Refused("state-corrupt", f"The file of {namespace!r} is no JSON; it is kept as it is.")
        old = loads(document.data) if document is not None and document.data is not None else {}
        known = old if isinstance(old, dict) else {"data": old}
        kept = known.get("tellback")
        kept = [*kept, loads(found)] if isinstance(kept, list) else [loads(found)]
        return StateEffect(namespace, version, self._previous(namespace), data=Raw(dumps({**known, "tellback": kept})))

    def _previous(self, namespace: str) -> str | None:
        document = self._stream.states.get(namespace)
        return document.version.integrity if document is not None and document.version is not None else None
