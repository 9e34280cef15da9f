"""Swipes of random messages, held against what they must never do."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tellback_protocol import swipes
from tellback_protocol.errors import Refused
from tellback_protocol.patch import apply_patch, deep_copy, difference
from tellback_protocol.values import equal
from tests.support import json_strategies

TEXTS = st.sampled_from(["", "...", "a", "b", "c", "d"])
INFOS = st.fixed_dictionaries({}, optional={
    "send_date": st.sampled_from([1, "today"]), "gen_started": st.just("s"), "gen_finished": st.just("f"),
    "extra": st.dictionaries(st.sampled_from(["model", "token_count"]), st.integers(0, 3)),
})
EXTRA = {"extra": st.dictionaries(st.sampled_from(["model", "memory"]), st.integers(0, 3)), "send_date": st.just(7),
         "gen_started": st.just("g"), "name": st.just("Alice")}


def messages(*, odd: bool) -> st.SearchStrategy[dict[str, Any]]:
    """Messages with and without swipes; `odd` ones as other programs leave them."""
    text = st.one_of(TEXTS, st.none()) if odd else TEXTS
    ordinal: st.SearchStrategy[Any] = st.one_of(
        st.integers(-2, 5), st.none(), st.just("1"), st.just(1.0), st.just(True)
    )
    info = st.one_of(INFOS, st.none()) if odd else INFOS
    shaped = st.fixed_dictionaries(
        {"id": st.just("m"), "mes": TEXTS},
        optional={**EXTRA, "swipes": st.lists(text, max_size=4), "swipe_id": ordinal,
                  "swipe_info": st.one_of(st.lists(info, max_size=5), st.none())},
    )
    if odd:
        return shaped

    def whole(message: dict[str, Any]) -> dict[str, Any]:
        if message.get("swipes"):
            change = swipes.SwipeChange(message)
            change.repair()
            change.write_back()
            return change.value
        return {key: value for key, value in message.items() if not key.startswith("swipe")}

    return shaped.map(whole)


def check_in_step(message: dict[str, Any]) -> None:
    """The parallel fields of a message that was changed here."""
    if not message.get("swipes"):
        return
    texts, infos, now = message["swipes"], message["swipe_info"], message["swipe_id"]
    assert type(now) is int
    assert 0 <= now < len(texts)
    assert len(infos) == len(texts)
    assert all(isinstance(text, str) for text in texts)
    assert all(isinstance(info, dict) for info in infos)
    assert message["mes"] == texts[now]
    for key in swipes.INFO_KEYS:
        # What a working copy that was not edited lacks, the swipe may have.
        if key in message and key in infos[now]:
            assert equal(message[key], infos[now][key])


def check_operations(before: dict[str, Any], change: swipes.SwipeChange) -> None:
    """[E1] The operations alone lead to the new message, and the way back to the old one."""
    patched = apply_patch(deep_copy(before), deep_copy(change.operations))
    assert equal(patched.value, change.value)
    assert equal(apply_patch(deep_copy(change.value), deep_copy(change.undo)).value, before)


@given(messages(odd=True), st.sampled_from(["add", "add unseen", "select", "delete"]), st.integers(0, 5))
def test_a_swipe_request_leaves_the_fields_in_step_and_loses_no_text(
    message: dict[str, Any], action: str, ordinal: int
) -> None:
    """[Y1, Y2, Y3, Y4] Whatever another program left behind."""
    before = copy.deepcopy(message)
    number = swipes.count(message)
    kept = {text for text in message.get("swipes") or [] if isinstance(text, str)}
    try:
        if action.startswith("add"):
            change = swipes.add(message, {"mes": "new"}, select=action == "add")
        else:
            change = (swipes.select if action == "select" else swipes.delete)(message, ordinal)
    except Refused as refusal:
        assert equal(message, before)
        assert refusal.code in ("swipe-unknown", "swipe-last")
        assert (refusal.code == "swipe-unknown") == (ordinal >= number)
        return
    check_operations(before, change)
    value = change.value
    if before.get("swipes") or action != "select":
        check_in_step(value)
    shown = swipes.active(before)
    listed = value.get("swipes") or [value["mes"]]
    if action == "select":
        assert len(listed) == number
        assert swipes.active(value) == ordinal
    elif action.startswith("add"):
        assert len(listed) == number + 1
        assert listed[-1] == "new"
        assert swipes.active(value) == (number if action == "add" else shown)
    else:
        assert len(listed) == number - 1
        expected = min(ordinal, number - 2) if ordinal == shown else shown - (ordinal < shown)
        assert value["swipe_id"] == expected
    if action != "delete":
        # The text of the swipe shown before may have been edited in the working copy; every other one is still there.
        edited = (before.get("swipes") or [None])[min(shown, len(before.get("swipes") or [0]) - 1)]
        assert kept - {edited} <= set(listed)


@given(messages(odd=False), st.integers(0, 3))
def test_select_there_and_back_shows_the_same_message(message: dict[str, Any], ordinal: int) -> None:
    """[Y3] An edit that was not mirrored yet survives the way there and back."""
    if ordinal >= swipes.count(message):
        return
    message["mes"] = "edited"
    before = copy.deepcopy(message)
    shown = swipes.active(message)
    there = swipes.select(message, ordinal).value
    back = swipes.select(there, shown).value
    for key in ("mes", "swipe_id", "extra"):
        if key in before:
            assert equal(back[key], before[key])


@example(before={"id": "m", "mes": ""}, wanted={"id": "m", "mes": "a", "swipes": ["a", ""], "swipe_id": 2})
@given(messages(odd=False), messages(odd=True))
def test_an_edit_keeps_working_copy_and_active_swipe_in_step(before: dict[str, Any], wanted: dict[str, Any]) -> None:
    """[Y5, Y6] Any edit of a message that was in step."""
    wanted = {**wanted, "id": "m"}
    after = copy.deepcopy(wanted)
    change = swipes.follow(copy.deepcopy(before), after)
    if change is None:
        assert equal(after, wanted)
        return
    check_operations(wanted, change)
    check_in_step(change.value)
    if wanted["mes"] != before["mes"]:
        assert change.value["mes"] == wanted["mes"] or wanted["mes"] in ("", "..."), "the text that was written leads"


@given(json_strategies.OBJECTS, json_strategies.OBJECTS)
def test_a_message_of_another_shape_is_left_alone(before: dict[str, Any], after: dict[str, Any]) -> None:
    """[Y7] role and content, variations and currentVariation, or anything else."""
    after = {**after, "role": "assistant", "content": "hi", "variations": ["a"], "currentVariation": 3}
    after.pop("mes", None)
    kept = copy.deepcopy(after)
    assert swipes.follow(before, after) is None
    assert equal(after, kept)
    with pytest.raises(Refused, match="swipe-illegal"):
        swipes.add(after, {"mes": "x"}, select=True)
    for refused in (swipes.select, swipes.delete):
        with pytest.raises(Refused, match="swipe-illegal"):
            refused(after, 0)


def test_an_edit_costs_what_it_changes_not_the_number_of_swipes() -> None:
    """[Y8] One more word in a message of a thousand swipes."""
    before = {"id": "m", "mes": "0", "swipe_id": 0, "swipes": [str(n) for n in range(1000)],
              "swipe_info": [{"extra": {}} for _ in range(1000)], "extra": {}}
    change = swipes.follow(copy.deepcopy(before), {**copy.deepcopy(before), "mes": "0 and more"})
    assert change is not None
    assert change.operations == [{"op": "replace", "path": "/swipes/0", "value": "0 and more"}]
    selected = swipes.select(copy.deepcopy(before), 999)
    assert len(selected.operations) == 2


@given(json_strategies.VALUES, json_strategies.VALUES)
def test_the_operations_of_a_difference_lead_from_one_value_to_the_other(old: Any, new: Any) -> None:
    """[P3] Numbers keep their type: 1 does not become 1.0 by being equal."""
    operations = difference(old, new)
    value = apply_patch(deep_copy(old), deep_copy(operations)).value
    assert equal(value, new)
    if equal(old, new) and repr(old) == repr(new):
        assert operations == []
