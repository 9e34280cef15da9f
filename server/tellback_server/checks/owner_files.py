"""Owner files: a chat's, a character's or a preset's files held against each other, the log and the session file.

Rules of this module (BEHAVIOUR X4, X5):
- What we wrote last is told by the log, the session file and chat_sync, as loading takes them: the higher (epoch, seq)
  counts, the log when they are equal.
- A file of another program that we never wrote to is held against nothing.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping

import msgspec

from tellback_protocol.ids import (
    CharacterChat,
    ChatName,
    GroupChat,
    Place,
    StateOwner,
    parse_place,
    sidecar_name,
)
from tellback_protocol.values import loads
from tellback_server.checks.chat_lines import ChatScan
from tellback_server.checks.documents import check_floor_log, check_manifest, check_session, check_state, check_sync
from tellback_server.checks.findings import Finding, Tally, found
from tellback_server.checks.judging import is_untouched, judge, tell
from tellback_server.checks.kinds import Kind, kind_of
from tellback_server.checks.log_image import OwnerFacts
from tellback_server.checks.manifests import check_repair_file, check_repair_manifest
from tellback_server.checks.reading import read_steady, steady_pieces
from tellback_server.checks.scope import Scope
from tellback_server.fs import FileStat, Fs, FsError
from tellback_server.records import BaseRecord, Checkpointed, FileIdentity, StateMark, owner_key
from tellback_server.sessions import SessionFile
from tellback_server.store.marks import SYNC_NAMESPACE, SyncMark, sync_of
from tellback_server.store.place import file_of, is_nameable
from tellback_server.store_binding import is_bound
from tellback_server.trash import Entry

__all__ = ["Known", "OwnerCheck"]


class Known(msgspec.Struct, frozen=True):
    """What is known of an owner's files."""

    chat_id: str
    base: BaseRecord | None
    """What the files held when they were written last."""
    files: list[FileIdentity]
    """The bytes that the chat's file may hold, the base first."""
    states: dict[str, list[FileIdentity]]
    """The bytes that each sidecar may hold, the base first."""
    lines: int
    """Messages that chat_sync counted; 0 when it does not tell."""
    grows_to: int
    """Size to come of an append that was announced; 0 when none was."""
    mark: SyncMark | None
    facts: OwnerFacts | None


