"""The page in real Chromium, as `serve` delivers it: by role and label, as somebody with a screen reader meets it.

`TELLBACK_SCREENSHOTS=<folder>` keeps a picture of each state.
"""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Locator, Page, expect

from tellback_client import connect
from tellback_client.catching_up import caught_up
from tellback_server.demo import LIVE_CHAT, write_demo
from tellback_server.fs import Fs
from tests.support.browser_page import Profile, page_built, violations
from tests.support.browser_sdk import chromium
from tests.support.server import Process

pytestmark = pytest.mark.asyncio(loop_scope="module")
TITLE = "Lost property"
expect.set_options(timeout=15_000)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    page_built()
    async with chromium() as started:
        yield started


def folder(tmp_path: Path) -> Path:
    write_demo(Fs(), str(tmp_path / "data"))
    return tmp_path / "data"


async def picture(page: Page, name: str) -> None:
    kept = os.environ.get("TELLBACK_SCREENSHOTS")
    if kept:
        await page.screenshot(path=Path(kept) / f"{name}.png")


def message(page: Page, text: str) -> Locator:
    return page.get_by_role("article").filter(has_text=text)


async def say(page: Page, text: str) -> None:
    await page.get_by_label("Write a message").fill(text)
    await page.keyboard.press("Enter")


async def edit(page: Page, old: str, new: str) -> None:
    await message(page, old).get_by_role("button", name="Edit").click()
    await page.get_by_label(re.compile("Edit the message")).fill(new)
    await page.get_by_role("button", name="Save").click()


async def back(page: Page) -> None:
    """The network is there again: no need to wait for the backoff."""
    await page.evaluate("dispatchEvent(new Event('online'))")


async def test_two_tabs_and_a_python_client_are_one_chat(tmp_path: Path, browser: Browser) -> None:
    async with Process(folder(tmp_path)) as server, connect(server.url) as client, Profile(browser) as profile:
        one, other = await profile.tab(server.url, TITLE), await profile.tab(server.url, TITLE)
        chat = await client.open(LIVE_CHAT)
        await say(one, "From **one**, <img src=x onerror=alert(1)>")
        await expect(message(other, "From one, <img src=x onerror=alert(1)>").locator(".mark")).to_have_text("saved")
        await chat.append({"name": "Python", "mes": "From Python"})
        await edit(other, "From Python", "Edited by other")
        await expect(message(one, "Edited by other")).to_be_visible()
        await message(one, "From one").get_by_role("button", name="Delete").click()
        await expect(message(other, "From one")).to_have_count(0)
        last = message(other, "People always think")
        await last.get_by_role("button", name="Add a swipe").click()
        await other.get_by_label("One more swipe").fill("Another end.")
        await other.get_by_role("button", name="Save").click()
        await expect(message(one, "Another end.").get_by_label("Swipe 2 of 2")).to_be_visible()
        await message(one, "Another end.").get_by_role("button", name="Swipe before").click()
        await expect(last.get_by_label("Swipe 1 of 2")).to_be_visible()
        await expect(one.locator("[data-test=saved]")).to_have_text("All saved")
        await caught_up(chat)
        assert [one["mes"] for one in chat.messages][-1] == "Edited by other"
        await picture(one, "chat")
        await one.emulate_media(color_scheme="dark")
        await picture(one, "chat-dark")


async def test_a_branch_and_a_new_chat_are_opened_and_listed(tmp_path: Path, browser: Browser) -> None:
    async with Process(folder(tmp_path)) as server, Profile(browser) as profile:
        page = await profile.tab(server.url, TITLE)
        await message(page, "The letter, I think.").get_by_role("button", name="Branch").click()
        await expect(page.get_by_role("heading", level=1)).not_to_contain_text(re.compile(f"^{TITLE}Odile$"))
        await expect(page.get_by_role("article")).to_have_count(2)
        await page.get_by_role("button", name="New chat with Quill").click()
        await page.get_by_label("Name of the new chat").fill("Bells")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("heading", name="Bells")).to_be_visible()
        await say(page, "Ding.")
        await expect(page.get_by_role("navigation").get_by_role("link", name="Bells")).to_contain_text("Ding.")
        await page.reload()
        await expect(message(page, "Ding.")).to_be_visible()


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
        async with connect(server.url) as client:
            said = [one["mes"] for one in (await client.open(LIVE_CHAT)).messages]
        assert said == ["0 by one", "1 by other", "2 by one", "Said offline by one", "Said offline by other"]


