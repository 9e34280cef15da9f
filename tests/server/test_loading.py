"""Loading: file, sidecars and log become a stream (STORAGE "User files")."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import msgspec
import orjson
import pytest

from tellback_protocol.decide import Duplicate, Stored
from tellback_protocol.ids import CharacterChat, ChatName, GroupChat, Version, file_integrity, provisional_chat_id
from tellback_protocol.requests import Append
from tellback_server import owner_past
from tellback_server.checkpoint import OutsideEdit
from tellback_server.fs import Fs
from tellback_server.loading import ChatMissing, LoadedStream, adopt, load_chat, needs_adoption
from tellback_server.sessions import SessionFile, write_sessions
from tellback_server.store.files import DEFAULT_USER, FileStore
from tellback_server.store.jsonl import parse_chat
from tests.support.chat_desk import Desk, SilentLogger
from tests.support.real_data import COUNTS, copy_real_data, tree


def place_of(path: str) -> ChatName:
    parts = path.removesuffix(".jsonl").split("/")
    return GroupChat(parts[1]) if path.startswith("group") else CharacterChat(parts[1], parts[2])


class EmptyLog:
    """A log without records."""

    def records(self, owner: str, after_seq: int = 0):  # type: ignore[no-untyped-def]
        return iter(())

    def seq_within(self, owner: str, after_seq: int, until_seq: int, bytes_max: int) -> int:
        return after_seq


# -- only reading


def test_loading_every_real_chat_writes_nothing(tmp_path: Path) -> None:
    """[F1] Bytes, mtimes and inodes of the whole tree are as before; nothing was made, not even a folder."""
    data = copy_real_data(tmp_path)
    before = tree(data)
    files = FileStore(Fs(), str(data), logger=SilentLogger())
    for path, count in COUNTS.items():
        place = place_of(path)
        loaded = load_chat(files, EmptyLog(), DEFAULT_USER, place, now_ms=1)
        assert isinstance(loaded, LoadedStream)
        content = (data / "default-user" / path).read_bytes()
        if not content.startswith(b'{"user_name"') and isinstance(place, GroupChat):
            # [F12]: what stands in the group's file belongs to the content.
            content += b"\0" + loaded.stream.chat.metadata
        assert len(loaded.stream.chat.messages) == count
        assert loaded.stream.head == Version(1, 0, file_integrity(1, 0, str(place), content))
        assert loaded.stream.chat_id == provisional_chat_id(DEFAULT_USER, str(place))
        assert loaded.records == []
        assert not loaded.anchored
        assert not loaded.file.pending
        assert not needs_adoption(files, DEFAULT_USER, loaded.file)

    assert tree(data) == before


async def test_opening_and_stopping_leaves_the_users_files_alone(tmp_path: Path) -> None:
    """[F1] With the real log beside them."""
    data = copy_real_data(tmp_path)
    before = tree(data / "default-user")
    desk = Desk(data, CharacterChat("Pip", "Pip - 2024-09-30@09h00m00s"))
    await desk.open()
    assert await desk.checkpoint() is None
    await desk.restart()
    desk.stop()
    assert tree(data / "default-user") == before


# -- writing into real chats


@pytest.mark.parametrize("path", [path for path, count in COUNTS.items() if count < 1000])
async def test_a_real_chat_is_changed_and_every_other_line_keeps_its_bytes(tmp_path: Path, path: str) -> None:
    """[F2] [F3] Append, patch, delete, metadata and state through `decide`, then checkpoint and restart."""
    data = copy_real_data(tmp_path)
    target = data / "default-user" / path
    others = tree(data / "default-user")
    desk = Desk(data, place_of(path))
    await desk.open()
    old = dict(desk.stream.chat.messages)
    headed = path.startswith("chats/")
    original = target.read_bytes()
    header = parse_chat(original, headed=headed).image.header

    await desk.append("appended")
    await desk.checkpoint()
    lines = target.read_bytes().split(b"\n")
    assert lines[:-1] == original.split(b"\n"), "an append is only behind"
    assert target.stat().st_ino == others[path][2], "and the file is the same one"

    touched: set[str] = set()
    if len(old) > 2:
        ids = list(old)
        await desk.patch(ids[1], mes="changed")
        await desk.delete(ids[2])
        touched = {ids[1], ids[2]}
    await desk.state("memory", {"a": [1]})
    await desk.checkpoint()
    written = target.read_bytes().split(b"\n")
    for message_id, line in old.items():
        if message_id not in touched:
            assert line in written
    if header is not None:
        assert written[0] == header, "the header changes only with the metadata"

    await desk.metadata(note_prompt="changed")
    await desk.checkpoint()
    again = parse_chat(target.read_bytes(), headed=headed)
    assert again.image.header is not None
    assert orjson.loads(again.metadata)["note_prompt"] == "changed"
    assert again.damage == []
    for line in target.read_bytes().split(b"\n"):
        assert isinstance(orjson.loads(line), dict), "SillyTavern parses every line"

    texts, head = desk.texts(), desk.stream.head
    loaded = await desk.restart()
    assert loaded.adoption is None
    assert desk.texts() == texts
    assert desk.stream.head == head
    assert desk.stream.states["memory"].data == b'{"a":[1]}'
    desk.stop()
    for name, before in others.items():
        if name != path and name not in (os.path.dirname(path), "chats", "group chats"):
            assert tree(data / "default-user")[name] == before, "no other file was touched"


async def test_mode_survives_a_rewrite_and_hard_links_are_left_alone(tmp_path: Path) -> None:
    """[F6] A backup made of hard links does not grow with us."""
    desk = Desk(tmp_path / "data")
    await desk.create()
    (message_id,) = await desk.append("one")
    await desk.checkpoint()
    desk.path.chmod(0o640)
    os.link(desk.path, tmp_path / "backup")
    kept = (tmp_path / "backup").read_bytes()

    await desk.append("two")
    await desk.checkpoint()
    assert (tmp_path / "backup").read_bytes() == kept
    await desk.patch(message_id, mes="changed")
    await desk.checkpoint()

    assert desk.path.stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "backup").read_bytes() == kept
    desk.stop()


async def test_chat_sync_tells_the_version_that_the_file_holds(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "data")
    await desk.create()
    await desk.append("one")
    await desk.state("memory", {"a": 1})
    await desk.checkpoint()

    sync = orjson.loads(desk.path.with_name("talk.luker-state.chat_sync.json").read_bytes())

    assert sync["integrity"] == desk.stream.chat.version.integrity
    own = sync["tellback"]
    assert own["chat_id"] == desk.stream.chat_id
    assert own["head"]["seq"] == 2
    assert own["version"]["seq"] == 1
    assert own["watermark"]["bytes"] == desk.path.stat().st_size
    assert own["states"]["memory"]["version"]["seq"] == 2
    desk.stop()


async def test_a_log_that_is_gone_leaves_chat_sync_to_tell(tmp_path: Path) -> None:
    """The version goes on where it was, and nothing is taken for an outside edit."""
    desk = Desk(tmp_path / "data")
    await desk.create()
    await desk.append("one")
    await desk.state("memory", {"a": 1})
    await desk.checkpoint()
    head, chat_id = desk.stream.head, desk.stream.chat_id
    desk.stop()
    shutil.rmtree(desk.data / ".tellback")

    loaded = await desk.open()

    assert loaded.adoption is None
    assert (desk.stream.head, desk.stream.chat_id) == (head, chat_id)
    assert not loaded.anchored
    await desk.append("two")
    await desk.restart()
    assert desk.texts() == ["one", "two"]
    desk.stop()


# -- outcomes and history

KEY = DEFAULT_USER + "/{0.stream.chat_id}"


def resend(op: int, text: str) -> Append:
    message = msgspec.Raw(orjson.dumps({"name": "U", "is_user": True, "mes": text}))
    return Append(chat="c", id=1, op=op, base="*", messages=[message])


@pytest.mark.parametrize("saved", [False, True], ids=["from the log", "from the session file"])
async def test_outcomes_and_history_survive_a_restart(tmp_path: Path, saved: bool) -> None:
    """A resend gets its first answer, a conflict too, and a client's version is still known."""
    desk = Desk(tmp_path / "data")
    await desk.create()
    await desk.append("one")
    first = desk.stream.head
    await desk.append("two")
    conflict = msgspec.structs.replace(resend(3, "three"), base=first.integrity)
    answer = await desk.write(conflict)
    assert isinstance(answer, Stored)
    await desk.checkpoint()
    if saved:
        taken = SessionFile.take(desk.stream, desk.held, desk.clock.now_ms())
        assert taken is not None
        write_sessions(desk.files, taken)
        desk.stop()
        shutil.rmtree(desk.data / ".tellback" / "log")
        (desk.data / ".tellback" / "term").unlink()
        await desk.open()
    else:
        await desk.restart()

    again = await desk.write(resend(1, "one"))
    assert isinstance(again, Duplicate)
    assert again.outcome.kind == "ack"
    refused = await desk.write(conflict)
    assert isinstance(refused, Duplicate)
    assert refused.outcome.kind == answer.outcome.kind == "conflict"
    missed = desk.stream.since(first)
    assert missed is not None
    assert [past.version.seq for past in missed] == [2]
    assert desk.stream.next_op(desk.session) == 4
    desk.stop()


