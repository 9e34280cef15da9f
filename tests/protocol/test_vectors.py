"""Runs every vector of `spec/vectors/` with the Python core."""

from __future__ import annotations

import base64
import copy
import json
from typing import Any

import msgspec
import pytest

from tellback_protocol import codec, ids
from tellback_protocol.codec import FrameProblem
from tellback_protocol.decide import Committed, decide_links
from tellback_protocol.effects import decode_effects, encode_effects
from tellback_protocol.errors import Refused
from tellback_protocol.frames import ClientFrame, ServerFrame
from tellback_protocol.generations import Running
from tellback_protocol.life import NO_FACTS, Facts
from tellback_protocol.links import is_all
from tellback_protocol.patch import apply_patch, check_operations, merge_to_patch
from tellback_protocol.requests import Malformed, OwnerName, owner_named, owner_text
from tests.support import vectors
from tests.support.vectors import CHAT_ID, LIMITS


def each(folder: str, file: str | None = None) -> pytest.MarkDecorator:
    chosen = [
        pytest.param(vector, id=label) for label, vector in vectors.read(folder)
        if file is None or label.startswith(f"{file}: ")
    ]
    assert chosen, f"no vectors in {folder}/{file}"
    return pytest.mark.parametrize("vector", chosen)


Vector = dict[str, Any]


@each("frames", "examples")
def test_an_example_decodes_and_encodes_to_an_equal_object(vector: Vector) -> None:
    frame_type: Any = ClientFrame if vector["direction"] == "client" else ServerFrame
    data = json.dumps(vector["frame"]).encode()
    frame = msgspec.json.decode(data, type=frame_type)
    encoded = json.loads(msgspec.json.encode(frame))
    for key, value in vector["frame"].items():
        assert encoded[key] == value
    assert msgspec.json.decode(msgspec.json.encode(frame), type=frame_type) == frame


@each("frames", "client")
def test_a_message_from_a_client_is_usable_or_answered_with_its_error(vector: Vector) -> None:
    if "base64" in vector:
        data = base64.b64decode(vector["base64"])
    else:
        data = vector["text"].encode() if "text" in vector else json.dumps(vector["frame"]).encode()
    try:
        frame = codec.decode_client(data, LIMITS)
    except FrameProblem as problem:
        code, pointer, echo = problem.refusal.code, problem.refusal.pointer, problem.echo
    else:
        if not isinstance(frame, Malformed):
            assert "error" not in vector
            return
        code, pointer = frame.code, frame.pointer
        echo = {"op": frame.op}
        if isinstance(frame.owner, OwnerName):
            echo["owner"] = msgspec.to_builtins(frame.owner)
        else:
            echo["chat"] = frame.chat
        if frame.id is not None:
            echo["id"] = frame.id
    assert vector["error"] == ({"code": code} if pointer is None else {"code": code, "pointer": pointer})
    assert echo == vector["echo"]


@each("names", "names")
def test_a_name_is_legal_or_not(vector: Vector) -> None:
    assert (ids.new_name_problem(vector["text"]) is None) == vector["new"]
    assert (ids.existing_name_problem(vector["text"]) is None) == vector["existing"]


@each("names", "namespaces")
def test_a_namespace_is_usable_or_not(vector: Vector) -> None:
    assert (ids.namespace_problem(vector["text"]) is None) == vector["usable"]
    assert ids.is_reserved_namespace(vector["text"]) == vector["reserved"]


@each("names", "sessions")
def test_a_session_id_is_usable_or_not(vector: Vector) -> None:
    assert (ids.session_problem(vector["text"]) is None) == vector["usable"]


@each("names", "chats")
def test_an_address_of_a_chat_has_parts_or_none(vector: Vector) -> None:
    address = ids.parse_chat(vector["text"])
    if vector["address"] is None:
        assert isinstance(address, str)
        return
    kinds = {ids.CharacterChat: "character", ids.GroupChat: "group", ids.ChatById: "id"}
    assert not isinstance(address, str)
    assert {"kind": kinds[type(address)], **msgspec.to_builtins(address)} == vector["address"]
    assert str(address) == vector["text"]


