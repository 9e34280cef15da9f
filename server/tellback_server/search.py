"""Search: which messages hold every word that is asked for, and where. Pure, but for the clock that bounds its work.

    query = Query("lost LETTER")                    every word, whatever its case, in one message or in a chat's name
    scan = Scan(query, data, headed=True)           a chat's file; `Scan.of_lines` for a live chat's messages
    scan.run(found, limit=..., is_over=...)         goes on from `scan.index`; False when it was stopped before the end

Rules of this module (BEHAVIOUR I7-I9):
- Words are compared casefolded, in `mes`, `content` and `name`; hidden fields are not looked into.
- Ranges count UTF-16 units of the snippet, as browsers do.
- A line is decoded only when a cheap look cannot rule it out; ids are worked out for what is found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

import msgspec

from tellback_protocol.catalog_frames import FoundMessage
from tellback_protocol.values import UNDECODABLE
from tellback_server.store.chat_summary import MessageLines, message_text, whole
from tellback_server.store.jsonl import LineIds, line_object

__all__ = ["Query", "Scan", "found_name"]

WORDS_MAX: Final = 32
"""More than that is one long quotation; the rest is left out, so that a match is never missed by it."""
BEFORE_CHARACTERS: Final = 60
SNIPPET_CHARACTERS: Final = 240
RANGES_MAX: Final = 64
CHECK_EVERY: Final = 64
"""Messages between two looks at the clock."""


class Query:
    """What is asked for."""

    def __init__(self, text: str) -> None:
        self.words = list(dict.fromkeys(text.casefold().split()))[:WORDS_MAX]
        """Casefolded."""
        self._plain = [word.encode() for word in self.words if word.isascii() and word.isalnum()]
        """Words that an ASCII line without escapes can hold only as they stand."""

    def rules_out(self, line: bytes) -> bool:
        """True when a line cannot hold every word. Cost: one pass over the bytes."""
        if not self._plain or not line.isascii() or b"\\u" in line:
            return False
        lower = line.lower()
        return any(word not in lower for word in self._plain)

    def matches(self, texts: Iterable[str]) -> bool:
        """Whether each word stands in one of the texts."""
        folded = [text.casefold() for text in texts]
        return all(any(word in text for text in folded) for word in self.words)

    def snippet(self, texts: Iterable[str]) -> tuple[str, list[tuple[int, int]]]:
        """The piece of text around the first word found, and where words stand in it, in UTF-16 units.

        Of several texts the first one that holds a word. Cost: the text, only for what matches.
        """
        for text in texts:
            found = self._places(text)
            if found:
                start = max(0, found[0][0] - BEFORE_CHARACTERS)
                end = min(len(text), start + SNIPPET_CHARACTERS)
                end = max(end, min(found[0][1], start + 2 * SNIPPET_CHARACTERS))
                piece = text[start:end]
                inside = [(a - start, b - start) for a, b in found if b <= end][:RANGES_MAX]
                return piece, [(_units(piece[:a]), _units(piece[:b])) for a, b in inside]
        return "", []

    def _places(self, text: str) -> list[tuple[int, int]]:
        """Where words stand, in characters, in order; what overlaps is one place."""
        folded = text.casefold()
        back = range(len(text) + 1) if len(folded) == len(text) else _back(text)
        places: list[tuple[int, int]] = []
        for word in self.words:
            at = folded.find(word)
            while at >= 0 and len(places) < RANGES_MAX * WORDS_MAX:
                end = at + len(word)
                # A character that folds to several counts whole when a part of it is meant.
                places.append((back[at], back[end - 1] + 1))
                at = folded.find(word, end)
        joined: list[tuple[int, int]] = []
        for start, end in sorted(places):
            if joined and start <= joined[-1][1]:
                joined[-1] = (joined[-1][0], max(joined[-1][1], end))
            else:
                joined.append((start, end))
        return joined


def _back(text: str) -> list[int]:
    """For each character of the casefolded text the index of the one that it comes from."""
    back: list[int] = []
    for index, character in enumerate(text):
        back.extend([index] * len(character.casefold()))
    back.append(len(text))
    return back


def _units(text: str) -> int:
    return len(text) + sum(character > "\uffff" for character in text)


def found_name(query: Query, chat: str, name: str) -> FoundMessage | None:
    """The chat itself, when its name holds every word."""
    if not query.matches((name,)):
        return None
    snippet, ranges = query.snippet((name,))
    return FoundMessage(chat, snippet, ranges)


class _Said(msgspec.Struct, gc=False):
    """What of a message is searched."""

    mes: Any = None
    content: Any = None
    name: Any = None


_decode_said = msgspec.json.Decoder(_Said).decode


class Scan:
    """One chat being searched, from message `index` on."""

    def __init__(self, query: Query, chat: str, lines: Iterator[tuple[str | None, bytes]], index: int = 0) -> None:
        """`lines` are ids (None: to be worked out) and messages, from the chat's first one on."""
        self._query = query
        self._chat = chat
        self._lines = lines
        self._from = index
        self.index = 0
        """The message that comes next."""

    @classmethod
    def of_lines(cls, query: Query, chat: str, messages: Iterable[tuple[str, bytes]], index: int = 0) -> Scan:
        """Of a live chat's messages."""
        return cls(query, chat, iter(messages), index)

    @classmethod
    def of_file(cls, query: Query, chat: str, data: bytes, index: int = 0) -> Scan:
        """Of a chat's file. A line that is no message is passed over, as when the chat is opened."""
        return cls(query, chat, _FileLines(data, headed=chat.startswith("character:")), index)

    def run(self, found: list[FoundMessage], limit: int, is_over: Callable[[], bool]) -> bool:
        """Adds what is found until `found` has `limit` entries or `is_over`. True at the end of the chat."""
        query, lines = self._query, self._lines
        for message_id, line in lines:
            index = self.index
            self.index += 1
            if index < self._from:
                continue
            if not query.rules_out(line):
                texts = _texts(line)
                if query.matches(texts):
                    if message_id is None:
                        assert isinstance(lines, _FileLines), "only a file's lines lack their ids"
                        message_id = lines.id_of_last()
                    snippet, ranges = query.snippet(texts)
                    found.append(FoundMessage(self._chat, snippet, ranges, message_id, index))
                    if len(found) >= limit:
                        return False
            if (index - self._from) % CHECK_EVERY == CHECK_EVERY - 1 and is_over():
                return False
        return True


