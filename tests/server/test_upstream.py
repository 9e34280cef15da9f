"""Streaming from model servers, well-behaved and not, each over a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tellback_server.clock import Clock
from tellback_server.metrics import Counters
from tellback_server.upstream import Delta, UpstreamPolicy, Upstreams
from tellback_server.upstream_address import parse_upstream
from tellback_server.upstream_errors import (
    UnknownUpstream,
    UpstreamBad,
    UpstreamCut,
    UpstreamError,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from tests.support.logs import caught_logs
from tests.support.sse_server import DONE, Exchange, Script, SseServer, piece, refuses, reply, says, silent
from tests.support.waiting import GUARD_S, until

KEY = "sk-sesame-0123456789"
BODY = {"model": "scripted", "messages": [{"role": "user", "content": "hi"}]}
QUICK = UpstreamPolicy(
    connect_timeout_s=10, first_token_timeout_s=10, token_timeout_s=0.3, retries_max=2, retry_pause_s=0.01,
    after_finish_timeout_s=0.1,
)
PATIENT = UpstreamPolicy(
    connect_timeout_s=10, first_token_timeout_s=10, token_timeout_s=10, retries_max=2, retry_pause_s=0.01,
    after_finish_timeout_s=0.1,
)
"""For hundreds of pieces, where being slow is not the point."""


class Bench:
    """A client of one scripted server."""

    def __init__(self, url: str, policy: UpstreamPolicy) -> None:
        self.counters = Counters()
        self.upstreams = Upstreams(
            [parse_upstream(f"local={url}")], keys={"local": KEY}, clock=Clock(), counters=self.counters, policy=policy
        )
        self.received: list[Delta] = []

    async def run(self, body: dict[str, Any] | None = None) -> list[Delta]:
        """Everything of one reply; what came before an error stays in `received`."""
        async with contextlib.aclosing(self.upstreams.stream("local", body or BODY)) as deltas:
            async for delta in deltas:
                self.received.append(delta)
        return self.received

    @property
    def text(self) -> str:
        return "".join(delta.text for delta in self.received)

    @property
    def reasoning(self) -> str:
        return "".join(delta.reasoning for delta in self.received)


@contextlib.asynccontextmanager
async def bench(*scripts: Script, policy: UpstreamPolicy = QUICK) -> AsyncIterator[tuple[Bench, SseServer]]:
    async with SseServer(*scripts) as server:
        client = Bench(server.url, policy)
        try:
            yield client, server
        finally:
            await client.upstreams.close()


async def failure(client: Bench) -> UpstreamError:
    with pytest.raises(UpstreamError) as caught:
        await client.run()
    assert client.counters.upstream_errors == {caught.value.kind: 1}
    return caught.value


# -- replies ---------------------------------------------------------------------------------------------------------


async def test_a_reply_comes_token_by_token() -> None:
    async with bench(reply("Hel", "lo", "lo")) as (client, server):
        assert [delta.text for delta in await client.run()] == ["Hel", "lo", "lo", ""]
        assert client.received[-1].finish_reason == "stop"
        counters = client.counters
        assert (counters.upstream_requests, counters.upstream_deltas, counters.upstream_retries) == (1, 4, 0)
        assert len(counters.upstream_first_token_s) == 1
        request = server.exchanges[0]
    assert (request.method, request.path) == ("POST", "/v1/chat/completions")
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert request.headers["content-type"] == "application/json"
    assert request.headers["user-agent"].startswith("tellback/")


async def test_the_body_is_the_clients_but_for_stream() -> None:
    """[U2]"""
    body = {"stream": False, "messages": [], "x": {"y": [1, 2.5, None, "é"]}, "n": 2**53 + 1, "stream_options": {}}
    async with bench(reply("a")) as (client, server):
        await client.run(body)
        assert server.exchanges[0].json == {**body, "stream": True}
    assert body["stream"] is False


async def test_no_key_no_header() -> None:
    async with SseServer(reply("a")) as server:
        local = [parse_upstream(f"local={server.url}")]
        upstreams = Upstreams(local, keys={}, clock=Clock(), counters=Counters())
        assert [delta.text async for delta in upstreams.stream("local", BODY)] == ["a", ""]
        assert "authorization" not in server.exchanges[0].headers
        await upstreams.close()


async def test_reasoning_is_kept_apart() -> None:
    events = [piece(reasoning="let me "), piece(reasoning="see"), piece("42"), piece(finish="stop"), DONE]
    async with bench(says(*events)) as (client, _):
        await client.run()
        assert (client.text, client.reasoning) == ("42", "let me see")


async def test_split_characters_and_lines_arrive_whole() -> None:
    stream = piece("é😀漢") + piece("👩‍👩‍👧") + piece("\ud83d", ascii=True) + piece("\ude00", ascii=True) + DONE
    for size in (1, 2, 3, 7):
        script = says(*(stream[at : at + size] for at in range(0, len(stream), size)))
        async with bench(script, policy=PATIENT) as (client, _):
            await client.run()
            assert client.text == "é😀漢👩‍👩‍👧😀"


@pytest.mark.parametrize(
    "events",
    [
        [piece("a"), piece("b"), piece(finish="stop")],
        [piece("a"), piece("b"), DONE],
        [piece("a") + piece("b", finish="stop").rstrip(b"\n")],
        [piece("a"), piece("b"), b"data: [DONE]"],
        [(piece("a") + piece("b") + DONE).replace(b"\n", b"\r\n")],
        [b": keep-alive\n\n", piece("a"), b":\n\n", b"event: ping\n\n", piece("b"), DONE],
        [piece("a"), piece("b", finish="stop"), piece(usage={"total_tokens": 3}), DONE],
        [piece("a", finish="stop"), piece("b", finish="stop"), DONE],
        [piece("a"), piece("b"), DONE, piece("after the end")],
    ],
    ids=[
        "no-done", "no-finish", "no-blank-line", "no-newline", "crlf", "comments", "usage", "finish-everywhere",
        "after-done",
    ],
)
async def test_ways_to_end_and_to_write(events: list[bytes]) -> None:
    async with bench(says(*events)) as (client, _):
        await client.run()
        assert client.text == "ab"
        assert client.counters.upstream_errors == {}


async def test_usage_is_told() -> None:
    async with bench(says(piece("a", finish="stop"), piece(usage={"total_tokens": 3}), DONE)) as (client, _):
        assert (await client.run())[-1].usage == {"total_tokens": 3}


async def test_ten_thousand_tokens_of_one_character() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.start()
        for _ in range(100):
            await exchange.send(b"".join(b"%x\r\n%b\r\n" % (len(event), event) for event in [piece("x")] * 100))
        await exchange.chunk(DONE)
        await exchange.end()

    async with bench(script) as (client, _):
        await client.run()
        assert client.text == "x" * 10_000
        assert len(client.received) == 10_000


async def test_a_server_that_does_not_stream_is_understood() -> None:
    whole = {"choices": [{"message": {"content": "all", "reasoning_content": "hm"}, "finish_reason": "stop"}]}
    async with bench(refuses(200, whole)) as (client, _):
        assert await client.run() == [Delta("all", "hm", "stop")]


async def test_a_stream_that_stays_open_after_its_end_is_over() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.start()
        await exchange.chunk(piece("a", finish="stop"))
        await exchange.hang()

    async with bench(script) as (client, server):
        await client.run()
        assert client.text == "a"
        await asyncio.wait_for(server.exchanges[0].closed.wait(), GUARD_S)


async def test_two_replies_use_one_connection_and_no_cookie() -> None:
    async def first(exchange: Exchange) -> None:
        await exchange.head(200, b'{"choices":[{"message":{"content":"a"}}]}', Set_Cookie="who=alice; Path=/")

    async with bench(first, reply("b")) as (client, server):
        await client.run()
        await client.run()
        assert client.text == "ab"
        assert server.connections == 1
        assert "cookie" not in server.exchanges[1].headers


# -- faults ----------------------------------------------------------------------------------------------------------


async def test_a_cut_in_the_middle_keeps_what_came() -> None:
    """[U4, U5]"""
    async def script(exchange: Exchange) -> None:
        await exchange.start()
        await exchange.chunk(piece("Once upon"))
        await exchange.chunk(piece(" a time")[:-9])
        await asyncio.sleep(0.05)
        exchange.cut()

    async with bench(script) as (client, server):
        assert isinstance(await failure(client), UpstreamCut)
        assert client.text == "Once upon"
        assert len(server.exchanges) == 1, "after the first token nothing is tried again"


@pytest.mark.parametrize("last", [b"", b"data: {", piece("b").rstrip(b"\n")])
async def test_an_orderly_end_without_a_finish_is_a_cut(last: bytes) -> None:
    async with bench(says(piece("a"), *([last] if last else []))) as (client, _):
        assert isinstance(await failure(client), UpstreamCut)
        assert client.text in ("a", "ab")


async def test_a_cut_before_the_first_token_is_tried_again() -> None:
    async def cut_before_the_answer(exchange: Exchange) -> None:
        exchange.cut()

    async def cut_after_the_head(exchange: Exchange) -> None:
        await exchange.start()
        await exchange.chunk(piece(""))
        exchange.cut()

    async with bench(cut_before_the_answer, cut_after_the_head, reply("a")) as (client, _):
        await client.run()
        assert client.text == "a"
        assert client.counters.upstream_retries == 2


@pytest.mark.parametrize("status", [500, 502, 503, 504, 529, 429])
async def test_a_busy_server_is_tried_again(status: int) -> None:
    """[U5]"""
    async with bench(refuses(status), refuses(status), reply("a")) as (client, server):
        await client.run()
        assert client.text == "a"
        assert len(server.exchanges) == 3
        assert client.counters.upstream_errors == {}


async def test_tries_are_bounded() -> None:
    async with bench(refuses(500, {"error": {"message": "out of memory"}})) as (client, server):
        error = await failure(client)
        assert isinstance(error, UpstreamRefused)
        assert (error.status, str(error)) == (500, "The model server local refused (500): out of memory")
        assert len(server.exchanges) == 3


@pytest.mark.parametrize("wait", ["0.2", "date"])
async def test_retry_after_is_obeyed(wait: str) -> None:
    """[U5]"""
    if wait == "date":
        # Whole seconds: a date of two seconds from now is between one and two away.
        wait = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 2))
    policy = UpstreamPolicy(first_token_timeout_s=10, retry_pause_s=0.01)
    async with bench(refuses(429, Retry_After=wait), reply("a"), policy=policy) as (client, _):
        began_s = time.monotonic()
        await client.run()
        assert time.monotonic() - began_s >= 0.2


async def test_a_retry_after_past_the_deadline_is_told_at_once() -> None:
    refusal = {"error": {"message": "Rate limit reached"}}
    async with bench(refuses(429, refusal, Retry_After="3600"), reply("never")) as (client, server):
        error = await failure(client)
        assert isinstance(error, UpstreamRefused)
        assert (error.status, error.retry_after_s, error.message) == (429, 3600, "Rate limit reached")
        assert len(server.exchanges) == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422, 501, 307])
async def test_a_refusal_is_final(status: int) -> None:
    """[U5, U8]"""
    async with bench(refuses(status, {"detail": "no"}, Location="/elsewhere"), reply("never")) as (client, server):
        error = await failure(client)
        assert isinstance(error, UpstreamRefused)
        assert error.status == status
        assert len(server.exchanges) == 1


async def test_what_a_server_writes_is_cut_escaped_and_searched_for_the_key() -> None:
    """[U4, U8]"""
    message = f"Incorrect API key provided: {KEY}\r\n\x1b[31m" + "x" * 5000
    async with bench(refuses(401, {"error": {"message": message}})) as (client, _):
        said = str(await failure(client))
        assert KEY not in said
        assert "[hidden]\\r\\n\\x1b[31m" in said
        assert len(said) < 400


async def test_a_huge_refusal_is_not_read_to_its_end() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 400 Bad\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            await exchange.send(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")

    async with bench(script) as (client, _):
        assert isinstance(await failure(client), UpstreamRefused)


async def test_an_error_inside_the_stream_ends_it() -> None:
    failed = b'data: {"error":{"message":"GPU lost","code":500}}\n\n'
    async with bench(says(piece("Once"), failed, piece("never"))) as (client, server):
        error = await failure(client)
        assert isinstance(error, UpstreamRefused)
        assert (error.status, error.message, client.text) == (500, "GPU lost", "Once")
        assert len(server.exchanges) == 1


async def test_an_error_as_the_first_event_is_tried_again_when_it_is_transient() -> None:
    overloaded = b'data: {"error":{"message":"overloaded","code":503}}\n\n'
    async with bench(says(overloaded), reply("a")) as (client, _):
        await client.run()
        assert client.text == "a"


@pytest.mark.parametrize(
    ("script", "what"),
    [
        (refuses(200, "x" * (2 << 20)), "it is too large"),
        (refuses(200, ["what?"]), "no chat completion in JSON"),
        (says(b"data: <html>\n\n"), "no chat completion in JSON"),
        (says(b"data: " + b"x" * (2 << 20)), "more than 1048576 bytes"),
        (says(*[b"data: " + b"x" * 65536 + b"\n"] * 20), "more than 1048576 bytes"),
    ],
)
async def test_what_is_no_completion_is_bad(script: Script, what: str) -> None:
    async with bench(script) as (client, server):
        error = await failure(client)
        assert isinstance(error, UpstreamBad)
        assert what in str(error)
        assert len(server.exchanges) == 1


async def test_a_wrong_type_and_a_packed_answer_are_bad() -> None:
    async def page(exchange: Exchange) -> None:
        await exchange.head(200, b"<html>", "text/html; charset=utf-8")

    async def packed(exchange: Exchange) -> None:
        await exchange.head(200, b"\x1f\x8b", "text/event-stream", Content_Encoding="gzip")

    async def babble(exchange: Exchange) -> None:
        await exchange.send(b"220 mail ready\r\n\r\n")

    for script, what in ((page, "its type is text/html"), (packed, "compressed"), (babble, "not HTTP")):
        async with bench(script) as (client, _):
            error = await failure(client)
            assert isinstance(error, UpstreamBad)
            assert what in str(error)


async def test_nobody_there_is_unreachable_after_retries() -> None:
    async with SseServer(silent) as server:
        url = server.url
    client = Bench(url, QUICK)
    assert isinstance(await failure(client), UpstreamUnreachable)
    assert client.counters.upstream_retries == 2
    await client.upstreams.close()


async def test_a_server_that_comes_back_is_found() -> None:
    async with SseServer(silent) as server:
        port = server.port
    client = Bench(server.url, UpstreamPolicy(retries_max=100, retry_pause_s=0.05))
    running = asyncio.create_task(client.run())
    await until(lambda: client.counters.upstream_retries > 0)
    again = SseServer(reply("a"))
    again.port = port
    async with again:
        await running
        assert client.text == "a"
        await client.upstreams.close()


async def hang_after_the_head(exchange: Exchange) -> None:
    await exchange.start()
    await exchange.chunk(piece(""))
    await exchange.hang()


async def keep_alive_for_ever(exchange: Exchange) -> None:
    await exchange.start()
    while True:
        await exchange.chunk(b": still here\n\n")
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("script", [silent, hang_after_the_head, keep_alive_for_ever])
async def test_no_first_token_is_a_timeout_and_not_tried_again(script: Script) -> None:
    policy = UpstreamPolicy(first_token_timeout_s=0.2, token_timeout_s=0.05)
    async with bench(script, policy=policy) as (client, server):
        error = await failure(client)
        assert isinstance(error, UpstreamTimeout)
        assert (error.phase, error.after_s) == ("first-token", 0.2)
        await asyncio.wait_for(server.exchanges[0].closed.wait(), GUARD_S)
        assert len(server.exchanges) == 1


@pytest.mark.parametrize("then", [silent, keep_alive_for_ever])
async def test_silence_in_the_middle_is_a_timeout(then: Script) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.start()
        await exchange.chunk(piece("Once"))
        if then is silent:
            await exchange.hang()
        while True:
            await exchange.chunk(b": still here\n\n")
            await asyncio.sleep(0.02)

    async with bench(script) as (client, server):
        error = await failure(client)
        assert isinstance(error, UpstreamTimeout)
        assert (error.phase, client.text) == ("between-tokens", "Once")
        await asyncio.wait_for(server.exchanges[0].closed.wait(), GUARD_S)


async def test_a_slow_model_is_no_silent_one() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.start()
        for letter in "abcdefgh":
            await asyncio.sleep(0.2)
            await exchange.chunk(piece(letter))
        await exchange.chunk(DONE)
        await exchange.end()

    policy = UpstreamPolicy(first_token_timeout_s=10, token_timeout_s=1.5)
    async with bench(script, policy=policy) as (client, _):
        await client.run()
        assert client.text == "abcdefgh"


# -- leaving ---------------------------------------------------------------------------------------------------------


async def test_cancelling_closes_the_connection_at_once() -> None:
    """[U6]"""
    async def script(exchange: Exchange) -> None:
        await exchange.start()
        await exchange.chunk(piece("Once"))
        await exchange.hang()

    for stage in (silent, script):
        async with bench(stage, policy=UpstreamPolicy()) as (client, server):
            running = asyncio.create_task(client.run())
            exchange = await server.exchange()
            await asyncio.sleep(0.05)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            await asyncio.wait_for(exchange.closed.wait(), GUARD_S)


async def test_cancelling_while_it_waits_to_try_again() -> None:
    policy = UpstreamPolicy(retry_pause_s=100)
    async with bench(refuses(500), policy=policy) as (client, server):
        running = asyncio.create_task(client.run())
        await server.exchange()
        await asyncio.sleep(0.05)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running


async def test_closing_the_generator_closes_the_connection() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.start()
        await exchange.chunk(piece("Once"))
        await exchange.hang()

    async with bench(script) as (client, server):
        deltas = client.upstreams.stream("local", BODY)
        assert await anext(deltas) == Delta("Once")
        await deltas.aclose()
        await asyncio.wait_for(server.exchanges[0].closed.wait(), GUARD_S)


async def test_an_unknown_name_is_refused_before_anything_is_sent() -> None:
    async with bench(reply("a")) as (client, server):
        with pytest.raises(UnknownUpstream, match="there are local"):
            await anext(client.upstreams.stream("other", BODY))
        assert server.exchanges == []


async def test_the_key_is_in_no_log_line_and_no_error() -> None:
    """[U8]"""
    with caught_logs() as lines:
        echo = refuses(429, {"error": {"message": f"Bearer {KEY} is over its limit"}})
        async with bench(echo) as (client, server):
            error = await failure(client)
            assert server.exchanges[0].headers["authorization"].endswith(KEY)
        said = lines.getvalue() + str(error) + repr(error) + repr(error.__cause__) + repr(error.__context__)
    assert "upstream-retry" in said
    assert KEY not in said
    assert "127.0.0.1" not in said
    assert json.loads(lines.getvalue().splitlines()[0])["upstream"] == "local"