@each("names", "owners")
def test_an_owner_without_messages_has_parts_and_one_text_or_none(vector: Vector) -> None:
    owner = msgspec.convert(vector["owner"], OwnerName)
    text = owner_text(owner)
    place = "names nobody" if text is None else ids.parse_state_owner(text)
    if vector["address"] is None:
        assert isinstance(place, str)
        return
    kinds = {ids.CharacterOwner: "character", ids.PresetOwner: "preset"}
    assert not isinstance(place, str)
    assert {"kind": kinds[type(place)], **msgspec.to_builtins(place)} == vector["address"]
    assert text == vector["text"] == str(place) == str(ids.parse_place(text))
    assert owner_named(text) == owner


@each("ids", "message-ids")
def test_a_value_is_usable_as_a_messages_id_or_not(vector: Vector) -> None:
    assert (ids.message_id_problem(vector["value"]) is None) == vector["usable"]


@each("ids", "derived-message-ids")
def test_an_id_is_derived_from_a_line(vector: Vector) -> None:
    assert ids.derived_message_id(base64.b64decode(vector["line_base64"]), vector["occurrence"]) == vector["id"]


@each("ids", "derived-uuids")
def test_a_uuid_is_derived_from_parts(vector: Vector) -> None:
    assert ids.derived_uuid(*vector["parts"]) == vector["uuid"]


@each("patch", "patch")
def test_a_patch_has_its_result_and_a_way_back_or_its_error(vector: Vector) -> None:
    document = copy.deepcopy(vector["document"])
    if "error" in vector:
        with pytest.raises(Refused) as refused:
            apply_patch(document, check_operations(copy.deepcopy(vector["patch"]), "/patch"))
        assert vector["error"] == {"code": refused.value.code, "pointer": refused.value.pointer}
        return
    patched = apply_patch(document, check_operations(copy.deepcopy(vector["patch"]), "/patch"))
    assert same(patched.value, vector["result"])
    for undo in (patched.undo, vector["undo"]):
        back = apply_patch(copy.deepcopy(vector["result"]), copy.deepcopy(undo)).value
        assert same(back, vector["document"])


@each("patch", "merge")
def test_a_merge_is_written_out_as_operations(vector: Vector) -> None:
    operations = merge_to_patch(copy.deepcopy(vector["document"]), copy.deepcopy(vector["merge"]))
    for patch in (operations, vector["patch"]):
        assert same(apply_patch(copy.deepcopy(vector["document"]), copy.deepcopy(patch)).value, vector["result"])


@each("apply")
def test_a_replica_installs_the_effects_of_a_commit(vector: Vector) -> None:
    stream = vectors.stream_of(vector["document"])
    after = vectors.apply_effects(stream, vector["effects"], vectors.version_of(vector["version"]))
    assert same({**after, **vectors.standing_of(stream, vector["document"])}, vector["after"])


@each("decide")
def test_a_request_means_what_the_vector_says(vector: Vector) -> None:
    check_steps(vector)


@each("swipes")
def test_swipes_become_what_the_vector_says(vector: Vector) -> None:
    check_steps(vector)


@each("floors")
def test_floor_states_become_what_the_vector_says(vector: Vector) -> None:
    check_steps(vector)


@each("generations", "generations")
def test_generations_become_what_the_vector_says(vector: Vector) -> None:
    check_steps(vector)


@each("generations", "deltas")
def test_deltas_become_the_text_that_the_vector_says(vector: Vector) -> None:
    running = Running()
    for step in vector["deltas"]:
        assert added_by(running, step["delta"]) == step["added"]
    assert (str(running.text), str(running.reasoning)) == (vector["text"], vector["reasoning"])
    assert running.text.units == vector["units"]


