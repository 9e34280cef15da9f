"""The file store: where things are, what is never followed, what is never overwritten (STORAGE "User files")."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import orjson
import pytest

from tellback_protocol.errors import Refused
from tellback_protocol.ids import CharacterChat, ChatName, GroupChat, Version, provisional_chat_id
from tellback_server.fs import FileMissing, FileTaken, FileUnsafe, Fs
from tellback_server.store.files import DEFAULT_USER, FileStore, LayoutConflict, SyncMark, Watermark
from tests.support.chat_desk import SilentLogger
from tests.support.real_data import COUNTS, copy_real_data, tree

VERSION = Version(1, 3, "c60e05dd-48f2-4b52-8682-acc155cd5312")


def store(data: Path, users: tuple[str, ...] = (DEFAULT_USER,)) -> FileStore:
    return FileStore(Fs(), str(data), users, logger=SilentLogger())


def mark(chat_id: str, name: ChatName) -> SyncMark:
    return SyncMark(chat_id, str(name), VERSION, VERSION, Watermark(1, 1, 1))


# -- layout


def test_all_real_chats_are_listed(tmp_path: Path) -> None:
    files = store(copy_real_data(tmp_path))

    names = files.names(DEFAULT_USER)

    expected = {
        str(GroupChat(path.split("/")[1].removesuffix(".jsonl")))
        if path.startswith("group")
        else str(CharacterChat(path.split("/")[1], path.split("/")[2].removesuffix(".jsonl")))
        for path in COUNTS
    }
    assert {str(name) for name in names} == expected


def test_looking_at_everything_writes_nothing(tmp_path: Path) -> None:
    """[F1] Not a byte, not a folder, not a time stamp."""
    data = copy_real_data(tmp_path)
    before = tree(data)
    files = store(data)

    for name in files.names(DEFAULT_USER):
        assert files.read_chat(DEFAULT_USER, name) is not None
        assert files.read_sync(DEFAULT_USER, name) is None
        assert files.read_states(DEFAULT_USER, name) == {}
        assert files.chat_id_of(DEFAULT_USER, name) == provisional_chat_id(DEFAULT_USER, str(name))
    missing = CharacterChat("Nobody", "nothing")
    assert files.read_chat(DEFAULT_USER, missing) is None
    assert files.read_states(DEFAULT_USER, missing) == {}

    assert tree(data) == before


def test_a_folder_that_holds_chats_is_the_one_users(tmp_path: Path) -> None:
    data = copy_real_data(tmp_path) / "default-user"
    files = store(data)

    assert files.user_root(DEFAULT_USER) == str(data)
    assert len(files.names(DEFAULT_USER)) == len(COUNTS)
    assert files.server_root == str(data / ".tellback")


def test_both_layouts_at_once_are_refused(tmp_path: Path) -> None:
    data = copy_real_data(tmp_path)
    (data / "chats").mkdir()

    with pytest.raises(LayoutConflict, match="default-user"):
        store(data)


def test_a_folder_of_one_user_cannot_serve_others(tmp_path: Path) -> None:
    (tmp_path / "chats").mkdir()

    with pytest.raises(LayoutConflict):
        store(tmp_path, (DEFAULT_USER, "other"))


@pytest.mark.parametrize("user", ["..", ".", "", "a/b", ".tellback", "nobody"])
def test_only_configured_users_have_a_root(tmp_path: Path, user: str) -> None:
    with pytest.raises(FileMissing):
        store(tmp_path).user_root(user)


# -- links and what else is not a file


@pytest.mark.parametrize("depth", ["chats", "character", "chat"])
def test_a_link_is_not_followed(tmp_path: Path, depth: str) -> None:
    """[F10] Wherever it stands below the user's root."""
    outside = tmp_path / "outside" / "Pip"
    outside.mkdir(parents=True)
    (outside / "talk.jsonl").write_text("{}")
    root = tmp_path / "data" / "default-user"
    name = CharacterChat("Pip", "talk")
    root.mkdir(parents=True)
    if depth == "chats":
        (root / "chats").symlink_to(outside.parent)
    elif depth == "character":
        (root / "chats").mkdir()
        (root / "chats" / "Pip").symlink_to(outside)
    else:
        (root / "chats" / "Pip").mkdir(parents=True)
        (root / "chats" / "Pip" / "talk.jsonl").symlink_to(outside / "talk.jsonl")
    files = store(tmp_path / "data")

    with pytest.raises(FileUnsafe):
        files.read_chat(DEFAULT_USER, name)
    assert files.names(DEFAULT_USER) == []


