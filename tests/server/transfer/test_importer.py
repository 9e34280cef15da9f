"""What comes in, what is never overwritten, what a second run does (STORAGE IE1 to IE8)."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tellback_protocol.ids import CharacterChat, new_name_problem
from tellback_server.fs import FileUnsafe, Fs
from tellback_server.store.jsonl import parse_chat
from tellback_server.transfer.anomalies import CODES
from tellback_server.transfer.file_source import Choices
from tellback_server.transfer.importer import Taken
from tellback_server.transfer.item import Item, legal_name
from tellback_server.transfer.source import overlap
from tests.support.importing import USER, contents, export_to, import_into, killed_import, source_of, write_files
from tests.support.real_data import COUNTS, real_user, tree
from tests.support.shared import CHECKOUT

HEADER = b'{"user_name":"U","character_name":"Pip","create_date":"2024-9-30 @09h 00m 00s 0ms","chat_metadata":{}}'


def line(text: str, **fields: Any) -> bytes:
    return json.dumps({"name": "Pip", "is_user": False, "mes": text, **fields}).encode()


def chat(*texts: str) -> bytes:
    return b"\n".join([HEADER, *map(line, texts)])


def actions(taken: list[Taken]) -> dict[str, int]:
    return dict(Counter(one.action for one in taken if one.target))


def codes(taken: list[Taken], *, severe: bool = True) -> list[str]:
    return [note.code for one in taken for note in one.notes if not severe or note.severity != "info"]


def only(taken: list[Taken], action: str) -> Taken:
    [found] = [one for one in taken if one.action == action and one.target]
    return found


# -- formats ---------------------------------------------------------------------------------------------------------


def test_a_real_folder_comes_in_byte_for_byte_and_twice_changes_nothing(tmp_path: Path) -> None:
    """[IE1] [IE2] Everything but SillyTavern's own backups; the source is as it was."""
    source, data = real_user(), tmp_path / "data"
    before = tree(source)
    dry = import_into(data, "sillytavern", source, is_dry=True)
    assert not data.exists()
    taken = import_into(data, "sillytavern", source)
    assert actions(taken) == actions(dry) == {"imported": 23}
    assert [(one.target, one.messages) for one in taken] == [(one.target, one.messages) for one in dry]
    assert sum(one.messages for one in taken) == sum(COUNTS.values())
    wanted = {path: bytes_ for path, bytes_ in contents(source).items() if not path.startswith("backups")}
    assert contents(data / USER) == wanted
    assert tree(source) == before
    there = data / USER / "chats" / "Pip" / "Pip - 2024-09-30@09h00m00s.jsonl"
    assert there.stat().st_mtime_ns == (source / "chats" / "Pip" / there.name).stat().st_mtime_ns
    stood = tree(data)
    assert actions(import_into(data, "luker", source)) == {"known": 23}
    assert {path: one for path, one in tree(data).items() if Path(path).parts[0] == USER} == {
        path: one for path, one in stood.items() if Path(path).parts[0] == USER
    }
    for form in ("sillytavern", "luker"):
        export_to(tmp_path / form, form, data)  # type: ignore[arg-type]  # A loop over literals.
        assert contents(tmp_path / form) == wanted


