"""`tellback check` and `tellback repair` on the files that other programs and bad disks leave (FIELD-FACTS 9.1)."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tellback_server.checks.findings import CODES
from tellback_server.checks.log_image import LogImage, log_folder
from tellback_server.fs import Fs
from tellback_server.loading import LoadedStream, load_chat
from tellback_server.repairs.header import date_in_name, unnested
from tellback_server.store.files import DEFAULT_USER, FileStore
from tests.support import warm
from tests.support.chat_desk import Desk, SilentLogger
from tests.support.damage import PLACE, checked, codes, folder_of_every_kind, repaired
from tests.support.server import TabClient, running, tree

HEADER = b'{"user_name":"unused","character_name":"unused","chat_metadata":{"note_prompt":"salt"}}'
LINES = [b'{"name":"U","is_user":true,"mes":"one"}', b'{"name":"Pip","mes":"two"}', b'{"name":"U","mes":"three"}']
WHOLE = b"\n".join([HEADER, *LINES])


def chat_in(data: Path, content: bytes, name: str = "chats/Pip/talk.jsonl") -> Path:
    path = data / DEFAULT_USER / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def kept_bytes(data: Path) -> list[bytes]:
    """Every file that a repair or the trash keeps."""
    user = data / DEFAULT_USER
    folders = (user / "backups" / "tellback" / "repairs", user / "trash", data / ".tellback")
    return [path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()]


def texts(path: Path) -> list[str]:
    lines = [json.loads(line) for line in path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n") if line.strip()]
    return [line["mes"] for line in lines if "mes" in line]


async def told(*arguments: str, **environment: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the command line, while this loop goes on."""
    return await asyncio.to_thread(lambda: warm.run(*arguments, **environment))


def load(data: Path) -> LoadedStream:
    files = FileStore(Fs(), str(data), logger=SilentLogger())
    loaded = load_chat(files, LogImage(Fs(), log_folder(str(data))), DEFAULT_USER, PLACE, now_ms=1)
    assert isinstance(loaded, LoadedStream)
    return loaded


def message(**fields: Any) -> bytes:
    return json.dumps({"name": "Pip", "mes": "hi", **fields}).encode()


SOUND: dict[str, tuple[bytes, set[str]]] = {
    "header with integrity": (HEADER.replace(b'"note_prompt"', b'"integrity":"x","note_prompt"'), set()),
    "BOM": (b"\xef\xbb\xbf" + WHOLE, {"encoding-bom"}),
    "CRLF": (WHOLE.replace(b"\n", b"\r\n"), {"line-ends-crlf"}),
    "blank lines": (WHOLE.replace(b"\n", b"\n\n"), {"line-blank"}),
    "trailing newline": (WHOLE + b"\n", set()),
    "a message without is_system": (HEADER + b"\n" + LINES[1], set()),
    "extra is a list": (HEADER + b"\n" + message(extra=[]), {"message-extra-odd"}),
    "send_date in any form": (
        HEADER + b"\n" + b"\n".join(message(send_date=when) for when in (
            "2025-01-05T13:05:09.123Z", "January 5, 2025 3:12pm", "2025-1-5@13h05m09s123ms",
            "2025-1-5 @13h 05m 09s 123ms", 1736082309123, "1736082309123")), set()),
    "swipe_info is sparse": (HEADER + b"\n" + message(swipes=["a", "b"], swipe_info=[None]), {"swipe-info-odd"}),
    "swipe_id is past the end": (
        HEADER + b"\n" + message(swipes=["a"], swipe_id=1, swipe_info=[{}]), {"swipe-id-odd"}),
    "swipes without swipe_info": (HEADER + b"\n" + message(swipes=["a"], swipe_id=0), {"swipe-info-odd"}),
    "CardShark's header": (
        b'{"metadata":{"a":1},"version":"1.0","chat_id":"Pip_2025_ab","timestamp":1}\n' + LINES[0],
        {"header-cardshark", "chat-id-illegal"}),
    "U+2028 inside a line": (HEADER + b'\n{"name":"U","mes":"a\xe2\x80\xa8b"}', set()),
    "half a surrogate pair": (HEADER + b'\n{"mes":"\\ud83d"}', {"message-half-character"}),
    "an integer past 2^53": (HEADER + b"\n" + message(gen_id=2**63 + 1), set()),
}


