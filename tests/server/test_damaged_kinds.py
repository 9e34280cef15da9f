"""Files of every kind, broken or older than the rest: opened, checked, repaired, and the bytes still somewhere."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tellback_protocol.ids import CharacterOwner, GroupChat
from tellback_server.log import LogCorrupt
from tellback_server.sessions import SessionFile, write_sessions
from tellback_server.store.files import DEFAULT_USER
from tests.support.chat_desk import Desk
from tests.support.damage import checked, codes, floor, folder_of_every_kind, png, repaired

STATES = ("state", "floor-log", "orphans", "owner-state")


def is_somewhere(data: Path, wanted: bytes) -> bool:
    """Whether these bytes stand in some file, the log's included."""
    return any(wanted in path.read_bytes() for path in data.rglob("*") if path.is_file())


async def went_on(data: Path, place: CharacterOwner | None = None) -> None:
    """The chat, or what the character has, is opened, written to and folded, as a server does."""
    desk = Desk(data) if place is None else Desk(data, place)
    await desk.open()
    if place is not None:
        await desk.state("after", {"it": "went on"})
    elif not desk.stream.damage:
        await desk.append("and on")
    await desk.settle()
    write_sessions(desk.files, SessionFile.take(desk.stream, desk.held, desk.clock.now_ms()))
    desk.stop()


def shown(desk: Desk) -> tuple[list[str], dict[str, bytes | None]]:
    states = {name: document.data for name, document in desk.stream.states.items() if not document.corrupt}
    return desk.texts(), states


async def test_an_older_copy_of_any_file_loses_nothing_and_is_never_taken_for_the_newest(tmp_path: Path) -> None:
    """[F7, X4, X13] RELIABILITY "replace a file with an older copy": what was acknowledged is shown, or in a backup or
    the log; what is shown otherwise has an epoch of its own.
    """
    kinds = await folder_of_every_kind(tmp_path / "data")
    older = tmp_path / "older"
    shutil.copytree(kinds.data, older, copy_function=shutil.copy2)
    desk = Desk(kinds.data)
    await desk.open()
    first = desk.stream.chat.order()[0]
    await desk.patch(first, mes="The tide turned.")
    await desk.append("Home, then.")
    await desk.state("memory", {"seen": [], "count": 5})
    await floor(desk, {"op": "add", "path": "/wind", "value": "west"})
    await desk.settle()
    desk.path.with_name("talk.luker-state.score.json").write_bytes(b'{"again":"theirs"}')
    await desk.adopt()
    await floor(desk, {"op": "add", "path": "/sail", "value": "up"})
    await desk.settle()
    write_sessions(desk.files, SessionFile.take(desk.stream, desk.held, desk.clock.now_ms()))
    epoch, (texts, states) = desk.stream.head.epoch, shown(desk)
    desk.stop()
    await went_on(kinds.data, CharacterOwner("Pip"))
    assert codes(kinds.data) == set()

    for kind in ("chat", "sync", "state", "floor-state", "floor-log", "orphans", "owner-state", "owner-sync", "session",
                 "active", "name", "index"):
        data = tmp_path / kind
        shutil.copytree(kinds.data, data, copy_function=shutil.copy2)
        newest = (data / kinds.files[kind]).read_bytes()
        (data / kinds.files[kind]).unlink()
        shutil.copy2(older / kinds.files[kind], data / kinds.files[kind])
        codes(data)
        for place in (None, CharacterOwner("Pip")):
            await went_on(data, place)
        repaired(data)
        # An older chat lacks a message that a commit of the floor state belongs to.
        assert codes(data) == ({"floor-message-missing"} if kind == "chat" else set()), kind
        desk = Desk(data)
        loaded = await desk.open()
        assert loaded.stream.damage == [], kind
        after_texts, after_states = shown(desk)
        assert (after_texts[: len(texts)], {name: after_states.get(name) for name in states}) == (texts, states) or (
            loaded.stream.head.epoch > epoch
        ), f"{kind}: other contents in the same epoch"
        desk.stop()
        pieces = newest.split(b"\n")[1:] if kind == "chat" else [newest] if kind in ("state", "orphans") else []
        for piece in pieces:
            assert is_somewhere(data, piece), f"{kind}: {piece!r} is lost"
        shutil.rmtree(data)


