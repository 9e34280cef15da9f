"""What the tabs ask for: every kind of write, seeded, made from what the tab knows. Bases are right, stale, piped,
null or `"*"`; some requests cannot be carried out, and some of those only in their middle.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from tests.checker.follower import Copy
from tests.checker.notebook import Frame

NAMESPACES = ("memory", "plan")
FLOORS = ("score", "mood")
ENDINGS = ("ok", "Ünïcode ☂", "two\nlines", "😀")
MESSAGES_MANY = 40
"""From here on more is deleted than appended, so that long runs stay cheap."""


class Workload:
    """The next op of one tab. `chat` is how the tab calls it."""

    def __init__(self, seed: int, tab: str, chat: str) -> None:
        self.random = random.Random(seed)
        self.tab = tab
        self.chat = chat
        self.count = 0
        self.texts = 0
        self.old: list[str] = []
        """Integrities that the tab knew once."""
        self.running: dict[str, str] = {}
        """Generations of this tab that were started and not ended: id and text."""

    def next(self, copy: Copy, last_op: int) -> tuple[Frame, list[Frame]]:
        """A write without `op` and `id`, and frames that need no answer and go before it."""
        self.count += 1
        assert copy.head is not None
        self.old = [*self.old[-20:], copy.head["integrity"]]
        if self.running and self.random.random() < 0.5:
            return self._end()
        kinds: list[tuple[Callable[[Copy], Frame | None], int]] = [
            (self._append, 30 if len(copy.messages) < MESSAGES_MANY else 8), (self._patch, 16), (self._indexed, 4),
            (self._delete, 4 if len(copy.messages) < MESSAGES_MANY else 25), (self._swipe, 12), (self._metadata, 7),
            (self._state, 14), (self._state_delete, 2), (self._floor, 9), (self._batch, 6), (self._impossible, 3),
            (self._rename, 1), (self._start, 3), (self._branch, 1),
        ]
        for _ in range(20):
            [make] = self.random.choices([kind for kind, _ in kinds], [weight for _, weight in kinds])
            frame = make(copy)
            if frame is not None:
                break
        else:
            frame = self._append(copy)
        if isinstance(frame.get("base"), str) and frame["base"] != "*":
            self._spoil(frame, last_op)
        owner = {"owner": {"chat": self.chat}} if frame["type"].startswith("state-") else {"chat": self.chat}
        return {**frame, **owner}, []

    def text(self) -> str:
        """A text that stands nowhere else."""
        self.texts += 1
        return f"{self.tab} {self.texts} {self.random.choice(ENDINGS)}"

    def _spoil(self, frame: Frame, last_op: int) -> None:
        """Some bases are old, some are my op before, some writes force or rebase."""
        chance = self.random.random()
        if chance < 0.1:
            frame["base"] = self.random.choice(self.old)
        elif chance < 0.3 and last_op:
            frame["base"] = {"op": last_op}
        manner = self.random.random()
        if manner < 0.06 and frame["type"] not in ("chat-branch", "generation-start"):
            frame["force"] = True
        elif manner < 0.3:
            frame["on_conflict"] = "rebase"

    def _head(self, copy: Copy) -> str:
        assert copy.head is not None
        return str(copy.head["integrity"])

    def _message(self, copy: Copy) -> str | None:
        return self.random.choice(list(copy.messages)) if copy.messages else None

    def _append(self, copy: Copy) -> Frame:
        messages: list[Frame] = [
            {"name": self.tab, "is_user": self.random.random() < 0.5, "mes": self.text(), "extra": {}}
            for _ in range(self.random.choice([1, 1, 1, 2, 3]))
        ]
        if self.random.random() < 0.2:
            messages[0] = {"id": f"{self.tab}-{self.count}", **messages[0]}
        return {"type": "append", "base": self.random.choice(["*", self._head(copy)]), "messages": messages}

    def _patch(self, copy: Copy) -> Frame | None:
        message = self._message(copy)
        if message is None:
            return None
        path = self.random.choice(["/mes", "/extra/note", "/extra/marks"])
        value: Any = [self.text()] if path == "/extra/marks" else self.text()
        operation = {"op": "replace" if path == "/mes" else "add", "path": path, "value": value}
        return {"type": "patch", "base": self._head(copy), "message": message, "patch": [operation]}

    def _indexed(self, copy: Copy) -> Frame | None:
        if not copy.messages:
            return None
        index = self.random.randrange(len(copy.messages))
        operation = {"op": "add", "path": f"/messages/{index}/extra/note", "value": self.text()}
        operations = [operation, {"op": "add", "path": "/metadata/last_note", "value": self.text()}]
        return {"type": "patch", "base": self._head(copy), "patch": operations[: self.random.choice([1, 2])]}

    def _delete(self, copy: Copy) -> Frame | None:
        if len(copy.messages) < 4:
            return None
        known = list(copy.messages)
        chosen = self.random.sample(known, self.random.choice([1, 1, 2]))
        return {"type": "delete", "base": self._head(copy), "messages": chosen}

    def _swipe(self, copy: Copy) -> Frame | None:
        message = self._message(copy)
        if message is None:
            return None
        count = len(copy.messages[message].get("swipes", ["only"]))
        frame: Frame = {"type": "swipe", "base": self._head(copy), "message": message}
        if count < 2 or (count < 4 and self.random.random() < 0.4):
            return {**frame, "action": "add", "content": {"mes": self.text(), "extra": {}}}
        action = self.random.choice(["select", "select", "delete"])
        return {**frame, "action": action, "swipe": self.random.randrange(count)}

    def _metadata(self, copy: Copy) -> Frame:
        manner: Frame = self.random.choice([
            {"merge": {"mood": self.text(), "gone": None}}, {"set": {"mood": self.text(), "gone": 1}},
            {"patch": [{"op": "add", "path": "/note", "value": self.text()}]},
        ])
        base = "*" if "merge" in manner and self.random.random() < 0.5 else self._head(copy)
        return {"type": "metadata-update", "base": base, **manner}

    def _state(self, copy: Copy) -> Frame:
        namespace = self.random.choice(NAMESPACES)
        base = copy.state_versions.get(namespace) if namespace in copy.states else None
        if base is None:
            return {"type": "state-update", "namespace": namespace, "base": None, "set": {"by": self.text()}}
        manner: Frame = self.random.choice([
            {"set": {"by": self.text()}}, {"merge": {"turns": self.count, "by": None}},
            {"patch": [{"op": "add", "path": "/said", "value": self.text()}]},
        ])
        if "merge" in manner and self.random.random() < 0.5:
            base = "*"
        return {"type": "state-update", "namespace": namespace, "base": base, **manner}

    def _state_delete(self, copy: Copy) -> Frame | None:
        namespace = self.random.choice(NAMESPACES)
        if namespace not in copy.states:
            return None
        return {"type": "state-delete", "namespace": namespace, "base": copy.state_versions[namespace]}

    def _floor(self, copy: Copy) -> Frame | None:
        if not copy.messages:
            return None
        namespace = self.random.choice(FLOORS)
        base = copy.state_versions.get(namespace) if namespace in copy.states else None
        patch = [{"op": "add", "path": f"/{self.random.choice('abc')}", "value": self.count}]
        frame: Frame = {"type": "floor-update", "namespace": namespace, "base": base, "patch": patch}
        if self.random.random() < 0.3:
            frame["at"] = {"message": self._message(copy)}
        return frame

    def _batch(self, copy: Copy) -> Frame:
        first = self._append(copy)
        second = self._state(copy)
        last: Frame = {"type": "metadata-update", "merge": {"batched": self.text()}}
        requests = [{"type": "append", "messages": first["messages"]}, second, last]
        if self.random.random() < 0.15:
            requests.append({"type": "append", "messages": "not a list"})
        return {"type": "batch", "base": self._head(copy), "requests": requests}

    def _impossible(self, copy: Copy) -> Frame | None:
        """A patch whose first operations fit and whose last one does not: all or nothing."""
        message = self._message(copy)
        if message is None:
            return None
        operations = [
            {"op": "add", "path": "/extra/half", "value": self.text()},
            {"op": "replace", "path": "/mes", "value": self.text()},
            {"op": "remove", "path": "/nothing/there"},
        ]
        return {"type": "patch", "base": self._head(copy), "message": message, "patch": operations}

    def _rename(self, copy: Copy) -> Frame:
        return {"type": "chat-rename", "base": "*", "to": f"Checked {self.tab} {self.count}"}

    def _branch(self, copy: Copy) -> Frame | None:
        message = self._message(copy)
        return None if message is None else {"type": "chat-branch", "base": "*", "message": message, "kind": "branch"}

    def _start(self, copy: Copy) -> Frame:
        generation = f"{self.tab}-g{self.count}"
        self.running[generation] = ""
        return {
            "type": "generation-start", "base": "*", "generation": generation,
            "messages": [{"name": self.tab, "is_user": True, "mes": self.text(), "extra": {}}],
            "target": {"kind": "message"}, "reply": {"name": "Model", "is_user": False, "extra": {}},
        }

    def _end(self) -> tuple[Frame, list[Frame]]:
        """More text, all of it from the beginning, and then the end."""
        generation = self.random.choice(list(self.running))
        del self.running[generation]
        text = self.text()
        delta = {
            "type": "generation-delta", "chat": self.chat, "generation": generation, "offset": 0, "text": text,
        }
        units = len(text.encode("utf-16-le")) // 2
        end = {"type": "generation-end", "chat": self.chat, "generation": generation, "length": units}
        return end, [delta]
