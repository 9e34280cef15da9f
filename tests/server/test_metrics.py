"""Metrics: what a scrape shows, read back with Prometheus' own parser."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tellback_server.log import LogStats
from tellback_server.metrics import GAUGES, Counters, quantile_of, render

NAMES = {
    "tellback_build_info", "tellback_frames_received_total", "tellback_commits_total", "tellback_conflicts_total",
    "tellback_duplicates_total", "tellback_behind_total", "tellback_outside_edits_total", "tellback_checkpoints_total",
    "tellback_checkpoint_bytes_total", "tellback_checkpoint_failures_total", "tellback_refusals_total",
    "tellback_resets_total", "tellback_log_records_total", "tellback_log_batches_total", "tellback_log_bytes_total",
    "tellback_log_sync_seconds", "tellback_log_sync_seconds_count",
    "tellback_generations_started_total", "tellback_generations_ended_total", "tellback_generation_deltas_total",
    "tellback_generation_deltas_sent_total",
    "tellback_upstream_requests_total", "tellback_upstream_retries_total", "tellback_upstream_deltas_total",
    "tellback_upstream_errors_total", "tellback_upstream_first_token_seconds", "tellback_checkpoint_reasons_total",
    "tellback_backups_total", "tellback_backup_bytes_total", "tellback_backup_failures_total",
}  # fmt: skip


def scraped(counters: Counters, stats: LogStats, **gauges: float) -> dict[tuple[str, str], float]:
    text = render(counters, stats, {name: partial(float, value) for name, value in gauges.items()}).decode()
    return {
        (sample.name, ",".join(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_counters_are_read_at_scrape_time() -> None:
    counters, stats = Counters(), LogStats()
    counters.frames_received += 3
    counters.commits += 2
    counters.refused("op-gap")
    counters.refused("op-gap")
    counters.reset("outside-edit")
    counters.checkpointed("debounce", 70)
    counters.backed_up("force", 500)
    counters.upstream_deltas += 5
    counters.generation_ended("stored")
    counters.upstream_failed("cut")
    counters.upstream_first_token_s.append(0.25)
    stats.records, stats.batches, stats.seals, stats.bytes = 7, 2, 1, 900
    stats.sync_s.extend([0.003, 0.001, 0.002])
    values = scraped(counters, stats, tellback_connections=4.0)
    assert values["tellback_frames_received_total", ""] == 3
    assert values["tellback_commits_total", ""] == 2
    assert values["tellback_refusals_total", "op-gap"] == 2
    assert values["tellback_resets_total", "outside-edit"] == 1
    assert values["tellback_checkpoint_reasons_total", "debounce"] == values["tellback_checkpoints_total", ""] == 1
    assert (values["tellback_backups_total", "force"], values["tellback_backup_bytes_total", ""]) == (1, 500)
    assert values["tellback_upstream_deltas_total", ""] == 5
    assert values["tellback_generations_ended_total", "stored"] == 1
    assert values["tellback_upstream_errors_total", "cut"] == 1
    assert values["tellback_upstream_first_token_seconds", "0.99"] == 0.25
    assert values["tellback_log_records_total", ""] == 7
    assert values["tellback_log_bytes_total", ""] == 900
    assert values["tellback_log_sync_seconds", "0.5"] == 0.002
    assert values["tellback_log_sync_seconds", "1.0"] == 0.003
    assert values["tellback_log_sync_seconds_count", ""] == 3
    assert values["tellback_connections", ""] == 4
    assert {name for name, _ in values} == NAMES | {"tellback_connections"}


def test_a_server_without_a_sync_shows_no_quantile() -> None:
    names = {name for name, _ in scraped(Counters(), LogStats())}
    assert "tellback_log_sync_seconds" not in names
    assert "tellback_log_sync_seconds_count" in names


def test_each_gauge_has_a_help_text_and_no_other_is_taken() -> None:
    assert set(GAUGES) <= {name for name, _ in scraped(Counters(), LogStats(), **dict.fromkeys(GAUGES, 1.0))}
    with pytest.raises(ValueError, match="tellback_surprise"):
        render(Counters(), LogStats(), {"tellback_surprise": lambda: 1.0})


def test_two_servers_in_one_process_do_not_add_up() -> None:
    one, other = Counters(), Counters()
    one.commits = 5
    other.commits = 6
    assert scraped(one, LogStats())["tellback_commits_total", ""] == 5
    assert scraped(other, LogStats())["tellback_commits_total", ""] == 6


def test_the_hot_path_counts_on_slots() -> None:
    with pytest.raises(AttributeError):
        Counters().misspelt = 1  # type: ignore[attr-defined]


def test_every_metric_is_documented_and_no_other() -> None:
    page = (Path(__file__).parents[2] / "docs/CONFIGURATION.md").read_text()
    documented = set(re.findall(r"`(tellback_[a-z_]+)", page))
    assert documented == (NAMES | set(GAUGES)) - {"tellback_log_sync_seconds_count"}


def test_a_quantile_is_a_value_that_was_measured() -> None:
    assert quantile_of([1.0], 0.5) == 1.0
    assert quantile_of([1.0, 2.0, 3.0, 4.0], 0.5) == 2.0
    assert quantile_of([1.0, 2.0, 3.0, 4.0], 0.99) == 4.0
    assert quantile_of(list(range(1, 101)), 0.99) == 99
