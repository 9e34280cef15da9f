"""Metrics: plain counters on the hot path, Prometheus text at scrape time.

Rules this module keeps:

- Counting is one integer addition on a slot. Nothing of prometheus-client runs until somebody asks for GET /metrics.
- Names carry their unit; `_total` only rises. Labels come from closed sets (codes of errors, reasons of resets), never
  from what a peer sent.
- The registry is our own and made for one answer, so two servers in one process do not add up.
"""

from __future__ import annotations

import functools
import importlib.metadata
import platform
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from tellback_server.log import LogStats

__all__ = ["CONTENT_TYPE", "GAUGES", "Counters", "render", "version"]

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
"""Of what `render` returns."""

SAMPLES_MAX: Final = 256
"""Durations that are kept for quantiles."""

_QUANTILES: Final = (0.5, 0.9, 0.99, 1.0)

_COUNTERS: Final = {
    "frames_received": "Frames that clients sent, good or bad",
    "commits": "Writes that were accepted",
    "conflicts": "Writes refused because their base was not the version of the document",
    "duplicates": "Ops that were sent again and got their stored outcome",
    "behind": "Times a tab was too slow and was told to open again",
    "outside_edits": "Files that another program had changed",
    "checkpoints": "Chat files and sidecars that were brought up to the log",
    "checkpoint_bytes": "Bytes written by checkpoints",
    "backup_bytes": "Bytes written by backups",
    "backup_failures": "Backups that the disk or another program's edit kept from being taken",
    "checkpoint_failures": "Checkpoints that failed, on a full disk say, and are tried again",
    "generations_started": "Generations that began, or were found running at a start",
    "generation_deltas": "Deltas that producers sent",
    "generation_deltas_sent": "Deltas sent to tabs, joined ones counted once",
    "upstream_requests": "Replies asked of model servers",
    "upstream_retries": "Requests to model servers that were tried again",
    "upstream_deltas": "Pieces of replies that model servers sent",
}

GAUGES: Final = {
    "tellback_connections": "Open connections",
    "tellback_actors": "Chats in memory",
    "tellback_generations": "Generations that run",
    "tellback_generation_bytes": "Their texts together",
    "tellback_log_segments": "Log segments on the disk",
    "tellback_log_segments_held": "Log segments over the retention that must stay: files refuse what is in them",
    "tellback_log_stalled_seconds": "How long the disk has not answered, while something waits for it",
    "tellback_log_uncommitted_bytes": "Records that wait for the disk",
    "tellback_checkpoint_lag_seconds": "Age of the oldest durable write that is not in its chat file yet",
    "tellback_backups_over_bound": "Users whose backups take more room than they may: only last ones are left",
    "tellback_store_up": "1 while the store answers",
    "tellback_store_failures": "Calls of the store that failed",
    "tellback_store_behind_bytes": "Log that has to stay because the store could not be reached",
    "tellback_stores_diverged": "Owners of which primary and backup held two histories; what gave way was kept",
    "tellback_store_lag_seconds": "Age of the oldest durable write that the store may not hold",
    "tellback_store_pending_entries": "Writes that the store may not hold: records for a backup, commits else",
    "tellback_loop_lag_seconds": "Longest time the event loop was late since the last scrape",
}
"""The names that `render` takes, with their help."""


class Counters:
    """What the server counts. Written by the loop thread alone."""

    __slots__ = (
        "backup_bytes",
        "backup_failures",
        "backups",
        "behind",
        "checkpoint_bytes",
        "checkpoint_failures",
        "checkpoint_reasons",
        "checkpoints",
        "commits",
        "conflicts",
        "duplicates",
        "frames_received",
        "generation_deltas",
        "generation_deltas_sent",
        "generations_ended",
        "generations_started",
        "outside_edits",
        "refusals",
        "resets",
        "upstream_deltas",
        "upstream_errors",
        "upstream_first_token_s",
        "upstream_requests",
        "upstream_retries",
    )

    def __init__(self) -> None:
        self.frames_received = 0
        self.commits = 0
        self.conflicts = 0
        self.duplicates = 0
        self.behind = 0
        self.outside_edits = 0
        self.backups: dict[str, int] = {}
        """By why they were taken."""
        self.backup_bytes = 0
        self.backup_failures = 0
        self.checkpoints = 0
        self.checkpoint_bytes = 0
        self.checkpoint_failures = 0
        self.checkpoint_reasons: dict[str, int] = {}
        """Checkpoints by why they were made."""
        self.generations_started = 0
        self.generation_deltas = 0
        self.generation_deltas_sent = 0
        self.generations_ended: dict[str, int] = {}
        """By state."""
        self.upstream_requests = 0
        self.upstream_retries = 0
        self.upstream_deltas = 0
        self.upstream_first_token_s: deque[float] = deque(maxlen=SAMPLES_MAX)
        """From asking to the first delta, latest replies."""
        self.upstream_errors: dict[str, int] = {}
        """By kind of error."""
        self.refusals: dict[str, int] = {}
        """By error code."""
        self.resets: dict[str, int] = {}
        """By the reason in the `reset` frame."""

    def backed_up(self, reason: str, size_bytes: int) -> None:
        """A backup was taken."""
        self.backups[reason] = self.backups.get(reason, 0) + 1
        self.backup_bytes += size_bytes

    def checkpointed(self, reason: str, size_bytes: int) -> None:
        """A chat's files were brought up to the log."""
        self.checkpoints += 1
        self.checkpoint_bytes += size_bytes
        self.checkpoint_reasons[reason] = self.checkpoint_reasons.get(reason, 0) + 1

    def refused(self, code: str) -> None:
        """An `error` frame with this code goes out."""
        self.refusals[code] = self.refusals.get(code, 0) + 1

    def generation_ended(self, state: str) -> None:
        """A generation ended in this state."""
        self.generations_ended[state] = self.generations_ended.get(state, 0) + 1

    def upstream_failed(self, kind: str) -> None:
        """A reply of a model server ended with this kind of error."""
        self.upstream_errors[kind] = self.upstream_errors.get(kind, 0) + 1

    def reset(self, reason: str) -> None:
        """A `reset` with this reason goes out."""
        self.resets[reason] = self.resets.get(reason, 0) + 1