@pytest.mark.parametrize("kind", ["folder", "fifo"])
def test_what_is_no_regular_file_is_refused(tmp_path: Path, kind: str) -> None:
    """[F10]"""
    folder = tmp_path / "default-user" / "chats" / "Pip"
    folder.mkdir(parents=True)
    path = folder / "talk.jsonl"
    if kind == "folder":
        path.mkdir()
    else:
        os.mkfifo(path)

    with pytest.raises(FileUnsafe):
        store(tmp_path).read_chat(DEFAULT_USER, CharacterChat("Pip", "talk"))


@pytest.mark.parametrize(
    "name",
    [
        CharacterChat("..", "x"), CharacterChat("Pip", ".."), CharacterChat("a/b", "x"), CharacterChat("Pip", "../x"),
        GroupChat("../settings"), GroupChat(""), GroupChat("a\x00b"), CharacterChat("Pip", "n" * 300),
    ],
    ids=repr,
)
def test_no_name_leaves_its_folder(tmp_path: Path, name: ChatName) -> None:
    """[F10]"""
    with pytest.raises(FileUnsafe):
        store(tmp_path).chat_path(DEFAULT_USER, name)


# -- new files


def test_a_new_chat_makes_its_folder_and_is_readable(tmp_path: Path) -> None:
    files = store(tmp_path)
    name = CharacterChat("Neu", "Gespräch")

    files.write_new(DEFAULT_USER, name, b"{}\n")

    loaded = files.read_chat(DEFAULT_USER, name)
    assert loaded is not None
    assert loaded.data == b"{}\n"
    assert os.listdir(tmp_path / "default-user" / "chats" / "Neu") == ["Gespräch.jsonl"]


@pytest.mark.parametrize(
    ("standing", "wanted"),
    [
        (CharacterChat("Pip", "talk"), CharacterChat("Pip", "talk")),
        (CharacterChat("Pip", "talk"), CharacterChat("Pip", "TALK")),
        (CharacterChat("Pip", "talk"), CharacterChat("pip", "other")),
        (CharacterChat("Pip", "straße"), CharacterChat("Pip", "STRASSE")),
        (CharacterChat("Pip", unicodedata.normalize("NFD", "é")), CharacterChat("Pip", "é")),
        (GroupChat("2024"), GroupChat("2024")),
    ],
    ids=str,
)
def test_a_name_or_its_twin_is_never_overwritten(tmp_path: Path, standing: ChatName, wanted: ChatName) -> None:
    """Case and Unicode form do not tell two names apart on every file system."""
    files = store(tmp_path)
    files.write_new(DEFAULT_USER, standing, b"first")

    with pytest.raises(Refused, match="exists"):
        files.write_new(DEFAULT_USER, wanted, b"second")

    loaded = files.read_chat(DEFAULT_USER, standing)
    assert loaded is not None
    assert loaded.data == b"first"


def test_publishing_never_overwrites(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"theirs")

    with pytest.raises(FileTaken):
        store(tmp_path).publish_new(str(path), b"ours")

    assert path.read_bytes() == b"theirs"
    assert os.listdir(tmp_path) == ["a"]


# -- sidecars


def sidecar(tmp_path: Path, namespace: str, text: str) -> None:
    folder = tmp_path / "default-user" / "chats" / "Pip"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "talk.jsonl").write_text("{}")
    (folder / f"talk.luker-state.{namespace}.json").write_text(text)


def test_states_are_found_and_corrupt_ones_are_kept(tmp_path: Path) -> None:
    """[F4] A sidecar that is no JSON is no missing state."""
    sidecar(tmp_path, "memory", '{"a":1}')
    sidecar(tmp_path, "vars__floor_log", '{"version":1,"commits":[]}')
    sidecar(tmp_path, "broken", '{"a":')
    sidecar(tmp_path, "chat_sync", '{"integrity":"x","updated_at":1}')
    sidecar(tmp_path, "Not Legal", "{}")

    states = store(tmp_path).read_states(DEFAULT_USER, CharacterChat("Pip", "talk"))

    assert sorted(states) == ["broken", "memory", "vars__floor_log"]
    assert [states[name].corrupt for name in sorted(states)] == [True, False, False]
    assert states["broken"].data == b'{"a":'


