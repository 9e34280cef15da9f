"""An Fs that does something before its Nth call: another program's save, a crash, an error. Syncs are only counted."""

from __future__ import annotations

import errno
from collections.abc import Callable

from tellback_server.fs import File, FileStat, Fs


class SimulatedCrash(BaseException):
    """The process died: after it, no call of this Fs does anything."""


class InjectedFile(File):
    """A File that counts its writes and syncs."""

    __slots__ = ("_injected",)

    def __init__(self, path: str, descriptor: int, injected: InjectedFs) -> None:
        super().__init__(path, descriptor)
        self._injected = injected

    def append(self, data: bytes | bytearray | memoryview) -> None:
        torn = self._injected.step("append", self.path, len(data))
        if torn is not None:
            super().append(memoryview(data)[:torn])
            self._injected.die()
        if self._injected.short_writes:
            super().append(memoryview(data)[: len(data) // 2])
            raise OSError(errno.ENOSPC, "injected", self.path)
        super().append(data)

    def fdatasync(self) -> None:
        self._injected.step("fdatasync", self.path)
        if self._injected.fail_syncs:
            raise OSError(errno.EIO, "injected", self.path)

    def fsync(self) -> None:
        self._injected.step("fsync", self.path)

    def truncate(self, size_bytes: int) -> None:
        self._injected.step("truncate", self.path)
        super().truncate(size_bytes)


class InjectedFs(Fs):
    """`arm(n, action)`: `action` runs before call n (from 1). `calls` tells what was called."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.is_dead = False
        self.fail_syncs = False
        self.short_writes = False
        self._at = 0
        self._action: Callable[[], None] | None = None
        self._torn: Callable[[int], int] | None = None

    def arm(self, at: int, action: Callable[[], None] | None = None, torn: Callable[[int], int] | None = None) -> None:
        """From now on, count again. `torn` makes an append at call `at` write that many of its bytes and die."""
        self.calls = []
        self._at = at
        self._action = action
        self._torn = torn

    @property
    def reached(self) -> bool:
        return len(self.calls) >= self._at

    def die(self) -> None:
        self.is_dead = True
        raise SimulatedCrash

    def step(self, verb: str, path: str, size_bytes: int = 0) -> int | None:
        if self.is_dead:
            raise SimulatedCrash
        self.calls.append(f"{verb} {path.rsplit('/', 1)[-1]}")
        if len(self.calls) == self._at:
            if self._torn is not None:
                return self._torn(size_bytes) if verb == "append" else None
            if self._action is not None:
                self._action()
        return None

    def _file(self, path: str, descriptor: int) -> File:
        return InjectedFile(path, descriptor, self)

    def _open(self, path: str, flags: int) -> int:
        self.step("open", path)
        return super()._open(path, flags)

    def stat(self, path: str) -> FileStat | None:
        self.step("stat", path)
        return super().stat(path)

    def listdir(self, path: str) -> list[str]:
        self.step("listdir", path)
        return super().listdir(path)

    def rename(self, source: str, target: str) -> None:
        self.step("rename", target)
        super().rename(source, target)

    def exchange(self, first: str, second: str) -> bool:
        self.step("exchange", second)
        return super().exchange(first, second)

    def link(self, source: str, target: str) -> None:
        self.step("link", target)
        super().link(source, target)

    def unlink(self, path: str) -> None:
        self.step("unlink", path)
        super().unlink(path)

    def fsync_directory(self, path: str) -> None:
        self.step("fsync_directory", path)

    def _mkdir(self, path: str) -> None:
        self.step("mkdir", path)
        super()._mkdir(path)


class UnsyncedFs(InjectedFs):
    """Nothing is injected and nothing synced: for what a kill may end, and no power cut."""

    def step(self, verb: str, path: str, size_bytes: int = 0) -> int | None:
        return None
