"""Chat mending: a chat's file put right, line by line. Pure: bytes and what is known in, bytes and sentences out.

Rules of this module (BEHAVIOUR X7, X8):
- A line that is well keeps its bytes, its end and its place.
- Nothing is dropped: what cannot be read is in `quarantined`, with the number of its line.
- What the log still holds is put back; a result that has the checksum of what was written is told as proved.
- Mending what is mended gives the same bytes.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Final

import msgspec

from tellback_protocol.chat import with_id
from tellback_protocol.ids import message_id_problem
from tellback_protocol.values import dumps
from tellback_server.checks.broken import cr_pieces, joined_pieces, utf16_as_utf8
from tellback_server.one_bit import unflipped
from tellback_server.records import FileIdentity
from tellback_server.repairs.header import HeaderFacts, rebuilt_header, unnested
from tellback_server.store.jsonl import LineIds, is_header, line_object, metadata_key_of, parse_chat

__all__ = ["Mended", "Remembered", "mend_chat"]

_BOM: Final = b"\xef\xbb\xbf"


class Remembered(msgspec.Struct, frozen=True):
    """Messages as the log tells them, by id, in the order in which they were made."""

    lines: dict[str, bytes]


class Mended(msgspec.Struct):
    """A file put right."""

    data: bytes
    actions: list[str]
    quarantined: list[tuple[int, bytes]]
    """Number and bytes of each line that could not be read."""


class _Line(msgspec.Struct):
    raw: bytes
    end: bytes
    message_id: str | None = None
    """None for blank lines and the header."""


def mend_chat(
    data: bytes, *, headed: bool, known: Sequence[FileIdentity], remembered: Remembered, facts: HeaderFacts,
    is_rotten: bool, writes_ids: bool = False,
) -> Mended | None:
    """The file put right; None when nothing has to be done or nothing can be.

    `known` is what we wrote (size and CRC). `is_rotten`: nobody wrote, so that a message that the log tells otherwise
    is as the log tells it. `writes_ids`: messages without an id get the one that they are served under.
    """
    if is_rotten or parse_chat(data, headed=headed).damage:
        for identity in known:
            turned = unflipped(data, identity.crc32) if identity.size_bytes == len(data) else None
            if turned is not None and not parse_chat(turned, headed=headed).damage:
                at = next(index for index, (one, other) in enumerate(zip(data, turned, strict=True)) if one != other)
                return Mended(turned, [f"one bit at byte {at} turned back; proved by the checksum"], [])
    work = _Work(data, headed, facts, writes_ids=writes_ids)
    work.read(remembered if is_rotten else Remembered({}))
    if work.quarantined or is_rotten:
        work.put_back(remembered)
    result = work.result()
    if result.data == data:
        if not is_rotten:
            return None
        result.actions.append("nothing of it is known otherwise; it is accepted as it is")
    if parse_chat(result.data, headed=headed).damage:
        return None
    if any(identity.same_bytes(len(result.data), zlib.crc32(result.data)) for identity in known):
        result.actions.append("the result is what was written; proved by the checksum")
    return result


class _Work:
    def __init__(self, data: bytes, headed: bool, facts: HeaderFacts, *, writes_ids: bool) -> None:
        self.actions: list[str] = []
        self.quarantined: list[tuple[int, bytes]] = []
        self._headed = headed
        self._facts = facts
        self._writes_ids = writes_ids
        self._ids_written = 0
        utf8 = utf16_as_utf8(data)
        if utf8 is not None:
            self.actions.append("UTF-16 written as UTF-8")
            data = utf8.removeprefix(_BOM)
        self._bom = _BOM if data.startswith(_BOM) else b""
        self._data = data.removeprefix(_BOM)
        self._lines: list[_Line] = []
        self._ids = LineIds()
        self._has_header = False
        self._line_end = b"\r\n" if b"\r\n" in self._data[:1 << 20] else b"\n"

    def read(self, corrected: Remembered) -> None:
        """Every line: kept, taken apart, made anew or put aside."""
        lines = self._data.split(b"\n")
        is_first = True
        for number, raw in enumerate(lines, 1):
            end = b"\n" if number < len(lines) else b""
            line = raw
            if line.endswith(b"\r"):
                line, end = line[:-1], b"\r" + end
            if not line or line.isspace():
                if line or end:
                    self._lines.append(_Line(line, end))
                continue
            for piece, piece_end in self._pieces(line, end, number):
                self._take(piece, piece_end, number, is_first=is_first, corrected=corrected)
                is_first = False
        if self._headed and not self._has_header and any(line.message_id for line in self._lines):
            self._make_header(b"")
            self.actions.append("a header line put in front")
        if self._ids_written:
            self.actions.append(f"{self._ids_written:,} messages get the ids that they are served under")

    def _pieces(self, line: bytes, end: bytes, number: int) -> list[tuple[bytes, bytes]]:
        if line_object(line)[0] is not None:
            return [(line, end)]
        pieces = cr_pieces(line) or joined_pieces(line)
        if pieces is None:
            return [(line, end)]
        self.actions.append(f"line {number} taken apart into {len(pieces)} lines")
        return [(piece, self._line_end) for piece in pieces[:-1]] + [(pieces[-1], end)]

    def _take(self, line: bytes, end: bytes, number: int, *, is_first: bool, corrected: Remembered) -> None:
        value, _remark = line_object(line)
        if value is None:
            self.quarantined.append((number, line + end))
            if is_first and self._headed:
                self._make_header(line)
                self.actions.append(f"line {number}, the header, made anew")
            else:
                self.actions.append(f"line {number} put aside: it cannot be read")
            return
        if is_first and is_header(value, self._headed):
            self._has_header = True
            key = metadata_key_of(value)
            if key is not None and isinstance(value[key].get("chat_metadata"), dict):
                line = dumps(unnested(value))
                self.actions.append("metadata taken out of the metadata")
            self._lines.append(_Line(line, end))
            return
        explicit = value.get("id")
        message_id, is_bare = self._ids.give(line, explicit)
        if is_bare and explicit is not None:
            why = "cannot be one" if message_id_problem(explicit) is not None else "stands on an earlier line too"
            line = with_id(line, message_id)
            self.actions.append(f"line {number}: its id {why}, and is written as it is served")
        elif is_bare and self._writes_ids:
            line = with_id(line, message_id)
            self._ids_written += 1
        known = corrected.lines.get(message_id)
        if known is not None and known != line:
            self.quarantined.append((number, line + end))
            line = known
            self.actions.append(f"line {number} put back as the log has it")
        self._lines.append(_Line(line, end, message_id))

    def _make_header(self, broken: bytes) -> None:
        header, said = rebuilt_header(broken, self._facts)
        self._has_header = True
        self._lines.insert(0, _Line(header, self._line_end))
        self.actions.extend(said)

    def put_back(self, remembered: Remembered) -> None:
        """Messages that the log has and the file lacks, each behind the one that it was made after."""
        standing = {line.message_id for line in self._lines if line.message_id is not None}
        before: str | None = None
        for message_id, line in remembered.lines.items():
            if message_id not in standing:
                at = self._place_behind(before, remembered)
                self._lines.insert(at, _Line(line, self._line_end, message_id))
                standing.add(message_id)
                self.actions.append(f"message {message_id} put back from the log")
            before = message_id

    def _place_behind(self, before: str | None, remembered: Remembered) -> int:
        if before is not None:
            for index in range(len(self._lines) - 1, -1, -1):
                if self._lines[index].message_id == before:
                    return index + 1
        # The first that the log knows: in front of the next one that stands, as all before it are older.
        for index, line in enumerate(self._lines):
            if line.message_id is not None and line.message_id in remembered.lines:
                return index
        return len(self._lines)

    def result(self) -> Mended:
        """The file."""
        had_end = self._data.endswith(b"\n") or not self._data
        parts: list[bytes] = [self._bom]
        for index, line in enumerate(self._lines):
            is_last = index == len(self._lines) - 1
            end = line.end
            if not is_last and not end.endswith(b"\n"):
                end = self._line_end
            parts += (line.raw, end)
        data = b"".join(parts)
        if self.actions and self._lines and not had_end and not self.quarantined:
            data = data.removesuffix(b"\n").removesuffix(b"\r")
        return Mended(data, self.actions, self.quarantined)
