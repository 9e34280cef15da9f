"""The page: the files that `npm run build:page` put into this package, as answers of the front door.

Rules this module keeps:

- All files are read once, at start; a request names a key of a table and never a path.
- Nothing comes from another host and nothing runs that is not a file of the page (Content-Security-Policy).
- Names of assets hold a hash of their bytes, so they are kept for ever; the pages themselves (`/`, `/savings`) are
  asked for each time.
- It holds nothing of any user: what it shows comes over the WebSocket, which asks who one is.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from typing import Final

from tellback_server.fs import FileMissing, Fs
from tellback_server.http import HttpResponse, Route

BUILD_COMMAND: Final = "(cd client_js && npm install && npm run build:page)"
"""In a source checkout; a wheel holds the page."""

_FOLDER: Final = os.path.join(os.path.dirname(os.path.abspath(__file__)), "web")

_TYPES: Final[Mapping[str, str]] = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}

_SECURITY: Final = (
    ("Content-Security-Policy", (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
)

_NOT_BUILT: Final = f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>tellback</title>
<h1>tellback runs</h1>
<p>The page is not built in this checkout. With Node 20, in its top folder, once:</p>
<pre>{BUILD_COMMAND.replace("&", "&amp;")}</pre>
<p>Then start the server again. Everything else works without it: the WebSocket is at <code>/ws</code>.</p>
</html>
"""


def is_built(fs: Fs, folder: str = _FOLDER) -> bool:
    """Whether there is a page to serve."""
    return fs.stat(os.path.join(folder, "index.html")) is not None


def page_routes(fs: Fs, folder: str = _FOLDER) -> dict[str, Route]:
    """The page's files by request path. Raises OSError, FileUnsafe, FileUnreadable."""
    if not is_built(fs, folder):
        return {"/": _always(_answer(_NOT_BUILT.encode(), ".html", "no-cache"))}
    routes: dict[str, Route] = {}
    for name in fs.listdir(folder):
        extension = os.path.splitext(name)[1]
        if extension not in _TYPES:
            continue
        is_page = extension == ".html"
        caching = "no-cache" if is_page else "public, max-age=31536000, immutable"
        with contextlib.suppress(FileMissing):  # A build at this moment took away what it replaced.
            answer = _answer(fs.read(os.path.join(folder, name)), extension, caching)
            routes["/" if name == "index.html" else f"/{name.removesuffix('.html')}"] = _always(answer)
    return routes


def page_url(url: str) -> str:
    """Where the page of the server at this WebSocket address is."""
    return url.replace("ws", "http", 1).removesuffix("/ws") + "/"


def _answer(body: bytes, extension: str, caching: str) -> HttpResponse:
    return HttpResponse(200, body, _TYPES[extension], (("Cache-Control", caching), *_SECURITY))


def _always(answer: HttpResponse) -> Route:
    return lambda: answer
