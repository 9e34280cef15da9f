"""What the writes of a generation do: a place is reserved, and when it ends its text goes there.

Rules of this module (BEHAVIOUR T1 to T9):
- A reply of its own stands behind the message that it answers, and at the tail when that is gone.
- Text that cannot go where it was meant for (the message is gone, has another shape, or would be too large) becomes a
  message of its own: it is never lost.
- The messages of others are changed as any other write changes them: swipes stay in step, floor states follow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec
from msgspec import UNSET, Raw, UnsetType

from . import swipes
from .bases import Bases
from .effects import AppendEffect, DeleteEffect, InsertEffect, StateEffect
from .errors import Refused, illegal
from .generation_requests import (
    Generate,
    GenerationCancel,
    GenerationEnd,
    GenerationError,
    GenerationStart,
    GenerationTarget,
    GenerationWrite,
)
from .generations import FINISHED_MAX, NAMESPACE, Generation, Running, entry_of, generations_of, text_member
from .ids import message_id_problem
from .patch import Operation, deep_copy, join_pointer
from .provenance import continued, model_of, times
from .requests import BatchedSwipe
from .values import dumps, loads, read_payload
from .work import Work

REPLY_BYTES_MAX = 64 << 10
"""Fields of a reply that the document keeps while it runs."""
UNCONFIRMED_MAX = 128
"""Finished generations that are kept although they were acknowledged by nobody."""
_TEXTS = ("mes", "content")
Ending = Literal["stored", "cancelled", "failed", "orphaned"]


def carry_out_generation(
    work: Work, request: GenerationWrite, session: str, bases: Bases, models: Sequence[str] = ()
) -> None:
    """Check `request` and put its effects into `work`; `models` are the model servers that can be asked.

    Raises: Refused, Conflicting.
    """
    work.plain = False
    match request:
        case GenerationStart():
            _start(work, request, session, bases)
        case Generate():
            _start(work, request, session, bases, _check_model(work, request, models))
        case GenerationEnd():
            _end(work, request, session)
        case GenerationCancel():
            _running_one(work, request.generation)
            finish(work, request.generation, "cancelled")


# -- the beginning ---------------------------------------------------------------------------------------------------


def _check_model(work: Work, request: Generate, models: Sequence[str]) -> str | None:
    """The model that is asked for, if the body names one."""
    if not models:
        raise Refused("unsupported", "This server asks no models.", pointer="/type")
    if request.upstream not in models:
        raise Refused("upstream-unknown", f"The model servers here are {', '.join(models)}.", pointer="/upstream")
    body = read_payload(bytes(request.body), "/body", work.limits.depth)
    if not isinstance(body, dict):
        raise Refused("bad-frame", "What a model is asked is a JSON object.", pointer="/body")
    return model_of(body)


def _start(
    work: Work, request: GenerationStart | Generate, session: str, bases: Bases, model: str | None = None
) -> None:
    document = work.stream.states.get(NAMESPACE)
    if document is not None and document.corrupt:
        raise Refused("state-corrupt", f"The file of {NAMESPACE!r} is not what it should be; it is kept as it is.")
    if request.generation in work.stream.generations:
        raise Refused("generation-exists", "This id was used for another generation.", pointer="/generation")
    reply = _reply(work, request.reply)
    for member in _TEXTS:
        if reply.get(member, "") != "":
            raise Refused("message-illegal", "The text of a reply comes in deltas.", pointer=f"/reply/{member}")
    if isinstance(request.reply, Raw) and len(request.reply) > REPLY_BYTES_MAX:
        raise Refused("too-large", f"The fields of a reply have at most {REPLY_BYTES_MAX} bytes.", pointer="/reply")
    target = request.target
    ids: list[str] = []
    generation = Generation("running", target, "", session, work.fresh.now_ms)
    if target.kind == "message":
        if isinstance(target.message, str):
            raise Refused("bad-frame", "A reply of its own has no message yet.", pointer="/target/message")
        bases.check_chat(request.base, ("a",), True)
        if request.messages:
            ids = work.append(request.messages)
        order = work.chat.messages
        generation.after = ids[-1] if ids else next(reversed(order)) if order else None
        generation.message = _reserved(work, reply, ids)
    else:
        _aim(work, request, generation, reply, bases)
    generation.reply = Raw(dumps({key: value for key, value in reply.items() if key != "id"}))
    if isinstance(request, Generate):
        generation.upstream = request.upstream
        generation.model = model if model is not None else UNSET
    elif isinstance(request.lease_s, int):
        generation.lease_s = request.lease_s
    if isinstance(request.supersedes, str):
        generation.supersedes = request.supersedes
    for other_id, other in work.stream.generations.items():
        if other.state == "running" and other.slot == generation.slot:
            raise Refused(
                "generation-running", "Another generation is being written there.", pointer="/target",
                details={"generation": other_id},
            )
    _put(work, {**_pruned(work.stream.generations), request.generation: generation})
    told: dict[str, Any] = {"generation": request.generation, "message": generation.message}
    if ids:
        told["messages"] = ids
    work.told = dumps(told)


def _aim(
    work: Work, request: GenerationStart | Generate, generation: Generation, reply: dict[str, Any], bases: Bases
) -> None:
    """At a swipe or the end of a message that is there."""
    target = request.target
    if not isinstance(target.message, str):
        raise Refused("bad-frame", "Name the message that gets the text.", pointer="/target/message")
    if request.messages:
        raise Refused("bad-frame", "Only a reply of its own has a user's turn before it.", pointer="/messages")
    if "id" in reply:
        raise Refused("id-immutable", "The message has its id already.", pointer="/reply/id")
    bases.check_chat(request.base, (f"m:{target.message}",), True)
    if target.message not in work.chat.messages:
        raise Refused("message-unknown", f"The chat has no message {target.message[:64]!r}.", pointer="/target/message")
    value = work.chat.value(target.message)
    if target.kind == "swipe":
        swipes.add(value, {"mes": ""}, select=False)
    elif _text_member(value) is None:
        raise Refused("message-illegal", "The message has no text to go on with.", pointer="/target/message")
    else:
        generation.swipe = swipes.active(value)
    generation.message = target.message


def _reserved(work: Work, reply: dict[str, Any], ids: list[str]) -> str:
    taken = dict.fromkeys(ids)
    if "id" not in reply:
        return work.new_id(taken)
    message_id = reply["id"]
    problem = message_id_problem(message_id)
    if problem:
        raise illegal("message-illegal", problem, "/reply/id")
    if work.is_taken(message_id) or message_id in taken:
        raise Refused("message-id-taken", f"The chat already has a message {message_id[:64]!r}.", pointer="/reply/id")
    return str(message_id)


def _reply(work: Work, raw: Raw | UnsetType) -> dict[str, Any]:
    if not isinstance(raw, Raw):
        return {}
    value = read_payload(bytes(raw), "/reply", work.limits.depth)
    if not isinstance(value, dict):
        raise Refused("message-illegal", "A reply is a JSON object.", pointer="/reply")
    if not isinstance(value.get("extra", {}), dict):
        raise Refused("message-illegal", "extra is a JSON object.", pointer="/reply/extra")
    return value


# -- the end ---------------------------------------------------------------------------------------------------------


def _running_one(work: Work, generation_id: str) -> Generation:
    generation = work.stream.generations.get(generation_id)
    if generation is None:
        raise Refused("generation-unknown", "The chat has no such generation.", pointer="/generation")
    if generation.state != "running":
        raise Refused(
            "generation-ended", "This generation has ended.", pointer="/generation",
            details={"state": generation.state},
        )
    return generation


def _end(work: Work, request: GenerationEnd, session: str) -> None:
    generation = _running_one(work, request.generation)
    if generation.producer != session:
        raise Refused("not-producer", "This session does not produce the text.", pointer="/generation")
    running = work.stream.running[request.generation]
    for pointer, wanted, units in (
        ("/length", request.length, running.text.units),
        ("/reasoning_length", request.reasoning_length, running.reasoning.units),
    ):
        if not isinstance(wanted, int) or wanted == units:
            continue
        code = "generation-gap" if units < wanted else "generation-mismatch"
        raise Refused(code, f"The text has {units} units here.", pointer=pointer, details={"expected": units})
    reply = _reply(work, request.reply) if isinstance(request.reply, Raw) else None
    if reply is not None:
        if "id" in reply and reply["id"] != generation.message:
            raise Refused("id-immutable", "The id of a reply was fixed at its start.", pointer="/reply/id")
        for member in _TEXTS:
            if not isinstance(reply.get(member, ""), str):
                raise Refused("message-illegal", "The text of a reply is a string.", pointer=f"/reply/{member}")
    failed = isinstance(request.error, GenerationError)
    finish(work, request.generation, "failed" if failed else "stored", reply, request.error)


def finish(
    work: Work, generation_id: str, state: Ending, reply: dict[str, Any] | None = None,
    error: GenerationError | UnsetType = UNSET, stray: tuple[Generation, Running] | None = None,
) -> None:
    """What there is of the text goes where it belongs, and the generation has ended."""
    work.plain = False
    generation = work.stream.generations[generation_id] if stray is None else stray[0]
    ended = msgspec.structs.replace(
        generation, state=state, reply=UNSET, lease_s=UNSET, ended_ms=work.fresh.now_ms,
        integrity=work.version.integrity, error=error,
    )
    running = (work.stream.running.get(generation_id) or Running()) if stray is None else stray[1]
    fields, member, text = _fields(work, generation, running, reply)
    if text or running.reasoning.units or "reasoning" in fields.get("extra", {}) or reply:
        ended.is_stored = True
        _tell_provenance(fields, member, generation, running, work.fresh.now_ms)
        if not (generation.target.kind != "message" and _into_message(work, generation, ended, fields, text)):
            _as_message(work, generation, ended, fields, member, text, is_asked=bool(reply))
    _put(work, {generation_id: ended})
    work.told = dumps({"generation": generation_id, "message": ended.message, "state": state,
                       "stored": ended.is_stored})


def finish_strays(work: Work) -> None:
    """Texts whose generations another program took away go where they belong (BEHAVIOUR T23)."""
    for generation_id, (known, running) in work.stream.stray.items():
        generation = known or Generation("running", GenerationTarget(), work.new_id({}), "", work.fresh.now_ms)
        finish(work, generation_id, "orphaned", stray=(generation, running))


def _fields(
    work: Work, generation: Generation, running: Running, reply: dict[str, Any] | None
) -> tuple[dict[str, Any], str, str]:
    """The reply without its text, the member that the text goes to, and the text."""
    fields = loads(bytes(generation.reply)) if isinstance(generation.reply, Raw) else {}
    before = fields.get("extra")
    fields.update(reply or {})
    if isinstance(before, dict) and isinstance(fields.get("extra"), dict):
        fields["extra"] = {**before, **fields["extra"]}
    fields.pop("id", None)
    meant_for = generation.target.message
    if isinstance(meant_for, str) and meant_for in work.chat.messages:
        member = _text_member(work.chat.value(meant_for)) or "mes"
    else:
        member = text_member(fields)
    given = [one for one in ((reply or {}).get(key) for key in (member, *_TEXTS)) if isinstance(one, str)]
    text = given[0] if given else str(running.text)
    for key in _TEXTS if isinstance(meant_for, str) else (member,):
        fields.pop(key, None)
    return fields, member, text


def _tell_provenance(
    fields: dict[str, Any], member: str, generation: Generation, running: Running, now_ms: int
) -> None:
    """Add to the reply what nobody said of how it was made."""
    if member == "mes":
        for key, moment in times(generation.started_ms, now_ms).items():
            fields.setdefault(key, moment)
    api, model = (name if isinstance(name, str) else None for name in (generation.upstream, generation.model))
    extra = running.provenance.members(api, model, str(running.reasoning))
    if extra:
        fields["extra"] = {**extra, **fields.get("extra", {})}


def _as_message(
    work: Work, generation: Generation, ended: Generation, fields: dict[str, Any], member: str, text: str, *,
    is_asked: bool,
) -> None:
    """A message of its own: behind the one that it answers, or at the tail."""
    after, message_id = generation.after, generation.message
    order = work.chat.messages
    if generation.target.kind != "message":
        after, message_id = generation.target.message, work.new_id({})
        if isinstance(after, str) and after in order:
            meant_for = work.chat.value(after)
            fields = {**{key: meant_for[key] for key in ("name", "is_user", "role") if key in meant_for}, **fields}
        ended.swipe = UNSET
    elif message_id in order:
        # Another program put a message there that has this id.
        message_id = work.new_id({})
    ended.message = message_id
    value = {"id": message_id, **fields, member: text}
    line = dumps(value)
    if len(line) > work.limits.document_bytes and not is_asked:
        # Nobody can be told to make it smaller: the text goes before what was to stand beside it.
        reasoning = fields.get("extra", {}).get("reasoning")
        value = {"id": message_id, member: text}
        if isinstance(reasoning, str):
            value["extra"] = {"reasoning": reasoning}
        line = dumps(value)
    if len(line) > work.limits.document_bytes:
        raise Refused("too-large", f"A message has at most {work.limits.document_bytes} bytes.", pointer="/reply")
    if work.floors.is_touched(message_id):
        work.floors.returned(message_id, value)
    if isinstance(after, str) and after in order and after != next(reversed(order)):
        work.spend_order()
        work.add(InsertEffect(after, [Raw(line)]))
    else:
        work.add(AppendEffect([Raw(line)]))
    work.undo.append(DeleteEffect([message_id]))


def _into_message(
    work: Work, generation: Generation, ended: Generation, fields: dict[str, Any], text: str
) -> bool:
    """Into the message that it was meant for. False when that is not possible any more."""
    message_id = generation.message
    if message_id not in work.chat.messages:
        return False
    value = work.chat.value(message_id)
    is_more = generation.target.kind == "continue" and isinstance(generation.swipe, int)
    try:
        if is_more and isinstance(generation.swipe, int) and generation.swipe < swipes.count(value):
            operations = _more(value, generation.swipe, fields, text)
            if operations is None or not _fits(work, value, fields, text):
                return False
            work.patch_message(message_id, dumps(operations), operations, "/reply")
            return True
        content = {"mes": text, **{key: fields[key] for key in swipes.INFO_KEYS if key in fields}}
        change = swipes.add(deep_copy(value), content, select=True)
        if len(dumps(change.value)) > work.limits.document_bytes:
            return False
        ended.swipe = change.active
        work.swipe(BatchedSwipe(message_id, "add", content=Raw(dumps(content))))
    except Refused:
        return False
    return True


def _more(value: dict[str, Any], swipe: int, fields: dict[str, Any], text: str) -> list[Operation] | None:
    """The operations that put `text` behind the text of a swipe, and its fields into it; None when it has none."""
    at: list[str] = []
    info: Any = value
    if swipe == swipes.active(value):
        member = _text_member(value)
        if member is None:
            return None
        at, before = [member], value[member]
    else:
        at, before = ["swipes", str(swipe)], value["swipes"][swipe]
        infos = value.get("swipe_info")
        info = infos[swipe] if isinstance(infos, list) and swipe < len(infos) else None
    if not isinstance(before, str):
        return None
    operations: list[Operation] = [{"op": "replace", "path": join_pointer(at), "value": before + text}]
    if isinstance(info, dict):
        inside = [] if info is value else ["swipe_info", str(swipe)]
        for key in swipes.INFO_KEYS:
            if key not in fields:
                continue
            new = fields[key]
            if key == "extra" and isinstance(info.get("extra"), dict):
                new = continued(info["extra"], new)
            operations.append({"op": "add", "path": join_pointer([*inside, key]), "value": new})
    return operations


def _fits(work: Work, value: dict[str, Any], fields: dict[str, Any], text: str) -> bool:
    # The working copy and the swipe that it shows both get it.
    return len(dumps(value)) + 2 * (len(dumps(text)) + len(dumps(fields))) <= work.limits.document_bytes


def _text_member(value: dict[str, Any]) -> str | None:
    return next((member for member in _TEXTS if isinstance(value.get(member), str)), None)


# -- the document ----------------------------------------------------------------------------------------------------


def acknowledge(work: Work, holders: dict[str, list[str]]) -> None:
    """These sessions hold the results of these generations."""
    known = work.stream.generations
    changes: dict[str, Generation | None] = {}
    for generation_id, sessions in holders.items():
        generation = known.get(generation_id)
        if generation is None or generation.state == "running":
            continue
        acked = list(dict.fromkeys([*generation.acked, *sessions]))
        if acked != generation.acked:
            changes[generation_id] = msgspec.structs.replace(generation, acked=acked)
    work.plain = False
    if changes:
        _put(work, changes)


def swipe_deleted(work: Work, message_id: str, ordinal: int) -> None:
    """A swipe was taken away: text that goes on with a later one goes on with the same one."""
    changes: dict[str, Generation | None] = {}
    # An earlier request of the same batch may have taken one away, too.
    for generation_id, generation in generations_of(work.state_now(NAMESPACE)).items():
        swipe = generation.swipe
        if generation.state == "running" and generation.message == message_id and isinstance(swipe, int) and (
            swipe >= ordinal
        ):
            changes[generation_id] = msgspec.structs.replace(
                generation, swipe=None if swipe == ordinal else swipe - 1
            )
    if changes:
        work.plain = False
        _put(work, changes)


def _pruned(known: dict[str, Generation]) -> dict[str, Generation | None]:
    """The oldest of those that ended and were acknowledged, as far as there are too many."""
    ended = [(one_id, one) for one_id, one in reversed(known.items()) if one.state != "running"]
    return {
        one_id: None for index, (one_id, one) in enumerate(ended)
        if index >= UNCONFIRMED_MAX - 1 or (index >= FINISHED_MAX - 1 and one.by in one.acked)
    }


def _put(work: Work, changes: dict[str, Generation | None] | dict[str, Any]) -> None:
    """Change entries of the document; None takes one away."""
    data = work.state_now(NAMESPACE)
    document = loads(data) if data is not None else {}
    is_object = isinstance(document, dict)
    if not is_object:
        document = {}
    operations: list[Operation] = []
    for generation_id, generation in changes.items():
        path = join_pointer([generation_id])
        if generation is None:
            document.pop(generation_id, None)
            operations.append({"op": "remove", "path": path})
            continue
        entry = entry_of(generation)
        operations.append({"op": "replace" if generation_id in document else "add", "path": path, "value": entry})
        document[generation_id] = entry
    known = work.stream.states.get(NAMESPACE)
    previous = known.version.integrity if known is not None and known.version is not None else None
    new = dumps(document)
    effect = StateEffect(NAMESPACE, work.version, previous)
    if is_object:
        effect.patch = Raw(dumps(operations))
    else:
        effect.data = Raw(new)
    work.states[NAMESPACE] = new
    work.add(effect)