def added_by(running: Running, delta: dict[str, Any]) -> dict[str, Any]:
    """What of a delta was new, or the error."""
    try:
        added = running.add(
            delta.get("offset", 0), delta.get("text", ""), delta.get("reasoning_offset", 0), delta.get("reasoning", "")
        )
    except Refused as refusal:
        return {"code": refusal.code, "pointer": refusal.pointer, **(refusal.details or {})}
    return {"text": added.text, "reasoning": added.reasoning}


@each("life", "life")
def test_life_writes_mean_what_the_vector_says(vector: Vector) -> None:
    check_steps(vector)


@each("life", "links")
def test_links_follow_as_the_vector_says(vector: Vector) -> None:
    stream, replica = vectors.stream_of(vector["document"]), vectors.stream_of(vector["document"])
    decision = decide_links(stream, vector["names"], vector["to"], vectors.fresh_of(vector["fresh"]), LIMITS)
    if decision is None:
        assert "effects" not in vector
        return
    assert same(json.loads(encode_effects(decision.effects)), vector["effects"])
    assert is_all(decision.effects) == vector["only_links"]
    assert same(vectors.apply_effects(replica, vector["effects"], decision.version), vector["after"])


def check_steps(vector: Vector) -> None:
    """Decide about every step, and let a replica install only what the effects say."""
    stream = vectors.stream_of(vector["document"])
    replica = vectors.stream_of(vector["document"])
    for step in vector["steps"]:
        if "delta" in step:
            assert added_by(stream.running[step["delta"]["generation"]], step["delta"]) == step["added"]
            continue
        data = step["text"].encode() if "text" in step else json.dumps(step["frame"]).encode()
        before = vectors.document_of(stream)
        facts = msgspec.convert(step["facts"], Facts) if "facts" in step else NO_FACTS
        answer, decision = vectors.carry_out(
            stream, step["session"], data, vectors.fresh_of(step["fresh"]), facts=facts
        )
        if answer["type"] == "error":
            answer.pop("message")
        assert same(answer, step["answer"])
        if not isinstance(decision, Committed):
            assert "effects" not in step
            assert same(vectors.document_of(stream), before)
            continue
        assert same(json.loads(encode_effects(decision.effects)), step["effects"])
        vectors.apply_effects(replica, step["effects"], decision.version)
        assert same(vectors.document_of(replica), vectors.document_of(stream))
        assert (replica.name, replica.deleted) == (stream.name, stream.deleted)
    standing = vectors.standing_of(stream, vector["document"])
    assert same({**vectors.document_of(stream), **standing}, vector["after"])


def test_the_vectors_together_cover_every_effect_request_and_answer() -> None:
    """[E1, A1, A2, A3, A4, A5, A6, A7, A8] The suite is only as good as what it touches."""
    requests: set[str] = set()
    effects: set[str] = set()
    answers: set[str] = set()
    stepped = ("decide", "swipes", "floors", "generations", "life")
    for _, vector in [labelled for folder in stepped for labelled in vectors.read(folder)]:
        for step in vector.get("steps", []):
            if "delta" in step:
                continue
            requests.add(step.get("frame", {}).get("type", ""))
            answers.add(step["answer"]["type"])
            for effect in step.get("effects", []):
                effects.add(effect["op"])
                decode_effects(json.dumps([effect]))
    assert requests >= codec.WRITES
    assert answers == {"ack", "conflict", "error"}
    assert effects == {"append", "insert", "patch", "delete", "metadata", "state", "floor", "renamed", "deleted"}


def test_names_of_vectors_are_sentences_that_occur_once() -> None:
    for folder in ("frames", "names", "ids", "patch", "apply", "decide", "swipes", "floors", "generations", "life"):
        labels = [label for label, _ in vectors.read(folder)]
        assert len(labels) == len(set(labels))
    assert ids.parse_chat(f"id:{CHAT_ID}").chat_id == CHAT_ID  # type: ignore[union-attr]


def same(left: Any, right: Any) -> bool:
    """Equality in which true is not 1 and 1 is not 1.0."""
    return json.dumps(left, sort_keys=True) == json.dumps(right, sort_keys=True)
