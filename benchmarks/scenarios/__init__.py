"""The kinds of measurement.

A scenario prepares once, runs once per repetition and adds ratios to the samples; it never reads another's.

Repetitions are the outer loop, so that everything a ratio compares was measured within the same minute.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

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


class Scenario(ABC):
    ids: ClassVar[tuple[str, ...]]  # The targets it measures, and "peers" if it has figures without tellback.

    def __init__(self, plan: Plan, samples: Samples) -> None:
        self._plan = plan
        self._samples = samples

    @abstractmethod
    def prepare(self) -> None:
        """Start and fill what lives through all repetitions."""

    @abstractmethod
    def run(self, repetition: int) -> None:
        """Measure once and add what was measured to the samples."""

    def close(self) -> None:
        """Stop what `prepare` started. Called once, also after a failure."""
        return