CHECKLIST: dict[str, tuple[dict[str, bytes], set[str]]] = {
    "header-with-integrity": ({"chats/A/a.jsonl": b'{"user_name":"unused","character_name":"unused","chat_metadata":'
                               b'{"integrity":"c60e05dd-48f2-4b52-8682-acc155cd5312"}}\n' + line("x")}, set()),
    "header-absent-in-a-group": ({"group chats/g.jsonl": line("x") + b"\n" + line("y")}, set()),
    "header-absent": ({"chats/A/a.jsonl": line("x")}, {"header-missing"}),
    "dates": ({"chats/A/a.jsonl": b"\n".join([HEADER, *(line("x", send_date=one) for one in (
        "2024-01-05T13:05:09.123Z", "January 5, 2025 3:12pm", "2025-1-5@13h05m09s123ms",
        "2025-1-5 @13h 05m 09s 123ms", 1736082309123, "1736082309123"))])}, set()),
    "bom": ({"chats/A/a.jsonl": b"\xef\xbb\xbf" + chat("x")}, set()),
    "crlf": ({"chats/A/a.jsonl": chat("x", "y").replace(b"\n", b"\r\n")}, set()),
    "blank-lines": ({"chats/A/a.jsonl": chat("x", "y").replace(b"\n", b"\n\n")}, set()),
    "newline-at-the-end": ({"chats/A/a.jsonl": chat("x") + b"\n"}, set()),
    "odd-swipes": ({"chats/A/a.jsonl": b"\n".join([HEADER, line("x", swipes=["x"], swipe_id=1, swipe_info=[None]),
                    line("y", swipes=["y"]), line("z", extra=[]), line("w", extra=None)])}, set()),
    "nested-metadata": ({"chats/A/a.jsonl": b'{"chat_metadata":{"chat_metadata":{"a":1}}}\n' + line("x")},
                        {"metadata-nested"}),
    "sidecars": ({"chats/A/a.jsonl": chat("x"), "chats/A/a.luker-state.memory.json": b'{"a":1}',
                  "chats/A/a.luker-state.memory__floor_log.json": b'{"version":1,"commits":[]}',
                  "chats/A/a.luker-state.memory__orphans.json": b"[]",
                  "chats/A/a.luker-state.chat_sync.json": b'{"integrity":"x","updated_at":5}',
                  "characters/A.png": b"no picture", "characters/A.state.mood.json": b"{}",
                  "OpenAI Settings/P.json": b"{}", "OpenAI Settings/P.luker-state.n.json": b"3"}, set()),
    "cardshark-header": ({"chats/A/a.jsonl": b'{"metadata":{"t":1},"version":"1.0","chat_id":"x"}\n' + line("x")},
                         set()),
    "double-ending": ({"chats/A/a.jsonl.jsonl": chat("x")}, set()),
    "unicode-line-ends": ({"chats/A/a.jsonl": HEADER + b'\n{"mes":"a\xe2\x80\xa8b\xc2\x85c"}'}, set()),
    "long-integers-and-half-surrogates": ({"chats/A/a.jsonl": HEADER + b'\n{"mes":"\\ud83d","g":123456789012345678901,'
                                           b'"__proto__":{"x":1}}'}, set()),
    "empty": ({"group chats/g.jsonl": b"", "chats/A/a.jsonl": b""}, set()),
    "torn": ({"chats/A/a.jsonl": chat("x") + b'\n{"mes":"to'}, {"tail-torn"}),
    "garbage": ({"chats/A/a.jsonl": chat("x") + b"\n{nonsense\n42\nnull\n" + line("y")},
                {"line-not-json", "line-not-object"}),
    "zeros": ({"chats/A/a.jsonl": chat("x") + b"\n" + bytes(64)}, {"line-zeroed"}),
    "broken-header": ({"chats/A/a.jsonl": b"{torn\n" + line("x")}, {"header-unreadable"}),
    "broken-state": ({"chats/A/a.jsonl": chat("x"), "chats/A/a.luker-state.n.json": b"{torn"}, set()),
    "broken-group": ({"groups/1.json": b"{torn", "group chats/g.jsonl": line("x")}, {"line-not-json"}),
}


@pytest.mark.parametrize("name", CHECKLIST)
def test_what_other_programs_write_comes_in_with_all_its_bytes(tmp_path: Path, name: str) -> None:
    """[IE3] FIELD-FACTS 9.1, and what crashes leave; what is wrong is told with file and line."""
    files, expected = CHECKLIST[name]
    source = write_files(tmp_path / "source", {"chats/.keep": b"", **files})
    before = tree(source)
    taken = import_into(tmp_path / "data", "sillytavern", source)
    assert contents(tmp_path / "data" / USER) == files
    assert set(codes(taken)) == expected
    for note in (note for one in taken for note in one.notes if note.code in expected):
        assert note.path in files
        assert note.done
    assert tree(source) == before
    again = import_into(tmp_path / "data", "sillytavern", source)
    assert actions(again) == {"known": actions(taken)["imported"]}


