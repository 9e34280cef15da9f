"""The page for tests: built once a run into the server's package, in a real Chromium, watched for what must not be."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from filelock import FileLock
from playwright.async_api import Browser, Page

from tests.support.browser_sdk import FOLDER, ROOT, built, npm

WEB = ROOT / "server" / "tellback_server" / "web"
_AXE = FOLDER / "node_modules" / "axe-core" / "axe.min.js"


def page_built() -> Path:
    """The folder that the server delivers, built from what stands in `page` and `src` now."""
    built()
    with FileLock(FOLDER / ".built.lock"):
        sources = sorted([*FOLDER.glob("src/**/*.ts"), *FOLDER.glob("page/*"), FOLDER / "scripts" / "build_page.mjs"])
        made = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()
        mark = FOLDER / "node_modules" / ".page_stamp"
        if not (WEB / "index.html").exists() or not mark.exists() or mark.read_text() != made:
            ran = npm("run", "build:page")
            assert ran.returncode == 0, ran.stdout + ran.stderr
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


async def violations(page: Page) -> list[str]:
    """What axe-core finds wrong with what is shown, by rule and place."""
    await page.evaluate(_AXE.read_text(encoding="utf-8"))
    found = await page.evaluate("axe.run()")
    return [
        f"{rule['id']}: {node['target']} {node['failureSummary']}"
        for rule in found["violations"] for node in rule["nodes"]
    ]
