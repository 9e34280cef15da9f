"""The browser closes, the producer dies, the server is killed: each at every stage of a reply, for every target.

What always holds then: what was told durable is there, once; no chat stays with a generation that runs; every tab has
the same statuses; the chat goes on.

Of the kills of the server each moment is tried with `generate` and one of the other kinds; with all of them when
TELLBACK_GENERATION_KILLS is "all".
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.scenarios.test_generations import Frame, Listener, delta, start, two
from tests.support.forked_server import ForkedServer
from tests.support.oracle import LOST
from tests.support.server import TabClient, new_session, texts
from tests.support.shared import CHECKOUT
from tests.support.sse_server import DONE, Exchange, SseServer, piece
from tests.support.waiting import GUARD_S, until

PIECES = ["It ", "was a dark \U0001f600 ", "night, ", "again ", "again."]
TEXT = "".join(PIECES)
UNITS = len(TEXT.encode("utf-16-le")) // 2
TURNS = [{"id": "u1", "name": "User", "is_user": True, "mes": "hi"}, {"id": "a1", "name": "Alice", "mes": "Hello."}]
KINDS = ("message", "swipe", "continue", "generate")
"""The last one is ended by the next start."""
WHOLE = {
    "message": ["hi", "Hello.", TEXT], "generate": ["hi", "Hello.", TEXT], "swipe": ["hi", TEXT],
    "continue": ["hi", "Hello." + TEXT],
}


def target(kind: str) -> Frame:
    return {"kind": kind, "message": "a1"} if kind in ("swipe", "continue") else {"kind": "message"}


def so_far(kind: str, said: list[str]) -> str:
    """What of the text a chat of this kind holds; fails when the rest is not as it was."""
    before = "Hello." if kind in ("continue", "message", "generate") else ""
    assert said[0] == "hi"
    assert len(said) <= len(WHOLE[kind])
    if kind in ("message", "generate"):
        assert said[1] == "Hello."
        text = said[2] if len(said) == 3 else ""
    elif kind == "swipe":
        text = "" if said[1] == "Hello." else said[1]
    else:
        assert said[1].startswith(before)
        text = said[1].removeprefix(before)
    assert TEXT.startswith(text)
    return text


async def chat_with_turns(url: str, chat: str, session: str) -> TabClient:
    tab = await TabClient.join(url, session)
    await tab.open(chat, create=True)
    assert (await tab.write("append", chat, base="*", messages=TURNS))["type"] == "ack"
    return tab


async def statuses(tab: TabClient, chat: str) -> dict[str, str]:
    """What the document of the generations says, as any tab reads it."""
    answer = await tab.ask("state-get", owner={"chat": chat}, namespaces=["tellback_generations"])
    document = answer["states"]["tellback_generations"]
    return {one_id: one["state"] for one_id, one in document["data"].items()} if document else {}


async def settled(tabs: list[TabClient], chat: str) -> tuple[list[str], str]:
    """When no generation runs any more: what the chat says and how g1 ended, the same in every tab."""

    async def is_over() -> bool:
        return "running" not in (await statuses(tabs[0], chat)).values()

    await until(is_over)
    seen: list[tuple[list[str], dict[str, str]]] = []
    for tab in tabs:
        await tab.ask("close", chat=chat)
        opened = await tab.open(chat)
        assert all(one["state"] != "running" for one in opened["generations"])
        seen.append((texts(opened["messages"]), await statuses(tab, chat)))
    assert all(one == seen[0] for one in seen)
    said, states = seen[0]
    return said, states.get("g1", "")


async def goes_on(tab: TabClient, chat: str) -> None:
    """Another reply in the same place can begin, and ends."""
    assert (await start(tab, "g2", chat, messages=[], supersedes="g1"))["type"] == "ack"
    assert (await tab.write("generation-cancel", chat, generation="g2"))["state"] == "cancelled"


# -- the server is killed --------------------------------------------------------------------------------------------

MOMENTS = {
    "generation.after_start": "the start is on its way to the disk",
    "after-start": "the start was acknowledged",
    "generation.after_text": "the first text is here, and nowhere else",
    "generation.after_journal": "the first text is on its way to the disk",
    "after-durable": "the first text is durable, and was told",
    "before-end": "all of the text was heard",
    "generation.after_end": "the end is on its way to the disk",
    "generation.before_tell": "the end is durable, and nobody knows",
    "after-stored": "the end was told, and nobody acknowledged it",
}


def kinds_of(moment: str) -> tuple[str, ...]:
    if os.environ.get("TELLBACK_GENERATION_KILLS") == "all":
        return KINDS
    return KINDS[list(MOMENTS).index(moment) % 3], "generate"


class Reply:
    """One reply in one chat, and what was told of it before the server died."""

    def __init__(self, server: ForkedServer, chat: str, kind: str, moment: str) -> None:
        self.server = server
        self.chat = chat
        self.kind = kind
        self.moment = moment
        self.session = new_session()
        self.tab: Any = None
        self.op = 0
        self.told = 0
        """Units that were told durable."""
        self.is_stored = False
        """`generation-stored` was told."""

    async def begin(self) -> Frame:
        fields: Frame = {"chat": self.chat, "op": self.op, "base": "*", "generation": "g1"}
        if self.kind == "generate":
            return await self.tab.ask("generate", upstream="local", body={"model": "m"}, **fields)
        return await self.tab.ask("generation-start", target=target(self.kind), **fields)

    async def send(self, offset: int) -> None:
        """The text from `offset` on, piece by piece."""
        place = 0
        for one in PIECES:
            units = len(one.encode("utf-16-le")) // 2
            if place >= offset:
                await delta(self.tab, place, one, chat=self.chat)
            elif place + units > offset:
                await delta(self.tab, offset, one.encode("utf-16-le")[2 * (offset - place) :].decode("utf-16-le"),
                            chat=self.chat)
            place += units

    async def end(self) -> Frame:
        return await self.tab.ask("generation-end", chat=self.chat, op=self.op + 1, generation="g1", length=UNITS)

    async def wait_durable(self, units: int) -> None:
        while self.told < units:
            if self.kind == "generate":
                await asyncio.sleep(0.02)
                answer = await self.tab.ask("generation-attach", chat=self.chat, generation="g1")
            else:
                answer = await self.tab.raw.receive_until(type="generation-delta", generation="g1")
            self.told = max(self.told, answer["durable"])

    async def until_killed(self, finish: asyncio.Event) -> None:
        """Go on until the moment at which the server is killed, by a failpoint or from here."""
        assert (await self.begin())["type"] == "ack"
        if self.moment == "after-start":
            await self.server.kill()
        if self.moment == "after-durable":
            if self.kind != "generate":
                await delta(self.tab, 0, PIECES[0], chat=self.chat)
            await self.wait_durable(len(PIECES[0]))
            await self.server.kill()
        if self.kind != "generate":
            await self.send(0)
        await self.wait_durable(UNITS)
        if self.moment == "before-end":
            await self.server.kill()
        finish.set()
        if self.kind != "generate":
            await self.end()
        await self.tab.raw.receive_until(type="generation-stored")
        self.is_stored = True
        await self.server.kill()

    async def come_back(self) -> None:
        """What an SDK does: open, send the start again when it was not answered, send the rest, end."""
        opened = await self.tab.open(self.chat)
        if opened["next_op"] <= self.op:
            assert (await self.begin())["type"] == "ack"
            opened = await self.tab.open(self.chat)
        (listed,) = opened["generations"] or [{"state": ""}]
        if self.kind == "generate" or listed["state"] != "running":
            return
        assert listed["durable"] == listed["offset"] >= self.told
        assert TEXT.startswith(listed["text"])
        await self.send(listed["offset"])
        ended = await self.end()
        assert ended["type"] == "ack", ended


@pytest.mark.parametrize("moment", MOMENTS)
async def test_R10_R13_the_server_is_killed(tmp_path: Path, moment: str) -> None:
    """[T1, T7, T9, T11, T15, U1, U7]"""
    finish = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await exchange.start()
        for one in PIECES:
            await exchange.chunk(piece(one))
            await asyncio.sleep(0.3 if moment == "after-durable" and one == PIECES[0] else 0)
        await finish.wait()
        await exchange.chunk(DONE)
        await exchange.end()

    async with (
        SseServer(script) as model,
        ForkedServer(tmp_path / "data", upstream=[f"local={model.url}"]) as server,
    ):
        replies = [Reply(server, f"character:Alice/{kind}", kind, moment) for kind in kinds_of(moment)]
        for reply in replies:
            tab = await chat_with_turns(server.url, reply.chat, reply.session)
            reply.op = tab.ops[reply.chat] + 1
        await server.stop()
        server.settings["failpoints"] = f"{moment}=kill@1" if "." in moment else ""
        for reply in replies:
            finish.clear()
            await server.start()
            reply.tab = await TabClient.join(server.url, reply.session)
            await reply.tab.open(reply.chat)
            with contextlib.suppress(*LOST):
                async with asyncio.timeout(5):
                    await reply.until_killed(finish)
            if "." in moment:
                await server.ended()
        server.settings["failpoints"] = ""
        await server.start()
        finish.set()
        for reply in replies:
            await check(server, reply)


async def check(server: ForkedServer, reply: Reply) -> None:
    """After the restart and the return of the session that began it."""
    kind, moment, chat = reply.kind, reply.moment, reply.chat
    reply.tab, other = await TabClient.join(server.url, reply.session), await TabClient.join(server.url)
    await other.open(chat)
    await reply.come_back()
    said, state = await settled([reply.tab, other], chat)
    text = so_far(kind, said)
    assert len(text.encode("utf-16-le")) // 2 >= reply.told
    is_over = reply.is_stored or moment == "generation.before_tell"
    if kind != "generate" or is_over:
        assert (text, said, state) == (TEXT, WHOLE[kind], "stored")
    elif state == "stored":
        # The end was durable after all, or nothing of the start was, and it was asked again.
        assert moment in ("generation.after_end", "generation.after_start")
        assert text == TEXT
    else:
        assert state == "orphaned"
    (offered,) = (await reply.tab.open(chat))["generations"]
    assert (offered["id"], offered["state"]) == ("g1", state), "a result is offered until it is acknowledged"
    assert offered.get("stored", False) is bool(text)
    await goes_on(other, chat)


# -- the producer is killed ------------------------------------------------------------------------------------------


async def producer_process(url: str, session: str, chat: str, kind: str, stage: str) -> asyncio.subprocess.Process:
    """A producer in a process of its own, when it has reached the stage."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.support.producing", url, session, chat, json.dumps(target(kind)), stage, *PIECES,
        cwd=CHECKOUT, stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    async with asyncio.timeout(GUARD_S):
        assert (await process.stdout.readline()).decode().strip() == stage
    return process