def test_what_another_tellback_wrote_into_chat_sync_stays_behind(tmp_path: Path) -> None:
    """[IE3] Its versions would be ahead of the log here."""
    mark = {"integrity": "x", "updated_at": 5, "other": [1], "tellback": {"chat_id": "c", "name": "character:A/a"}}
    source = write_files(tmp_path / "source", {
        "chats/A/a.jsonl": chat("x"), "chats/A/a.luker-state.chat_sync.json": json.dumps(mark),
        "chats/A/b.jsonl": chat("y"), "chats/A/b.luker-state.chat_sync.json": json.dumps({"tellback": {}}),
    })
    taken = import_into(tmp_path / "data", "luker", source)
    found = contents(tmp_path / "data" / USER)
    del mark["tellback"]
    assert json.loads(found["chats/A/a.luker-state.chat_sync.json"]) == mark
    assert "chats/A/b.luker-state.chat_sync.json" not in found
    assert codes(taken, severe=False).count("sync-of-a-server") == 2


def test_links_devices_and_names_that_are_no_text_are_left_out_and_told(tmp_path: Path) -> None:
    """[IE1] Nothing behind a link is read."""
    source = write_files(tmp_path / "source", {
        "chats/A/a.jsonl": chat("x"), "secret.jsonl": chat("secret"), "chats/A/notes.txt": b"n", "settings.json": b"{}",
        "chats/A/a.luker-state.x.state.y.json": b"{}", "chats/A/lost.luker-state.n.json": b"{}",
    })
    (source / "chats" / "A" / "link.jsonl").symlink_to(source / "secret.jsonl")
    (source / "chats" / "B").symlink_to(source / "chats" / "A")
    os.mkfifo(source / "chats" / "A" / "pipe.jsonl")
    (source / "chats" / "A" / os.fsdecode(b"\xff.jsonl")).write_bytes(chat("y"))
    (source / "group chats").symlink_to(source / "chats")
    taken = import_into(tmp_path / "data", "sillytavern", source)
    assert sorted(contents(tmp_path / "data" / USER)) == ["chats/A/a.jsonl"]
    told = {(one.source, note.code) for one in taken for note in one.notes if note.severity != "info"}
    assert told == {
        ("chats/A/link.jsonl", "source-link"), ("chats/B", "source-link"), ("chats/A/pipe.jsonl", "source-link"),
        ("chats/A/?.jsonl", "name-not-text"), ("group chats", "source-link"),
    }
    others = {one.source for one in taken for note in one.notes if note.code == "source-other"}
    assert others >= {"chats/A/notes.txt", "settings.json", "secret.jsonl", "chats/A/lost.luker-state.n.json"}


def cardshark(root: Path) -> Path:
    return write_files(root, {
        "chats/folders.json": json.dumps({"id-1": "Alice", "id-2": "Alice 2", "id-3": "0a1b2c3d"}),
        "chats/active_chats.json": b'{"id-1": "Alice_1"',
        "chats/Alice/chat_Alice_20240301_101500.jsonl": chat("a").replace(b"Pip", b"Alice"),
        "chats/Alice 2/chat_Alice_20240302_101500.jsonl": chat("b").replace(b"Pip", b"Alice"),
        "chats/0a1b2c3d/chat_Bob_20240303_101500.jsonl": chat("c").replace(b"Pip", b"Bo/b"),
        "chats/backups/chat_Bob_20240303_101500_1.bak": b"x", "chats/Alice/.backups/x.bak": b"x",
        "chats/Alice/chat_Alice_20240301_101500.jsonl.bak": b"x", "characters/Alice.png": b"picture",
    })


