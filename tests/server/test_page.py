"""The page at the front door: from a table, with strict headers; a checkout without it says how to build it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from websockets.datastructures import Headers
from websockets.http11 import Request

from tellback_server.fs import Fs
from tellback_server.http import FrontDoor, HttpResponse
from tellback_server.page import BUILD_COMMAND, is_built, page_routes, page_url
from tests.support.server import running


def built(tmp_path: Path) -> Path:
    for name in ("index.html", "savings.html", "main-0a.js", "page-0b.css", "icon-0c.svg", "notes.txt", ".mark"):
        (tmp_path / name).write_text(name)
    return tmp_path


def asked(door: FrontDoor, path: str, method: str = "GET") -> HttpResponse:
    answer = door.decide(Request(path, Headers({"Host": "localhost"}), method, "HTTP/1.1"))
    assert answer is not None
    return answer


def test_each_file_has_its_type_and_the_page_is_asked_for_again(tmp_path: Path) -> None:
    door = FrontDoor(routes=page_routes(Fs(), str(built(tmp_path))))
    page, script = asked(door, "/"), asked(door, "/main-0a.js")
    assert (page.body, page.content_type) == (b"index.html", "text/html; charset=utf-8")
    assert asked(door, "/savings").body == b"savings.html"
    assert script.content_type == "text/javascript; charset=utf-8"
    assert dict(page.headers)["Cache-Control"] == "no-cache"
    assert "immutable" in dict(script.headers)["Cache-Control"]
    head = script.serialize().split(b"\r\n\r\n")[0]
    assert head.count(b"Cache-Control") == 1
    assert b"X-Content-Type-Options: nosniff" in head
    assert asked(door, "/page-0b.css").status == asked(door, "/icon-0c.svg").status == 200


@pytest.mark.parametrize("path", [
    "/index.html", "/savings.html", "/notes.txt", "/.mark", "//", "/main-0a.js/", "/../page.py", "/%2e%2e/page.py",
    "/web/main-0a.js",
])
def test_nothing_but_the_files_of_the_page_is_there(tmp_path: Path, path: str) -> None:
    assert asked(FrontDoor(routes=page_routes(Fs(), str(built(tmp_path)))), path).status == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE"])
def test_the_page_is_only_read(tmp_path: Path, method: str) -> None:
    assert asked(FrontDoor(routes=page_routes(Fs(), str(built(tmp_path)))), "/", method).status == 405


def test_nothing_runs_and_nothing_is_reached_but_this_server(tmp_path: Path) -> None:
    for answer in [route() for route in page_routes(Fs(), str(built(tmp_path))).values()]:
        policy = dict(part.split(" ", 1) for part in dict(answer.headers)["Content-Security-Policy"].split("; "))
        for rule in ("default-src", "base-uri", "form-action", "frame-ancestors"):
            assert policy[rule] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert policy["require-trusted-types-for"] == "'script'"
        assert "unsafe" not in str(policy)


def test_a_checkout_without_the_page_says_how_to_build_it(tmp_path: Path) -> None:
    assert not is_built(Fs(), str(tmp_path / "web"))
    [route] = page_routes(Fs(), str(tmp_path / "web")).values()
    assert route().status == 200
    assert BUILD_COMMAND.replace("&", "&amp;").encode() in route().body


def test_the_page_is_at_the_host_and_port_of_the_socket() -> None:
    assert page_url("ws://127.0.0.1:8765/ws") == "http://127.0.0.1:8765/"
    assert page_url("ws://[::1]:1/ws") == "http://[::1]:1/"


async def test_a_server_delivers_it(tmp_path: Path) -> None:
    async with running(tmp_path / "data") as app:
        host, port = app.urls[0].removeprefix("ws://").removesuffix("/ws").rsplit(":", 1)
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"GET / HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
        answer = await reader.read()
        writer.close()
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"Content-Security-Policy: default-src 'none'" in answer
    assert b"<title>tellback</title>" in answer
