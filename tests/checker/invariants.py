"""The twelve invariants, each by its name, over notes and evidence of a run. Pure: values in, violations out.

An ack carries its seq, so the order is known and nothing is searched: O(n log n) in the number of ops.

    durable              every acknowledged op is in the history, where its ack said, with what it asked for
    exactly-once         at most once; a resent op has one outcome; a number stands for one body
    no-phantom           everything in the history was asked for, and nothing of what was refused is there
    integrity-chain      each commit names the one before; seqs without a hole; no integrity twice
    real-time            what returned before another was invoked has the lower seq
    session-order        ops of a session keep their order; nothing stands on an op that was refused
    conflict-justified   something came between where a conflict says so, and nothing where an ack says so
    observed-durable     whatever version stood in any frame is in the history
    broadcast-stream     every tab hears every commit once and in order; copies are the server's chat
    model-equality       the history means what was asked for; what is told and the files are that
    backends             each store holds what the server tells
    read-your-writes     who opens again sees at least what was acknowledged before
"""

from __future__ import annotations

import bisect
import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from tests.checker.evidence import Evidence
from tests.checker.follower import LOG_ENDING, Follower
from tests.checker.notebook import Frame, Key, Notes, received
from tests.checker.reference import Reference

CHAT = "chat"
"""The document of messages and metadata; others are called by their namespace."""


class Violation(NamedTuple):
    """A broken promise."""

    invariant: str
    text: str


@dataclass
class Case:
    """A run, with what several invariants need worked out once."""

    notes: Notes
    evidence: Evidence
    by_op: dict[Key, Frame] = field(default_factory=dict)
    twice: list[Key] = field(default_factory=list)
    seq_of: dict[str, int] = field(default_factory=dict)
    touched: dict[str, list[int]] = field(default_factory=dict)
    """Document -> seqs of the commits that touched it, ascending."""

    def __post_init__(self) -> None:
        first = self.evidence.first
        self.seq_of[first["head"]["integrity"]] = first["head"]["seq"]
        self.seq_of[first["version"]["integrity"]] = first["version"]["seq"]
        self.touched[CHAT] = [first["version"]["seq"]]
        for commit in self.evidence.history:
            version = commit["version"]
            self.seq_of.setdefault(version["integrity"], version["seq"])
            for document in sorted(documents_of(commit)):
                self.touched.setdefault(document, []).append(version["seq"])
            if "by" in commit:
                key = (commit["by"]["session"], commit["by"]["op"])
                if key in self.by_op:
                    self.twice.append(key)
                else:
                    self.by_op[key] = commit

    def touched_between(self, document: str, after: int, before: int) -> bool:
        """Whether a commit with after < seq < before touched the document."""
        seqs = self.touched.get(document, [])
        at = bisect.bisect_right(seqs, after)
        return at < len(seqs) and seqs[at] < before


def documents_of(commit: Frame) -> set[str]:
    """What a commit gave its version to."""
    return {
        effect["namespace"] if effect["op"] in ("state", "floor") else CHAT
        for effect in commit["ops"] if effect["op"] not in ("renamed", "deleted")
    }


def durable(case: Case) -> Iterator[str]:
    for key, invocation in case.notes.invocations.items():
        outcome = invocation.outcome
        if outcome is None:
            yield f"{key} never got an answer"
        elif outcome["type"] == "ack":
            commit = case.by_op.get(key)
            if commit is None:
                yield f"{key} was acknowledged as {outcome['version']} and is lost"
            elif commit["version"] != outcome["version"]:
                yield f"{key} was acknowledged as {outcome['version']} and is {commit['version']}"


def exactly_once(case: Case) -> Iterator[str]:
    yield from (f"{key} is in the history twice" for key in case.twice)
    for key, invocation in case.notes.invocations.items():
        kinds = {_identity(frame) for _at, frame in invocation.answers}
        if len(kinds) > 1:
            yield f"{key} got several outcomes: {sorted(kinds)}"
        if len(invocation.answers) > 1 and not all(frame.get("duplicate") for _at, frame in invocation.answers[1:]):
            yield f"{key} was carried out again: {[frame for _at, frame in invocation.answers]}"
    for key, frame, answer in case.notes.probes:
        if answer is not None and answer.get("code") != "op-mismatch":
            yield f"the number of {key} was used for another body {frame} and answered with {answer}"
    last_answered: dict[str, int] = {}
    for event in case.notes.events:
        if event["what"] == "received":
            frame, session = event["frame"], case.notes.sessions[event["tab"]]
            if frame["type"] == "opened" and frame["next_op"] <= last_answered.get(session, 0):
                yield f"op {last_answered[session]} of {session} had its outcome, and next_op is {frame['next_op']}"
            elif frame["type"] == "error" and frame["code"] in ("op-forgotten", "op-mismatch"):
                if frame.get("id") == frame.get("op"):
                    yield f"op {frame['op']} of {session} was answered with {frame['code']}"
            elif isinstance(frame.get("op"), int) and frame["type"] in ("ack", "conflict"):
                last_answered[session] = max(last_answered.get(session, 0), frame["op"])


