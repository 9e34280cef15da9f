"""How an import or export is told: a bar while it runs, then tables for people or one JSON object for scripts."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Final

import msgspec
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from tellback_server.checks.findings import Severity
from tellback_server.logging_setup import escaped
from tellback_server.transfer.anomalies import Anomaly

__all__ = ["anomaly_table", "print_json", "watching"]

_STYLES: Final[dict[Severity, str]] = {"info": "dim", "warning": "yellow", "damage": "bold red"}
_PATH_CHARACTERS_MAX: Final = 2000


def watching(what: str, size_bytes: int) -> Progress:
    """A bar on stderr, when people look. The one task of it counts bytes."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True), TimeRemainingColumn(),
    )
    progress = Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())
    progress.add_task(what, total=size_bytes)
    return progress


def anomaly_table(console: Console, anomalies: Iterable[Anomaly], *, show_all: bool) -> None:
    """A block a file: its path on a line of its own, then what was found and what was done."""
    by_path: dict[str, list[Anomaly]] = {}
    for one in anomalies:
        if show_all or one.severity != "info":
            by_path.setdefault(one.path, []).append(one)
    for path, found in by_path.items():
        console.print(Text(escaped(path, _PATH_CHARACTERS_MAX) or ".", style="bold"), soft_wrap=True)
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True, justify="right", style="dim")
        table.add_column(ratio=1)
        for one in found:
            text = Text(escaped(one.message, _PATH_CHARACTERS_MAX))
            if one.count > 1:
                text.append(f", {one.count:,} times", style="dim")
            text.append(f": {escaped(one.done, _PATH_CHARACTERS_MAX)}")
            text.append(f" [{one.code}]", style="dim")
            where = f"line {one.line}" if one.line else ""
            table.add_row(Text(f"  {one.severity}", style=_STYLES[one.severity]), where, text)
        console.print(table)


def print_json(report: object) -> None:
    """One object on stdout."""
    sys.stdout.write(msgspec.json.encode(report).decode() + "\n")
