"""What must be true of every request on every document, shown with random ones."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tellback_protocol import codec
from tellback_protocol.chat import Chat, message_id_of
from tellback_protocol.decide import (
    Committed,
    Decision,
    Duplicate,
    Fresh,
    Stored,
    _accept,
    conflict_body,
    decide,
    fingerprint,
    fold_stored,
    install,
)
from tellback_protocol.effects import (
    AppendEffect,
    DeleteEffect,
    PatchEffect,
    decode_commit,
    decode_effects,
    encode_effects,
)
from tellback_protocol.errors import ERRORS, Refused
from tellback_protocol.frames import IntegrityFrame, Limits
from tellback_protocol.requests import Append
from tellback_protocol.stream import Stream
from tests.support import json_strategies, model, vectors

LIMITS = Limits()
SESSIONS = ("session-of-tab-one", "session-of-tab-two")
START = "00000000-0000-4000-8000-000000000000"


def integrity(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012d}"


def stream_with(document: dict[str, Any]) -> Stream:
    version = {"epoch": 1, "seq": 0, "integrity": START}
    states = {name: {"version": version, "data": data} for name, data in document["states"].items()}
    return vectors.stream_of({"version": version, **document, "states": states})


def documents() -> st.SearchStrategy[dict[str, Any]]:
    def build(metadata: Any, messages: list[Any], states: Any) -> dict[str, Any]:
        named = [{"id": f"m{index + 1}", **message} for index, message in enumerate(messages)]
        return {"metadata": metadata, "messages": named, "states": states}

    return st.builds(
        build, json_strategies.OBJECTS, st.lists(json_strategies.OBJECTS, max_size=4),
        st.dictionaries(json_strategies.NAMESPACES, json_strategies.VALUES.filter(lambda value: value is not None),
                        max_size=2),
    )


def plain(stream: Stream) -> dict[str, Any]:
    """The document without versions, as the model sees it."""
    document = vectors.document_of(stream)
    return {
        "metadata": document["metadata"],
        "messages": document["messages"],
        "states": {name: state["data"] for name, state in document["states"].items() if "data" in state},
    }


def deep_picture(stream: Stream) -> Any:
    """Everything a stream holds, as values that later changes cannot reach."""
    return copy.deepcopy((
        stream.head, stream.chat.version, stream.chat.metadata, list(stream.chat.messages.items()),
        sorted(stream.chat.bare), sorted(stream.chat.odd),
        {name: (state.version, state.data, state.corrupt) for name, state in stream.states.items()},
        {name: (ops.last, ops.used_ms, dict(ops.outcomes())) for name, ops in stream.sessions.items()},
        list(stream.history), stream.history_bytes, stream.history_from,
    ))


def picture_of(decision: Decision) -> Any:
    """A decision as values that can be compared."""
    if not isinstance(decision, Committed):
        return msgspec.json.encode(decision)
    chat = None if decision.chat is None else (decision.chat.metadata, list(decision.chat.messages.items()))
    return (
        msgspec.json.encode(decision.effects), decision.core, decision.record, decision.outcome, decision.targets,
        decision.known, chat, decision.states,
    )


def canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def ids_from(seed: int, taken: set[str]) -> Iterator[str]:
    while True:
        name = f"{seed:016x}"
        seed += 1
        if name not in taken:
            yield name


class Conversation:
    """A live stream, a replica that sees what travels, and a stream that recovers from the log's records."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.live = stream_with(document)
        self.replica = stream_with(document)
        self.recovered = stream_with(document)
        self.integrities = [START]
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.commits = 0

    def ask(self, session: str, request: dict[str, Any], op: int) -> Decision | Refused:
        frame: dict[str, Any] = {"op": op, **request}
        frame |= {"owner": {"chat": "group:x"}} if request["type"].startswith("state-") else {"chat": "group:x"}
        decoded: Any = codec.decode_client(json.dumps(frame).encode(), LIMITS)
        number = len(self.asked) + 1
        fresh = Fresh(integrity(number), number * 4096, 7)
        self.asked.append((session, frame))
        before = deep_picture(self.live)
        try:
            decision = decide(self.live, decoded, session, fresh, LIMITS)
        except Refused as refusal:
            assert deep_picture(self.live) == before
            return refusal
        assert deep_picture(self.live) == before, "deciding changed the stream"
        again = decide(self.live, decoded, session, fresh, LIMITS)
        assert picture_of(again) == picture_of(decision), "not the same decision"
        if not isinstance(decision, Duplicate):
            old = plain(self.live)
            install(self.live, session, op, decision, 7)
            if isinstance(decision, Committed):
                self.check_commit(old, frame, decision, number)
            else:
                fold_stored(self.recovered, decision.record, 7)
            self.check_answer(decision)
            assert deep_picture(self.recovered) == deep_picture(self.live), "recovery differs"
        return decision

    def check_commit(self, old: dict[str, Any], frame: dict[str, Any], decision: Committed, number: int) -> None:
        self.commits += 1
        self.integrities.append(decision.version.integrity)
        assert decision.version.seq == self.commits
        # The log leads to the same stream.
        commit = decode_commit(decision.record)
        self.recovered.fold(commit, 7)
        # What travels leads a replica to the same document; nothing here is over 64 KiB.
        told = msgspec.json.decode(
            codec.integrity(codec.chat_json("group:x"), decision.core), type=IntegrityFrame
        )
        assert told.previous == vectors.msgspec.to_builtins(self.replica.head)["integrity"]
        vectors.apply_effects(self.replica, json.loads(encode_effects(told.ops)), told.version)
        assert canonical(vectors.document_of(self.replica)) == canonical(vectors.document_of(self.live))
        # The model, which knows nothing of effects, agrees.
        taken = {message["id"] for message in old["messages"]} | own_ids(frame)
        expected = model.after(old, frame, ids_from(number * 4096, taken))
        assert canonical(plain(self.live)) == canonical(expected)
        self.check_way_back(old, commit.undo or undo_of_append(commit.ops))

    def check_way_back(self, old: dict[str, Any], undo: list[Any]) -> None:
        chat = self.live.chat.copy()
        for effect in decode_effects(encode_effects(undo)):
            chat.apply(effect)
        assert canonical(chat.metadata_value()) == canonical(old["metadata"])
        assert canonical(chat.values()) == canonical(old["messages"])

    def check_answer(self, decision: Committed | Stored) -> None:
        outcome = decision.outcome
        body = outcome.body
        if outcome.kind == "conflict":
            body = conflict_body(self.live, outcome, codec.chat_json("group:x"))
        codec.decode_server(codec.answer(outcome.kind, 1, codec.chat_json("group:x"), 1, body))


