"""RFC 6902 through our own module: the public suites, the way back, and the bombs."""

from __future__ import annotations

import copy
import json
import time
from typing import Any

import jsonpatch
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tellback_protocol.errors import Refused
from tellback_protocol.patch import apply_patch, check_operations, make_patch, merge_to_patch
from tellback_protocol.values import equal
from tests.support.shared import shared_json

CASES = [
    (f"{name}-{index}", case)
    for name in ("spec_tests", "tests")
    for index, case in enumerate(shared_json(f"data/json-patch-tests/{name}.json"))
    if "patch" in case and not case.get("disabled")
]


@pytest.mark.parametrize("case", [case for _, case in CASES], ids=[name for name, _ in CASES])
def test_p1_the_public_suite_holds_and_the_way_back_leads_back(case: dict[str, Any]) -> None:
    document = copy.deepcopy(case["doc"])
    try:
        patched = apply_patch(copy.deepcopy(document), check_operations(copy.deepcopy(case["patch"]), "/patch"))
    except Refused as refusal:
        assert "error" in case, refusal
        return
    assert "error" not in case
    if "expected" in case:
        assert equal(patched.value, case["expected"])
    undo = json.loads(json.dumps(patched.undo))
    assert equal(apply_patch(patched.value, undo).value, document)


def test_the_suites_are_there() -> None:
    assert len(CASES) > 100


def test_p3_the_copy_bomb_is_refused_before_it_grows() -> None:
    bomb = [{"op": "copy", "from": "/a", "path": "/a/-"} for _ in range(24)]
    best_s = 1.0
    for _ in range(5):
        started_s = time.process_time()
        with pytest.raises(Refused, match="patch-too-large"):
            apply_patch({"a": [1, 2, 3, 4]}, check_operations(copy.deepcopy(bomb), "/patch"))
        best_s = min(best_s, time.process_time() - started_s)
    assert best_s < 0.05


def test_p3_ten_thousand_operations_are_taken_and_one_more_is_not() -> None:
    operations = [{"op": "replace", "path": "/n", "value": number} for number in range(10_000)]
    assert apply_patch({"n": 0}, check_operations(operations, "/patch")).value == {"n": 9_999}
    with pytest.raises(Refused, match="patch-too-large"):
        check_operations([*operations, operations[0]], "/patch")


def test_p2_a_refusal_names_the_operation() -> None:
    with pytest.raises(Refused) as caught:
        apply_patch({"a": 1}, [{"op": "replace", "path": "/a", "value": 2}, {"op": "remove", "path": "/b"}])
    assert caught.value.code == "patch-failed"
    assert caught.value.pointer == "/patch/1"


scalars = st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=3)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab/~", max_size=2), inner, max_size=3)
)


@given(values, values)
def test_the_difference_of_two_values_leads_from_one_to_the_other_and_back(one: Any, other: Any) -> None:
    operations = make_patch(copy.deepcopy(one), copy.deepcopy(other))
    patched = apply_patch(copy.deepcopy(one), copy.deepcopy(operations))
    assert equal(patched.value, other)
    assert equal(jsonpatch.apply_patch(copy.deepcopy(one), operations), patched.value)
    assert equal(apply_patch(patched.value, patched.undo).value, one)


@given(st.dictionaries(st.text("ab", max_size=2), values, max_size=3), values)
def test_a_merge_written_out_is_rfc_7386(target: dict[str, Any], merge: Any) -> None:
    operations = merge_to_patch(target, copy.deepcopy(merge))
    assert equal(apply_patch(copy.deepcopy(target), operations).value, merged(target, merge))


def merged(target: Any, patch: Any) -> Any:
    """RFC 7386 section 2, as it stands there."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = merged(result.get(name), value)
    return result
