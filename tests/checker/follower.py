"""A tab's copy of the chat, kept from its frames alone. Used by the tabs while they run, and again by the verifier.

It follows PROTOCOL.md: snapshot and parts, commits, own acks, missed frames left alone. What it finds wrong it tells to
`problem` and goes on as well as it can.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import jsonpatch

from tests.checker.notebook import Frame
from tests.support.oracle import Replica, effects_of

LOG_ENDING = "__floor_log"
"""Documents whose content no effect carries."""


class Copy(Replica):
    """A replica that knows of all effects, and of which documents it knows the content."""

    def __init__(self) -> None:
        super().__init__()
        self.knows_states = False
        self.name: str | None = None

    def install(self, version: Frame, effects: Any) -> None:
        for effect in effects:
            match effect["op"]:
                case "floor":
                    self._state({**effect, "op": "state"})
                case "renamed":
                    self.name = effect["to"]
                case "deleted":
                    self.name = None
                case _:
                    super().install(version, [effect])
        self.head = version

    def _state(self, effect: dict[str, Any]) -> None:
        known = self.knows_states or "data" in effect or effect.get("deleted") or effect["namespace"] in self.states
        if effect.get("previous") is None and "patch" in effect:
            known = True
        if known and ("data" in effect or "patch" in effect or effect.get("deleted")):
            super()._state(effect)
        else:
            self.state_versions[effect["namespace"]] = effect["version"]["integrity"]
            self.states.pop(effect["namespace"], None)


class Follower:
    """Feed it `sent` and `received` in their order."""

    def __init__(self, problem: Callable[[str], None]) -> None:
        self._problem = problem
        self.copy: Copy | None = None
        self.is_open = False
        """Between `opened` and what ends the subscription."""
        self._parts = 0
        self._waiting: list[tuple[str, Frame, Frame | None]] = []

    @property
    def is_whole(self) -> bool:
        return self.copy is not None and self._parts == 0

    def disconnected(self) -> None:
        """What was left of a snapshot does not come any more."""
        self.is_open = False
        if self._parts:
            self.copy, self._parts = None, 0
        self._waiting.clear()

    def received(self, frame: Frame, request: Frame | None = None) -> None:
        """A frame of the chat; `request` is the op that it answers."""
        match frame["type"]:
            case "opened":
                self._opened(frame)
            case "snapshot-part":
                self._part(frame)
            case "reset" | "behind":
                self.is_open = False
                if frame["type"] == "reset":
                    self.copy = None
            case "integrity" | "ack" | "state":
                if not self.is_open or self.copy is None:
                    return
                if self._parts:
                    self._waiting.append((frame["type"], frame, request))
                else:
                    self._take(frame["type"], frame, request)

    def _opened(self, frame: Frame) -> None:
        self.is_open = True
        self._parts = 0
        self._waiting.clear()
        if frame["mode"] == "snapshot":
            self.copy = Copy()
            self.copy.metadata = frame["metadata"]
            self.copy.head = frame["head"]
            if "parts" in frame:
                self._parts = frame["parts"]
                self.copy.messages = {}
            else:
                self.copy.messages = {message["id"]: message for message in frame["messages"]}
        elif self.copy is None or self.copy.head is None:
            self._problem(f"{frame['mode']} where there was nothing to go on from")
        elif frame["mode"] == "current" and frame["head"] != self.copy.head:
            self._problem(f"current, but the head is {frame['head']} and the tab holds {self.copy.head}")

    def _part(self, frame: Frame) -> None:
        if self.copy is None or not self._parts:
            return
        self.copy.messages.update((message["id"], message) for message in frame["messages"])
        if frame["part"] == frame["of"]:
            self._parts = 0
            waiting, self._waiting = self._waiting, []
            for kind, later, request in waiting:
                self._take(kind, later, request)

    def _take(self, kind: str, frame: Frame, request: Frame | None) -> None:
        copy_ = self.copy
        assert copy_ is not None
        assert copy_.head is not None
        if kind == "state":
            self._states(copy_, frame)
            return
        version, head = frame["version"], copy_.head
        if kind == "ack":
            if version["seq"] <= head["seq"] or request is None:
                return
            if version["seq"] != head["seq"] + 1:
                if not frame.get("duplicate"):
                    self._problem(f"the ack of {version} came to a tab at {head}")
                self.is_open = False
                return
            effects = effects_of(request, frame)
        else:
            if version["seq"] <= head["seq"]:
                self._problem(f"the commit {version} came to a tab that was at {head}")
                return
            if version["epoch"] != head["epoch"] or version["seq"] != head["seq"] + 1:
                self._problem(f"a gap: {head}, then {version}")
                self.is_open = False
                return
            if frame["previous"] != head["integrity"]:
                self._problem(f"the chain is broken: {head}, then a commit on {frame['previous']}")
                self.is_open = False
                return
            effects = frame["ops"]
        try:
            copy_.install(version, copy.deepcopy(effects))
            if any(effect["op"] == "deleted" for effect in effects):
                # Nothing more is told of it until it is opened again.
                self.is_open = False
        except (jsonpatch.JsonPatchException, jsonpatch.JsonPointerException, KeyError, ValueError, TypeError) as error:
            self._problem(f"an effect of {version} cannot be installed: {error!r}")
            copy_.head = version

    def _states(self, copy_: Copy, frame: Frame) -> None:
        told = {name: value for name, value in frame["states"].items() if value is not None}
        for name in sorted(told.keys() | copy_.states.keys()):
            if name.endswith(LOG_ENDING) or name not in copy_.states:
                continue
            if name not in told:
                self._problem(f"the state {name} is not told and was never deleted")
            elif told[name].get("data") != copy_.states[name]:
                self._problem(f"the state {name} is told as {told[name]}, the tab holds {copy_.states[name]}")
        copy_.states = {name: copy.deepcopy(value["data"]) for name, value in told.items() if "data" in value}
        copy_.state_versions = {name: value["version"]["integrity"] for name, value in told.items()}
        copy_.knows_states = True
