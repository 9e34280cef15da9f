"""The page for tests: built once a run into the server's package, in a real Chromium, watched for what must not be."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock
from playwright.async_api import Browser, Locator, Page, expect

from tellback_client import Chat, Client
from tests.support.browser_sdk import FOLDER, ROOT, built, ran

WEB = ROOT / "server" / "tellback_server" / "web"
_AXE = FOLDER / "node_modules" / "axe-core" / "axe.min.js"
SAID = ("One glove, left.", "The letter, I think.", "People always think it is the letter.")
"""What a chat of `chat_in` holds: Odile, the user, Odile."""
expect.set_options(timeout=30_000)


def page_built() -> Path:
    """The folder that the server delivers, built from what stands in `page` and `src` now."""
    built()
    with FileLock(FOLDER / ".built.lock"):
        sources = sorted([*FOLDER.glob("src/**/*.ts"), *FOLDER.glob("page/*"), *FOLDER.glob("examples/*.js"),
                          FOLDER / "scripts" / "build_page.mjs"])
        made = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()
        mark = FOLDER / "node_modules" / ".page_stamp"
        if not (WEB / "index.html").exists() or not mark.exists() or mark.read_text() != made:
            building = ran("npm", "run", "build:page")
            assert building.returncode == 0, building.stdout + building.stderr
            mark.write_text(made)
    return WEB


def page_address(url: str) -> str:
    """Where a server with this WebSocket address has its page."""
    return url.replace("ws://", "http://").removesuffix("ws")


class Profile:
    """Tabs of one browser profile on the page; at the end none of them had thrown or met the security policy."""

    def __init__(self, browser: Browser, **options: Any) -> None:
        self._browser = browser
        self._options = {"locale": "en-GB", "viewport": {"width": 1100, "height": 760}, **options}
        self.faults: list[str] = []

    async def __aenter__(self) -> Profile:
        self.context = await self._browser.new_context(**self._options)
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.context.close()
        if exception[0] is None:
            assert self.faults == []

    async def tab(self, url: str, chat: str | None = None) -> Page:
        """A tab on the page, with a chat opened from the list by its title."""
        page = await self.context.new_page()
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("console", self._said)
        await page.goto(page_address(url))
        if chat is not None:
            await page.get_by_role("navigation").get_by_role("link", name=chat).click()
            await page.get_by_role("heading", name=chat).wait_for()
        return page

    def _said(self, message: Any) -> None:
        # A server that was killed cannot be reached: the browser itself says so.
        if message.type in ("error", "warning") and "WebSocket" not in message.text:
            self.faults.append(message.text)


async def violations(page: Page, within: str = "html") -> list[str]:
    """What axe-core finds wrong with what is shown, by rule and place."""
    if not await page.evaluate("'axe' in window"):
        await page.evaluate(_AXE.read_text(encoding="utf-8"))
    found = await page.evaluate("(within) => axe.run(within)", within)
    return [
        f"{rule['id']}: {node['target']} {node['failureSummary']}"
        for rule in found["violations"] for node in rule["nodes"]
    ]


async def picture(page: Page, name: str) -> None:
    """Kept in the folder that TELLBACK_SCREENSHOTS names, if it names one."""
    kept = os.environ.get("TELLBACK_SCREENSHOTS")
    if kept:
        await page.screenshot(path=Path(kept) / f"{name}.png")


async def chat_in(client: Client, title: str, texts: Sequence[str] = SAID) -> Chat:
    """A chat with Odile, new for one test; her replies have a swipe."""
    messages: list[dict[str, Any]] = []
    for number, text in enumerate(texts):
        message: dict[str, Any] = {"name": "You", "is_user": True, "mes": text}
        if number % 2 == 0:
            message = {"name": "Odile", "is_user": False, "mes": text, "swipe_id": 0, "swipes": [text]}
        messages.append(message)
    return await client.create_chat(f"character:Odile/{title}", messages=messages)


def message(page: Page, text: str) -> Locator:
    """The message that says `text`."""
    return page.get_by_role("article").filter(has_text=text)


async def say(page: Page, text: str) -> None:
    """Write a message."""
    await page.get_by_label("Write a message").fill(text)
    await page.keyboard.press("Enter")


async def edit(page: Page, old: str, new: str) -> None:
    """Change the message that says `old`."""
    await message(page, old).get_by_role("button", name="Edit").click()
    await page.get_by_label(re.compile("Edit the message")).fill(new)
    await page.get_by_role("button", name="Save").click()


async def back(page: Page) -> None:
    """The network is there again: no need to wait for the backoff."""
    await page.evaluate("dispatchEvent(new Event('online'))")


async def console(page: Page, view: str = "Server") -> Locator:
    """The console, opened at a view."""
    shown = page.get_by_role("complementary", name="Console")
    if not await shown.is_visible():
        await page.get_by_role("button", name="Open the console").click()
    await shown.get_by_role("tab", name=view).click()
    return shown


@contextlib.asynccontextmanager
async def standing_still(page: Page) -> AsyncIterator[None]:
    """The tab does nothing meanwhile: its scripts stand still, and nobody reads its socket."""
    debugger = await page.context.new_cdp_session(page)
    paused = asyncio.Event()
    debugger.on("Debugger.paused", lambda _event: paused.set())
    await debugger.send("Debugger.enable")
    await debugger.send("Debugger.pause")
    step = asyncio.ensure_future(page.evaluate("0"))
    async with asyncio.timeout(45):
        await paused.wait()
    try:
        yield
    finally:
        await debugger.send("Debugger.resume")
        await step
        await debugger.detach()
