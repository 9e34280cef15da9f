"""A full disk under a store: what was saved stands, the save that found no room is unavailable, and goes on later."""

from __future__ import annotations

import contextlib
import os
import pwd
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tellback_server.contract import Saved, same
from tellback_server.store.base import Store, StoredChat, StoreUnavailable
from tellback_server.store.schemes import open_store
from tests.support.database_servers import PostgresProcess

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts a small disk")


@contextlib.contextmanager
def small_disk(size: str) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="tellback-disk-"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)
        folder.rmdir()


def fill(store: Store) -> tuple[Saved, StoredChat]:
    """Save until there is no room; the chat, and what was saved last."""
    saved = Saved()
    saved.append()
    value = saved.save(store)
    for _ in range(200):
        saved.append(50, b'{"id":"%s","mes":"' + b"x" * 1000 + b'"}')
        try:
            value = saved.save(store)
        except StoreUnavailable:
            return saved, value
    raise AssertionError("the disk took 10 MB")


def goes_on(store: Store, saved: Saved, value: StoredChat, enlarge: Callable[[], object]) -> None:
    same(store.load("default-user", saved.chat_id), value)
    enlarge()
    newer = saved.save(store)
    same(store.load("default-user", saved.chat_id), newer)


@pytest.mark.parametrize("scheme", ["sqlite", "files"])
def test_st9_a_full_disk_under_a_file(scheme: str) -> None:
    with small_disk("2m") as disk, contextlib.closing(open_store(f"{scheme}://{disk}/store")) as store:
        store.check()
        saved, value = fill(store)
        goes_on(store, saved, value, lambda: subprocess.run(["mount", "-o", "remount,size=40m", disk], check=True))


def test_st9_a_full_disk_under_postgresql(postgres: PostgresProcess) -> None:
    schema = f"t{uuid.uuid4().hex}"
    with small_disk("2m") as disk, postgres.connect() as administrator:
        nobody = pwd.getpwnam("nobody")
        os.chown(disk, nobody.pw_uid, nobody.pw_gid)
        disk.chmod(0o700)
        administrator.execute(f"CREATE TABLESPACE {schema} LOCATION '{disk}'".encode())
        administrator.execute(f"ALTER DATABASE postgres SET default_tablespace = {schema}".encode())
        try:
            with contextlib.closing(open_store(postgres.url(schema))) as store:
                store.check()
                saved, value = fill(store)
                goes_on(
                    store, saved, value, lambda: subprocess.run(["mount", "-o", "remount,size=60m", disk], check=True)
                )
        finally:
            administrator.execute(b"ALTER DATABASE postgres RESET default_tablespace")
            administrator.execute(f"DROP SCHEMA {schema} CASCADE".encode())
            administrator.execute(f"DROP TABLESPACE {schema}".encode())