def no_phantom(case: Case) -> Iterator[str]:
    for key, commit in case.by_op.items():
        invocation = case.notes.invocations.get(key)
        if invocation is None:
            yield f"nobody asked for {commit}"
        elif invocation.outcome is not None and not invocation.is_acked:
            yield f"{key} was answered with {invocation.outcome['type']} and is {commit['version']}"
    for commit in case.evidence.history:
        own = {effect["op"] for effect in commit["ops"]} <= {"state", "patch", "append", "insert"}
        generations = any(effect.get("namespace") == "tellback_generations" for effect in commit["ops"])
        links = all(effect["op"] in ("patch", "metadata") for effect in commit["ops"])
        if "by" not in commit and commit["ops"] and not (own and (generations or links)):
            yield f"nobody asked for {commit}"


def integrity_chain(case: Case) -> Iterator[str]:
    before = case.evidence.first["head"]
    seen = {before["integrity"]}
    for commit in case.evidence.history:
        version = commit["version"]
        if version["seq"] != before["seq"] + 1:
            yield f"after seq {before['seq']} comes {version['seq']}"
        if commit["previous"] != before["integrity"]:
            yield f"{version} stands on {commit['previous']}, before it is {before}"
        if version["epoch"] != before["epoch"]:
            yield f"the epoch changed from {before} to {version}, and nobody edited anything"
        if version["integrity"] in seen:
            yield f"the integrity of {version} was there before"
        seen.add(version["integrity"])
        before = version
    if case.evidence.final["head"] != before:
        yield f"the history ends with {before}, the head is {case.evidence.final['head']}"


def real_time(case: Case) -> Iterator[str]:
    points: list[tuple[float, int, int]] = []
    for key, commit in case.by_op.items():
        invocation = case.notes.invocations.get(key)
        if invocation is not None and invocation.returned_s is not None:
            points.append((invocation.invoked_s, 0, commit["version"]["seq"]))
            points.append((invocation.returned_s, 1, commit["version"]["seq"]))
    highest = 0
    for at, is_return, seq in sorted(points):
        if is_return:
            highest = max(highest, seq)
        elif seq <= highest:
            yield f"an op that was invoked at {at} got seq {seq}, {highest} had returned by then"


def session_order(case: Case) -> Iterator[str]:
    last: dict[str, int] = {}
    for (session, op), commit in sorted(case.by_op.items()):
        if commit["version"]["seq"] <= last.get(session, 0):
            yield f"op {op} of {session} came before an earlier one"
        last[session] = commit["version"]["seq"]
        request = case.notes.invocations.get((session, op))
        base = None if request is None else request.frame.get("base")
        if isinstance(base, dict):
            parent = case.notes.invocations.get((session, base["op"]))
            if parent is not None and parent.outcome is not None and not parent.is_acked:
                yield f"op {op} of {session} stands on op {base['op']}, which was refused"


def conflict_justified(case: Case) -> Iterator[str]:
    for key, invocation in case.notes.invocations.items():
        outcome, frame = invocation.outcome, invocation.frame
        if outcome is None or outcome["type"] not in ("ack", "conflict"):
            continue
        for document, base in _bases(frame):
            known = _base_seq(case, key, base)
            if known is None:
                continue
            if outcome["type"] == "conflict" and frame["type"] != "batch":
                version = outcome["version"]
                if version is None or (base is None and version is not None):
                    continue
                if version["seq"] not in case.touched.get(document, []):
                    yield f"{key} was told the version {version} of {document}, which is none of it"
                elif version["seq"] <= known:
                    yield f"{key} stood on seq {known} and got a conflict with {version}"
            elif outcome["type"] == "ack" and not frame.get("force") and not outcome.get("rebased"):
                if isinstance(base, dict):
                    # What the session did itself up to there is no news to it.
                    continue
                own = case.by_op.get(key)
                if own is None:
                    continue
                if frame.get("on_conflict") == "rebase":
                    continue
                if base is not None and case.touched_between(document, known, own["version"]["seq"]):
                    yield f"{key} stood on seq {known} of {document}, and was accepted as {own['version']} over others"