async def test_of_large_commits_that_the_files_hold_no_more_is_read_again_than_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """[O9] What the session file knows is known all the same: outcomes, replays, what waits for the files."""
    monkeypatch.setattr(owner_past, "REMEMBERED_BYTES_MAX", 40_000)
    desk = Desk(tmp_path / "data")
    await desk.create()
    await desk.append("first")
    first = desk.stream.head
    for number in range(20):
        await desk.append(f"{number}" + "x" * 10_000)
    await desk.checkpoint()
    taken = SessionFile.take(desk.stream, desk.held, desk.clock.now_ms(), desk.log.last_of(KEY.format(desk)))
    write_sessions(desk.files, taken)
    await desk.append("waits")
    head, texts = desk.stream.head, desk.texts()
    past = owner_past.OwnerPast.read(desk.log, KEY.format(desk), taken.base, taken, 1)
    assert 4 <= len(past.done()) <= 7
    assert desk.log.seq_within("nobody", 3, 9, 1) == 3
    assert ([commit.version.seq for commit in past.pending()], past.in_log) == ([head.seq], True)
    for bound in (40_000, 0):
        monkeypatch.setattr(owner_past, "REMEMBERED_BYTES_MAX", bound)
        await desk.restart()
        assert (desk.stream.head, desk.texts(), desk.stream.next_op(desk.session)) == (head, texts, 23)
        missed = desk.stream.since(first)
        assert missed is not None
        assert len(list(missed)) == 21
        again = await desk.write(resend(1, "first"))
        assert isinstance(again, Duplicate)
    desk.stop()


