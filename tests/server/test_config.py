"""Settings: order of the sources, sentences for bad values, the loopback rule, the documentation."""

from __future__ import annotations

import ast
import inspect
import io
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from tellback_server.commands.serve import serve
from tellback_server.config import (
    ENVIRONMENT_ONLY,
    ConfigurationError,
    Settings,
    flag_of,
    load_settings,
    settings_table,
    unknown_variables,
    upstream_keys,
    variable_of,
)
from tellback_server.fs import Fs
from tellback_server.logging_setup import configure_logging, escaped

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(variable_of(name), raising=False)


def written(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def problem(**flags: object) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load_settings(flags)
    return str(caught.value)


def test_defaults_bind_to_loopback_only() -> None:
    settings = load_settings({"data": "/x"})
    assert (settings.host, settings.port, settings.checkpoint_interval_s, settings.idle_s) == (
        "127.0.0.1", 8765, 5.0, 30.0,
    )
    assert not settings.has_users
    assert not settings.unsafe_no_sync


def test_a_flag_beats_the_environment_which_beats_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = written(tmp_path / "t.toml", 'data = "/from-file"\nport = 1001\nidle_s = 11\n')
    monkeypatch.setenv("TELLBACK_PORT", "1002")
    monkeypatch.setenv("TELLBACK_IDLE_S", "12")
    settings = load_settings({"config": config, "idle_s": "13", "host": None})
    assert (settings.data, settings.port, settings.idle_s) == ("/from-file", 1002, 13.0)


def test_the_file_can_be_named_by_a_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TELLBACK_CONFIG", written(tmp_path / "t.toml", 'data = "/from-file"\n'))
    assert load_settings({}).data == "/from-file"


def test_paths_in_the_file_are_relative_to_its_folder(tmp_path: Path) -> None:
    config = written(tmp_path / "t.toml", 'data = "chats"\nauth_file = "users.toml"\n')
    settings = load_settings({"config": config})
    assert settings.data == str(tmp_path / "chats")
    assert settings.auth_file == str(tmp_path / "users.toml")


def test_lists_are_written_with_commas_in_flags_and_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TELLBACK_ALLOWED_ORIGINS", "https://a.example, http://b.example:8000")
    settings = load_settings({"data": "/x", "jwt_algorithms": "HS256,HS512"})
    assert settings.allowed_origins == ("https://a.example", "http://b.example:8000")
    assert settings.jwt_algorithms == ("HS256", "HS512")


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({}, "data: it is not set. Give --data or set TELLBACK_DATA."),
        ({"data": ""}, "--data: the value is empty."),
        ({"data": "/a\0b"}, "--data: is no path: it holds a NUL character."),
        ({"data": "/x", "port": "http"}, "--port: 'http' is not a whole number."),
        ({"data": "/x", "port": "70000"}, "--port: 70000 is too large; the most is 65535."),
        ({"data": "/x", "checkpoint_interval_s": "-1"}, "--checkpoint-interval: -1 is too small; the least is 0.01."),
        ({"data": "/x", "idle_s": "nan"}, "--idle: "),
        ({"data": "/x", "loop": "trio"}, "--loop: 'trio' is not one of 'uvloop' or 'asyncio'."),
        ({"data": "/x", "allowed_origins": "https://a.example/page"}, "is no origin"),
        ({"data": "/x", "allowed_origins": "null"}, "is no origin"),
        ({"data": "/x", "jwt_algorithms": "none"}, "'none' is not supported"),
        ({"data": "/x", "jwt_algorithms": "HS256,RS256"}, "mixes algorithms"),
        ({"data": "/x", "jwt_audience": "me"}, "without jwt_key_file"),
        ({"data": "/x", "auth_file": "/a", "jwt_key_file": "/b"}, "both set"),
    ],
)
def test_a_bad_value_is_one_sentence_with_its_source(flags: dict[str, object], sentence: str) -> None:
    assert sentence in problem(**flags)


def test_a_bad_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TELLBACK_PORT", "eight")
    assert problem(data="/x") == "TELLBACK_PORT: 'eight' is not a whole number."


