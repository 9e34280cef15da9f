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
from tests.checker.turns import Retold, given_up, said_twice, timeline
from tests.checker.workload import FLOORS

CHAT = "chat"
"""The document of messages and metadata; others are called by their namespace."""
NEVER, BEGINNING = -2, -1
"""Places before the first commit: of a document that must not exist, and of what was there when the tabs came."""


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
    place_of: dict[str, int] = field(default_factory=dict)
    """Integrity -> its place among all commits and turns: a turn has the seq of the commit before it."""
    touched: dict[str, list[int]] = field(default_factory=dict)
    """Document -> places of what touched it, ascending."""
    turned: set[int] = field(default_factory=set)
    """Places of turns. They may have touched any document."""

    def __post_init__(self) -> None:
        first = self.evidence.first
        for version in (first["head"], first["version"]):
            self.seq_of[version["integrity"]] = version["seq"]
            self.place_of[version["integrity"]] = BEGINNING
        self.touched[CHAT] = [BEGINNING]
        for place, (version, commit) in enumerate(timeline(self.evidence)):
            self.seq_of.setdefault(version["integrity"], version["seq"])
            self.place_of.setdefault(version["integrity"], place)
            if commit is None:
                self.turned.add(place)
                self.touched[CHAT].append(place)
                continue
            for document in sorted(documents_of(commit)):
                self.touched.setdefault(document, []).append(place)
            if "by" in commit:
                key = (commit["by"]["session"], commit["by"]["op"])
                if key in self.by_op:
                    self.twice.append(key)
                else:
                    self.by_op[key] = commit

    def touched_between(self, document: str, after: int, before: int) -> bool:
        """Whether something behind `after` and before `before` touched the document."""
        places = self.touched.get(document, [])
        at = bisect.bisect_right(places, after)
        return at < len(places) and places[at] < before


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
    yield from given_up(case.notes, case.evidence)


def exactly_once(case: Case) -> Iterator[str]:
    yield from (f"{key} is in the history twice" for key in case.twice)
    for key, invocation in case.notes.invocations.items():
        kinds = {_identity(frame) for _at, frame in invocation.answers}
        if len(kinds) > 1:
            yield f"{key} got several outcomes: {sorted(kinds)}"
        if len(invocation.answers) > 1 and not all(frame.get("duplicate") for _at, frame in invocation.answers[1:]):
            yield f"{key} was carried out again: {[frame for _at, frame in invocation.answers]}"
    yield from said_twice(case.notes, case.evidence)
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
    for version, commit in timeline(case.evidence):
        if commit is None:
            if version["seq"] != before["seq"] or version["epoch"] != before["epoch"] + 1:
                yield f"behind {before} an epoch begins with {version}"
            if not case.notes.is_edited:
                yield f"the epoch changed from {before} to {version}, and nobody edited or restored anything"
        else:
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
            known = _base_place(case, key, base)
            if known is None:
                continue
            if outcome["type"] == "conflict" and frame["type"] != "batch":
                version = outcome["version"]
                if version is None or (base is None and version is not None):
                    continue
                place = case.place_of.get(version["integrity"], NEVER)
                if document in FLOORS and case.turned and place == NEVER:
                    # A version that is derived from what a turn made of the state.
                    continue
                if place not in case.touched.get(document, []) and place not in case.turned:
                    yield f"{key} was told the version {version} of {document}, which is none of it"
                elif place <= known and known >= max(case.turned, default=known):
                    # Behind a turn the server does not know what came after an older base.
                    yield f"{key} stood on {base} and got a conflict with {version}"
            elif outcome["type"] == "ack" and not frame.get("force") and not outcome.get("rebased"):
                if isinstance(base, dict):
                    # What the session did itself up to there is no news to it.
                    continue
                own = case.by_op.get(key)
                if own is None:
                    continue
                if frame.get("on_conflict") == "rebase":
                    continue
                place = case.place_of[own["version"]["integrity"]]
                if base is not None and case.touched_between(document, known, place):
                    yield f"{key} stood on {base} of {document}, and was accepted as {own['version']} over others"


