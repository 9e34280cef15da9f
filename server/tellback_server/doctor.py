"""Doctor: what a person should know about a folder and a machine before trusting chats to them.

Rules this module keeps:

- It says what it found and what to do; `wrong` means that the server would not start or could lose data, `warning` that
  it works and could be better.
- The one thing it writes is a temporary file for the sync test, which it removes. A held lock is only tried, for a
  moment.
- Facts about the system come from files of Linux (/proc) through Fs; elsewhere those checks say that they do not know.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
from collections.abc import Iterator
from typing import Final, Literal

import msgspec

from tellback_server.clock import Clock
from tellback_server.config_problems import ConfigurationError, flag_of
from tellback_server.fs import TEMPORARY_SUFFIX, DirectoryLocked, Fs, FsError
from tellback_server.gateway import FILES_RESERVED
from tellback_server.http import is_loopback_name
from tellback_server.log.inspect import verify
from tellback_server.metrics import quantile_of
from tellback_server.store.base import StoreError, StoreUnavailable
from tellback_server.store.schemes import open_store
from tellback_server.store_binding import read_binding

__all__ = ["Check", "check_all", "mount_of"]

SYNC_SAMPLES: Final = 200
SYNC_TIME_S_MAX: Final = 5.0
SYNC_WRITE_BYTES: Final = 4096
SYNC_SUSPICIOUS_S: Final = 20e-6
"""No medium that keeps data without power answers faster; the sync is probably a lie (RELIABILITY checklist 9)."""
SYNC_SLOW_S: Final = 0.05
FREE_BYTES_MIN: Final = 64 << 20
DESCRIPTORS_WANTED: Final = 4096

_VOLATILE: Final = frozenset({"tmpfs", "ramfs", "devtmpfs"})
_NETWORK: Final = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "virtiofs", "vboxsf"})
_FOREIGN: Final = frozenset({"vfat", "exfat", "ntfs", "ntfs3", "fuseblk", "drvfs", "hfsplus"})
_UNSAFE_OPTIONS: Final = frozenset({"volatile", "nobarrier", "barrier=0"})


class Check(msgspec.Struct, frozen=True):
    """One finding."""

    name: str
    state: Literal["good", "warning", "wrong"]
    found: str
    advice: str = ""
    values: dict[str, float] = {}
    """Numbers for --json, with their unit in the name."""


class Mount(msgspec.Struct, frozen=True):
    """One line of /proc/self/mountinfo."""

    point: str
    kind: str
    options: frozenset[str]


def check_all(
    fs: Fs, clock: Clock, directory: str, *, host: str, has_users: bool, store: str = "files"
) -> Iterator[Check]:
    """All checks of a data folder, in the order a person would ask."""
    folder = fs.stat(directory)
    if folder is None or not folder.is_directory:
        what = "does not exist" if folder is None else "is not a directory"
        advice = "Check the path: the server would make an empty folder here."
        if folder is not None:
            advice = "Check the path: the server needs a folder."
        elif fs.stat(os.path.dirname(directory)) is None:
            advice = f"Check the path: {os.path.dirname(directory)} does not exist, either; the server would refuse it."
        yield Check("folder", "wrong", f"{directory} {what}", advice)
    else:
        yield _layout(fs, directory)
        yield _permissions(fs, directory, folder.mode)
        yield _file_system(fs, directory)
        yield _space(fs, directory)
        yield _lock(fs, directory)
        yield from _log(fs, directory)
        yield from _store(fs, directory, store)
        yield _sync(fs, clock, directory)
    yield _address(host, has_users)
    yield _descriptors()


def _layout(fs: Fs, directory: str) -> Check:
    names = fs.listdir(directory)
    is_single = "chats" in names
    folders = (name for name in names if not name.startswith((".", "_")))
    users = [name for name in folders if _has_chats(fs, os.path.join(directory, name))]
    if is_single and users:
        advice = f"Move {users[0]} or chats out of the way: the server does not guess which one is meant."
        return Check("layout", "wrong", "chats/ stands in the folder and in folders of users, too", advice)
    if is_single:
        return Check("layout", "good", "one user's folder (default-user), as SillyTavern makes it")
    if users:
        return Check("layout", "good", f"{len(users)} users: {', '.join(users[:5])}")
    return Check("layout", "good", "no chats yet")


def _has_chats(fs: Fs, path: str) -> bool:
    found = fs.stat(path)
    inside = fs.stat(os.path.join(path, "chats")) if found is not None and found.is_directory else None
    return inside is not None and inside.is_directory


def _permissions(fs: Fs, directory: str, mode: int) -> Check:
    missing = [word for word, right in (("read", os.R_OK), ("write", os.W_OK), ("enter", os.X_OK))
               if not os.access(directory, right)]
    if missing:
        mount = _mount(fs, directory)
        if missing == ["write"] and mount is not None and "ro" in mount.options:
            found = f"the file system at {mount.point} is mounted read-only"
            return Check("permissions", "wrong", found, "Mount it writable; a container's volume without `:ro`.")
        owner = os.stat(directory).st_uid
        found = f"this user ({os.geteuid()}) may not {' or '.join(missing)} here: mode {mode:04o}, owner {owner}"
        is_owner = owner == os.geteuid()
        advice = "Give the owner the right (chmod u+rwx)." if is_owner else "Run as the owner, or chown it."
        return Check("permissions", "wrong", found, advice)
    if mode & 0o077:
        advice = f"chmod 700 {directory}, unless another program needs it."
        return Check("permissions", "warning", f"mode {mode:04o}: other users of this machine can look in", advice)
    return Check("permissions", "good", f"mode {mode:04o}")


def mount_of(table: str, path: str) -> Mount | None:
    """The mount that `path` (absolute, without links) lies on, from the text of /proc/self/mountinfo (proc(5))."""
    best: Mount | None = None
    for line in table.split("\n"):
        before, dash, after = line.partition(" - ")
        left, right = before.split(" "), after.split(" ")
        if not dash or len(left) < 6 or len(right) < 3:
            continue
        # Spaces and the like in a path are written as \040.
        point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), left[4])
        if path == point or path.startswith(point.rstrip("/") + "/"):
            options = frozenset((*left[5].split(","), *right[2].split(",")))
            # Of mounts at the same point the last one is seen.
            if best is None or len(point) >= len(best.point):
                best = Mount(point, right[0], options)
    return best


def _mount(fs: Fs, directory: str) -> Mount | None:
    """The mount of an existing folder; None where the system does not say."""
    try:
        table = fs.read("/proc/self/mountinfo").decode("utf-8", "replace")
    except OSError:
        return None
    return mount_of(table, os.path.realpath(directory))


def _file_system(fs: Fs, directory: str) -> Check:
    mount = _mount(fs, directory)
    if mount is None:
        return Check("file system", "warning", "unknown on this system", "Linux is what is tested.")
    unsafe = mount.options & _UNSAFE_OPTIONS
    found = f"{mount.kind} at {mount.point}" + (f" ({', '.join(sorted(unsafe))})" if unsafe else "")
    if mount.kind in _VOLATILE:
        return Check("file system", "wrong", found, "It lives in memory and is gone after a power cut; use a disk.")
    if unsafe:
        return Check("file system", "wrong", found, "With this option a sync may not reach the disk.")
    if mount.kind == "overlay":
        return Check("file system", "warning", found, "It goes when the container goes; use a volume.")
    if mount.kind in _NETWORK or mount.kind.startswith("fuse"):
        return Check("file system", "warning", found, "Its locks and syncs differ; use a local disk.")
    if mount.kind in _FOREIGN:
        return Check("file system", "warning", found, "Its names and renames differ; ext4, xfs, btrfs fit.")
    return Check("file system", "good", found)


def _space(fs: Fs, directory: str) -> Check:
    free_bytes = fs.free_bytes(directory)
    values = {"free_bytes": float(free_bytes)}
    found = f"{free_bytes / (1 << 30):.1f} GiB free"
    if free_bytes < FREE_BYTES_MIN:
        return Check("space", "wrong", found, "The log takes 16 MiB at once and up to 1 GiB later; make room.", values)
    return Check("space", "good", found, "", values)


def _lock(fs: Fs, directory: str) -> Check:
    for path in (directory, os.path.join(directory, ".tellback"), os.path.join(directory, ".tellback", "log")):
        if fs.stat(path) is None:
            continue
        try:
            fs.lock_directory(path).release()
        except DirectoryLocked:
            advice = "Another server would end with exit code 73; the numbers below are taken beside it."
            return Check("lock", "good", "held: a server is running on this folder", advice)
        except OSError as error:
            return Check("lock", "wrong", f"cannot be taken: {error}", "This file system may have no locks (flock).")
    return Check("lock", "good", "free: no server is running on this folder")


def _log(fs: Fs, directory: str) -> Iterator[Check]:
    path = os.path.join(directory, ".tellback", "log")
    if fs.stat(path) is None:
        return
    report = verify(fs, path)
    found = f"{report.segments} segments, {report.records} records of {report.owners} chats"
    if not report.is_whole:
        reason = next(finding.reason for finding in report.findings if finding.what == "corrupt")
        advice = "The server will not start (78). See `tellback log verify`; restore from a backup."
        yield Check("log", "wrong", f"damaged: {reason}", advice)
    elif report.findings:
        yield Check("log", "good", f"{found}; the next start cleans up after a crash")
    else:
        yield Check("log", "good", found)


def _store(fs: Fs, directory: str, url: str) -> Iterator[Check]:
    """The store of the folder. It is asked only when the folder belongs to it: a new one would be made by asking."""
    try:
        binding = read_binding(fs, directory)
    except ConfigurationError as error:
        yield Check("store", "wrong", str(error))
        return
    if url == "files":
        if binding is not None:
            advice = f"Give --store: the server needs {flag_of('store')} {binding.store}."
            yield Check("store", "warning", f"the chats are in {binding.store}, which was not looked at", advice)
        return
    try:
        with contextlib.closing(open_store(url)) as store:
            if binding is None:
                yield Check("store", "good", "the folder belongs to none yet; the first start makes it this one's")
                return
            health = store.check()
            store.claim(binding.data_id)
            users = len(store.users())
    except StoreUnavailable as error:
        advice = "The server starts without it, and serves what is live; start the database."
        yield Check("store", "warning", f"cannot be reached: {error}", advice)
    except StoreError as error:
        yield Check("store", "wrong", str(error), "The server will not start (78).")
    else:
        found = f"{health.backend}, owners of {users} users, durable by the {health.durability}"
        yield Check("store", "good", found)


def _sync(fs: Fs, clock: Clock, directory: str) -> Check:
    path = os.path.join(directory, f".doctor.{fs.token()}{TEMPORARY_SUFFIX}")
    try:
        durations_s = sorted(_sync_durations(fs, clock, path))
    except (FsError, OSError) as error:
        return Check("sync", "wrong", f"the test failed: {error}", "The disk has to work before anything else does.")
    median_s, slow_s = quantile_of(durations_s, 0.5), quantile_of(durations_s, 0.99)
    values = {"p50_s": median_s, "p99_s": slow_s, "samples": float(len(durations_s))}
    found = f"p50 {median_s * 1000:.3f} ms, p99 {slow_s * 1000:.3f} ms ({len(durations_s)} writes of 4 KiB)"
    if median_s < SYNC_SUSPICIOUS_S:
        return Check("sync", "warning", found, "Faster than any disk: this system may not sync at all.", values)
    if median_s > SYNC_SLOW_S:
        return Check("sync", "warning", found, "Every acknowledgement waits this long; an SSD answers in 1 ms.", values)
    return Check("sync", "good", found, "", values)


def _sync_durations(fs: Fs, clock: Clock, path: str) -> list[float]:
    """Seconds of single syncs, as the log does them: into a file that was filled before."""
    durations_s: list[float] = []
    data = b"\x5a" * SYNC_WRITE_BYTES
    try:
        with fs.create(path) as file:
            file.preallocate(SYNC_SAMPLES * SYNC_WRITE_BYTES)
            begun_s = clock.monotonic_s()
            for number in range(SYNC_SAMPLES):
                before_s = clock.monotonic_s()
                file.pwrite(data, number * SYNC_WRITE_BYTES)
                file.fdatasync()
                after_s = clock.monotonic_s()
                durations_s.append(after_s - before_s)
                if after_s - begun_s > SYNC_TIME_S_MAX:
                    break
    finally:
        if fs.stat(path) is not None:
            fs.unlink(path)
    return durations_s


def _address(host: str, has_users: bool) -> Check:
    if has_users:
        return Check("address", "good", f"{host}, and clients need a token")
    if is_loopback_name(host):
        return Check("address", "good", f"{host}: only this machine, no token needed")
    advice = "Make tokens (`tellback token new`) and give --auth-file; without users the server refuses this address."
    return Check("address", "wrong", f"{host} without users", advice)


def _descriptors() -> Check:
    # The server raises its soft limit to what it needs, so the hard one is what counts.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    values = {"hard": float(hard)}
    if hard == resource.RLIM_INFINITY or hard >= DESCRIPTORS_WANTED:
        return Check("open files", "good", f"limit {'none' if hard == resource.RLIM_INFINITY else hard}", "", values)
    found = f"limit {hard}: about {max(1, hard - FILES_RESERVED)} connections"
    return Check("open files", "warning", found, f"ulimit -Hn {DESCRIPTORS_WANTED}, or LimitNOFILE=.", values)
