"""What an extension reads: values that cannot be changed at any depth, and the chat as a sequence of them.

Rules of this module:
- Every way of changing raises `ReadOnlyViewError`, which names the verb to use instead.
- A view is a copy of its own: even code that gets around the lock changes nothing but the copy.
- A view is a `dict` or a `list` for everybody who only reads: it compares, prints and serialises like one. `copy()`,
  `copy.copy` and `copy.deepcopy` give a plain value that may be changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NoReturn, overload

from ..replica import Messages


class ReadOnlyViewError(TypeError):
    """Somebody tried to change what is only shown."""

    def __str__(self) -> str:
        return "this is a read-only view: change messages with update_messages(), metadata with save_chat_metadata()"


def _refuse(*_arguments: object, **_options: object) -> NoReturn:
    raise ReadOnlyViewError


class ReadOnlyDict(dict[str, Any]):
    """An object that is only shown."""

    __slots__ = ()

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def copy(self) -> dict[str, Any]:
        """A plain value with the same content, to be changed at will, at every depth."""
        return {key: thaw(value) for key, value in self.items()}

    __copy__ = copy

    def __deepcopy__(self, _memo: object) -> dict[str, Any]:
        return self.copy()

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (self.copy(),)


class ReadOnlyList(list[Any]):
    """An array that is only shown."""

    __slots__ = ()

    __setitem__ = __delitem__ = __iadd__ = __imul__ = _refuse
    append = clear = extend = insert = pop = remove = reverse = sort = _refuse

    def copy(self) -> list[Any]:
        """A plain value with the same content, to be changed at will, at every depth."""
        return [thaw(value) for value in self]

    __copy__ = copy

    def __deepcopy__(self, _memo: object) -> list[Any]:
        return self.copy()

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (self.copy(),)


def freeze(value: Any) -> Any:
    """A JSON value that cannot be changed. Cost: its size."""
    if isinstance(value, dict):
        return ReadOnlyDict({key: freeze(member) for key, member in value.items()})
    if isinstance(value, list):
        return ReadOnlyList([freeze(member) for member in value])
    return value


def thaw(value: Any) -> Any:
    """A plain copy of a JSON value. Cost: its size."""
    if isinstance(value, dict):
        return {key: thaw(member) for key, member in value.items()}
    if isinstance(value, list):
        return [thaw(member) for member in value]
    return value


class ChatView(Sequence[ReadOnlyDict]):
    """The messages of a chat by index, each read-only; parsed when it is looked at."""

    __slots__ = ("_messages",)

    def __init__(self, messages: Messages | None) -> None:
        self._messages = messages
        """None when nothing is shown."""

    def __len__(self) -> int:
        return 0 if self._messages is None else len(self._messages)

    @overload
    def __getitem__(self, index: int) -> ReadOnlyDict: ...
    @overload
    def __getitem__(self, index: slice) -> list[ReadOnlyDict]: ...
    def __getitem__(self, index: int | slice) -> ReadOnlyDict | list[ReadOnlyDict]:
        if self._messages is None:
            if isinstance(index, slice):
                return []
            raise IndexError("no message is shown")
        if isinstance(index, slice):
            return [ReadOnlyDict(freeze(message)) for message in self._messages[index]]
        return ReadOnlyDict(freeze(self._messages[index]))

    def __iter__(self) -> Iterator[ReadOnlyDict]:
        return (ReadOnlyDict(freeze(message)) for message in (self._messages or ()))

    def __setitem__(self, _index: object, _value: object) -> NoReturn:
        raise ReadOnlyViewError

    def __delitem__(self, _index: object) -> NoReturn:
        raise ReadOnlyViewError

    append = extend = insert = pop = remove = clear = reverse = sort = _refuse

    def copy(self) -> list[dict[str, Any]]:
        """Plain messages, to be changed at will. Cost: the whole chat."""
        return [] if self._messages is None else list(self._messages)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, (str, bytes)):
            return NotImplemented
        return list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<ChatView: {len(self)}>"
