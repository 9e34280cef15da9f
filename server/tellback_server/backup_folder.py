"""Backup folder: the backups of a user's owners on the disk: taken, listed, read, thinned.

    <user>/backups/tellback/<chat_id>/<seq>-<utc ms>.json                            the Manifest of one backup
    <user>/backups/tellback/<chat_id>/<seq>-<utc ms>.jsonl                           the chat's file, as it was
    <user>/backups/tellback/<chat_id>/<seq>-<utc ms>.luker-state.<namespace>.json    each state file, as it was

Copied beside each other under a chat's name, the files are that chat again: no program of ours is needed for it.

Rules of this module (BEHAVIOUR Z1 to Z6, STORAGE "Backups"):
- The folder is that of the owner's id. No name decides anything, so no name can evict another one's backups.
- Files are durable before the manifest: a manifest that stands is whole. A file without one is a *piece*: what was kept
  before something of ours was given up (F9), or what a crash left of a backup. It is listed, and restored as it is.
- What an earlier backup holds byte for byte is not written again; the manifest names that file. A file goes with the
  last manifest that names it, and the manifest goes first.
- Copied, never linked: other programs edit files in place, and a link would change with them.
"""

from __future__ import annotations

import contextlib
import os
import re
import zlib
from abc import ABCMeta, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Final, Literal

import msgspec
from msgspec import UNSET, Raw, UnsetType

from tellback_protocol.ids import Place, Version, stem_of
from tellback_protocol.values import UNDECODABLE
from tellback_server.failpoint import failpoint
from tellback_server.fs import FileMissing, FsError
from tellback_server.one_bit import unflipped
from tellback_server.records import FileIdentity
from tellback_server.store.files import CHAT_ENDING, STATE_ENDING, FileStore, LoadedFile
from tellback_server.store.held import OutsideEdit
from tellback_server.survey import owner_files
from tellback_server.thinning import Crowd, Policy, Stored, kept, make_room

__all__ = [
    "BackupDamaged", "BackupFolder", "FileSource", "KeptFile", "Manifest", "Reason", "Source", "Taken",
    "manifest_bytes", "manifest_from",
]

FOLDER: Final = "backups/tellback"
FORMAT: Final = 1
_STEM: Final = re.compile(r"([0-9]{1,20}-[0-9]{1,20})(\.[^/\0]+)")
_ENDING: Final = re.compile(r"\.[^/\0]+")
_ID: Final = re.compile(r"[0-9a-f-]{36}")
_SEAL: Final = re.compile(rb',\n  "crc32": ([0-9]{1,10})\n\}\n\Z')

Reason = Literal["schedule", "idle", "demand", "force", "deletion", "restore", "repair", "piece"]
"""Why a backup was taken; `piece`: a file without a manifest."""


class KeptFile(msgspec.Struct, frozen=True, gc=False):
    """One file of a backup. `file` is its name in the folder, perhaps with the stem of an earlier backup."""

    file: str
    size_bytes: int
    crc32: int


class Manifest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One backup. Persisted: keep stable."""

    format: int = FORMAT
    chat_id: str
    name: str
    """The owner's name when it was taken."""
    version: Version
    """Of the chat; for a character or preset that of the stream."""
    head: Version
    taken_ms: int
    reason: Reason
    count: int
    """Messages."""
    files: dict[str, KeptFile]
    """By how the file's name goes on behind the owner's: `.jsonl`, `.luker-state.memory.json`."""
    inherited: Raw | UnsetType = UNSET
    """As in base records: metadata of an old group chat that stand in its group's file."""

    @property
    def backup(self) -> str:
        """What the backup is called."""
        return f"{self.head.seq}-{self.taken_ms}"

    @property
    def is_piece(self) -> bool:
        return self.reason == "piece"

    @property
    def size_bytes(self) -> int:
        """Of its files, shared ones included."""
        return sum(kept.size_bytes for kept in self.files.values())


class _AbstractStruct(msgspec.StructMeta, ABCMeta):
    """A struct with methods that its kinds have to bring."""


class Source(msgspec.Struct, metaclass=_AbstractStruct, frozen=True, kw_only=True):
    """An owner at one version, durable up to `head`."""

    user: str
    place: Place
    chat_id: str
    version: Version
    head: Version
    count: int
    inherited: Raw | UnsetType = UNSET

    @abstractmethod
    def contents(self, files: FileStore) -> dict[str, bytes]:
        """Every file that the owner owns, by how its name goes on. Blocks. Raises OutsideEdit, OSError."""