def test_cardshark_with_two_characters_of_one_name_and_a_broken_map(tmp_path: Path) -> None:
    """[IE4] Folders tell what maps do not; twice changes nothing, also from the inner folder."""
    source = cardshark(tmp_path / "shark")
    before = tree(source)
    taken = import_into(tmp_path / "data", "cardshark", source)
    assert sorted(contents(tmp_path / "data" / USER)) == [
        "characters/Alice.png", "chats/Alice 2/chat_Alice_20240302_101500.jsonl",
        "chats/Alice/chat_Alice_20240301_101500.jsonl", "chats/Bo_b/chat_Bob_20240303_101500.jsonl",
    ]
    assert codes(taken) == ["source-map-unreadable"]
    assert actions(import_into(tmp_path / "data", "cardshark", source)) == {"known": 4}
    assert actions(import_into(tmp_path / "data", "cardshark", source / "chats")) == {"known": 3}
    assert tree(source) == before


def test_files_of_messages_and_of_text(tmp_path: Path) -> None:
    """[IE4] One file, folders by character, conversations one a line with the same title, names made legal."""
    source = write_files(tmp_path / "source", {
        "Alice/talk: 1.jsonl": b'{"role":"user","content":"a"}\n{"role":"assistant","content":"b"}\n',
        "all.jsonl": b'{"title":"T?","messages":[{"role":"user","content":"1"}]}\n'
                     b'{"title":"T?","messages":[{"role":"user","content":"2"}]}\n{torn\n',
        "deep/er/x.json": b'[{"role":"user","content":"j"}]', "skip.md": b"", ".hidden.jsonl": b"",
    })
    taken = import_into(tmp_path / "data", "openai", source)
    assert sorted(contents(tmp_path / "data" / USER)) == [
        "chats/Alice/talk_ 1.jsonl", "chats/Imported/T_ (imported).jsonl", "chats/Imported/T_.jsonl",
        "chats/Imported/all.jsonl", "chats/er/x.jsonl",
    ]
    assert [(note.code, note.line) for one in taken for note in one.notes if note.severity == "damage"] == [
        ("line-not-json", 3)
    ]
    assert (tmp_path / "data" / USER / "chats/Imported/all.jsonl").read_bytes().endswith(b"\n{torn")
    (source / "all.jsonl").touch()
    assert actions(import_into(tmp_path / "data", "openai", source)) == {"known": 5}
    talk = write_files(tmp_path / "texts", {"talk.txt": b"Ann: hi\n\nBob: caf\xe9\n"}) / "talk.txt"
    taken = import_into(tmp_path / "data", "text", talk, Choices("Ann", ("bob",)))
    stored = parse_chat((tmp_path / "data" / USER / "chats/Ann/talk.jsonl").read_bytes(), headed=True)
    assert [json.loads(one)["is_user"] for one in stored.messages.values()] == [False, True]
    assert (tmp_path / "data" / USER / taken[0].kept).read_bytes() == talk.read_bytes()


@pytest.mark.parametrize(("name", "head", "character", "target"), [
    ("One: two.jsonl", HEADER, None, "character:Pip/One_ two"),
    ("Ann - 2024-9-30.jsonl", b'{"character_name":"unused"}', None, "character:Ann/Ann - 2024-9-30"),
    ("talk.jsonl", line("no header"), None, "character:Imported/talk"),
    ("talk.JSONL", b"{torn", "Bob", "character:Bob/talk"),
])
def test_one_chat_alone_comes_in_byte_for_byte(
    tmp_path: Path, name: str, head: bytes, character: str | None, target: str
) -> None:
    """[IE2] [IE4] As people send it to each other."""
    path = write_files(tmp_path / "mail", {name: head + b"\n" + line("x")}) / name
    taken = import_into(tmp_path / "data", "sillytavern", path, Choices(character))
    assert [(one.action, one.target) for one in taken] == [("imported", target)]
    assert list(contents(tmp_path / "data" / USER).values()) == [path.read_bytes()]
    assert actions(import_into(tmp_path / "data", "sillytavern", path, Choices(character))) == {"known": 1}