async def test_the_caret_of_an_opened_editor_stays_where_somebody_puts_it(tmp_path: Path, browser: Browser) -> None:
    """Somebody who selects all at once writes over the old text, however late the browser paints."""
    async with Process(folder(tmp_path)) as server, Profile(browser) as profile:
        page = await profile.tab(server.url, TITLE)
        button = message(page, "The letter, I think.").get_by_role("button", name="Edit")
        selected = await button.evaluate("""async (button) => {
            button.click();
            await Promise.resolve();
            const area = document.querySelector(".editor textarea");
            area.select();
            for (let frame = 0; frame < 3; frame++) await new Promise(requestAnimationFrame);
            await new Promise((done) => setTimeout(done, 200));
            return [document.activeElement === area, area.selectionStart, area.selectionEnd === area.value.length];
        }""")
        assert selected == [True, 0, True]
        await page.keyboard.type("Mine")
        await expect(page.get_by_label(re.compile("Edit the message"))).to_have_value("Mine")


async def test_what_somebody_changes_while_one_edits_is_shown_before_it_is_saved(
    tmp_path: Path, browser: Browser,
) -> None:
    async with Process(folder(tmp_path)) as server, Profile(browser) as profile:
        one, other = await profile.tab(server.url, TITLE), await profile.tab(server.url, TITLE)
        await message(one, "The letter, I think.").get_by_role("button", name="Edit").click()
        await one.get_by_label(re.compile("Edit the message")).fill("Mine")
        await edit(other, "The letter, I think.", "Theirs")
        await expect(one.get_by_role("alert")).to_contain_text("Theirs")
        await one.get_by_role("button", name="Put mine over it").click()
        await expect(message(other, "Mine")).to_be_visible()


async def test_a_reply_grows_in_both_tabs_and_is_stopped_from_the_other(tmp_path: Path, browser: Browser) -> None:
    async with Process(folder(tmp_path)) as server, Profile(browser) as profile:
        one, other = await profile.tab(server.url, TITLE), await profile.tab(server.url, TITLE)
        await one.get_by_role("button", name="Sample reply").click()
        await expect(message(other, "She looks at")).to_be_visible()
        await picture(other, "reply")
        await other.locator("form").get_by_role("button", name="Stop").click()
        for page in (one, other):
            await expect(message(page, "She looks at").locator(".mark")).to_have_text("saved")
            await expect(page.get_by_role("button", name="Sample reply")).to_be_visible()


async def test_three_thousand_messages_are_a_few_rows(tmp_path: Path, browser: Browser) -> None:
    async with Process(folder(tmp_path)) as server, connect(server.url) as client, Profile(browser) as profile:
        chat = await client.open("character:Quill/Long", create=True)
        for start in range(0, 3000, 500):
            lines = [f"number {at}\n" * (1 + at % 5) for at in range(start, start + 500)]
            await chat.append([{"name": "Quill", "mes": text} for text in lines])
        page = await profile.tab(server.url, "Long")
        await expect(message(page, "number 2999")).to_be_in_viewport()
        feed = page.get_by_role("feed")
        for part in (0.7, 0.4, 0.1, 0):
            await feed.evaluate("(list, part) => list.scrollTo(0, list.scrollHeight * part)", part)
            await page.evaluate("new Promise(requestAnimationFrame)")
            assert await page.get_by_role("article").count() < 80
        first = page.get_by_text("number 0", exact=True)
        await expect(first).to_be_in_viewport()
        await chat.append({"name": "Quill", "mes": "While you read above"})
        await expect(page.locator("[aria-live=polite]").last).to_contain_text("While you read above")
        await expect(first).to_be_in_viewport()
        await page.get_by_role("button", name="Latest").click()
        await expect(message(page, "While you read above")).to_be_in_viewport()
        await chat.append({"name": "Quill", "mes": "While you stand at the end"})
        await expect(message(page, "While you stand at the end")).to_be_in_viewport()