class FileSource(Source, frozen=True, kw_only=True):
    """One whose files stand still and hold everything."""

    file: FileIdentity | None
    """The chat's file as it is known; None for an owner without messages."""
    state_files: Mapping[str, FileIdentity]
    """State files as they are known, by namespace."""

    def contents(self, files: FileStore) -> dict[str, bytes]:
        """As they are known to be; the card and preset itself are not the server's."""
        own = owner_files(files, self.user, self.place)
        stem = stem_of(self.place)
        known = {files.state_path(self.user, self.place, ns): one for ns, one in self.state_files.items()}
        if self.file is not None:
            known[files.owner_path(self.user, self.place)] = self.file
        contents: dict[str, bytes] = {}
        for name in own.files:
            path = files.checked_path(self.user, f"{own.folder}/{name}")
            is_own = path == files.owner_path(self.user, self.place)
            if is_own and not name.endswith(CHAT_ENDING):
                continue
            loaded = files.read(path)
            wanted = known.pop(path, None)
            if wanted is not None and not wanted.same_bytes(loaded.identity.size_bytes, loaded.identity.crc32):
                raise OutsideEdit(path, "was changed by another program")
            contents[name[len(stem) :]] = loaded.data
        for path in known:
            raise OutsideEdit(path, "is gone")
        return contents


class Taken(msgspec.Struct, frozen=True):
    """A backup, and what it cost."""

    manifest: Manifest
    is_new: bool
    written_bytes: int


