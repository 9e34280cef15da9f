"""Fs on a real disk, and the law that nobody else touches files."""

from __future__ import annotations

import ast
import errno
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tellback_server.failpoint import Failpoints
from tellback_server.fs import (
    DirectoryLocked,
    File,
    FileMissing,
    FileNotVerified,
    FileTaken,
    FileUnreadable,
    FileUnsafe,
    Fs,
)
from tests.support.recording_fs import RecordingFs
from tests.support.sim_fs import SimFs

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = [
    ROOT / "server" / "tellback_server",
    ROOT / "client_py" / "tellback_client",
    ROOT / "protocol" / "tellback_protocol",
]
EXEMPT = {
    "tellback_server/fs/file.py",
    "tellback_server/fs/fs.py",
    "tellback_client/outbox.py",
    # What tests use to run a server; none of it touches a chat.
    "tellback_client/pytest_plugin.py",
    "tellback_client/server_process.py",
}
FORBIDDEN_OS = frozenset(
    [
        "open",
        "fdopen",
        "write",
        "writev",
        "pwrite",
        "pwritev",
        "sendfile",
        "rename",
        "renames",
        "replace",
        "unlink",
        "remove",
        "removedirs",
        "rmdir",
        "mkdir",
        "makedirs",
        "mkfifo",
        "mknod",
        "link",
        "symlink",
        "fsync",
        "fdatasync",
        "sync",
        "truncate",
        "ftruncate",
        "posix_fallocate",
        "chmod",
        "fchmod",
        "lchmod",
        "chown",
        "fchown",
        "lchown",
        "utime",
        "setxattr",
        "removexattr",
    ]
)
FORBIDDEN_PATHLIB = frozenset(
    [
        "open",
        "write_text",
        "write_bytes",
        "unlink",
        "rename",
        "replace",
        "touch",
        "rmdir",
        "mkdir",
        "symlink_to",
        "hardlink_to",
        "chmod",
        "lchmod",
    ]
)
FORBIDDEN_MODULES = {"shutil", "tempfile", "mmap", "fcntl", "io", "fileinput"}
HARMLESS = {"io": {"BytesIO", "StringIO"}, "shutil": {"get_terminal_size", "which"}, "tempfile": {"gettempdir"}}


