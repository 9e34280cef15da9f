"""Orphans: state files whose owner another program deleted. They go to the trash, an owner's together.

Rules of this module (STORAGE "Trash"):
- A state file is an orphan when the file of its owner does not stand beside it (`store.place`).
- Another program may be renaming or copying just now, so it is taken only when two looks at least ORPHANED_S apart
  found the owner gone, and a third one right before it is moved.
- A chat that is made under the name begins without them: they are put aside before it is.
- Those of a chat that only has another name now go there (`outside_renames`).
- What is live here is left alone: a chat that was made and has no file yet, an owner whose commits are being folded.
- What cannot be moved stays and is looked at again; the reason is told once a look.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Final

import structlog

from tellback_protocol.ids import Place, sidecar_name
from tellback_server.clock import Clock
from tellback_server.fs import FileMissing
from tellback_server.outside_renames import OutsideRenames
from tellback_server.store.files import FileStore
from tellback_server.store.place import OWNER_FOLDERS, STATE_ENDING, file_of, is_text, state_of
from tellback_server.trash import Entry, Trash

__all__ = ["ORPHANED_S", "Orphans", "find_orphans"]

log = structlog.get_logger()

ORPHANED_S: Final = 300.0
"""Between two looks. A copy of a large folder, or a rename with a question in between, takes less."""


class Orphans:
    """The looks at all users' folders. `step` is called now and then, in the loop."""

    def __init__(
        self, files: FileStore, renames: OutsideRenames, clock: Clock, executor: Executor,
        is_live: Callable[[str, str], bool],
    ) -> None:
        self._files = files
        self._renames = renames
        self._clock = clock
        self._executor = executor
        self._is_live = is_live
        """Whether an owner (user, name) has an actor."""
        self._trash = Trash(files)
        self._seen: set[tuple[str, str]] = set()
        """User and owner of the orphans of the last look."""
        self._looked_s: float | None = None

    async def step(self) -> None:
        """Look, when it is time again, and take what was an orphan at the last look too."""
        now_s = self._clock.monotonic_s()
        if self._looked_s is not None and now_s - self._looked_s < ORPHANED_S:
            return
        self._looked_s = now_s
        loop = asyncio.get_running_loop()
        try:
            found = await loop.run_in_executor(self._executor, self._look)
        except OSError as error:
            log.warning("orphans-not-looked-for", error=str(error))
            return
        seen: set[tuple[str, str]] = set()
        for (user, name), (place, paths) in found.items():
            if self._is_live(user, name):
                continue
            if (user, name) not in self._seen:
                seen.add((user, name))
                continue
            try:
                await loop.run_in_executor(self._executor, self._take, user, place, paths)
            except OSError as error:
                seen.add((user, name))
                log.warning("orphans-not-moved", owner=name, error=str(error))
        self._seen = seen

    def _look(self) -> dict[tuple[str, str], tuple[Place, list[str]]]:
        found: dict[tuple[str, str], tuple[Place, list[str]]] = {}
        for user in self._files.known_users():
            for place, paths in find_orphans(self._files, user).items():
                found[user, str(place)] = (place, paths)
        return found

    def _take(self, user: str, place: Place, paths: list[str], *, at_once: bool = False) -> None:
        home = self._renames.home_of(user, place)
        # Whoever has that chat open knows nothing of them yet.
        is_open = home is not None and self._is_live(user, str(home))
        if is_open and not at_once:
            return
        if home is None or is_open or not self._renames.bring(user, place, home):
            put_aside(self._files, self._trash, user, place, paths, self._clock.now_ms())

    def make_room(self, user: str, place: Place) -> None:
        """Puts aside at once what a deleted owner left, for a new one of its name. Blocks."""
        folders = file_of(place)[0]
        start = sidecar_name(place, "").removesuffix(STATE_ENDING)
        names = _listed(self._files, os.path.join(self._files.user_root(user), *folders))
        paths = [
            "/".join((*folders, name)) for name in names
            if name.startswith(start) and (owned := state_of(folders, name)) is not None and owned[0] == place
        ]
        if paths:
            self._take(user, place, paths, at_once=True)


def put_aside(files: FileStore, trash: Trash, user: str, place: Place, paths: list[str], now_ms: int) -> None:
    """Moves an owner's state files to the trash, unless the owner is there. Durable on return. Raises OSError."""
    if files.stat_owner(user, place) is not None:
        return
    trash.put(user, Entry(
        id=files.chat_id_of(user, place), name=str(place), deleted_ms=now_ms, reason="orphaned", files=paths,
    ))
    log.warning("orphans-to-trash", owner=str(place), count=len(paths))


def find_orphans(files: FileStore, user: str) -> dict[Place, list[str]]:
    """State files without an owner, as paths below the user's root. Cost: listing the folders. Blocks."""
    root = files.user_root(user)
    folders: list[tuple[str, ...]] = [("group chats",), *((name,) for name in OWNER_FOLDERS)]
    folders.extend(("chats", name) for name in _listed(files, os.path.join(root, "chats")))
    orphans: dict[Place, list[str]] = {}
    for parts in folders:
        names = _listed(files, os.path.join(root, *parts))
        standing = set(names)
        for name in names:
            owned = state_of(parts, name)
            if owned is not None and file_of(owned[0])[1] not in standing:
                orphans.setdefault(owned[0], []).append("/".join((*parts, name)))
    return orphans


def _listed(files: FileStore, path: str) -> list[str]:
    stat = files.fs.stat(path)
    if stat is None or not stat.is_directory:
        return []
    try:
        return [name for name in files.fs.listdir(path) if is_text(name)]
    except FileMissing:
        return []