@pytest.mark.parametrize("text", ["", "  ", "a/b", "con", "x" * 300, "ü" * 200, "a.jsonl", "a.state.b", ".", "..",
                                  "\u202e", "a\u2028b", "e\u0301", "x.luker-state.y.json", "😀" * 50, "a\x00b",
                                  "\ud800"])
def test_a_made_up_name_is_legal(text: str) -> None:
    assert new_name_problem(legal_name(text)) is None
    assert legal_name(legal_name(text)) == legal_name(text)


def test_the_page_and_the_program_know_the_same_codes() -> None:
    """[IE3] docs/IMPORT.md has a row for each."""
    page = (CHECKOUT / "docs" / "IMPORT.md").read_text()
    rows = [f"| `{code}` | {severity} | {meaning} |" for code, (severity, meaning) in CODES.items()]
    assert [row for row in rows if row not in page] == []
    assert page.count("\n| `") == len(rows) + 9, "a row a code, and the tables of formats"


# -- what is here already ---------------------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_files(tmp_path / "source", {
        "chats/Pip/one.jsonl": chat("a"), "chats/Pip/one.luker-state.n.json": b'{"v":1}', "characters/Pip.png": b"pic",
        "group chats/g.jsonl": line("x"),
        "groups/7.json": b'{\n    "id": "7",\n    "chat_id": "g",\n    "chats": ["g"]\n}',
        "OpenAI Settings/P.json": b"{}",
    })


def test_nothing_is_overwritten_and_names_that_are_taken_come_in_beside(tmp_path: Path, source: Path) -> None:
    """[IE5] Chats with their states, cards, presets and groups; a group names its chats as they are called here."""
    data = tmp_path / "data"
    mine = {
        f"{USER}/chats/Pip/one.jsonl": chat("mine"), f"{USER}/characters/Pip.png": b"mine",
        f"{USER}/group chats/g.jsonl": line("mine"), f"{USER}/groups/7.json": b'{"id":"7","chats":["g"]}',
        f"{USER}/OpenAI Settings/P.json": b"[]",
    }
    write_files(data, mine)
    dry = import_into(data, "luker", source, is_dry=True)
    assert actions(dry) == {"beside": 5}
    skipped = import_into(data, "luker", source, is_dry=True, conflict="skip")
    assert codes(skipped) == ["name-taken"] * 5
    taken = import_into(data, "luker", source)
    assert [one.target for one in taken] == [one.target for one in dry]
    found = contents(data)
    assert {path: found.pop(path) for path in mine} == mine
    group = json.loads(found.pop(f"{USER}/groups/7-imported.json"))
    assert group == {"id": "7-imported", "chat_id": "g (imported)", "chats": ["g (imported)"]}
    assert found == {
        f"{USER}/chats/Pip/one (imported).jsonl": chat("a"), f"{USER}/characters/Pip (imported).png": b"pic",
        f"{USER}/chats/Pip/one (imported).luker-state.n.json": b'{"v":1}',
        f"{USER}/group chats/g (imported).jsonl": line("x"), f"{USER}/OpenAI Settings/P (imported).json": b"{}",
    }
    stood = contents(data)
    assert actions(import_into(data, "luker", source)) == {"known": 5}
    assert contents(data) == stood


def test_twins_in_case_or_form_and_strange_states_are_in_the_way_too(tmp_path: Path, source: Path) -> None:
    """[IE5] What some systems take for one name is taken."""
    data = tmp_path / "data"
    write_files(data, {
        f"{USER}/chats/PIP/x.jsonl": chat("x"), f"{USER}/group chats/G.jsonl": line("mine"),
        f"{USER}/OpenAI Settings/P.luker-state.n.json": b"1",
    })
    write_files(source, {"OpenAI Settings/P.luker-state.n.json": b"2"})
    taken = import_into(data, "luker", source)
    assert sorted(one.target for one in taken if one.target) == [
        "character:Pip", "character:Pip (imported)/one", "group:g (imported)", "groups/7",
        "preset:OpenAI Settings/P (imported)",
    ]
    assert json.loads((data / USER / "groups" / "7.json").read_bytes())["chats"] == ["g (imported)"]
    assert "character-twin" in codes(taken)


