"""`generate`: the server streams a reply from a model server, which may fail at every stage, as may we."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support.server import Process, TabClient, leave_all, new_session, running
from tests.support.sse_server import DONE, Exchange, Script, SseServer, piece, refuses, reply, says, silent
from tests.support.waiting import GUARD_S, until

CHAT = "character:Alice/First meeting"
BODY = {"model": "scripted", "temperature": 0.7, "messages": [{"role": "user", "content": "Tell me."}]}
TURN = {"name": "User", "is_user": True, "mes": "Tell me."}
REPLY = {"name": "Alice", "is_user": False}
KEY = "sk-sesame-0123456789"
Frame = dict[str, Any]


async def generate(tab: TabClient, generation: str = "g1", **fields: Any) -> Frame:
    given: Frame = {
        "base": "*", "generation": generation, "upstream": "local", "body": BODY, "messages": [TURN], "reply": REPLY,
    }
    return await tab.write("generate", CHAT, **{**given, **fields})


async def ended(tab: TabClient, generation: str = "g1") -> tuple[str, Frame]:
    """The text that a tab heard as deltas, and the frame that ended the generation."""
    text = ""
    while True:
        frame = await tab.raw.receive()
        if frame.get("generation") != generation:
            continue
        if frame["type"] == "generation-delta":
            assert frame["offset"] == len(text.encode("utf-16-le")) // 2
            text += frame["text"]
        elif frame["type"] in ("generation-stored", "generation-done"):
            return text, frame


async def heard(tab: TabClient, length: int, generation: str = "g1") -> str:
    """The text of deltas until a tab has this much."""
    text = ""
    while len(text) < length:
        frame = await tab.raw.receive_until(type="generation-delta", generation=generation)
        text += frame["text"]
    return text


async def messages(tab: TabClient) -> list[Frame]:
    await tab.ask("close", chat=CHAT)
    opened = await tab.open(CHAT)
    kept: list[Frame] = opened["messages"]
    return kept


def once_upon(go: asyncio.Event) -> Script:
    """A model that writes "Once", and the rest when it may."""

    async def script(exchange: Exchange) -> None:
        await exchange.start()
        await exchange.chunk(piece("Once"))
        await go.wait()
        await exchange.chunk(piece(" upon", finish="stop"))
        await exchange.end()

    return script


@contextlib.asynccontextmanager
async def room(
    data: Path, *scripts: Script, **settings: Any
) -> AsyncIterator[tuple[Any, SseServer, TabClient, TabClient]]:
    """A server with a scripted model, and two tabs that have the chat open."""
    async with SseServer(*scripts) as model:
        values = {"upstream_token_timeout_s": 0.5, "upstream_first_token_timeout_s": 1.0, **settings}
        async with running(data, upstream=[f"local={model.url}"], **values) as app:
            mine, other = await TabClient.join(app.urls[0]), await TabClient.join(app.urls[0])
            await mine.open(CHAT, create=True)
            await other.open(CHAT)
            yield app, model, mine, other


async def test_a_reply_is_streamed_to_every_tab_and_stored(tmp_path: Path) -> None:
    """[U1, U2]"""
    thoughts = [piece(reasoning="Hm. "), piece(reasoning="A tale.")]
    events = [*thoughts, *(piece(text) for text in ("Once ", "upon ", "a 😀")), DONE]
    async with room(tmp_path / "data", says(*events)) as (app, model, mine, other):
        ack = await generate(mine)
        assert ack["type"] == "ack"
        for tab in (mine, other):
            text, last = await ended(tab)
            assert (text, last["type"], last["state"]) == ("Once upon a 😀", "generation-stored", "stored")
            assert last["message"] == ack["message"]
        asked = model.exchanges[0].json
        assert asked == {**BODY, "stream": True}
        turn, answer = await messages(other)
        assert turn["mes"] == "Tell me."
        assert (answer["id"], answer["mes"], answer["name"]) == (ack["message"], "Once upon a 😀", "Alice")
        assert answer["extra"]["reasoning"] == "Hm. A tale."
        assert app.counters.upstream_requests == 1


async def test_the_stored_reply_tells_how_it_was_made(tmp_path: Path) -> None:
    """[T21, T22] In the file, as SillyTavern would have written it."""
    usage = {"prompt_tokens": 7, "completion_tokens": 4, "total_tokens": 11}
    counted = b'data: {"choices":[],"usage":' + json.dumps(usage).encode() + b"}\n\n"
    events = [piece(reasoning="Hm."), piece("Once"), piece(" upon", finish="length"), counted, DONE]
    data = tmp_path / "data"
    async with room(data, says(*events)) as (_, _, mine, _):
        await generate(mine)
        await ended(mine)
    file = data / "default-user/chats/Alice/First meeting.jsonl"
    answer = json.loads(file.read_bytes().split(b"\n")[2])
    took_ms = answer["extra"].pop("reasoning_duration")
    assert isinstance(took_ms, int)
    assert took_ms >= 0
    assert answer["extra"] == {
        "api": "local", "model": "scripted", "reasoning": "Hm.", "reasoning_type": "model", "token_count": 4,
        "finish_reason": "length", "usage": usage,
    }
    began, finished = (datetime.fromisoformat(answer[key]) for key in ("gen_started", "gen_finished"))
    assert datetime.now(UTC) - timedelta(minutes=1) < began <= finished
    assert answer["send_date"] == answer["gen_finished"]


async def test_the_turn_is_durable_before_the_model_is_asked(tmp_path: Path) -> None:
    """[U1] (R29)"""
    seen: list[int] = []

    async def script(exchange: Exchange) -> None:
        seen.append(len((await reader.open(CHAT))["messages"]))
        await reply("yes")(exchange)

    async with room(tmp_path / "data", script) as (app, _, mine, _):
        reader = await TabClient.join(app.urls[0])
        await generate(mine)
        assert (await ended(mine))[0] == "yes"
        assert seen == [1]


async def test_a_request_that_is_sent_again_asks_the_model_once(tmp_path: Path) -> None:
    """[U1]"""
    async with room(tmp_path / "data", reply("one")) as (_, model, mine, _):
        first = await generate(mine)
        await ended(mine)
        mine.ops[CHAT] -= 1
        again = await generate(mine)
        assert again["duplicate"]
        assert (again["version"], again["message"]) == (first["version"], first["message"])
        await asyncio.sleep(0.1)
        assert len(model.exchanges) == 1
        assert len(await messages(mine)) == 2


async def test_swipes_and_continuations(tmp_path: Path) -> None:
    """[U1]"""
    async with room(tmp_path / "data", reply("one"), reply("two"), reply(" and three")) as (_, _, mine, other):
        message = (await generate(mine))["message"]
        await ended(mine)
        target = {"kind": "swipe", "message": message}
        await generate(mine, "g2", target=target, messages=[], reply={}, supersedes="g1")
        assert (await ended(mine, "g2"))[1]["swipe"] == 1
        await generate(mine, "g3", target={**target, "kind": "continue"}, messages=[], reply={})
        await ended(mine, "g3")
        answer = (await messages(other))[1]
        assert answer["mes"] == "two and three"
        assert answer["swipes"] == ["one", "two and three"]


async def cut_in_the_middle(exchange: Exchange) -> None:
    await exchange.start()
    await exchange.chunk(piece("Once"))
    await exchange.chunk(piece(" upon")[:-12])
    await asyncio.sleep(0.05)
    exchange.cut()


async def hang_in_the_middle(exchange: Exchange) -> None:
    await exchange.start()
    await exchange.chunk(piece("Once"))
    await exchange.hang()


@pytest.mark.parametrize(
    ("script", "code", "text"),
    [
        (cut_in_the_middle, "upstream-cut", "Once"),
        (hang_in_the_middle, "upstream-timeout", "Once"),
        (says(piece("Once"), b'data: {"error":{"message":"lost","code":500}}\n\n'), "upstream-refused", "Once"),
        (says(piece("Once"), b"data: <html>\n\n"), "upstream-bad", "Once"),
        (refuses(401, {"error": {"message": f"Bad key {KEY}"}}), "upstream-refused", ""),
        (silent, "upstream-timeout", ""),
    ],
)
async def test_a_model_that_fails_is_reported_and_its_text_kept(
    tmp_path: Path, script: Script, code: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """[U4, U8]"""
    monkeypatch.setenv("TELLBACK_UPSTREAM_LOCAL_KEY", KEY)
    async with room(tmp_path / "data", script, reply("Again.")) as (_, _, mine, other):
        await generate(mine)
        for tab in (mine, other):
            said, last = await ended(tab)
            assert (said, last["state"], last["error"]["code"]) == (text, "failed", code)
            assert last["type"] == ("generation-stored" if text else "generation-done")
            assert KEY not in str(last)
        assert [message["mes"] for message in await messages(mine)] == ["Tell me.", *([text] if text else [])]
        # The chat goes on.
        await generate(mine, "g2", messages=[], supersedes="g1")
        assert (await ended(mine, "g2"))[0] == "Again."


async def test_any_tab_stops_a_model(tmp_path: Path) -> None:
    """[U6]"""
    async with room(tmp_path / "data", hang_in_the_middle, upstream_token_timeout_s=60) as (_, model, mine, other):
        await generate(mine)
        await heard(mine, 4)
        cancelled = await other.write("generation-cancel", CHAT, generation="g1")
        assert cancelled["type"] == "ack"
        await asyncio.wait_for(model.exchanges[0].closed.wait(), GUARD_S)
        assert (await ended(mine))[1]["state"] == "cancelled"
        assert [message["mes"] for message in await messages(mine)] == ["Tell me.", "Once"]


async def test_the_server_goes_on_when_all_tabs_leave(tmp_path: Path) -> None:
    """[U3]"""
    go = asyncio.Event()
    async with room(tmp_path / "data", once_upon(go), idle_s=0.05) as (app, _, mine, _):
        session = mine.session
        await generate(mine)
        await heard(mine, 4)
        await leave_all()
        await asyncio.sleep(0.3)
        go.set()
        await until(lambda: app._hub.producers.count == 0)
        back = await TabClient.join(app.urls[0], session)
        opened = await back.open(CHAT)
        assert [message["mes"] for message in opened["messages"]] == ["Tell me.", "Once upon"]
        offered = opened["generations"]
        assert [(one["id"], one["state"]) for one in offered] == [("g1", "stored")]


async def test_a_late_tab_hears_the_text_so_far_and_then_the_rest(tmp_path: Path) -> None:
    """[U3]"""
    go = asyncio.Event()
    async with room(tmp_path / "data", once_upon(go)) as (app, _, mine, _):
        await generate(mine)
        await heard(mine, 4)
        late = await TabClient.join(app.urls[0])
        opened = await late.open(CHAT)
        assert [(one["text"], one["offset"], one["state"]) for one in opened["generations"]] == [("Once", 4, "running")]
        go.set()
        frame = await late.raw.receive_until(type="generation-delta", generation="g1")
        assert (frame["offset"], frame["text"]) == (4, " upon")


async def test_only_the_server_sends_the_text_of_what_it_produces(tmp_path: Path) -> None:
    """[U3]"""
    async with room(tmp_path / "data", hang_in_the_middle, upstream_token_timeout_s=60) as (_, _, mine, _):
        await generate(mine)
        await heard(mine, 4)
        refusal = await mine.ask("generation-delta", chat=CHAT, generation="g1", offset=4, text="x")
        assert refusal["code"] == "not-producer"
        refusal = await mine.write("generation-end", CHAT, generation="g1")
        assert refusal["code"] == "not-producer"


async def test_unknown_model_servers(tmp_path: Path) -> None:
    """[U9, T19]"""
    async with room(tmp_path / "data", reply("a")) as (_, model, mine, _):
        refusal = await generate(mine, upstream="other")
        assert (refusal["code"], refusal["pointer"]) == ("upstream-unknown", "/upstream")
        assert "local" in refusal["message"]
        assert model.exchanges == []
        assert len(await messages(mine)) == 0
    async with running(tmp_path / "other") as app:
        tab = await TabClient.join(app.urls[0])
        await tab.open(CHAT, create=True)
        assert (await generate(tab))["code"] == "unsupported"


async def test_ten_thousand_tokens_are_stored_exactly(tmp_path: Path) -> None:
    """[U1]"""

    async def script(exchange: Exchange) -> None:
        await exchange.start()
        for _ in range(100):
            await exchange.send(b"".join(b"%x\r\n%b\r\n" % (len(event), event) for event in [piece("x")] * 100))
        await exchange.chunk(DONE)
        await exchange.end()

    async with room(tmp_path / "data", script) as (_, _, mine, other):
        await generate(mine)
        assert (await ended(mine))[0] == "x" * 10_000
        assert (await messages(other))[1]["mes"] == "x" * 10_000


@pytest.mark.parametrize("end", ["kill", "stop"])
def test_a_server_that_ends_in_the_middle_leaves_an_orphan_with_its_text(tmp_path: Path, end: str) -> None:
    """[U7, U8]"""
    asyncio.run(ends_in_the_middle(tmp_path, end))
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert KEY.encode() not in written
    assert b"temperature" not in written, "prompts are not stored"


async def ends_in_the_middle(tmp_path: Path, end: str) -> None:
    session = new_session()
    async with SseServer(hang_in_the_middle, reply("Again.")) as model:
        server = Process(
            tmp_path / "data", "--upstream", f"local={model.url}", environment={"TELLBACK_UPSTREAM_LOCAL_KEY": KEY}
        )
        async with server:
            tab = await TabClient.join(server.url, session)
            await tab.open(CHAT, create=True)
            await generate(tab)
            await heard(tab, 4)

            async def is_durable(tab: TabClient = tab) -> bool:
                return bool((await tab.ask("generation-attach", chat=CHAT, generation="g1"))["durable"] >= 4)

            await until(is_durable)
            await (server.kill() if end == "kill" else server.stop())
            await asyncio.wait_for(model.exchanges[0].closed.wait(), GUARD_S)
            await server.start()
            back = await TabClient.join(server.url, session)
            opened = await back.open(CHAT)
            if len(opened["messages"]) == 1:
                assert (await ended(back))[1]["state"] == "orphaned"
            assert [message["mes"] for message in await messages(back)] == ["Tell me.", "Once"]
            await generate(back, "g2", supersedes="g1", messages=[])
            assert (await ended(back, "g2"))[0] == "Again."
            assert model.exchanges[0].headers["authorization"].endswith(KEY)


async def test_a_chat_that_is_deleted_closes_the_connection_to_the_model(tmp_path: Path) -> None:
    """[U6]"""
    async with room(tmp_path / "data", hang_in_the_middle, upstream_token_timeout_s=60) as (app, model, mine, _):
        await generate(mine)
        await heard(mine, 4)
        head = (await mine.open(CHAT))["head"]
        deleted = await mine.write("chat-delete", CHAT, base=head["integrity"])
        assert deleted["type"] == "ack", deleted
        await asyncio.wait_for(model.exchanges[0].closed.wait(), GUARD_S)
        assert app._hub.producers.count == 0


async def test_a_chat_that_is_renamed_in_the_middle_gets_the_whole_reply(tmp_path: Path) -> None:
    """[U3]"""
    go = asyncio.Event()
    async with room(tmp_path / "data", once_upon(go)) as (_, _, mine, other):
        await generate(mine)
        await heard(mine, 4)
        opened = await other.open(CHAT)
        renamed = await other.write("chat-rename", CHAT, base=opened["head"]["integrity"], to="Another name")
        assert renamed["type"] == "ack", renamed
        go.set()
        assert (await mine.raw.receive_until(type="generation-stored", generation="g1"))["state"] == "stored"
        reopened = await other.open("character:Alice/Another name")
        assert [message["mes"] for message in reopened["messages"]] == ["Tell me.", "Once upon"]


@pytest.mark.parametrize("stage", ["asked", "head"])
async def test_a_kill_before_the_first_token_leaves_the_turn_and_no_reply(tmp_path: Path, stage: str) -> None:
    """[U1, U7]"""

    async def head_only(exchange: Exchange) -> None:
        await exchange.start()
        await exchange.hang()

    session = new_session()
    async with (
        SseServer(silent if stage == "asked" else head_only, reply("Again.")) as model,
        Process(tmp_path / "data", "--upstream", f"local={model.url}") as server,
    ):
        tab = await TabClient.join(server.url, session)
        await tab.open(CHAT, create=True)
        assert (await generate(tab))["type"] == "ack"
        await model.exchange()
        await server.kill()
        await server.start()
        back = await TabClient.join(server.url, session)
        await back.open(CHAT)

        async def is_orphaned() -> bool:
            asked = await back.ask("state-get", owner={"chat": CHAT}, namespaces=["tellback_generations"])
            return "orphaned" in str(asked)

        await until(is_orphaned)
        assert [message["mes"] for message in await messages(back)] == ["Tell me."]
        assert len(model.exchanges) == 1, "what was cut off is not asked again by itself"