def observed_durable(case: Case) -> Iterator[str]:
    for tab, at, frame in received(case.notes):
        for version in versions_in(frame):
            if case.seq_of.get(version["integrity"]) != version["seq"]:
                yield f"at {at} {tab} saw {version} in {frame['type']}, which the history does not know"


def broadcast_stream(case: Case) -> Iterator[str]:
    problems: list[str] = []
    followers: dict[str, Follower] = {}
    told = {commit["version"]["integrity"]: commit for commit in case.evidence.history}
    for event in case.notes.events:
        tab = event["tab"]
        if event["what"] == "connected":
            if tab in followers:
                followers[tab].disconnected()
            else:
                followers[tab] = Follower(lambda text, tab=tab: problems.append(f"{tab}: {text}"))  # type: ignore[misc]
        elif event["what"] == "received" and tab in followers:
            frame = event["frame"]
            request = None
            if frame["type"] == "ack" and frame.get("id") == frame.get("op"):
                invocation = case.notes.invocations.get((case.notes.sessions[tab], frame["op"]))
                request = None if invocation is None else invocation.frame
            followers[tab].received(frame, request)
            known = told.get(frame["version"]["integrity"]) if frame["type"] == "integrity" else None
            if known is not None and (known["ops"], known["previous"]) != (frame["ops"], frame["previous"]):
                problems.append(f"{tab} was told {frame}, the history has {known}")
    final = case.evidence.final
    for tab, follower in followers.items():
        copy_ = follower.copy
        if copy_ is None or copy_.head != final["head"]:
            # A tab that ended before others wrote is compared as far as it came.
            continue
        if list(copy_.messages.values()) != final["messages"]:
            problems.append(f"{tab} holds {_first_difference(final['messages'], copy_.messages.values())}")
        if copy_.metadata != final["metadata"]:
            problems.append(f"the metadata of {tab} is {copy_.metadata}, the server's {final['metadata']}")
    yield from problems


def model_equality(case: Case) -> Iterator[str]:
    reference = Reference(case.evidence.first)
    for event in case.notes.events:
        frame = event.get("frame", {})
        if event["what"] == "sent" and frame.get("type") == "generation-delta":
            reference.texts[frame["generation"]] = frame["text"]
    reads: dict[int, list[tuple[str, Frame]]] = {}
    for tab, _at, frame in received(case.notes):
        if frame["type"] == "opened" and frame["mode"] == "snapshot" and "messages" in frame:
            reads.setdefault(frame["head"]["seq"], []).append((tab, frame))
    for commit in case.evidence.history:
        key = (commit["by"]["session"], commit["by"]["op"]) if "by" in commit else None
        invocation = None if key is None else case.notes.invocations.get(key)
        try:
            found = reference.commit(commit, None if invocation is None else invocation.frame)
        except Exception as error:
            yield f"{commit['version']}: what {invocation and invocation.frame} means to {commit['ops']}: {error!r}"
            return
        yield from (f"{commit['version']}: {problem}" for problem in found)
        for tab, frame in reads.get(commit["version"]["seq"], ()):
            if list(reference.copy.messages.values()) != frame["messages"]:
                wrong = _first_difference(reference.copy.messages.values(), frame["messages"])
                yield f"{tab} read at {commit['version']}: {wrong}"
    yield from reference.floors()
    final = case.evidence.final
    known = reference.copy
    if list(known.messages.values()) != final["messages"]:
        yield f"a newcomer reads {_first_difference(known.messages.values(), final['messages'])}"
    if known.metadata != final["metadata"]:
        yield f"a newcomer reads the metadata {final['metadata']}, it is {known.metadata}"
    states = {name: value.get("data") for name, value in case.evidence.states.items() if value is not None}
    yield from _states_differ("a newcomer reads", known.states, states)
    disk = case.evidence.disk
    if disk is not None:
        yield from _differs("the files hold", disk, final, states)
        if disk["sync"].get("integrity") not in (None, final["version"]["integrity"], final["head"]["integrity"]):
            yield f"chat_sync says {disk['sync']}, the version is {final['version']}"


def backends(case: Case) -> Iterator[str]:
    final = case.evidence.final
    states = {name: value.get("data") for name, value in case.evidence.states.items() if value is not None}
    for name, store in case.evidence.stores.items():
        if store["integrity"] != final["head"]["integrity"]:
            yield f"the {name} is at {store['integrity']}, the server at {final['head']}"
        yield from _differs(f"the {name} holds", store, final, states)


