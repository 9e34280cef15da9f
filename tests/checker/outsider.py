"""Another program on the chat's file: SillyTavern's whole save of what its own page knows, Luker's append, an editor.

What it writes is noted as `edited`, with its text, which nobody else writes.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
from pathlib import Path

from tests.checker.evidence import chat_file
from tests.checker.notebook import Notebook

MANNERS = ("sillytavern", "luker", "editor")


class Outsider:
    """See the module. Knows the chat by the id in its chat_sync, whatever it is called."""

    def __init__(self, data: Path, chat_id: str, notebook: Notebook, chance: random.Random) -> None:
        self._data = data
        self._chat_id = chat_id
        self._notebook = notebook
        self._chance = chance
        self._count = 0
        self._page: bytes | None = None
        """What SillyTavern's page has loaded."""

    def load(self) -> None:
        """The page is loaded: from here on it knows what the file holds now."""
        with contextlib.suppress(OSError):
            path = chat_file(self._data, self._chat_id)
            self._page = None if path is None else path.read_bytes()

    def edit(self) -> None:
        """One save, by one of the three, where there is a file."""
        manner = self._chance.choice(MANNERS)
        self._count += 1
        text = f"outside {self._count} {manner}"
        line = json.dumps({"name": "Other", "is_user": False, "mes": text}).encode()
        with contextlib.suppress(OSError):
            path = chat_file(self._data, self._chat_id)
            if path is None:
                return
            match manner:
                case "sillytavern" if self._page is not None:
                    aside = path.with_suffix(".tmp")
                    aside.write_bytes(self._page.rstrip(b"\n") + b"\n" + line)
                    os.replace(aside, path)
                case "luker":
                    with path.open("r+b") as file:
                        file.seek(0, os.SEEK_END)
                        file.write(b"\n" + line)
                case _:
                    now = path.read_bytes()
                    with path.open("r+b") as file:
                        file.write(now.rstrip(b"\n") + b"\n" + line + b"\n")
                        file.truncate()
            self._notebook.note("", "edited", manner=manner, text=text)
        self.load()
