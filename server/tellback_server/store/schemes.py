"""Schemes: from a URL to the store it names, built in or plugged in.

    memory  sqlite  postgresql, postgres  redis, rediss, valkey, valkeys  files

Rules of this module:
- A plug-in registers a scheme in the entry point group `tellback.stores`: a function of StoreAddress that returns a
  Store and touches nothing yet; `check` reaches out. A plug-in never takes the place of a built-in scheme.
- A driver is imported when its scheme is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Final

from tellback_server.store.address import StoreAddress
from tellback_server.store.base import Store, StoreUnsafe

__all__ = ["ENTRY_POINTS", "open_store"]

ENTRY_POINTS: Final = "tellback.stores"

_BUILT_IN: Final[Mapping[str, str]] = {
    "memory": "memory",
    "sqlite": "sqlite",
    "postgresql": "postgres",
    "postgres": "postgres",
    "redis": "redis",
    "rediss": "redis",
    "valkey": "redis",
    "valkeys": "redis",
    "files": "folder",
}
_EXTRAS: Final[Mapping[str, str]] = {"postgres": "postgres", "redis": "redis"}


def open_store(url: str) -> Store:
    """The store that a URL names; nothing is reached yet. Raises StoreUnsafe: unknown scheme, bad option, no driver."""
    address = StoreAddress(url)
    module = _BUILT_IN.get(address.scheme)
    if module is not None:
        return _built_in(module)(address)
    found = [point for point in entry_points(group=ENTRY_POINTS) if point.name == address.scheme]
    if len(found) != 1:
        raise StoreUnsafe(_none_or_many(address.scheme, found))
    try:
        store: Store = found[0].load()(address)
    except (ImportError, AttributeError) as error:
        raise StoreUnsafe(f"the plug-in {found[0].value} of {address.scheme} cannot be loaded: {error}") from error
    return store


def _built_in(module: str) -> Callable[[StoreAddress], Store]:
    try:
        return import_module(f"tellback_server.store.{module}").open_address  # type: ignore[no-any-return]
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get(module)
        if extra is None:
            raise
        raise StoreUnsafe(f"{error.name} is not installed: pip install 'tellback[server,{extra}]'") from error


def _none_or_many(scheme: str, found: list[EntryPoint]) -> str:
    if found:
        names = ", ".join(sorted(point.value for point in found))
        return f"{scheme} is claimed by several plug-ins: {names}; uninstall all but one"
    known = sorted({*_BUILT_IN, *(point.name for point in entry_points(group=ENTRY_POINTS))})
    return f"no store is called {scheme[:40]!r}; there are {', '.join(known)}"