class BackupDamaged(Exception):
    """What is kept is not what its manifest says."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path} {self.reason}"


_decode = msgspec.json.Decoder(Manifest).decode


def manifest_bytes(manifest: Manifest) -> bytes:
    """The file: JSON for people, whose last member is the CRC-32 of what stands before it."""
    body = msgspec.json.format(msgspec.json.encode(manifest), indent=2).removesuffix(b"\n}")
    return b'%b,\n  "crc32": %d\n}\n' % (body, zlib.crc32(body))


def manifest_from(data: bytes) -> tuple[Manifest, bool]:
    """What a file tells, and whether one bit of it had flipped. Without the checksum it is of an earlier version.

    Raises one of UNDECODABLE.
    """
    sealed = _SEAL.search(data)
    if sealed is None:
        return _decode(data), False
    body, crc32 = data[: sealed.start()], int(sealed[1])
    whole = body if zlib.crc32(body) == crc32 else unflipped(body, crc32)
    if whole is None:
        raise msgspec.DecodeError("it does not match its checksum")
    return _decode(whole + sealed[0]), whole != body


class BackupFolder:
    """The backups of all users. Every method blocks; one call at a time for one owner."""

    def __init__(self, files: FileStore) -> None:
        self._files = files

    def _folder(self, user: str, chat_id: str) -> str:
        if _ID.fullmatch(chat_id) is None:
            raise FileMissing(chat_id[:64], "is no id of an owner")
        return self._files.checked_path(user, f"{FOLDER}/{chat_id}")

    # -- looking -----------------------------------------------------------------------------------------------------

    def owners(self, user: str) -> list[str]:
        """The ids of owners that have a folder of backups."""
        try:
            names = self._files.fs.listdir(self._files.checked_path(user, FOLDER))
        except FileMissing:
            return []
        return [name for name in names if _ID.fullmatch(name) is not None]

    def entries(self, user: str, chat_id: str) -> list[Manifest]:
        """All backups of an owner, the one taken last first. Cost: one small file each."""
        return self._look(user, chat_id)[0]

    def find(self, user: str, chat_id: str, backup: str) -> Manifest | None:
        """The backup of this name; `last` is the one taken last that is no piece."""
        found = self.entries(user, chat_id)
        if backup == "last":
            return next((manifest for manifest in found if not manifest.is_piece), None)
        return next((manifest for manifest in found if manifest.backup == backup), None)

    def _look(self, user: str, chat_id: str) -> tuple[list[Manifest], dict[str, int]]:
        """Manifests, pieces among them, and the sizes of all files of backups in the folder."""
        fs = self._files.fs
        try:
            folder = self._folder(user, chat_id)
            names = fs.listdir(folder)
        except FileMissing:
            return [], {}
        manifests: list[Manifest] = []
        sizes: dict[str, int] = {}
        pieces: dict[str, dict[str, KeptFile]] = {}
        for name in names:
            match = _STEM.fullmatch(name)
            stat = fs.stat(os.path.join(folder, name)) if match is not None else None
            if match is None or stat is None or not stat.is_regular:
                continue
            sizes[name] = stat.size_bytes
            if match[2] == STATE_ENDING:
                with contextlib.suppress(FsError, *UNDECODABLE):
                    manifest, _was_flipped = manifest_from(fs.read(os.path.join(folder, name)))
                    if manifest.format == FORMAT and manifest.backup == match[1] and manifest.chat_id == chat_id:
                        manifests.append(manifest)
            else:
                pieces.setdefault(match[1], {})[match[2]] = KeptFile(name, stat.size_bytes, 0)
        needed = {one.file for manifest in manifests for one in manifest.files.values()}
        stems = {manifest.backup for manifest in manifests}
        for stem, found in pieces.items():
            own = {ending: one for ending, one in found.items() if one.file not in needed}
            if own and stem not in stems:
                manifests.append(_piece(chat_id, stem, own))
        manifests.sort(key=lambda manifest: (manifest.taken_ms, manifest.head.seq), reverse=True)
        return manifests, sizes

    def read(self, user: str, manifest: Manifest) -> dict[str, bytes]:
        """As `load`, the bytes alone."""
        return {ending: loaded.data for ending, loaded in self.load(user, manifest).items()}

    def load(self, user: str, manifest: Manifest) -> dict[str, LoadedFile]:
        """The files of a backup by how their names go on, each as its manifest says. Raises BackupDamaged, OSError."""
        folder = self._folder(user, manifest.chat_id)
        found: dict[str, LoadedFile] = {}
        for ending, one in manifest.files.items():
            if _STEM.fullmatch(one.file) is None or _ENDING.fullmatch(ending) is None:
                raise BackupDamaged(one.file[:64], "is no name of a file of a backup")
            path = os.path.join(folder, one.file)
            try:
                loaded = self._files.read(path)
            except FileMissing:
                raise BackupDamaged(one.file, "is missing") from None
            if not manifest.is_piece and not loaded.identity.same_bytes(one.size_bytes, one.crc32):
                raise BackupDamaged(one.file, "is not what was written")
            found[ending] = loaded
        return found

    # -- taking ------------------------------------------------------------------------------------------------------

    def take(self, source: Source, reason: Reason, now_ms: int) -> Taken:
        """A backup of the owner's files. Durable on return; the same files at the same version are found again.

        Raises OutsideEdit when a file is not as it is known, FileUnsafe, FileUnreadable, OSError: then there is no new
        backup, and at most pieces of one.
        """
        user, chat_id = source.user, source.chat_id
        folder = self._folder(user, chat_id)
        contents = source.contents(self._files)
        known, _sizes = self._look(user, chat_id)
        earlier = next((manifest for manifest in known if not manifest.is_piece), None)
        same = {} if earlier is None else self._same(user, earlier, contents)
        if (
            earlier is not None and earlier.head == source.head and same.keys() == contents.keys()
            and same.keys() == earlier.files.keys() and earlier.name == str(source.place)
        ):
            return Taken(earlier, False, 0)
        with self._files.operation("backup", folder, reason=reason, seq=source.head.seq) as line:
            self._files.fs.make_directories(folder)
            stem, now_ms = self._free_stem(folder, source.head.seq, now_ms)
            files: dict[str, KeptFile] = {}
            written = 0
            for ending, data in contents.items():
                if ending in same:
                    files[ending] = same[ending]
                    continue
                name = f"{stem}{ending}"
                self._files.publish_new(os.path.join(folder, name), data)
                failpoint("backup.after_file")
                files[ending] = KeptFile(name, len(data), zlib.crc32(data))
                written += len(data)
            manifest = Manifest(
                chat_id=chat_id, name=str(source.place), version=source.version, head=source.head, taken_ms=now_ms,
                reason=reason, count=source.count, files=files, inherited=source.inherited,
            )
            failpoint("backup.before_manifest")
            body = manifest_bytes(manifest)
            self._files.publish_new(os.path.join(folder, stem + STATE_ENDING), body)
            failpoint("backup.after_manifest")
            line.update(backup=stem, size_bytes=written, shared=len(same))
        return Taken(manifest, True, written + len(body))

    def _same(self, user: str, earlier: Manifest, contents: Mapping[str, bytes]) -> dict[str, KeptFile]:
        """Files of an earlier backup that hold the same bytes; compared whole, so that rot is not handed on."""
        folder = self._folder(user, earlier.chat_id)
        same: dict[str, KeptFile] = {}
        for ending, one in earlier.files.items():
            data = contents.get(ending)
            if data is None or (len(data), zlib.crc32(data)) != (one.size_bytes, one.crc32):
                continue
            with contextlib.suppress(FsError):
                if self._files.fs.read(os.path.join(folder, one.file)) == data:
                    same[ending] = one
        return same

    def _free_stem(self, folder: str, seq: int, now_ms: int) -> tuple[str, int]:
        """A moment that no other backup of the owner has: two within a millisecond are two."""
        matches = map(_STEM.fullmatch, self._files.fs.listdir(folder))
        moments = {match[1].partition("-")[2] for match in matches if match is not None}
        while str(now_ms) in moments:
            now_ms += 1
        return f"{seq}-{now_ms}", now_ms

    # -- letting go --------------------------------------------------------------------------------------------------

    def thin(self, user: str, chat_id: str, now_ms: int, policy: Policy) -> int:
        """Remove what the policy does not keep; how many backups went. Raises OSError."""
        manifests, _sizes = self._look(user, chat_id)
        going: list[Manifest] = []
        # What was kept of a loss does not stand for a whole backup, nor the other way round.
        for group in ([one for one in manifests if one.is_piece], [one for one in manifests if not one.is_piece]):
            staying = kept((one.taken_ms for one in group), now_ms, policy)
            going += [one for one in group if one.taken_ms not in staying]
        self._remove(user, chat_id, manifests, going)
        return len(going)

    def make_room(self, user: str, size_bytes_max: int) -> Crowd:
        """Remove the oldest backups of a user's owners until the rest fits; see `thinning`. Cost: all manifests."""
        found: dict[str, list[Manifest]] = {}
        stored: list[Stored] = []
        for chat_id in self.owners(user):
            manifests, sizes = self._look(user, chat_id)
            found[chat_id] = manifests
            for one in manifests:
                files = {kept.file: sizes.get(kept.file, 0) for kept in one.files.values()}
                if not one.is_piece:
                    files[one.backup + STATE_ENDING] = sizes.get(one.backup + STATE_ENDING, 0)
                # A piece is no last backup: what it is the last of are pieces.
                owner = f"{chat_id} pieces" if one.is_piece else chat_id
                stored.append(Stored(owner=owner, taken_ms=one.taken_ms, name=one.backup, files=files))
        crowd = make_room(stored, size_bytes_max)
        for chat_id, manifests in found.items():
            names = {
                (one.owner, one.name) for one in crowd.going if one.owner.removesuffix(" pieces") == chat_id
            }
            going = [
                one for one in manifests
                if ((f"{chat_id} pieces" if one.is_piece else chat_id), one.backup) in names
            ]
            if going:
                self._remove(user, chat_id, manifests, going)
        return crowd

    def _remove(self, user: str, chat_id: str, manifests: Iterable[Manifest], going: list[Manifest]) -> None:
        if not going:
            return
        fs, folder = self._files.fs, self._folder(user, chat_id)
        needed = {one.file for manifest in manifests if manifest not in going for one in manifest.files.values()}
        with self._files.operation("thin-backups", folder, count=len(going)):
            for manifest in going:
                if not manifest.is_piece:
                    with contextlib.suppress(FileMissing):
                        fs.unlink(os.path.join(folder, manifest.backup + STATE_ENDING))
            # A manifest that comes back after a power cut must find its files.
            fs.fsync_directory(folder)
            failpoint("backup.after_unlink_manifests")
            for manifest in going:
                for one in manifest.files.values():
                    if one.file not in needed:
                        with contextlib.suppress(FileMissing):
                            fs.unlink(os.path.join(folder, one.file))
                        failpoint("backup.after_unlink_file")
            fs.fsync_directory(folder)


def _piece(chat_id: str, stem: str, files: dict[str, KeptFile]) -> Manifest:
    seq, _dash, taken_ms = stem.partition("-")
    version = Version(0, int(seq), "")
    return Manifest(
        chat_id=chat_id, name="", version=version, head=version, taken_ms=int(taken_ms), reason="piece", count=0,
        files=files,
    )