async def test_resends_are_known_behind_an_adoption_and_replays_are_not(tmp_path: Path) -> None:
    """[F7] Outcomes outlive the epoch, history does not."""
    desk = Desk(tmp_path / "data")
    await desk.create()
    await desk.append("one")
    version = desk.stream.head
    await desk.checkpoint()
    desk.path.write_bytes(desk.path.read_bytes() + b'{"mes":"outside"}\n')
    loaded = await desk.restart()

    assert loaded.adoption is not None
    assert desk.stream.head.epoch == 2
    assert desk.stream.head.seq == version.seq
    assert desk.stream.since(version) is None
    assert isinstance(await desk.write(resend(1, "one")), Duplicate)
    assert desk.texts() == ["one", "outside"]
    loaded = await desk.restart()
    assert loaded.adoption is None
    assert desk.stream.head.epoch == 2
    desk.stop()


# -- outside edits, one by one


async def test_an_edit_that_drops_our_checkpointed_message_is_backed_up_first(tmp_path: Path) -> None:
    """[F9] The outside program's file stays as it is; our version is a backup."""
    desk = Desk(tmp_path / "data")
    await desk.create()
    await desk.append("one", "two")
    await desk.checkpoint()
    lines = desk.path.read_bytes().split(b"\n")
    edited = b"\n".join([lines[0], lines[1]])
    desk.path.write_bytes(edited)

    loaded = await desk.adopt()

    assert loaded.adoption is not None
    assert loaded.adoption.recovered == []
    (backup,) = loaded.adoption.backups
    assert b"two" in (desk.data / "default-user" / backup).read_bytes()
    assert desk.path.read_bytes() == edited
    assert desk.texts() == ["one"]
    desk.stop()