@pytest.mark.parametrize("broken", [b"{torn", b"[1]", b"\xff\xfe{}"], ids=repr)
async def test_states_of_every_kind_come_back_from_the_log(broken: bytes, tmp_path: Path) -> None:
    """[X7, X9] Logs of floor states, orphans, and what a character has too: proved by the checksum, the broken bytes
    kept.
    """
    kinds = await folder_of_every_kind(tmp_path / "data")
    whole = {kind: kinds.path(kind).read_bytes() for kind in STATES}
    for kind in STATES:
        kinds.path(kind).write_bytes(broken)
    desk = Desk(kinds.data)
    loaded = desk.start().read()
    assert type(loaded).__name__ == "LoadedStream", "it opens, whatever its states are"
    desk.stop()
    plan = repaired(kinds.data)
    mended = {choice.path for choice in plan.choices}
    for kind in STATES:
        if broken == b"[1]" and kind != "floor-log":
            # A state may be any JSON: who wrote that is another program.
            continue
        assert kinds.files[kind] in mended, kind
        assert kinds.path(kind).read_bytes() == whole[kind], kind
    repairs = kinds.data / DEFAULT_USER / "backups" / "tellback" / "repairs"
    assert broken in [path.read_bytes() for path in repairs.rglob("*.json")]
    assert codes(kinds.data) == set()


async def test_a_floor_log_that_the_log_knows_no_more_comes_from_a_backup(tmp_path: Path) -> None:
    """[X7] By its checksum only."""
    kinds = await folder_of_every_kind(tmp_path / "data")
    whole = kinds.path("floor-log").read_bytes()
    kept = kinds.data / DEFAULT_USER / "backups" / "tellback" / kinds.chat_id
    kept.mkdir(parents=True, exist_ok=True)
    (kept / "3-1763700000000.score__floor_log.json").write_bytes(whole)
    (kept / "4-1763700000001.score__floor_log.json").write_bytes(whole.replace(b"high", b"hihi"))
    shutil.rmtree(kinds.data / ".tellback" / "log")
    (kinds.data / ".tellback" / "term").unlink()
    kinds.path("floor-log").write_bytes(b"{broken")
    repaired(kinds.data)
    assert kinds.path("floor-log").read_bytes() == whole


GROUP = [b'{"name":"Pip","mes":"Aye."}', b'{"name":"U","mes":"Off we go."}', b'{"name":"Pip","mes":"Bye."}']


@pytest.mark.parametrize(("content", "expected"), [
    (b"\n".join([GROUP[0], GROUP[1], GROUP[2][:9]]), ["Aye.", "Off we go."]),
    (b"\n".join([GROUP[0][:7], GROUP[1], GROUP[2]]), ["Off we go.", "Bye."]),
    (b"\n".join([GROUP[0], b"\0" * 30, GROUP[2]]), ["Aye.", "Bye."]),
    (GROUP[0] + GROUP[1] + b"\n" + GROUP[2], ["Aye.", "Off we go.", "Bye."]),
], ids=["torn", "first line", "zeros", "joined"])
async def test_a_group_chat_without_a_header_is_mended_and_gets_none(
    content: bytes, expected: list[str], tmp_path: Path
) -> None:
    """[X7, X8, F12] Read-only until then; its metadata stay in the group's file."""
    kinds = await folder_of_every_kind(tmp_path / "data")
    path = kinds.path("group-chat")
    path.write_bytes(content)
    desk = Desk(kinds.data, GroupChat("crew"))
    loaded = await desk.open()
    assert loaded.stream.damage
    desk.stop()
    assert codes(path)
    repaired(kinds.data)
    assert b"chat_metadata" not in path.read_bytes()
    assert is_somewhere(kinds.data / DEFAULT_USER / "backups", content)
    await desk.open()
    assert (desk.texts(), desk.stream.damage) == (expected, [])
    await desk.append("Again.")
    await desk.settle()
    desk.stop()