def test_a_luker_chat_sync_is_foreign_and_its_fields_stay(tmp_path: Path) -> None:
    name = CharacterChat("Pip", "talk")
    sidecar(tmp_path, "chat_sync", '{"integrity":"old","updated_at":1,"luker":{"x":1}}')
    files = store(tmp_path)
    sync = files.read_sync(DEFAULT_USER, name)
    assert sync is not None
    assert sync.mark is None

    files.write_sync(DEFAULT_USER, name, mark("chat-1", name), 99)

    again = files.read_sync(DEFAULT_USER, name)
    assert again is not None
    assert again.mark == mark("chat-1", name)
    path = tmp_path / "default-user" / "chats" / "Pip" / "talk.luker-state.chat_sync.json"
    written = orjson.loads(path.read_bytes())
    assert (written["integrity"], written["updated_at"], written["luker"]) == (VERSION.integrity, 99, {"x": 1})


@pytest.mark.parametrize("text", ["", "{", "[]", '{"tellback":{}}', '{"tellback":7}'])
def test_a_chat_sync_that_cannot_be_used_is_none(tmp_path: Path, text: str) -> None:
    sidecar(tmp_path, "chat_sync", text)
    sync = store(tmp_path).read_sync(DEFAULT_USER, CharacterChat("Pip", "talk"))
    assert sync is None or sync.mark is None


def test_a_chat_id_is_resolved_and_a_copy_by_hand_is_another_chat(tmp_path: Path) -> None:
    name, copy = CharacterChat("Pip", "talk"), CharacterChat("Pip", "copy")
    sidecar(tmp_path, "memory", "{}")
    files = store(tmp_path)
    files.write_sync(DEFAULT_USER, name, mark("chat-1", name), 1)
    folder = tmp_path / "default-user" / "chats" / "Pip"
    for ending in (".jsonl", ".luker-state.chat_sync.json"):
        (folder / f"copy{ending}").write_bytes((folder / f"talk{ending}").read_bytes())

    assert files.chat_id_of(DEFAULT_USER, name) == "chat-1"
    assert files.chat_id_of(DEFAULT_USER, copy) == provisional_chat_id(DEFAULT_USER, str(copy))
    assert files.resolve(DEFAULT_USER, "chat-1") == name

    (folder / "talk.jsonl").unlink()
    assert files.chat_id_of(DEFAULT_USER, copy) == "chat-1", "the original is gone: it was renamed by hand"


# -- backups, temporaries, log lines


def test_a_backup_is_made_once(tmp_path: Path) -> None:
    """[F9]"""
    files = store(tmp_path)

    first = files.backup(DEFAULT_USER, "chat-1", 7, 1000, b"lines")
    again = files.backup(DEFAULT_USER, "chat-1", 7, 2000, b"lines")
    other = files.backup(DEFAULT_USER, "chat-1", 7, 1000, b"other")

    assert first == again == "backups/tellback/chat-1/7-1000.jsonl"
    assert other == "backups/tellback/chat-1/7-1001.jsonl"


def test_only_our_own_temporaries_are_cleaned(tmp_path: Path) -> None:
    folder = tmp_path / "default-user" / "chats" / "Pip"
    folder.mkdir(parents=True)
    for name in (".talk.0123.tellback-tmp", "talk.jsonl.123.tmp", ".tellback-swap-x.tellback-tmp", "a.tellback-tmp"):
        (folder / name).touch()

    assert store(tmp_path).clean_temporaries(DEFAULT_USER) == 1

    assert sorted(os.listdir(folder)) == [".tellback-swap-x.tellback-tmp", "a.tellback-tmp", "talk.jsonl.123.tmp"]


def test_every_operation_is_a_line_without_the_data_root(tmp_path: Path) -> None:
    files = store(tmp_path)
    logger = files._logger
    assert isinstance(logger, SilentLogger)

    files.write_new(DEFAULT_USER, GroupChat("2024"), b"{}")
    with pytest.raises(FileMissing):
        files.read(str(tmp_path / "default-user" / "nothing"))

    done, failed = logger.lines
    assert done["event"] == "file"
    assert (done["op"], done["path"], done["outcome"]) == ("create", "default-user/group chats/2024.jsonl", "done")
    assert (done["size_bytes"], done["crc32"]) == (2, 2745614147)
    assert done["duration_ms"] >= 0
    assert (failed["op"], failed["outcome"]) == ("read", "FileMissing")
