"""The whole chat as one document, `{"metadata": ..., "messages": [...]}`: RFC 6902 on it becomes effects on ids.

Rules of this module (BEHAVIOUR A3, E4):
- An operation sees what earlier ones did; each becomes the effects that it is.
- An index is resolved to an id when its operation is carried out, and occurs in no effect.
"""

from __future__ import annotations

from typing import Any

from msgspec import Raw

from .effects import AppendEffect, DeleteEffect, InsertEffect
from .errors import Refused
from .patch import Operation, join_pointer, parse_pointer
from .values import dumps
from .work import Work


class WholeChat:
    """A draft of a chat that operations are carried out on."""

    def __init__(self, work: Work) -> None:
        self.work = work

    def patch(self, operations: list[Operation], where: str) -> None:
        """RFC 6902 on `{"metadata": ..., "messages": [...]}`, turned into effects on ids."""
        for index, operation in enumerate(operations):
            at = f"{where}/{index}"
            try:
                self._one_of_chat(operation, at)
            except Refused as refusal:
                # The operation was carried out as a patch of its own, whose only index is 0.
                pointer = refusal.pointer or at
                if pointer.startswith(f"{at}/0"):
                    pointer = at + pointer[len(at) + 2:]
                raise Refused(refusal.code, refusal.message, pointer=pointer, details=refusal.details) from None

    def _one_of_chat(self, operation: Operation, at: str) -> None:
        kind = operation["op"]
        target = self._split(operation["path"], f"{at}/path", adding=kind in ("add", "move", "copy"))
        if kind in ("move", "copy"):
            source = self._split(operation["from"], f"{at}/from", adding=False)
            self._relocate(kind, source, target, operation, at)
        elif target[0] == "metadata":
            inner = [{**operation, "path": target[2]}]
            self.work.patch_metadata(dumps(inner), inner, at)
        elif target[2]:
            inner = [{**operation, "path": target[2]}]
            self.work.patch_message(target[1], dumps(inner), inner, at)
        else:
            self._whole_message(kind, target[1], operation, at)

    def _whole_message(self, kind: str, where_to: str, operation: Operation, at: str) -> None:
        if kind == "add":
            self._insert(where_to, operation["value"], at)
        elif kind == "remove":
            self.work.delete([where_to], at)
        elif kind == "test":
            self.work.patch_message(where_to, b"", [{"op": "test", "path": "", "value": operation["value"]}], at)
        else:
            value = operation["value"]
            if not isinstance(value, dict):
                raise Refused("message-illegal", "A message is a JSON object.", pointer=f"{at}/value")
            inner = [{"op": "replace", "path": "", "value": {"id": where_to, **value}}]
            self.work.patch_message(where_to, dumps(inner), inner, at)

    def _insert(self, position: str, value: Any, at: str) -> None:
        message_id, line = self.work.message_line(dumps(value), f"{at}/value", {})
        if isinstance(value, dict):
            self.work.floors.returned(message_id, value)
        if position == "-" or int(position) == len(self.work.chat.messages):
            self.work.add(AppendEffect([Raw(line)]))
        else:
            self.work.spend_order()
            index = int(position)
            after = self.work.chat.order()[index - 1] if index else None
            self.work.add(InsertEffect(after, [Raw(line)]))
        self.work.undo.append(DeleteEffect([message_id]))

    def _relocate(
        self, kind: str, source: tuple[str, str, str], target: tuple[str, str, str], operation: Operation, at: str
    ) -> None:
        if kind == "move" and f"{operation['path']}/".startswith(f"{operation['from']}/") and (
            operation["path"] != operation["from"]
        ):
            raise Refused("patch-failed", "A value cannot be moved into itself.", pointer=at)
        document = self.work.chat.metadata_value() if source[0] == "metadata" else self.work.chat.value(source[1])
        value = self.work.patched(document, [{"op": "copy", "from": source[2], "path": ""}], at).value
        doubled = kind == "copy" and source[0] == target[0] == "messages" and not source[2] and not target[2]
        if doubled and isinstance(value, dict):
            # A copy of a message is another message.
            value.pop("id", None)
        if kind == "move":
            self._one_of_chat({"op": "remove", "path": operation["from"]}, at)
            # Indexes behind the removed message have moved.
            target = self._split(operation["path"], f"{at}/path", adding=True)
        add: Operation = {"op": "add", "path": target[2], "value": value}
        if target[0] == "metadata":
            self.work.patch_metadata(dumps([add]), [add], at)
        elif target[2]:
            self.work.patch_message(target[1], dumps([add]), [add], at)
        else:
            self._insert(target[1], value, at)

    def _split(self, path: str, at: str, *, adding: bool) -> tuple[str, str, str]:
        """`metadata`, "", inner path; or `messages`, message id (or index, to add a whole message), inner path."""
        tokens = parse_pointer(path, at)
        if tokens and tokens[0] == "metadata":
            return "metadata", "", join_pointer(tokens[1:])
        if len(tokens) < 2 or tokens[0] != "messages":
            raise Refused("patch-failed", "A path begins with /metadata or /messages/<index>.", pointer=at)
        index_text = tokens[1]
        size = len(self.work.chat.messages)
        whole_and_new = adding and len(tokens) == 2
        if index_text == "-" and whole_and_new:
            return "messages", "-", ""
        plain = index_text.isascii() and index_text.isdigit() and len(index_text) <= 12
        if not plain or (index_text[0] == "0" and len(index_text) > 1):
            raise Refused("patch-failed", f"{index_text[:32]!r} is no index of a message.", pointer=at)
        index = int(index_text)
        if index >= size + (1 if whole_and_new else 0):
            raise Refused("message-unknown", f"The chat has no message {index}: it has {size}.", pointer=at)
        if whole_and_new:
            return "messages", index_text, ""
        return "messages", self.work.chat.order()[index], join_pointer(tokens[2:])