@functools.cache
def version() -> str:
    """The version of the installed package."""
    return importlib.metadata.version("tellback")


Gauge = Callable[[], float] | Callable[[], dict[str, float]]
"""A value, or one for each store."""


def render(counters: Counters, log_stats: LogStats, gauges: Mapping[str, Gauge]) -> bytes:
    """The answer to GET /metrics. `gauges` has names of GAUGES; each is called once."""
    unknown = gauges.keys() - GAUGES.keys()
    if unknown:
        raise ValueError(f"GAUGES has no help for {', '.join(sorted(unknown))}")
    registry = CollectorRegistry()
    registry.register(_Server(counters, gauges))
    registry.register(_Log(log_stats))
    return generate_latest(registry)


class _Server(Collector):
    def __init__(self, counters: Counters, gauges: Mapping[str, Gauge]) -> None:
        self._counters = counters
        self._gauges = gauges

    def collect(self) -> Iterator[Metric]:
        build = {"version": version(), "python": platform.python_version()}
        yield InfoMetricFamily("tellback_build", "What is running", value=build)
        for name, text in _COUNTERS.items():
            yield CounterMetricFamily(f"tellback_{name}", text, value=getattr(self._counters, name))
        yield _labelled("tellback_refusals", "Error frames sent", "code", self._counters.refusals)
        yield _labelled(
            "tellback_generations_ended", "Generations that ended", "state", self._counters.generations_ended
        )
        yield _labelled("tellback_backups", "Backups by why they were taken", "reason", self._counters.backups)
        yield _labelled(
            "tellback_checkpoint_reasons", "Checkpoints by why they were made", "reason",
            self._counters.checkpoint_reasons,
        )
        yield _labelled("tellback_resets", "Tabs told that a chat was replaced", "reason", self._counters.resets)
        errors = self._counters.upstream_errors
        yield _labelled("tellback_upstream_errors", "Replies that a model server did not finish", "kind", errors)
        text = "From asking to the first token, latest replies"
        yield _summary("tellback_upstream_first_token_seconds", text, self._counters.upstream_first_token_s)
        for name, read in self._gauges.items():
            value = read()
            if not isinstance(value, dict):
                yield GaugeMetricFamily(name, GAUGES[name], value=value)
                continue
            family = GaugeMetricFamily(name, GAUGES[name], labels=["store"])
            for store, one in value.items():
                family.add_metric([store], one)
            yield family


class _Log(Collector):
    def __init__(self, stats: LogStats) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        stats = self._stats
        yield CounterMetricFamily("tellback_log_records", "Records made durable", value=stats.records)
        yield CounterMetricFamily("tellback_log_batches", "Batches: one write and one sync each", value=stats.batches)
        yield CounterMetricFamily("tellback_log_bytes", "Bytes of records made durable", value=stats.bytes)
        # A summary of the latest samples that the log keeps. Without a sum: the samples that fell out are not known.
        text = "Write and sync of one batch, latest batches"
        summary = _summary("tellback_log_sync_seconds", text, stats.sync_s.copy())
        summary.add_sample(f"{summary.name}_count", {}, stats.batches + stats.seals)
        yield summary


def _summary(name: str, text: str, samples_s: Iterable[float]) -> Metric:
    """Quantiles of `samples_s`; none of none."""
    summary = Metric(name, text, "summary")
    durations_s = sorted(samples_s)
    for quantile in _QUANTILES:
        if durations_s:
            summary.add_sample(name, {"quantile": str(quantile)}, quantile_of(durations_s, quantile))
    return summary


def _labelled(name: str, text: str, label: str, values: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily(name, text, labels=[label])
    for key, value in sorted(values.items()):
        family.add_metric([key], value)
    return family


def quantile_of(ordered: Sequence[float], quantile: float) -> float:
    """The smallest value of which at least `quantile` of all are not larger. `ordered` rises and is not empty."""
    return ordered[max(0, -(-int(quantile * 1000) * len(ordered) // 1000) - 1)]
