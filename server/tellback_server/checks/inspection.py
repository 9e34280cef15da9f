"""Inspection: every file of a data folder looked at, one after the other. Reads only; takes no lock.

    inspection = Inspection(fs, scope, pause)
    for step in inspection.run(): ...        a Step for each file: its path, its bytes, and what was found

Rules of this module (BEHAVIOUR X1, X3 to X6):
- Nothing is written, made, locked or removed.
- Memory: the names of the files, what the log tells of each owner, and one file's lines at a time.
- What looks wrong while a server is at work is looked at again, with what the log says by then; what stays is told.
- No link is followed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Final

import msgspec

from tellback_protocol.ids import CharacterChat, GroupChat, PresetOwner, StateOwner
from tellback_server.checks.documents import check_group, check_manifest, check_preset
from tellback_server.checks.findings import Finding, Tally, found
from tellback_server.checks.kinds import Kind, kind_of
from tellback_server.checks.log_image import LogImage, OwnerFacts, log_folder
from tellback_server.checks.manifests import check_backup
from tellback_server.checks.own_files import OwnCheck
from tellback_server.checks.owner_files import OwnerCheck
from tellback_server.checks.pictures import check_card
from tellback_server.checks.reading import read_steady, telling, tells_unsafe
from tellback_server.checks.scope import USER_FOLDERS, Scope, is_served
from tellback_server.checks.step import Step
from tellback_server.fs import Fs, FsError
from tellback_server.store.place import file_of, twin_key

__all__ = ["Inspection", "Step"]

LOOKS_MAX: Final = 4
"""How often what looks wrong beside a running server is looked at again."""
LOOK_AGAIN_S: Final = 0.25
_MAY_PASS: Final = frozenset((
    "chat-append-torn", "chat-edited", "chat-empty", "file-busy", "file-left-over", "group-chat-unlisted",
    "state-edited", "sync-behind", "sync-copied", "index-unusable", "trash-file-missing",
))
"""Infos that a server at work shows for a moment, between two of its steps; every warning and damage may be one."""


class _File(msgspec.Struct, frozen=True, gc=False):
    path: str
    parts: tuple[str, ...]
    size_bytes: int


class Inspection:
    """One check. See the module."""

    def __init__(
        self, fs: Fs, scope: Scope, pause: Callable[[float], None], *, is_locked_by_us: bool = False
    ) -> None:
        """`pause` waits so many seconds."""
        self._fs = fs
        self._scope = scope
        self._pause = pause
        self.is_served = not is_locked_by_us and is_served(fs, scope.data_root)
        self.image = LogImage(fs, log_folder(scope.data_root))
        self.facts: dict[str, OwnerFacts] = {}
        self._users: dict[str, list[_File]] = {}
        self._own = OwnCheck(fs, scope, self.image)
        self._cross: dict[str, list[Finding]] = {}
        """What the names of the user's files tell, by path."""

    def plan(self) -> tuple[int, int]:
        """Lists all files; how many there are and their bytes. Raises FsError for what was asked for."""
        scope = self._scope
        for user, root in scope.users.items():
            files: list[_File] = []
            for folder in USER_FOLDERS:
                below = os.path.join(root, folder) if folder != "backups" else os.path.join(root, folder, "tellback")
                parts = (folder,) if folder != "backups" else (folder, "tellback")
                self._list(below, parts, files, depth=0)
            self._users[user] = files
        asked = [one for files in self._users.values() for one in files if scope.holds(one.path)]
        own = self._own.plan()
        return len(asked) + len(own), sum(one.size_bytes for one in asked) + sum(own)

    def _list(self, folder: str, parts: tuple[str, ...], into: list[_File], depth: int) -> None:
        stat = self._fs.stat(folder)
        if stat is None:
            return
        if not stat.is_directory:
            into.append(_File(folder, parts, 0))
            return
        try:
            names = self._fs.listdir(folder)
        except FsError:
            into.append(_File(folder, parts, 0))
            return
        for name in names:
            path = os.path.join(folder, name)
            found_stat = self._fs.stat(path)
            if found_stat is None:
                continue
            inner = (*parts, name)
            if found_stat.is_directory and _is_folder(inner):
                self._list(path, inner, into, depth + 1)
            else:
                into.append(_File(path, inner, found_stat.size_bytes))

    def run(self) -> Iterator[Step]:
        """Every file that was asked for. Call `plan` before."""
        self._look_at_log()
        yield from self._own.run(self.is_served)
        for user, files in self._users.items():
            check = self.owner_check(user)
            self._cross = self._crossed(user, files)
            suspects: dict[_File, list[Finding]] = {}
            for file in files:
                if not self._scope.holds(file.path):
                    continue
                findings = self._file(user, file, check)
                if self.is_served and any(_may_pass(one) for one in findings):
                    suspects[file] = findings
                else:
                    yield Step(file.path, file.size_bytes, findings)
            yield from self._again(user, suspects, check)
            if self._scope.only is None:
                yield Step(self._scope.users[user], 0, check.missing())

    def _look_at_log(self) -> None:
        self.facts = self.image.facts()

    def owner_check(self, user: str) -> OwnerCheck:
        """What holds a user's files against each other; after `plan`."""
        by_folder: dict[tuple[str, ...], set[str]] = {}
        for file in self._users[user]:
            by_folder.setdefault(file.parts[:-1], set()).add(file.parts[-1])
        return OwnerCheck(self._fs, self._scope, user, by_folder, self.facts, is_log_whole=self.image.error is None)

    def _again(self, user: str, suspects: dict[_File, list[Finding]], check: OwnerCheck) -> Iterator[Step]:
        """What looked wrong beside a server at work, looked at until the log stood still around a look."""
        for _turn in range(LOOKS_MAX):
            if not suspects:
                return
            self._pause(LOOK_AGAIN_S)
            self._look_at_log()
            check.know(self.facts, is_log_whole=self.image.error is None)
            before = {file: check.told_of(file.parts) for file in suspects}
            suspects = {file: self._file(user, file, check) for file in suspects}
            self._look_at_log()
            check.know(self.facts, is_log_whole=self.image.error is None)
            for file in list(suspects):
                findings = suspects[file]
                if not any(_may_pass(one) for one in findings) or before[file] == check.told_of(file.parts):
                    yield Step(file.path, file.size_bytes, suspects.pop(file))
        for file, findings in suspects.items():
            stays = [one for one in findings if not _may_pass(one)]
            told = found("file-changed-meanwhile", self._scope.name_of(file.path))
            yield Step(file.path, file.size_bytes, [*stays, told])

    # -- one file ----------------------------------------------------------------------------------------------------

    def _file(self, user: str, file: _File, check: OwnerCheck) -> list[Finding]:
        tally = Tally(self._scope.name_of(file.path))
        kind = kind_of(file.parts)
        stat = self._fs.stat(file.path)
        if stat is None:
            return []
        if kind.sort == "not-text":
            tally.add("name-not-text")
            return tally.take()
        if kind.sort == "other":
            return tally.take()
        if tells_unsafe(stat, tally):
            return tally.take()
        with telling(tally):
            self._read(user, file, kind, check, tally)
        return [*tally.take(), *self._cross.get(file.path, [])]

    def _read(self, user: str, file: _File, kind: Kind, check: OwnerCheck, tally: Tally) -> None:
        match kind.sort:
            case "chat":
                assert isinstance(kind.place, CharacterChat | GroupChat), "by its kind"
                if file.parts[-1].endswith(".jsonl.jsonl"):
                    tally.add("file-double-ending")
                check.chat(file.path, kind.place, tally)
            case "sync" | "state" | "floor-log":
                assert kind.place is not None, "by its kind"
                check.sidecar(file.path, kind.place, kind.namespace, tally)
            case "odd-state":
                tally.add("state-name-odd")
            case "card":
                with self._fs.open_read(file.path) as opened:
                    check_card(opened, opened.stat().size_bytes, tally)
            case "preset":
                check_preset(read_steady(self._fs, file.path)[0], tally)
            case "group":
                check.groups.update(check_group(
                    read_steady(self._fs, file.path)[0], file.parts[-1].removesuffix(".json"),
                    check.group_chats, check.cards, tally,
                ))
            case "backup-manifest":
                check_backup(self._fs, file.path, tally)
            case "backup-chat" | "backup-state" | "repair-file" | "repair-manifest":
                check.backup(file.path, kind, tally)
            case "manifest":
                data = read_steady(self._fs, file.path)[0]
                entry = check_manifest(data, file.parts[1], tally)
                if entry is not None:
                    check.trashed(os.path.dirname(file.path), entry, tally)
            case "trashed":
                check.in_trash(file.path, file.parts, tally)
            case "temporary":
                tally.add("file-left-over")
            case "swap":
                tally.add("file-swapped-out")
            case _:
                pass

    # -- files beside each other -------------------------------------------------------------------------------------

    def _crossed(self, user: str, files: list[_File]) -> dict[str, list[Finding]]:
        """What names alone tell: twins, and states without an owner."""
        told: dict[str, list[Finding]] = {}
        twins: dict[tuple[tuple[str, ...], str], str] = {}
        standing = {file.parts for file in files}
        for file in files:
            kind = kind_of(file.parts)
            if kind.place is None or kind.sort in ("not-text", "other"):
                continue
            name = self._scope.name_of(file.path)
            if kind.sort in ("chat", "card", "preset"):
                key = (file.parts[:-1], twin_key(file.parts[-1]))
                if key in twins:
                    told.setdefault(file.path, []).append(found("name-twin", name, os.path.basename(twins[key])))
                twins.setdefault(key, file.path)
            elif kind.sort in ("sync", "state", "floor-log"):
                folders, owner = file_of(kind.place)
                if (*folders, owner) not in standing and not self._is_coming(user, kind):
                    told.setdefault(file.path, []).append(found("state-orphaned", name, str(kind.place)))
        return told

    def _is_coming(self, user: str, kind: Kind) -> bool:
        """Whether the owner is a chat that was made and has no file yet."""
        name = str(kind.place)
        return not isinstance(kind.place, StateOwner | PresetOwner) and any(
            facts.has_no_file_yet and facts.base is not None and (facts.base.user, facts.base.name) == (user, name)
            for facts in self.facts.values()
        )


def _is_folder(parts: tuple[str, ...]) -> bool:
    """Whether a folder stands where a folder belongs; elsewhere it stands in the place of a file."""
    match parts:
        case ("trash", _, "manifest.json"):
            return False
        case ("chats", _) | ("backups", "tellback", _) | ("backups", "tellback", "repairs", *_) | ("trash", *_):
            return True
    return not parts[-1].endswith((".jsonl", ".json", ".png")) and len(parts) == 2


def _may_pass(finding: Finding) -> bool:
    return finding.severity != "info" or finding.code in _MAY_PASS