def test_what_was_changed_here_since_stays(tmp_path: Path, source: Path) -> None:
    """[IE6] Changed, renamed or deleted here: not imported again, whatever it is called; --again does."""
    data = tmp_path / "data"
    import_into(data, "luker", source)
    here = data / USER
    (here / "chats/Pip/one.jsonl").write_bytes(chat("a", "and mine"))
    (here / "group chats/g.jsonl").unlink()
    (here / "OpenAI Settings/P.json").rename(here / "OpenAI Settings/Q.json")
    stood = contents(data)
    taken = import_into(data, "luker", source)
    assert actions(taken) == {"known": 5}
    assert sorted(codes(taken, severe=False)).count("gone-here") == 2
    assert "changed-here" in codes(taken, severe=False)
    assert contents(data) == stood
    taken = import_into(data, "luker", source, again=True)
    assert actions(taken) == {"imported": 2, "beside": 1, "known": 2}
    assert contents(data).items() > stood.items()


def test_a_source_that_went_on_brings_up_to_date_what_nobody_changed_here(tmp_path: Path, source: Path) -> None:
    """[IE6] What is replaced is kept; what was changed here too is not replaced."""
    data = tmp_path / "data"
    import_into(data, "luker", source)
    write_files(source, {
        "chats/Pip/one.jsonl": chat("a", "b"), "chats/Pip/one.luker-state.n.json": b'{"v":2}',
        "characters/Pip.png": b"new pic", "group chats/g.jsonl": line("x") + b"\n" + line("y"),
    })
    (data / USER / "group chats/g.jsonl").write_bytes(line("x") + b"\n" + line("mine"))
    taken = import_into(data, "luker", source)
    assert actions(taken) == {"updated": 2, "beside": 1, "known": 2}
    found = contents(data / USER)
    assert found["chats/Pip/one.jsonl"] == chat("a", "b")
    assert found["chats/Pip/one.luker-state.n.json"] == b'{"v":2}'
    assert found["characters/Pip.png"] == b"new pic"
    assert found["group chats/g.jsonl"] == line("x") + b"\n" + line("mine")
    assert found["group chats/g (imported).jsonl"] == line("x") + b"\n" + line("y")
    for one in taken:
        if one.action == "updated":
            assert found[one.kept] in (chat("a"), b"pic")
    assert b'{"v":1}' in found.values()
    assert actions(import_into(data, "luker", source)) == {"known": 5}
    assert contents(data / USER) == found


def test_another_source_with_the_same_names_replaces_nothing_unless_it_goes_on(tmp_path: Path, source: Path) -> None:
    """[IE6] Two machines: one has more of the same chat, the other another one of that name."""
    data = tmp_path / "data"
    import_into(data, "luker", source)
    longer = write_files(tmp_path / "longer", {"chats/Pip/one.jsonl": chat("a", "b"), "characters/Pip.png": b"other"})
    assert actions(import_into(data, "luker", longer)) == {"updated": 1, "beside": 1}
    twins = write_files(tmp_path / "twins", {
        "all.jsonl": b"".join(b'{"title":"T","messages":[%b]}\n' % one for one in (
            b'{"role":"user","content":"a"}', b'{"role":"user","content":"a"},{"role":"user","content":"b"}'))})
    assert actions(import_into(data, "openai", twins)) == {"imported": 1, "beside": 1}
    other = write_files(tmp_path / "other", {"chats/Pip/one.jsonl": chat("z")})
    assert only(import_into(data, "luker", other), "beside").target == "character:Pip/one (imported)"
    assert contents(data / USER)["chats/Pip/one.jsonl"] == chat("a", "b")


