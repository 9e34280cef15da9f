"""Store binding: which store a data folder belongs to, and the other way round.

    <data>/.tellback/store      {"data_id", "store"}, sealed; written before the first owner goes there
    <data>/.tellback/mirror     the same of a store that mirrors users' files

Rules of this module (STORAGE "A store in the place of files"):
- A data folder has users' files or one store, never both: outcomes and names in it are about owners that stand there.
- The store remembers the folder's `data_id` (`claim`), the folder where its store is, without the password. A store
  that moved is taken when it holds owners; an empty one in the place of another is refused.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import msgspec

from tellback_server.config_problems import ConfigurationError, Problem, flag_of
from tellback_server.fs import FileMissing, Fs
from tellback_server.sealed import seal, unseal
from tellback_server.store.address import StoreAddress

__all__ = [
    "Binding", "as_file", "bind", "check_files", "is_bound", "mirror_binding", "moved", "read_binding", "refuse_files",
    "unbind", "write_binding",
]

NAME = "store"
MIRROR_NAME = "mirror"


class Binding(msgspec.Struct, frozen=True):
    """Persisted: keep stable."""

    data_id: str
    store: str
    """As people write it, without its password."""


_decode = msgspec.json.Decoder(Binding).decode


def read_binding(fs: Fs, data: str, name: str = NAME) -> Binding | None:
    """None when the folder was never bound to a store. Raises ConfigurationError, FsError."""
    path = _path(data, name)
    try:
        found = unseal(fs.read(path))
        if found is not None:
            return _decode(found[0])
    except FileMissing:
        return None
    except msgspec.MsgspecError:
        pass
    what = "it is damaged: which store this folder belongs to is not known."
    raise ConfigurationError(Problem(path, what, "Restore it from a backup of the folder."))


def is_bound(fs: Fs, data: str) -> bool:
    """Whether the folder's chats are in a store."""
    return fs.stat(_path(data, NAME)) is not None


def check_files(fs: Fs, data: str) -> None:
    """Raises ConfigurationError when the folder belongs to a store."""
    binding = read_binding(fs, data)
    if binding is not None:
        remedy = f"Give {flag_of('store')} {binding.store}; `tellback export` makes files of them elsewhere."
        raise ConfigurationError(Problem(flag_of("data"), f"the chats of {data} are in {binding.store}.", remedy))


def bind(fs: Fs, data: str, url: str, new_id: Callable[[], str], *, has_chats: bool) -> Binding:
    """The folder's binding, to this store when it is the first. `has_chats`: it holds users' files or their log.

    Raises ConfigurationError: it belongs to users' files. Whether a store at another place is the same one is for
    `moved` to say.
    """
    binding = read_binding(fs, data)
    if binding is not None:
        return binding
    refuse_files(data, has_chats=has_chats)
    return write_binding(fs, data, Binding(new_id(), str(StoreAddress(url))))


def refuse_files(data: str, *, has_chats: bool) -> None:
    """Raises ConfigurationError when a folder that belongs to no store holds chats."""
    if has_chats:
        what = f"{data} holds chats as files; a server with a store would not show them."
        remedy = f"Give {flag_of('store')} another {flag_of('data')} folder; `tellback import` brings the chats there."
        raise ConfigurationError(Problem(flag_of("store"), what, remedy))


def write_binding(fs: Fs, data: str, binding: Binding, name: str = NAME) -> Binding:
    """Durable on return."""
    path = _path(data, name)
    fs.make_directories(os.path.dirname(path))
    fs.write_atomically(path, as_file(binding)[1])
    return binding


def unbind(fs: Fs, data: str) -> None:
    """The chats are in users' folders from now on. Durable on return."""
    path = _path(data, NAME)
    fs.unlink(path)
    fs.fsync_directory(os.path.dirname(path))


def as_file(binding: Binding) -> tuple[str, bytes]:
    """Where it stands below a data folder, and what stands there."""
    return f".tellback/{NAME}", seal(msgspec.json.encode(binding))


def moved(fs: Fs, data: str, binding: Binding, url: str, *, holds_owners: bool) -> Binding:
    """The binding to a store that answered and is ours, perhaps at another place than before.

    Raises ConfigurationError: another place, and nothing there.
    """
    here = str(StoreAddress(url))
    if binding.store == here:
        return binding
    if not holds_owners:
        what = f"the chats of {data} are in {binding.store}; {here} holds none."
        remedy = "Name that store, or copy its content there first."
        raise ConfigurationError(Problem(flag_of("store"), what, remedy))
    return write_binding(fs, data, Binding(binding.data_id, here))


def mirror_binding(fs: Fs, data: str, url: str, new_id: Callable[[], str]) -> Binding:
    """What a store that mirrors the folder is claimed with, wherever it is. Raises ConfigurationError, FsError."""
    binding = read_binding(fs, data, MIRROR_NAME)
    here = str(StoreAddress(url))
    if binding is not None and binding.store == here:
        return binding
    data_id = new_id() if binding is None else binding.data_id
    return write_binding(fs, data, Binding(data_id, here), MIRROR_NAME)


def _path(data: str, name: str) -> str:
    return os.path.join(data, ".tellback", name)