@pytest.mark.parametrize("stage", ["started", "heard", "durable", "ended", "stored"])
async def test_R13_the_producer_is_killed(tmp_path: Path, stage: str) -> None:
    """[T7, T9, T15] Every tab hears how it ended, the status is right, and the session is offered the result."""
    async with two(tmp_path, generation_lease_s=0.2) as (app, tab, watcher):
        url = app.urls[0]
        sessions = {kind: new_session() for kind in KINDS[:-1]}
        chats = {kind: f"character:Alice/{kind}" for kind in sessions}
        for kind, session in sessions.items():
            await (await chat_with_turns(url, chats[kind], session)).close()
            await watcher.open(chats[kind])
        processes = await asyncio.gather(*(
            producer_process(url, session, chats[kind], kind, stage) for kind, session in sessions.items()
        ))
        if stage == "heard":
            for chat in chats.values():
                await hears(watcher, chat, UNITS)
        for process in processes:
            process.kill()
            await process.wait()
        for kind, chat in chats.items():
            over = "generation-done" if stage == "started" else "generation-stored"
            await watcher.raw.receive_until(type=over, chat=chat)
            said, state = await settled([watcher, tab], chat)
            assert state == ("stored" if stage in ("ended", "stored") else "orphaned")
            assert so_far(kind, said) == ("" if stage == "started" else TEXT)
            back = await TabClient.join(url, sessions[kind])
            (offered,) = (await back.open(chat))["generations"]
            assert (offered["id"], offered["state"]) == ("g1", state)
            await goes_on(tab, chat)


