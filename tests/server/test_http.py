"""The front door: requests in, decisions out. No sockets."""

from __future__ import annotations

import pytest
from websockets.datastructures import Headers
from websockets.http11 import Request

from tellback_server.http import (
    LOG_FIELD_CHARACTERS_MAX,
    FrontDoor,
    HttpResponse,
    Origin,
    escaped_for_log,
    is_loopback_name,
    parse_origin,
    refusal,
)

UPGRADE = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "x"}
ROUTES = {"/healthz": lambda: HttpResponse(200, b"ok\n"), "/": lambda: HttpResponse(200, b"<p>", "text/html")}


def status(
    path: str = "/ws",
    fields: dict[str, str] | None = None,
    *extra: tuple[str, str],
    door: FrontDoor | None = None,
    method: str = "GET",
    protocol: str = "HTTP/1.1",
    upgrade: bool = True,
) -> int:
    """The status of the answer; 101 stands for "the handshake may go on"."""
    given = {"Host": "chat.example:8000", **(UPGRADE if upgrade else {}), **(fields or {})}
    headers = Headers([*((name, value) for name, value in given.items() if value != "-"), *extra])
    answer = (door or FrontDoor(routes=ROUTES)).decide(Request(path, headers, method, protocol))
    return 101 if answer is None else answer.status


# Origins.


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("https://app.example.com", Origin("https", "app.example.com", 443)),
        ("HTTPS://App.Example.COM:443", Origin("https", "app.example.com", 443)),
        ("http://localhost:3000", Origin("http", "localhost", 3000)),
        ("http://[::1]:3000", Origin("http", "[::1]", 3000)),
        ("chrome-extension://abcdef", Origin("chrome-extension", "abcdef", None)),
        ("null", None),
        ("", None),
        ("https://", None),
        ("https://app.example.com/", None),
        ("https://user@app.example.com", None),
        ("https://app.example.com:99999", None),
        ("https://app.example.com:", None),
        ("https://app.example.com https://evil.example", None),
        ("//app.example.com", None),
        ("app.example.com", None),
        ("https://app.example.com\n", None),
        ("https://exämple.com", None),
    ],
)
def test_an_origin_is_parsed_whole_or_not_at_all(text: str, origin: Origin | None) -> None:
    assert parse_origin(text) == origin


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        pytest.param("http://chat.example:8000", 101, id="own host"),
        pytest.param("http://CHAT.example:8000", 101, id="own host in another case"),
        pytest.param("https://chat.example:8000", 101, id="own host behind TLS"),
        pytest.param("http://chat.example", 403, id="own host, other port"),
        pytest.param("http://localhost", 101, id="loopback name"),
        pytest.param("https://127.0.0.1:5173", 101, id="loopback address"),
        pytest.param("http://127.8.9.1", 101, id="any loopback address"),
        pytest.param("http://[::1]:1234", 101, id="IPv6 loopback"),
        pytest.param("https://app.example.com", 101, id="configured"),
        pytest.param("https://APP.example.com:443", 101, id="configured, spelled otherwise"),
        pytest.param("http://app.example.com", 403, id="configured, other scheme"),
        pytest.param("https://app.example.com:444", 403, id="configured, other port"),
        pytest.param("https://app.example.com.evil", 403, id="suffix trick"),
        pytest.param("https://evilapp.example.com", 403, id="prefix trick"),
        pytest.param("https://app.example.com@evil.example", 403, id="user information trick"),
        pytest.param("https://localhost.evil.example", 403, id="loopback as a label"),
        pytest.param("https://127.0.0.1.evil.example", 403, id="loopback address as labels"),
        pytest.param("http://127.1", 403, id="short loopback address"),
        pytest.param("http://0x7f000001", 403, id="hexadecimal loopback address"),
        pytest.param("http://localhost.", 403, id="trailing dot"),
        pytest.param("ftp://localhost", 403, id="other scheme on loopback"),
        pytest.param("null", 403, id="null"),
        pytest.param("NULL", 403, id="NULL"),
        pytest.param("", 403, id="empty"),
        pytest.param("*", 403, id="star"),
        pytest.param("-", 101, id="absent: not a browser"),
    ],
)
def test_an_upgrade_needs_an_allowed_origin(origin: str, expected: int) -> None:
    door = FrontDoor.configured(extra_origins=["https://app.example.com"])
    assert status("/ws", {"Origin": origin}, door=door) == expected


def test_two_origins_are_none() -> None:
    assert status("/ws", {"Origin": "http://localhost"}, ("Origin", "http://localhost")) == 403


def test_the_default_port_of_the_own_host_is_that_of_the_pages_scheme() -> None:
    assert status("/ws", {"Host": "chat.example", "Origin": "https://chat.example"}) == 101
    assert status("/ws", {"Host": "chat.example", "Origin": "http://chat.example:80"}) == 101
    assert status("/ws", {"Host": "chat.example:443", "Origin": "http://chat.example"}) == 403


def test_a_configured_origin_that_is_none_is_an_error_at_the_start() -> None:
    with pytest.raises(ValueError, match=r"app\.example\.com/"):
        FrontDoor.configured(extra_origins=["https://app.example.com/"])