def test_a_bad_key_of_the_file_is_named(tmp_path: Path) -> None:
    config = written(tmp_path / "t.toml", 'data = "/x"\nport = "eight"\n')
    assert problem(config=config) == "port in the settings file: 'eight' is not a whole number."


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("data = ", "this is not TOML"),
        ('data = "/x"\nprot = 1\n', "there is no setting 'prot'"),
        ('data = "/x"\nunsafe_no_sync = true\n', "unsafe_no_sync cannot be set in a file"),
        ('data = "/x"\nconfig = "other.toml"\n', "cannot name another one"),
    ],
)
def test_a_bad_file_is_explained(tmp_path: Path, text: str, sentence: str) -> None:
    assert sentence in problem(config=written(tmp_path / "t.toml", text))


def test_a_missing_file_is_an_error_and_not_an_empty_one(tmp_path: Path) -> None:
    assert "does not exist" in problem(config=str(tmp_path / "nowhere.toml"), data="/x")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "chat.example.com", "127.0.0.1.evil.example"])
def test_without_users_only_loopback_is_bound(host: str) -> None:
    assert "no users are configured" in problem(data="/x", host=host)
    assert load_settings({"data": "/x", "host": host, "auth_file": "/users.toml"}).host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "localhost", "::1"])
def test_loopback_needs_no_users(host: str) -> None:
    assert load_settings({"data": "/x", "host": host}).host == host


def test_syncing_is_switched_off_by_the_environment_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TELLBACK_UNSAFE_NO_SYNC", "1")
    assert load_settings({"data": "/x"}).unsafe_no_sync
    assert "unsafe_no_sync" not in inspect.signature(serve).parameters


def test_misspelt_variables_are_found() -> None:
    assert unknown_variables({"TELLBACK_PROT": "1", "TELLBACK_PORT": "1", "PATH": "/bin"}) == ["TELLBACK_PROT"]


# -- model servers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "url", "is_private"),
    [
        ("local=http://127.0.0.1:8080/v1", "http://127.0.0.1:8080/v1/chat/completions", True),
        ("local=http://[::1]:8080/v1/", "http://[::1]:8080/v1/chat/completions", True),
        ("a-1=https://x.example", "https://x.example/chat/completions", True),
        ("a=https://x.example/d/chat/completions?v=2", "https://x.example/d/chat/completions?v=2", True),
        ("lan=http://192.0.2.7:5000/v1", "http://192.0.2.7:5000/v1/chat/completions", False),
    ],
)
def test_a_model_server_is_a_name_and_a_base_url(text: str, url: str, is_private: bool) -> None:
    upstream = load_settings({"data": "/x", "upstream": [text]}).upstreams[0]
    assert (upstream.name, upstream.completions_url, upstream.is_private) == (text.split("=")[0], url, is_private)
    assert "http" not in repr(upstream)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("http://127.0.0.1:8080/v1?a=b", "is written NAME=URL"),
        ("local", "is written NAME=URL"),
        ("Local=http://x", "'Local' is no name for a model server; a name has"),
        ("local=", "local has no URL"),
        ("local=127.0.0.1:8080", "must begin with http:// or https://"),
        ("local=localhost:8080/v1", "begins with localhost:; it must begin with http:// or https://"),
        ("local=ftp://x/v1", "begins with ftp:"),
        ("local=http:///v1", "names no host"),
        ("local=http://x:0/v1", "names no port that exists"),
        ("local=http://x:99999/v1", "cannot be read: Port out of range"),
        ("local=http://[::1/v1", "cannot be read"),
        ("local=https://me:sesame@x/v1", "holds a user or password; set TELLBACK_UPSTREAM_LOCAL_KEY"),
        ("local=https://x/v1#sesame", "has a fragment"),
        ("local=https://x/v1 ", "holds what no URL holds"),
        ("local=https://x/v1\r\nHost: y", "holds what no URL holds"),
    ],
)
def test_a_bad_model_server_says_what_is_wrong_and_repeats_no_secret(text: str, sentence: str) -> None:
    said = problem(data="/x", upstream=[text])
    assert said.startswith("--upstream: ")
    assert sentence in said
    assert "sesame" not in said


