"""The plain HTTP side of the port: who may upgrade, and the few answers that are not WebSocket.

Rules this module keeps:

- Pure: a parsed request in, a decision out. No clock, no sockets, no state.
- Everything is refused that is not named: an unknown path, a method without a route, an origin that nobody allowed.
- An origin is compared in its parts (scheme, host, port), never as a prefix or suffix of a string
  (RFC 6454 section 5), so `https://app.example.com.evil` is not `https://app.example.com`.
- The request target is matched byte for byte and never decoded or normalised, so `//ws`, `/../ws` and `/%2e%2e/ws`
  are simply unknown paths.
- Every answer ends the connection (`Connection: close`), so there is no second request to smuggle.
- A refusal says what is wrong with the request and nothing about the server.
"""

from __future__ import annotations

import http
import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from websockets.datastructures import Headers, MultipleValuesError
from websockets.http11 import Request

LOG_FIELD_CHARACTERS_MAX: Final = 256
"""What a peer may put into one log field. A user agent of 10 MB is a way to fill a disk."""

UPGRADE_PATH: Final = "/ws"

UPGRADE_REQUIRED: Final = (("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13"))
"""What every 426 carries: the protocol, and the only version of it (RFC 6455 section 4.4)."""

_DEFAULT_PORTS: Final[Mapping[str, int]] = {"http": 80, "https": 443, "ws": 80, "wss": 443}

# A serialised origin has no user information, path, query or fragment (RFC 6454 section 6.2).
_ORIGIN: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?")

# RFC 9110 section 7.2: uri-host [ ":" port ].
_HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?")

# Printable ASCII; anything else in a request target is garbage (RFC 9112 section 3.2).
_TARGET: Final = re.compile(r"/[!-~]*")


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """One complete answer. `headers` come in addition to those that every answer has."""

    status: int
    body: bytes = b""
    content_type: str = "text/plain; charset=utf-8"
    headers: tuple[tuple[str, str], ...] = ()

    def serialize(self, *, head_only: bool = False, date: str | None = None) -> bytes:
        """Return the bytes to send. `head_only` leaves the body out but not its length (RFC 9110 section 9.3.2);
        `date` is the value of the Date header, because this module knows no clock."""
        lines = [
            f"HTTP/1.1 {self.status} {http.HTTPStatus(self.status).phrase}",
            f"Content-Length: {len(self.body)}",
            f"Content-Type: {self.content_type}",
            "Connection: close",
            "Cache-Control: no-store",
            "X-Content-Type-Options: nosniff",
        ]
        given = {name.lower() for name, _ in self.headers}
        lines = [line for line in lines if line.partition(":")[0].lower() not in given]
        if date is not None:
            lines.append(f"Date: {date}")
        lines.extend(f"{name}: {value}" for name, value in self.headers)
        head = "\r\n".join(lines) + "\r\n\r\n"
        return head.encode("latin-1") + (b"" if head_only else self.body)


def refusal(status: int, sentence: str, *headers: tuple[str, str]) -> HttpResponse:
    """A short plain-text answer that says why."""
    return HttpResponse(status, f"{sentence}\n".encode(), headers=headers)


Route = Callable[[], HttpResponse]


class Origin(NamedTuple):
    """A parsed origin; two are equal when scheme, host and port are (RFC 6454 section 5)."""

    scheme: str
    host: str
    port: int | None  # None: the scheme has no default port and none was given.


def parse_origin(text: str) -> Origin | None:
    """Return the parts of a serialised origin with the default port filled in, or None for anything else
    (`null`, a list, a path, user information, a port over 65535)."""
    match = _ORIGIN.fullmatch(text)
    if match is None:
        return None
    scheme = match[1].lower()
    port = int(match[3]) if match[3] is not None else _DEFAULT_PORTS.get(scheme)
    if port is not None and port > 65535:
        return None
    return Origin(scheme, match[2].lower(), port)


