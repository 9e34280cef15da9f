"""The store of plain files keeps the contract; SillyTavern's layout, full disks, and edits of others."""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from msgspec import Raw

from tellback_protocol.effects import StateEffect
from tellback_protocol.ids import existing_name_problem
from tellback_server.contract import Saved, StoreContract, same
from tellback_server.contract.saved import ODD_TEXTS
from tellback_server.fs import Fs
from tellback_server.store.base import Store, StoreDamaged, StoredChat, StoreError, StoreUnavailable, StoreUnsafe
from tellback_server.store.folder import FolderStore
from tellback_server.store.schemes import open_store
from tests.support.sim_fs import SimFs


class TestFolderStore(StoreContract):
    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return f"files://{tmp_path}/mirror"

    def odd_texts(self) -> Sequence[str]:
        return [text for text in ODD_TEXTS if existing_name_problem(text) is None]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "mirror"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with contextlib.closing(open_store(f"files://{path}")) as store:
        store.check()
        yield store


def test_st6_the_files_are_where_sillytavern_looks(store: Store, path: Path) -> None:
    saved = Saved("character:Alice/One")
    saved.append(2)
    saved.save(store)
    file = path / "default-user" / "chats" / "Alice" / "One.jsonl"
    assert file.read_text().splitlines() == [
        '{"chat_metadata":{},"user_name":"unused","character_name":"unused"}', '{"id":"m1","mes":"text"}',
        '{"id":"m2","mes":"text"}',
    ]
    store.rename("default-user", saved.chat_id, "group:Two")
    assert not file.exists()
    names = sorted(one.name for one in (path / "default-user" / "group chats").iterdir())
    assert names == ["Two.jsonl", "Two.luker-state.chat_sync.json"]
    store.delete("default-user", saved.chat_id, saved.head)
    assert list((path / "default-user" / "group chats").iterdir()) == []


def test_st6_two_chats_of_one_name_have_files_of_their_own(store: Store, path: Path) -> None:
    chats = [Saved("character:Alice/One") for _ in range(3)]
    for number, saved in enumerate(chats):
        saved.append(number + 1)
        saved.save(store)
    for saved in chats:
        same(store.load("default-user", saved.chat_id), saved.value())
    assert len(list((path / "default-user" / "chats" / "Alice").glob("*.jsonl"))) == 3


def test_st3_who_reads_while_another_thread_saves_gets_the_one_or_the_other(path: Path) -> None:
    """What a record says is carried out by whoever reads it first, and by nobody who read an older one."""
    fs = HaltingFs()
    with contextlib.closing(FolderStore(str(path), fs)) as store, ThreadPoolExecutor(1) as other:
        store.check()
        saved = Saved("character:Alice/One")
        saved.append(2)
        saved.save(store)
        saved.append()
        saved.commit(StateEffect("mood", saved.head, None, data=Raw(b'"good"')))
        reading: list[Future[StoredChat | None]] = []
        fs.halted = lambda: reading.append(other.submit(store.load, "default-user", saved.chat_id))
        saved.save(store)
        assert reading
        same(reading[0].result(30), saved.value())
        assert sorted(one.name for one in (path / "default-user/chats/Alice").iterdir()) == [
            "One.jsonl", "One.luker-state.chat_sync.json", "One.luker-state.mood.json",
        ]


class HaltingFs(Fs):
    """Lets another thread come between a look at a file and what follows from it."""

    halted: Callable[[], None] | None = None

    def rename(self, source: str, target: str) -> None:
        if self.halted is not None and target.endswith("mood.json"):
            halted, self.halted = self.halted, None
            halted()
            time.sleep(0.1)
        super().rename(source, target)


def test_st7_an_append_writes_its_own_lines_and_the_record(store: Store, path: Path) -> None:
    saved = Saved()
    saved.append(5000)
    saved.save(store)
    file = path / "default-user" / "chats" / "Alice" / "One.jsonl"
    before, whole = file.stat(), file.read_bytes()
    saved.append()
    saved.save(store)
    after = file.stat()
    assert (after.st_ino, after.st_size) == (before.st_ino, before.st_size + len('{"id":"m5001","mes":"text"}\n'))
    assert file.read_bytes().startswith(whole)


