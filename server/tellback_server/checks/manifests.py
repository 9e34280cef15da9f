"""Manifests: what a repair wrote down about the bytes that it put aside. Values and their bytes; pure but for one look.

    <user>/backups/tellback/repairs/<utc ms>/manifest.json           sealed
    <user>/backups/tellback/repairs/<utc ms>/files/<path>            each file as it was, byte for byte
    <user>/backups/tellback/repairs/<utc ms>/quarantine/<path>       lines that were taken out, as they stood
    <data>/.tellback/repairs/<utc ms>/...                            the same for the server's own files
"""

from __future__ import annotations

import os
import zlib
from typing import Final

import msgspec

from tellback_protocol.values import UNDECODABLE
from tellback_server.backup_folder import manifest_from
from tellback_server.checks.findings import Tally
from tellback_server.checks.reading import read_steady, steady_pieces
from tellback_server.fs import Fs, FsError
from tellback_server.sealed import seal, unseal

__all__ = [
    "FILES", "MANIFEST", "QUARANTINE", "REPAIRS", "Change", "Manifest", "check_backup", "check_repair_file",
    "check_repair_manifest", "decode_manifest", "encode_manifest",
]

REPAIRS: Final = "repairs"
MANIFEST: Final = "manifest.json"
FILES: Final = "files"
QUARANTINE: Final = "quarantine"


class Change(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One file that a repair changed, removed or moved. Persisted: keep stable."""

    path: str
    """Below the user's folder, or below `.tellback`."""
    actions: list[str]
    """What was done, in sentences."""
    kept: str
    """The copy of the file as it was, below the repair's folder; empty when there was no file."""
    size_bytes: int = 0
    crc32: int = 0
    quarantine: str = ""
    """Where the lines are that were taken out, below the repair's folder."""
    quarantine_crc32: int = 0


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """A repair. Persisted: keep stable."""

    format: int = 1
    made_ms: int
    is_done: bool
    changes: list[Change]


_decode = msgspec.json.Decoder(Manifest).decode


def encode_manifest(manifest: Manifest) -> bytes:
    """The file."""
    return seal(msgspec.json.encode(manifest))


def decode_manifest(data: bytes) -> Manifest | None:
    """The manifest, or None when it is damaged."""
    unsealed = unseal(data)
    try:
        return None if unsealed is None else _decode(unsealed[0])
    except UNDECODABLE:
        return None


def check_backup(fs: Fs, path: str, tally: Tally) -> None:
    """The manifest of a backup, and the files that it was the first to name. Raises FsError, OSError, Busy."""
    try:
        manifest, was_flipped = manifest_from(read_steady(fs, path)[0])
    except UNDECODABLE as error:
        tally.add("backup-broken", f"the manifest cannot be read: {error}"[:160])
        return
    if was_flipped:
        tally.add("session-bit-flipped")
    folder, stem = os.path.split(path.removesuffix(".json"))
    if manifest.backup != stem:
        tally.add("backup-broken", "the manifest is that of another backup")
    for kept in manifest.files.values():
        # What an earlier backup holds already is looked at with that one, while its manifest stands.
        earlier = os.path.join(folder, kept.file.split(".")[0] + ".json")
        is_own = kept.file.startswith(f"{stem}.") or fs.stat(earlier) is None
        size_bytes = crc32 = 0
        try:
            with fs.open_read(os.path.join(folder, kept.file)) as file:
                if not is_own:
                    continue
                for piece in steady_pieces(file):
                    crc32 = zlib.crc32(piece, crc32)
                    size_bytes += len(piece)
        except FsError as error:
            tally.add("backup-broken", f"{kept.file}: {error.reason}")
            continue
        if (size_bytes, crc32) != (kept.size_bytes, kept.crc32):
            tally.add("backup-differs", kept.file)


def check_repair_manifest(data: bytes, tally: Tally) -> None:
    """The manifest of a repair."""
    unsealed = unseal(data)
    manifest = decode_manifest(data)
    if manifest is None:
        tally.add("backup-broken", "the manifest of a repair cannot be read")
    elif not manifest.is_done:
        tally.add("repair-unfinished")
    if unsealed is not None and unsealed[1]:
        tally.add("session-bit-flipped")


def check_repair_file(fs: Fs, path: str, tally: Tally) -> None:
    """A file that a repair kept: it has to be what the manifest says. Raises FsError, OSError, Busy."""
    parts = path.split(os.sep)
    above = len(parts) - 1 - parts[::-1].index(REPAIRS)
    folder, inner = os.sep.join(parts[: above + 2]), "/".join(parts[above + 2 :])
    try:
        manifest = decode_manifest(read_steady(fs, os.path.join(folder, MANIFEST))[0])
    except OSError:
        manifest = None
    if manifest is None:
        tally.add("backup-differs", "no manifest tells of it")
        return
    expected = {change.kept: change.crc32 for change in manifest.changes}
    expected |= {change.quarantine: change.quarantine_crc32 for change in manifest.changes if change.quarantine}
    crc32 = 0
    with fs.open_read(path) as file:
        for piece in steady_pieces(file):
            crc32 = zlib.crc32(piece, crc32)
    if inner not in expected:
        tally.add("file-unknown")
    elif expected[inner] != crc32:
        tally.add("backup-differs")
