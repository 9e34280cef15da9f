"""Where a model server is: NAME=URL of the settings, checked.

Rules this module keeps:

- Pure. A bad text raises ValueError with a sentence that says what is wrong and never repeats what may be a password.
- The URL is what OpenAI's clients call the base URL (it often ends in /v1); one that ends in /chat/completions is taken
  as it is.
- A name is lower case with hyphens, so that each has its own variable for the key.
"""

from __future__ import annotations

import re
import urllib.parse
from typing import Final

import msgspec

from tellback_server.http import is_loopback_name

__all__ = ["NAME_RULE", "Upstream", "key_variable", "parse_upstream", "upstream_name"]

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
NAME_RULE: Final = "a name has 1 to 32 of a-z, 0-9 and hyphens, and begins with a letter or digit"
_COMPLETIONS: Final = "/chat/completions"
_URL_CHARACTERS_MAX: Final = 2048


class Upstream(msgspec.Struct, frozen=True):
    """One model server of the settings."""

    name: str
    completions_url: str
    """Where requests go. Not for logs: the query of some hosters holds a secret."""
    is_private: bool
    """Whether a key may go there: by TLS, or to this machine."""

    def __repr__(self) -> str:
        return f"Upstream({self.name!r})"


def upstream_name(text: str) -> str:
    """Raises ValueError."""
    if not _NAME.fullmatch(text):
        raise ValueError(f"{text[:64]!r} is no name for a model server; {NAME_RULE}")
    return text


def key_variable(name: str) -> str:
    """The environment variable with the key of an upstream."""
    return f"TELLBACK_UPSTREAM_{name.upper().replace('-', '_')}_KEY"


def parse_upstream(text: str) -> Upstream:
    """An upstream from NAME=URL. Raises ValueError."""
    name, equals, url = text.partition("=")
    if not equals or "://" in name:
        raise ValueError("a model server is written NAME=URL, for instance local=http://127.0.0.1:8080/v1")
    upstream_name(name)
    if not url:
        raise ValueError(f"{name} has no URL; write {name}=http://127.0.0.1:8080/v1")
    if len(url) > _URL_CHARACTERS_MAX or not url.isascii() or not url.isprintable() or any(c in url for c in ' "<>\\'):
        raise ValueError(f"the URL of {name} holds what no URL holds, or is longer than {_URL_CHARACTERS_MAX}")
    try:
        parts = urllib.parse.urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"the URL of {name} cannot be read: {str(error)[:100]}") from None
    if parts.scheme not in ("http", "https"):
        shown = f"begins with {parts.scheme[:16]}:" if parts.scheme else "has no scheme"
        raise ValueError(f"the URL of {name} {shown}; it must begin with http:// or https://")
    if "@" in parts.netloc:
        raise ValueError(
            f"the URL of {name} holds a user or password; set {key_variable(name)} or give --upstream-key-file"
        )
    if not parts.hostname or port == 0:
        raise ValueError(f"the URL of {name} names no {'host' if not parts.hostname else 'port that exists'}")
    if parts.fragment or url.endswith("#"):
        raise ValueError(f"the URL of {name} has a fragment (#), which no server would see")
    path = parts.path.rstrip("/")
    if not path.endswith(_COMPLETIONS):
        path += _COMPLETIONS
    completions_url = urllib.parse.urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))
    return Upstream(name, completions_url, parts.scheme == "https" or is_loopback_name(parts.hostname))
