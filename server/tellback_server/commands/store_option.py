"""`--store` of commands that work on a data folder: which store its owners are in, and that store, opened.

Rules of this module:
- A store is opened only when the folder belongs to it, by its address; a command never claims a store by mistake.
- What a server takes from the environment (TELLBACK_STORE, TELLBACK_PRIMARY) is understood.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Annotated

import msgspec
import typer

from tellback_server.clock import Clock
from tellback_server.commands.exits import CONFIGURATION, fail
from tellback_server.config_problems import variable_of
from tellback_server.fs import Fs
from tellback_server.store.address import StoreAddress
from tellback_server.store.base import Store, StoreUnsafe
from tellback_server.store.schemes import open_store
from tellback_server.store_binding import Binding, bind, read_binding, refuse_files

__all__ = ["StoreUrl", "Taken", "bound_store", "named_store", "opened", "taken"]

StoreUrl = Annotated[
    str | None,
    typer.Option("--store", envvar=variable_of("store"), help="The store of the chats; else what the folder tells."),
]


def named_store(url: str | None) -> str | None:
    """The URL that was given; None for users' folders, the primary of `multi`."""
    if url == "multi":
        url = os.environ.get(variable_of("primary"))
        if url is None:
            fail(f"--store: name the primary; {variable_of('primary')} is not set.", CONFIGURATION)
    return None if url in (None, "", "files") else url


def bound_store(fs: Fs, data: str, url: str | None) -> tuple[Binding, str] | None:
    """The binding of a data folder and the URL of its store; None when its chats are in users' folders. Ends the
    command when another store was given.
    """
    binding, given = read_binding(fs, data), named_store(url)
    if binding is None:
        if given is not None:
            fail(f"--store: the chats of {data} are in its folders, not in a store.", CONFIGURATION)
        return None
    if given is None:
        return binding, binding.store
    try:
        address = str(StoreAddress(given))
    except StoreUnsafe as error:
        fail(f"--store: {error}.", CONFIGURATION)
    if address != binding.store:
        fail(f"--store: the chats of {data} are in {binding.store}, not in {address}.", CONFIGURATION)
    return binding, given


@contextlib.contextmanager
def taken(fs: Fs, data: str, url: str | None, *, has_chats: Callable[[], bool], is_dry: bool) -> Iterator[Taken | None]:
    """The store to put chats into, which the folder belongs to from now on; None for users' folders. A dry run binds
    and makes nothing. Raises ConfigurationError, StoreError, OSError.
    """
    given = named_store(url)
    binding = read_binding(fs, data)
    if given is None and binding is None:
        yield None
        return
    if binding is None:
        refuse_files(data, has_chats=has_chats())
        if is_dry:
            yield Taken(None, StoreAddress(given or "").take_durability() == "log", str(StoreAddress(given or "")))
            return
        assert given is not None, "just looked"
        with opened(given) as store:
            made = bind(fs, data, given, Clock().uuid4, has_chats=False)
            store.claim(made.data_id)
            yield Taken(store, store.check().durability == "log", made.store)
        return
    bound = bound_store(fs, data, url)
    assert bound is not None, "it has a binding"
    with opened(bound[1]) as store:
        store.claim(bound[0].data_id)
        yield Taken(store, store.check().durability == "log", bound[0].store)


class Taken(msgspec.Struct, frozen=True):
    """A store to put chats into."""

    store: Store | None
    """None in a dry run, when nothing is there yet."""
    keeps_log: bool
    """It may lose what it confirmed."""
    address: str
    """Without its password."""


@contextlib.contextmanager
def opened(url: str) -> Iterator[Store]:
    """A store, checked. Raises StoreError."""
    with contextlib.closing(open_store(url)) as store:
        store.check()
        yield store
