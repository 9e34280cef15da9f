"""Term: the fencing number of the process that owns the data folder, and which segments must exist.

Rules this module keeps:

- The file is replaced whole (`Fs.write_atomically`), so it is never torn: a line that cannot be read is damage, not a
  crash. One flipped bit is repaired; more is `LogCorrupt`.
- The term rises at every start, before the log is read. A process that finds another term in the file is no longer the
  owner and must not release anything (STORAGE S2, S12).
- `oldest` is raised before segments are removed, `newest` after a segment got its name at a start; so a segment missing
  between them was lost, not trimmed.

The file, one line of ASCII:

    tellback-term 1 term=12 oldest=3 newest=9 crc=0a1b2c3d
"""

from __future__ import annotations

import re
import zlib

import msgspec

from tellback_server.fs import FileMissing, FileStat, Fs
from tellback_server.log.errors import LogCorrupt, TermSuperseded

__all__ = ["TermFile", "TermLine", "decode_term", "encode_term", "repaired_term"]

_LINE = re.compile(rb"(tellback-term 1 term=(\d{1,19}) oldest=(\d{1,19}) newest=(\d{1,19})) crc=([0-9a-f]{8})\n")
_LINE_BYTES_MAX = 256


class TermLine(msgspec.Struct, frozen=True, gc=False):
    """What the file says. All zero before the first start."""

    term: int = 0
    oldest: int = 0
    """Segments below this number may be removed, and may be gone."""
    newest: int = 0
    """A segment of this number existed; 0 when none did."""


def encode_term(line: TermLine) -> bytes:
    """The bytes of the file."""
    text = b"tellback-term 1 term=%d oldest=%d newest=%d" % (line.term, line.oldest, line.newest)
    return b"%s crc=%08x\n" % (text, zlib.crc32(text))


def decode_term(data: bytes) -> TermLine | None:
    """What the bytes say, or None when they are damaged."""
    match = _LINE.fullmatch(data)
    if match is None or int(match[5], 16) != zlib.crc32(match[1]):
        return None
    return TermLine(int(match[2]), int(match[3]), int(match[4]))


class TermFile:
    """The file, and what we last wrote into it. Not thread-safe, except `check`."""

    def __init__(self, fs: Fs, path: str) -> None:
        self._fs = fs
        self.path = path
        self.line = TermLine()
        self._written: FileStat | None = None

    def load(self) -> TermLine:
        """Reads the file; a missing one is the line of all zeros. Raises LogCorrupt, FsError."""
        try:
            data = self._fs.read(self.path)
        except FileMissing:
            return self.line
        line = decode_term(data) or repaired_term(data)
        if line is None:
            raise LogCorrupt(self.path, 0, "the term file cannot be read; its bytes have changed")
        self.line = line
        return line

    def store(self, line: TermLine) -> None:
        """Makes `line` durable. Raises OSError."""
        # Set first: between the rename and the return, a check by the writer thread would see a file it does not know.
        self.line = line
        self._written = None
        self._written = self._fs.write_atomically(self.path, encode_term(line))

    def check(self) -> None:
        """Raises TermSuperseded when the file is not ours any more. Costs one lstat; a changed file is read."""
        written = self._written
        found = self._fs.stat(self.path)
        if found is None:
            raise TermSuperseded(self.line.term, 0)
        if written is not None and found.inode == written.inode and found.device == written.device:
            return
        line = decode_term(self._fs.read(self.path))
        if line is None or line.term != self.line.term:
            raise TermSuperseded(self.line.term, line.term if line else 0)
        self._written = found


def repaired_term(data: bytes) -> TermLine | None:
    """The line before one bit flipped, or None."""
    if len(data) > _LINE_BYTES_MAX:
        return None
    candidate = bytearray(data)
    for bit in range(len(data) * 8):
        candidate[bit >> 3] ^= 1 << (bit & 7)
        line = decode_term(bytes(candidate))
        if line is not None:
            return line
        candidate[bit >> 3] ^= 1 << (bit & 7)
    return None
