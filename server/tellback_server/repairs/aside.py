"""Aside: where a repair keeps what it changes, byte for byte, before it changes it.

    aside = Aside(fs, folder, root, now_ms)      nothing is made yet
    aside.begin(changes)                         the manifest, with what is going to be done; durable
    aside.keep(change, data)                     one file's copy; durable
    aside.finish()                               the manifest says that all is done

Rules of this module (BEHAVIOUR X9):
- The copy is durable and verified before the file is touched.
- A repair that was cut off leaves copies and a manifest that says so; the next one begins with fresh eyes, and says of
  the old one that it is over.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator

import msgspec

from tellback_server.checks.manifests import (
    FILES,
    MANIFEST,
    QUARANTINE,
    REPAIRS,
    Change,
    Manifest,
    decode_manifest,
    encode_manifest,
)
from tellback_server.failpoint import failpoint
from tellback_server.fs import FileMissing, Fs, FsError

__all__ = ["Aside", "close_unfinished", "unfinished_repairs"]


class Aside:
    """One repair of the files below one root."""

    def __init__(self, fs: Fs, folder: str, now_ms: int) -> None:
        """`folder` holds the repairs of this root."""
        self._fs = fs
        while fs.stat(os.path.join(folder, str(now_ms))) is not None:
            now_ms += 1
        self.folder = os.path.join(folder, str(now_ms))
        self._made_ms = now_ms
        self._changes: list[Change] = []

    @staticmethod
    def change(path: str, actions: list[str], data: bytes | None, quarantined: bytes = b"") -> Change:
        """What will be done to a file below the root."""
        return Change(
            path=path, actions=actions, kept="" if data is None else f"{FILES}/{path}",
            size_bytes=0 if data is None else len(data), crc32=0 if data is None else zlib.crc32(data),
            quarantine=f"{QUARANTINE}/{path}" if quarantined else "", quarantine_crc32=zlib.crc32(quarantined),
        )

    def begin(self, changes: list[Change]) -> None:
        """Raises OSError."""
        self._changes = changes
        self._write(is_done=False)
        failpoint("repair.after_manifest")

    def keep(self, change: Change, data: bytes | None, quarantined: bytes = b"") -> None:
        """Raises OSError; then the file must not be touched."""
        for inner, kept in ((change.kept, data), (change.quarantine, quarantined)):
            if inner and kept is not None:
                path = os.path.join(self.folder, *inner.split("/"))
                self._fs.make_directories(os.path.dirname(path))
                self._fs.write_atomically(path, kept)
        failpoint("repair.after_copy")

    def finish(self) -> None:
        """Raises OSError."""
        failpoint("repair.before_done")
        self._write(is_done=True)

    def _write(self, *, is_done: bool) -> None:
        self._fs.make_directories(self.folder)
        manifest = Manifest(made_ms=self._made_ms, is_done=is_done, changes=self._changes)
        self._fs.write_atomically(os.path.join(self.folder, MANIFEST), encode_manifest(manifest))


def unfinished_repairs(fs: Fs, above: str) -> Iterator[tuple[str, Manifest]]:
    """Manifests of repairs that were cut off. `above` holds `repairs`."""
    try:
        names = fs.listdir(os.path.join(above, REPAIRS))
    except FsError:
        return
    for name in names:
        path = os.path.join(above, REPAIRS, name, MANIFEST)
        try:
            manifest = decode_manifest(fs.read(path))
        except (FileMissing, FsError):
            continue
        if manifest is not None and not manifest.is_done:
            yield path, manifest


def close_unfinished(fs: Fs, above: str) -> None:
    """Says of repairs that were cut off that they are over. What they had not done was found again."""
    for path, manifest in list(unfinished_repairs(fs, above)):
        # A copy that was never made is not told.
        folder = os.path.dirname(path)
        made = [
            change for change in manifest.changes
            if not change.kept or fs.stat(os.path.join(folder, *change.kept.split("/"))) is not None
        ]
        fs.write_atomically(path, encode_manifest(msgspec.structs.replace(manifest, is_done=True, changes=made)))
