"""`tellback demo`: a server on a sample folder, and three things to try."""

from __future__ import annotations

import os
import tempfile
from typing import Annotated

import typer

from tellback_server.commands.exits import CONFIGURATION, explained, fail
from tellback_server.config import Settings, load_settings
from tellback_server.demo import LIVE_CHAT, has_chats, remove_folder, write_demo
from tellback_server.fs import Fs
from tellback_server.page import BUILD_COMMAND, is_built, page_url
from tellback_server.process import run_server

_GUIDE = """
The server runs. Chats: {data}{fate}
Open {page} in a browser, and once more beside it.{unbuilt}

Three things to try, each in another terminal (in a checkout, put `uv run` before each command):

  1  Watch a chat:            tellback tail "{chat}" --url {url}
  2  Look at what it checks:  tellback doctor "{data}"
  3  Say something:           python -m websockets {url}
     and paste these three lines; terminal 1 shows the message at once, the folder has it within {folder_s:g} s:

{{"type":"hello","protocol":1,"session":"{session}"}}
{{"type":"open","id":1,"chat":"{chat}","since":null}}
{{"type":"append","id":2,"chat":"{chat}","op":1,"base":"*","messages":[{{"name":"You","is_user":true,"mes":"Hello!"}}]}}

     Say more with "op":2, then 3: a session counts what it says. The same line again is taken for the same message
     sent twice (the answer says "duplicate"), and nothing is added.

Stop with Ctrl+C.
"""


def demo(
    data: Annotated[str | None, typer.Option(help="Keep the chats here; without it they are gone at the end.")] = None,
    port: Annotated[str, typer.Option(help="Port to bind; 0 picks a free one.")] = "8765",
) -> None:
    """Run the server on a small sample chat, on this machine only."""
    fs = Fs()
    kept = data is not None
    folder = os.path.abspath(data or os.path.join(tempfile.gettempdir(), f"tellback-demo-{fs.token()}"))
    with explained():
        flags = {"data": folder, "port": port, "host": "127.0.0.1", "log_level": "warning"}
        settings = load_settings(flags)
        if settings.has_users:
            fail("the demo knows no users: unset TELLBACK_AUTH_FILE and TELLBACK_JWT_KEY_FILE.", CONFIGURATION)
        os.umask(0o077)
        if kept and fs.stat(os.path.dirname(folder)) is None:
            fail(f"--data: {folder}: {os.path.dirname(folder)} does not exist. Check the path.", CONFIGURATION)
        try:
            if not has_chats(fs, folder):
                write_demo(fs, folder)
            unbuilt = "" if is_built(fs) else f"\n(The page is not built: in the checkout, once, {BUILD_COMMAND})"
            code = run_server(settings, lambda url: _guide(settings, kept, url, f"say-{fs.token()}", unbuilt))
        finally:
            if not kept and fs.stat(folder) is not None:
                remove_folder(fs, folder)
    raise typer.Exit(code)


def _guide(settings: Settings, kept: bool, url: str, session: str, unbuilt: str) -> None:
    fate = "" if kept else "  (removed at the end; keep them with --data DIR)"
    typer.echo(_GUIDE.format(
        data=settings.data, fate=fate, chat=LIVE_CHAT, url=url, session=session, page=page_url(url),
        unbuilt=unbuilt,
        folder_s=settings.checkpoint_interval_s,
    ), err=True)