def undo_of_append(effects: list[Any]) -> list[Any]:
    """The record of an append alone leaves its way back out: it is the deletion of its messages."""
    return [
        DeleteEffect([message_id_of(bytes(raw)) for raw in effect.messages])
        for effect in effects if isinstance(effect, AppendEffect)
    ]


def own_ids(value: Any) -> set[str]:
    if isinstance(value, dict):
        found = {value["id"]} if isinstance(value.get("id"), str) else set()
        return found.union(*(own_ids(inner) for inner in value.values()))
    if isinstance(value, list):
        return set().union(*(own_ids(inner) for inner in value))
    return set()


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_live_path_replica_recovery_model_and_way_back_agree_for_random_requests(data: st.DataObject) -> None:
    """[E1, E2, O4, O8, B9, P1, P5, V1, V2, V3] Only Refused is ever raised; everybody comes to the same document."""
    conversation = Conversation(data.draw(documents()))
    for _ in range(data.draw(st.integers(1, 5))):
        session = data.draw(st.sampled_from(SESSIONS))
        last = conversation.live.next_op(session) - 1
        request = data.draw(json_strategies.requests(plain(conversation.live), conversation.integrities, last))
        answered = conversation.ask(session, request, last + 1)
        if isinstance(answered, Refused):
            assert not ERRORS[answered.code].outcome
            assert conversation.live.next_op(session) == last + 1
        else:
            assert conversation.live.next_op(session) == last + 2


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_resending_any_op_returns_its_outcome_and_changes_nothing(data: st.DataObject) -> None:
    """[O2, O3, O8] R17: whatever the outcome was, live and recovered."""
    conversation = Conversation(data.draw(documents()))
    outcomes: list[tuple[str, dict[str, Any], Any]] = []
    for _ in range(4):
        session = data.draw(st.sampled_from(SESSIONS))
        op = conversation.live.next_op(session)
        request = data.draw(json_strategies.requests(plain(conversation.live), conversation.integrities, op - 1))
        answered = conversation.ask(session, request, op)
        if not isinstance(answered, Refused):
            outcomes.append((session, conversation.asked[-1][1], answered.outcome))
    for session, frame, outcome in outcomes:
        decoded: Any = codec.decode_client(json.dumps({**frame, "id": 99}).encode(), LIMITS)
        for stream in (conversation.live, conversation.recovered):
            before = deep_picture(stream)
            again = decide(stream, decoded, session, Fresh(integrity(999), 1, 7), LIMITS)
            assert isinstance(again, Duplicate)
            assert again.outcome == outcome
            assert deep_picture(stream) == before


