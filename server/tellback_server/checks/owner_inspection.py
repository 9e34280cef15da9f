"""Owner inspection: the files of one chat looked at, as `inspection` does, with what a running log tells of it.

Rules of this module (BEHAVIOUR X14):
- Cost: the chat's files and its records. Of other chats only names are read, in its folder and in that of the chat that
  its chat_sync or the log says it is, and the records and chat_sync of that one.
"""

from __future__ import annotations

import contextlib
import os

from tellback_protocol.ids import CharacterChat, GroupChat, parse_place, sidecar_name
from tellback_server.checks.findings import Finding, Tally
from tellback_server.checks.kinds import kind_of
from tellback_server.checks.log_image import LiveLog, OwnerFacts
from tellback_server.checks.owner_files import OwnerCheck
from tellback_server.checks.reading import telling, tells_unsafe
from tellback_server.checks.scope import Scope
from tellback_server.fs import Fs, FsError
from tellback_server.log import Log
from tellback_server.records import owner_key
from tellback_server.store.place import file_of

__all__ = ["OwnerInspection"]


class OwnerInspection:
    """One check of one chat. `found` is what the last `findings` gave."""

    def __init__(
        self, fs: Fs, scope: Scope, user: str, place: CharacterChat | GroupChat, chat_id: str, log: Log
    ) -> None:
        self._fs = fs
        self.scope = scope
        self.user = user
        self._place = place
        self._key = owner_key(user, chat_id)
        self.image = LiveLog(log)
        self.found: list[Finding] = []

    def owner_check(self, user: str) -> OwnerCheck:
        """What holds the files against each other."""
        assert user == self.user, "of one user"
        names: dict[tuple[str, ...], set[str]] = {}
        check = OwnerCheck(self._fs, self.scope, user, names, {}, is_log_whole=True)
        # Who else it may be is told by its chat_sync, and by the log.
        said = check.mark(self._place)
        keys = [self._key] if said is None else [owner_key(user, said.chat_id), self._key]
        facts = {key: OwnerFacts(intents=[]) for key in keys}
        for key, told in facts.items():
            for _position, record in self.image.records(key, -1):
                told.tell(record)
        check.know(facts, is_log_whole=True)
        same = [one.base.name for one in facts.values() if one.base is not None] + ([] if said is None else [said.name])
        for place in (self._place, *map(parse_place, same)):
            if not isinstance(place, str):
                self._list(file_of(place)[0], names)
        self._list(("groups",), names)
        return check

    def _list(self, folders: tuple[str, ...], names: dict[tuple[str, ...], set[str]]) -> None:
        path = os.path.join(self.scope.users[self.user], *folders)
        stat = self._fs.stat(path)
        if folders not in names and stat is not None and stat.is_directory:
            with contextlib.suppress(FsError):
                names[folders] = set(self._fs.listdir(path))

    def findings(self) -> list[Finding]:
        """Everything that is found. Raises FsError for the folder."""
        root = self.scope.users[self.user]
        folders, name = file_of(self._place)
        check = self.owner_check(self.user)
        ours = [name, *(
            other for other in sorted(self._fs.listdir(os.path.join(root, *folders)))
            if (kind := kind_of((*folders, other))).place == self._place and kind.namespace
            and other == sidecar_name(self._place, kind.namespace)
        )]
        self.found = []
        for one in ours:
            path = os.path.join(root, *folders, one)
            tally = Tally(self.scope.name_of(path))
            stat = self._fs.stat(path)
            if stat is None or tells_unsafe(stat, tally):
                self.found += tally.take()
                continue
            with telling(tally):
                if one == name:
                    check.chat(path, self._place, tally)
                else:
                    check.sidecar(path, self._place, kind_of((*folders, one)).namespace, tally)
            self.found += tally.take()
        return self.found

    def below(self, path: str) -> str:
        """The path of a finding, below the user's folder."""
        return os.path.relpath(os.path.join(self.scope.data_root, path), self.scope.users[self.user])
