"""There and back again: what is exported, imported and exported once more is the same (STORAGE IE9)."""

from __future__ import annotations

import json
import struct
import zlib
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest

from tellback_protocol.chat import with_id
from tellback_protocol.ids import derived_message_id
from tellback_server.store.jsonl import parse_chat
from tellback_server.transfer.exporter import Form
from tellback_server.transfer.file_source import Choices
from tellback_server.transfer.served_chat import line_as_filed
from tests.support.importing import USER, contents, export_to, import_into, write_files
from tests.support.real_data import copy_real_data, real_user, tree


def messages_of(data: Path) -> dict[str, list[dict[str, Any]]]:
    """The messages of every chat."""
    return {
        path: [json.loads(line) for line in parse_chat(found, headed=path.startswith("chats")).messages.values()]
        for path, found in contents(data / USER).items() if path.endswith(".jsonl") and "backups" not in path
    }


@pytest.mark.parametrize("form", ["cardshark", "openai", "text"])
def test_the_real_chats_come_back_through_every_format(tmp_path: Path, form: Form) -> None:
    """[IE9] import, export, import: equal; and the second export is the first one, byte for byte."""
    source = copy_real_data(tmp_path / "source")
    before = tree(source)
    export_to(tmp_path / "one", form, source)
    choices = Choices(me=("Traveller", "旅人")) if form == "text" else None
    import_into(tmp_path / "first", form, tmp_path / "one", choices)
    export_to(tmp_path / "two", form, tmp_path / "first")
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    import_into(tmp_path / "second", form, tmp_path / "two", choices)
    ours, first, second = map(messages_of, (source, tmp_path / "first", tmp_path / "second"))
    assert first == second
    kept = {path: found for path, found in ours.items() if form != "cardshark" or path.startswith("chats")}
    assert first.keys() == kept.keys()
    for path, messages in kept.items():
        if form == "cardshark":
            assert first[path] == messages
        else:
            said = [(one["name"], one["extra"].get("display_text", one["mes"]) if one.get("extra") else one["mes"])
                    if form == "text" else (one["name"], one["mes"]) for one in messages]
            assert [(one["name"], one["mes"]) for one in first[path]] == said
            # A transcript tells who speaks, and only by name.
            roles = [one["name"] in ("Traveller", "旅人") if form == "text" else one["is_user"] for one in messages]
            assert [one["is_user"] for one in first[path]] == roles
    assert tree(source) == before


def card(chat: str) -> bytes:
    """A picture with a card that remembers its chat."""
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    value = b64encode(json.dumps({"name": "Ann", "chat": chat, "data": {"extensions": {"uuid": "u-1"}}}).encode())
    return b"\x89PNG\r\n\x1a\n" + chunk(b"tEXt", b"chara\0" + value) + chunk(b"IEND", b"")


def test_cardshark_gets_its_maps_and_names(tmp_path: Path) -> None:
    """[IE9] Ids from the card, one folder a character also where names clean up alike, no file twice."""
    head = '{"character_name":"unused","create_date":"2024-03-01T10:15:00.000Z","chat_metadata":{}}'
    data = write_files(tmp_path / "data" / USER, {
        "characters/Ann.png": card("second"), "chats/Ann/first.jsonl": head, "chats/Ann/second.jsonl": head,
        "chats/B<b/x.jsonl": head, "chats/B>b/x.jsonl": head + '\n{torn\n{"id":"m1","mes":"x","extra":{}}',
        "chats/Ann/first.luker-state.n.json": b"{}", "group chats/g.jsonl": b"", "OpenAI Settings/P.json": b"{}",
    }).parent
    given = export_to(tmp_path / "out", "cardshark", data)
    found = contents(tmp_path / "out")
    folders = json.loads(found["chats/folders.json"])
    assert folders.pop("u-1") == "Ann"
    assert sorted(folders.values()) == ["B_b", "B_b 2"]
    active = json.loads(found["chats/active_chats.json"])
    assert json.loads(found["chats/Ann/chat_1_Ann_20240301_101500.jsonl"])["chat_metadata"]["chat_id"] == active["u-1"]
    torn = found["chats/B_b 2/chat_B_b_20240301_101500.jsonl"].split(b"\n")
    assert torn[1] == b"{torn"
    assert json.loads(torn[2]) == {"id": "m1", "mes": "x", "extra": {"id": "m1"}}
    notes = {(one.source, note.code) for one in given for note in one.notes}
    assert notes >= {("chats/Ann/first.jsonl", "export-without"), ("group chats/g.jsonl", "export-without"),
                     ("chats/B>b/x.jsonl", "line-not-json")}
    assert import_into(tmp_path / "back", "cardshark", tmp_path / "out")
    assert sorted(contents(tmp_path / "back" / USER)) == [
        "characters/Ann.png", "chats/Ann/first.jsonl", "chats/Ann/second.jsonl", "chats/B_b 2/x.jsonl",
        "chats/B_b/x.jsonl",
    ]


def test_nothing_is_overwritten_by_an_export(tmp_path: Path) -> None:
    """[IE9] What is there and differs stays; what is the same is left alone."""
    out = tmp_path / "out"
    export_to(out, "sillytavern", copy_real_data(tmp_path))
    changed = out / "chats" / "Pip" / "Pip - 2024-11-01@12h00m00s.jsonl"
    changed.write_bytes(b"mine")
    stood = tree(out)
    given = export_to(out, "sillytavern", tmp_path / "data")
    assert tree(out) == stood
    assert [note.code for one in given for note in one.notes] == ["export-differs"]
    assert {one.action for one in given} == {"same", "left-out"}


def test_sillytavern_gets_no_states_and_luker_all_of_them(tmp_path: Path) -> None:
    """[IE9] A state beside a preset would be a preset to SillyTavern."""
    files = {
        "chats/A/a.jsonl": b'{"chat_metadata":{}}', "chats/A/a.luker-state.n.json": b"{}",
        "chats/A/a.luker-state.chat_sync.json": b'{"integrity":"x","updated_at":1}', "OpenAI Settings/P.json": b"{}",
        "OpenAI Settings/P.luker-state.n.json": b"{}",
    }
    data = write_files(tmp_path / "data" / USER, files).parent
    export_to(tmp_path / "luker", "luker", data)
    assert contents(tmp_path / "luker") == files
    given = export_to(tmp_path / "st", "sillytavern", data)
    assert sorted(contents(tmp_path / "st")) == ["OpenAI Settings/P.json", "chats/A/a.jsonl"]
    assert [note.code for one in given for note in one.notes] == ["export-without"] * 2


def test_a_served_line_gets_its_bytes_back_only_when_its_id_was_derived() -> None:
    """[M3] The id tells of which bytes it is made."""
    for line in (b'{"name":"A","mes":"x"}', b"{}", b'{ "mes" : "x" }'):
        derived = derived_message_id(line, 3)
        assert line_as_filed(with_id(line, derived)) == line
        changed = with_id(line, "0123456789abcdef-0")
        assert line_as_filed(changed) == changed
    for line in (b'{"id":"m1","mes":"x"}', b'{"id":5}', b"[]", b"{torn", b'{"mes":"x"}'):
        assert line_as_filed(line) == line
    whole = [line for path in sorted((real_user() / "chats" / "Pip").iterdir())
             for line in path.read_bytes().split(b"\n")[1:]]
    assert [line_as_filed(with_id(line, derived_message_id(line, 0))) for line in whole] == whole