@pytest.mark.parametrize("item", SOUND)
def test_what_other_programs_write_is_no_damage_and_is_left_alone(item: str, tmp_path: Path) -> None:
    """[X3] Checklist 9.1: opened, checked, and a repair changes not a byte."""
    content, expected = SOUND[item]
    path = chat_in(tmp_path / "data", content)
    found = {one.code: one for one in checked(tmp_path / "data")}
    assert {code for code in found if code != "message-id-missing"} == expected
    assert {one.severity for one in found.values()} <= {"info"}
    repaired(tmp_path / "data")
    assert path.read_bytes() == content
    assert load(tmp_path / "data").stream.damage == []


DAMAGED: dict[str, tuple[bytes, str, list[str]]] = {
    "torn tail": (WHOLE[:-12], "tail-torn", ["one", "two"]),
    "zeroed piece": (WHOLE.replace(b'"mes":"two"', b"\0" * 11), "line-zeroed", ["one", "three"]),
    "garbage line": (WHOLE.replace(LINES[1], b"?!"), "line-not-json", ["one", "three"]),
    "a number": (WHOLE.replace(LINES[1], b"42"), "line-not-object", ["one", "three"]),
    "broken UTF-8": (WHOLE.replace(b"two", b"\xff\xfe"), "line-not-utf8", ["one", "three"]),
    "a lost line end": (WHOLE.replace(LINES[0] + b"\n", LINES[0]), "lines-joined", ["one", "two", "three"]),
    "CR alone": (WHOLE.replace(b"\n", b"\r"), "line-ends-cr", ["one", "two", "three"]),
    "UTF-16": (WHOLE.decode().encode("utf-16"), "encoding-utf16", ["one", "two", "three"]),
    "a broken header": (HEADER[:40] + WHOLE[len(HEADER) :], "header-unreadable", ["one", "two", "three"]),
    "no header": (b"\n".join(LINES), "header-missing", ["one", "two", "three"]),
    "nested metadata": (
        WHOLE.replace(b'{"note_prompt":"salt"}', b'{"tainted":true,"chat_metadata":{"note_prompt":"salt"}}'),
        "metadata-nested", ["one", "two", "three"]),
    "an id twice": (
        b"\n".join([HEADER, b'{"id":"a","mes":"one"}', b'{"id":"a","mes":"two"}']), "message-id-duplicate",
        ["one", "two"]),
    "an id that is none": (b"\n".join([HEADER, b'{"id":7,"mes":"one"}']), "message-id-illegal", ["one"]),
}


@pytest.mark.parametrize("item", DAMAGED)
def test_damage_is_told_mended_and_kept(item: str, tmp_path: Path) -> None:
    """[X3, X7, X8, X9] The file is well again, the old bytes are kept, twice is once, and it can be written to."""
    data = tmp_path / "data"
    content, code, expected = DAMAGED[item]
    path = chat_in(data, content)
    before = load(data)
    served = [value.get("id") for value in before.stream.chat.values()] if before.stream.damage == [] else None
    assert code in codes(data)
    assert CODES[code].mends
    plan = repaired(data)
    assert len(plan.choices) == 1
    assert codes(data) == set()
    assert texts(path) == expected
    assert content in kept_bytes(data), "the file as it was is kept"
    after = load(data)
    assert after.stream.damage == []
    if served is not None and None not in served:
        assert [value["id"] for value in after.stream.chat.values()] == served, "ids stay as they were served"
    mended = path.read_bytes()
    assert repaired(data).choices == []
    assert path.read_bytes() == mended


async def test_ids_are_written_into_messages_when_somebody_asks_for_it(tmp_path: Path) -> None:
    """[X3, X7] A missing id is no damage; written, it is the one that the message was served under, for good."""
    data = tmp_path / "data"
    path = chat_in(data, b"\r\n".join([HEADER, *LINES, LINES[1], b'{"id":"mine","mes":"four"}']))
    before = path.read_bytes()
    served = load(data).stream.chat.order()
    assert (await told("repair", "--yes", str(data)))[0] == 0
    assert path.read_bytes() == before
    code, out, errors = await told("repair", "--yes", "--ids", str(data))
    assert (code, "4 messages get the ids" in out) == (0, True), errors
    lines = path.read_bytes().split(b"\r\n")
    assert [json.loads(line)["id"] for line in lines[1:]] == served == load(data).stream.chat.order()
    assert lines[0] == HEADER
    assert before in kept_bytes(data)
    assert "Nothing to repair" in (await told("repair", "--yes", "--ids", str(data)))[1]


def test_lines_that_cannot_be_read_stand_in_the_quarantine_as_they_were(tmp_path: Path) -> None:
    """[X8]"""
    data = tmp_path / "data"
    chat_in(data, WHOLE.replace(LINES[1], b"?!\xff"))
    repaired(data)
    (quarantine,) = (data / DEFAULT_USER / "backups" / "tellback" / "repairs").glob("*/quarantine/chats/Pip/talk.jsonl")
    assert quarantine.read_bytes() == b"?!\xff\n"


