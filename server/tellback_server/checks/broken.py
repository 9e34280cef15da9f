"""Broken: what became of a line that is no JSON object. Pure; the check names it, the repair undoes it."""

from __future__ import annotations

import codecs
import json
from typing import Final

from tellback_protocol.values import loads

__all__ = ["cause_of", "cr_pieces", "is_utf16", "joined_pieces", "utf16_as_utf8"]

_DECODER: Final = json.JSONDecoder()
PIECES_MAX: Final = 10_000


def cause_of(line: bytes, *, is_tail: bool) -> str:
    """The code of a finding for a line that is no JSON object. `is_tail`: it is the last one and has no end."""
    if b"\0" in line:
        return "line-zeroed"
    if cr_pieces(line) is not None:
        return "line-ends-cr"
    if joined_pieces(line) is not None:
        return "lines-joined"
    if is_tail and not _is_value(line):
        return "tail-torn"
    try:
        line.decode()
    except UnicodeDecodeError:
        return "line-not-utf8"
    return "line-not-object" if _is_value(line) else "line-not-json"


def cr_pieces(line: bytes) -> list[bytes] | None:
    """The lines of a file that some program ended with CR alone; None when it is not one."""
    if b"\r" not in line:
        return None
    pieces = [piece for piece in line.split(b"\r") if piece.strip()]
    return pieces if len(pieces) > 1 and all(_is_object(piece) for piece in pieces) else None


def joined_pieces(line: bytes) -> list[bytes] | None:
    """The objects that stand on one line because a line end was lost; None when it is something else."""
    try:
        text = line.decode()
    except UnicodeDecodeError:
        return None
    pieces: list[bytes] = []
    at = 0
    while at < len(text):
        if len(pieces) >= PIECES_MAX or text[at] != "{":
            return None
        try:
            value, end = _DECODER.raw_decode(text, at)
        except (ValueError, RecursionError):
            return None
        if not isinstance(value, dict):
            return None
        pieces.append(text[at:end].encode())
        at = end
        while at < len(text) and text[at] in " \t\r":
            at += 1
    return pieces if len(pieces) > 1 else None


def is_utf16(data: bytes) -> bool:
    """Whether a file begins as UTF-16 does."""
    return data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))


def utf16_as_utf8(data: bytes) -> bytes | None:
    """A file of UTF-16 as UTF-8; None when it is none."""
    if not is_utf16(data):
        return None
    try:
        return data.decode("utf-16").encode()
    except UnicodeError:
        return None


def _is_value(line: bytes) -> bool:
    try:
        loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(loads(line), dict)
    except (ValueError, RecursionError):
        return False
