"""Plans by seed: which chaos, which settings and which store a run of a long campaign has."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from tests.checker.campaign import CHAOS, Plan
from tests.checker.planted import BUGS

SQLITE = "sqlite://{folder}/store/chats.db"
FILES = "files://{folder}/store/files"
BACKUP = "sqlite://{folder}/store/backup.db"
EVERYTHING = {**CHAOS, "rot": 1, "rot-length": 1, "rival": 1, "bin": 2, "backup": 1, "copy": 1}
OUTSIDE = {"edit": 6, "edit-down": 2, "kill": 2, "pause": 1, "wires": 2, "stop": 1, "bin": 1, "backup": 1, "restore": 3}
"""Epochs begin. No power cuts and no failing syncs: the journal knows only what the server itself writes."""


def plan_of(seed: int, planted: str | None = None, databases: Sequence[str] = ()) -> Plan:
    """The plan of a seed; with a bug, the plan in which it shows. `databases` are the URLs of servers that run; a third
    of the plans use one, and kill it.
    """
    if planted is not None:
        return planted_plan(planted, seed)
    chance = random.Random(f"plan {seed}")
    store, backup = chance.choice([(None, None)] * 6 + [(SQLITE, None), (FILES, None), (FILES, BACKUP)])
    is_database = bool(databases) and chance.random() < 0.35
    if is_database:
        one, other = chance.sample(databases, 2)
        store, backup = chance.choice([(one, None), (one, other), (one, BACKUP), (FILES, one)])
    chaos = dict(EVERYTHING)
    if store is not None:
        # A store is another machine's disk: its power is not cut here, and it has backups of its own.
        chaos = {kind: weight for kind, weight in chaos.items() if kind not in ("power", "backup", "copy")}
        if is_database:
            chaos["database"] = 4
    elif chance.random() < 0.4:
        chaos = dict(OUTSIDE)
    return Plan(
        seed=seed, rounds=chance.choice([4, 8, 16]), tabs=chance.choice([2, 4, 6]), window=chance.choice([1, 4, 8]),
        chaos=chaos, store=store, backup=backup,
        fail_syncs=store is None and "edit" not in chaos and chance.random() < 0.2,
        settings={
            "checkpoint_interval_s": chance.choice([0.01, 0.05, 5.0]),
            "log_segment_bytes": chance.choice([16 << 10, 64 << 10, 1 << 20]),
        },
    )


def planted_plan(name: str, seed: int) -> Plan:
    """Short runs in which a planted bug shows."""
    values: dict[str, Any] = {"rounds": 6, "end_s": 6.0, **BUGS[name].plan}
    return Plan(seed=seed, planted=name, **values)
