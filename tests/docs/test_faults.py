"""docs/FAULTS.md: every row is there, and every test that it names exists."""

from __future__ import annotations

import ast
import re

from tests.support.shared import CHECKOUT

PAGE = CHECKOUT / "docs/FAULTS.md"
ROWS = 39


def test_every_fault_has_a_row_and_every_row_a_test_or_a_reason() -> None:
    rows = [line for line in PAGE.read_text().splitlines() if re.match(r"\| F\d+ \|", line)]
    assert [row.split("|")[1].strip() for row in rows] == [f"F{number}" for number in range(1, ROWS + 1)]
    for row in rows:
        assert "::" in row or "not shown here" in row.lower(), row


def test_every_test_that_is_named_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE.read_text())
    assert len(named) > 80
    for path, name in set(named):
        tree = ast.parse((CHECKOUT / path).read_text())
        assert name in {
            node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        }, f"{path}::{name}"