@pytest.mark.parametrize("kind", ["group", "preset", "card"])
async def test_what_only_other_programs_write_is_told_and_left(kind: str, tmp_path: Path) -> None:
    """[X2, X7] Nothing of ours knows their bytes."""
    kinds = await folder_of_every_kind(tmp_path / "data")
    path = kinds.path(kind)
    data = path.read_bytes()
    for size in range(0, len(data), max(1, len(data) // 12)):
        path.write_bytes(data[:size])
        assert codes(kinds.data) & {f"{kind}-not-json", "card-broken", "card-not-png"}
        plan = repaired(kinds.data)
        assert path.read_bytes() == data[:size]
        assert plan.choices == []


async def test_a_segment_of_another_server_or_under_another_name_fails_closed(tmp_path: Path) -> None:
    """[S3, S4, X10] The start refuses and changes nothing; a repair puts the old log aside whole; the chat opens."""

    async def made(data: Path) -> Desk:
        desk = Desk(data)
        for number in range(3):
            await (desk.create() if not number else desk.open())
            await desk.append(f"message {number}")
            await desk.checkpoint()
            desk.stop()
        return desk

    desk = await made(tmp_path / "data")
    await made(tmp_path / "other")
    log = desk.data / ".tellback" / "log"
    names = sorted(path.name for path in log.iterdir())
    assert len(names) >= 3
    foreign = (tmp_path / "other" / ".tellback" / "log" / names[1]).read_bytes()
    for what in ("another server's", "swapped"):
        data = tmp_path / what
        shutil.copytree(desk.data, data)
        inside = data / ".tellback" / "log"
        if what == "swapped":
            first, second = (inside / name for name in names[:2])
            content = first.read_bytes()
            first.write_bytes(second.read_bytes())
            second.write_bytes(content)
        else:
            (inside / names[1]).write_bytes(foreign)
        before = {path.name: path.read_bytes() for path in inside.iterdir()}
        again = Desk(data)
        with pytest.raises(LogCorrupt):
            again.start()
        assert {path.name: path.read_bytes() for path in inside.iterdir()} == before
        assert "log-corrupt" in codes(data)
        repaired(data)
        (aside,) = (data / ".tellback").glob("log-damaged-*")
        assert {name: (aside / name).read_bytes() for name in before} == before
        loaded = again.start().read()
        assert type(loaded).__name__ == "LoadedStream"
        again.stop()


HEADER = b'{"user_name":"u","character_name":"c","chat_metadata":{}}\n'
OTHER_ID = "0b0e1f2a-3c4d-4e5f-8a9b-0c1d2e3f4a5b"
ODD_FILES: dict[str, dict[str, bytes]] = {
    "chat-empty": {"chats/Odd/empty.jsonl": b""},
    "header-repeated": {"chats/Odd/two.jsonl": HEADER + b'{"mes":"x"}\n' + HEADER},
    "metadata-not-object": {"chats/Odd/list.jsonl": b'{"user_name":"u","chat_metadata":[1]}\n{"mes":"x"}'},
    "message-without-text": {"chats/Odd/bare.jsonl": HEADER + b'{"name":"x"}'},
    "message-large": {"chats/Odd/large.jsonl": HEADER + b'{"mes":"%b"}' % (b"x" * (1 << 20))},
    "swipes-odd": {"chats/Odd/swipes.jsonl": HEADER + b'{"mes":"x","swipes":[1]}'},
    "state-not-object": {"chats/Odd/bare.luker-state.list.json": b"[1]"},
    "floor-log-odd": {"chats/Odd/bare.luker-state.x__floor_log.json": b'{"commits":7}'},
    "floor-commit-odd": {"chats/Odd/bare.luker-state.y__floor_log.json": b'{"commits":[7]}'},
    "sync-foreign": {"chats/Odd/bare.luker-state.chat_sync.json": b'{"integrity":"x"}'},
    "state-name-odd": {"chats/Odd/bare.luker-state.A B.json": b"{}"},
    "state-orphaned": {"chats/Odd/nobody.luker-state.x.json": b"{}"},
    "group-not-json": {"groups/1.json": b"{torn"},
    "group-id-differs": {"groups/2.json": b'{"id":"3","chats":[],"members":[]}'},
    "group-chat-unlisted": {"group chats/alone.jsonl": b'{"mes":"x"}'},
    "card-trailing": {"characters/Tail.png": png("Tail") + b"more"},
    "card-not-png": {"characters/Text.png": b"text"},
    "preset-not-json": {"OpenAI Settings/Torn.json": b"{torn"},
    "backup-lines-odd": {f"backups/tellback/{OTHER_ID}/1-2.jsonl": b"{torn\n{}"},
    "backup-broken": {f"backups/tellback/{OTHER_ID}/3-4.json": b"{torn"},
    "trash-untold": {"trash/5-x/chats/Odd/gone.jsonl": b"{}", "trash/5-x/manifest.json": b'{"id":"x","name":"character:'
                     b'Odd/gone","deleted_ms":5,"reason":"deleted","files":["chats/Odd/never.jsonl"]}'},
    "trash-file-missing": {},
    "file-left-over": {"chats/Odd/.x.tellback-tmp": b"half"},
    "file-swapped-out": {f"chats/Odd/.tellback-swap-{OTHER_ID}.tellback-tmp": b"theirs"},
    "session-unusable": {f"/sessions/default-user/{OTHER_ID}.json": b"{torn"},
    "name-unusable": {f"/names/default-user/{OTHER_ID}.json": b"{torn"},
    "active-unusable": {"/sessions/default-user/active-chats.json": b"{torn"},
    "index-unusable": {"/index/default-user.jsonl": b"{torn"},
    "term-unusable": {"/term": b"torn"},
    "binding-unusable": {"/store": b"{torn"},
    "flushed-unusable": {"/flushed": b"{torn"},
    "owner-copy-broken": {f"/kept/default-user/{OTHER_ID}": b"torn"},
    "journal-line-broken": {"/imports/default-user.jsonl": b"{}\tcrc32=00000001\n"},
    "log-saved-tail": {"/log/00000000000000000001.log.torn-7": b"torn"},
    "log-put-aside": {"/log-damaged-7/00000000000000000001.log": b"old"},
}
"""What a file has to hold so that the code is told; a path that begins with a slash is below `.tellback`."""


def test_each_code_is_told_of_a_file_that_holds_it(tmp_path: Path) -> None:
    """[X2] With the file's path, in one look at all of them; and nothing is written."""
    data = tmp_path / "data"
    user = data / DEFAULT_USER
    (user / "chats").mkdir(parents=True)
    where: dict[str, set[str]] = {}
    for code, odd in ODD_FILES.items():
        for name, content in odd.items():
            path = data / ".tellback" / name[1:] if name.startswith("/") else user / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            where.setdefault(code, set()).add(str(path.relative_to(data)))
    before = {path: path.read_bytes() for path in data.rglob("*") if path.is_file()}
    told: dict[str, set[str]] = {}
    for finding in checked(data):
        told.setdefault(finding.code, set()).add(finding.path)
    for code in ODD_FILES:
        assert told.get(code, set()) & where.get(code, told.get(code, set())), f"{code}: {told.get(code)}"
    assert {path: path.read_bytes() for path in data.rglob("*") if path.is_file()} == before
