"""The browser SDK in real Chromium, on a real server: tabs of one profile, a Python client beside them."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, BrowserContext, Page, Route

from tellback_client import connect
from tellback_client.catching_up import caught_up
from tests.support import vectors
from tests.support.browser_sdk import FOLDER, built, chromium, opened, ran, served, tab, until
from tests.support.server import Process
from tests.support.waiting import GUARD_S

pytestmark = pytest.mark.asyncio(loop_scope="module")
CHAT = "group:Browsers"


@pytest.fixture(scope="module")
def pages() -> Iterator[str]:
    with served() as origin:
        yield origin


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser(pages: str) -> AsyncIterator[Browser]:
    async with chromium() as started:
        yield started


@pytest_asyncio.fixture(loop_scope="module")
async def context(browser: Browser, pages: str) -> AsyncIterator[BrowserContext]:
    """A profile of its own: tabs in it share what the browser keeps."""
    made = await browser.new_context(base_url=pages)
    yield made
    await made.close()


def folder(tmp_path: Path) -> Path:
    data = tmp_path / "data"
    data.mkdir()
    return data


async def stored(url: str) -> list[str]:
    """What a fresh client of another language sees."""
    async with connect(url) as client:
        return [message["mes"] for message in (await client.open(CHAT)).messages]


async def test_every_vector_gives_in_chromium_what_it_gives_in_python(context: BrowserContext) -> None:
    files = {
        str(path.relative_to(vectors.FOLDER)): path.read_text(encoding="utf-8")
        for path in sorted(vectors.FOLDER.rglob("*.json"))
    }
    page = await tab(context)
    found = await page.evaluate("async (files) => (await import('/vectors.js')).run(files)", files)
    assert found["wrong"] == []
    assert sum(found["ran"].values()) > 400


async def test_text_is_hashed_for_its_way_back_on_a_page_that_the_browser_does_not_trust(
    context: BrowserContext,
) -> None:
    async def from_dist(route: Route) -> None:
        name = route.request.url.rpartition("/")[2]
        if name:
            await route.fulfill(path=built() / name, content_type="text/javascript")
        else:
            await route.fulfill(body="<!doctype html><title>not trusted</title>", content_type="text/html")

    await context.route("http://pages.test/**", from_dist)
    page = await context.new_page()
    await page.goto("http://pages.test/")
    there = await page.evaluate("[isSecureContext, typeof crypto.subtle, typeof navigator.locks]")
    assert there == [False, "undefined", "undefined"]
    text = "Once upon a 👍 time"
    found = await page.evaluate(
        "async (text) => (await import('/vectors.js')).sha256(new TextEncoder().encode(text))", text)
    assert found == hashlib.sha256(text.encode()).hexdigest()


async def test_two_tabs_and_a_python_client_hold_one_chat_through_a_killed_server(
    tmp_path: Path, context: BrowserContext
) -> None:
    async with Process(folder(tmp_path)) as server, connect(server.url) as client:
        one, other = await opened(context, server.url, CHAT), await opened(context, server.url, CHAT)
        chat = await client.open(CHAT)
        await one.evaluate("chat.append({ id: 'a', mes: 'from one' })")
        await other.evaluate("chat.append({ id: 'b', mes: 'from other' })")
        await chat.append({"id": "c", "mes": "from Python"})
        await until(one, "texts().at(-1)", "from Python")
        await one.evaluate("chat.patch('c', (message) => { message.mes += ', edited' })")
        for page in (one, other):
            await until(page, "texts()", ["from one", "from other", "from Python, edited"])
        await server.kill()
        await until(one, "chat.status", "offline")
        written = [
            asyncio.ensure_future(one.evaluate("chat.append({ mes: 'one, offline' })")),
            asyncio.ensure_future(other.evaluate("chat.append({ mes: 'other, offline' })")),
        ]
        await until(one, "texts().at(-1)", "one, offline")
        await server.start()
        for page in (one, other):
            await page.evaluate("client.reconnect()")
        await asyncio.gather(*written)
        for page in (one, other):
            await until(page, "chat.messages.length", 5)
            await until(page, "chat.status", "synced")
        here = await one.evaluate("texts()")
        assert here == await other.evaluate("texts()") == await stored(server.url)
        assert Counter(here)["one, offline"] == Counter(here)["other, offline"] == 1
        await caught_up(chat)
        assert [message["mes"] for message in chat.messages] == here


async def test_a_conflict_waits_with_its_three_exits(tmp_path: Path, context: BrowserContext) -> None:
    fight = """() => chat.patch('a', [{ op: 'replace', path: '/mes', value: MINE }]).then(() => null, (error) => {
        window.conflict = error.conflict;
        return error.code;
    })"""

    async def fought(pages: list[Page], word: str) -> tuple[Page, Page]:
        for page in pages:
            await until(page, "chat.status", "synced")
        os.kill(server.pid, signal.SIGSTOP)  # So that neither hears of the other's before both have written.
        fighting = asyncio.gather(*(
            page.evaluate(fight.replace("MINE", f"'{word} {index}'")) for index, page in enumerate(pages)))
        for page in pages:
            await until(page, "chat.status", "syncing")
        os.kill(server.pid, signal.SIGCONT)
        codes = await fighting
        assert sorted(codes, key=str) == [None, "conflict"]
        loser = pages[codes.index("conflict")]
        await until(loser, "chat.status", "conflicted")
        return loser, pages[codes.index(None)]

    async with Process(folder(tmp_path)) as server:
        pages = [await opened(context, server.url, CHAT) for _ in range(2)]
        await pages[0].evaluate("chat.append({ id: 'a', mes: 'start' })")
        await until(pages[1], "texts()", ["start"])
        loser, winner = await fought(pages, "first")
        await loser.evaluate("conflict.takeTheirs()")
        assert await loser.evaluate("texts()") == await winner.evaluate("texts()")
        loser, winner = await fought(pages, "second")
        await loser.evaluate("conflict.applyMineAgain()")
        await until(winner, "texts()", await loser.evaluate("texts()"))
        loser, winner = await fought(pages, "third")
        mine = await loser.evaluate("conflict.mine.all.map(({ mes }) => mes)")
        saved = await loser.evaluate(
            "conflict.saveMineAs('group:Mine').then((saved) => saved.messages.map(({ mes }) => mes))")
        assert saved == mine != await loser.evaluate("texts()")
        await until(loser, "chat.status", "synced")


async def test_what_was_written_offline_in_a_tab_that_was_closed_arrives_once(
    tmp_path: Path, context: BrowserContext
) -> None:
    async with Process(folder(tmp_path)) as server:
        gone = await opened(context, server.url, CHAT)
        await gone.evaluate("chat.append({ mes: 'online' })")
        await server.kill()
        await gone.evaluate("void ['one', 'two'].forEach((mes) => chat.append({ mes }).catch(() => {}))")
        await _kept(gone, 2)
        asked: list[str] = []

        async def stay(dialog: Any) -> None:
            asked.append(dialog.type)
            await dialog.accept()

        gone.on("dialog", stay)
        await gone.mouse.click(5, 5)  # Chromium asks only after the user did something on the page.
        async with gone.expect_event("close"):
            await gone.close(run_before_unload=True)
        assert asked == ["beforeunload"]
        await server.start()
        pages = [await opened(context, server.url, CHAT) for _ in range(2)]
        for page in pages:
            await until(page, "texts()", ["online", "one", "two"])
            await _kept(page, 0)
        assert await stored(server.url) == ["online", "one", "two"]


async def _kept(page: Page, count: int) -> None:
    """Wait until the profile's outbox holds so many writes."""
    await until(page, """(async () => {
        const outbox = new tellback.IndexedDbOutbox(`tellback ${window.client.url}`);
        let count = 0;
        for (const session of await outbox.sessions()) count += (await outbox.load(session)).length;
        return count;
    })()""", count)


