"""The command line: `tellback serve`, `demo`, `tail`, `chats`, `generations`, `log`, `doctor`, `token` and others.

Rules this module keeps:

- A command lives in `commands/`; here they only get their names, and are imported one by one.
- An error is one sentence on stderr and an exit code (`commands/exits.py`), never a traceback; what nobody foresaw is a
  fault of ours and keeps its traceback, without local variables, because a local may be a token.
"""

from __future__ import annotations

import importlib
import sys
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup
from typer.main import get_group

COMMANDS: Final = {
    "serve": "serve:serve",
    "demo": "demo:demo",
    "tail": "tail:tail",
    "status": "status:status",
    "doctor": "doctor:doctor",
    "check": "check:check",
    "repair": "repair:repair",
    "import": "importing:import_chats",
    "export": "exporting:export_chats",
    "move": "moving:move",
    "chats": "chats:app",
    "backup": "backup:app",
    "trash": "trash:app",
    "generations": "generations:app",
    "log": "log:app",
    "token": "token:app",
}
"""Where in `commands/` each of them is."""


class Commands(TyperGroup):
    """A command is imported when it is asked for: nobody waits for what the others need."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name in COMMANDS and cmd_name not in self.commands:
            module, _colon, name = COMMANDS[cmd_name].partition(":")
            found = getattr(importlib.import_module(f"tellback_server.commands.{module}"), name)
            alone = typer.Typer(rich_markup_mode=None)
            if isinstance(found, typer.Typer):
                alone.add_typer(found, name=cmd_name)
            else:
                alone.command(cmd_name)(found)
            self.commands.update(get_group(alone).commands)
        return self.commands.get(cmd_name)


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="A WebSocket sync server for chats: durable before it answers, told to every tab.",
)


def _show_version(asked: bool) -> None:
    if asked:
        from tellback_server.metrics import version

        sys.stdout.write(f"tellback {version()}\n")
        raise typer.Exit


@app.callback()
def tellback(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """A WebSocket sync server for chats: durable before it answers, told to every tab."""


def main() -> None:
    """The console script."""
    app(prog_name="tellback")


if __name__ == "__main__":
    main()
