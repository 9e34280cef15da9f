"""Anomalies: what an import or export found that is not as expected, and what was done about it. Pure.

Rules of this module:
- A code that a check has too (`checks/findings.py`) means the same here.
- Nothing is told twice: what a file has many times is one anomaly with a number; damage is told line by line.
"""

from __future__ import annotations

from typing import Final

import msgspec

from tellback_server.checks.findings import CODES as CHECK_CODES
from tellback_server.checks.findings import Finding, Severity

__all__ = ["CODES", "Anomaly", "Notes", "from_finding"]

SINGLE_MAX: Final = 50
"""Damaged lines of one file that are told singly."""

CODES: Final[dict[str, tuple[Severity, str]]] = {
    "source-link": ("warning", "a link, a folder or a device stands where a file belongs"),
    "source-unreadable": ("damage", "the file cannot be read"),
    "source-busy": ("warning", "the file changed while it was read"),
    "source-other": ("info", "no file of chats"),
    "source-server-file": ("info", "another tellback's own file"),
    "source-active-chats": ("info", "the file tells which chats are active"),
    "source-map-unreadable": ("warning", "the map of folders cannot be read"),
    "name-not-text": ("warning", "the name is no Unicode text"),
    "name-unusable": ("warning", "the name cannot be that of a chat"),
    "name-made-legal": ("info", "the name holds what a new name cannot hold"),
    "name-taken": ("warning", "something else has this name here"),
    "character-twin": ("warning", "a folder here differs only in case or Unicode form"),
    "changed-here": ("info", "what was imported earlier was changed here since"),
    "changed-there": ("info", "the source was changed since it was imported"),
    "gone-here": ("info", "what was imported earlier is not there any more"),
    "renamed-there": ("info", "it was imported earlier under another name"),
    "state-taken": ("warning", "a state of this name with other content is here"),
    "sync-of-a-server": ("info", "chat_sync tells the ids and versions that another tellback gave"),
    "line-not-json": ("damage", "a line cannot be read"),
    "line-not-object": ("damage", "a line holds something else than an object"),
    "lines-left-out": ("damage", "lines that are no messages have no place in a store"),
    "line-not-message": ("warning", "an object with neither a role nor a text"),
    "conversation-empty": ("info", "a conversation without messages"),
    "text-not-utf8": ("warning", "the text is no UTF-8"),
    "text-without-speaker": ("warning", "text that nobody is told to say"),
    "text-empty": ("info", "there is no text"),
    "date-unreadable": ("warning", "a date in no known form"),
    "metadata-nested": ("warning", "chat_metadata stands inside chat_metadata"),
    "metadata-not-object": ("warning", "chat_metadata is no object"),
    "header-missing": ("warning", "the first line is a message"),
    "variations-differ": ("warning", "variations and swipes differ"),
    "message-id-unusable": ("warning", "an id that cannot be one, or is taken in this chat"),
    "export-differs": ("warning", "something else stands at this name"),
    "export-without": ("info", "the format has no place for it"),
    "export-name": ("info", "the name had to be made legal"),
}


class Anomaly(msgspec.Struct, frozen=True, omit_defaults=True):
    """One of them. Read by scripts: keep the fields."""

    code: str
    severity: Severity
    path: str
    """In the source, with slashes."""
    message: str
    done: str
    """What was done, or that nothing had to be."""
    line: int = 0
    """1-based; 0 when it is not about a line."""
    count: int = 1


class Notes:
    """The anomalies of one file."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._found: dict[str, list[Anomaly]] = {}

    def add(self, code: str, done: str, *, detail: str = "", line: int = 0) -> None:
        """One more."""
        severity, meaning = CODES[code]
        known = self._found.setdefault(code, [])
        if not known or (severity == "damage" and len(known) < SINGLE_MAX):
            message = f"{meaning} ({detail})" if detail else meaning
            known.append(Anomaly(code, severity, self.path, message, done, line))
        else:
            known[-1] = msgspec.structs.replace(known[-1], count=known[-1].count + 1)

    def put(self, anomaly: Anomaly) -> None:
        """One that is made already."""
        self._found.setdefault(anomaly.code, []).append(anomaly)

    def drain(self) -> list[Anomaly]:
        """Those that were not told yet."""
        told = self.take()
        self._found = {}
        return told

    def take(self) -> list[Anomaly]:
        """All of them, by line."""
        return sorted((one for known in self._found.values() for one in known), key=lambda one: one.line)


def from_finding(finding: Finding, path: str) -> Anomaly:
    """What a check says of a file that is taken byte for byte."""
    done = "kept as it is"
    if finding.severity == "damage":
        done = "kept as it is; the chat is read-only until `tellback repair`"
    assert finding.code in CHECK_CODES, "checks know their codes"
    return Anomaly(finding.code, finding.severity, path, finding.message.rstrip("."), done, finding.line, finding.count)
