"""`generate`, as far as it is decided: what is stored, who may add text, which model servers there are."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec import Raw

from tellback_protocol.decide import Committed, decide, decide_end, fingerprint
from tellback_protocol.generation_requests import Generate, GenerationError
from tests.protocol.test_generations import A1, ME, OTHER, U1, Desk
from tests.support import vectors
from tests.support.vectors import LIMITS

MODELS = ("local", "hosted")
BODY = {"model": "m", "messages": [{"role": "user", "content": "secret prompt"}]}


def generate(desk: Desk, **fields: Any) -> dict[str, Any]:
    given = {"base": "*", "generation": "g1", "upstream": "local", "body": BODY}
    return desk.ask("generate", models=MODELS, **{**given, **fields})


def test_a_generate_is_a_start_that_names_the_model_server_and_stores_no_prompt() -> None:
    """[U1, U2]"""
    desk = Desk(A1)
    answer = generate(desk, messages=[U1], reply={"name": "Alice"})
    assert (answer["type"], answer["generation"], answer["messages"]) == ("ack", "g1", ["u1"])
    entry = desk.entry()
    assert (entry["state"], entry["upstream"], entry["by"], entry["after"]) == ("running", "local", ME, "u1")
    assert "lease_s" not in entry
    assert "secret prompt" not in json.dumps(vectors.document_of(desk.stream))
    desk.text("Good evening.", reasoning="She greets.")
    desk.by_itself(decide_end(desk.stream, "g1", "stored", desk.fresh(), LIMITS))
    assert desk.messages[-1] == {
        "id": answer["message"], "name": "Alice", "extra": {"reasoning": "She greets."}, "mes": "Good evening.",
    }
    assert desk.entry()["upstream"] == "local"


def test_what_a_model_began_is_kept_when_it_fails() -> None:
    """[U4]"""
    desk = Desk(U1)
    generate(desk)
    desk.text("Good")
    error = GenerationError("upstream-cut", "The answer ended.")
    desk.by_itself(decide_end(desk.stream, "g1", "failed", desk.fresh(), LIMITS, error))
    assert desk.messages[-1]["mes"] == "Good"
    assert desk.entry()["error"] == {"code": "upstream-cut", "message": "The answer ended."}


@pytest.mark.parametrize("session", [ME, OTHER])
def test_no_session_ends_what_the_server_produces_but_any_cancels_it(session: str) -> None:
    """[U3, U6]"""
    desk = Desk(U1)
    generate(desk)
    assert desk.stream.generations["g1"].producer is None
    assert desk.ask("generation-end", session, generation="g1")["code"] == "not-producer"
    assert desk.ask("generation-cancel", session, generation="g1")["state"] == "cancelled"


@pytest.mark.parametrize(
    ("fields", "code", "pointer"),
    [
        ({"upstream": "other"}, "upstream-unknown", "/upstream"),
        ({"upstream": ""}, "upstream-unknown", "/upstream"),
        ({"body": []}, "bad-frame", "/body"),
        ({"body": None}, "bad-frame", "/body"),
        ({"body": "text"}, "bad-frame", "/body"),
        ({"messages": [U1], "target": {"kind": "swipe", "message": "a1"}}, "bad-frame", "/messages"),
        ({"base": "00000000-0000-4000-8000-00000000ffff"}, None, None),
    ],
)
def test_a_generate_that_makes_no_sense_is_refused(
    fields: dict[str, Any], code: str | None, pointer: str | None
) -> None:
    """[U1, U9]"""
    desk = Desk(A1)
    answer = generate(desk, **fields)
    assert answer["type"] == ("conflict" if code is None else "error")
    assert (answer.get("code"), answer.get("pointer")) == (code, pointer)
    assert desk.stream.generations == {}
    assert len(desk.messages) == 1


def test_a_body_that_is_nested_too_deeply_is_refused() -> None:
    """[U1]"""
    deep: Any = []
    for _ in range(100):
        deep = [deep]
    desk = Desk(A1)
    assert generate(desk, body={"x": deep})["code"] in ("too-deep", "bad-json")


def test_the_prompt_is_part_of_what_an_op_number_stands_for() -> None:
    """[U1, O2] The same number with another prompt is another request."""
    request = Generate("group:vectors", "g1", "local", Raw(b"{}"), op=1, base="*")
    other = Generate("group:vectors", "g1", "local", Raw(b'{"a":1}'), op=1, base="*")
    assert fingerprint(request) != fingerprint(other)
    desk = Desk(A1)
    decision = decide(desk.stream, request, ME, desk.fresh(), LIMITS, models=MODELS)
    assert isinstance(decision, Committed)