def file_calls(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, what) for everything in a module that opens for writing or changes a file."""
    uses_pathlib = any(
        (isinstance(node, ast.ImportFrom) and node.module == "pathlib")
        or (isinstance(node, ast.Import) and any(name.name == "pathlib" for name in node.names))
        for node in ast.walk(tree)
    )
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "os":
            yield from ((node.lineno, f"from os import {n.name}") for n in node.names if n.name in FORBIDDEN_OS)
        if isinstance(node, ast.ImportFrom) and node.module in FORBIDDEN_MODULES:
            fine = HARMLESS.get(node.module, set())
            yield from ((node.lineno, f"from {node.module} import {n.name}") for n in node.names if n.name not in fine)
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        if isinstance(function, ast.Name) and function.id == "open":
            yield node.lineno, "open()"
        if not isinstance(function, ast.Attribute):
            continue
        owner = function.value
        if isinstance(owner, ast.Name) and owner.id == "os":
            if function.attr in FORBIDDEN_OS:
                yield node.lineno, f"os.{function.attr}()"
        elif isinstance(owner, ast.Name) and owner.id in FORBIDDEN_MODULES:
            if function.attr not in HARMLESS.get(owner.id, set()):
                yield node.lineno, f"{owner.id}.{function.attr}()"
        elif uses_pathlib and function.attr in FORBIDDEN_PATHLIB and not ast.unparse(owner).endswith(("fs", "_fs")):
            yield node.lineno, f"Path.{function.attr}()"


def test_no_other_module_opens_writes_or_renames_files() -> None:
    found = []
    for package in PACKAGES:
        for path in sorted(package.rglob("*.py")):
            name = f"{package.name}/{path.relative_to(package)}"
            if name not in EXEMPT:
                found += [f"{name}:{line}: {what}" for line, what in file_calls(ast.parse(path.read_text()))]
    assert not found, "go through tellback_server.fs instead:\n" + "\n".join(found)


@pytest.mark.parametrize(
    "source",
    [
        "open('x')",
        "import os\nos.open('x', 0)",
        "import os\nos.replace('x', 'y')",
        "from os import fsync",
        "from pathlib import Path\nPath('x').write_text('y')",
        "import pathlib\npathlib.Path('x').unlink()",
        "import shutil\nshutil.move('x', 'y')",
        "from tempfile import NamedTemporaryFile",
    ],
)
def test_the_law_against_file_calls_sees_them(source: str) -> None:
    assert list(file_calls(ast.parse(source)))


def test_the_law_against_file_calls_leaves_the_rest_alone() -> None:
    assert not list(file_calls(ast.parse("import os\nfs.unlink('x')\n'a'.replace('b', 'c')\nos.path.join('a')\n")))


@pytest.fixture
def fs() -> Fs:
    return Fs()


def test_what_is_not_a_regular_file_is_never_opened(fs: Fs, tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"secret")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "directory").mkdir()
    for name in ("link", "fifo", "directory"):
        for opening in (fs.read, fs.open_read, fs.open_write, fs.open_append):
            with pytest.raises(FileUnsafe):
                opening(str(tmp_path / name))
        with pytest.raises(FileTaken):
            fs.create(str(tmp_path / name))
        with pytest.raises(FileUnsafe):
            fs.write_atomically(str(tmp_path / name), b"new")
    with pytest.raises(FileUnsafe):
        fs.read("/dev/null")
    assert (tmp_path / "target").read_bytes() == b"secret"


def test_missing_unreadable_and_unsafe_are_three_answers(fs: Fs, tmp_path: Path) -> None:
    with pytest.raises(FileMissing):
        fs.read(str(tmp_path / "nothing"))
    with pytest.raises(FileMissing):
        fs.listdir(str(tmp_path / "nothing"))
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(FileUnsafe):
        fs.listdir(str(tmp_path / "file"))
    with pytest.raises(FileMissing):
        fs.read(str(tmp_path / "file" / "below"))
    # Root may read everything, so a descriptor limit stands in for a permission.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(FileUnreadable) as caught:
            fs.read(str(tmp_path / "file"))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert caught.value.errno == errno.EMFILE


def test_stat_does_not_follow_and_says_what_is_there(fs: Fs, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    file = fs.stat(str(tmp_path / "file"))
    link = fs.stat(str(tmp_path / "link"))
    directory = fs.stat(str(tmp_path))
    assert file is not None
    assert link is not None
    assert directory is not None
    assert (file.size_bytes, file.is_regular, file.is_directory, file.links) == (5, True, False, 1)
    assert (link.is_regular, link.is_directory) == (False, False)
    assert (directory.is_regular, directory.is_directory) == (False, True)
    assert fs.stat(str(tmp_path / "nothing")) is None
    assert fs.stat(str(tmp_path / "file" / "below")) is None


@pytest.mark.parametrize("name", ["chat.jsonl", "é" * 127, "x" * 255, "雪" * 85, "a"])
def test_write_atomically_replaces_whole_and_leaves_no_temporary_file(fs: Fs, tmp_path: Path, name: str) -> None:
    path = str(tmp_path / name)
    for data in (b"one", b"", bytes(range(256)) * 9000):
        stat = fs.write_atomically(path, data)
        assert fs.read(path) == data
        assert stat == fs.stat(path)
        assert stat.mode == 0o600
        assert fs.listdir(str(tmp_path)) == [name]


def test_write_atomically_keeps_mode_and_owner(fs: Fs, tmp_path: Path) -> None:
    path = str(tmp_path / "file")
    Path(path).write_bytes(b"old")
    os.chmod(path, 0o640)
    os.chown(path, 12345, 23456)
    before = fs.stat(path)
    stat = fs.write_atomically(path, b"new", keep_mode_of=before)
    assert (stat.mode, stat.uid, stat.gid) == (0o640, 12345, 23456)


@pytest.mark.parametrize("method", ["create", "pwrite", "fsync", "close", "rename"])
def test_a_failed_atomic_write_leaves_the_old_file_and_nothing_else(method: str) -> None:
    fs = SimFs({"/folder/file": b"old"})
    fs.fail(method, errno.ENOSPC)
    with pytest.raises(OSError, match="No space"):
        fs.write_atomically("/folder/file", b"new")
    assert fs.files() == {"/folder/file": b"old"}


def test_an_atomic_write_is_read_back() -> None:
    class Rotten(SimFs):
        def read(self, path: str) -> bytes:
            return super().read(path)[:-1] + b"?"

    fs = Rotten({"/folder/file": b"old"})
    with pytest.raises(FileNotVerified):
        fs.write_atomically("/folder/file", b"new")
    assert fs.files() == {"/folder/file": b"old"}
    fs.write_atomically("/folder/file", b"new", verify=False)
    assert fs.files() == {"/folder/file": b"new"}


def test_the_steps_of_an_atomic_write_come_in_order() -> None:
    recording = RecordingFs(SimFs({"/folder": None}))
    recording.write_atomically("/folder/file", b"data")
    names = [type(call).__name__ for call in recording.trace]
    assert names == ["Created", "Wrote", "Synced", "Renamed", "SyncedDirectory"]


def test_each_made_directory_is_made_durable_in_its_parent() -> None:
    recording = RecordingFs(SimFs({"/data": None}))
    recording.make_directories("/data/a/b")
    assert [call[0] for call in recording.trace] == ["/data/a", "/data", "/data/a/b", "/data/a"]
    recording.make_directories("/data/a/b")
    assert len(recording.trace) == 4


def test_make_directories_refuses_what_is_in_the_way(fs: Fs, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "link").symlink_to(tmp_path)
    for name in ("file", "file/below", "link"):
        with pytest.raises(FileUnsafe):
            fs.make_directories(str(tmp_path / name))
    fs.make_directories(str(tmp_path / "link" / "new"))
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700


def test_names_can_be_swapped_linked_and_removed(fs: Fs, tmp_path: Path) -> None:
    one, two, three = (str(tmp_path / name) for name in ("one", "two", "three"))
    fs.write_atomically(one, b"1")
    fs.write_atomically(two, b"2")
    assert fs.exchange(one, two)
    assert (fs.read(one), fs.read(two)) == (b"2", b"1")
    with pytest.raises(FileMissing):
        fs.exchange(one, three)
    with pytest.raises(FileTaken):
        fs.link(one, two)
    fs.link(one, three)
    fs.unlink(one)
    assert fs.read(three) == b"2"
    for call in (fs.unlink, fs.remove_directory, fs.fsync_directory):
        with pytest.raises(FileMissing):
            call(one)
    with pytest.raises(FileMissing):
        fs.rename(one, two)
    fs.make_directories(str(tmp_path / "folder"))
    fs.remove_directory(str(tmp_path / "folder"))
    assert fs.listdir(str(tmp_path)) == ["three", "two"]
    assert fs.free_bytes(str(tmp_path)) > 0


def test_every_change_of_a_name_is_told(tmp_path: Path) -> None:
    told: list[str] = []
    fs = Fs(lambda verb, path, detail: told.append(verb))
    fs.make_directories(str(tmp_path / "folder"))
    fs.write_atomically(str(tmp_path / "folder" / "file"), b"x")
    fs.unlink(str(tmp_path / "folder" / "file"))
    fs.remove_directory(str(tmp_path / "folder"))
    assert told == ["make-directory", "create", "rename", "write-atomically", "unlink", "remove-directory"]


def test_preallocated_bytes_are_really_zeros(fs: Fs, tmp_path: Path) -> None:
    path = str(tmp_path / "file")
    with fs.create(path) as file:
        file.preallocate(3_000_001)
        assert file.stat().size_bytes == 3_000_001
        file.pwrite(b"end", 2_999_998)
    assert os.stat(path).st_blocks * 512 >= 3_000_001
    data = fs.read(path)
    assert data[:-3].count(0) == 2_999_998
    assert data[-3:] == b"end"


def test_a_short_write_is_continued_and_then_the_error_comes(fs: Fs, tmp_path: Path) -> None:
    """RELIABILITY F8: a file-size limit makes the first write short and the second one fail."""
    script = (
        "import resource, signal, sys\n"
        "from tellback_server.fs import Fs\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "file = Fs().create(sys.argv[1])\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n"
        "    file.pwrite(bytes(600), 500)\n"
        "except OSError as error:\n"
        "    print(error.errno, file.stat().size_bytes)\n"
    )
    path = str(tmp_path / "file")
    result = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=True)
    assert result.stdout.split() == [str(errno.EFBIG), "1000"]


def test_append_and_open_append_write_at_the_end(fs: Fs, tmp_path: Path) -> None:
    path = str(tmp_path / "file")
    with fs.create(path) as file:
        file.append(b"one,")
        file.append(b"two,")
        file.fdatasync()
    with fs.open_append(path) as file:
        file.append(b"three")
    with fs.open_write(path) as file:
        file.pwrite(b"ONE", 0)
        file.truncate(7)
        assert file.pread(100, 0) == b"ONE,two"
        assert file.pread(3, 5) == b"wo"
    assert fs.read(path) == b"ONE,two"


def test_closing_twice_is_harmless_and_a_dropped_file_is_closed(fs: Fs, tmp_path: Path) -> None:
    path = str(tmp_path / "file")
    file = fs.create(path)
    file.close()
    file.close()
    before = len(os.listdir("/proc/self/fd"))
    fs.open_read(path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_directory_lock_survives_what_a_lock_file_does_not(fs: Fs, tmp_path: Path) -> None:
    """RELIABILITY fact 9."""
    directory = tmp_path / "data"
    directory.mkdir()
    lock = fs.lock_directory(str(directory))
    (tmp_path / "alias").symlink_to(directory)
    moved = tmp_path / "moved"
    directory.rename(moved)
    for path in (moved, tmp_path / "moved"):
        with pytest.raises(DirectoryLocked):
            fs.lock_directory(str(path))
    lock.release()
    lock.release()
    fs.lock_directory(str(moved)).release()


def test_failpoints_count_hits_and_do_what_they_are_told() -> None:
    points = Failpoints("a=error:ENOSPC@2, b=torn:17,c=delay:1")
    assert points.hit("a") is None
    with pytest.raises(OSError, match="failpoint a") as caught:
        points.hit("a")
    assert caught.value.errno == errno.ENOSPC
    assert points.hit("a") is None
    assert points.hit("b") == 17
    assert points.hit("c") is None
    assert points.hit("unknown") is None


@pytest.mark.parametrize("setting", ["a", "a=", "=kill", "a=explode", "a=error:ENOTHING", "a=torn:x", "a=kill@x"])
def test_a_failpoint_setting_that_cannot_be_read_is_refused(setting: str) -> None:
    with pytest.raises(ValueError, match="cannot read"):
        Failpoints(setting)


def test_a_torn_write_puts_down_its_first_bytes_and_dies(tmp_path: Path) -> None:
    script = "import sys\nfrom tellback_server.fs import Fs\nFs().create(sys.argv[1]).pwrite(b'0123456789', 0)\n"
    path = tmp_path / "file"
    environment = {**os.environ, "TELLBACK_FAILPOINTS": "fs.pwrite=torn:4"}
    result = subprocess.run([sys.executable, "-c", script, str(path)], env=environment, check=False)
    assert result.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"0123"


def test_sim_files_behave_like_real_ones(fs: Fs, tmp_path: Path) -> None:
    """The simulated file system answers as the real one does (STYLE 57)."""

    def story(some: Fs, base: str) -> list[object]:
        seen: list[object] = []

        def note(call: object, *arguments: object) -> None:
            try:
                seen.append(call(*arguments))  # type: ignore[operator]
            except OSError as error:
                seen.append(type(error).__name__)

        some.make_directories(f"{base}/a/b")
        file: File = some.create(f"{base}/a/b/file")
        file.preallocate(10)
        file.pwrite(b"xyz", 8)
        note(file.pread, 100, 5)
        file.truncate(4)
        file.close()
        note(some.read, f"{base}/a/b/file")
        note(some.read, f"{base}/a/b")
        note(some.read, f"{base}/a/b/missing")
        note(some.listdir, f"{base}/a/b")
        note(some.listdir, f"{base}/a/b/file")
        note(some.create, f"{base}/a/b/file")
        note(some.create, f"{base}/missing/file")
        note(some.rename, f"{base}/a/b/missing", f"{base}/x")
        note(some.unlink, f"{base}/a/b/missing")
        note(some.fsync_directory, f"{base}/missing")
        note(some.remove_directory, f"{base}/a/b")
        note(some.stat, f"{base}/missing")
        some.link(f"{base}/a/b/file", f"{base}/second")
        note(some.link, f"{base}/a/b/file", f"{base}/second")
        some.rename(f"{base}/second", f"{base}/third")
        note(some.read, f"{base}/third")
        lock = some.lock_directory(base)
        note(some.lock_directory, base)
        lock.release()
        note(some.make_directories, f"{base}/third")
        return seen

    assert story(fs, str(tmp_path)) == story(SimFs({"/base": None}), "/base")