class _FileLines:
    """The messages of a file; ids are worked out for those that are asked for."""

    def __init__(self, data: bytes, *, headed: bool) -> None:
        self._lines = MessageLines(data, headed=headed)
        self._ids = LineIds()
        self._unnamed: list[bytes] = []
        """Lines without an id yet, in order; the last one was given last."""

    def __iter__(self) -> Iterator[tuple[None, bytes]]:
        return self

    def __next__(self) -> tuple[None, bytes]:
        line = next(self._lines)
        self._unnamed.append(line)
        return None, line

    def id_of_last(self) -> str:
        """The id of the line that was given last. Cost: the lines since the last call."""
        message_id = ""
        for line in self._unnamed:
            # A line without these bytes has no `id`, however it is escaped.
            value = line_object(line)[0] if b'"id"' in line or b"\\u00" in line else None
            message_id, _is_bare = self._ids.give(line, value.get("id") if value is not None else None)
        self._unnamed.clear()
        return message_id


def _texts(line: bytes) -> list[str]:
    """What a message says and who says it."""
    try:
        said = _decode_said(line)
        value: dict[str, Any] = {"mes": said.mes, "content": said.content, "name": said.name}
    except UNDECODABLE:
        value = line_object(line)[0] or {}
    name = value.get("name")
    texts = [whole(message_text({key: value.get(key)})) for key in ("mes", "content")]
    texts.append(whole(name) if isinstance(name, str) else "")
    return [text for text in texts if text]
