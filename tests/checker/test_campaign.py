"""Sound runs: kill -9, power cuts, cut wires, pauses and stops under tabs that ask for everything, while the chat goes
to the trash and back, is backed up and restored, and other programs edit its file; no promise breaks.

TELLBACK_CHECKER_RUNS says how many (2), TELLBACK_CHECKER_SEED where the seeds begin. Longer:
`python -m tests.checker --minutes 10 --seed 1`.
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest

from tests.checker import __main__ as command
from tests.checker.campaign import CHAOS, Plan, hold, judged
from tests.checker.plans import OUTSIDE, SQLITE, planted_plan

RUNS = int(os.environ.get("TELLBACK_CHECKER_RUNS", "2"))
SEED = int(os.environ.get("TELLBACK_CHECKER_SEED") or random.SystemRandom().randrange(1 << 31))
MIXES = ({**CHAOS, "bin": 3, "backup": 1, "copy": 2}, OUTSIDE)
KEPT = os.environ.get("TELLBACK_CHECKER_KEEP")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("number", range(RUNS))
async def test_no_promise_breaks(tmp_path: Path, number: int) -> None:
    """[D1] [O2] [V1] [V2]: the twelve invariants, and an order for what was seen that needs no seqs."""
    plan = Plan(seed=SEED + number, rounds=5, chaos=MIXES[number % len(MIXES)])
    found = await hold(plan, tmp_path, Path(KEPT) if KEPT else None)
    assert not found, f"seed {plan.seed}: {found}"
    notes = (tmp_path / f"run-{plan.seed}-sound/notes.jsonl").read_text()
    assert notes.count('"what": "sent"') > 200, "there was something to check"


@pytest.mark.timeout(120)
async def test_a_store_holds_what_the_server_tells(tmp_path: Path) -> None:
    """[SV1] [V1]: on SQLite, over kills and stops."""
    plan = Plan(seed=SEED, rounds=3, chaos={"kill": 2, "stop": 1, "wires": 1}, store=SQLITE)
    assert await hold(plan, tmp_path) == []


@pytest.mark.timeout(120)
async def test_a_failed_run_is_kept_whole_and_can_be_judged_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the sync taken out, the promises break; what is left of the run is enough to say so again."""
    found = await hold(planted_plan("no-fsync", 1), tmp_path / "runs", tmp_path / "kept")
    assert "durable" in {violation.invariant for violation in found}
    kept = tmp_path / "kept/run-1-no-fsync"
    assert judged(kept) == found
    assert json.loads((kept / "plan.json").read_text())["planted"] == "no-fsync"
    assert (kept / "server.log").stat().st_size > 0
    assert (kept / "data/.tellback/log").is_dir()
    monkeypatch.setattr("sys.argv", ["checker", "--replay", str(kept)])
    assert command.main() == 1
    assert "durable" in capsys.readouterr().out