def read_your_writes(case: Case) -> Iterator[str]:
    acked: dict[str, int] = {}
    highest = 0
    asked: dict[str, int] = {}
    for event in case.notes.events:
        frame, tab = event.get("frame", {}), event["tab"]
        if event["what"] == "sent" and frame.get("type") == "open":
            asked[tab] = highest
        elif event["what"] == "received":
            if frame["type"] == "ack":
                acked[tab] = max(acked.get(tab, 0), frame["version"]["seq"])
                highest = max(highest, frame["version"]["seq"])
            elif frame["type"] == "opened" and frame["head"]["seq"] < asked.get(tab, 0):
                yield f"{tab} was shown {frame['head']} after seq {asked[tab]} had been acknowledged"


INVARIANTS: dict[str, Callable[[Case], Iterator[str]]] = {
    "durable": durable, "exactly-once": exactly_once, "no-phantom": no_phantom, "integrity-chain": integrity_chain,
    "real-time": real_time, "session-order": session_order, "conflict-justified": conflict_justified,
    "observed-durable": observed_durable, "broadcast-stream": broadcast_stream, "model-equality": model_equality,
    "backends": backends, "read-your-writes": read_your_writes,
}
EACH_MAX = 5
"""Violations of one invariant that are told; the first ones say enough."""


def verify(notes: Notes, evidence: Evidence) -> list[Violation]:
    """Every broken promise of a run."""
    found = [Violation(invariant, text) for invariant, text in evidence.problems]
    if not evidence.final:
        return found
    case = Case(notes, evidence)
    for name, invariant in INVARIANTS.items():
        for number, text in enumerate(invariant(case)):
            if number == EACH_MAX:
                break
            found.append(Violation(name, text))
    return found


# -- small questions -------------------------------------------------------------------------------------------------


def versions_in(frame: Frame) -> Iterator[Frame]:
    """Every version that a frame shows."""
    for name in ("version", "head"):
        if isinstance(frame.get(name), dict):
            yield frame[name]
    for missed in frame.get("missed", ()):
        yield missed["version"]
    if frame["type"] == "state":
        yield from (value["version"] for value in frame["states"].values() if value is not None)


def _identity(frame: Frame) -> str:
    """What must be the same in every answer to one op."""
    version = frame.get("version")
    if frame["type"] == "conflict":
        return f"conflict {version}"
    return f"{frame['type']} {frame.get('code')} {version}"


def _bases(frame: Frame) -> Iterator[tuple[str, object]]:
    """Documents that a request writes, with the base of each."""
    match frame["type"]:
        case "append" | "patch" | "delete" | "swipe" | "metadata-update":
            yield CHAT, frame.get("base")
        case "state-update" | "state-delete" | "floor-update":
            yield frame["namespace"], frame.get("base")


def _base_seq(case: Case, key: Key, base: object) -> int | None:
    """The seq that a base stands for; -1 for null, None when it says nothing."""
    if base is None:
        return -1
    if isinstance(base, dict):
        # What a rebased op vouches for is its own base (BEHAVIOUR B6).
        parent = case.notes.invocations.get((key[0], base["op"]))
        if parent is None or parent.outcome is None or not parent.is_acked:
            return None
        if parent.outcome.get("rebased"):
            return _base_seq(case, parent.key, parent.frame.get("base"))
        return int(parent.outcome["version"]["seq"])
    return None if base == "*" else case.seq_of.get(str(base))


def _differs(who: str, found: Frame, final: Frame, states: Frame) -> Iterator[str]:
    """A place where the chat is kept, against what a newcomer reads. A line may be without its id."""
    told = copy.deepcopy(final["messages"])
    if len(told) == len(found["messages"]):
        for message, line in zip(told, found["messages"], strict=True):
            if "id" not in line:
                del message["id"]
    if told != found["messages"]:
        yield f"{who} {_first_difference(told, found['messages'])}"
    if found["metadata"] != final["metadata"]:
        yield f"{who} the metadata {found['metadata']}, told is {final['metadata']}"
    yield from _states_differ(who, states, found["states"])


def _states_differ(who: str, wanted: Frame, found: Frame) -> Iterator[str]:
    for name in sorted(wanted.keys() | found.keys()):
        if not name.endswith((LOG_ENDING, "__orphans")) and wanted.get(name) != found.get(name):
            yield f"{who} {name} as {found.get(name)}, it is {wanted.get(name)}"


def _first_difference(wanted: Iterable[Frame], found: Iterable[Frame]) -> str:
    ours, theirs = list(wanted), list(found)
    for number, (one, other) in enumerate(zip(ours, theirs, strict=False)):
        if one != other:
            return f"message {number} as {other}, it is {one}"
    return f"{len(theirs)} messages, there are {len(ours)}"
