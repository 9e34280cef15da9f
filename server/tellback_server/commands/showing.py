"""What several commands show alike: tables that nothing is cut off from, sizes, and messages."""

from __future__ import annotations

from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tellback_protocol.values import dumps

__all__ = ["said", "size_text", "speaker", "table"]


def table(heads: tuple[str, ...], rows: list[tuple[str | Text, ...]]) -> None:
    """A line a row, never broken: the terminal breaks what is too wide, and nothing of it is lost."""
    widths = [
        max(cell_len(line) for cell in (head, *(row[column] for row in rows)) for line in str(cell).split("\n"))
        for column, head in enumerate(heads)
    ]
    drawn = Table(*heads, box=None, pad_edge=False)
    for column, width in zip(drawn.columns, widths, strict=True):
        column.width, column.no_wrap = width, True
    for row in rows:
        drawn.add_row(*row)
    Console(highlight=False, soft_wrap=True, width=sum(widths) + 2 * len(widths)).print(drawn)


def size_text(size_bytes: int) -> str:
    """A size as people read it."""
    size = float(size_bytes)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def speaker(message: dict[str, Any]) -> str:
    """Who says a message, in the shape of any program."""
    return str(message.get("name") or message.get("role") or "?")


def said(message: dict[str, Any]) -> str:
    """What a message says."""
    text = message.get("mes", message.get("content", ""))
    return text if isinstance(text, str) else dumps(text).decode()
