"""Damage: what a disk or a crash makes of a file's bytes, and a folder with a file of every kind to try it on.

TELLBACK_DAMAGE_SHARE (0 to 1) says how much of the whole is tried; the ordinary run takes a seeded part.
"""

from __future__ import annotations

import base64
import os
import random
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import msgspec
import orjson

from tellback_protocol.decide import Committed
from tellback_protocol.ids import CharacterChat, CharacterOwner
from tellback_protocol.requests import FloorUpdate
from tellback_server.checks.findings import Finding
from tellback_server.checks.inspection import Inspection
from tellback_server.checks.scope import find_scope
from tellback_server.clock import Clock
from tellback_server.fs import Fs
from tellback_server.registrar import FormerName, Registered, write_registered
from tellback_server.repairs.repairer import Plan, Repairer
from tellback_server.sealed import seal
from tellback_server.sessions import SessionFile, write_sessions
from tellback_server.store.chat_index import ChatIndex
from tellback_server.store.files import DEFAULT_USER
from tellback_server.trash import Entry, Trash
from tests.support.chat_desk import Desk

SHARE = float(os.environ.get("TELLBACK_DAMAGE_SHARE", "0.03"))
SECTOR_BYTES = 512
CASES_MAX = 100


def flips(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Every bit of it turned, one at a time."""
    for bit in range(len(data) * 8):
        turned = bytearray(data)
        turned[bit >> 3] ^= 1 << (bit & 7)
        yield f"bit {bit & 7} of byte {bit >> 3}", bytes(turned)


def truncations(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Cut off at every byte."""
    for size in range(len(data)):
        yield f"cut at {size}", data[:size]


def sectors(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Each sector lost: zeros, garbage, or the one that belongs beside it; and a tail of zeros."""
    garbage = random.Random(7).randbytes(SECTOR_BYTES)
    pieces = [data[at : at + SECTOR_BYTES] for at in range(0, len(data), SECTOR_BYTES)]
    for number, piece in enumerate(pieces):
        for what, other in (("zeroed", bytes(len(piece))), ("garbage", garbage[: len(piece)])):
            yield f"sector {number} {what}", b"".join([*pieces[:number], other, *pieces[number + 1 :]])
        if number + 1 < len(pieces):
            swapped = [*pieces[:number], pieces[number + 1], piece, *pieces[number + 2 :]]
            yield f"sectors {number} and {number + 1} swapped", b"".join(swapped)
            yield f"sector {number} twice", b"".join([*pieces[: number + 1], piece, *pieces[number + 2 :]])
    yield "zeros behind", data + bytes(SECTOR_BYTES)


def some(cases: Iterator[tuple[str, bytes]], data: bytes, seed: str) -> list[tuple[str, bytes]]:
    """The share of the cases that this run takes, at most a hundred of them unless it is all; those that change nothing
    are none.
    """
    chance = random.Random(seed)
    chosen = [(what, damaged) for what, damaged in cases if chance.random() < SHARE and damaged != data]
    return chosen if SHARE >= 1 or len(chosen) <= CASES_MAX else chance.sample(chosen, CASES_MAX)


def rot(path: Path, data: bytes) -> None:
    """Puts other bytes into a file as a disk does: nobody wrote, so neither the time nor the inode changes."""
    stat = path.stat()
    with path.open("r+b") as file:
        file.write(data)
        file.truncate(len(data))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def png(name: str) -> bytes:
    """A card of one pixel."""
    card = base64.b64encode(orjson.dumps({"name": name, "data": {"name": name}}))

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"\0\0"))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"tEXt", b"chara\0" + card) + pixels + chunk(b"IEND", b"")


class Kinds(msgspec.Struct):
    """A data folder with a file of every kind; paths below it."""

    data: Path
    chat_id: str
    files: dict[str, str]

    def path(self, kind: str) -> Path:
        return self.data / self.files[kind]


async def folder_of_every_kind(data: Path) -> Kinds:
    """Made by the real parts, and then left."""
    desk = Desk(data)
    await desk.create()
    first, _second = await desk.append("The tide is out.", "Then we walk. " * 12)
    await desk.metadata(note_prompt="salt")
    await desk.state("memory", {"seen": ["lighthouse"], "count": 3})
    await desk.checkpoint()
    await desk.patch(first, mes="The tide is in.")
    await desk.append("And the boat?")
    await desk.state("memory", {"seen": ["lighthouse", "boat"], "count": 4})
    await floor(desk, {"op": "add", "path": "/tide", "value": "high"})
    await desk.checkpoint()
    # Another program writes the view; what it wrote becomes the orphans with our next commit.
    desk.path.with_name("talk.luker-state.score.json").write_bytes(b'{"theirs":true}')
    await desk.settle()
    await desk.adopt()
    await floor(desk, {"op": "add", "path": "/moon", "value": "full"})
    await desk.checkpoint()
    files, chat_id = desk.files, desk.stream.chat_id
    write_sessions(files, SessionFile.take(desk.stream, desk.held, desk.clock.now_ms()))
    user = data / DEFAULT_USER if (data / DEFAULT_USER).exists() else data
    (user / "characters").mkdir()
    (user / "characters" / "Pip.png").write_bytes(png("Pip"))
    (user / "groups").mkdir()
    (user / "groups" / "77.json").write_text('{"id":"77","members":["Pip.png"],"chats":["crew"],"chat_id":"crew"}')
    (user / "group chats").mkdir()
    (user / "group chats" / "crew.jsonl").write_text('{"name":"Pip","mes":"Aye."}')
    (user / "OpenAI Settings").mkdir()
    (user / "OpenAI Settings" / "Default.json").write_text('{"temperature": 0.7}')
    lost = user / "chats" / "Pip" / "gone.jsonl"
    lost.write_text('{"user_name":"unused","character_name":"unused"}\n{"mes":"bye"}')
    entry = Entry(id=desk.clock.uuid4(), name="character:Pip/gone", deleted_ms=1_763_700_000_000, reason="deleted",
                  files=["chats/Pip/gone.jsonl"])
    Trash(files).put(DEFAULT_USER, entry)
    write_registered(files, Registered(
        user=DEFAULT_USER, chat_id=chat_id, name="character:Pip/talk", former=[FormerName("character:Pip/old", 5)]
    ))
    active = data / ".tellback" / "sessions" / DEFAULT_USER / "active-chats.json"
    active.write_bytes(seal(
        b'{"user":"default-user","seq":1,"chats":{"character:Pip":{"chat_id":"%b","name":"character:Pip/talk","seq":1,'
        b'"at_ms":5}}}' % chat_id.encode()
    ))
    desk.stop()
    owner = Desk(data, CharacterOwner("Pip"))
    await owner.open()
    await owner.state("mood", {"calm": True, "since": "the tide went out"})
    await owner.checkpoint()
    write_sessions(files, SessionFile.take(owner.stream, owner.held, owner.clock.now_ms()))
    owner.stop()
    index = ChatIndex(files, DEFAULT_USER, Clock())
    index.look()
    index.save()
    below = "" if user == data else f"{DEFAULT_USER}/"
    segment = sorted((data / ".tellback" / "log").glob("*.log"))[-1]
    own = ".tellback"
    return Kinds(data, chat_id, {
        "chat": f"{below}chats/Pip/talk.jsonl",
        "sync": f"{below}chats/Pip/talk.luker-state.chat_sync.json",
        "state": f"{below}chats/Pip/talk.luker-state.memory.json",
        "floor-state": f"{below}chats/Pip/talk.luker-state.score.json",
        "floor-log": f"{below}chats/Pip/talk.luker-state.score__floor_log.json",
        "orphans": f"{below}chats/Pip/talk.luker-state.score__orphans.json",
        "owner-state": f"{below}characters/Pip.state.mood.json",
        "owner-sync": f"{below}characters/Pip.state.chat_sync.json",
        "group-chat": f"{below}group chats/crew.jsonl",
        "card": f"{below}characters/Pip.png",
        "group": f"{below}groups/77.json",
        "preset": f"{below}OpenAI Settings/Default.json",
        "manifest": f"{below}trash/{entry.folder}/manifest.json",
        "session": f"{own}/sessions/{DEFAULT_USER}/{chat_id}.json",
        "active": f"{own}/sessions/{DEFAULT_USER}/active-chats.json",
        "name": f"{own}/names/{DEFAULT_USER}/{chat_id}.json",
        "index": f"{own}/index/{DEFAULT_USER}.jsonl",
        "term": f"{own}/term",
        "log": f"{own}/log/{segment.name}",
    })


async def floor(desk: Desk, *operations: dict[str, object]) -> None:
    """A commit of the floor state `score`."""
    document = desk.stream.states.get("score")
    base = document.version.integrity if document and document.data is not None and document.version else None
    patch = msgspec.Raw(orjson.dumps(operations))
    decision = await desk.write(FloorUpdate("c", "score", patch, id=1, op=desk.op + 1, base=base))
    assert isinstance(decision, Committed)


def checked(path: Path) -> list[Finding]:
    """What a check of a folder or a file finds."""
    fs = Fs()
    inspection = Inspection(fs, find_scope(fs, str(path)), lambda _seconds: None)
    inspection.plan()
    return [finding for step in inspection.run() for finding in step.findings]


def codes(path: Path) -> set[str]:
    """The codes that are worse than an info."""
    return {finding.code for finding in checked(path) if finding.severity != "info"}


def repaired(data: Path, fs: Fs | None = None) -> Plan:
    """A repair with a yes to everything."""
    fs = fs or Fs()
    scope = find_scope(fs, str(data))
    inspection = Inspection(fs, scope, lambda _seconds: None)
    inspection.plan()
    findings = [finding for step in inspection.run() for finding in step.findings]
    repairer = Repairer(fs, Clock(), scope, inspection)
    plan = repairer.plan(findings)
    repairer.carry_out(plan.choices)
    return plan


PLACE = CharacterChat("Pip", "talk")