async def test_a_killed_renderer_leaves_its_writes_to_another_tab(tmp_path: Path, context: BrowserContext) -> None:
    async with Process(folder(tmp_path)) as server:
        living = await opened(context, server.url, CHAT)
        dying = await opened(context, server.url, CHAT)
        await server.kill()
        await dying.evaluate("void ['one', 'two'].forEach((mes) => chat.append({ mes }).catch(() => {}))")
        await _kept(dying, 2)
        crashed = asyncio.Event()
        dying.on("crash", lambda _page: crashed.set())
        session = await context.new_cdp_session(dying)
        crash = asyncio.ensure_future(session.send("Page.crash"))
        async with asyncio.timeout(GUARD_S):
            await crashed.wait()
        crash.cancel()
        await server.start()
        await living.evaluate("client.reconnect()")
        await until(living, "texts()", ["one", "two"])
        await _kept(living, 0)
        assert await stored(server.url) == ["one", "two"]


async def test_a_reply_is_watched_from_two_tabs_and_stopped_from_one(tmp_path: Path, context: BrowserContext) -> None:
    async with Process(folder(tmp_path)) as server:
        one, other = await opened(context, server.url, CHAT), await opened(context, server.url, CHAT)
        await other.evaluate("""void chat.on('generation-started', async ({ id }) => {
            window.heard = '';
            for await (const piece of chat.generation(id)) window.heard += piece;
            window.over = true;
        })""")
        await one.evaluate("""(async () => {
            window.reply = await chat.generate({ mes: 'And?' }, { reply: { name: 'Alice' } });
            reply.push('Once upon ');
        })()""")
        await until(other, "window.heard", "Once upon ")
        assert await other.evaluate("chat.generations[0].cancel().then(({ state }) => state)") == "cancelled"
        await until(one, "reply.state", "cancelled")
        await until(other, "window.over", True)
        assert await one.evaluate("texts()") == await other.evaluate("texts()") == ["And?", "Once upon "]


async def test_a_frozen_tab_wakes_to_the_whole_chat(tmp_path: Path, context: BrowserContext) -> None:
    async with Process(folder(tmp_path)) as server:
        page = await opened(context, server.url, CHAT)
        session = await context.new_cdp_session(page)
        await session.send("Page.setWebLifecycleState", {"state": "frozen"})
        async with connect(server.url) as client:
            chat = await client.open(CHAT)
            for number in range(20):
                await chat.append({"mes": str(number)})
        await server.kill()
        await server.start()
        await session.send("Page.setWebLifecycleState", {"state": "active"})
        await until(page, "texts()", [str(number) for number in range(20)])
        await page.evaluate("chat.append({ mes: 'awake' })")
        assert (await stored(server.url))[-1] == "awake"


NODE_TESTS = sorted(path.name for path in FOLDER.glob("test/*.test.mjs"))


@pytest.mark.parametrize(
    "files", [["sdk.test.mjs"], [name for name in NODE_TESTS if name != "sdk.test.mjs"]], ids=["sdk", "others"])
async def test_the_sdk_against_the_real_server_in_node(files: list[str]) -> None:
    await asyncio.to_thread(_passes, "node", "--test", *(f"test/{name}" for name in files))


async def test_the_types_are_those_of_the_schema_and_the_bundle_does_not_grow() -> None:
    await asyncio.to_thread(_passes, "npm", "run", "types", "--", "--check")
    await asyncio.to_thread(_passes, "npm", "run", "size")


def _passes(*command: str) -> None:
    built()
    done = ran(*command)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