def is_loopback_name(host: str) -> bool:
    """True for `localhost`, 127.0.0.0/8 in four decimal parts, and [::1]; False for every other spelling."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False


def escaped_for_log(text: str | None) -> str | None:
    """A peer's text, cut to LOG_FIELD_CHARACTERS_MAX and with every control and non-ASCII character escaped, so it
    can neither break a line nor colour a terminal."""
    if text is None:
        return None
    escaped = text[:LOG_FIELD_CHARACTERS_MAX].encode("unicode_escape").decode("ascii")
    return escaped[:LOG_FIELD_CHARACTERS_MAX]


def single_header(headers: Headers, name: str) -> str | None:
    """The one value of a header, or None when it is missing.

    Raises:
        MultipleValuesError: The header stands there more than once.
    """
    value: str | None = headers.get(name)
    return value


@dataclass(frozen=True, slots=True)
class FrontDoor:
    """Decides about each request, before any WebSocket exists.

    `loopback_only` is set when no users are configured: then whoever reaches the port is the user, so a page of
    another site that had its name pointed at 127.0.0.1 (DNS rebinding: foreign Host) and anything that came through a
    proxy are refused. Any port is accepted in Host, because a tunnel (`ssh -L`) changes it and rebinding cannot
    choose the name.
    """

    extra_origins: frozenset[Origin] = frozenset()
    loopback_only: bool = False
    routes: Mapping[str, Route] = field(default_factory=dict)
    upgrade_path: str = UPGRADE_PATH

    @classmethod
    def configured(
        cls,
        *,
        extra_origins: Iterable[str] = (),
        loopback_only: bool = False,
        routes: Mapping[str, Route] | None = None,
        upgrade_path: str = UPGRADE_PATH,
    ) -> FrontDoor:
        """Build from settings as people write them.

        Raises:
            ValueError: One of `extra_origins` is not a serialised origin such as `https://app.example.com`.
        """
        parsed = set()
        for text in extra_origins:
            origin = parse_origin(text)
            if origin is None:
                raise ValueError(f"not an origin (scheme://host or scheme://host:port): {text!r}")
            parsed.add(origin)
        return cls(frozenset(parsed), loopback_only, routes or {}, upgrade_path)

    def decide(self, request: Request) -> HttpResponse | None:
        """Return the answer to send, or None when the WebSocket handshake may go on."""
        headers = request.headers
        if _TARGET.fullmatch(request.path) is None:
            # Absolute form, authority form and asterisk form are for proxies (RFC 9112 section 3.2).
            return refusal(400, "The request target must begin with a slash.")
        try:
            host = single_header(headers, "Host")
        except MultipleValuesError:
            return refusal(400, "There must be one Host header.")  # RFC 9112 section 3.2
        if host is None and request.protocol == "HTTP/1.1":
            return refusal(400, "The Host header is missing.")
        host_match = None if host is None else _HOST.fullmatch(host)
        if host is not None and host_match is None:
            return refusal(400, "The Host header is malformed.")
        if self.loopback_only:
            if host_match is None or not is_loopback_name(host_match[1]):
                return refusal(403, "This server answers to its own machine only.")
            if any(is_forwarding_header(name) for name in headers):
                return refusal(403, "This server does not answer forwarded requests: no users are configured.")
        if wants_websocket(headers):
            return self._decide_upgrade(request, host_match)
        return self._decide_plain(request)

    def _decide_upgrade(self, request: Request, host_match: re.Match[str] | None) -> HttpResponse | None:
        headers = request.headers
        if request.path != self.upgrade_path:
            return refusal(404, "There is no WebSocket here.")
        if request.method != "GET":
            return refusal(405, "A WebSocket handshake is a GET.", ("Allow", "GET, HEAD"))
        if request.protocol != "HTTP/1.1":
            return refusal(400, "A WebSocket handshake needs HTTP/1.1.")  # RFC 6455 section 4.2.1
        if not self._origin_allowed(headers, host_match):
            return refusal(403, "This origin is not allowed.")
        if headers.get_all("Sec-WebSocket-Version") != ["13"]:
            # RFC 6455 section 4.4: say which version would do.
            return refusal(426, "The WebSocket version must be 13.", *UPGRADE_REQUIRED)
        return None

    def _origin_allowed(self, headers: Headers, host_match: re.Match[str] | None) -> bool:
        try:
            text = single_header(headers, "Origin")
        except MultipleValuesError:
            return False  # RFC 6454 section 7.3 allows one.
        if text is None:
            return True  # Not a browser: browsers always send it with a WebSocket handshake (RFC 6455 section 4.1).
        origin = parse_origin(text)
        if origin is None:
            return False
        if origin in self.extra_origins:
            return True
        if origin.scheme not in ("http", "https"):
            return False
        if is_loopback_name(origin.host):
            return True
        if host_match is None:
            return False
        # The own host: a proxy may have ended TLS, so the scheme is the page's own and gives the default port.
        port = int(host_match[2]) if host_match[2] is not None else _DEFAULT_PORTS[origin.scheme]
        return origin.host == host_match[1].lower() and origin.port == port

    def _decide_plain(self, request: Request) -> HttpResponse:
        path, _, _ = request.path.partition("?")
        route = self.routes.get(path)
        if route is None and path != self.upgrade_path:
            return refusal(404, "There is nothing here.")
        if request.method not in ("GET", "HEAD"):
            return refusal(405, "Only GET and HEAD are answered here.", ("Allow", "GET, HEAD"))
        if route is None:
            return refusal(426, "This is a WebSocket; connect with a WebSocket client.", *UPGRADE_REQUIRED)
        return route()


def wants_websocket(headers: Headers) -> bool:
    """Whether the request asks for `Upgrade: websocket`; whether it asks correctly is the library's to judge."""
    return any(
        token.strip().lower() == "websocket" for value in headers.get_all("Upgrade") for token in value.split(",")
    )


_FORWARDING_HEADERS: Final = frozenset({
    "forwarded", "via",
    "x-real-ip", "x-client-ip", "x-cluster-client-ip", "x-original-host", "x-proxyuser-ip",
    "client-ip", "true-client-ip", "fastly-client-ip", "fly-client-ip",
    "cdn-loop",
})
_FORWARDING_PREFIXES: Final = ("x-forwarded-", "cf-", "x-envoy-", "x-amzn-trace-", "x-azure-", "x-appengine-")


def is_forwarding_header(name: str) -> bool:
    """Whether a header is one that only a proxy, a tunnel or a content network adds: those of RFC 7239 and RFC 9110
    section 7.6.3, and the custom of the usual ones."""
    lowered = name.lower()
    return lowered in _FORWARDING_HEADERS or lowered.startswith(_FORWARDING_PREFIXES)
