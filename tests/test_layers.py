"""The order of the imports, the types and the lint rules, held by the tools that know them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]
TOOLS = Path(sys.executable).parent


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "command",
    [
        ["lint-imports", "--no-cache"],
        ["ruff", "check", "protocol", "server", "client_py", "tests", "benchmarks"],
        ["mypy"],
    ],
    ids=["imports-point-one-way", "ruff", "mypy-strict"],
)
def test_the_house_is_in_order(command: list[str]) -> None:
    done = subprocess.run(
        [str(TOOLS / command[0]), *command[1:]], cwd=CHECKOUT, capture_output=True, text=True, check=False, timeout=590
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def test_files_stay_small_enough_to_hold_one_noun() -> None:
    reasons = {
        "server/tellback_server/websocket/connection.py": "one connection; both its paths share one state",
        "client_js/src/frames.ts": "made from spec/schema, types alone",
    }
    for pattern in ("protocol/**/*.py", "server/**/*.py", "client_py/**/*.py", "client_js/src/**/*.ts"):
        for path in sorted(CHECKOUT.glob(pattern)):
            name = str(path.relative_to(CHECKOUT))
            text = path.read_text()
            assert len(text.splitlines()) <= 500 or name in reasons, f"{name} has grown: split it by noun"
            assert not text or text.startswith(('"""', "/*", "// Made from")), f"{name} does not say what it is"
