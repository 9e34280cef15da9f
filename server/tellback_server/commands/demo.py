"""`tellback demo`: a server on a sample folder, and three things to try."""

from __future__ import annotations

import os
import tempfile
from typing import Annotated

import typer

from tellback_server.commands.exits import CONFIGURATION, explained, fail
from tellback_server.config import load_settings
from tellback_server.demo import LIVE_CHAT, has_chats, remove_folder, write_demo
from tellback_server.fs import Fs
from tellback_server.process import run_server

_GUIDE = """
The server runs. Chats: {data}{fate}

Three things to try, each in another terminal (in a checkout, put `uv run` before each command):

  1  Watch a chat:            tellback tail "{chat}" --url {url}
  2  Look at what it checks:  tellback doctor "{data}"
  3  Say something:           python -m websockets {url}
     and paste these three lines; terminal 1 shows the message at once, and the folder has it after two seconds:

{{"type":"hello","protocol":1,"session":"a-session-of-my-own"}}
{{"type":"open","id":1,"chat":"{chat}","since":null}}
{{"type":"append","id":2,"chat":"{chat}","op":1,"base":"*","messages":[{{"name":"You","is_user":true,"mes":"Hello!"}}]}}

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
        try:
            if not has_chats(fs, folder):
                write_demo(fs, folder)
            code = run_server(settings, lambda url: _guide(folder, kept, url))
        finally:
            if not kept and fs.stat(folder) is not None:
                remove_folder(fs, folder)
    raise typer.Exit(code)


def _guide(folder: str, kept: bool, url: str) -> None:
    fate = "" if kept else "  (removed at the end; keep them with --data DIR)"
    typer.echo(_GUIDE.format(data=folder, fate=fate, chat=LIVE_CHAT, url=url), err=True)
