"""SimFs: a file system in memory with the interface of `Fs`. What is read is what was written; nothing here forgets.

Rules this module keeps:

- It holds what a running process sees. What a crash leaves is computed by `crash_states` from a recorded trace.
- Errors are the typed ones of `fs`, so that code under test cannot tell the difference.
- `fail` plans an errno for the nth call of a method; the call then does nothing (or half of it, for a write).
"""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Mapping

from tellback_server.fs import (
    DirectoryLock,
    DirectoryLocked,
    File,
    FileMark,
    FileMissing,
    FileStat,
    FileTaken,
    FileUnsafe,
    Fs,
)


class SimNode:
    """A file (data) or a directory (data is None)."""

    __slots__ = ("data", "inode", "links")

    def __init__(self, inode: int, data: bytearray | None) -> None:
        self.inode = inode
        self.data = data
        self.links = 1


class SimFile(File):
    """An open file of a SimFs."""

    __slots__ = ("_at", "_fs", "is_open", "node")

    def __init__(self, fs: SimFs, path: str, node: SimNode, at: int) -> None:
        super().__init__(path, -1)
        self._fs = fs
        self.node = node
        self._at = at
        self.is_open = True

    def _bytes(self) -> bytearray:
        assert self.is_open, f"{self.path} is closed"
        assert self.node.data is not None
        return self.node.data

    def pwrite(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        content = self._bytes()
        failing = self._fs.planned("pwrite")
        piece = bytes(data)
        if failing:
            # A write that fails has put down a part: that is how a full disk begins.
            piece = piece[: len(piece) // 2]
        if len(content) < offset:
            content.extend(bytes(offset - len(content)))
        content[offset : offset + len(piece)] = piece
        if failing:
            raise OSError(failing, os.strerror(failing), self.path)

    def append(self, data: bytes | bytearray | memoryview) -> None:
        self.pwrite(data, self._at)
        self._at += len(data)

    def pread(self, size_bytes: int, offset: int) -> bytes:
        return bytes(self._bytes()[offset : offset + size_bytes])

    def fdatasync(self) -> None:
        self._bytes()
        self._fs.strike("fdatasync", self.path)

    def fsync(self) -> None:
        self._bytes()
        self._fs.strike("fsync", self.path)

    def truncate(self, size_bytes: int) -> None:
        content = self._bytes()
        del content[size_bytes:]
        content.extend(bytes(size_bytes - len(content)))

    def preallocate(self, size_bytes: int) -> None:
        self.pwrite(bytes(size_bytes), 0)
        self.fsync()

    def stat(self) -> FileStat:
        return self._fs.stat_of(self.node)

    def set_owner_and_mode(self, mode: int, uid: int, gid: int) -> None:
        self._bytes()

    def close(self) -> None:
        if self.is_open:
            self.is_open = False
            self._fs.strike("close", self.path)

    def __del__(self) -> None:
        self.is_open = False


class SimLock(DirectoryLock):
    """A held lock of a SimFs."""

    def __init__(self, fs: SimFs, path: str) -> None:
        super().__init__(path, -1)
        self._fs = fs

    def release(self) -> None:
        self._fs.locks.discard(self.path)


class SimFs(Fs):
    """The file system. `disk` is what it holds to begin with: path -> content, None for a directory.

    With `inodes` files keep these numbers, and two names with one number are one file.
    """

    def __init__(
        self, disk: Mapping[str, bytes | None] | None = None, inodes: Mapping[str, int] | None = None
    ) -> None:
        super().__init__()
        self._nodes: dict[str, SimNode] = {"/": SimNode(1, None)}
        known: dict[int, SimNode] = {}
        self._next_inode = max([2, *(inodes or {}).values()])
        self.locks: set[str] = set()
        self._plan: dict[str, list[int]] = {}
        self._plan_lock = threading.Lock()
        for path, data in (disk or {}).items():
            self._make_parents(path)
            if data is not None:
                number = (inodes or {}).get(path)
                if number is None:
                    self._nodes[path] = self._node(bytearray(data))
                elif number in known:
                    known[number].links += 1
                    self._nodes[path] = known[number]
                else:
                    self._nodes[path] = known[number] = SimNode(number, bytearray(data))
            else:
                node = self._nodes.setdefault(path, SimNode(0, None))
                number = (inodes or {}).get(path, 1)
                if node.inode == 0 or number > 1:
                    node.inode = number if number > 1 else self._node(None).inode

    def _node(self, data: bytearray | None) -> SimNode:
        self._next_inode += 1
        return SimNode(self._next_inode, data)

    def _make_parents(self, path: str) -> None:
        parent = os.path.dirname(path)
        if parent not in self._nodes:
            self._make_parents(parent)
            self._nodes[parent] = self._node(None)

    def files(self) -> dict[str, bytes]:
        """Every file, by path."""
        return {path: bytes(node.data) for path, node in self._nodes.items() if node.data is not None}

    def disk(self) -> dict[str, bytes | None]:
        """Everything, in the form of the constructor."""
        return {path: None if node.data is None else bytes(node.data) for path, node in self._nodes.items()}

    def content(self, path: str) -> bytearray:
        """The live bytes of a file, for a test that damages them."""
        data = self._nodes[path].data
        assert data is not None
        return data

    # Failures.

    def fail(self, method: str, number: int, *, after: int = 0) -> None:
        """Lets the call of `method` after `after` successful ones fail with errno `number`, and only that one."""
        self._plan[method] = [after, number]

    def heal(self) -> None:
        """Forgets the failures that are still to come."""
        self._plan.clear()

    def planned(self, method: str) -> int:
        """The errno for this call, or 0."""
        with self._plan_lock:
            plan = self._plan.get(method)
            if plan is None:
                return 0
            if plan[0] > 0:
                plan[0] -= 1
                return 0
            del self._plan[method]
            return plan[1]

    def strike(self, method: str, path: str) -> None:
        """Raises what is planned for this call."""
        number = self.planned(method)
        if number:
            raise OSError(number, os.strerror(number), path)

    # The interface.

    def stat_of(self, node: SimNode) -> FileStat:
        """The stat of a node."""
        size_bytes = len(node.data) if node.data is not None else 0
        return FileStat(size_bytes, 0, node.inode, 1, 0o600, 0, 0, node.links, node.data is not None, node.data is None)

    def stat(self, path: str) -> FileStat | None:
        node = self._nodes.get(path)
        return self.stat_of(node) if node is not None else None

    def listdir(self, path: str) -> list[str]:
        node = self._nodes.get(path)
        if node is None:
            raise FileMissing(path, "does not exist", errno.ENOENT)
        if node.data is not None:
            raise FileUnsafe(path, "is not a directory", errno.ENOTDIR)
        prefix = path.rstrip("/") + "/"
        names = (other[len(prefix) :] for other in list(self._nodes) if other.startswith(prefix))
        return sorted(name for name in names if name and "/" not in name)

    def scan(self, path: str, ending: str) -> tuple[dict[str, FileMark], dict[str, int]]:
        marks: dict[str, FileMark] = {}
        inodes: dict[str, int] = {}
        for name in self.listdir(path):
            node = self._nodes[f"{path.rstrip('/')}/{name}"]
            if not name.endswith(ending):
                inodes[name] = node.inode
            elif node.data is not None:
                marks[name] = FileMark(len(node.data), 0, node.inode)
        return marks, inodes

    def free_bytes(self, path: str) -> int:
        return 1 << 40

    def bind_private(self, listener: socket.socket, directory: str, name: str) -> None:
        raise OSError(errno.EOPNOTSUPP, "no sockets here", directory)

    def _existing(self, path: str) -> SimNode:
        node = self._nodes.get(path)
        if node is None:
            raise FileMissing(path, "does not exist", errno.ENOENT)
        if node.data is None:
            raise FileUnsafe(path, "is not a regular file", errno.EISDIR)
        return node

    def open_read(self, path: str) -> File:
        return SimFile(self, path, self._existing(path), 0)

    def open_write(self, path: str) -> File:
        return SimFile(self, path, self._existing(path), 0)

    def open_append(self, path: str) -> File:
        node = self._existing(path)
        assert node.data is not None
        return SimFile(self, path, node, len(node.data))

    def create(self, path: str) -> File:
        self.strike("create", path)
        if path in self._nodes:
            raise FileTaken(path, "exists already", errno.EEXIST)
        self._directory(os.path.dirname(path))
        node = self._nodes[path] = self._node(bytearray())
        return SimFile(self, path, node, 0)

    def _directory(self, path: str) -> None:
        node = self._nodes.get(path)
        if node is None:
            raise FileMissing(path, "does not exist", errno.ENOENT)
        if node.data is not None:
            raise FileUnsafe(path, "is not a directory", errno.ENOTDIR)

    def _leads_to_directory(self, path: str) -> bool:
        return False

    def _mkdir(self, path: str) -> None:
        self._directory(os.path.dirname(path))
        self._nodes[path] = self._node(None)

    def rename(self, source: str, target: str) -> None:
        self.strike("rename", source)
        node = self._nodes.get(source)
        if node is None or node.data is not None:
            self._existing(source)
        elif target in self._nodes:
            # A folder takes the place of an empty one only.
            self.remove_directory(target)
        for path in [path for path in self._nodes if path == source or path.startswith(source + "/")]:
            self._nodes[target + path[len(source):]] = self._nodes.pop(path)

    def exchange(self, first: str, second: str) -> bool:
        one, two = self._existing(first), self._existing(second)
        self._nodes[first], self._nodes[second] = two, one
        return True

    def link(self, source: str, target: str) -> None:
        node = self._existing(source)
        if target in self._nodes:
            raise FileTaken(target, "exists already", errno.EEXIST)
        node.links += 1
        self._nodes[target] = node

    def unlink(self, path: str) -> None:
        self.strike("unlink", path)
        self._existing(path).links -= 1
        del self._nodes[path]

    def remove_directory(self, path: str) -> None:
        self._directory(path)
        if self.listdir(path):
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), path)
        del self._nodes[path]

    def fsync_directory(self, path: str) -> None:
        self._directory(path)
        self.strike("fsync_directory", path)

    def lock_directory(self, path: str) -> DirectoryLock:
        self._directory(path)
        if path in self.locks:
            raise DirectoryLocked(path, "is in use by another process", errno.EAGAIN)
        self.locks.add(path)
        return SimLock(self, path)
