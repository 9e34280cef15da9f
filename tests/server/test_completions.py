"""What OpenAI-compatible servers say, literally, and the deltas that it means."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tellback_server.completions import CompletionReader, Delta, ErrorInside, NotACompletion
from tellback_server.sse import SseEvent


def chunk(delta: object, finish: object = None, **more: Any) -> SseEvent:
    value = {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **more}
    return SseEvent(json.dumps(value).encode())


@pytest.mark.parametrize(
    ("event", "delta"),
    [
        (chunk({"content": "hi"}), Delta("hi")),
        (chunk({"content": "a"}, "stop"), Delta("a", finish_reason="stop")),
        (chunk({"role": "assistant", "content": ""}), None),
        (chunk({"role": "assistant", "content": None}), None),
        (chunk({}), None),
        (chunk(None, ""), None),
        (chunk({"reasoning_content": "hm"}), Delta(reasoning="hm")),
        (chunk({"reasoning": "hm", "content": "a"}), Delta("a", "hm")),
        (chunk({"reasoning": "hm", "reasoning_content": "hm"}), Delta(reasoning="hm")),
        (chunk({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}), Delta("ab")),
        (chunk({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}]}), Delta("", "hm")),
        (chunk({"refusal": "No."}), Delta("No.")),
        (chunk({"content": "a"}, error=None), Delta("a")),
        (chunk({}, usage={"total_tokens": 3}), Delta(usage={"total_tokens": 3})),
        (SseEvent(b'{"choices":[],"usage":{"total_tokens":3}}'), Delta(usage={"total_tokens": 3})),
        (SseEvent(b'{"choices":[],"prompt_filter_results":[]}'), None),
        (SseEvent(b'{"choices":[{"index":1,"delta":{"content":"other"}},{"delta":{"content":"a"}}]}'), Delta("a")),
        (SseEvent(b'{"choices":[{"message":{"content":"all"},"finish_reason":"stop"}]}'), Delta("all", "", "stop")),
        (SseEvent(b'{"choices":[{"delta":{"content":"a\xffb"}}]}'), Delta("a\ufffdb")),
    ],
)  # fmt: skip
def test_chunks_of_many_servers(event: SseEvent, delta: Delta | None) -> None:
    assert CompletionReader().read(event) == delta


def test_a_reply_is_whole_by_a_finish_reason_or_by_done() -> None:
    reader = CompletionReader()
    reader.read(chunk({"content": "a"}))
    assert (reader.has_begun, reader.has_finished, reader.is_done) == (True, False, False)
    reader.read(chunk({}, "length"))
    assert (reader.has_finished, reader.is_done) == (True, False)
    assert reader.read(SseEvent(b" [DONE] ")) is None
    assert reader.is_done


def test_halves_of_a_character_are_joined_or_replaced() -> None:
    reader = CompletionReader()
    events = [chunk({"content": text}) for text in ("a\ud83d", "\ude00b", "\ud83d", "x\udc00", "\ud83d")]
    deltas = [reader.read(event) for event in events]
    assert deltas == [Delta("a"), Delta("😀b"), None, Delta("\ufffdx\ufffd"), None]
    assert reader.rest() == Delta("\ufffd")
    assert reader.rest() is None


def test_halves_of_text_and_reasoning_do_not_mix() -> None:
    reader = CompletionReader()
    assert reader.read(chunk({"content": "\ud83d", "reasoning": "r\ud83c"})) == Delta("", "r")
    assert reader.read(chunk({"content": "\ude00"})) == Delta("😀")
    assert reader.read(chunk({"reasoning": "\udf00"})) == Delta("", "🌀")


@pytest.mark.parametrize(
    ("event", "status", "message"),
    [
        (SseEvent(b'{"error":{"message":"overloaded","code":503}}'), 503, "overloaded"),
        (SseEvent(b'{"error":{"message":"no","code":"context_length","status":"400"}}'), 400, "no"),
        (SseEvent(b'{"error":"no model"}'), None, "no model"),
        (SseEvent(b'{"object":"error","message":"bad","code":400}'), 400, "bad"),
        (SseEvent(b'{"message":"oh"}', "error"), None, "oh"),
        (chunk({"content": ""}, "error", error={"code": 502, "message": "gone"}), 502, "gone"),
        (chunk({"content": ""}, "error"), None, ""),
    ],
)
def test_an_error_inside_is_an_error(event: SseEvent, status: int | None, message: str) -> None:
    with pytest.raises(ErrorInside) as caught:
        CompletionReader().read(event)
    assert (caught.value.status, caught.value.message) == (status, message)


@pytest.mark.parametrize("data", [b"<html>", b"[]", b"1", b"{}", b'{"choices":{}}', b'{"a":', b"[" * 100_000])
def test_anything_else_is_no_completion(data: bytes) -> None:
    with pytest.raises(NotACompletion):
        CompletionReader().read(SseEvent(data))