async def test_a_pending_patch_of_a_changed_line_becomes_a_recovered_chat(tmp_path: Path) -> None:
    """[F7] Nobody is overwritten: theirs stays, ours stands beside it, and what fits is applied."""
    desk = Desk(tmp_path / "data")
    await desk.create()
    (first,) = await desk.append("one")
    await desk.checkpoint()
    await desk.patch(first, mes="ours")
    await desk.append("two")
    desk.path.write_bytes(desk.path.read_bytes().replace(b'"one"', b'"theirs"'))

    loaded = await desk.adopt()
    await desk.checkpoint()

    assert loaded.adoption is not None
    assert loaded.adoption.recovered == ["character:Pip/talk - recovered #1"]
    assert desk.texts() == ["theirs", "two"]
    recovered = desk.path.with_name("talk - recovered #1.jsonl")
    values = [orjson.loads(line) for line in recovered.read_bytes().splitlines()]
    assert [value.get("mes") for value in values[1:]] == ["ours", "two"]
    desk.stop()


async def test_a_pending_patch_of_an_untouched_line_applies_on_top(tmp_path: Path) -> None:
    """[F7]"""
    desk = Desk(tmp_path / "data")
    await desk.create()
    (first,) = await desk.append("one")
    await desk.checkpoint()
    await desk.patch(first, mes="ours")
    await desk.metadata(note="ours")
    desk.path.write_bytes(desk.path.read_bytes() + b'{"mes":"outside"}')

    loaded = await desk.adopt()
    await desk.checkpoint()

    assert loaded.adoption is not None
    assert loaded.adoption.recovered == []
    assert desk.texts() == ["ours", "outside"]
    assert orjson.loads(parse_chat(desk.path.read_bytes(), headed=True).metadata)["note"] == "ours"
    desk.stop()


async def test_a_touched_but_equal_file_is_no_edit(tmp_path: Path) -> None:
    """[F8] Size, mtime, inode, then the bytes: a copy tool changes the first three."""
    desk = Desk(tmp_path / "data")
    await desk.create()
    await desk.append("one")
    await desk.checkpoint()
    copy = desk.path.with_name("copy")
    shutil.copyfile(desk.path, copy)
    os.replace(copy, desk.path)

    assert needs_adoption(desk.files, DEFAULT_USER, desk.held)
    loaded = await desk.adopt()
    assert loaded.adoption is None
    await desk.append("two")
    await desk.checkpoint()
    assert desk.stream.head.epoch == 1
    desk.stop()


async def test_a_state_changed_outside_raises_the_epoch_and_stays(tmp_path: Path) -> None:
    """[F7] Luker patches a sidecar; our pending value becomes a backup."""
    desk = Desk(tmp_path / "data")
    await desk.create()
    await desk.append("one")
    await desk.state("memory", {"a": 1})
    await desk.checkpoint()
    chat_version = desk.stream.chat.version
    await desk.state("memory", {"a": 2})
    sidecar = desk.path.with_name("talk.luker-state.memory.json")
    sidecar.write_bytes(b'{"a":"theirs"}')

    with pytest.raises(OutsideEdit) as caught:
        await desk.checkpoint()
    assert caught.value.namespace == "memory"
    loaded = await desk.adopt()

    assert loaded.adoption is not None
    assert loaded.adoption.states == ["memory"]
    (backup,) = loaded.adoption.backups
    assert (desk.data / "default-user" / backup).read_bytes() == b'{"a":2}'
    assert desk.stream.states["memory"].data == b'{"a":"theirs"}'
    assert desk.stream.head.epoch == 2
    assert desk.stream.chat.version == chat_version, "the chat itself was not touched"
    await desk.state("memory", {"a": 3})
    await desk.checkpoint()
    loaded = await desk.restart()
    assert loaded.adoption is None
    assert desk.stream.states["memory"].data == b'{"a":3}'
    assert sidecar.read_bytes() == b'{"a":3}'
    desk.stop()