def test_a_header_is_made_from_what_is_left_of_it(tmp_path: Path) -> None:
    data = tmp_path / "data"
    broken = b'{"user_name":"Mara","create_date":"2024-5-1","chat_metadata":{"note_prompt":"salt"},"x":'
    path = chat_in(data, b"\n".join([broken, *LINES]), "chats/Pip/Pip - 2025-1-5@13h05m09s123ms.jsonl")
    repaired(data)
    header = json.loads(path.read_bytes().split(b"\n")[0])
    assert header["user_name"] == "Mara"
    assert header["create_date"] == "2024-5-1"
    assert header["chat_metadata"] == {"note_prompt": "salt"}


def test_dates_in_names_and_nested_metadata() -> None:
    assert date_in_name("Pip - 2025-1-5@13h05m09s123ms") == "2025-01-05T13:05:09.123Z"
    assert date_in_name("Pip - 2025-1-5 @13h 05m 09s 12ms") == "2025-01-05T13:05:09.012Z"
    assert date_in_name("chat_Pip_20250105_130509") == "2025-01-05T13:05:09.000Z"
    assert date_in_name("Pip - 2025-13-45@99h05m09s") is None
    nested = {"user_name": "u", "chat_metadata": {"a": 1, "chat_metadata": {"a": 2, "b": 3, "chat_metadata": {"c": 4}}}}
    assert unnested(nested)["chat_metadata"] == {"a": 1, "b": 3, "c": 4}


async def test_lines_come_back_from_the_log_and_the_chat_goes_on_as_a_new_epoch(tmp_path: Path) -> None:
    """[X7] RELIABILITY "JSONL line": put back from the log where it still is, proved by the checksum."""
    desk = Desk(tmp_path / "data")
    await desk.create()
    await desk.append("one", "two", "three")
    await desk.state("memory", {"boat": "blue"})
    await desk.checkpoint()
    whole, state = desk.path.read_bytes(), desk.path.with_name("talk.luker-state.memory.json")
    document, head = state.read_bytes(), desk.stream.head
    desk.stop()
    lines = whole.split(b"\n")
    desk.path.write_bytes(b"\n".join([lines[0], lines[1], b"\0" * len(lines[2]), lines[3][:9]]))
    state.write_bytes(b"{broken")
    plan = repaired(tmp_path / "data")
    assert any("proved by the checksum" in action for choice in plan.choices for action in choice.actions)
    assert desk.path.read_bytes() == whole
    assert state.read_bytes() == document
    assert codes(tmp_path / "data") == set()
    desk.path.write_bytes(whole.replace(b"two", b"2.0"))
    loaded = await desk.open()
    assert loaded.stream.head.epoch == head.epoch + 1
    assert loaded.stream.damage == []
    await desk.append("four")
    assert desk.texts()[-1] == "four"
    desk.stop()


async def test_a_chat_keeps_its_id_when_chat_sync_is_broken(tmp_path: Path) -> None:
    """[X11] At the first load, and by a repair."""
    kinds = await folder_of_every_kind(tmp_path / "data")
    kinds.path("sync").write_bytes(b"{torn")
    assert load(kinds.data).stream.chat_id == kinds.chat_id
    assert "sync-unusable" in codes(kinds.data)
    repaired(kinds.data)
    assert json.loads(kinds.path("sync").read_bytes())["tellback"]["chat_id"] == kinds.chat_id
    assert codes(kinds.data) == set()
    loaded = load(kinds.data)
    assert (loaded.stream.chat_id, loaded.adoption) == (kinds.chat_id, None)


async def test_a_damaged_log_is_copied_as_far_as_it_can_be_read(tmp_path: Path) -> None:
    """[X10] Nothing is skipped silently: the old log is put aside whole, what is lost is told, the rest goes on."""
    data = tmp_path / "data"
    desk = Desk(data)
    await desk.create()
    for number in range(40):
        await desk.append(f"message {number} " + "x" * 200)
        if number == 20:
            await desk.checkpoint()
    texts_before = desk.texts()
    desk.stop()
    segment = max((data / ".tellback" / "log").glob("*.log"), key=lambda path: path.stat().st_size)
    content = bytearray(segment.read_bytes())
    content[2000:2100] = bytes(100)
    segment.write_bytes(bytes(content))
    assert "log-corrupt" in codes(data)
    plan = repaired(data)
    (choice,) = plan.choices
    assert any(action.startswith("lost:") for action in choice.actions)
    (aside,) = (data / ".tellback").glob("log-damaged-*")
    assert bytes(content) in [path.read_bytes() for path in aside.iterdir()]
    assert codes(data) == set()
    loaded = await desk.open()
    assert [value["mes"] for value in loaded.stream.chat.values()] == texts_before, "it lay below"
    await desk.append("and on")
    desk.stop()
    assert repaired(data).choices == []