@settings(max_examples=200, deadline=None)
@given(
    st.lists(json_strategies.new_messages(), min_size=1, max_size=2),
    st.sampled_from([START, "*"]),
    st.sampled_from(["\n", " ", ""]),
)
def test_the_short_way_of_an_append_decides_as_the_general_way(messages: list[Any], base: str, space: str) -> None:
    """[A1, M6, W9] Record, core and outcome are equal byte for byte."""
    text = json.dumps({"type": "append", "chat": "group:x", "op": 1, "base": base, "messages": messages})
    request: Any = codec.decode_client(text.replace("[{", "[{" + space, 1).encode(), LIMITS)
    stream = stream_with({"metadata": {}, "messages": [{"id": "m0"}], "states": {}})
    fresh = Fresh(integrity(1), 16, 7)
    try:
        general = _accept(stream, request, SESSIONS[0], 1, fingerprint(request), fresh, LIMITS)
    except Refused as refusal:
        decided = decide(stream, request, SESSIONS[0], fresh, LIMITS)
        assert isinstance(decided, Stored)
        assert json.loads(b"{" + decided.outcome.body + b"}")["code"] == refusal.code
        return
    short = decide(stream, request, SESSIONS[0], fresh, LIMITS)
    assert isinstance(short, Committed)
    assert (short.record, short.core, short.outcome, short.targets) == (
        general.record, general.core, general.outcome, general.targets
    )
    lines = []
    for decision in (general, short):
        copied = stream_with({"metadata": {}, "messages": [{"id": "m0"}], "states": {}})
        install(copied, SESSIONS[0], 1, decision, 7)
        lines.append(deep_picture(copied))
    assert lines[0] == lines[1]


def test_the_fingerprint_ignores_request_number_and_owner_and_nothing_else() -> None:
    """[O3] R16: every other field makes another body."""
    frame = {"type": "append", "chat": "group:x", "op": 1, "id": 1, "base": START, "messages": [{"mes": "a"}]}

    def print_of(**changes: Any) -> int:
        request: Any = codec.decode_client(json.dumps({**frame, **changes}).encode(), LIMITS)
        assert isinstance(request, Append)
        return fingerprint(request)

    same = print_of()
    assert print_of(id=2) == same
    assert print_of(chat="group:y") == same
    assert print_of(op=2) == same
    different = [
        print_of(base="*"), print_of(base=None), print_of(base={"op": 1}), print_of(base={"op": 2}),
        print_of(messages=[{"mes": "b"}]), print_of(messages=[{"mes": "a"}, {"mes": "a"}]), print_of(force=True),
        print_of(on_conflict="rebase"),
    ]
    assert len({same, *different}) == len(different) + 1


def test_the_fingerprint_is_the_same_in_every_process() -> None:
    """[O3, O8] It stands in the log, so its values are pinned."""
    append: Any = codec.decode_client(
        b'{"type":"append","chat":"group:x","op":1,"base":"*","messages":[{"mes":"a"}]}', LIMITS
    )
    patch: Any = codec.decode_client(
        b'{"type":"patch","chat":"group:x","op":1,"base":"*","message":"m","patch":[]}', LIMITS
    )
    assert (fingerprint(append), fingerprint(patch)) == PINNED


PINNED = (49862047791, 500721596792)


def ask_once(stream: Stream, **frame: Any) -> Decision:
    data = json.dumps({"chat": "group:x", "op": stream.next_op(SESSIONS[0]), "base": "*", **frame}).encode()
    request: Any = codec.decode_client(data, LIMITS)
    decision = decide(stream, request, SESSIONS[0], Fresh(integrity(stream.head.seq + 1), 16, 7), LIMITS)
    if isinstance(decision, (Committed, Stored)):
        install(stream, SESSIONS[0], stream.next_op(SESSIONS[0]), decision, 7)
    return decision


def test_a_forced_overwrite_keeps_the_old_version_in_its_record() -> None:
    """[B9] R26."""
    stream = stream_with({"metadata": {}, "messages": [{"id": "m1", "mes": "old"}], "states": {"memory": {"old": 1}}})
    other = integrity(999)
    patch = [{"op": "replace", "path": "/mes", "value": "new"}]
    decision = ask_once(stream, type="patch", message="m1", base=other, force=True, patch=patch)
    assert isinstance(decision, Committed)
    assert b'"value":"old"' in decision.record
    request: Any = codec.decode_client(
        json.dumps({"type": "state-update", "owner": {"chat": "group:x"}, "namespace": "memory", "op": 2,
                    "base": other, "force": True, "set": {"new": 1}}).encode(), LIMITS,
    )
    state = decide(stream, request, SESSIONS[0], Fresh(integrity(2), 16, 7), LIMITS)
    assert isinstance(state, Committed)
    undo = decode_commit(state.record).undo
    assert json.loads(encode_effects(undo))[0]["data"] == {"old": 1}


