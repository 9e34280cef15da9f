"""Reads `spec/vectors/` and carries out its scenarios with the Python core.

The shape of the files is described in `spec/vectors/README.md`; the browser SDK has a runner of its own.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from tellback_protocol import codec
from tellback_protocol.chat import Chat
from tellback_protocol.codec import FrameProblem
from tellback_protocol.decide import (
    Committed,
    Decision,
    Fresh,
    Stored,
    conflict_body,
    decide,
    install,
)
from tellback_protocol.effects import Commit, decode_commit, decode_effects
from tellback_protocol.errors import Refused
from tellback_protocol.frames import Damage, Limits
from tellback_protocol.ids import Version
from tellback_protocol.life import NO_FACTS, Facts
from tellback_protocol.requests import Malformed, OwnerName
from tellback_protocol.stream import StateDocument, Stream
from tellback_protocol.values import dumps, loads

FOLDER = Path(__file__).resolve().parents[2] / "spec" / "vectors"
LIMITS = Limits()
CHAT_ID = "11111111-1111-4111-8111-111111111111"


def written_out(value: Any) -> Any:
    """A vector's value written out: `{"$repeat": [text, times]}` is a long string, `{"$times": [item, times]}` in an
    array so many items."""
    if isinstance(value, dict):
        if value.keys() == {"$repeat"}:
            text, times = value["$repeat"]
            return text * times
        return {key: written_out(inner) for key, inner in value.items()}
    if isinstance(value, list):
        items: list[Any] = []
        for inner in value:
            if isinstance(inner, dict) and inner.keys() == {"$times"}:
                item, times = inner["$times"]
                items.extend(written_out(item) for _ in range(times))
            else:
                items.append(written_out(inner))
        return items
    return value


def read(folder: str) -> list[tuple[str, dict[str, Any]]]:
    """All vectors of one folder, each with a label for pytest: file and name."""
    vectors: list[tuple[str, dict[str, Any]]] = []
    files = sorted((FOLDER / folder).glob("*.json"))
    assert files, f"spec/vectors/{folder} holds no vectors"
    for file in files:
        for vector in json.loads(file.read_text(encoding="utf-8"))["vectors"]:
            vectors.append((f"{file.stem}: {vector['name']}", written_out(vector)))
    return vectors


def read_all() -> list[tuple[str, dict[str, Any]]]:
    """All vectors of all folders."""
    folders = sorted(path.name for path in FOLDER.iterdir() if path.is_dir())
    return [labelled for folder in folders for labelled in read(folder)]


def version_of(value: dict[str, Any]) -> Version:
    return msgspec.convert(value, Version)


def stream_of(document: dict[str, Any]) -> Stream:
    """A stream that holds a vector's document, as if just opened from files: no history, no sessions."""
    version = version_of(document["version"])
    chat = Chat.from_values(version, document["metadata"], document["messages"])
    head = version_of(document["head"]) if "head" in document else version
    stream = Stream("user", document.get("owner", "group:vectors"), CHAT_ID, chat, head)
    for namespace, state in document.get("states", {}).items():
        data = dumps(state["data"]) if "data" in state else None
        corrupt = bool(state.get("corrupt"))
        stream.states[namespace] = StateDocument(version_of(state["version"]), data, corrupt=corrupt)
    stream.deleted = bool(document.get("deleted"))
    stream.read_floors()
    stream.settle_floors()
    if document.get("damaged"):
        stream.damage = [Damage(2, "no JSON")]
    for session, last in document.get("sessions", {}).items():
        stream.session(session).last = last
    return stream


def document_of(stream: Stream) -> dict[str, Any]:
    """The document of a stream in the vectors' shape."""
    states: dict[str, Any] = {}
    for namespace, state in sorted(stream.states.items()):
        entry: dict[str, Any] = {"version": msgspec.to_builtins(state.version)}
        if state.data is not None:
            entry["data"] = loads(state.data)
        if state.corrupt:
            entry["corrupt"] = True
        states[namespace] = entry
    document: dict[str, Any] = {
        "version": msgspec.to_builtins(stream.chat.version),
        "head": msgspec.to_builtins(stream.head),
        "metadata": stream.chat.metadata_value(),
        "messages": [json.loads(line) for line in stream.chat.served_all()],
        "states": states,
    }
    if stream.damage:
        document["damaged"] = True
    return document


def standing_of(stream: Stream, document: dict[str, Any]) -> dict[str, Any]:
    """What became of the owner that began as `document`: its name, when it has another one, and whether it is in the
    trash."""
    standing: dict[str, Any] = {}
    if stream.name != document.get("owner", "group:vectors"):
        standing["name"] = stream.name
    if stream.deleted:
        standing["deleted"] = True
    return standing


def fresh_of(value: dict[str, Any]) -> Fresh:
    return Fresh(value["integrity"], value["id_seed"], 0)


def carry_out(
    stream: Stream, session: str, data: bytes, fresh: Fresh, limits: Limits = LIMITS, models: Sequence[str] = (),
    facts: Facts = NO_FACTS,
) -> tuple[dict[str, Any], Decision | None]:
    """The answer to one frame that is a write, as the server would send it, and what was decided (then installed)."""
    try:
        request = codec.decode_client(data, limits)
    except FrameProblem as problem:
        return json.loads(codec.error(problem.refusal, problem.echo)), None
    if isinstance(getattr(request, "owner", None), OwnerName):
        owner = codec.owner_json(request.owner)  # type: ignore[union-attr]
    else:
        owner = codec.chat_json(request.chat)  # type: ignore[union-attr]
    try:
        decision = decide(stream, request, session, fresh, limits, facts, models)  # type: ignore[arg-type]
    except Refused as refusal:
        echo = codec.echo_of(loads(data))
        return json.loads(codec.error(refusal, echo)), None
    if not isinstance(request, Malformed):
        assert not isinstance(request.op, msgspec.UnsetType), "a write without op is refused"
    op = int(request.op)  # type: ignore[union-attr, arg-type]
    if isinstance(decision, (Committed, Stored)):
        install(stream, session, op, decision, fresh.now_ms)
    outcome = decision.outcome
    body = outcome.body
    if outcome.kind == "conflict":
        body = conflict_body(stream, outcome, codec.owner_member(stream.name))
    duplicate = not isinstance(decision, (Committed, Stored))
    answer = codec.answer(outcome.kind, request.id, owner, op, body, duplicate)  # type: ignore[union-attr]
    codec.decode_server(answer)
    return json.loads(answer), decision


def commit_of(decision: Committed) -> Commit:
    """A commit as the log gives it back."""
    return decode_commit(decision.record)


def apply_effects(stream: Stream, effects: list[dict[str, Any]], version: Version) -> dict[str, Any]:
    """The document after one commit's effects, installed as a replica or recovery does."""
    commit = Commit(version, stream.head.integrity, decode_effects(dumps(effects)))
    stream.fold(commit)
    return document_of(stream)
