"""Address: the URL of a store, read strictly, and never told with its password. Pure.

    <scheme>://[<user>[:<password>]@][<host>[:<port>]]/<path>[?<option>=<value>&...]

Rules of this module:
- What is not understood is refused with the name of what it is: a misspelt option would be a setting that silently is
  not set.
- `str` and `repr` tell everything but the password.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

from tellback_server.store.base import Durability, StoreUnsafe

__all__ = ["StoreAddress"]

_T = TypeVar("_T")
_HIDDEN = "***"


class StoreAddress:
    """A parsed URL. Whoever opens the store takes the options it knows and calls `refuse_rest`."""

    def __init__(self, url: str) -> None:
        """Raises StoreUnsafe, with a sentence that holds no password."""
        scheme, colon, rest = url.partition(":")
        self.scheme = scheme.lower()
        if not colon or not self.scheme.replace("+", "").replace("-", "").isalnum():
            raise StoreUnsafe("a store is named by a URL such as sqlite:///srv/chats.db; this one has no scheme")
        try:
            parts = urlsplit("store:" + rest)
            self.host = parts.hostname or ""
            self.port = parts.port
            options = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
        except ValueError:
            # Its text may quote what it was given, password and all.
            raise StoreUnsafe(f"the URL of the {self.scheme} store cannot be read: host, port or options") from None
        if parts.fragment:
            raise StoreUnsafe(f"{self.scheme}: a # in the URL of a store is written %23")
        self.user = unquote(parts.username or "")
        self.password = unquote(parts.password or "")
        self.path = unquote(parts.path, errors="surrogateescape")
        self._options: dict[str, str] = {}
        for name, value in options:
            if name in self._options:
                raise StoreUnsafe(f"{self.scheme}: the option {name} is given twice")
            self._options[name] = value
        self._taken: set[str] = set()

    def take(self, name: str, default: _T, read: Callable[[str], _T], what: str) -> _T:
        """An option as `read` makes it of its text; `what` says what it has to be. Raises StoreUnsafe."""
        self._taken.add(name)
        text = self._options.get(name)
        if text is None:
            return default
        try:
            return read(text)
        except ValueError:
            raise StoreUnsafe(f"{self.scheme}: the option {name} is {what}, not {text[:80]!r}") from None

    def take_number(self, name: str, default: float, least: float, most: float) -> float:
        """A number between two bounds."""

        def read(text: str) -> float:
            value = float(text)
            if not least <= value <= most:
                raise ValueError(text)
            return value

        return self.take(name, default, read, f"a number from {least:g} to {most:g}")

    def take_durability(self, default: Durability = "store") -> Durability:
        """`durability=store`, or `log`: the store may lose what it is given, and the log keeps everything."""
        known: Mapping[str, Durability] = {"store": "store", "log": "log"}

        def read(text: str) -> Durability:
            if text not in known:
                raise ValueError(text)
            return known[text]

        return self.take("durability", default, read, "store or log")

    def take_absolute_path(self) -> str:
        """The path of a file or folder on this machine. Raises StoreUnsafe when it is none or is relative."""
        if self.host or self.user or self.port is not None:
            raise StoreUnsafe(
                f"{self}: names a host; a path begins with a third slash, as in {self.scheme}:///srv/tellback"
            )
        path = "/" + self.path.lstrip("/")
        if not self.path.startswith("/") or path == "/" or "\0" in path or ".." in path.split("/"):
            raise StoreUnsafe(f"{self}: wants an absolute path without .., as in {self.scheme}:///srv/tellback")
        return path

    def refuse_rest(self) -> None:
        """Raises StoreUnsafe when there are options that nobody took."""
        unknown = sorted(self._options.keys() - self._taken)
        if unknown:
            known = ", ".join(sorted(self._taken)) or "none"
            raise StoreUnsafe(f"{self.scheme}: there is no option {unknown[0][:80]!r}; there are: {known}")

    def __str__(self) -> str:
        who = self.user + (f":{_HIDDEN}" if self.password else "")
        where = (f"{who}@" if who else "") + self.host + (f":{self.port}" if self.port is not None else "")
        return f"{self.scheme}://{where}{self.path}"

    __repr__ = __str__