def test_work_that_one_request_repeats_on_large_documents_is_bounded() -> None:
    """[P4] A batch of copies, and many patches of one large document, are refused before they cost seconds."""
    big = {"metadata": {"big": ["x"] * 50_000}, "messages": [], "states": {}}
    copies = [{"op": "copy", "from": "/metadata/big", "path": "/metadata/other"}] * 100
    wide = [{"op": "add", "path": "/metadata/n", "value": 1}] * 10_000
    batch = [{"type": "metadata-update", "patch": [{"op": "copy", "from": "/big", "path": "/other"}]}] * 100
    for frame in (
        {"type": "patch", "patch": copies, "base": START}, {"type": "patch", "patch": wide, "base": START},
        {"type": "batch", "requests": batch, "base": START},
    ):
        stream = stream_with(big)
        request: Any = codec.decode_client(json.dumps({"chat": "group:x", "op": 1, **frame}).encode(), LIMITS)
        with_code = None
        try:
            decide(stream, request, SESSIONS[0], Fresh(integrity(1), 16, 7), LIMITS)
        except Refused as refusal:
            with_code = refusal.code
        assert with_code == "patch-too-large"


def test_documents_over_their_limit_are_refused_and_use_up_nothing() -> None:
    """[O5, W7, P4]"""
    small = Limits(document_bytes=100)
    stream = stream_with({"metadata": {}, "messages": [{"id": "m1"}], "states": {}})
    long = "x" * 200
    for frame, code in (
        ({"type": "append", "messages": [{"mes": long}]}, "too-large"),
        ({"type": "patch", "message": "m1", "base": START, "patch": [{"op": "add", "path": "/a", "value": long}]},
         "patch-too-large"),
        ({"type": "metadata-update", "merge": {"a": long}}, "patch-too-large"),
        ({"type": "state-update", "owner": {"chat": "group:x"}, "namespace": "n", "base": None, "set": long},
         "patch-too-large"),
    ):
        request: Any = codec.decode_client(
            json.dumps({"chat": "group:x", "op": 1, "base": "*", **frame}).encode(), LIMITS
        )
        try:
            decided: Any = decide(stream, request, SESSIONS[0], Fresh(integrity(1), 16, 7), small)
        except Refused as refusal:
            decided = refusal
        assert isinstance(decided, Refused), frame
        assert decided.code == code
        assert not decided.is_outcome


def test_a_users_own_line_that_is_nested_too_deeply_is_refused_and_not_a_fault() -> None:
    """[P4, E2] An old line can be deeper than Python writes."""
    for levels in (300, 900, 5_000, 100_000):
        line = b'{"id":"m1","a":' + b"[" * levels + b"]" * levels + b"}"
        stream = stream_with({"metadata": {}, "messages": [], "states": {}})
        stream.chat = Chat(stream.head, messages={"m1": line})
        before = deep_picture(stream)
        try:
            decided: Any = ask_once(
                stream, type="patch", message="m1", base=START, patch=[{"op": "add", "path": "/b", "value": 1}]
            )
        except Refused as refusal:
            assert refusal.code == "too-deep"
            assert deep_picture(stream) == before
        else:
            assert isinstance(decided, (Committed, Stored))


def test_a_deletion_of_bare_messages_can_be_undone_with_their_ids() -> None:
    """[M3, P5]"""
    stream = stream_with({"metadata": {}, "messages": [], "states": {}})
    stream.chat = Chat(stream.head, messages={"b-0": b'{"mes":"x"}', "c-0": b'{"mes":"y"}'}, bare={"b-0", "c-0"})
    decision = ask_once(stream, type="delete", base=START, messages=["b-0"])
    assert isinstance(decision, Committed)
    assert stream.chat.bare == {"c-0"}
    for effect in decode_commit(decision.record).undo:
        stream.chat.apply(effect)
    assert stream.chat.values() == [{"id": "b-0", "mes": "x"}, {"id": "c-0", "mes": "y"}]


def test_f5_a_commit_of_an_earlier_version_with_half_a_surrogate_pair_is_read() -> None:
    record = (
        b'{"version":{"epoch":1,"seq":2,"integrity":"%b"},"previous":"%b","ops":[{"op":"patch","message":"m",'
        b'"patch":[{"op":"add","path":"/mes","value":"\\ud83dx \\ud83d\\ude00"}]}]}'
    ) % (START.encode(), START.encode())
    (effect,) = decode_commit(record).ops
    assert isinstance(effect, PatchEffect)
    assert msgspec.json.decode(effect.patch)[0]["value"] == "\ufffdx \U0001f600"