# Loopback only.


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", 101),
        ("LOCALHOST:8000", 101),
        ("127.0.0.1:8000", 101),
        ("127.5.5.5", 101),
        ("[::1]:8000", 101),
        ("localhost:9000", 101),
        ("evil.example:8000", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.nip.io", 403),
        ("0.0.0.0:8000", 403),
        ("192.168.1.5:8000", 403),
        ("[::ffff:7f00:1]", 403),
        ("user@localhost", 400),
        ("localhost:8000, evil.example", 400),
        ("", 400),
        ("-", 400),
    ],
)
def test_without_users_only_the_own_machine_is_answered(host: str, expected: int) -> None:
    door = FrontDoor(loopback_only=True, routes=ROUTES)
    assert status("/ws", {"Host": host}, door=door) == expected
    plain = 200 if expected == 101 else expected
    assert status("/healthz", {"Host": host}, door=door, upgrade=False) == plain


@pytest.mark.parametrize(
    "header",
    [
        "Forwarded", "X-Forwarded-For", "x-forwarded-host", "X-FORWARDED-PROTO", "X-Forwarded-Anything", "X-Real-IP",
        "Via", "CF-Connecting-IP", "CF-Ray", "CF-Visitor", "CDN-Loop", "True-Client-IP", "Fastly-Client-IP",
        "X-Client-IP", "X-Envoy-External-Address", "X-Amzn-Trace-Id",
    ],
)
def test_without_users_nothing_forwarded_is_answered(header: str) -> None:
    fields = {"Host": "localhost:8000", header: "127.0.0.1"}
    assert status("/ws", fields, door=FrontDoor(loopback_only=True)) == 403
    assert status("/ws", fields) == 101


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("localhost", True),
        ("127.255.0.1", True),
        ("[::1]", True),
        ("128.0.0.1", False),
        ("127.0.0.01", False),
        ("", False),
    ],
)
def test_loopback_names_are_a_closed_set(name: str, expected: bool) -> None:
    assert is_loopback_name(name) is expected


# Paths, methods, versions.


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/ws", 101),
        ("/ws/", 404),
        ("/WS", 404),
        ("//ws", 404),
        ("/../ws", 404),
        ("/x/../ws", 404),
        ("/%2e%2e/ws", 404),
        ("/%77s", 404),
        ("/ws?token=canary", 404),
        ("/ws;x", 404),
        ("/healthz", 404),
        ("http://chat.example:8000/ws", 400),
        ("chat.example:8000", 400),
        ("*", 400),
        ("", 400),
        ("/w s", 400),
        ("/\x7f", 400),
    ],
)
def test_an_upgrade_is_at_one_path_only(path: str, expected: int) -> None:
    assert status(path) == expected


@pytest.mark.parametrize(
    ("path", "method", "expected"),
    [
        ("/healthz", "GET", 200),
        ("/healthz", "HEAD", 200),
        ("/healthz?verbose=1", "GET", 200),
        ("/healthz", "POST", 405),
        ("/healthz", "get", 405),
        ("/healthz", "OPTIONS", 405),
        ("/", "GET", 200),
        ("/ws", "GET", 426),
        ("/ws", "HEAD", 426),
        ("/ws", "DELETE", 405),
        ("/nothing", "GET", 404),
        ("/healthz/", "GET", 404),
    ],
)
def test_plain_requests_have_a_small_table(path: str, method: str, expected: int) -> None:
    assert status(path, method=method, upgrade=False) == expected


def test_an_upgrade_must_be_a_get_of_http_1_1_and_version_13() -> None:
    assert status(method="POST") == 405
    assert status(protocol="HTTP/1.0") == 400
    assert status("/ws", {"Sec-WebSocket-Version": "8"}) == 426
    assert status("/ws", {"Sec-WebSocket-Version": "-"}) == 426
    assert status("/ws", {}, ("Sec-WebSocket-Version", "13")) == 426


def test_another_upgrade_is_a_plain_request() -> None:
    assert status("/ws", {"Upgrade": "h2c"}) == 426
    assert status("/healthz", {"Upgrade": "h2c"}) == 200
    assert status("/healthz", {"Host": "-"}, upgrade=False, protocol="HTTP/1.0") == 200
    assert status("/healthz", {}, ("Host", "other.example"), upgrade=False) == 400


# Answers and logs.


def test_an_answer_says_how_long_it_is_and_that_the_connection_ends() -> None:
    answer = HttpResponse(200, "é".encode(), "text/html; charset=utf-8", (("Cache-Control", "max-age=60"),))
    text = answer.serialize(date="Thu, 01 Jan 1970 00:00:00 GMT").decode()
    assert text.startswith("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Type: text/html; charset=utf-8\r\n")
    assert text.count("Cache-Control") == 1
    assert "\r\nConnection: close\r\n" in text
    assert text.endswith("\r\n\r\né")
    assert answer.serialize(head_only=True).endswith(b"\r\n\r\n")
    assert b"Content-Length: 2\r\n" in answer.serialize(head_only=True)


def test_a_refusal_ends_in_a_line() -> None:
    assert refusal(403, "No.") == HttpResponse(403, b"No.\n")


def test_what_a_peer_says_cannot_break_a_log_line() -> None:
    assert escaped_for_log("a\r\n\x1b[31m\u2028{}%n") == r"a\r\n\x1b[31m\u2028{}%n"
    assert escaped_for_log("\U0001f600" * 1000) == (r"\U0001f600" * 26)[:LOG_FIELD_CHARACTERS_MAX]
    assert escaped_for_log(None) is None