def observed_durable(case: Case) -> Iterator[str]:
    for tab, at, frame in received(case.notes):
        for version in versions_in(frame, floors=not case.turned):
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
    retold = Retold(case.notes, case.evidence, reference)
    for version, commit in timeline(case.evidence):
        if commit is None:
            for who, wanted, told in retold.turn(version):
                if wanted != told:
                    yield f"{version}: {who} {_first_difference(wanted, told)}"
            continue
        if retold.is_blind:
            retold.look(version)
            continue
        key = (commit["by"]["session"], commit["by"]["op"]) if "by" in commit else None
        invocation = None if key is None else case.notes.invocations.get(key)
        try:
            found = reference.commit(commit, None if invocation is None else invocation.frame)
        except Exception as error:
            yield f"{commit['version']}: what {invocation and invocation.frame} means to {commit['ops']}: {error!r}"
            return
        yield from (f"{commit['version']}: {problem}" for problem in found)
        for who, wanted, told in retold.read_at(version, key):
            if wanted != told:
                yield f"{version}: {who} {_first_difference(wanted, told)}"
    if retold.is_blind:
        return
    yield from reference.floors()
    final = case.evidence.final
    known = reference.copy
    if list(known.messages.values()) != final["messages"]:
        yield f"a newcomer reads {_first_difference(known.messages.values(), final['messages'])}"
    if known.metadata != final["metadata"]:
        yield f"a newcomer reads the metadata {final['metadata']}, it is {known.metadata}"
    states = {name: value.get("data") for name, value in case.evidence.states.items() if value is not None}
    is_known = {name: data for name, data in states.items() if reference.follows_floors or name in known.states}
    yield from _states_differ("a newcomer reads", known.states, is_known)
    disk = case.evidence.disk
    if case.turned:
        # Written with the next commit of each.
        states = {name: value for name, value in states.items() if name not in FLOORS}
        disk = disk and {**disk, "states": {name: disk["states"][name] for name in disk["states"].keys() - set(FLOORS)}}
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
    highest, newest = 0, BEGINNING
    asked: dict[str, tuple[int, int]] = {}
    for event in case.notes.events:
        frame, tab = event.get("frame", {}), event["tab"]
        if event["what"] == "sent" and frame.get("type") in ("open", "backup-create"):
            asked[tab] = highest, newest
        elif event["what"] == "received":
            if frame["type"] == "ack":
                highest = max(highest, frame["version"]["seq"])
                place = case.place_of.get(frame["version"]["integrity"], NEVER)
                if place in case.touched[CHAT]:
                    newest = max(newest, place)
            elif frame["type"] == "opened" and frame["head"]["seq"] < asked.get(tab, (0, 0))[0]:
                yield f"{tab} was shown {frame['head']} after seq {asked[tab][0]} had been acknowledged"
            elif frame["type"] == "backup-created":
                place = case.place_of.get(frame["backup"]["version"]["integrity"], NEVER)
                if place < asked[tab][1]:
                    yield f"a backup of {frame['backup']['version']} is older than what had been acknowledged"


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


def versions_in(frame: Frame, *, floors: bool) -> Iterator[Frame]:
    """Every version that a frame shows, those of floor states when they are asked for: what another program's edit
    makes of a floor state has a version that is derived from it, and is not written for having been read.
    """
    if not floors and frame.get("namespace", "").removesuffix(LOG_ENDING) in FLOORS:
        return
    for name in ("version", "head"):
        if isinstance(frame.get(name), dict):
            yield frame[name]
    for name in ("restored", "backup"):
        if isinstance(frame.get(name), dict) and "version" in frame[name]:
            yield frame[name]["version"]
    for missed in frame.get("missed", ()):
        yield missed["version"]
    if frame["type"] == "state":
        yield from (
            value["version"] for name, value in frame["states"].items()
            if value is not None and (floors or name.removesuffix(LOG_ENDING) not in FLOORS)
        )


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


def _base_place(case: Case, key: Key, base: object) -> int | None:
    """The place that a base stands for; None when it says nothing."""
    if base is None:
        return NEVER
    if isinstance(base, dict):
        # What a rebased op vouches for is its own base (BEHAVIOUR B6).
        parent = case.notes.invocations.get((key[0], base["op"]))
        if parent is None or parent.outcome is None or not parent.is_acked:
            return None
        if parent.outcome.get("rebased"):
            return _base_place(case, parent.key, parent.frame.get("base"))
        return case.place_of.get(parent.outcome["version"]["integrity"])
    return None if base == "*" else case.place_of.get(str(base))


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