async def hears(watcher: TabClient, chat: str, units: int) -> None:
    """Until the tab has so much of the text."""
    while True:
        frame = await watcher.raw.receive_until(type="generation-delta", chat=chat)
        if frame["offset"] + len(frame["text"].encode("utf-16-le")) // 2 >= units:
            return


# -- the browser closes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
async def test_R06_R10_a_tab_that_closes_at_every_stage_and_comes_back_has_what_the_others_have(
    tmp_path: Path, kind: str
) -> None:
    """[T10, T13, T16, R1] By `since` and without; the tab that asked, and one that only looks."""
    gates = [asyncio.Event() for _ in PIECES]

    async def script(exchange: Exchange) -> None:
        await exchange.start()
        for one, gate in zip(PIECES, gates, strict=True):
            await gate.wait()
            await exchange.chunk(piece(one))
        await exchange.chunk(DONE)
        await exchange.end()

    async with SseServer(script) as model, two(tmp_path, upstream=[f"local={model.url}"]) as (app, mine, stays):
        url, chat = app.urls[0], f"character:Alice/{kind}"
        await chat_with_turns(url, chat, new_session())
        await mine.open(chat)
        await stays.open(chat)
        leaver = mine if kind == "generate" else await TabClient.join(url)
        opened = await leaver.open(chat)
        reply = Reply(None, chat, kind, "")  # type: ignore[arg-type]  # No server is killed here.
        reply.tab, reply.op = mine, mine.ops[chat] + 1
        assert (await reply.begin())["type"] == "ack"
        heard, known = "", Listener(stays)
        for one, gate in zip(PIECES, gates, strict=True):
            leaver.raw.abort()
            leaver = await TabClient.join(url, leaver.session)
            opened = await leaver.open(chat, since=opened["head"])
            (listed,) = opened["generations"]
            assert (listed["state"], listed["text"]) == ("running", heard)
            if kind == "generate":
                gate.set()
            else:
                await delta(mine, len(heard.encode("utf-16-le")) // 2, one, chat=chat)
            late = Listener(leaver, heard)
            heard += one
            assert (await late.until(len(heard))).text == (await known.until(len(heard))).text == heard
        leaver.raw.abort()
        if kind != "generate":
            assert (await reply.end())["type"] == "ack"
        await known.hear()
        leaver = await TabClient.join(url, leaver.session)
        assert (await leaver.open(chat, since=opened["head"]))["mode"] == "replay"
        assert await settled([stays, leaver], chat) == (WHOLE[kind], "stored")
