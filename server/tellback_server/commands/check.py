"""`tellback check PATH`: what is wrong with the files of a data folder. Writes nothing, also beside a server."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable
from typing import Annotated, Final

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from tellback_server.checks.findings import Finding, Severity
from tellback_server.checks.inspection import Inspection
from tellback_server.checks.scope import Scope, find_scope
from tellback_server.checks.step import Step
from tellback_server.commands.exits import FOUND_WRONG, explained
from tellback_server.fs import Fs
from tellback_server.logging_setup import escaped

__all__ = ["Report", "check", "inspect", "show_findings"]

_STYLES: Final[dict[Severity, str]] = {"info": "dim", "warning": "yellow", "damage": "bold red"}
_RANKS: Final[dict[Severity, int]] = {"damage": 0, "warning": 1, "info": 2}
PATH_CHARACTERS_MAX: Final = 2000

Where = Annotated[str, typer.Argument(metavar="PATH", help="A data folder, a user's folder, or one file in it.")]


class Report(msgspec.Struct):
    """What `--json` prints. Read by scripts: keep the fields."""

    path: str
    served: bool
    """A server was at work meanwhile."""
    files: int = 0
    size_bytes: int = 0
    damage: int = 0
    warnings: int = 0
    infos: int = 0
    findings: list[Finding] = []

    def add(self, step: Step) -> None:
        """One file more."""
        self.size_bytes += step.size_bytes
        for finding in step.findings:
            self.findings.append(finding)
            if finding.severity == "damage":
                self.damage += finding.count
            elif finding.severity == "warning":
                self.warnings += finding.count
            else:
                self.infos += finding.count


def check(
    path: Where,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
    show_all: Annotated[bool, typer.Option("--all", help="Also what is only worth knowing.")] = False,
) -> None:
    """Check every file: chats, states, groups, cards, backups, the trash, the log. Writes nothing.

    Exit code 0 when there is neither damage nor a warning, 1 when there is.
    """
    with explained():
        fs = Fs()
        _inspection, report = inspect(fs, find_scope(fs, os.path.abspath(os.path.expanduser(path))))
    if as_json:
        sys.stdout.write(msgspec.json.encode(report).decode() + "\n")
    else:
        console = Console(highlight=False)
        show_findings(console, report.findings if show_all else [
            one for one in report.findings if one.severity != "info"
        ])
        console.print(_summary(report, show_all))
    if report.damage or report.warnings:
        raise typer.Exit(FOUND_WRONG)


def inspect(fs: Fs, scope: Scope, *, is_locked_by_us: bool = False) -> tuple[Inspection, Report]:
    """All of it, with a progress bar when people look. Raises FsError, LayoutConflict."""
    inspection = Inspection(fs, scope, time.sleep, is_locked_by_us=is_locked_by_us)
    report = Report(scope.only or scope.data_root, inspection.is_served)
    report.files, size_bytes = inspection.plan()
    for step in _watched(inspection.run(), report.files, size_bytes):
        report.add(step)
    report.findings.sort(key=lambda one: (_RANKS[one.severity], one.path, one.line, one.offset))
    return inspection, report


def _watched(steps: Iterable[Step], files: int, size_bytes: int) -> Iterable[Step]:
    columns = (
        TextColumn("[progress.description]{task.description}"), BarColumn(), DownloadColumn(binary_units=True),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("checking", total=size_bytes)
        for done, step in enumerate(steps, 1):
            progress.update(task, advance=step.size_bytes, description=f"checking {done}/{files}")
            yield step


def show_findings(console: Console, findings: list[Finding]) -> None:
    """A block a file: its path on a line of its own, so that no table cuts it, then what was found in it."""
    path = ""
    table = Table.grid(padding=(0, 2, 0, 0))
    for number, finding in enumerate(sorted(findings, key=lambda one: (one.path, _RANKS[one.severity], one.line))):
        if finding.path != path:
            if number:
                console.print(table)
            path = finding.path
            console.print(Text(escaped(path, PATH_CHARACTERS_MAX), style="bold"), soft_wrap=True)
            table = Table.grid(padding=(0, 2, 0, 0))
            table.add_column(no_wrap=True)
            table.add_column(no_wrap=True, justify="right", style="dim")
            table.add_column(ratio=1)
        text = Text(escaped(finding.message, PATH_CHARACTERS_MAX))
        if finding.count > 1:
            text.append(f" {finding.count} times.", style="dim")
        if finding.severity != "info":
            text.append(f" {finding.remedy}", style="dim")
        text.append(f" [{finding.code}]", style="dim")
        table.add_row(Text(f"  {finding.severity}", style=_STYLES[finding.severity]), _place(finding), text)
    if findings:
        console.print(table)


def _place(finding: Finding) -> str:
    if finding.line:
        return f"line {finding.line}"
    return f"byte {finding.offset}" if finding.offset >= 0 else ""


def _summary(report: Report, show_all: bool) -> Text:
    told = [f"{report.files:,} files, {_mebibytes(report.size_bytes)} MiB"]
    told.append(f"{report.damage:,} damaged" if report.damage else "nothing damaged")
    told.append(f"{report.warnings:,} warnings" if report.warnings else "no warnings")
    if report.infos:
        told.append(f"{report.infos:,} worth knowing" + ("" if show_all else " (--all)"))
    if report.served:
        told.append("a server is at work here")
    style = "bold red" if report.damage else "yellow" if report.warnings else "green"
    return Text("; ".join(told) + ".", style=style)


def _mebibytes(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 20):,.1f}"


