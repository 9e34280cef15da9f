"""File source: role/content JSONL and plain text, one file or a folder of them.

    talk.jsonl                     --character, else "Imported"
    <character>/talk.jsonl         the folder's name, unless --character is given

Rules of this module:
- A file of conversations is many chats, each told apart by its line and content.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final, Literal

import msgspec

from tellback_protocol.ids import CharacterChat, GroupChat, Place
from tellback_protocol.values import dumps
from tellback_server.checks.broken import is_utf16, utf16_as_utf8
from tellback_server.checks.reading import Busy, steady_pieces
from tellback_server.fs import FileStat, Fs, FsError
from tellback_server.transfer.anomalies import Anomaly, Notes
from tellback_server.transfer.item import Item, legal_name
from tellback_server.transfer.plain_text import from_text
from tellback_server.transfer.role_content import Conversation, conversations_in, conversations_of, from_role_content
from tellback_server.transfer.source import Entry, Found, Reading, SourceUnusable, existing

__all__ = ["Choices", "FileSource"]

_ENDINGS: Final = {"openai": (".jsonl", ".json", ".ndjson"), "text": (".txt", ".md", ".text", ".log")}
_DEPTH_MAX: Final = 8
_NS_MS: Final = 1_000_000


class Choices(msgspec.Struct, frozen=True):
    """What a person said about files that do not tell it."""

    character: str | None = None
    me: tuple[str, ...] = ()
    speakers: tuple[str, ...] = ()


class FileSource:
    """See Source."""

    def __init__(self, fs: Fs, path: str, form: Literal["openai", "text"], choices: Choices) -> None:
        path = os.path.realpath(path)
        self._form = form
        self._choices = choices
        self._only: str | None = None
        if existing(fs, path).is_regular:
            path, self._only = os.path.split(path)
        self.root = path
        self._reading = Reading(fs, path)
        self._entries: list[Entry] = []
        self._left_out: list[Anomaly] = []

    def plan(self) -> int:
        if self._only is not None:
            path = os.path.join(self.root, self._only)
            self._entries = [Entry(path, (self._only,), existing(self._reading.fs, path).size_bytes)]
        else:
            self._list((), 0)
            if not self._entries:
                endings = ", ".join(_ENDINGS[self._form])
                raise SourceUnusable(f"{self.root} holds no file that ends in {endings}")
        return sum(entry.size_bytes for entry in self._entries)

    def _list(self, parts: tuple[str, ...], depth: int) -> None:
        for entry in self._reading.listed(parts):
            if isinstance(entry, Anomaly):
                self._left_out.append(entry)
            elif entry.parts[-1].lower().endswith(_ENDINGS[self._form]) and entry.parts[-1][0] != ".":
                self._entries.append(entry)
            else:
                notes = Notes(entry.name)
                notes.add("source-other", "left out")
                self._left_out += notes.take()
        if depth >= _DEPTH_MAX:
            return
        for name in self._reading.folders(parts):
            if isinstance(name, Anomaly):
                self._left_out.append(name)
            elif name[0] != ".":
                self._list((*parts, name), depth + 1)

    def has(self, source: str) -> bool:
        return self._reading.has(source)

    def items(self) -> Iterator[Found]:
        yield from self._left_out
        for entry in self._entries:
            yield from self._file(entry)

    def _file(self, entry: Entry) -> Iterator[Found]:
        if self._form == "openai" and not entry.parts[-1].lower().endswith(".json"):
            yield from self._lines(entry)
            return
        notes = Notes(entry.name)
        read = self._reading.read(entry, notes)
        if read is None:
            yield from notes.take()
            return
        data, stat = read
        if self._form == "text":
            yield self._text(entry, data, stat, notes)
            return
        for chat in conversations_of(utf16_as_utf8(data) or data, True, notes):
            yield self._chat(entry, chat, stat, notes)

    def _lines(self, entry: Entry) -> Iterator[Found]:
        """A file of conversations may be larger than memory."""
        notes = Notes(entry.name)
        try:
            with self._reading.fs.open_read(entry.path) as file:
                stat = file.stat()
                if is_utf16(file.pread(2, 0)):
                    data = file.pread(stat.size_bytes, 0)
                    lines = iter((utf16_as_utf8(data) or data).split(b"\n"))
                else:
                    lines = _lines_of(steady_pieces(file))
                for chat in conversations_in(lines, notes):
                    yield self._chat(entry, chat, stat, notes)
        except Busy:
            notes.add("source-busy", "imported as far as it was read; run it again")
        except FsError as error:
            notes.add("source-unreadable", "left out", detail=error.reason)
        yield from notes.drain()

    def _text(self, entry: Entry, data: bytes, stat: FileStat, notes: Notes) -> Item:
        stem = os.path.splitext(entry.parts[-1])[0]
        when_ms = stat.mtime_ns // _NS_MS
        text = from_text(data, when_ms, notes, me=self._choices.me, speakers=self._choices.speakers)
        return Item(
            source=entry.name, target=self._place(entry, stem, notes), data=text.data, content=data,
            mtime_ns=stat.mtime_ns, size_bytes=len(data), messages=text.messages, notes=notes.drain(),
            quarantine=b"" if text.is_exact else data,
        )

    def _chat(self, entry: Entry, chat: Conversation, stat: FileStat, notes: Notes) -> Item:
        stem = os.path.splitext(entry.parts[-1])[0]
        name = stem if chat.line == 0 else chat.title or f"{stem} #{chat.line}"
        place = self._place(entry, name, notes)
        lines = sum(map(len, chat.lines)) + len(chat.lines)
        return Item(
            source=entry.name if chat.line == 0 else f"{entry.name}#{chat.line}", target=place,
            data=from_role_content(chat, str(place), stat.mtime_ns // _NS_MS),
            content=b"\n".join([dumps(chat.fields), *chat.lines]), mtime_ns=stat.mtime_ns,
            size_bytes=stat.size_bytes if chat.line == 0 else lines, messages=chat.messages, notes=notes.drain(),
        )

    def _place(self, entry: Entry, name: str, notes: Notes) -> Place:
        folders = entry.parts[:-1]
        legal = legal_name(name)
        if legal != name:
            notes.add("name-made-legal", f"called {legal}", detail=name[:80])
        if folders == ("group chats",) and self._choices.character is None:
            return GroupChat(legal)
        told = self._choices.character or (folders[-1] if folders else "")
        return CharacterChat(legal_name(told) if told else "Imported", legal)


def _lines_of(pieces: Iterator[bytes]) -> Iterator[bytes]:
    rest: list[bytes] = []
    for piece in pieces:
        first, *others = piece.split(b"\n")
        rest.append(first)
        for other in others:
            yield b"".join(rest)
            rest = [other]
    yield b"".join(rest)
