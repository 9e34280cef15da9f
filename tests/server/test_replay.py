"""What the log tells of the commits behind a position."""

from __future__ import annotations

from pathlib import Path

import pytest

from tellback_protocol import stream
from tellback_protocol.ids import Version
from tellback_server.records import owner_key
from tellback_server.replay import missed_since
from tellback_server.store.files import DEFAULT_USER
from tests.support.chat_desk import Desk
from tests.support.server import TabClient, running
from tests.support.waiting import until

CHAT = "character:Alice/First meeting"


async def test_every_position_leads_to_the_head_and_none_but_the_exact_one_is_known(tmp_path: Path) -> None:
    """[R1] [R7]: epoch, seq and integrity all have to fit; what a checkpoint and a refused op logged is passed over."""
    desk = Desk(tmp_path / "data")
    await desk.create()
    versions = [desk.stream.head]
    for number in range(12):
        await desk.append(f"{number}")
        versions.append(desk.stream.head)
        if number == 5:
            await desk.checkpoint()
    key = owner_key(DEFAULT_USER, desk.stream.chat_id)
    for at, since in enumerate(versions):
        missed = missed_since(desk.log, key, since, 1 << 20)
        assert (missed.verdict, missed.last, missed.is_too_large) == ("known", versions[-1], False)
        assert [past.version for past in missed.commits] == versions[at + 1 :]
        assert missed.size_bytes == sum(len(past.core) for past in missed.commits)
        if at:
            other = Version(since.epoch, since.seq, versions[at - 1].integrity)
            assert missed_since(desk.log, key, other, 1 << 20).verdict == "replaced"
        assert missed_since(desk.log, key, Version(2, since.seq, since.integrity), 1 << 20).verdict == "trimmed"
    assert missed_since(desk.log, key, Version(1, 99, versions[0].integrity), 1 << 20).verdict == "trimmed"
    desk.stop()


async def test_reading_stops_at_the_bound_and_goes_on_from_there(tmp_path: Path) -> None:
    """[R2] [R7]: a position whose replay is too large is known all the same; two readings join to one."""
    desk = Desk(tmp_path / "data")
    await desk.create()
    since = desk.stream.head
    for number in range(10):
        await desk.append(f"{number}" + "x" * 1000)
    key = owner_key(DEFAULT_USER, desk.stream.chat_id)
    first = missed_since(desk.log, key, since, 4000)
    assert (first.verdict, first.is_too_large, len(first.commits)) == ("known", True, 3)
    first.extend(missed_since(desk.log, key, first.last, 1 << 20))
    assert (first.verdict, first.is_too_large, first.last) == ("known", False, desk.stream.head)
    assert [past.version.seq for past in first.commits] == list(range(since.seq + 1, since.seq + 11))
    desk.stop()


async def test_a_log_that_rotted_under_the_server_is_answered_with_a_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """[R7] [H3]: never a guess and never silence: `open` gets the chat, `history` an error, writes go on."""
    monkeypatch.setattr(stream, "HISTORY_COMMITS_MAX", 8)
    async with running(tmp_path, checkpoint_interval_s=3600) as app:
        tab = await TabClient.join(app.urls[0])
        await tab.open(CHAT, create=True)
        since = (await tab.append(CHAT, "z" * 50_000))["version"]
        for number in range(40):
            await tab.append(CHAT, f"rot {number:03}")
        [segment] = (tmp_path / ".tellback" / "log").glob("0*1.log")
        data = segment.read_bytes()
        with segment.open("r+b") as file:
            file.seek(data.index(b"rot 010"))
            file.write(b"ROT 010")
        opened = await tab.open(CHAT, since=since)
        assert (opened["mode"], opened["reset"], len(opened["messages"])) == ("snapshot", "trimmed", 41)
        page = await tab.ask("history", chat=CHAT, after=since["seq"], limit=100)
        assert (page["type"], page["retry"]) == ("error", "backoff")
        assert (await tab.append(CHAT, "goes on"))["type"] == "ack"


async def test_an_open_that_waits_for_the_log_is_answered_when_its_chat_went_to_the_trash_meanwhile(
    tmp_path: Path,
) -> None:
    """[R7] [J6] [C5]: with what its tab asked behind it, and its place in flight given back."""
    async with running(tmp_path) as app:
        tab, other = await TabClient.join(app.urls[0]), await TabClient.join(app.urls[0])
        opened = await tab.open(CHAT, create=True)
        await other.open(CHAT)
        base = (await tab.append(CHAT, "gone soon"))["version"]["integrity"]
        [actor] = app._hub.actors
        actor.live_stream.forget_history()
        looks = app._keeper._lookback._looks
        async with looks, looks:
            await tab.raw.send({"type": "open", "id": 50, "chat": CHAT, "since": opened["head"]})
            await tab.raw.send({"type": "state-get", "id": 51, "owner": {"chat": CHAT}})
            assert (await tab.ask("ping"))["type"] == "pong"
            assert (await other.write("chat-delete", CHAT, base=base))["type"] == "ack"
            await until(lambda: actor.state == "gone")
        answers = [await tab.raw.receive_until(id=number) for number in (50, 51)]
        assert [answer["code"] for answer in answers] == ["deleted", "deleted"]
        assert {found.session.in_flight for found in app._reception.tabs} == {0}
