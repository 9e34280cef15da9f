"""Demo: a small folder of chats in SillyTavern's layout, made by code: two characters, a group, a few chats.

Rules this module keeps:

- It writes into a folder without chats only; what is there is never touched.
- The files look as SillyTavern writes them: a header line, a message a line, no line end at the end, cards inside PNG.
"""

from __future__ import annotations

import base64
import json
import os
import struct
import zlib
from typing import Any, Final

from tellback_server.fs import Fs

__all__ = ["LIVE_CHAT", "has_chats", "remove_folder", "write_demo"]

LIVE_CHAT: Final = "character:Odile/Lost property"
"""The chat that the texts of the demo point to."""

_USER: Final = "You"
_DAY: Final = "2026-11-20T"
_GROUP_CHAT: Final = "2026-11-20@22h15m00s"

Line = tuple[str, str]

_CHARACTERS: Final[dict[str, tuple[str, str, tuple[int, int, int]]]] = {
    "Odile": (
        "Conductor of the last night train. Knows every passenger's destination and never says how.",
        "*She tears the corner off your ticket without looking at it.* Carriage four. Mind the gentleman with the owl.",
        (38, 54, 96),
    ),
    "Quill": (
        "A library automaton from 1911, wound up once a week, with opinions about semicolons.",
        "*Something ticks behind the card catalogue.* Reader number 40,612! You are late by eleven years. Sit, sit.",
        (122, 78, 34),
    ),
}

_CHATS: Final[dict[tuple[str, str], list[Line]]] = {
    ("Odile", "The 23.40 to Trieste"): [
        ("Odile", _CHARACTERS["Odile"][1]),
        (_USER, "I only have a ticket as far as Udine."),
        ("Odile", "So did he, once. *She nods at the owl.* Udine is a state of mind until two in the morning."),
        (_USER, "And after two?"),
        ("Odile", "After two it is a platform with a vending machine. You will like the vending machine."),
        (_USER, "What does it sell?"),
        ("Odile", "Umbrellas and apologies. *She checks her watch.* Exact change only."),
    ],
    ("Odile", "Lost property"): [
        ("Odile", "One glove, left. One violin, in tune. One letter, never opened. Which of them is yours?"),
        (_USER, "The letter, I think."),
        ("Odile", "Then sign here. People always think it is the letter."),
    ],
    ("Quill", "Cataloguing the attic"): [
        ("Quill", _CHARACTERS["Quill"][1]),
        (_USER, "There are nine boxes up there and none of them has a label."),
        ("Quill", "None has a label *that you can read*. Box three hums. Begin with box three."),
        (_USER, "It is full of bells. Very small bells; hundreds; all different."),
        ("Quill", "A semicolon used twice, correctly! I shall wind myself an extra day. They are a dictionary."),
    ],
}

_GROUP_LINES: Final[list[Line]] = [
    ("Quill", "Madam, your train is in my reading room."),
    ("Odile", "Your reading room is on my timetable, sir. Between Gorizia and the weather."),
    (_USER, "Could somebody pass the tea?"),
    ("Quill", "Gladly; it is filed under T."),
]


def write_demo(fs: Fs, data: str) -> None:
    """Fills `data` with the demo. The caller has looked that there are no chats. Raises FsError, OSError."""
    root = os.path.join(data, "default-user")
    for name, (description, greeting, colour) in _CHARACTERS.items():
        _write(fs, os.path.join(root, "characters", f"{name}.png"), _card(name, description, greeting, colour))
    for (name, chat), lines in _CHATS.items():
        header = {
            "user_name": _USER, "character_name": name, "create_date": f"{_DAY}20:00:00.000Z", "chat_metadata": {},
        }
        _write(fs, os.path.join(root, "chats", name, f"{chat}.jsonl"), _jsonl(header, lines))
    header = {"user_name": _USER, "character_name": "Night shift", "chat_metadata": {}}
    _write(fs, os.path.join(root, "group chats", f"{_GROUP_CHAT}.jsonl"), _jsonl(header, _GROUP_LINES))
    group = {
        "id": "1795229131318",
        "name": "Night shift",
        "members": [f"{name}.png" for name in _CHARACTERS],
        "chat_id": _GROUP_CHAT,
        "chats": [_GROUP_CHAT],
    }
    _write(fs, os.path.join(root, "groups", "1795229131318.json"), json.dumps(group, indent=4).encode())


def has_chats(fs: Fs, data: str) -> bool:
    """Whether somebody's chats are in the folder already."""
    folders = (os.path.join(data, "chats"), os.path.join(data, "default-user", "chats"))
    return any(fs.stat(folder) is not None for folder in folders)


def remove_folder(fs: Fs, path: str) -> None:
    """Removes a folder that the demo made, with everything in it. Links are removed, never followed."""
    for name in fs.listdir(path):
        inside = os.path.join(path, name)
        found = fs.stat(inside)
        if found is not None and found.is_directory:
            remove_folder(fs, inside)
        else:
            fs.unlink(inside)
    fs.remove_directory(path)


def _write(fs: Fs, path: str, data: bytes) -> None:
    fs.make_directories(os.path.dirname(path))
    fs.write_atomically(path, data)


def _jsonl(header: dict[str, Any], lines: list[Line]) -> bytes:
    values = [header]
    for minute, (name, text) in enumerate(lines):
        message: dict[str, Any] = {
            "name": name,
            "is_user": name == _USER,
            "is_system": False,
            "send_date": f"{_DAY}20:{minute:02}:00.000Z",
            "mes": text,
            "extra": {},
        }
        if name != _USER:
            message |= {"swipe_id": 0, "swipes": [text], "swipe_info": [{"extra": {}}]}
        values.append(message)
    return "\n".join(json.dumps(value, ensure_ascii=False, separators=(",", ":")) for value in values).encode()


def _card(name: str, description: str, greeting: str, colour: tuple[int, int, int]) -> bytes:
    """A character card: a small picture with the character as base64 JSON in the text chunk `chara`."""
    character = {
        "spec": "chara_card_v2",
        "spec_version": "2.0",
        "data": {
            "name": name, "description": description, "personality": "", "scenario": "", "first_mes": greeting,
            "mes_example": "", "creator_notes": "Made by tellback demo.", "system_prompt": "",
            "post_history_instructions": "", "alternate_greetings": [], "tags": ["demo"], "creator": "tellback",
            "character_version": "1", "extensions": {},
        },
    }
    text = b"chara\0" + base64.b64encode(json.dumps(character).encode())
    width, height = 48, 72
    rows = bytearray()
    for y in range(height):
        rows.append(0)  # Filter type "none" before each row.
        for x in range(width):
            rows += bytes(min(255, part + y + x // 2) for part in colour)
    # Width, height, 8 bits a sample, colour type RGB, and the only methods that exist (PNG specification, section 11).
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"tEXt", text), (b"IDAT", zlib.compress(bytes(rows))), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, body) for kind, body in chunks)


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
