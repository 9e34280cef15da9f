"""Plain text: transcripts of `Name: text`, to and from the messages of a chat's file. Pure.

    Alice: Good morning.
    It is raining.

    Bob: Is it?

Rules of this module:
- A line `Name: text` begins a message, when the name is at most 64 characters long, does not begin with a space, and,
  where speakers are told, is one of them. `[2025-01-05 13:05] Name: text` tells its moment.
- Other lines belong to the message above them; blank lines at its end do not.
- A line that would be read otherwise is written behind four spaces, and reading takes these away again: so what
  `to_text` writes is read as it was.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Collection, Iterable
from typing import Any, Final

import msgspec

from tellback_protocol.moments import utc_text
from tellback_protocol.values import dumps, loads
from tellback_server.store.chat_summary import message_text
from tellback_server.store.jsonl import new_header
from tellback_server.transfer.anomalies import Notes
from tellback_server.transfer.dates import moment_ms

__all__ = ["Transcript", "block_of", "from_text", "text_of_bytes"]

NAME_CHARACTERS_MAX: Final = 64
INDENT: Final = "    "
NARRATOR: Final = "Narrator"
_USER_NAMES: Final = frozenset(("you", "user", "me", "human"))
_BEGIN: Final = re.compile(
    rf"(?:\[(?P<when>[^\]\n]{{4,40}})\] ?)?(?P<name>[^\s:\[][^:\n]{{0,{NAME_CHARACTERS_MAX - 1}}}):(?: (?P<text>.*)|$)",
    re.DOTALL,
)


class Transcript(msgspec.Struct):
    """A chat's file."""

    data: bytes
    messages: int
    is_exact: bool
    """False when the bytes could not be read as they stood."""


def text_of_bytes(data: bytes, notes: Notes) -> tuple[str, bool]:
    """The text of a file, and whether every byte of it is told by that."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        try:
            return data.decode("utf-16"), True
        except UnicodeDecodeError:
            pass
    data = data.removeprefix(codecs.BOM_UTF8)
    try:
        return data.decode(), True
    except UnicodeDecodeError:
        notes.add("text-not-utf8", "read with U+FFFD for what is none; the file's bytes are kept apart")
        return data.decode("utf-8", "replace"), False


def from_text(
    data: bytes, when_ms: int, notes: Notes, *, me: Collection[str] = (), speakers: Collection[str] = ()
) -> Transcript:
    """The chat of a transcript. `me`: names that are the user's; `speakers`: the only names there are."""
    text, is_exact = text_of_bytes(data, notes)
    mine = {name.casefold() for name in me} or _USER_NAMES
    messages: list[dict[str, Any]] = []
    said: list[str] = []

    def close() -> None:
        if messages:
            while len(said) > 1 and not said[-1]:
                said.pop()
            messages[-1]["mes"] = "\n".join(_unindented(line, number) for number, line in enumerate(said))
            said.clear()

    lines = text.split("\n")
    if _is_crlf(lines):
        lines = [line.removesuffix("\r") for line in lines]
    for number, line in enumerate(lines, 1):
        found = _beginning(line, speakers)
        if found is None:
            if not messages:
                if not line.strip():
                    continue
                notes.add("text-without-speaker", f'said by "{NARRATOR}"', line=number)
                messages.append({"name": NARRATOR, "is_user": False, "is_system": False})
            said.append(line)
            continue
        close()
        message: dict[str, Any] = {
            "name": found["name"], "is_user": found["name"].casefold() in mine, "is_system": False,
        }
        when = moment_ms(found["when"]) if found["when"] else None
        if when is not None:
            message["send_date"] = utc_text(when)
        messages.append(message)
        said.append(found["text"] or "")
    close()
    if not messages:
        notes.add("text-empty", "imported as a chat without messages")
    header = loads(new_header(b"{}", "", when_ms))
    # The id that a chat has here is given here.
    del header["chat_id"]
    return Transcript(b"\n".join([dumps(header), *map(dumps, messages)]), len(messages), is_exact)


def _is_crlf(lines: list[str]) -> bool:
    """Whether the lines end in CR LF; where only some do, the CR belongs to a text."""
    return len(lines) > 1 and all(line.endswith("\r") for line in lines[:-1])


def _beginning(line: str, speakers: Collection[str]) -> re.Match[str] | None:
    found = _BEGIN.fullmatch(line)
    if found is None or (speakers and found["name"] not in speakers):
        return None
    if found["when"] and moment_ms(found["when"]) is None:
        return None
    return found


def _unindented(line: str, number: int) -> str:
    """A line as it was said; the first one stands behind the name."""
    if number == 0 or not line.startswith(INDENT):
        return line
    rest = line[len(INDENT) :]
    return rest if _needs_indent(rest) or not rest.strip() else line


def _needs_indent(line: str) -> bool:
    """Whether a line of a text would be read otherwise without spaces before it."""
    if line.startswith(INDENT):
        return _needs_indent(line[len(INDENT) :]) or not line.strip()
    return _BEGIN.fullmatch(line) is not None


def block_of(message: dict[str, Any], *, as_shown: bool = True) -> tuple[str, bool]:
    """A message as text, and whether its name had to be changed."""
    name = message.get("name") or message.get("role") or NARRATOR
    name = name if isinstance(name, str) else NARRATOR
    legal = " ".join(name.replace(":", "\u2236").split())[:NAME_CHARACTERS_MAX].strip().lstrip("[") or NARRATOR
    text = message_text(message)
    extra = message.get("extra")
    if as_shown and isinstance(extra, dict) and isinstance(extra.get("display_text"), str):
        text = extra["display_text"]
    first, *others = text.split("\n")
    end = len(others)
    while end and not others[end - 1].strip():
        end -= 1
    lines = [INDENT + one if _needs_indent(one) else one for one in others[:end]]
    # Blank lines at the end would be the space between two messages.
    lines += [INDENT + one for one in others[end:]]
    return "\n".join([f"{legal}: {first}", *lines]) + "\n", legal != name


def to_text(messages: Iterable[dict[str, Any]]) -> str:
    """A transcript."""
    text = "\n".join(block_of(message)[0] for message in messages)
    # A line end of another kind says that the CRs are the texts'.
    return text + "\n" if _is_crlf(text.split("\n")) else text
