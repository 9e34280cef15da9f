"""`tellback log dump|verify`: look into a log folder. Both only read."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from tellback_server.commands.exits import CONFIGURATION, FOUND_WRONG, explained, fail
from tellback_server.fs import Fs
from tellback_server.log.inspect import Report, dump, verify
from tellback_server.logging_setup import escaped

app = typer.Typer(no_args_is_help=True, help="Look into the log.")

Folder = Annotated[str, typer.Argument(help="A data folder, or a log folder itself.")]


@app.command("dump")
def dump_command(directory: Folder) -> None:
    """Every segment, batch and record as a JSON line; no texts, only their sizes."""
    with explained():
        last = ""
        for entry in dump(Fs(), _log_folder(directory)):
            sys.stdout.write(msgspec.json.encode(entry).decode() + "\n")
            last = str(entry.get("finding", ""))
    if last == "corrupt":
        raise typer.Exit(FOUND_WRONG)


@app.command("verify")
def verify_command(directory: Folder, as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
    """Check every checksum. Exit code 1 when something that was durable cannot be read."""
    with explained():
        report = verify(Fs(), _log_folder(directory))
    if as_json:
        sys.stdout.write(msgspec.json.encode(report).decode() + "\n")
    else:
        _show(report)
    if not report.is_whole:
        raise typer.Exit(FOUND_WRONG)


def _show(report: Report) -> None:
    console = Console(highlight=False, soft_wrap=True)
    counts = Table("term", "segments", "batches", "records", "bytes", "chats", "positions")
    positions = f"{report.first_position}..{report.last_position}"
    numbers = (report.term, report.segments, report.batches, report.records, report.bytes, report.owners)
    counts.add_row(*(f"{number:,}" for number in numbers), positions)
    console.print(counts)
    for finding in report.findings:
        where = f"{finding.path} at byte {finding.offset}, batch {finding.batch}"
        console.print(f"{finding.what}: {escaped(where)}: {escaped(finding.reason)}", markup=False)
    for path in report.torn_files:
        console.print(f"saved earlier: {escaped(path)}", markup=False)
    console.print("The log is whole." if report.is_whole else "The log is damaged.")


def _log_folder(directory: str) -> str:
    """The log inside a data folder, or the folder itself when it holds segments."""
    fs, path = Fs(), os.path.abspath(os.path.expanduser(directory))
    candidates = (os.path.join(path, ".tellback", "log"), os.path.join(path, "log"), path)
    there = [folder for folder in candidates if (found := fs.stat(folder)) is not None and found.is_directory]
    if not there:
        fail(f"{path}: there is no such folder.", CONFIGURATION)
    return there[0]
