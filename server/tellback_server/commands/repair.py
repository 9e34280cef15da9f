"""`tellback repair PATH`: put right what `tellback check` finds. Shows each choice; changes nothing without a yes."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Final

import msgspec
import typer
from rich.console import Console
from rich.text import Text

from tellback_server.checks.findings import Finding
from tellback_server.checks.scope import find_scope
from tellback_server.clock import Clock
from tellback_server.commands.check import PATH_CHARACTERS_MAX, Where, inspect
from tellback_server.commands.exits import DATA_LOCKED, FOUND_WRONG, explained, fail
from tellback_server.fs import Fs
from tellback_server.lock import DataLock
from tellback_server.logging_setup import configure_logging, escaped
from tellback_server.repairs.choices import Choice, Unmendable
from tellback_server.repairs.repairer import Plan, Repairer

__all__ = ["repair"]

_ACTIONS_MAX: Final = 12


class Told(msgspec.Struct):
    """A choice, as `--json` prints it."""

    path: str
    actions: list[str]
    codes: list[str]
    quarantined: int


class Outcome(msgspec.Struct):
    """What `--json` prints. Read by scripts: keep the fields."""

    path: str
    choices: list[Told]
    left: list[Finding]
    done: bool
    kept: list[str]
    """Folders with the files as they were."""


def repair(
    path: Where,
    yes: Annotated[bool, typer.Option("--yes", help="Do everything that is shown.")] = False,
    ask: Annotated[bool, typer.Option("--ask", help="Ask for each file.")] = False,
    ids: Annotated[
        bool, typer.Option("--ids", help="Also write into messages without an id the one that they are served under.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Show how damage can be put right; with --yes or --ask do it. Every file is kept as it was.

    Exit code 0 when nothing is left to do, 1 when something is.
    """
    fs, clock = Fs(), Clock()
    configure_logging("error")
    console = Console(highlight=False, stderr=as_json)
    with explained():
        scope = find_scope(fs, os.path.abspath(os.path.expanduser(path)))
        lock = DataLock.take(fs, scope.data_root) if yes or ask else None
        whole, chosen, kept = Plan([], []), list[Choice](), list[str]()
        try:
            is_again = True
            while is_again:
                inspection, report = inspect(fs, scope, is_locked_by_us=lock is not None)
                if inspection.is_served and lock is None:
                    fail(f"{scope.data_root} is in use by a server. Stop it first.", DATA_LOCKED)
                repairer = Repairer(fs, clock, scope, inspection, writes_ids=ids)
                plan = repairer.plan(report.findings)
                if not as_json:
                    _show(console, plan)
                wanted = plan.choices if yes else [one for one in plan.choices if ask and _wants(one)]
                kept += [os.path.relpath(one, scope.data_root) for one in repairer.carry_out(wanted)] if wanted else []
                chosen += wanted
                whole = Plan(whole.choices + plan.choices, plan.left)
                # Files may know of commits that are in the log no more.
                is_again = repairer.has_new_log
        finally:
            if lock is not None:
                lock.release()
    plan = whole
    is_done = len(chosen) == len(plan.choices)
    if as_json:
        outcome = Outcome(
            scope.only or scope.data_root, [_told(one) for one in plan.choices],
            [one.finding for one in plan.left], bool(chosen) and is_done, kept,
        )
        sys.stdout.write(msgspec.json.encode(outcome).decode() + "\n")
    else:
        _conclude(console, plan, chosen, kept)
    if plan.left or not is_done:
        raise typer.Exit(FOUND_WRONG)


def _told(choice: Choice) -> Told:
    return Told(choice.path, choice.actions, [one.code for one in choice.findings], choice.quarantined)


def _wants(choice: Choice) -> bool:
    return typer.confirm(f"Repair {escaped(choice.path, PATH_CHARACTERS_MAX)}?", default=False, err=True)


def _show(console: Console, plan: Plan) -> None:
    for choice in plan.choices:
        console.print(Text(escaped(choice.path, PATH_CHARACTERS_MAX), style="bold"), soft_wrap=True)
        for action in choice.actions[:_ACTIONS_MAX]:
            console.print(Text(f"  {escaped(action, PATH_CHARACTERS_MAX)}", style="green"))
        if len(choice.actions) > _ACTIONS_MAX:
            console.print(Text(f"  and {len(choice.actions) - _ACTIONS_MAX:,} more like these", style="green"))
        if choice.quarantined:
            lines = "line" if choice.quarantined == 1 else "lines"
            console.print(Text(f"  {choice.quarantined:,} {lines} kept apart, with the file as it was", style="dim"))
    for left in plan.left:
        _show_left(console, left)


def _show_left(console: Console, left: Unmendable) -> None:
    console.print(Text(escaped(left.finding.path, PATH_CHARACTERS_MAX), style="bold"), soft_wrap=True)
    console.print(Text(f"  stays: {escaped(left.finding.message, PATH_CHARACTERS_MAX)} {left.reason}", style="yellow"))


def _conclude(console: Console, plan: Plan, chosen: list[Choice], kept: list[str]) -> None:
    for folder in kept:
        console.print(Text(f"Kept as it was: {escaped(folder, PATH_CHARACTERS_MAX)}"), soft_wrap=True)
    if not plan.choices:
        text = "Nothing to repair." if not plan.left else "Nothing that can be repaired."
    elif chosen:
        text = f"{len(chosen):,} of {len(plan.choices):,} files repaired."
    else:
        text = f"{len(plan.choices):,} files can be repaired; nothing was changed. Run it with --yes, or with --ask."
    if plan.left:
        text += f" {len(plan.left):,} findings stay."
    console.print(Text(text, style="green" if chosen or not plan.left else "yellow"))
