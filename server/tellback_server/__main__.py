"""The command line: `tellback serve`, `demo`, `tail`, `chats`, `generations`, `log`, `doctor`, `token` and others.

Rules this module keeps:

- A command lives in `commands/`; here they only get their names.
- An error is one sentence on stderr and an exit code (`commands/exits.py`), never a traceback; what nobody foresaw is a
  fault of ours and keeps its traceback, without local variables, because a local may be a token.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from tellback_server.commands import (
    backup,
    chats,
    check,
    demo,
    doctor,
    exporting,
    generations,
    importing,
    log,
    repair,
    serve,
    status,
    tail,
    token,
    trash,
)
from tellback_server.metrics import version

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="A WebSocket sync server for chats: durable before it answers, told to every tab.",
)


def _show_version(asked: bool) -> None:
    if asked:
        sys.stdout.write(f"tellback {version()}\n")
        raise typer.Exit


@app.callback()
def tellback(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """A WebSocket sync server for chats: durable before it answers, told to every tab."""


app.command("serve")(serve.serve)
app.command("demo")(demo.demo)
app.command("tail")(tail.tail)
app.command("status")(status.status)
app.command("doctor")(doctor.doctor)
app.command("check")(check.check)
app.command("repair")(repair.repair)
app.command("import")(importing.import_chats)
app.command("export")(exporting.export_chats)
app.add_typer(chats.app, name="chats")
app.add_typer(backup.app, name="backup")
app.add_typer(trash.app, name="trash")
app.add_typer(generations.app, name="generations")
app.add_typer(log.app, name="log")
app.add_typer(token.app, name="token")


def main() -> None:
    """The console script."""
    app(prog_name="tellback")


if __name__ == "__main__":
    main()
