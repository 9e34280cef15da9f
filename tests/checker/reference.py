"""What the accepted requests mean, worked out a second time: from the request, the chat before it and RFC 6902 alone.

It shares nothing with the server but the `jsonpatch` library. For each commit it says what the touched messages,
metadata and states must be afterwards, and compares; swipes and floor states have oracles of their own. What the server
does by itself (the end of a generation) is installed and looked at, not foreseen.
"""

from __future__ import annotations

import copy
from typing import Any

from tests.checker.follower import LOG_ENDING, Copy
from tests.checker.notebook import Frame
from tests.support.floor_oracle import FloorOracle, Message
from tests.support.model import patched, updated

LIFE = ("chat-rename", "chat-branch", "chat-delete", "chat-restore", "backup-restore")
GENERATION = ("generation-start", "generation-end")
MIRRORED = ("swipes", "swipe_info", "swipe_id")
_GONE = object()
_UNKNOWN = object()
"""What a change of a state becomes that was not read since a turn."""


class Reference:
    """The chat as it must be. Begins with what a newcomer read."""

    def __init__(self, first: Frame) -> None:
        self.copy = Copy()
        self.copy.messages = {message["id"]: copy.deepcopy(message) for message in first["messages"]}
        self.copy.metadata = copy.deepcopy(first["metadata"])
        self.copy.head = first["head"]
        self.copy.knows_states = True
        self._floors = FloorOracle()
        self._floors.messages = [_as_floor(message) for message in first["messages"]]
        self.follows_floors = True
        self.texts: dict[str, str] = {}
        """What was sent of each generation."""

    def begin_again(self, head: Frame, messages: list[Frame], metadata: Frame) -> None:
        """Go on with what was read where another program's edit or a backup took the chat's place.

        The content of states, and what their floor logs say, is not known from here on.
        """
        self.copy = Copy()
        self.copy.messages = {message["id"]: copy.deepcopy(message) for message in messages}
        self.copy.metadata = copy.deepcopy(metadata)
        self.copy.head = head
        self.follows_floors = False

    def commit(self, commit: Frame, request: Frame | None) -> list[str]:
        """Installs a commit; returns what differs from what its request means."""
        wanted = self._wanted(request, commit) if request is not None and request["type"] not in LIFE else None
        before = {key: list(self.copy.messages) for key in ("order",)}
        self.copy.install(commit["version"], copy.deepcopy(commit["ops"]))
        problems = [] if wanted is None or request is None else self._differences(wanted, request, commit)
        if request is not None and request["type"] == "generation-end":
            problems += self._generation(request, commit)
        if self.follows_floors:
            self._follow_floors(request, commit, before["order"])
        return problems

    def floors(self) -> list[str]:
        """Where the floor states differ from doing everything again from the beginning. Cost: all of it."""
        problems: list[str] = []
        for namespace in self._floors.logs if self.follows_floors else ():
            if self.copy.states.get(namespace) is None:
                continue
            state, _skipped = self._floors.state(namespace)
            if state != self.copy.states[namespace]:
                problems.append(f"the floor state {namespace} is {self.copy.states[namespace]}, its log says {state}")
        return problems

    # -- what a request means ----------------------------------------------------------------------------------------

    def _wanted(self, request: Frame, commit: Frame) -> dict[str, Any]:
        """Targets and their values: `m:<id>`, `metadata`, `s:<namespace>`, `+` for the appended."""
        wanted: dict[str, Any] = {}
        for one in request["requests"] if request["type"] == "batch" else [request]:
            self._want(wanted, copy.deepcopy(one))
        return wanted

    def _want(self, wanted: dict[str, Any], one: Frame) -> None:
        messages, states = self.copy.messages, self.copy.states
        match one["type"]:
            case "append" | "generation-start":
                wanted.setdefault("+", []).extend(one.get("messages", []))
            case "delete":
                wanted |= {f"m:{message}": _GONE for message in one["messages"]}
            case "patch" if "message" in one:
                wanted[f"m:{one['message']}"] = patched(copy.deepcopy(messages.get(one["message"])), one["patch"])
            case "patch":
                for operation in one["patch"]:
                    _, part, *rest = operation["path"].split("/")
                    if part == "metadata":
                        operation["path"] = "/" + "/".join(rest)
                        value = wanted.get("metadata", copy.deepcopy(self.copy.metadata))
                        wanted["metadata"] = patched(value, [operation])
            case "metadata-update":
                wanted["metadata"] = updated(wanted.get("metadata", copy.deepcopy(self.copy.metadata)), one)
            case "state-update":
                key = f"s:{one['namespace']}"
                if key not in wanted and one["namespace"] not in states and not self.follows_floors:
                    wanted[key] = one.get("set", _UNKNOWN)
                elif wanted.get(key) is not _UNKNOWN:
                    wanted[key] = updated(wanted.get(key, copy.deepcopy(states.get(one["namespace"], {}))), one)
            case "state-delete":
                wanted[f"s:{one['namespace']}"] = _GONE

    def _differences(self, wanted: dict[str, Any], request: Frame, commit: Frame) -> list[str]:
        problems = []
        fresh = [message for effect in commit["ops"] if effect["op"] == "append" for message in effect["messages"]]
        asked = wanted.pop("+", [])
        said = [message if "id" in ask else _without(message, "id") for ask, message in zip(asked, fresh, strict=False)]
        if request["type"] != "generation-end" and (said != asked or len(fresh) != len(asked)):
            problems.append(f"asked to append {asked}, appended {fresh}")
        for target, value in wanted.items():
            found = self._at(target)
            if isinstance(found, dict) and "swipes" in found and isinstance(value, dict):
                if found["swipes"][found.get("swipe_id", 0)] != found["mes"]:
                    problems.append(f"the swipe that {target} shows is not its text: {found}")
                found, value = _without(found, *MIRRORED), _without(value, *MIRRORED)
            if found is not value and found != value and value is not _UNKNOWN:
                problems.append(f"{target} must be {value!r}, and is {found!r}")
        if request["type"] == "swipe":
            problems += self._swiped(request)
        stray = _touched(commit) - wanted.keys() - {f"m:{message['id']}" for message in fresh}
        if request["type"] in ("append", "delete", "metadata-update", "state-update", "state-delete"):
            # A floor state follows what happens to its messages.
            problems += [
                f"{target} was touched, and nobody asked for it" for target in stray
                if target[:2] != "f:" and not target.endswith("__orphans")
            ]
        return problems

    def _at(self, target: str) -> Any:
        kind, _, name = target.partition(":")
        match kind:
            case "m":
                return self.copy.messages.get(name, _GONE)
            case "s":
                return self.copy.states.get(name, _GONE)
        return self.copy.metadata

    def _swiped(self, request: Frame) -> list[str]:
        message = self.copy.messages[request["message"]]
        if request["action"] == "add":
            shown = message["swipes"][-1] == request["content"]["mes"] == message["mes"]
            return [] if shown else [f"the added swipe is not shown: {message}"]
        is_right = message["mes"] == message["swipes"][message["swipe_id"]]
        if request["action"] == "select":
            is_right = is_right and message["swipe_id"] == request["swipe"]
        return [] if is_right else [f"after {request['action']} {request['swipe']}: {message}"]

    def _generation(self, request: Frame, commit: Frame) -> list[str]:
        """The text that was sent is the text that is stored, in the commit that ends the generation."""
        text = self.texts.get(request["generation"])
        stored = [
            message["mes"] for effect in commit["ops"] if effect["op"] in ("append", "insert")
            for message in effect["messages"]
        ]
        return [] if stored == [text] else [f"the reply {request['generation']} is {stored}, sent was {text!r}"]

    # -- floors ------------------------------------------------------------------------------------------------------

    def _follow_floors(self, request: Frame | None, commit: Frame, order: list[str]) -> None:
        floors = self._floors
        known = {message.id: message for message in floors.messages}
        for effect in commit["ops"]:
            if effect["op"] in ("append", "insert"):
                known |= {message["id"]: _as_floor(message) for message in effect["messages"]}
        for one in [] if request is None else request.get("requests", [request]):
            message = known.get(one.get("message", ""))
            match one["type"]:
                case "swipe" if message is not None and one["action"] == "add":
                    floors.swipe_add(message.id, select=one["content"] is not None)
                case "swipe" if message is not None and one["action"] == "select":
                    floors.swipe_select(message.id, one["swipe"])
                case "swipe" if message is not None:
                    floors.swipe_delete(message.id, one["swipe"])
                case "floor-update":
                    target = known[one.get("at", {}).get("message") or order[-1]]
                    floors.update(one["namespace"], one["patch"], target.id, target.shown)
        if len(known) != len(floors.messages) or known.keys() != self.copy.messages.keys():
            floors.messages = [known[message_id] for message_id in self.copy.messages if message_id in known]


def _as_floor(message: Frame) -> Message:
    return Message(message["id"], [object() for _ in message.get("swipes", [0])], message.get("swipe_id", 0))


def _without(message: Frame, *names: str) -> Frame:
    return {name: value for name, value in message.items() if name not in names}


def _touched(commit: Frame) -> set[str]:
    """What the effects of a commit touch."""
    found = set()
    for effect in commit["ops"]:
        match effect["op"]:
            case "patch":
                found.add(f"m:{effect['message']}")
            case "delete":
                found |= {f"m:{message}" for message in effect["messages"]}
            case "append" | "insert":
                found |= {f"m:{message['id']}" for message in effect["messages"]}
            case "metadata":
                found.add("metadata")
            case "state":
                found.add(f"{'f' if effect['namespace'].endswith(LOG_ENDING) else 's'}:{effect['namespace']}")
            case "floor":
                found.add(f"f:{effect['namespace']}")
    return found
