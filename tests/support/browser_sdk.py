"""The browser SDK for tests: built once a run, and a real Chromium to run it in. What is missing is a failure."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from filelock import FileLock
from playwright.async_api import Browser, BrowserContext, Page, async_playwright

from tests.support.waiting import GUARD_S

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "client_js"
PAGE = """<!doctype html><meta charset="utf-8"><title>tellback</title><p>A page of the tests.</p>
<script type="module">
import * as tellback from "/tellback.js";
import "/generations.js";
window.tellback = tellback;
window.ready = true;
</script>"""


def program(name: str) -> str:
    """Path of a program that these tests cannot do without."""
    path = shutil.which(name)
    assert path is not None, f"{name} is not installed; the README says how to get it"
    return path


def ran(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program in `client_js/`."""
    return subprocess.run(
        [program(name), *arguments], cwd=FOLDER, capture_output=True, text=True, timeout=110, check=False,
        env={**os.environ, "TELLBACK_PYTHON": sys.executable},
    )


def built() -> Path:
    """The SDK's `dist`, built from what stands in `src` now; its packages are installed when they are not."""
    program("node")
    modules = FOLDER / "node_modules"
    with FileLock(FOLDER / ".built.lock"):
        wanted = hashlib.sha256((FOLDER / "package.json").read_bytes()).hexdigest()
        stamp = modules / ".stamp"
        if not stamp.exists() or stamp.read_text() != wanted:
            installed = ran("npm", "install", "--no-audit", "--no-fund")
            assert installed.returncode == 0, installed.stdout + installed.stderr
            stamp.write_text(wanted)
        sources = sorted([*FOLDER.glob("src/**/*.ts"), *FOLDER.glob("scripts/*"), FOLDER / "test" / "vectors.ts",
                          FOLDER / "tsconfig.json"])
        made = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()
        mark = FOLDER / "dist" / ".stamp"
        if not mark.exists() or mark.read_text() != made:
            building = ran("npm", "run", "build")
            assert building.returncode == 0, building.stdout + building.stderr
            mark.write_text(made)
    return FOLDER / "dist"


@contextlib.asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """Debian's Chromium, without a window."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=program("chromium"), args=["--no-sandbox"])
        try:
            yield browser
        finally:
            await browser.close()


class _Pages(SimpleHTTPRequestHandler):
    """The page of the tests at `/`, and the built modules."""

    def do_GET(self) -> None:
        if self.path == "/":
            body = PAGE.encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        else:
            super().do_GET()

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@contextlib.contextmanager
def served() -> Iterator[str]:
    """The page and the modules over HTTP; the origin. A browser keeps locks and writes for an origin that it trusts."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Pages, directory=str(built())))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


async def tab(context: BrowserContext) -> Page:
    """A tab with the SDK in it."""
    page = await context.new_page()
    await page.goto("/")
    await page.wait_for_function("window.ready")
    return page


async def opened(context: BrowserContext, url: str, chat: str) -> Page:
    """A tab that shows a chat: `client`, `chat` and `texts()` in it."""
    page = await tab(context)
    await page.evaluate(
        """async ([url, name]) => {
            window.client = await tellback.connect(url);
            window.chat = await client.open(name, { create: true });
            window.texts = () => chat.messages.map(({ mes }) => mes);
        }""",
        [url, chat],
    )
    return page


async def until(page: Page, expression: str, expected: Any, timeout_s: float = GUARD_S) -> None:
    """Wait until an expression has a value in a page."""
    found = None
    try:
        async with asyncio.timeout(timeout_s):
            while (found := await page.evaluate(expression)) != expected:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"{expression} is {found!r}, not {expected!r}") from None