async def test_the_console_shows_the_server_the_past_the_wire_and_brings_back(tmp_path: Path, browser: Browser) -> None:
    async with Process(folder(tmp_path)) as server, connect(server.url) as client, Profile(browser) as profile:
        chat = await client.open(LIVE_CHAT)
        await chat.state("weather").set({"rain": True})
        page = await profile.tab(server.url, TITLE)
        await say(page, "Gone soon.")
        await message(page, "Gone soon.").get_by_role("button", name="Delete").click()
        await page.get_by_role("button", name="Open the console").click()
        console = page.get_by_role("complementary", name="Console")
        await expect(console).to_contain_text("Takes writesyes")
        await expect(console).to_contain_text("Writes3")
        assert await violations(page) == []
        await picture(page, "console")
        await console.get_by_role("tab", name="Server").press("ArrowRight")
        await expect(console.get_by_role("tab", name="History")).to_be_focused()
        await console.get_by_role("button", name="Gone soon.").click()
        await expect(console.locator("del")).to_have_text("Gone soon.")
        assert await violations(page) == []
        await picture(page, "history")
        await console.get_by_role("tab", name="States").click()
        await console.get_by_text("weather").click()
        await expect(console).to_contain_text('"rain": true')
        await console.get_by_role("tab", name="Frames").click()
        await say(page, "On the wire.")
        await console.get_by_label("Filter frames").fill("sent append")
        await expect(console.locator("summary")).to_contain_text(["sentappend"])
        await console.get_by_role("tab", name="Backups").click()
        await console.get_by_role("button", name="Back up now").click()
        await expect(console).to_contain_text("demand · 4 messages")
        await say(page, "After the backup.")
        await expect(message(page, "After the backup.").locator(".mark")).to_have_text("saved")
        await console.get_by_role("button", name="Restore").click()
        await console.get_by_role("button", name="Replace the chat").click()
        await expect(message(page, "After the backup.")).to_have_count(0)
        await expect(page.get_by_role("status", name="Notices")).to_contain_text("restored from a backup")
        await console.get_by_role("tab", name="Trash").click()
        await console.get_by_role("button", name="into the trash").click()
        await expect(page.get_by_role("heading", name="No chat is open")).to_be_visible()
        await console.get_by_role("button", name="Restore").click()
        await expect(message(page, "On the wire.")).to_be_visible()
        assert await violations(page) == []


async def test_a_damaged_chat_is_read_and_says_so(tmp_path: Path, browser: Browser) -> None:
    data = folder(tmp_path)
    with (data / "default-user" / "chats" / "Odile" / f"{TITLE}.jsonl").open("ab") as file:
        file.write(b'\n{"name":"You","mes":"half a li')
        file.write(b'\n{"name":"You","is_user":true,"mes":"Whole."}')
    async with Process(data) as server, Profile(browser) as profile:
        page = await profile.tab(server.url, TITLE)
        await expect(page.get_by_role("alert")).to_contain_text("read, not written")
        await expect(message(page, "Whole.")).to_be_visible()
        await expect(page.get_by_label("Write a message")).to_be_disabled()
        await expect(page.get_by_role("button", name="Edit")).to_have_count(0)
        assert await violations(page) == []


@pytest.mark.parametrize(("scheme", "width"), [("light", 1100), ("dark", 390)])
async def test_nothing_stands_in_the_way_of_anybody(tmp_path: Path, browser: Browser, scheme: str, width: int) -> None:
    async with Process(folder(tmp_path)) as server, Profile(
        browser, color_scheme=scheme, viewport={"width": width, "height": 760},
    ) as profile:
        page = await profile.tab(server.url)
        await page.get_by_role("navigation").get_by_role("link", name=TITLE).wait_for()
        assert await violations(page) == []
        await page.get_by_role("link", name=TITLE).press("Enter")
        await say(page, "Hello.")
        await expect(message(page, "Hello.").locator(".mark")).to_have_text("saved")
        assert await violations(page) == []
        assert await page.evaluate("document.documentElement.scrollWidth") <= width
        await page.get_by_label("Write a message").press("ArrowUp")
        await expect(page.get_by_label(re.compile("Edit the message"))).to_be_focused()
        await page.keyboard.press("Escape")
        await expect(page.get_by_label(re.compile("Edit the message"))).to_have_count(0)
        await picture(page, f"{scheme}-{width}")
