"""The page in real Chromium, as `serve` delivers it: by role and label, as somebody with a screen reader meets it.

`TELLBACK_SCREENSHOTS=<folder>` keeps a picture of each state.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser, expect

from tellback_client import Client, connect
from tellback_client.catching_up import caught_up
from tellback_server.demo import write_demo
from tellback_server.fs import Fs
from tests.support.browser_page import (
    Profile,
    chat_in,
    console,
    edit,
    message,
    page_built,
    picture,
    say,
    standing_still,
    violations,
)
from tests.support.browser_sdk import chromium
from tests.support.server import Process

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    page_built()
    async with chromium() as started:
        yield started


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Process]:
    """One for all tests here, on the demo; each test has a chat of its own. It delivers the page that was built first.
    """
    data = tmp_path_factory.mktemp("page") / "data"
    write_demo(Fs(), str(data))
    async with Process(data, "--outbox-bytes-max", "65536") as started:
        yield started


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(server: Process) -> AsyncIterator[Client]:
    async with connect(server.url) as connected:
        yield connected


async def test_two_tabs_and_a_python_client_are_one_chat(server: Process, client: Client, browser: Browser) -> None:
    chat = await chat_in(client, "Two tabs")
    async with Profile(browser) as profile:
        one, other = await profile.tab(server.url, "Two tabs"), await profile.tab(server.url, "Two tabs")
        await say(one, "From **one**, <img src=x onerror=alert(1)>")
        await expect(message(other, "From one, <img src=x onerror=alert(1)>").locator(".mark")).to_have_text("saved")
        await chat.append({"name": "Python", "mes": "From Python"})
        await edit(other, "From Python", "Edited by other")
        await expect(message(one, "Edited by other")).to_be_visible()
        await one.bring_to_front()  # What is clicked paints at once; a tab in the background paints once a second.
        await message(one, "From one").get_by_role("button", name="Delete").click()
        await expect(message(other, "From one")).to_have_count(0)
        await other.bring_to_front()
        last = message(other, "People always think")
        await last.get_by_role("button", name="Add a swipe").click()
        await other.get_by_label("One more swipe").fill("Another end.")
        await other.get_by_role("button", name="Save").click()
        await expect(message(one, "Another end.").get_by_label("Swipe 2 of 2")).to_be_visible()
        await one.bring_to_front()
        await message(one, "Another end.").get_by_role("button", name="Swipe before").click()
        await expect(last.get_by_label("Swipe 1 of 2")).to_be_visible()
        await expect(one.locator("[data-test=saved]")).to_have_text("All saved")
        await caught_up(chat)
        assert [one["mes"] for one in chat.messages][-1] == "Edited by other"
        await picture(one, "chat")
        await one.emulate_media(color_scheme="dark")
        await picture(one, "chat-dark")


async def test_the_page_is_the_same_on_a_store(browser: Browser, tmp_path: Path) -> None:
    """The demo, moved into SQLite."""
    data, store = tmp_path / "data", f"sqlite:///{tmp_path}/chats.db"
    write_demo(Fs(), str(data))
    moved = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tellback_server", "move", "--data", str(data), "--to", store,
        stdout=asyncio.subprocess.DEVNULL,
    )
    assert await moved.wait() == 0
    async with Process(data, "--store", store) as server, connect(server.url) as client:
        await test_two_tabs_and_a_python_client_are_one_chat(server, client, browser)
        await test_a_branch_and_a_new_chat_are_opened_and_listed(server, client, browser)


async def test_a_branch_and_a_new_chat_are_opened_and_listed(
    server: Process, client: Client, browser: Browser,
) -> None:
    await chat_in(client, "Branched")
    async with Profile(browser) as profile:
        page = await profile.tab(server.url, "Branched")
        await message(page, "The letter, I think.").get_by_role("button", name="Branch").click()
        await expect(page.get_by_role("heading", level=1)).not_to_contain_text(re.compile("^BranchedOdile$"))
        await expect(page.get_by_role("article")).to_have_count(2)
        await page.get_by_role("button", name="New chat with Quill").click()
        await page.get_by_label("Name of the new chat").fill("Bells")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("heading", name="Bells")).to_be_visible()
        await say(page, "Ding.")
        await expect(page.get_by_role("navigation").get_by_role("link", name="Bells")).to_contain_text("Ding.")
        await page.reload()
        await expect(message(page, "Ding.")).to_be_visible()


async def test_the_caret_of_an_opened_editor_stays_where_somebody_puts_it(
    server: Process, client: Client, browser: Browser,
) -> None:
    """Somebody who selects all at once writes over the old text, however late the browser paints."""
    await chat_in(client, "Caret")
    async with Profile(browser) as profile:
        page = await profile.tab(server.url, "Caret")
        button = message(page, "The letter, I think.").get_by_role("button", name="Edit")
        selected = await button.evaluate("""async (button) => {
            button.click();
            await Promise.resolve();
            const area = document.querySelector(".editor textarea");
            area.select();
            for (let frame = 0; frame < 12; frame++) await new Promise(requestAnimationFrame);
            return [document.activeElement === area, area.selectionStart, area.selectionEnd === area.value.length];
        }""")
        assert selected == [True, 0, True]
        await page.keyboard.type("Mine")
        await expect(page.get_by_label(re.compile("Edit the message"))).to_have_value("Mine")


async def test_what_somebody_changes_while_one_edits_is_shown_before_it_is_saved(
    server: Process, client: Client, browser: Browser,
) -> None:
    chat = await chat_in(client, "While editing")
    async with Profile(browser) as profile:
        page = await profile.tab(server.url, "While editing")
        await message(page, "The letter, I think.").get_by_role("button", name="Edit").click()
        await page.get_by_label(re.compile("Edit the message")).fill("Mine")
        await chat.patch(chat.messages[1]["id"], [{"op": "replace", "path": "/mes", "value": "Theirs"}])
        await expect(page.get_by_role("alert")).to_contain_text("Theirs")
        await page.get_by_role("button", name="Put mine over it").click()
        await expect(message(page, "Mine").locator(".mark")).to_have_text("saved")
        await caught_up(chat)
        assert chat.messages[1]["mes"] == "Mine"


async def test_a_reply_grows_in_both_tabs_and_is_stopped_from_the_other(
    server: Process, client: Client, browser: Browser,
) -> None:
    await chat_in(client, "Growing")
    async with Profile(browser) as profile:
        one, other = await profile.tab(server.url, "Growing"), await profile.tab(server.url, "Growing")
        await one.get_by_role("button", name="Sample reply").click()
        await expect(message(other, "She looks at")).to_be_visible()
        await picture(other, "reply")
        await other.locator("form").get_by_role("button", name="Stop").click()
        for page in (one, other):
            await expect(message(page, "She looks at").locator(".mark")).to_have_text("saved")
            await expect(page.get_by_role("button", name="Sample reply")).to_be_visible()


async def test_three_thousand_messages_are_a_few_rows(server: Process, client: Client, browser: Browser) -> None:
    chat = await chat_in(client, "Long", [])
    await chat.append([{"name": "Quill", "mes": f"number {at}\n" * (1 + at % 5)} for at in range(3000)])
    async with Profile(browser) as profile:
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
        await feed.hover()
        # As a trackpad does it: a few pixels at a time.
        for _ in range(10):
            await page.mouse.wheel(0, -4)
            await page.evaluate("new Promise(requestAnimationFrame)")
        await page.get_by_role("button", name="Latest").wait_for()


async def test_the_console_shows_the_past_the_wire_and_brings_back(
    server: Process, client: Client, browser: Browser,
) -> None:
    await chat_in(client, "Kept")
    async with Profile(browser) as profile:
        page = await profile.tab(server.url, "Kept")
        await say(page, "Gone soon.")
        await edit(page, "The letter, I think.", "The violin, I think.")
        await message(page, "Gone soon.").get_by_role("button", name="Delete").click()
        shown = await console(page)
        await expect(shown).to_contain_text("Takes writesyes")
        await expect(shown.get_by_role("table").first).to_contain_text("≤ 1 ms")
        await picture(page, "console")
        await shown.get_by_role("tab", name="Server").press("ArrowRight")
        await expect(shown.get_by_role("tab", name="Live")).to_be_focused()
        await shown.get_by_role("tab", name="Live").press("ArrowRight")
        await shown.get_by_role("button", name="Gone soon.").click()
        await expect(shown.locator("del")).to_have_text(["The letter, I think.", "Gone soon."])
        await expect(shown.locator("del mark")).to_have_text("letter,")
        await picture(page, "history")
        await shown.get_by_role("button", name="This commit").click()
        await expect(shown.locator(".then ins")).to_have_text("Gone soon.")
        shown = await console(page, "Frames")
        await say(page, "On the wire.")
        await shown.get_by_label("Filter frames").fill("sent append")
        await expect(shown.locator("summary")).to_contain_text(["sentappend"])
        shown = await console(page, "Backups")
        await shown.get_by_role("button", name="Back up now").click()
        await expect(shown).to_contain_text("demand · 4 messages")
        await say(page, "After the backup.")
        await expect(message(page, "After the backup.").locator(".mark")).to_have_text("saved")
        await shown.get_by_role("button", name="Restore").click()
        await shown.get_by_role("button", name="Replace the chat").click()
        await expect(message(page, "After the backup.")).to_have_count(0)
        await expect(page.get_by_role("status", name="Notices")).to_contain_text("restored from a backup")
        shown = await console(page, "Trash")
        await shown.get_by_role("button", name="into the trash").click()
        await expect(page.get_by_role("heading", name="No chat is open")).to_be_visible()
        thrown = shown.get_by_role("listitem").filter(has_text="Kept")
        await thrown.get_by_role("button", name="Restore").click()
        await expect(message(page, "On the wire.")).to_be_visible()
        await shown.get_by_role("button", name="into the trash").click()
        await thrown.get_by_role("button", name="Remove").click()
        await thrown.get_by_role("button", name="For good").click()
        await expect(thrown).to_have_count(0)
        assert "character:Odile/Kept" not in [entry.name for entry in await client.trash()]
        await client.delete_character("Quill", chats=True)
        await (await console(page, "Server")).get_by_text("Takes writes").wait_for()
        thrown = (await console(page, "Trash")).get_by_role("listitem").filter(has_text="character:Quill")
        await thrown.get_by_role("button", name="Restore").click()
        await expect(page.get_by_role("status", name="Notices")).to_contain_text("Quill is back.")
        assert [entry.name for entry in await client.trash()] == []


async def test_the_console_shows_what_a_state_is_at_each_floor_and_swipe(
    server: Process, client: Client, browser: Browser,
) -> None:
    chat = await chat_in(client, "Floors")
    await chat.state("weather").set({"rain": True})
    await chat.state("gold").set({"gold": 7})
    await chat.floor_state("gold").update(lambda state: {**state, "gold": 8})
    points = chat.floor_state("hp")
    await points.update(lambda state: {**state, "hp": 9})
    await chat.append({"name": "You", "is_user": True, "mes": "I fall."})
    await points.update(lambda state: {**state, "hp": 4})
    await chat.append({"name": "Odile", "mes": "Ouch.", "swipe_id": 0, "swipes": ["Ouch."]})
    await points.update(lambda state: {**state, "hp": 3})
    await chat.swipe_add(chat.messages[-1]["id"], "You float.")
    await points.update(lambda state: {**state, "hp": 5})
    async with Profile(browser) as profile:
        page = await profile.tab(server.url, "Floors")
        shown = await console(page, "States")
        await shown.get_by_text("weather").click()
        await expect(shown).to_contain_text('"rain": true')
        await shown.locator("summary", has_text="hp floor state").click()
        hp = shown.locator("details", has_text="hp floor state")
        value = hp.locator("[data-test=floor-value]")
        await expect(value).to_contain_text('"hp": 5')
        await picture(page, "floors")
        await hp.get_by_label("Swipe").select_option("0")
        await expect(value).to_contain_text('"hp": 3')
        for floor, there in ((3, '"hp": 4'), (2, '"hp": 9'), (1, "{}")):
            await hp.get_by_label("Floor", exact=True).fill(str(floor))
            await expect(value).to_contain_text(there)
        await shown.locator("summary", has_text="gold floor state").click()
        gold = shown.locator("details", has_text="gold floor state")
        for floor, there in ((2, '"gold": 8'), (1, '"gold": 7')):
            await gold.get_by_label("Floor", exact=True).fill(str(floor))
            await expect(gold.locator("[data-test=floor-value]")).to_contain_text(there)


async def test_a_tab_that_is_too_slow_is_named_told_so_and_catches_up(
    server: Process, client: Client, browser: Browser,
) -> None:
    chat = await chat_in(client, "Slow")
    async with Profile(browser) as profile:
        slow = await profile.tab(server.url, "Slow")
        async with standing_still(slow):
            for _ in range(100):
                await chat.append({"name": "Python", "mes": "x" * 1_000_000})
                status = await client.server_status()
                if status.connections[0].behind:
                    break
            await chat.delete([one["id"] for one in chat.messages[3:]])
            await chat.append({"name": "Python", "mes": "Here again"})
        assert status.connections[0].client.startswith("tellback-js")
        await expect(slow.get_by_role("status", name="Notices")).to_contain_text("too slow")
        await expect(message(slow, "Here again")).to_be_visible()
        shown = await console(slow, "Live")
        await expect(shown.get_by_role("listitem").first).to_contain_text("fell behind once")
        await expect(shown.get_by_role("row").filter(has_text="Slow")).to_contain_text("2 open")
        await picture(slow, "live")


async def test_a_damaged_chat_says_which_lines_and_is_repaired_and_restored(
    server: Process, client: Client, browser: Browser,
) -> None:
    chat = await chat_in(client, "Torn")
    await client.back_up(f"id:{chat.chat_id}")
    await chat.close()

    def tear() -> None:
        with (server.data / "default-user" / "chats" / "Odile" / "Torn.jsonl").open("ab") as file:
            file.write(b'{"name":"You","mes":"half a li\n{"name":"You","is_user":true,"mes":"Whole."}\n')

    tear()
    async with Profile(browser) as profile:
        page = await profile.tab(server.url, "Torn")
        banner = page.get_by_role("alert")
        await expect(banner).to_contain_text("read, not written")
        await expect(banner).to_contain_text("Line 5: ")
        await expect(message(page, "Whole.")).to_be_visible()
        await expect(page.get_by_label("Write a message")).to_be_disabled()
        await expect(page.get_by_role("button", name="Edit")).to_have_count(0)
        assert await violations(page) == []
        await picture(page, "damaged")
        await banner.get_by_role("button", name="Repair").click()
        await banner.get_by_role("button", name="Repair it now").click()
        await expect(banner).to_have_count(0)
        await expect(message(page, "Whole.")).to_be_visible()
        tear()
        await page.reload()
        await expect(banner).to_contain_text("Line 6: ")
        await banner.get_by_role("button", name=re.compile("Restore the backup")).click()
        await banner.get_by_role("button", name="Restore it now").click()
        await expect(banner).to_have_count(0)
        await expect(message(page, "Whole.")).to_have_count(0)
        await say(page, "It takes messages again.")
        await expect(message(page, "It takes messages again.").locator(".mark")).to_have_text("saved")


async def test_the_colours_are_switched_by_hand_and_kept(server: Process, browser: Browser) -> None:
    dark = "getComputedStyle(document.documentElement).colorScheme"
    async with Profile(browser, color_scheme="light") as profile:
        page = await profile.tab(server.url)
        for scheme, following in (("light dark", "light"), ("light", "dark")):
            assert await page.evaluate(dark) == scheme
            await page.get_by_role("button", name=f"Change to {following}").click()
        assert await page.evaluate(dark) == "dark"
        await page.reload()
        await expect(page.get_by_role("button", name="Colours: dark")).to_be_visible()
        assert await page.evaluate(dark) == "dark"


async def test_the_example_sends_a_thousandth_of_a_full_save(server: Process, client: Client, browser: Browser) -> None:
    async with Profile(browser) as profile:
        page = await profile.tab(server.url)
        await page.get_by_role("link", name="What a save sends").click()
        await page.get_by_role("button", name="Make a chat of 3,000 messages").click()
        state = page.locator("[data-test=state]")
        await expect(state).to_have_text("The chat has 3,000 messages.")
        verbs = ("Edit one message", "Write one message", "Delete one message", "Change the metadata")
        for number, verb in enumerate((*verbs, "Save without a change"), 1):
            await page.get_by_role("button", name=verb).click()
            await expect(page.locator("tbody tr")).to_have_count(number)
        told = await page.locator("tbody tr").evaluate_all(
            "(rows) => rows.map((row) => row.lastElementChild.textContent.replaceAll(',', ''))")
        assert min(map(int, told[:-1])) >= 1000
        assert told[-1] == "all"
        assert await violations(page) == []
        await picture(page, "savings")
        address = next(one.chat for one in await client.list_chats() if "What a save sends" in one.chat)
        chat = await client.open(address)
        assert chat.messages[1500]["mes"].endswith(" (edited)")
        assert len(chat.messages) == 3000
        await page.get_by_role("button", name="into the trash").click()
        make = page.get_by_role("button", name="Make a chat")
        await expect(make).to_be_visible()
        for verb in ("Edit one message", "Put the chat into the trash"):
            await make.click()
            await expect(state).to_have_text("The chat has 3,000 messages.")
            [address] = [one.chat for one in await client.list_chats() if "What a save sends" in one.chat]
            await (await client.open(address)).remove()
            await page.get_by_role("button", name=verb).click()
            await expect(page.get_by_role("alert")).to_contain_text("in the trash")
            await expect(make).to_be_enabled()
        assert await violations(page) == []


@pytest.mark.parametrize(("scheme", "width"), [("light", 1100), ("dark", 390)])
async def test_nothing_stands_in_the_way_of_anybody(
    server: Process, client: Client, browser: Browser, scheme: str, width: int,
) -> None:
    chat = await chat_in(client, f"For all in {scheme}")
    await chat.floor_state("mood").update(lambda state: {**state, "calm": 1})
    await client.back_up(f"id:{chat.chat_id}")
    async with Profile(browser, color_scheme=scheme, viewport={"width": width, "height": 760}) as profile:
        page = await profile.tab(server.url)
        link = page.get_by_role("navigation").get_by_role("link", name=f"For all in {scheme}")
        await link.wait_for()
        assert await violations(page) == []
        await link.press("Enter")
        await say(page, "Hello.")
        await expect(message(page, "Hello.").locator(".mark")).to_have_text("saved")
        assert await violations(page) == []
        assert await page.evaluate("document.documentElement.scrollWidth") <= width
        await page.get_by_label("Write a message").press("ArrowUp")
        await expect(page.get_by_label(re.compile("Edit the message"))).to_be_focused()
        await page.keyboard.press("Escape")
        await expect(page.get_by_label(re.compile("Edit the message"))).to_have_count(0)
        await picture(page, f"{scheme}-{width}")
        for view, there in (
            ("Server", "Takes writes"), ("Live", "Connections"), ("History", "You: Hello."), ("Frames", "Filter"),
            ("Backups", "demand"), ("States", "mood"), ("Trash", "into the trash"),
        ):
            shown = await console(page, view)
            if view == "Frames":
                await shown.get_by_label("Filter frames").wait_for()
            else:
                await expect(shown.get_by_role("tabpanel")).to_contain_text(there)
            if view == "History":
                await shown.get_by_role("button", name="You: Hello.").click()
                await shown.get_by_role("button", name="Since then").wait_for()
            if view == "States":
                await shown.locator("summary", has_text="mood floor state").click()
            assert await violations(page, ".console") == []
            assert await page.evaluate("document.documentElement.scrollWidth") <= width
            await picture(page, f"{scheme}-{width}-{view.lower()}")