@pytest.mark.parametrize("live", [True, False])
async def test_a_new_and_a_removed_sidecar_are_outside_edits_too(tmp_path: Path, live: bool) -> None:
    """[F7] Nobody may replay past them."""
    desk = Desk(tmp_path / "data")
    await desk.create()
    await desk.append("one")
    await desk.state("memory", {"a": 1})
    await desk.checkpoint()
    desk.path.with_name("talk.luker-state.memory.json").unlink()
    desk.path.with_name("talk.luker-state.other.json").write_bytes(b"{}")

    loaded = await desk.adopt() if live else await desk.restart()

    assert loaded.adoption is not None
    assert loaded.adoption.states == ["memory", "other"]
    assert desk.stream.states["memory"].data is None
    assert desk.stream.states["other"].data == b"{}"
    loaded = await desk.restart()
    assert loaded.adoption is None
    desk.stop()


async def test_a_corrupt_state_is_kept_and_told(tmp_path: Path) -> None:
    """[F4]"""
    desk = Desk(tmp_path / "data")
    await desk.create()
    await desk.append("one")
    await desk.checkpoint()
    sidecar = desk.path.with_name("talk.luker-state.memory.json")
    sidecar.write_bytes(b'{"torn":')
    await desk.restart()
    assert desk.stream.states["memory"].corrupt
    await desk.append("two")
    await desk.checkpoint()
    assert sidecar.read_bytes() == b'{"torn":'
    desk.stop()


@pytest.mark.parametrize("live", [True, False])
async def test_a_deleted_file_is_missing_with_its_history(tmp_path: Path, live: bool) -> None:
    """Missing is told as missing, with what was known; what no file ever held is kept."""
    desk = Desk(tmp_path / "data")
    await desk.create()
    await desk.append("one")
    await desk.checkpoint()
    await desk.append("never in a file")
    head = desk.stream.head
    desk.path.unlink()
    if live:
        missing = adopt(desk.files, desk.log, desk.stream, desk.held, desk.clock.now_ms())
    else:
        desk.stop()
        desk.start()
        missing = desk.read()

    assert isinstance(missing, ChatMissing)
    assert missing.head == head
    assert missing.pending == 1
    (backup,) = missing.backups
    assert b"never in a file" in (desk.data / "default-user" / backup).read_bytes()
    desk.stop()


def test_a_chat_that_never_was_is_missing_without_history(tmp_path: Path) -> None:
    files = FileStore(Fs(), str(tmp_path), logger=SilentLogger())
    missing = load_chat(files, EmptyLog(), DEFAULT_USER, GroupChat("2024"), now_ms=1)
    assert isinstance(missing, ChatMissing)
    assert missing.head is None
    assert list(tmp_path.iterdir()) == []


async def test_a_damaged_file_is_read_only_and_never_rewritten(tmp_path: Path) -> None:
    """[F4] Pending work goes to a chat of its own; the damaged bytes stay for repair."""
    desk = Desk(tmp_path / "data")
    await desk.create()
    await desk.append("one")
    await desk.checkpoint()
    await desk.append("two")
    damaged = desk.path.read_bytes() + b'{"mes":"torn by somebody\n'
    desk.path.write_bytes(damaged)

    loaded = await desk.restart()

    assert [damage.line for damage in desk.stream.damage] == [3]
    assert loaded.adoption is not None
    assert loaded.adoption.recovered == ["character:Pip/talk - recovered #1"]
    assert await desk.checkpoint() is None
    assert desk.path.read_bytes() == damaged
    assert b"two" in desk.path.with_name("talk - recovered #1.jsonl").read_bytes()
    desk.stop()