def test_a_chat_that_was_renamed_in_the_source_is_known(tmp_path: Path, source: Path) -> None:
    """[IE6] By its content; a copy of it, with both there, is another chat."""
    data = tmp_path / "data"
    import_into(data, "luker", source)
    for ending in (".jsonl", ".luker-state.n.json"):
        (source / f"chats/Pip/one{ending}").rename(source / f"chats/Pip/two{ending}")
    taken = import_into(data, "luker", source)
    assert actions(taken) == {"known": 5}
    assert "renamed-there" in codes(taken, severe=False)
    shutil.copytree(source / "chats/Pip", source / "chats/Copy")
    write_files(source, {"chats/Pip/three.jsonl": chat("a"), "chats/Pip/three.luker-state.n.json": b'{"v":1}'})
    write_files(source, {"chats/Pip/one.jsonl": chat("a"), "chats/Pip/one.luker-state.n.json": b'{"v":1}'})
    assert actions(import_into(data, "luker", source)) == {"imported": 3, "known": 5}


@pytest.mark.parametrize("harm", ["lost", "torn", "flipped", "nonsense"])
def test_without_its_memory_an_import_compares_the_files(tmp_path: Path, source: Path, harm: str) -> None:
    """[IE6] The journal is no truth: lost or broken it costs nothing while the files are as they were."""
    data = tmp_path / "data"
    import_into(data, "luker", source)
    journal = data / ".tellback/imports" / f"{USER}.jsonl"
    stood = contents(data)
    whole = journal.read_bytes()
    if harm == "lost":
        journal.unlink()
    else:
        flipped = whole[:40] + bytes([whole[40] ^ 4]) + whole[41:]
        journal.write_bytes({"torn": whole[:-30], "flipped": flipped, "nonsense": b"\xff\x00\n" + whole[:9]}[harm])
    assert actions(import_into(data, "luker", source)) == {"known": 5}
    assert contents(data) == stood
    assert actions(import_into(data, "luker", source)) == {"known": 5}


def test_source_and_destination_in_each_other_are_seen_through_links(tmp_path: Path) -> None:
    """[IE1] By what they are, not by how they are written."""
    (tmp_path / "a/b/c").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    fs = Fs()
    for one, other, expected in (
        ("a", "a/b", True), ("a/b/c", "a", True), ("a", "a", True), ("link/b", "a", True), ("a/b", "link", True),
        ("a/new", "a", True), ("a", "a/new/er", True), ("a/b", "new", False), ("a/b", "a/other", False),
    ):
        assert overlap(fs, str(tmp_path / one), str(tmp_path / other)) is expected, (one, other)


def test_a_link_here_is_not_written_through(tmp_path: Path, source: Path) -> None:
    """[IE5] [F10]"""
    data = tmp_path / "data"
    (data / USER).mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (data / USER / "chats").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileUnsafe):
        import_into(data, "luker", source)
    assert list((tmp_path / "elsewhere").iterdir()) == []


# -- crashes, disks, sizes -------------------------------------------------------------------------------------------

POINTS = [
    "import.after_state", "import.after_states", "import.after_file", "import.after_journal", "fs.atomic.before_write",
    "fs.atomic.after_write", "fs.atomic.after_sync", "fs.atomic.after_rename", "fs.atomic.after_directory_sync",
    "fs.fsync_directory",
]


@pytest.mark.parametrize("point", POINTS)
def test_an_import_that_was_killed_goes_on_where_it_was(tmp_path: Path, source: Path, point: str) -> None:
    """[IE7] At the first, a middle and a late hit of every point: then everything is there once, and only once."""
    write_files(source, {f"chats/Pip/{one}.jsonl": chat(one) for one in "bcd"})
    wanted = {f"{USER}/{path}": data for path, data in contents(source).items()}
    before = tree(source)
    killed = 0
    for hit in (1, 3, 6):
        data = tmp_path / f"data{hit}"
        killed += killed_import(f"{point}=kill@{hit}", data, "luker", source)
        standing = contents(data) if data.exists() else {}
        # What is there is whole, and a chat is there only with its states.
        for path, found in standing.items():
            assert path.endswith(".tellback-tmp") or wanted[path] == found
        if f"{USER}/chats/Pip/one.jsonl" in standing:
            assert f"{USER}/chats/Pip/one.luker-state.n.json" in standing
        killed_import(f"{point}=kill@2", data, "luker", source)
        taken = import_into(data, "luker", source)
        assert set(actions(taken)) <= {"imported", "known"}
        assert contents(data) == wanted
    assert killed >= 1
    assert tree(source) == before


