"""Hypothesis strategies: JSON values, documents, patches that often fit, and requests that are often accepted."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

KEYS = st.sampled_from(["a", "b", "c", "a/b", "~", "", "0", "mes", "extra"])
INTEGERS = st.one_of(st.integers(-3, 3), st.sampled_from([2**53 + 1, 2**63 - 1, -(2**63), 2**64 - 1]))
SCALARS = st.one_of(
    st.none(), st.booleans(), INTEGERS, st.sampled_from([0.5, 1.0, -0.0, 1e300]),
    st.text(st.characters(codec="utf-8"), max_size=6),
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=8
)
OBJECTS = st.dictionaries(KEYS, VALUES, max_size=4)
NAMESPACES = st.sampled_from(["memory", "mood", "x.y"])


def escaped(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")


def pointers(value: Any, prefix: str = "") -> list[str]:
    """Every pointer into a value, the root included."""
    found = [prefix]
    if isinstance(value, dict):
        for key, inner in value.items():
            found += pointers(inner, f"{prefix}/{escaped(key)}")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            found += pointers(inner, f"{prefix}/{index}")
    return found


@st.composite
def patches(draw: st.DrawFn, value: Any, *, prefix: str = "", most: int = 4) -> list[dict[str, Any]]:
    """Operations whose paths mostly exist in `value`; later ones may no longer fit."""
    known = pointers(value)
    operations: list[dict[str, Any]] = []
    for _ in range(draw(st.integers(1, most))):
        kind = draw(st.sampled_from(["add", "add", "remove", "replace", "replace", "move", "copy", "test"]))
        path = draw(st.sampled_from(known))
        if kind in ("add", "move", "copy") and draw(st.booleans()):
            path = draw(st.sampled_from(known)) + "/" + draw(st.one_of(KEYS.map(escaped), st.sampled_from(["-", "1"])))
        operation: dict[str, Any] = {"op": kind, "path": prefix + path}
        if kind in ("move", "copy"):
            operation["from"] = prefix + draw(st.sampled_from(known))
        elif kind == "test" and draw(st.booleans()):
            operation["value"] = at(value, path)
        elif kind != "remove":
            operation["value"] = draw(VALUES)
        operations.append(operation)
    return operations


def at(value: Any, pointer: str) -> Any:
    """The value at a pointer that exists."""
    for token in pointer.split("/")[1:]:
        key = token.replace("~1", "/").replace("~0", "~")
        value = value[int(key)] if isinstance(value, list) else value[key]
    return value


def new_messages() -> st.SearchStrategy[dict[str, Any]]:
    """Messages, some with an id of their own."""
    return st.one_of(
        OBJECTS, st.builds(lambda inner, name: {**inner, "id": name}, OBJECTS, st.sampled_from(["n1", "n2", "m1"]))
    )


@st.composite
def requests(draw: st.DrawFn, document: dict[str, Any], integrities: list[str], last_op: int) -> dict[str, Any]:
    """A write without id, op and chat; `integrities` are versions that exist or existed, the newest last."""
    base = draw(
        st.one_of(
            st.just(integrities[-1]), st.just(integrities[-1]), st.sampled_from(integrities), st.just("*"),
            st.none(), st.just({"op": max(1, last_op)}),
        )
    )
    request = draw(single_requests(document))
    if draw(st.integers(0, 4)) == 0:
        inner = [request, *draw(st.lists(single_requests(document), max_size=2))]
        for each in inner:
            if each["type"].startswith("state-"):
                each["base"] = draw(st.sampled_from([None, integrities[-1], "*"]))
        request = {"type": "batch", "requests": inner}
    if draw(st.integers(0, 9)):
        request["base"] = base
    if draw(st.integers(0, 3)) == 0:
        request["force"] = True
    if draw(st.integers(0, 3)) == 0:
        request["on_conflict"] = "rebase"
    return request


@st.composite
def single_requests(draw: st.DrawFn, document: dict[str, Any]) -> dict[str, Any]:
    messages: list[dict[str, Any]] = document["messages"]
    ids = [message["id"] for message in messages] + ["m9"]
    kinds = ["append", "patch", "chat", "delete", "metadata-update", "state-update", "state-delete"]
    kind = draw(st.sampled_from(kinds))
    if kind == "append":
        return {"type": kind, "messages": draw(st.lists(new_messages(), min_size=1, max_size=3))}
    if kind == "delete":
        return {"type": kind, "messages": draw(st.lists(st.sampled_from(ids), min_size=1, max_size=3))}
    if kind == "patch":
        message = draw(st.sampled_from(messages)) if messages else {"id": "m9"}
        return {"type": kind, "message": message["id"], "patch": draw(patches(message))}
    if kind == "chat":
        whole = {"metadata": document["metadata"], "messages": messages}
        return {"type": "patch", "patch": draw(patches(whole))}
    if kind == "state-delete":
        return {"type": kind, "namespace": draw(NAMESPACES)}
    request: dict[str, Any] = {"type": kind}
    old: Any = document["metadata"]
    if kind == "state-update":
        request["namespace"] = draw(NAMESPACES)
        old = document["states"].get(request["namespace"], {})
    way = draw(st.sampled_from(["set", "merge", "patch"]))
    whole = OBJECTS if kind == "metadata-update" else VALUES
    request[way] = draw({"set": whole, "merge": OBJECTS}.get(way, patches(old)))
    return request
