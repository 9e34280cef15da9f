"""A second, simpler implementation of what a request means, to hold the real one against.

It knows nothing of effects, versions or bases: it takes a request that was accepted, and the ids that new messages
were given, and works on one plain JSON document with the `jsonpatch` library.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import jsonpatch

Document = dict[str, Any]


def after(document: Document, request: dict[str, Any], new_ids: Iterator[str]) -> Document:
    """The document after an accepted request. `document` has metadata, messages and states."""
    result = copy.deepcopy(document)
    requests = request["requests"] if request["type"] == "batch" else [request]
    for inner in requests:
        _carry_out(result, copy.deepcopy(inner), new_ids)
    return result


def _carry_out(document: Document, request: dict[str, Any], new_ids: Iterator[str]) -> None:
    messages: list[Any] = document["messages"]
    match request["type"]:
        case "append":
            messages.extend(_identified(message, new_ids) for message in request["messages"])
        case "delete":
            document["messages"] = [message for message in messages if message["id"] not in request["messages"]]
        case "patch" if "message" in request:
            index = next(i for i, message in enumerate(messages) if message["id"] == request["message"])
            messages[index] = patched(messages[index], request["patch"])
        case "patch":
            for operation in request["patch"]:
                _patch_chat(document, operation, new_ids)
        case "metadata-update":
            document["metadata"] = updated(document["metadata"], request)
        case "state-update":
            states = document["states"]
            states[request["namespace"]] = updated(states.get(request["namespace"], {}), request)
        case "state-delete":
            document["states"].pop(request["namespace"], None)


def _patch_chat(document: Document, operation: dict[str, Any], new_ids: Iterator[str]) -> None:
    before = {message["id"] for message in document["messages"]}
    tokens = operation["path"].split("/")
    if operation["op"] == "replace" and len(tokens) == 3 and tokens[1] == "messages":
        kept = document["messages"][int(tokens[2])]["id"]
        operation["value"] = {"id": kept, **operation["value"]}
    chat = patched({"metadata": document["metadata"], "messages": document["messages"]}, [operation])
    if operation["op"] == "copy" and len(tokens) == 3 and tokens[1] == "messages":
        index = len(chat["messages"]) - 1 if tokens[2] == "-" else int(tokens[2])
        if chat["messages"][index].get("id") in before:
            del chat["messages"][index]["id"]
    document["metadata"] = chat["metadata"]
    document["messages"] = [_identified(message, new_ids) for message in chat["messages"]]


def _identified(message: dict[str, Any], new_ids: Iterator[str]) -> dict[str, Any]:
    return message if "id" in message else {"id": next(new_ids), **message}


def updated(old: Any, request: dict[str, Any]) -> Any:
    if "set" in request:
        return request["set"]
    if "patch" in request:
        return patched(old, request["patch"])
    return _merged(old, request["merge"])


def patched(value: Any, operations: list[dict[str, Any]]) -> Any:
    for operation in operations:
        # The library does not take the whole document away; RFC 6902 does not forbid it.
        taken = operation["op"] == "remove" and operation["path"] == ""
        value = None if taken else jsonpatch.apply_patch(value, [operation])
    return value


def _merged(target: Any, merge: Any) -> Any:
    """RFC 7386, word for word."""
    if not isinstance(merge, dict):
        return merge
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in merge.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = _merged(result.get(key), value)
    return result