@pytest.mark.parametrize("point", ["import.after_kept", "fs.atomic.after_rename", "import.after_journal"])
def test_bringing_up_to_date_survives_a_kill(tmp_path: Path, source: Path, point: str) -> None:
    """[IE7] The old state is kept before the new one comes."""
    data = tmp_path / "data"
    import_into(data, "luker", source)
    write_files(source, {"chats/Pip/one.jsonl": chat("a", "b"), "chats/Pip/one.luker-state.n.json": b'{"v":2}'})
    assert killed_import(f"{point}=kill", data, "luker", source)
    taken = import_into(data, "luker", source)
    assert set(actions(taken)) <= {"updated", "known"}
    found = contents(data / USER)
    assert found["chats/Pip/one.jsonl"] == chat("a", "b")
    assert found["chats/Pip/one.luker-state.n.json"] == b'{"v":2}'
    assert chat("a") in [one for path, one in found.items() if path.startswith("backups/")]


class FullFs(Fs):
    """A disk that is full after so many files."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def create(self, path: str) -> Any:
        self.room -= 1
        if self.room < 0:
            raise OSError(errno.ENOSPC, "No space left on device", path)
        return super().create(path)


def test_a_full_disk_ends_it_and_there_is_no_half_of_anything(tmp_path: Path, source: Path) -> None:
    """[IE7] Then there is room again and it goes on."""
    data = tmp_path / "data"
    wanted = {f"{USER}/{path}": found for path, found in contents(source).items()}
    rooms = 0
    for room in range(30):
        try:
            import_into(data, "luker", source, fs=FullFs(room))
            break
        except OSError as error:
            assert error.errno == errno.ENOSPC
            rooms += 1
        assert contents(data).items() <= wanted.items()
    assert rooms > 2
    assert contents(data) == wanted


def test_a_file_of_many_conversations_is_never_in_memory(tmp_path: Path) -> None:
    """[IE8] One line after the other; a second run knows each of them."""
    line = json.dumps({"messages": [{"role": "user", "content": "word " * 20_000}]}).encode()
    path = write_files(tmp_path / "source", {"all.jsonl": b"\n".join([line] * 60)}) / "all.jsonl"
    found = 0
    tracemalloc.start()
    try:
        reading = source_of("openai", path)
        reading.plan()
        for item in reading.items():
            found += isinstance(item, Item) and item.target == CharacterChat("Imported", f"all #{found + 1}")
        _now, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found == 60
    assert peak_bytes < path.stat().st_size


def test_many_chats_take_no_more_memory_than_a_few(tmp_path: Path) -> None:
    """[IE8] TELLBACK_IMPORT_CHATS=10000 takes the full number."""
    count = int(os.environ.get("TELLBACK_IMPORT_CHATS", "120"))
    text = "word " * 4000
    source = tmp_path / "source"
    write_files(source, {f"chats/C{number % 7}/n{number}.jsonl": chat(str(number), text) for number in range(count)})
    data = tmp_path / "data"
    tracemalloc.start()
    try:
        taken = import_into(data, "luker", source)
        _now, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert actions(taken) == {"imported": count}
    # A report and the journal's memory: a few KiB an item; the files themselves would be twenty times as much.
    assert peak_bytes < 4_000_000 + count * 6_000, peak_bytes
    assert actions(import_into(data, "luker", source)) == {"known": count}