def test_model_servers_have_names_of_their_own() -> None:
    assert "two model servers are called a" in problem(data="/x", upstream=["a=http://x", "a=http://y"])
    assert "names b, but upstream does not" in problem(data="/x", upstream=["a=http://x"], upstream_key_file=["b=/k"])
    said = problem(data="/x", upstream=["a=http://x"], upstream_key_file=["sk-sesame"])
    assert "written NAME=PATH" in said
    assert "sesame" not in said


def test_keys_come_from_files_and_variables_and_are_in_no_dump(tmp_path: Path) -> None:
    written(tmp_path / "b.key", "sk-b\n")
    config = written(
        tmp_path / "t.toml",
        'data = "/x"\nupstream = ["my-a=http://a", "b=http://b", "c=http://c"]\nupstream_key_file = ["b=b.key"]\n',
    )
    settings = load_settings({"config": config})
    environment = {"TELLBACK_UPSTREAM_MY_A_KEY": "sk-a"}
    assert upstream_keys(settings, environment, Fs()) == {"my-a": "sk-a", "b": "sk-b"}
    assert "sk-" not in repr(settings) + str(settings.model_dump())
    assert unknown_variables(environment, settings.upstreams) == []
    assert unknown_variables(environment) == ["TELLBACK_UPSTREAM_MY_A_KEY"]


@pytest.mark.parametrize(
    ("content", "variable", "sentence"),
    [
        (None, "", "Check --upstream-key-file."),
        ("", "", "a key is one line"),
        ("sesame\nopen", "", "a key is one line"),
        ("s\u00e9same", "", "a key is one line"),
        ("sesame", "sesame", "has a key file, too. Unset TELLBACK_UPSTREAM_A_KEY"),
    ],
)
def test_a_bad_key_is_explained_and_not_shown(
    tmp_path: Path, content: str | None, variable: str, sentence: str
) -> None:
    if content is not None:
        written(tmp_path / "key", content)
    settings = load_settings({"data": "/x", "upstream": ["a=http://a"], "upstream_key_file": [f"a={tmp_path}/key"]})
    with pytest.raises(ConfigurationError) as caught:
        upstream_keys(settings, {"TELLBACK_UPSTREAM_A_KEY": variable}, Fs())
    assert sentence in str(caught.value)
    assert "same" not in str(caught.value).replace(str(tmp_path), "")


# -- documentation ---------------------------------------------------------------------------------------------------


def test_every_setting_has_a_flag() -> None:
    assert set(inspect.signature(serve).parameters) == set(Settings.model_fields) - ENVIRONMENT_ONLY


def test_the_configuration_page_holds_the_table_of_settings() -> None:
    page = (REPOSITORY / "docs/CONFIGURATION.md").read_text()
    assert settings_table() in page, "Put this into docs/CONFIGURATION.md in place of the table:\n" + settings_table()


def test_flags_in_the_documentation_exist() -> None:
    known = {flag_of(name) for name in Settings.model_fields}
    known |= {
        "--no-fast-path", "--json", "--expires", "--label", "--url", "--last", "--version", "--help", "--python",
        "--extra",
    }
    for page in ("README.md", "docs/CONFIGURATION.md", "docs/ARCHITECTURE.md"):
        used = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", (REPOSITORY / page).read_text()))
        assert used <= known, f"{page} names flags that do not exist: {used - known}"


def test_the_import_order_is_as_drawn() -> None:
    drawing = (REPOSITORY / "docs/ARCHITECTURE.md").read_text().split("```text\n")[1].split("```")[0]
    drawn = [name for line in drawing.splitlines() for name in line[12:].split()]
    place = {name: index for index, name in enumerate(drawn)}
    root = REPOSITORY / "server/tellback_server"
    found = {path: imported_name(path.relative_to(root).with_suffix("").parts) for path in root.rglob("*.py")}
    empty = {"", "checks", "commands", "repairs", "store", "transfer"}
    assert set(found.values()) - empty == set(drawn), "draw a module where it belongs in docs/ARCHITECTURE.md"
    for path, name in found.items():
        for other in imports_of(path, frozenset(drawn)):
            assert place[other] < place[name], f"{name} imports {other}, which docs/ARCHITECTURE.md draws behind it"


