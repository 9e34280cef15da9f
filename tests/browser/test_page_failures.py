"""The page in real Chromium when something is lost: the network, the server, a tab, a renderer; and who may come in."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser, expect

from tellback_client import connect
from tellback_server.demo import LIVE_CHAT, write_demo
from tellback_server.fs import Fs
from tests.support.browser_page import (
    Profile,
    back,
    edit,
    message,
    page_address,
    page_built,
    picture,
    say,
    violations,
)
from tests.support.browser_sdk import chromium
from tests.support.server import Process
from tests.support.sse_server import Exchange, SseServer, piece, reply
from tests.support.tokens import token_file

pytestmark = pytest.mark.asyncio(loop_scope="module")
TITLE = "Lost property"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    page_built()
    async with chromium() as started:
        yield started


def folder(tmp_path: Path) -> Path:
    write_demo(Fs(), str(tmp_path / "data"))
    return tmp_path / "data"


async def stored(url: str) -> list[str]:
    """What a fresh client of another language sees."""
    async with connect(url) as client:
        return [one["mes"] for one in (await client.open(LIVE_CHAT)).messages]


async def test_written_offline_edited_on_both_sides_and_decided_when_the_server_is_back(
    tmp_path: Path, browser: Browser,
) -> None:
    texts = ["One glove, left.", "The letter, I think.", "People always think"]
    async with Process(folder(tmp_path)) as server, Profile(browser) as profile, Profile(browser) as away:
        one, other = await profile.tab(server.url, TITLE), await away.tab(server.url, TITLE)
        await away.context.set_offline(True)
        await server.kill()
        for page, who in ((one, "one"), (other, "other")):
            await expect(page.locator("[data-test=connection]")).to_contain_text(re.compile("Offline|Connecting"))
            for number, text in enumerate(texts):
                await edit(page, text, f"{number} by {who}")
            await say(page, f"Said offline by {who}")
            await expect(message(page, f"by {who}").locator(".mark")).to_have_text(["kept here"] * 4)
        await picture(one, "offline")
        await server.start()
        await back(one)
        await expect(message(one, "by one").locator(".mark")).to_have_text(["saved"] * 4)
        await away.context.set_offline(False)
        dialogue = other.get_by_role("dialog")
        await expect(dialogue).to_contain_text("0 by one")
        await expect(dialogue).to_contain_text("0 by other")
        assert await violations(other) == []
        await picture(other, "conflict")
        await other.keyboard.press("Escape")
        await dialogue.get_by_role("button", name="Take theirs").click()
        await expect(dialogue).to_contain_text("1 by other")
        await dialogue.get_by_role("button", name="Put mine over it").click()
        await expect(message(one, "1 by other").locator(".mark")).to_have_text("saved")
        await expect(dialogue).to_contain_text("2 by other")
        await dialogue.get_by_role("button", name="Keep as new chat").click()
        await expect(other.get_by_role("heading", name=f"{TITLE} - mine")).to_be_visible()
        await expect(message(other, "2 by other").locator(".mark")).to_have_text("saved")
        await expect(other.locator("[data-test=connection]")).to_have_text("Live")  # Nothing left to save.
        said = ["0 by one", "1 by other", "2 by one", "Said offline by one", "Said offline by other"]
        assert await stored(server.url) == said


async def test_what_a_closed_and_a_crashed_tab_wrote_offline_comes_once_and_a_background_tab_wakes_to_it(
    tmp_path: Path, browser: Browser,
) -> None:
    async with Process(folder(tmp_path)) as server, Profile(browser) as profile:
        asleep, closing, dying = [await profile.tab(server.url, TITLE) for _ in range(3)]
        lifecycle = await profile.context.new_cdp_session(asleep)
        await lifecycle.send("Page.setWebLifecycleState", {"state": "frozen"})
        await server.kill()
        for page, text in ((closing, "From a tab that was closed"), (dying, "From a tab that crashed")):
            await say(page, text)
            await expect(message(page, text).locator(".mark")).to_have_text("kept here")
        asked: list[str] = []

        async def stay(dialog: object) -> None:
            asked.append(dialog.type)  # type: ignore[attr-defined]
            await dialog.accept()  # type: ignore[attr-defined]

        closing.on("dialog", stay)
        async with closing.expect_event("close"):
            await closing.close(run_before_unload=True)
        assert asked == ["beforeunload"]
        crashed = asyncio.Event()
        dying.on("crash", lambda _page: crashed.set())
        crash = asyncio.ensure_future((await profile.context.new_cdp_session(dying)).send("Page.crash"))
        async with asyncio.timeout(45):
            await crashed.wait()
        crash.cancel()
        await server.start()
        fresh = await profile.tab(server.url, TITLE)
        await lifecycle.send("Page.setWebLifecycleState", {"state": "active"})
        for page in (fresh, asleep):
            for text in ("From a tab that was closed", "From a tab that crashed"):
                await expect(message(page, text).locator(".mark")).to_have_text("saved")
        assert sorted((await stored(server.url))[3:]) == ["From a tab that crashed", "From a tab that was closed"]


async def test_what_a_closed_tab_wrote_to_a_chat_that_is_gone_by_then_is_told(tmp_path: Path, browser: Browser) -> None:
    async with Process(folder(tmp_path)) as server, Profile(browser) as profile:
        living, dying = [await profile.tab(server.url, TITLE) for _ in range(2)]
        await profile.context.set_offline(True)
        await server.kill()
        await say(dying, "Too late")
        await expect(message(dying, "Too late").locator(".mark")).to_have_text("kept here")
        await dying.close()
        await server.start()
        async with connect(server.url) as client:
            await (await client.open(LIVE_CHAT)).remove()
        await profile.context.set_offline(False)
        notice = living.get_by_role("status", name="Notices").get_by_text("stays in this browser")
        await expect(notice).to_have_count(1)


async def test_a_model_server_writes_a_reply_that_is_watched_and_stopped_from_the_other_tab(
    tmp_path: Path, browser: Browser,
) -> None:
    async def endless(exchange: Exchange) -> None:
        await exchange.start()
        for number in range(20):
            await exchange.chunk(piece(f"token {number} "))
        await exchange.gone()

    async with SseServer(endless, reply("Well, ", "then.")) as model, Process(
        folder(tmp_path), "--upstream", f"local={model.url}",
    ) as server, Profile(browser) as profile:
        one, other = await profile.tab(server.url, TITLE), await profile.tab(server.url, TITLE)
        await one.get_by_role("button", name="Reply").click()
        await expect(message(other, "token 19")).to_be_visible()
        asked = (await model.exchange()).json
        assert [line["role"] for line in asked["messages"]] == ["assistant", "user", "assistant"]
        await other.locator("form").get_by_role("button", name="Stop").click()
        for page in (one, other):
            await expect(message(page, "token 19").locator(".mark")).to_have_text("saved")
        async with asyncio.timeout(45):
            await (await model.exchange()).closed.wait()
        await other.get_by_role("button", name="Reply").click()
        await expect(message(one, "Well, then.").locator(".mark")).to_have_text("saved")
        assert (await stored(server.url))[-1] == "Well, then."


async def test_whoever_has_a_token_comes_in_and_stays_in(tmp_path: Path, browser: Browser) -> None:
    """The token is asked for, refused with a reason, kept for the tab alone and for no other, and let go."""
    users = token_file(tmp_path / "users.json", alice="alice-0123456789abcdef")
    async with Process(tmp_path / "data", "--auth-file", str(users)) as server, Profile(browser) as profile:
        page = await profile.tab(server.url)
        token = page.get_by_label("Token")
        await token.wait_for()
        assert await violations(page) == []
        await picture(page, "sign-in")
        for given, wrong in (("alice-0123456789abcdee", True), ("alice-0123456789abcdef", False)):
            await token.fill(given)
            await page.get_by_role("button", name="Sign in").click()
            if wrong:
                await expect(page.get_by_role("alert")).to_contain_text("does not know this token")
        await expect(page.get_by_text("There are no chats here yet.")).to_be_visible()
        await page.reload()
        await expect(page.get_by_text("There are no chats here yet.")).to_be_visible()
        await page.goto(f"{page_address(server.url)}savings")
        await expect(page.get_by_role("button", name="Make a chat")).to_be_enabled()
        other = await profile.tab(server.url)
        await other.get_by_label("Token").wait_for()
        await page.goto(page_address(server.url))
        await page.get_by_role("button", name="Sign out").click()
        await token.wait_for()
