"""Silence and waiting, with literal times."""

from __future__ import annotations

from tellback_client.heartbeat import Backoff, Heartbeat


def test_r33_a_peer_that_talks_is_never_asked() -> None:
    heartbeat = Heartbeat(0.0, 25.0, 10.0)
    for now_s in range(0, 1000, 24):
        heartbeat.heard(float(now_s))
        assert not heartbeat.due(now_s + 24.0)


def test_r33_a_silent_peer_is_asked_once_and_is_dead_without_an_answer() -> None:
    heartbeat = Heartbeat(0.0, 25.0, 10.0)

    assert heartbeat.deadline_s == 25.0
    seen = [(heartbeat.due(now_s), heartbeat.is_dead(now_s)) for now_s in (24.9, 25.0, 26.0, 34.9, 35.0)]
    assert seen == [(False, False), (True, False), (False, False), (False, False), (False, True)]
    assert heartbeat.deadline_s == 35.0
    heartbeat.heard(36.0)
    assert not heartbeat.due(37.0)


def test_waiting_grows_to_its_bound_and_falls_back_only_after_useful_work() -> None:
    backoff = Backoff(lambda: 1.0, 0.25, 4.0)

    assert [backoff.next_s() for _ in range(6)] == [0.25, 0.5, 1.0, 2.0, 4.0, 4.0]
    backoff.worked()
    assert backoff.next_s() == 0.25


def test_waiting_is_drawn_from_nothing_on() -> None:
    assert Backoff(lambda: 0.0).next_s() == 0.0