def imported_name(parts: tuple[str, ...]) -> str:
    return ".".join(part for part in parts if part != "__init__")


def imports_of(path: Path, known: frozenset[str]) -> Iterator[str]:
    """Modules of the server that a module needs to be imported; not what only type checkers or functions import."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "tellback_server":
            package = (node.module or "").removeprefix("tellback_server").removeprefix(".")
            for alias in node.names:
                inside = f"{package}.{alias.name}".removeprefix(".")
                yield inside if inside in known else package


@pytest.mark.parametrize(
    "page", ["README.md", "CHANGELOG.md", *(str(p.relative_to(REPOSITORY)) for p in REPOSITORY.glob("docs/**/*.md"))]
)
def test_links_inside_the_documentation_lead_somewhere(page: str) -> None:
    folder = (REPOSITORY / page).parent
    for target in re.findall(r"\]\(([^)#:]+)\)", (REPOSITORY / page).read_text()):
        assert (folder / target).exists(), f"{page} links to {target}"


# -- log lines -------------------------------------------------------------------------------------------------------


def lines_of(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_forged_line_stays_inside_its_field() -> None:
    stream = io.StringIO()
    configure_logging("info", "auto", stream=stream)
    structlog.get_logger().info("hello", agent='x\n{"event":"forged"}\x1b[31m\u2028\u202e%n{}', raw=b"\xff\n")
    [line] = lines_of(stream)
    assert line["event"] == "hello"
    assert line["agent"] == 'x\\n{"event":"forged"}\\x1b[31m\\u2028\\u202e%n{}'
    assert line["level"] == "info"


def test_a_field_has_at_most_256_characters() -> None:
    stream = io.StringIO()
    configure_logging("info", "json", stream=stream)
    fields = {"agent": "\x00" * 10_000_000, "nested": {"a": "b" * 1000}, "urls": ["ws://x\n"]}
    structlog.get_logger().info("x" * 300, size_bytes=7, **fields)
    [line] = lines_of(stream)
    assert all(len(str(value)) <= 256 for value in line.values())
    assert line["urls"] == ["ws://x\\n"]
    assert line["size_bytes"] == 7


def test_secrets_are_hidden_by_the_name_of_their_field() -> None:
    stream = io.StringIO()
    configure_logging("info", "console", stream=stream)
    structlog.get_logger().info("hello", token="canary", Authorization="canary", credential={"a": "canary"})
    assert "canary" not in stream.getvalue()


def test_a_traceback_carries_no_local_variables() -> None:
    for log_format in ("json", "console"):
        stream = io.StringIO()
        configure_logging("info", log_format, stream=stream)
        local = "canary-" + "value"
        try:
            raise ValueError(len(local))
        except ValueError:
            structlog.get_logger().exception("fault")
        assert "ValueError" in stream.getvalue()
        assert "canary-value" not in stream.getvalue()


def test_the_standard_library_logs_through_the_same_door() -> None:
    stream = io.StringIO()
    configure_logging("info", "json", stream=stream)
    logging.getLogger("asyncio").error("lost %s", "task\n")
    logging.getLogger("websockets.server").debug('< TEXT {"token":"canary"}')
    assert [line["event"] for line in lines_of(stream)] == ["lost task\\n"]


def test_a_closed_stream_does_not_stop_the_server() -> None:
    stream = io.StringIO()
    configure_logging("info", "json", stream=stream)
    stream.close()
    structlog.get_logger().info("nobody reads this")


def test_escaping_keeps_letters_and_drops_powers() -> None:
    assert escaped("Kapitän 佐藤 😀 👩‍💻") == "Kapitän 佐藤 😀 👩‍💻"
    assert escaped("a\u202eb👩‍💻") == "a\\u202eb👩‍💻"
    assert escaped("a\r\n\t\x9b\ud800") == "a\\r\\n\\t\\x9b\\ud800"
