"""Chat lines: what a chat's file holds, line by line. Pure; the file comes in pieces, so that its size does not matter.

    scan = ChatScan(path, headed=True, known_bytes=(...))
    for piece in pieces: scan.feed(piece)
    scan.finish()                    -> what was found is in scan.tally

Rules of this module (BEHAVIOUR X3):
- A line is damage exactly when `jsonl.parse_chat` quarantines it, so that check and server never differ.
- Ids are those that the parser gives.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection
from typing import Any, Final

from tellback_protocol.ids import is_integrity, message_id_problem
from tellback_protocol.values import servable
from tellback_server.checks.broken import cause_of, is_utf16
from tellback_server.checks.findings import Tally
from tellback_server.store.jsonl import LineIds, is_header, line_object, metadata_key_of

__all__ = ["ChatScan"]

_BOM: Final = b"\xef\xbb\xbf"
MESSAGE_BYTES_LARGE: Final = 1 << 20


class ChatScan:
    """One pass over one file. Memory: the ids of its messages, and its longest line."""

    def __init__(self, path: str, *, headed: bool, known_bytes: Collection[int] = (), keep_ids: bool = False) -> None:
        """`known_bytes` are lengths at which the CRC-32 is wanted; `keep_ids` that `ids` is."""
        self.tally = Tally(path)
        self._headed = headed
        self.size_bytes = 0
        self.crc32 = 0
        self.crc_at: dict[int, int] = {0: 0}
        """CRC-32 of the first so many bytes, for the known lengths that the file has."""
        self.messages = 0
        self.ids: list[str] | None = [] if keep_ids else None
        self.chat_id: str | None = None
        """The header's."""
        self._known = sorted({size for size in known_bytes if size > 0}, reverse=True)
        self._given = LineIds()
        self._explicit: set[str] = set()
        self._rest: list[bytes] = []
        self._line = 0
        self._offset = 0
        self._is_first = True
        self._has_header = False
        self._is_utf16 = False

    def feed(self, piece: bytes) -> None:
        """The next bytes of the file."""
        if not self.size_bytes:
            self._is_utf16 = is_utf16(piece)
        self._count(piece)
        if self._is_utf16:
            return
        first, *others = piece.split(b"\n")
        self._rest.append(first)
        for other in others:
            line = b"".join(self._rest) if len(self._rest) > 1 else self._rest[0]
            self._rest = [other]
            self._read(line, is_tail=False)

    def _count(self, piece: bytes) -> None:
        view = memoryview(piece)
        while self._known and self._known[-1] <= self.size_bytes + len(view):
            size = self._known.pop()
            part = view[: size - self.size_bytes]
            self.crc32 = self.crc_at[size] = zlib.crc32(part, self.crc32)
            self.size_bytes = size
            view = view[len(part) :]
        self.crc32 = zlib.crc32(view, self.crc32)
        self.size_bytes += len(view)

    def finish(self) -> None:
        """The file has ended."""
        tally = self.tally
        if self._is_utf16:
            tally.add("encoding-utf16", offset=0)
            return
        line = b"".join(self._rest)
        if line:
            self._read(line, is_tail=True)
        if self.size_bytes == 0:
            tally.add("chat-empty")
        elif self._is_first and not self._has_header:
            tally.add("chat-empty", "only blank lines")

    def _read(self, line: bytes, *, is_tail: bool) -> None:
        self._line += 1
        offset = self._offset
        self._offset += len(line) + 1
        if self._line == 1 and line.startswith(_BOM):
            self.tally.add("encoding-bom", offset=0)
            line = line[len(_BOM) :]
        if line.endswith(b"\r"):
            line = line[:-1]
            self.tally.add("line-ends-crlf", line=self._line, offset=offset)
        if not line or line.isspace():
            if not is_tail:
                self.tally.add("line-blank", line=self._line, offset=offset)
            return
        value, remark = line_object(line)
        is_first, self._is_first = self._is_first, False
        if value is None:
            self._broken(line, remark, offset, is_first=is_first, is_tail=is_tail)
        elif is_first and is_header(value, self._headed):
            self._header(value, offset)
        else:
            self._message(line, value, remark, offset, is_first=is_first)

    def _broken(self, line: bytes, problem: str, offset: int, *, is_first: bool, is_tail: bool) -> None:
        code = cause_of(line, is_tail=is_tail)
        if is_first and self._headed and code in ("line-not-json", "line-zeroed", "tail-torn", "line-not-utf8"):
            code = "header-unreadable"
        self.tally.add(code, problem, line=self._line, offset=offset)

    def _header(self, value: dict[str, Any], offset: int) -> None:
        self._has_header = True
        key = metadata_key_of(value)
        if key == "metadata":
            self.tally.add("header-cardshark", line=self._line)
        metadata = value.get(key or "chat_metadata")
        if metadata is not None and not isinstance(metadata, dict):
            self.tally.add("metadata-not-object", line=self._line, offset=offset)
        elif isinstance(metadata, dict) and isinstance(metadata.get("chat_metadata"), dict):
            self.tally.add("metadata-nested", line=self._line, offset=offset)
        chat_id = value.get("chat_id")
        if isinstance(chat_id, str):
            self.chat_id = chat_id
            if not is_integrity(chat_id):
                self.tally.add("chat-id-illegal", line=self._line)

    def _message(self, line: bytes, value: dict[str, Any], remark: str, offset: int, *, is_first: bool) -> None:
        tally, number = self.tally, self._line
        self.messages += 1
        explicit = value.get("id")
        message_id, is_bare = self._given.give(line, explicit)
        if self.ids is not None:
            self.ids.append(message_id)
        if is_bare:
            if explicit is None:
                tally.add("message-id-missing", line=number)
            elif message_id_problem(explicit) is not None:
                tally.add("message-id-illegal", line=number, offset=offset)
            else:
                tally.add("message-id-duplicate", str(explicit)[:40], line=number, offset=offset)
        if is_first:
            tally.add("header-missing" if self._headed else "header-in-group", line=number)
        elif "chat_metadata" in value and is_header(value, headed=False):
            tally.add("header-repeated", line=number, offset=offset)
        elif "mes" not in value and "content" not in value:
            tally.add("message-without-text", line=number)
        if remark and servable(line) != line:
            tally.add("message-half-character", line=number)
        if len(line) > MESSAGE_BYTES_LARGE:
            tally.add("message-large", f"{len(line):,} bytes", line=number, offset=offset)
        extra = value.get("extra")
        if extra is not None and not isinstance(extra, dict):
            tally.add("message-extra-odd", line=number)
        if "swipes" in value or "swipe_id" in value:
            self._swipes(value, number)

    def _swipes(self, value: dict[str, Any], number: int) -> None:
        tally = self.tally
        swipes = value.get("swipes")
        shown = value.get("swipe_id")
        if not isinstance(swipes, list):
            if swipes is not None:
                tally.add("swipes-odd", line=number)
            return
        if not all(isinstance(swipe, str) for swipe in swipes):
            tally.add("swipes-odd", line=number)
        if shown is not None and (
            isinstance(shown, bool) or not isinstance(shown, int) or not 0 <= shown < max(1, len(swipes))
        ):
            tally.add("swipe-id-odd", f"{str(shown)[:20]} of {len(swipes)}", line=number)
        info = value.get("swipe_info")
        if not isinstance(info, list) or len(info) != len(swipes) or not all(isinstance(one, dict) for one in info):
            tally.add("swipe-info-odd", line=number)
