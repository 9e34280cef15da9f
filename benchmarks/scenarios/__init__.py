"""The kinds of measurement.

A scenario prepares once, runs once per repetition and adds ratios to the samples; it never reads another's.

Repetitions are the outer loop, so that everything a ratio compares was measured within the same minute.
"""

from dataclasses import dataclass
from typing import Protocol

from benchmarks.samples import Samples


@dataclass(frozen=True)
class Plan:
    """How much of everything: what --quick changes."""

    repetitions: int
    seconds: float  # Of a measured window.
    warmup_s: float
    wanted: frozenset[str]  # Target ids, or "peers".

    def wants(self, *ids: str) -> bool:
        return any(id in self.wanted for id in ids)


class Scenario(Protocol):
    def prepare(self) -> None:
        """Start and fill what lives through all repetitions. Raises ServerError when there is nothing to measure."""

    def run(self, repetition: int) -> None: ...

    def close(self) -> None: ...


class Factory(Protocol):
    """A scenario's class: the ids it measures, and its constructor."""

    ids: tuple[str, ...]

    def __call__(self, plan: Plan, samples: Samples) -> Scenario: ...