async def test_a_chat_created_by_us_and_never_checkpointed_is_found_again(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "data")
    await desk.create()
    await desk.append("one")
    chat_id = desk.stream.chat_id
    desk.stop()
    desk.start()
    loaded = load_chat(desk.files, desk.log, DEFAULT_USER, desk.place, now_ms=1, chat_id=chat_id)
    assert isinstance(loaded, LoadedStream)
    await desk.took(loaded)
    await desk.checkpoint()
    assert desk.path.read_bytes().count(b"\n") == 2
    loaded = await desk.restart()
    assert loaded.stream.chat_id == chat_id
    desk.stop()


async def test_another_program_makes_the_chat_that_we_are_about_to_make(tmp_path: Path) -> None:
    """[F7] Theirs is the chat, ours is appended."""
    desk = Desk(tmp_path / "data")
    await desk.create()
    await desk.append("one")
    desk.path.parent.mkdir(parents=True)
    desk.path.write_bytes(b'{"user_name":"x","chat_metadata":{"theirs":1}}\n{"mes":"theirs"}')

    with pytest.raises(OutsideEdit):
        await desk.checkpoint()
    await desk.adopt()
    await desk.checkpoint()

    assert desk.texts() == ["theirs", "one"]
    loaded = await desk.restart()
    assert loaded.adoption is None
    desk.stop()


@pytest.mark.parametrize("count", [1, 3])
async def test_an_old_backup_of_file_and_chat_sync_is_a_new_epoch(tmp_path: Path, count: int) -> None:
    """[F7] [F9] The log knows that more was acknowledged than the restored file holds."""
    desk = Desk(tmp_path / "data")
    await desk.create()
    await desk.append("one")
    await desk.checkpoint()
    old = {path: path.read_bytes() for path in desk.path.parent.iterdir()}
    for number in range(count):
        await desk.append(f"later {number}")
        await desk.checkpoint()
    desk.stop()
    for path, content in old.items():
        path.write_bytes(content)

    loaded = await desk.open()

    assert loaded.adoption is not None
    assert desk.stream.head.epoch == 2
    assert desk.texts() == ["one"]
    (backup,) = loaded.adoption.backups
    assert f"later {count - 1}".encode() in (desk.data / "default-user" / backup).read_bytes()
    desk.stop()


async def test_a_chat_that_we_only_read_and_somebody_changed_is_told(tmp_path: Path) -> None:
    """[F1] [F7] Nothing of ours is in it, so nothing is written; open tabs still have to hear of it."""
    data = copy_real_data(tmp_path)
    desk = Desk(data, CharacterChat("Pip", "Pip - 2024-09-30@09h00m00s"))
    await desk.open()
    assert (await desk.adopt()).adoption is None
    before = desk.stream.head
    desk.path.write_bytes(desk.path.read_bytes() + b'\n{"mes":"outside"}')
    assert needs_adoption(desk.files, DEFAULT_USER, desk.held)

    loaded = await desk.adopt()

    assert loaded.adoption is not None
    assert loaded.records == []
    assert desk.stream.head != before
    assert desk.texts()[-1] == "outside"
    desk.stop()


async def test_a_name_that_belonged_to_a_deleted_chat_does_not_bring_it_back(tmp_path: Path) -> None:
    """The id beside the file wins over the one that the log's older names tell."""
    desk = Desk(tmp_path / "data")
    await desk.create()
    await desk.append("old")
    await desk.checkpoint()
    old_id = desk.stream.chat_id
    desk.path.unlink()
    desk.path.with_name("talk.luker-state.chat_sync.json").unlink()
    desk.stop()
    await desk.create()
    await desk.append("new")
    await desk.checkpoint()

    loaded = load_chat(desk.files, desk.log, DEFAULT_USER, desk.place, now_ms=1, chat_id=old_id)

    assert isinstance(loaded, LoadedStream)
    assert loaded.stream.chat_id == desk.stream.chat_id != old_id
    assert loaded.adoption is None
    desk.stop()
