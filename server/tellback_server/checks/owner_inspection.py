"""Owner inspection: the files of one chat looked at, as `inspection` does, with what a running log tells of it.

Rules of this module (BEHAVIOUR X14):
- Cost: the chat's files and its records; nothing of other chats is read but the names in its folder.
"""

from __future__ import annotations

import os

from tellback_protocol.ids import CharacterChat, GroupChat, sidecar_name
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
        for folders in {file_of(self._place)[0], ("groups",)}:
            try:
                names[folders] = set(self._fs.listdir(os.path.join(self.scope.users[user], *folders)))
            except FsError:
                continue
        facts = {self._key: OwnerFacts(intents=[])}
        for _position, record in self.image.records(self._key, -1):
            facts[self._key].tell(record)
        return OwnerCheck(self._fs, self.scope, user, names, facts, is_log_whole=True)

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
