"""Names: which owner has which name now, as far as the log and this process know. In memory; files tell the rest.

Rules of this module:
- A name belongs to the owner that had it last, and an id that lost its name to none.
"""

from __future__ import annotations

__all__ = ["Names"]


class Names:
    """All users' names and ids. Loop thread only. Cost: a step, but for `moved`."""

    def __init__(self) -> None:
        self._names: dict[tuple[str, str], str] = {}
        self._ids: dict[tuple[str, str], str] = {}

    def name_of(self, user: str, owner_id: str) -> str | None:
        return self._names.get((user, owner_id))

    def id_of(self, user: str, name: str) -> str | None:
        return self._ids.get((user, name))

    def named(self, user: str, owner_id: str, name: str) -> None:
        """`name` is the owner's from now on. Whoever asks for the one that had it before must not get it."""
        before = self._ids.get((user, name))
        if before is not None and before != owner_id:
            self._names.pop((user, before), None)
        self._names[user, owner_id] = name
        self._ids[user, name] = owner_id

    def forgotten(self, user: str, owner_id: str, name: str) -> None:
        """The owner has this name no more."""
        if self._ids.get((user, name)) == owner_id:
            del self._ids[user, name]
        if self._names.get((user, owner_id)) == name:
            del self._names[user, owner_id]

    def below(self, user: str, start: str) -> dict[str, str]:
        """Names by id, of those that begin so. Cost: all names."""
        return {
            owner_id: name for (whose, owner_id), name in self._names.items()
            if whose == user and name.startswith(start)
        }

    def moved(self, user: str, old: str, new: str) -> None:
        """Every name that began with `old` begins with `new`, or is nobody's when that is empty. Cost: all names."""
        for (whose, owner_id), name in list(self._names.items()):
            if whose == user and name.startswith(old):
                self.forgotten(user, owner_id, name)
                if new:
                    self.named(user, owner_id, new + name.removeprefix(old))
