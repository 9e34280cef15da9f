"""When chats are folded into their files: the reasons, one by one and together, on a clock of numbers."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from tellback_protocol.effects import AppendEffect, DeleteEffect, MetadataEffect, PatchEffect, StateEffect
from tellback_protocol.ids import Version
from tellback_server.config import ConfigurationError, load_settings
from tellback_server.save_strategy import EVENTS, WORK_SHARE, Dirt, Strategy, events_of, next_fold
from tests.support.server import TabClient, running
from tests.support.waiting import GUARD_S, until

STRATEGY = Strategy(debounce_s=2, interval_s=5, batch_commits=100, events=frozenset(("swipe", "metadata")))


@pytest.mark.parametrize(("dirt", "expected"), [
    (Dirt(since_s=0, last_s=0, commits=1), (2, "debounce")),
    (Dirt(since_s=0, last_s=1.5, commits=9), (3.5, "debounce")),
    (Dirt(since_s=0, last_s=4, commits=9), (5, "interval")),
    (Dirt(since_s=0, last_s=4, commits=99, events={"edit"}), (5, "interval")),
    (Dirt(since_s=0, last_s=4, commits=100), (4, "batch")),
    (Dirt(since_s=0, last_s=0, commits=1, events={"edit", "swipe"}), (4, "event")),
    # A huge file that took a second waits 20 s after its last checkpoint, whatever happens.
    (Dirt(since_s=0, last_s=0, commits=500, events={"swipe"}, folded_s=-1, work_s=1), (19, "event")),
    (Dirt(since_s=0, last_s=4, commits=1, folded_s=-1, work_s=1), (19, "interval")),
])
def test_the_earliest_reason_counts_but_for_the_share_of_the_disk_k2(dirt: Dirt, expected: tuple[float, str]) -> None:
    """[K2] [K8]"""
    assert next_fold(STRATEGY, dirt, 4.0) == (max(expected[0], 4.0), expected[1])


moments = st.floats(0, 1e6)


@given(
    st.builds(Strategy, debounce_s=st.floats(0, 100), interval_s=st.floats(0.01, 100),
              batch_commits=st.integers(0, 50), events=st.frozensets(st.sampled_from(EVENTS))),
    moments, moments, moments, st.integers(1, 100), st.sets(st.sampled_from(EVENTS)), st.floats(0, 3),
)
def test_nothing_waits_longer_than_the_interval_or_its_share_of_the_disk_k2(
    strategy: Strategy, since_s: float, more_s: float, later_s: float, commits: int, events: set[str], work_s: float
) -> None:
    """[K2]"""
    last_s = since_s + more_s
    now_s = last_s + later_s
    dirt = Dirt(since_s=since_s, last_s=last_s, commits=commits, events=events, folded_s=since_s, work_s=work_s)

    due_s, _reason = next_fold(strategy, dirt, now_s)

    assert due_s >= now_s
    assert due_s >= since_s + WORK_SHARE * work_s
    assert due_s <= max(now_s, since_s + strategy.interval_s, since_s + WORK_SHARE * work_s)


def test_what_a_commit_did_is_an_event_only_when_it_is_more_than_a_message_k8() -> None:
    """[K8]"""
    version = Version(1, 1, "8c5f7d0e-1b2c-8d3e-9f4a-5b6c7d8e9f0a")
    patch = Raw(b'[{"op":"replace","path":"/mes","value":"a"}]')
    assert events_of([AppendEffect([Raw(b'{"id":"a"}')])]) == set()
    assert events_of([PatchEffect("a", patch)]) == {"edit"}
    assert events_of([PatchEffect("a", Raw(b'[{"op":"replace","path":"/swipe_id","value":1}]'))]) == {"swipe"}
    assert events_of([DeleteEffect(["a"]), MetadataEffect(patch)]) == {"delete", "metadata"}
    assert events_of([StateEffect("memory", version, None), StateEffect("tellback_generations", version, None)]) == {
        "state", "generation",
    }


def said(path: Path) -> int:
    return len([line for line in path.read_bytes().split(b"\n")[1:] if line]) if path.exists() else 0


CHAT = "character:Alice/First meeting"
FILE = "default-user/chats/Alice/First meeting.jsonl"


async def reasons(app_url: str) -> dict[str, int]:
    async with httpx2.AsyncClient() as client:
        text = (await client.get(app_url.replace("ws://", "http://").replace("/ws", "/metrics"))).text
    found: dict[str, int] = {}
    for line in text.splitlines():
        if line.startswith("tellback_checkpoint_reasons_total{"):
            found[line.split('"')[1]] = int(float(line.split()[-1]))
    return found


@pytest.mark.parametrize(("settings", "reason"), [
    ({"checkpoint_debounce_s": 0.05}, "debounce"),
    ({"checkpoint_debounce_s": 600, "checkpoint_interval_s": 0.1}, "interval"),
    ({"checkpoint_debounce_s": 600, "checkpoint_sweep_s": 0.1}, "sweep"),
])
async def test_a_write_reaches_its_file_for_the_reason_that_is_set_k8(
    tmp_path: Path, settings: dict[str, float], reason: str
) -> None:
    """[K8]: and the metrics tell the reason; the ack did not wait for it."""
    async with running(tmp_path, **{"checkpoint_interval_s": 600, "checkpoint_events": (), **settings}) as app:
        tab = await TabClient.join(app.urls[0])
        await tab.open(CHAT, create=True)
        assert (await tab.append(CHAT, "one"))["durable"] == "fsync"
        await until(lambda: said(tmp_path / FILE) == 1)
        await until(lambda: app._keeper.lag_s() == 0 and not any(actor.folding for actor in app._hub.actors))
        assert set(await reasons(app.urls[0])) == {reason}


async def test_a_significant_event_is_folded_at_once_and_a_full_batch_too_k8(tmp_path: Path) -> None:
    """[K8]: with timers of ten minutes nothing else would be a reason."""
    slow = {"checkpoint_interval_s": 600, "checkpoint_debounce_s": 600, "checkpoint_sweep_s": 600, "idle_s": 0.05}
    async with running(tmp_path, **slow, checkpoint_events=("metadata", "close"), checkpoint_batch=20) as app:
        tab = await TabClient.join(app.urls[0])
        await tab.open(CHAT, create=True)
        await tab.append(CHAT, "one")
        await asyncio.sleep(0.2)
        assert said(tmp_path / FILE) == 0
        await tab.write("metadata-update", CHAT, base="*", merge={"note": "now"})
        await until(lambda: said(tmp_path / FILE) == 1)
        assert json.loads((tmp_path / FILE).read_bytes().split(b"\n")[0])["chat_metadata"] == {"note": "now"}
        await until(lambda: not any(actor.folding for actor in app._hub.actors))
        await tab.write("patch", CHAT, base="*", message=(await tab.open(CHAT))["messages"][0]["id"], patch=[
            {"op": "test", "path": "/mes", "value": "one"}, {"op": "replace", "path": "/mes", "value": "uno"},
        ])
        await asyncio.sleep(0.1)
        assert b"uno" not in (tmp_path / FILE).read_bytes()
        await tab.ask("close", chat=CHAT)
        await until(lambda: b"uno" in (tmp_path / FILE).read_bytes())
        assert {"event"} < set(await reasons(app.urls[0])) | {"idle"}


async def test_so_many_commits_are_folded_without_waiting_k8(tmp_path: Path) -> None:
    """[K8]: with timers of ten minutes nothing else would be a reason."""
    slow = {"checkpoint_interval_s": 600, "checkpoint_debounce_s": 600, "checkpoint_sweep_s": 600}
    async with running(tmp_path, **slow, checkpoint_events=(), checkpoint_batch=20) as app:
        tab = await TabClient.join(app.urls[0])
        await tab.open(CHAT, create=True)

        async def keep_on() -> None:
            while said(tmp_path / FILE) < 20:
                await tab.append(CHAT, "again")

        await asyncio.wait_for(keep_on(), GUARD_S)
        assert "batch" in await reasons(app.urls[0])


def test_an_event_that_nobody_knows_stops_the_start() -> None:
    with pytest.raises(ConfigurationError, match="'rename' is no event; use some of generation, swipe"):
        load_settings({"data": "/x", "checkpoint_events": "swipe,rename"})
    assert load_settings({"data": "/x", "checkpoint_events": "swipe, state"}).save_strategy.events == {"swipe", "state"}