class OwnerCheck:
    """The owners of one user."""

    def __init__(
        self, fs: Fs, scope: Scope, user: str, names: Mapping[tuple[str, ...], set[str]],
        facts: dict[str, OwnerFacts], *, is_log_whole: bool,
    ) -> None:
        """`names` are those of the user's files, by folder."""
        self._fs = fs
        self._scope = scope
        self.user = user
        self._root = scope.users[user]
        self._names = names
        self.groups: set[str] = set()
        """Chats that some group lists."""
        # Of a server on a store files of groups stand here, and their chats do not.
        self.group_chats = (
            None if is_bound(fs, scope.data_root) else _stems(names.get(("group chats",), set()), ".jsonl")
        )
        self.cards = {name for name in names.get(("characters",), set()) if name.endswith(".png")}
        self._ids: dict[str, str] = {}
        """Names of chats by the chat_id that their chat_sync tells."""
        self._trashed: dict[str, Entry | None] = {}
        self.know(facts, is_log_whole=is_log_whole)

    def know(self, facts: dict[str, OwnerFacts], *, is_log_whole: bool) -> None:
        """What the log tells by now."""
        self._facts = facts
        self._is_log_whole = is_log_whole
        self._by_name: dict[str, str] = {}
        for key, one in facts.items():
            if one.base is not None and one.base.user == self.user and not one.is_gone:
                self._by_name[one.base.name] = key.removeprefix(f"{self.user}/")

    def told_of(self, parts: tuple[str, ...]) -> object:
        """What the log tells of the owner of a file; equal for two looks between which it did not move."""
        place = kind_of(parts).place
        facts = None if place is None else self._facts.get(owner_key(self.user, self._by_name.get(str(place), "")))
        return None if facts is None else (facts.base, list(facts.intents))

    # -- what is known -----------------------------------------------------------------------------------------------

    def known(self, place: Place) -> Known:
        """All that the log, the session file and chat_sync tell of an owner's files."""
        mark = self.mark(place)
        if mark is not None and not self._owns(place, mark):
            mark = None
        chat_id = mark.chat_id if mark is not None else self._by_name.get(str(place), "")
        facts = self._facts.get(owner_key(self.user, chat_id)) if chat_id else None
        base = facts.base if facts is not None else None
        saved = self._saved(chat_id) if chat_id else None
        if saved is not None and (base is None or _rank(saved.base) > _rank(base)):
            base = saved.base
        if mark is not None and (base is None or mark.head.seq > base.head.seq):
            identity = None if isinstance(place, StateOwner) else FileIdentity(
                mark.watermark.bytes, mark.watermark.crc32, 0, 0
            )
            base = Checkpointed(
                user=self.user, name=str(place), chat_id=chat_id, file=identity, version=mark.version, head=mark.head,
                states=mark.states,
            )
        intents = [] if facts is None or base is None else [
            intent for intent in facts.intents if intent.seq >= base.head.seq
        ]
        files = [] if base is None or base.file is None else [_when_well(base, base.file)]
        files += [
            FileIdentity(intent.size_bytes, intent.crc32, 0, 0) for intent in intents if intent.kind != "none"
        ]
        marks: dict[str, StateMark] = {} if base is None else base.states
        states = {namespace: [one.identity] for namespace, one in marks.items()}
        for intent in intents:
            for namespace, pair in intent.states.items():
                if pair is not None:
                    states.setdefault(namespace, []).append(FileIdentity(pair[0], pair[1], 0, 0))
        grows_to = max((intent.size_bytes for intent in intents if intent.kind == "append"), default=0)
        return Known(
            chat_id, base, files, states, mark.watermark.lines if mark is not None else 0, grows_to, mark, facts
        )

    def mark(self, place: Place) -> SyncMark | None:
        """What the chat_sync beside an owner says."""
        if not is_nameable(place, SYNC_NAMESPACE):
            return None
        try:
            sync = sync_of(read_steady(self._fs, self._sidecar(place, SYNC_NAMESPACE))[0])
        except OSError:
            return None
        return None if sync is None else sync.mark

    def _owns(self, place: Place, mark: SyncMark) -> bool:
        if mark.name == str(place):
            return True
        for folders, names in self._names.items():
            for name in names if folders[:1] in (("chats",), ("group chats",)) else ():
                if str(kind_of((*folders, name)).place) == mark.name and name.endswith(".jsonl"):
                    return False
        return True

    def _saved(self, chat_id: str) -> SessionFile | None:
        path = os.path.join(self._scope.own_folder, "sessions", self.user, f"{chat_id}.json")
        try:
            return check_session(read_steady(self._fs, path)[0], chat_id, Tally(path))
        except OSError:
            return None

    def _sidecar(self, place: Place, namespace: str) -> str:
        return os.path.join(self._root, *file_of(place)[0], sidecar_name(place, namespace))

    # -- a chat's file -----------------------------------------------------------------------------------------------

    def chat(self, path: str, place: ChatName, tally: Tally) -> None:
        """A chat's file."""
        known = self.known(place)
        with self._fs.open_read(path) as file:
            scan = ChatScan(
                tally.path, headed=isinstance(place, CharacterChat),
                known_bytes=[identity.size_bytes for identity in known.files],
            )
            for piece in steady_pieces(file):
                scan.feed(piece)
            scan.finish()
            stat = file.stat()
        judged, offset = judge(scan.size_bytes, scan.crc32, scan.crc_at, known.files, stat, known.grows_to)
        lines = scan.tally.take()
        if judged == "torn":
            # Its last line is a piece of an append of ours, and the next start finishes it.
            lines = [one for one in lines if one.severity != "damage" or one.offset < known.files[0].size_bytes]
        for finding in lines:
            tally.put(finding)
        if judged == "edited" and known.lines > scan.messages:
            tally.add("chat-shorter", f"{scan.messages} of {known.lines}")
        else:
            tell(tally, "chat", judged, offset, untouched=is_untouched(stat, known.files))
        if isinstance(place, GroupChat) and place.chat not in self.groups and self._names.get(("groups",)) is not None:
            # Groups are looked at before the chats only when somebody asks for all; so they are read here.
            self._read_groups()
            if place.chat not in self.groups:
                tally.add("group-chat-unlisted")

    def _read_groups(self) -> None:
        if self.groups:
            return
        for name in self._names.get(("groups",), set()):
            try:
                group = loads(read_steady(self._fs, os.path.join(self._root, "groups", name))[0])
            except (OSError, ValueError):
                continue
            chats = group.get("chats") if isinstance(group, dict) else None
            self.groups.update(chat for chat in chats or () if isinstance(chat, str))

    def missing(self) -> list[Finding]:
        """Chats that the log knows and that have no file."""
        told: list[Finding] = []
        for name, chat_id in sorted(self._by_name.items()):
            facts = self._facts[owner_key(self.user, chat_id)]
            place = _chat_of(name)
            if place is None or facts.has_no_file_yet:
                continue
            folders, file = file_of(place)
            if file not in self._names.get(folders, set()):
                told.append(found("chat-missing", self._scope.name_of(os.path.join(self._root, *folders, file)), name))
        return told

    # -- sidecars ----------------------------------------------------------------------------------------------------

    def sidecar(self, path: str, place: Place, namespace: str, tally: Tally) -> None:
        """A state, a floor state's log, or chat_sync."""
        data, stat = read_steady(self._fs, path)
        if namespace == SYNC_NAMESPACE:
            self._sync(data, place, tally)
            return
        known = self.known(place)
        identities = known.states.get(namespace, [])
        judged, offset = judge(len(data), zlib.crc32(data), {}, identities, stat)
        untouched = is_untouched(stat, identities)
        if not any(identity.inode for identity in identities) and not self._was_written(stat, known):
            untouched = True
            judged = "rotten" if judged == "edited" else judged
        tell(tally, "state", judged, offset, untouched=untouched)
        # Where another program's bytes are all that was ever told, nobody knows better ones.
        told = {(one.size_bytes, one.crc32) for one in identities}
        told |= set() if known.facts is None else known.facts.states.get(namespace, set())
        is_known = bool(told - {(len(data), zlib.crc32(data))})
        if kind_of(_parts_of(place, namespace)).sort == "floor-log":
            self._floor(data, place, tally, is_known=is_known)
        else:
            check_state(data, tally, is_known=is_known)

    def _was_written(self, stat: FileStat, known: Known) -> bool:
        """Whether a sidecar was written after we knew the owner's files, where it is not known which file it was."""
        newest = max((identity.mtime_ns for identity in known.files), default=0)
        return newest == 0 or stat.mtime_ns > newest

    def _floor(self, data: bytes, place: Place, tally: Tally, *, is_known: bool) -> None:
        ids: list[str] | None = None
        if isinstance(place, CharacterChat | GroupChat):
            scan = ChatScan("", headed=isinstance(place, CharacterChat), keep_ids=True)
            try:
                folders, name = file_of(place)
                with self._fs.open_read(os.path.join(self._root, *folders, name)) as file:
                    for piece in steady_pieces(file):
                        scan.feed(piece)
                scan.finish()
                ids = scan.ids
            except FsError:
                ids = None
        check_floor_log(data, ids, tally, is_known=is_known)

    def _sync(self, data: bytes, place: Place, tally: Tally) -> None:
        sync = check_sync(data, str(place), tally)
        mark = sync.mark if sync is not None else None
        if mark is None or not self._owns(place, mark):
            return
        facts = self._facts.get(owner_key(self.user, mark.chat_id))
        other = self._other_of(place, mark.chat_id, facts)
        if other:
            tally.add("chat-id-duplicate", f"the other one is {other}")
        if facts is None or facts.base is None or other:
            return
        saved = self._saved(mark.chat_id)
        seq = mark.head.seq if saved is None else max(mark.head.seq, saved.answered_seq)
        if (seq > facts.seq or mark.head.epoch > facts.epoch) and self._is_log_whole:
            if not mark.anew:
                tally.add("sync-ahead-of-log", f"seq {seq}, the log ends at {facts.seq}")
        elif _rank(mark) < _rank(facts.base):
            tally.add("sync-behind", f"seq {mark.head.seq}, the log says {facts.base.head.seq}")

    def _other_of(self, place: Place, chat_id: str, facts: OwnerFacts | None) -> str:
        """The chat that has this id, when it is not this one: the one that the log names, else the one seen first."""
        named = "" if facts is None or facts.base is None else facts.base.name
        if named not in ("", str(place)) and self._says(named, chat_id):
            return named
        first = self._ids.setdefault(chat_id, str(place))
        return "" if str(place) in (first, named) else first

    def _says(self, name: str, chat_id: str) -> bool:
        """Whether a chat stands there that says that it has this id."""
        place = parse_place(name)
        if isinstance(place, str) or file_of(place)[1] not in self._names.get(file_of(place)[0], set()):
            return False
        mark = self.mark(place)
        return mark is not None and (mark.chat_id, mark.name) == (chat_id, name)

    # -- backups and trash -------------------------------------------------------------------------------------------

    def backup(self, path: str, kind: Kind, tally: Tally) -> None:
        """A backup, or what a repair put aside."""
        if kind.sort == "repair-manifest":
            check_repair_manifest(read_steady(self._fs, path)[0], tally)
            return
        if kind.sort == "repair-file":
            check_repair_file(self._fs, path, tally)
            return
        if kind.sort == "backup-state":
            try:
                loads(read_steady(self._fs, path)[0])
            except (ValueError, RecursionError) as error:
                tally.add("backup-broken", str(error)[:120])
            return
        if self._fs.stat(path.removesuffix(".jsonl") + ".json") is not None:
            # Its manifest vouches for its bytes, whatever they are: a damaged chat is backed up as it is.
            return
        scan = ChatScan(tally.path, headed=False)
        with self._fs.open_read(path) as file:
            for piece in steady_pieces(file):
                scan.feed(piece)
        scan.finish()
        for finding in scan.tally.take():
            if finding.severity == "damage":
                tally.add("backup-lines-odd", finding.message.rstrip("."), line=finding.line, offset=finding.offset)

    def trashed(self, folder: str, entry: Entry, tally: Tally) -> None:
        """A trash entry with a manifest."""
        self._trashed[folder] = entry
        for path in entry.files:
            if self._fs.stat(os.path.join(folder, *path.split("/"))) is None:
                tally.add("trash-file-missing", path[:120])

    def in_trash(self, path: str, parts: tuple[str, ...], tally: Tally) -> None:
        """A file in the trash: a chat is read, and some manifest has to tell of it."""
        folder = os.path.join(self._root, *parts[:2])
        if folder not in self._trashed:
            self._trashed[folder] = self._manifest(folder)
        entry = self._trashed[folder]
        if entry is None:
            if self._fs.stat(os.path.join(folder, "manifest.json")) is None:
                tally.add("manifest-broken", "there is none")
        elif "/".join(parts[2:]) not in entry.files:
            tally.add("trash-untold")

    def _manifest(self, folder: str) -> Entry | None:
        try:
            data = read_steady(self._fs, os.path.join(folder, "manifest.json"))[0]
        except OSError:
            return None
        return check_manifest(data, os.path.basename(folder), Tally(folder))


def _when_well(base: BaseRecord, file: FileIdentity) -> FileIdentity:
    """What the file was before it rotted, with the stat that it has until somebody writes to it."""
    known = base.rotten
    return file if known is None else FileIdentity(known.size_bytes, known.crc32, file.mtime_ns, file.inode)


def _chat_of(name: str) -> ChatName | None:
    """The chat that this text names; None for an owner without messages."""
    place = parse_place(name)
    return place if isinstance(place, CharacterChat | GroupChat) else None


def _parts_of(place: Place, namespace: str) -> tuple[str, ...]:
    return (*file_of(place)[0], sidecar_name(place, namespace))


def _stems(names: set[str], ending: str) -> set[str]:
    return {name.removesuffix(ending) for name in names if name.endswith(ending)}


def _rank(base: BaseRecord | SyncMark) -> tuple[int, int]:
    return base.head.epoch, base.head.seq

