"""The trash of a store: what a restore leaves of an entry, also after a kill (STORAGE F11, SV5)."""

from __future__ import annotations

from pathlib import Path

from tellback_protocol.ids import Version
from tellback_protocol.stream import StateDocument
from tellback_server.staged import Staged
from tellback_server.store.base import StoredChat
from tellback_server.store.files import DEFAULT_USER, FileStore
from tellback_server.store_trash import StoreTrash
from tellback_server.trash import Entry, Trash
from tests.support.chat_desk import SilentLogger
from tests.support.injected_fs import InjectedFs, SimulatedCrash

CHAT_ID = "0e5c0f9a-1111-4222-8333-444455556666"
HEAD = Version(1, 2, "1e5c0f9a-1111-4222-8333-444455556666")
ENTRY = Entry(
    id=CHAT_ID, name="character:Pip/talk", deleted_ms=7, reason="deleted",
    files=[
        "chats/Pip/talk.jsonl", "chats/Pip/talk.luker-state.memory.json", "chats/Pip/talk.luker-state.chat_sync.json",
    ],
)


def deleted(data: Path, fs: InjectedFs) -> tuple[FileStore, StoreTrash]:
    """A store's trash with one chat."""
    files = FileStore(fs, str(data), logger=SilentLogger())
    staged = Staged(files)
    trash = StoreTrash(files, staged)
    value = StoredChat(
        chat_id=CHAT_ID, name=ENTRY.name, head=HEAD, version=HEAD, metadata=b"{}",
        messages={"m": b'{"id":"m","mes":"one"}'},
        states={"memory": StateDocument(HEAD, b'{"a":1}')},
    )
    trash.put(DEFAULT_USER, ENTRY, [staged.put(DEFAULT_USER, HEAD.integrity, value)])
    return files, trash


def left(data: Path) -> list[str]:
    """Files and folders in the user's trash."""
    root = data / DEFAULT_USER / "trash"
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


def test_a_restore_leaves_nothing_of_an_entry_after_a_kill_at_every_step(tmp_path: Path) -> None:
    """[SV5] [F11] Neither the owner nor the folder that it was in; what somebody put there stays."""
    for at in range(1, 200):
        fs = InjectedFs()
        data = tmp_path / str(at)
        _files, trash = deleted(data, fs)
        fs.arm(at, fs.die)
        try:
            trash.remove(DEFAULT_USER, ENTRY)
        except SimulatedCrash:
            assert fs.is_dead
        files = FileStore(InjectedFs(), str(data), logger=SilentLogger())
        StoreTrash(files, Staged(files)).remove(DEFAULT_USER, ENTRY)
        assert left(data) == [], f"at call {at}"
        if not fs.reached:
            return
    raise AssertionError("the removal has more calls than are tried")


def test_what_somebody_put_into_an_entry_stays(tmp_path: Path) -> None:
    """[F11]"""
    _files, trash = deleted(tmp_path, InjectedFs())
    note = tmp_path / DEFAULT_USER / "trash" / ENTRY.folder / "notes" / "note.txt"
    note.parent.mkdir()
    note.write_text("mine")
    trash.remove(DEFAULT_USER, ENTRY)
    assert left(tmp_path) == [ENTRY.folder, f"{ENTRY.folder}/notes", f"{ENTRY.folder}/notes/note.txt"]


def test_what_a_store_had_of_a_chat_goes_when_files_take_it_out(tmp_path: Path) -> None:
    """[F11] After a move to files the trash holds both; the files come back, and nothing is left."""
    files, _trash = deleted(tmp_path, InjectedFs())
    Trash(files).take_out(DEFAULT_USER, ENTRY)
    assert left(tmp_path) == []
    assert (tmp_path / DEFAULT_USER / ENTRY.files[0]).read_bytes().endswith(b'{"id":"m","mes":"one"}\n')