@pytest.mark.parametrize("damage", ["changed", "shorter", "gone", "record changed", "record gone"])
def test_st9_what_others_did_to_the_files_is_told(store: Store, path: Path, damage: str) -> None:
    saved = Saved()
    saved.append(3)
    saved.save(store)
    folder = path / "default-user" / "chats" / "Alice"
    file, record = folder / "One.jsonl", folder / "One.luker-state.chat_sync.json"
    match damage:
        case "changed":
            file.write_bytes(file.read_bytes().replace(b"text", b"TEXT", 1))
        case "shorter":
            file.write_bytes(file.read_bytes()[:-5])
        case "gone":
            file.unlink()
        case "record changed":
            record.write_bytes(record.read_bytes().replace(b'"messages":3', b'"messages":2'))
        case _:
            record.unlink()
    with pytest.raises(StoreError):
        store.load("default-user", saved.chat_id)
    saved.append()
    newer = saved.save(store, whole=True)
    same(store.load("default-user", saved.chat_id), newer)


def test_st9_a_line_somebody_added_is_not_part_of_the_chat(store: Store, path: Path) -> None:
    saved = Saved()
    saved.append(2)
    value = saved.save(store)
    with (path / "default-user" / "chats" / "Alice" / "One.jsonl").open("ab") as file:
        file.write(b'{"id":"stranger"}\n')
    same(store.load("default-user", saved.chat_id), value)
    saved.append()
    newer = saved.save(store)
    same(store.load("default-user", saved.chat_id), newer)


def test_st5_a_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "chats").mkdir()
    store = FolderStore(str(tmp_path))
    with pytest.raises(StoreUnsafe, match="not empty"):
        store.check()
    assert [one.name for one in tmp_path.iterdir()] == ["chats"]


def test_st9_two_records_of_one_owner_are_told(store: Store, path: Path) -> None:
    saved = Saved()
    saved.append()
    saved.save(store)
    folder = path / "default-user" / "chats" / "Alice"
    (folder / "Copy.luker-state.chat_sync.json").write_bytes((folder / "One.luker-state.chat_sync.json").read_bytes())
    with pytest.raises(StoreDamaged, match="records of one owner"):
        FolderStore(str(path)).check()


@pytest.mark.parametrize("call", ["pwrite", "fsync", "rename", "fsync_directory", "create"])
@pytest.mark.parametrize("after", [0, 1, 2])
def test_st2_a_disk_that_refuses_leaves_the_owner_as_it_was_or_as_it_is_to_be(call: str, after: int) -> None:
    fs = SimFs({"/data": None})
    store = FolderStore("/data/store", fs)
    store.check()
    saved = Saved()
    saved.append(2)
    before = saved.save(store)
    saved.append()
    saved.chat.metadata = b'{"x":1}'
    value = saved.value()
    fs.fail(call, errno.ENOSPC, after=after)
    with contextlib.suppress(StoreUnavailable):
        store.save("default-user", before.head, None, value)
    fs.heal()
    again = FolderStore("/data/store", fs)
    again.check()
    found = again.load("default-user", saved.chat_id)
    assert found is not None
    same(found, before if found.head == before.head else value)
    again.save("default-user", None, None, value)
    same(again.load("default-user", saved.chat_id), value)
    saved.append()
    again.save("default-user", None, None, saved.value())
    assert not [path for path in fs.files() if path.endswith(".tellback-tmp")], "nobody would ever look at them"


@pytest.mark.parametrize("torn", [b"\xff\xfe", b'{"tellback":{"crc32":1,"owner":"\xe4"}}', b"[" * 5000])
def test_st9_bytes_that_are_no_text_are_damage_and_no_fault_of_ours(store: Store, path: Path, torn: bytes) -> None:
    saved = Saved("character:Alice/One")
    saved.append(2)
    saved.save(store)
    record = path / "default-user/chats/Alice/One.luker-state.chat_sync.json"
    record.write_bytes(torn)
    with pytest.raises(StoreDamaged):
        store.load("default-user", saved.chat_id)
    with pytest.raises(StoreDamaged), contextlib.closing(open_store(f"files://{path}")) as again:
        again.check()
    (path / ".tellback-store.json").write_bytes(torn)
    with pytest.raises(StoreDamaged):
        FolderStore(str(path)).check()