async def test_what_files_know_of_a_lost_end_of_the_log_is_settled_by_the_same_repair(tmp_path: Path) -> None:
    """[X7, X10, X13] The chat goes on in a new epoch with all that its file holds; doing it twice changes nothing."""
    data = tmp_path / "data"
    desk = Desk(data)
    await desk.create()
    for number in range(10):
        await desk.append(f"message {number} " + "x" * 200)
    await desk.checkpoint()
    head, texts_before = desk.stream.head, desk.texts()
    desk.stop()
    segment = max((data / ".tellback" / "log").glob("*.log"), key=lambda path: path.stat().st_size)
    content = bytearray(segment.read_bytes())
    end = len(content.rstrip(b"\0"))
    content[end // 2 : end - 80] = bytes(end - 80 - end // 2)
    segment.write_bytes(bytes(content))
    code, out, errors = await told("repair", str(data), "--yes", "--json")
    assert code == 0, errors
    codes_told = [code for choice in json.loads(out)["choices"] for code in choice["codes"]]
    assert codes_told == ["log-corrupt", "sync-ahead-of-log"]
    assert codes(data) == set()
    await desk.open()
    assert (desk.texts(), desk.stream.damage, desk.stream.head.epoch) == (texts_before, [], head.epoch + 1)
    await desk.append("and on")
    await desk.checkpoint()
    desk.stop()
    assert repaired(data).choices == []


@pytest.mark.parametrize("point", [
    "repair.after_manifest", "repair.after_copy", "repair.after_change", "repair.before_done", "repair.log.after_new",
    "repair.log.after_aside", "repair.log.after_log",
])
async def test_a_kill_in_a_repair_leaves_what_the_next_one_finishes(point: str, tmp_path: Path) -> None:
    """[X9, X10]"""
    data = tmp_path / "data"
    kinds = await folder_of_every_kind(data)
    whole = kinds.path("chat").read_bytes()
    damaged = whole.replace(b"The tide", b"The ti\0e")
    assert damaged != whole
    kinds.path("chat").write_bytes(damaged)
    log = kinds.path("log")
    content = bytearray(log.read_bytes())
    if ".log." in point:
        content[700:760] = bytes(60)
        log.write_bytes(bytes(content))
    code, _, errors = await told("repair", "--yes", str(data), TELLBACK_FAILPOINTS=f"{point}=kill")
    assert code == -9, errors[-800:]
    code, out, errors = await told("repair", "--yes", str(data))
    assert code == 0, out[-800:] + errors[-800:]
    assert codes(data) == set()
    assert damaged in kept_bytes(data)
    if ".log." in point:
        assert bytes(content) in kept_bytes(data)


async def test_a_check_beside_a_server_writes_nothing_and_tells_no_damage(tmp_path: Path) -> None:
    """[X1, X5] While chats are being folded all the time."""
    data = tmp_path / "data"
    chat_in(data, WHOLE)
    async with running(data) as app:
        tab = await TabClient.join(app.urls[0])
        opened = await tab.open("character:Pip/talk")
        assert opened["type"] == "opened"
        for turn in range(4):
            await tab.append("character:Pip/talk", f"turn {turn}")
            _, out, _ = await told("check", "--json", str(data))
            report = json.loads(out)
            assert report["served"] is True
            assert (report["damage"], report["warnings"]) == (0, 0), report["findings"]
        assert (await told("repair", "--yes", str(data)))[0] == 73


def test_a_check_leaves_no_trace(tmp_path: Path) -> None:
    """[X1] Not a byte, not a folder, not a lock file; also when everything is damaged."""
    data = tmp_path / "data"
    chat_in(data, WHOLE[:-9])
    before = tree(data)
    code, out, _ = warm.run("check", str(data))
    assert code == 1
    assert "tail-torn" in out
    code, out, _ = warm.run("repair", str(data))
    assert code == 1
    assert "nothing was changed" in out
    assert tree(data) == before
    assert not (data / ".tellback").exists()


@pytest.mark.parametrize("given", ["file", "folder", "nothing", "elsewhere"])
def test_a_path_may_be_a_file_or_a_folder_in_it(given: str, tmp_path: Path) -> None:
    """[X2]"""
    data = tmp_path / "data"
    path = chat_in(data, WHOLE[:-9])
    chat_in(data, WHOLE[:-9], "chats/Mara/other.jsonl")
    asked = {"file": path, "folder": path.parent, "nothing": data / "none", "elsewhere": tmp_path}[given]
    code, out, errors = warm.run("check", "--json", str(asked))
    if given in ("file", "folder"):
        found = [one for one in json.loads(out)["findings"] if one["severity"] == "damage"]
        assert [one["path"] for one in found] == ["chats/Pip/talk.jsonl"], "the user's folder alone is one"
        assert (found[0]["line"], found[0]["code"]) == (4, "tail-torn")
    else:
        assert code == 78
        assert "Traceback" not in errors


def test_files_that_belong_together_are_held_against_each_other(tmp_path: Path) -> None:
    data = tmp_path / "data"
    path = chat_in(data, WHOLE)
    user = data / DEFAULT_USER
    (user / "groups").mkdir()
    (user / "groups" / "9.json").write_text('{"id":"9","chats":["gone"],"members":["Nobody.png"],"chat_id":"other"}')
    chat_in(data, WHOLE, "chats/Pip/TALK.jsonl")
    chat_in(data, WHOLE, "chats/Pip/double.jsonl.jsonl")
    (path.parent / "lost.luker-state.memory.json").write_text("{}")
    (path.parent / "talk.luker-state.NOT legal.json").write_text("{}")
    (path.parent / "talk.luker-state.x__floor_log.json").write_text('{"commits":[{"floor":99,"swipeId":0}]}')
    (path.parent / "talk.luker-state.chat_sync.json").write_text('{"integrity":"theirs","updated_at":1}')
    found = {finding.code for finding in checked(data)}
    assert {
        "group-chat-missing", "group-member-missing", "group-shown-unlisted", "name-twin", "file-double-ending",
        "state-orphaned", "state-name-odd", "floor-commit-odd", "sync-foreign",
    } <= found
    repaired(data)
    assert not (path.parent / "lost.luker-state.memory.json").exists()
    assert b"{}" in kept_bytes(data)


BY_HAND = "Correct it in an editor, put a whole copy in its place, or delete it."


@pytest.mark.parametrize("name", ["memory", "map__floor_log"])
@pytest.mark.parametrize("history", ["none", "before", "behind"])
async def test_no_repair_is_promised_of_another_programs_state(tmp_path: Path, history: str, name: str) -> None:
    """[X2] [X7] Nobody knows what it held, also when a server took it as it is: the check says what a person can do."""
    data = tmp_path / "data"
    chat = chat_in(data, WHOLE)
    state = chat.with_name(f"talk.luker-state.{name}.json")
    state.write_bytes(b'{"boat":')
    if history != "none":
        state.unlink()
        desk = Desk(data)
        await desk.open()
        await desk.append("one")
        await desk.checkpoint()
        state.write_bytes(b'{"boat":')
        if history == "behind":
            await desk.restart()
            await desk.append("two")
            await desk.checkpoint()
        desk.stop()
    (found,) = [one for one in checked(data) if one.code == "state-not-json"]
    assert (found.remedy, found.mends, found.severity) == (BY_HAND, False, "damage")
    plan = repaired(data)
    assert [(one.finding.code, one.reason) for one in plan.left] == [("state-not-json", BY_HAND)]
    assert state.read_bytes() == b'{"boat":'


async def test_a_repair_that_knows_nothing_says_what_a_person_can_do(tmp_path: Path) -> None:
    """[X7] A state that another program made well, and that was broken since."""
    desk = Desk(chat_in(tmp_path / "data", WHOLE).parents[3])
    await desk.open()
    state = desk.path.with_name("talk.luker-state.memory.json")
    state.write_bytes(b'{"boat":"blue"}')
    await desk.append("one")
    await desk.checkpoint()
    await desk.restart()
    await desk.append("two")
    await desk.checkpoint()
    desk.stop()
    state.write_bytes(b'{"boat":')
    (found,) = [one for one in checked(desk.data) if one.code == "state-not-json"]
    assert found.mends
    assert found.remedy == "`tellback repair` makes it anew where the log or a backup knows it."
    plan = repaired(desk.data)
    assert {one.reason for one in plan.left} == {f"Nothing that is known puts it right. {BY_HAND}"}


def test_the_page_lists_every_code() -> None:
    """[X2] docs/CHECK.md and the program tell the same."""
    page = (Path(__file__).parents[2] / "docs" / "CHECK.md").read_text()
    rows = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `")}
    assert set(rows) == set(CODES)
    for code, what in CODES.items():
        assert f"| {what.severity} |" in rows[code], code


