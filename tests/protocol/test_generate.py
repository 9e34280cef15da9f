"""`generate`, as far as it is decided: what is stored, who may add text, which model servers there are."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec import Raw

from tellback_protocol.decide import Committed, decide, decide_end, fingerprint
from tellback_protocol.generation_requests import Generate, GenerationError
from tellback_protocol.provenance import Provenance, model_of
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
        "id": answer["message"], "name": "Alice", "mes": "Good evening.",
        "send_date": "1970-01-01T00:00:01.002Z", "gen_started": "1970-01-01T00:00:01.001Z",
        "gen_finished": "1970-01-01T00:00:01.002Z",
        "extra": {"api": "local", "model": "m", "reasoning": "She greets.", "reasoning_type": "model"},
    }
    assert (desk.entry()["upstream"], desk.entry()["model"]) == ("local", "m")


def test_what_the_model_server_told_stands_with_the_reply_and_adds_up_in_a_continuation() -> None:
    """[T21, T22]"""
    desk = Desk(U1)
    usage = {"prompt_tokens": 9, "completion_tokens": 5, "details": {"cached": 0}}
    for generation, text, target in (("g1", "Good", {}), ("g2", " evening.", {"kind": "continue"})):
        if target:
            target["message"] = desk.messages[-1]["id"]
        generate(desk, generation=generation, **({"target": target} if target else {}))
        desk.text(text, generation, reasoning="Hm. ")
        provenance = desk.stream.running[generation].provenance
        provenance.learn("length", usage)
        provenance.reasoning_ms = 700
        desk.by_itself(decide_end(desk.stream, generation, "stored", desk.fresh(), LIMITS))
    message = desk.messages[-1]
    assert message["mes"] == "Good evening."
    assert message["extra"] == {
        "api": "local", "model": "m", "reasoning": "Hm. Hm. ", "reasoning_type": "model", "reasoning_duration": 1400,
        "token_count": 10, "finish_reason": "length", "usage": usage,
    }


@pytest.mark.parametrize("usage", [{"completion_tokens": -1}, {"completion_tokens": True}, {"completion_tokens": "5"}])
def test_a_count_that_is_none_is_not_told_as_one(usage: dict[str, Any]) -> None:
    """[T22]"""
    provenance = Provenance()
    provenance.learn(None, usage)
    assert provenance.members(None, None, "") == {"usage": usage}


def test_what_cannot_stand_in_a_message_is_left_out() -> None:
    """[T22]"""
    provenance = Provenance()
    deep: Any = {}
    for _ in range(3000):
        deep = {"x": deep}
    for usage in ({"x": "y" * 5000}, {"x": object()}, deep, {"x": "\ud800"}):
        provenance.learn("s" * 65, usage)
    provenance.learn("caf\u00e9", None)
    assert provenance.members("", None, "") == {"api": ""}
    assert [model_of({"model": model}) for model in ("", "m" * 300, 5, None)] == [None] * 4


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
