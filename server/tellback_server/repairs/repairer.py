"""Repairer: works out what can be put right, and does it when told to.

    repairer = Repairer(fs, clock, scope)
    plan = repairer.plan(findings)           reads only
    repairer.carry_out(plan.choices)         under the data lock, which the caller holds

Rules of this module (BEHAVIOUR X7 to X10):
- The dry run and the repair use the same code: the new bytes are worked out again from the file as it is then.
- Each change: a copy of the file, durable and verified; then the file replaced at once; nothing in between is told.
- What is put right is another program's edit to the server: the chat gets a new epoch, and what the log still waits to
  fold goes on top.
- What cannot be put right without guessing stays as it is, and is said.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final, Protocol

import msgspec

from tellback_protocol.chat import Chat
from tellback_protocol.ids import CharacterChat, ChatName, GroupChat, Place, StateOwner, Version
from tellback_protocol.values import UNDECODABLE
from tellback_server.backup_folder import manifest_bytes, manifest_from
from tellback_server.checks.findings import CODES, Finding
from tellback_server.checks.kinds import Kind, kind_of, own_kind_of
from tellback_server.checks.log_image import Image
from tellback_server.checks.manifests import REPAIRS
from tellback_server.checks.owner_files import Known, OwnerCheck
from tellback_server.checks.reading import read_steady
from tellback_server.checks.scope import Scope
from tellback_server.clock import Clock
from tellback_server.failpoint import failpoint
from tellback_server.fs import FileMissing, Fs, FsError
from tellback_server.log.term import encode_term, repaired_term
from tellback_server.one_bit import unflipped
from tellback_server.orphans import put_aside
from tellback_server.owner_past import LogReader, OwnerPast
from tellback_server.records import ADOPT, ANCHOR, CHECKPOINT, INTENT, decode_base, decode_intent, owner_key
from tellback_server.repairs.aside import Aside, close_unfinished
from tellback_server.repairs.chat_mending import Remembered, mend_chat
from tellback_server.repairs.choices import Choice, Made, Unmendable
from tellback_server.repairs.header import HeaderFacts
from tellback_server.repairs.log_repair import LogRepair, SalvageReader
from tellback_server.repairs.owner_memory import remembered_messages, remembered_states
from tellback_server.repairs.small_files import mended_manifest, mended_sync, rebuilt_term
from tellback_server.sealed import seal, unseal
from tellback_server.store.files import DEFAULT_USER, FileStore
from tellback_server.store.found import parse_file
from tellback_server.store.groups import inherited_metadata
from tellback_server.store.place import file_of
from tellback_server.trash import Trash

__all__ = ["Plan", "Repairer"]

_WITHOUT_ID: Final = "message-id-missing"
_TURNED_BACK: Final = "one bit turned back; proved by the checksum"
_PUT_ASIDE: Final = frozenset(("session-unusable", "name-unusable", "active-unusable"))


class _Silent:
    def info(self, _event: str, /, **_fields: object) -> None:
        """File operations of a repair are told by its manifest."""


class Looked(Protocol):
    """What a check leaves for a repair."""

    @property
    def image(self) -> Image: ...

    def owner_check(self, user: str) -> OwnerCheck: ...


class Plan(msgspec.Struct):
    """What would be done, and what would stay."""

    choices: list[Choice]
    left: list[Unmendable]


class Repairer:
    """One repair of one data folder."""

    def __init__(self, fs: Fs, clock: Clock, scope: Scope, inspection: Looked, *, writes_ids: bool = False) -> None:
        self._fs = fs
        self._clock = clock
        self._scope = scope
        self._writes_ids = writes_ids
        """Also of messages that have none, which is no damage."""
        self._image = inspection.image
        self._inspection = inspection
        is_single = scope.users == {DEFAULT_USER: scope.data_root}
        users = (DEFAULT_USER,) if is_single else tuple(scope.users)
        self.files = FileStore(fs, scope.data_root, users, clock=clock, logger=_Silent())
        self._checks: dict[str, OwnerCheck] = {}
        self._now_ms = clock.now_ms()
        self._log_repair = LogRepair(fs, clock, scope)

    # -- the plan ----------------------------------------------------------------------------------------------------

    def plan(self, findings: Iterable[Finding]) -> Plan:
        """One choice for each file that can be put right."""
        plan = Plan([], [])
        by_path: dict[str, list[Finding]] = {}
        for finding in findings:
            if (finding.mends and finding.severity != "info") or (self._writes_ids and finding.code == _WITHOUT_ID):
                by_path.setdefault(finding.path, []).append(finding)
            elif finding.severity == "damage":
                plan.left.append(Unmendable(finding, finding.remedy))
        targets: set[str] = set()
        for path, told in by_path.items():
            choice = self._choice(path, told)
            if isinstance(choice, Choice):
                target = self._absolute_target(choice)
                if target not in targets:
                    plan.choices.append(choice)
                targets.add(target)
            else:
                plan.left.extend(Unmendable(finding, choice) for finding in told if finding.severity == "damage")
        return plan

    def _choice(self, path: str, findings: list[Finding]) -> Choice | str:
        """What is proposed for a file, or why nothing is."""
        absolute = os.path.join(self._scope.data_root, *path.split("/"))
        codes = {finding.code for finding in findings}
        if "repair-unfinished" in codes:
            above = os.path.dirname(os.path.dirname(os.path.dirname(absolute)))
            over = ["what that repair had not done was looked for again; it is over"]
            return Choice(path, "", findings, over, None, partial(close_unfinished, self._fs, above))
        user, parts = self._whose(absolute)
        make: Callable[[], Made | None]
        if not user:
            return self._own_choice(path, absolute, parts, findings, codes)
        kind = kind_of(parts)
        if "state-orphaned" in codes:
            assert kind.place is not None, "by its code"
            move = partial(self._to_trash, user, kind.place, "/".join(parts))
            return Choice(path, user, findings, ["moved to the trash: its owner is gone"], None, move)
        match kind.sort:
            case "chat":
                make = partial(self._chat, user, absolute, kind, codes)
            case "state" | "floor-log":
                make = partial(self._state, user, absolute, kind)
            case "sync":
                make = partial(self._sync, user, absolute, kind, codes)
            case "manifest" | "trashed":
                folder = os.path.join(self._scope.users[user], *parts[:2])
                absolute = os.path.join(folder, "manifest.json")
                make = partial(mended_manifest, self._fs, folder)
            case "backup-manifest":
                make = partial(self._rewritten, absolute)
            case "repair-manifest":
                make = partial(self._resealed, absolute)
            case _:
                return findings[0].remedy
        return self._made(path, user, findings, make)

    def _made(
        self, path: str, user: str, findings: list[Finding], make: Callable[[], Made | None]
    ) -> Choice | str:
        try:
            made = make()
        except FsError as error:
            return error.reason
        if made is None:
            told = findings[0]
            return "Nothing that is known puts it right. " + (CODES[told.code].otherwise or told.remedy)
        return Choice(path, user, findings, made.actions, make, quarantined=len(made.quarantined))

    def _own_choice(
        self, path: str, absolute: str, parts: tuple[str, ...], findings: list[Finding], codes: set[str]
    ) -> Choice | str:
        if "log-corrupt" in codes:
            return self._log_repair.choice(path, findings)
        if codes & _PUT_ASIDE:
            return self._made(path, "", findings, partial(self._taken_away, absolute))
        if "term-bit-flipped" in codes or "term-unusable" in codes:
            return self._made(path, "", findings, partial(self._term, absolute))
        if "session-bit-flipped" in codes:
            return self._made(path, "", findings, partial(self._resealed, absolute))
        return own_kind_of(parts).sort + ": " + findings[0].remedy

    def _whose(self, absolute: str) -> tuple[str, tuple[str, ...]]:
        """User and parts of a path below the user's folder; no user for the server's own files."""
        own = self._scope.own_folder + os.sep
        if absolute.startswith(own):
            return "", tuple(absolute.removeprefix(own).split(os.sep))
        for user, root in self._scope.users.items():
            if absolute.startswith(root + os.sep):
                return user, tuple(absolute.removeprefix(root + os.sep).split(os.sep))
        raise FileMissing(absolute, "is in no user's folder")

    # -- what each file becomes --------------------------------------------------------------------------------------

    def _read(self, absolute: str) -> bytes:
        return read_steady(self._fs, absolute)[0]

    def _check(self, user: str) -> OwnerCheck:
        if user not in self._checks:
            self._checks[user] = self._inspection.owner_check(user)
        return self._checks[user]

    def _past(self, user: str, known: Known) -> OwnerPast | None:
        if not known.chat_id or known.base is None:
            return None
        return OwnerPast.read(
            self._reader(), owner_key(user, known.chat_id), known.base, None, self._now_ms, outcomes=False
        )

    def _reader(self) -> LogReader:
        image = self._image
        return image if image.error is None else SalvageReader(self._fs, image.directory)

    def _chat(self, user: str, absolute: str, kind: Kind, codes: set[str]) -> Made | None:
        place = kind.place
        assert isinstance(place, CharacterChat | GroupChat), "by its kind"
        data = self._read(absolute)
        known = self._check(user).known(place)
        past = self._past(user, known)
        theirs = parse_file(place, data)
        remembered = Remembered({}) if past is None else remembered_messages(
            past, _chat_of(theirs.messages, theirs.metadata)
        )
        mended = mend_chat(
            data, headed=isinstance(place, CharacterChat), known=known.files, remembered=remembered,
            facts=self._header_facts(user, place, absolute, known),
            is_rotten="chat-rotten" in codes or "chat-bit-flipped" in codes, writes_ids=self._writes_ids,
        )
        if mended is None:
            return None
        return Made(data, mended.data, mended.actions, mended.quarantined)

    def _header_facts(self, user: str, place: ChatName, absolute: str, known: Known) -> HeaderFacts:
        stat = self._fs.stat(absolute)
        metadata = self._metadata_kept(user, place, known.chat_id)
        return HeaderFacts(
            place.chat, known.chat_id or None, metadata,
            stat.mtime_ns // 1_000_000 if stat is not None else self._now_ms, self._now_ms,
        )

    def _metadata_kept(self, user: str, place: ChatName, chat_id: str) -> bytes | None:
        """From the newest backup whose header can be read, else from the group's file."""
        folder = os.path.join(self._scope.users[user], "backups", "tellback", chat_id or "-")
        try:
            names = self._fs.listdir(folder)
        except FsError:
            names = []
        for name in sorted(names, key=_number, reverse=True):
            if name.endswith(".jsonl"):
                try:
                    image = parse_file(place, self._read(os.path.join(folder, name))).image
                except OSError:
                    continue
                if image.header is not None and image.metadata_key is not None:
                    return image.metadata
        told = inherited_metadata(self.files, user, place.chat) if isinstance(place, GroupChat) else None
        return told if told not in (None, b"{}") else None

    def _state(self, user: str, absolute: str, kind: Kind) -> Made | None:
        place, namespace = kind.place, kind.namespace
        assert place is not None, "by its kind"
        data = self._read(absolute)
        known = self._check(user).known(place)
        identities = known.states.get(namespace, [])
        pairs = [(one.size_bytes, one.crc32) for one in identities]
        for size_bytes, crc32 in pairs:
            turned = unflipped(data, crc32) if size_bytes == len(data) else None
            if turned is not None:
                return Made(data, turned, [_TURNED_BACK])
        if (len(data), zlib.crc32(data)) in pairs:
            # Its broken bytes were adopted as somebody's edit; what was written before is meant.
            pairs = [pair for pair in self._told_before(user, known, namespace) if pair not in pairs]
        past = self._past(user, known)
        found = {} if past is None else remembered_states(past, {namespace: pairs}, self._chat_beside(user, place))
        if namespace in found:
            return Made(data, found[namespace], ["made anew from the log; proved by the checksum"])
        kept = self._state_kept(user, known.chat_id, namespace, pairs)
        return None if kept is None else Made(data, kept, ["taken from a backup; proved by the checksum"])

    def _told_before(self, user: str, known: Known, namespace: str) -> list[tuple[int, int]]:
        """Size and CRC of everything that a sidecar held as far as the log tells. Cost: the owner's records."""
        told: list[tuple[int, int]] = []
        for _position, record in self._reader().records(owner_key(user, known.chat_id), -1):
            if record.kind in (ANCHOR, CHECKPOINT, ADOPT):
                mark = decode_base(record.body).states.get(namespace)
                told += [] if mark is None else [(mark.size_bytes, mark.crc32)]
            elif record.kind == INTENT:
                told += filter(None, [decode_intent(record.body).states.get(namespace)])
        return told

    def _chat_beside(self, user: str, place: Place) -> Chat:
        """The messages as the file has them."""
        data = None
        if isinstance(place, CharacterChat | GroupChat):
            data = self._file_of(self.files.owner_path(user, place))
        if data is None or isinstance(place, StateOwner):
            return Chat(Version(1, 0, ""))
        parsed = parse_file(place, data)
        return _chat_of(parsed.messages, parsed.metadata)

    def _state_kept(self, user: str, chat_id: str, namespace: str, pairs: list[tuple[int, int]]) -> bytes | None:
        folder = os.path.join(self._scope.users[user], "backups", "tellback", chat_id or "-")
        try:
            names = self._fs.listdir(folder)
        except FsError:
            return None
        for name in sorted(names, key=_number, reverse=True):
            if name.endswith(f".{namespace}.json"):
                try:
                    data = self._read(os.path.join(folder, name))
                except OSError:
                    continue
                if (len(data), zlib.crc32(data)) in pairs:
                    return data
        return None

    def _sync(self, user: str, absolute: str, kind: Kind, codes: set[str]) -> Made | None:
        place: Place | None = kind.place
        assert place is not None, "by its kind"
        data = self._read(absolute)
        if "chat-id-duplicate" in codes:
            return Made(data, None, ["taken away: the chat gets an id of its own with its next write"])
        known = self._check(user).known(place)
        path = os.path.join(self._scope.users[user], *file_of(place)[0], file_of(place)[1])
        return mended_sync(
            data, place, known, self._now_ms, None if isinstance(place, StateOwner) else self._file_of(path),
            begins_anew="sync-ahead-of-log" in codes,
        )

    def _to_trash(self, user: str, place: Place, path: str) -> None:
        put_aside(self.files, Trash(self.files), user, place, [path], self._clock.now_ms())

    def _file_of(self, path: str) -> bytes | None:
        try:
            return self._read(path)
        except FileMissing:
            return None

    def _taken_away(self, absolute: str) -> Made | None:
        return Made(self._read(absolute), None, ["put aside; what the log knows is taken instead"])

    def _resealed(self, absolute: str) -> Made | None:
        data = self._read(absolute)
        unsealed = unseal(data)
        if unsealed is None or not unsealed[1]:
            return None
        return Made(data, seal(unsealed[0]), [_TURNED_BACK])

    def _rewritten(self, absolute: str) -> Made | None:
        """The manifest of a backup."""
        data = self._read(absolute)
        try:
            manifest, was_flipped = manifest_from(data)
        except UNDECODABLE:
            return None
        return Made(data, manifest_bytes(manifest), [_TURNED_BACK]) if was_flipped else None

    def _term(self, absolute: str) -> Made | None:
        data = self._read(absolute)
        line = repaired_term(data)
        if line is not None:
            return Made(data, encode_term(line), [_TURNED_BACK])
        return rebuilt_term(self._fs, self._image.directory, data)

    # -- doing it ----------------------------------------------------------------------------------------------------

    def carry_out(self, choices: Iterable[Choice]) -> list[str]:
        """Does what was chosen. The caller holds the data lock. Where the copies are, as paths.

        Raises FsError, OSError: what was done stays done and behind its copy, and the next repair goes on.
        """
        folders: list[str] = []
        by_user: dict[str, list[Choice]] = {}
        for choice in choices:
            by_user.setdefault(choice.user, []).append(choice)
        # The server's own files last: users' lines come back from the log as it is.
        for user, chosen in sorted(by_user.items(), key=lambda one: one[0] == ""):
            above = (
                os.path.join(self._scope.users[user], "backups", "tellback") if user else self._scope.own_folder
            )
            made = [(choice, choice.make()) for choice in chosen if choice.make is not None]
            there = [(choice, one) for choice, one in made if one is not None and one.before != one.after]
            if there:
                folders.append(self._replace(user, above, there))
            for choice in chosen:
                if choice.run is not None:
                    choice.run()
        return [*folders, *self._log_repair.folders]

    @property
    def has_new_log(self) -> bool:
        """Whether the log was repaired: what else there is has to be held against the new one."""
        return bool(self._log_repair.folders)

    def _replace(self, user: str, above: str, made: list[tuple[Choice, Made]]) -> str:
        aside = Aside(self._fs, os.path.join(above, REPAIRS), self._clock.now_ms())
        root = self._scope.users[user] if user else self._scope.own_folder
        changes = [
            aside.change(self._target(root, choice), one.actions, one.before, one.quarantine) for choice, one in made
        ]
        aside.begin(changes)
        for change, (_choice, one) in zip(changes, made, strict=True):
            path = os.path.join(root, *change.path.split("/"))
            aside.keep(change, one.before, one.quarantine)
            if one.before is not None and self._read(path) != one.before:
                # Somebody else wrote just now: theirs stays, and the next check looks at it.
                continue
            if one.after is None:
                self._fs.unlink(path)
                self._fs.fsync_directory(os.path.dirname(path))
            else:
                self._fs.write_atomically(path, one.after, keep_mode_of=self._fs.stat(path))
            failpoint("repair.after_change")
        aside.finish()
        return aside.folder

    def _absolute_target(self, choice: Choice) -> str:
        root = self._scope.users[choice.user] if choice.user else self._scope.own_folder
        return os.path.join(root, *self._target(root, choice).split("/"))

    def _target(self, root: str, choice: Choice) -> str:
        path = os.path.join(self._scope.data_root, *choice.path.split("/"))
        below = os.path.relpath(path, root)
        kind = kind_of(tuple(below.split(os.sep)))
        # A file in the trash that no manifest tells of: it is the manifest that is made.
        if choice.user and kind.sort == "trashed":
            return "/".join((*below.split(os.sep)[:2], "manifest.json"))
        return below.replace(os.sep, "/")


def _number(name: str) -> tuple[int, int]:
    seq, _dash, rest = name.partition("-")
    digits = rest.split(".")[0]
    return (int(seq) if seq.isdigit() else -1, int(digits) if digits.isdigit() else -1)


def _chat_of(messages: dict[str, bytes], metadata: bytes) -> Chat:
    return Chat(Version(1, 0, ""), metadata, dict(messages))

