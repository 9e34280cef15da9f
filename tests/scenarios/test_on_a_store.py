"""What holds on users' folders holds on a store: the same scenarios, told by the environment where chats are kept.

A scenario that looks into files, or lets another program edit them, is not among them.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.client_py import test_catalog, test_swipes_and_floors
from tests.client_py.context import test_states
from tests.scenarios import test_exactly_once, test_generations, test_life, test_log_replay, test_resume
from tests.scenarios import test_life_together as together
from tests.scenarios import test_stop_and_lock as stops

Scenario = Callable[..., Awaitable[None]]

SCENARIOS: list[Scenario] = [
    test_exactly_once.test_R17_a_lost_ack_and_a_resend_over_a_new_connection_and_over_kill_9,
    test_exactly_once.test_R20_a_client_that_vanishes_cancels_nothing_that_was_read,
    test_generations.test_text_survives_kill_9_up_to_what_was_told_durable_and_the_tab_gives_back_the_rest,
    test_generations.test_a_server_that_is_stopped_keeps_every_character,
    test_resume.test_R28_a_stale_tab_after_a_restart_cannot_wipe_the_chat,
    test_resume.test_R32_history_that_was_trimmed_is_an_explicit_reset,
    test_resume.test_R35_R38_each_tab_gets_what_it_has_open_after_every_reconnect,
    test_log_replay.test_R07_after_a_kill_and_over_a_megabyte,
    stops.test_R39_a_stop_while_tabs_wait_answers_or_lets_resend,
]
"""All of it, on SQLite; `TELLBACK_STORE_SCENARIOS=all` runs every scenario of these modules that can be."""
MODULES = (
    test_exactly_once, test_generations, test_life, test_log_replay, test_resume, together, stops, test_catalog,
    test_swipes_and_floors, test_states,
)
"""Whose scenarios the long run tries."""


def everything() -> list[Scenario]:
    """Scenarios that need nothing but a folder. Many look into files, and fail for that."""
    return [
        one for module in MODULES for name, one in inspect.getmembers(module, inspect.iscoroutinefunction)
        if name.startswith("test_") and set(inspect.signature(one).parameters) <= {"tmp_path", "monkeypatch"}
    ]


def chat_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*.jsonl") if "trash" not in path.parts]


chosen = everything() if os.environ.get("TELLBACK_STORE_SCENARIOS") == "all" else SCENARIOS


@pytest.mark.parametrize("scenario", chosen, ids=lambda one: one.__name__.removeprefix("test_"))
async def test_a_scenario_of_files_holds_on_sqlite(
    scenario: Scenario, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """[SV1]"""
    monkeypatch.setenv("TELLBACK_STORE", f"sqlite://{tmp_path_factory.mktemp('store')}/chats.db")
    given: dict[str, Any] = {"tmp_path": tmp_path, "monkeypatch": monkeypatch}
    await scenario(**{name: given[name] for name in inspect.signature(scenario).parameters})
    assert not chat_files(tmp_path), "chats are in the store, and only there"
