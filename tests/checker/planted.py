"""Bugs, planted in a real server: `prepare` replaces parts of its modules in its own process before it starts.

Each is a mistake that a server of this kind has made somewhere (RELIABILITY, "Planted bugs"), with the invariant that
must name it, and the plan of runs in which it shows. The product has no hooks for this.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

POWER = {"power": 1}
KILL = {"kill": 1}
WIRES = {"wires": 1}


class Bug(NamedTuple):
    """A planted bug."""

    caught_by: str
    """The invariant that names it."""
    plant: Callable[[], None]
    plan: dict[str, Any]
    """Of the runs in which it shows."""


BUGS: dict[str, Bug] = {}


def bug(name: str, caught_by: str, **plan: Any) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Registers what plants a bug."""

    def register(plant: Callable[[], None]) -> Callable[[], None]:
        BUGS[name] = Bug(caught_by, plant, plan)
        return plant

    return register


def prepare(name: str) -> None:
    """The server that starts now has this bug."""
    BUGS[name].plant()


class Around:
    """A file system, or a file, with some of its methods replaced."""

    def __init__(self, inner: Any, **methods: Callable[..., Any]) -> None:
        self._inner = inner
        self.__dict__.update(methods)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __enter__(self) -> Around:
        return self

    def __exit__(self, *exception: object) -> None:
        self._inner.close()


def replace(owner: object, name: str, value: object) -> None:
    """Plants `value` in a class or module."""
    assert hasattr(owner, name), f"{owner} has no {name} any more: plant the bug where it is now"
    setattr(owner, name, value)


def nothing(*_arguments: Any, **_named: Any) -> None:
    """Stands in for what is not done."""


from tests.checker import planted_answers, planted_life, planted_log  # noqa: E402, F401  They register their bugs.
