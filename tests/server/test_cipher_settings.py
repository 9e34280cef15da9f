"""Cipher's environment variables, and the settings of a primary and a backup."""

from __future__ import annotations

import os

import pytest

from tellback_server.config import ConfigurationError, Settings, load_settings, variable_of

POSTGRES = "postgresql://tellback:secret@db.local/tellback"
VARIABLES = ("CIPHER_MULTI_BACKEND", "CIPHER_PG_URL", "CIPHER_WAL_FLUSH_INTERVAL")


@pytest.fixture(autouse=True)
def _empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*VARIABLES, *map(variable_of, Settings.model_fields)):
        monkeypatch.delenv(name, raising=False)


def cipher(monkeypatch: pytest.MonkeyPatch, on: str, url: str = POSTGRES, interval: str = "") -> None:
    for name, value in zip(VARIABLES, (on, url, interval), strict=True):
        monkeypatch.setenv(name, value)


def problem(**flags: object) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load_settings({"data": "/x", **flags})
    return str(caught.value)


@pytest.mark.parametrize("text", ["1", "true", "YES", " on "])
def test_ciphers_multi_backend_is_understood(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cipher(monkeypatch, text, interval="2500")
    settings = load_settings({"data": "/x y"})
    assert (settings.store, settings.primary, settings.flush_interval_s) == ("multi", POSTGRES, 2.5)
    assert settings.backup == "sqlite:///x%20y/.tellback/cipher-backup.db"


@pytest.mark.parametrize("text", ["0", "false", "", "no", "Off"])
def test_off_is_off(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """FIELD-FACTS 7.3: Cipher takes "0" for on."""
    cipher(monkeypatch, text)
    settings = load_settings({"data": "/x"})
    assert (settings.store, settings.primary, settings.backup, settings.flush_interval_s) == ("files", None, None, 5.0)


@pytest.mark.parametrize("interval", ["NaN", "5s", "-1", "0", "1e3", "99999999999", "\u0665"])
def test_an_interval_that_is_no_number_of_milliseconds_is_an_error(
    interval: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FIELD-FACTS 7.3: in Cipher NaN is a loop without a pause."""
    cipher(monkeypatch, "1", interval=interval)
    assert problem().startswith("CIPHER_WAL_FLUSH_INTERVAL: ")


def test_what_is_neither_on_nor_off_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    cipher(monkeypatch, "maybe")
    assert problem() == "CIPHER_MULTI_BACKEND: 'maybe' is neither on nor off. Use 1 or 0."


def test_settings_of_ours_win(monkeypatch: pytest.MonkeyPatch) -> None:
    cipher(monkeypatch, "1", interval="1000")
    monkeypatch.setenv("TELLBACK_PRIMARY", "redis://cache/0")
    monkeypatch.setenv("TELLBACK_FLUSH_INTERVAL_S", "7")
    settings = load_settings({"data": "/x", "backup": "sqlite:///b.db"})
    assert (settings.primary, settings.backup, settings.flush_interval_s) == ("redis://cache/0", "sqlite:///b.db", 7)
    monkeypatch.delenv("TELLBACK_PRIMARY")
    assert load_settings({"data": "/x", "store": "files"}).primary is None
    monkeypatch.setenv("TELLBACK_STORE", "sqlite:///one.db")
    settings = load_settings({"data": "/x"})
    assert (settings.store, settings.primary, settings.backup) == ("sqlite:///one.db", None, None)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"store": "multi"}, "store multi has no primary"),
        ({"store": "multi", "primary": "files"}, "store multi has no backup"),
        ({"store": "multi", "primary": "files", "backup": "files"}, "a backup is the URL of a store"),
        ({"store": "multi", "primary": "multi", "backup": "memory:"}, "a backup is the URL of a store"),
        ({"store": "multi", "primary": "memory:", "backup": "memory:"}, "primary and backup are one store"),
        ({"store": "multi", "primary": "sqlite:///a.db", "backup": "sqlite:///a.db?x=9"}, "are one store"),
        ({"primary": "files"}, "primary is set without store multi"),
        ({"backup": "memory:"}, "backup is set without store multi"),
        ({"flush_interval_s": "nan"}, "--flush-interval: "),
        ({"flush_interval_s": "0"}, "--flush-interval: "),
        ({"flush_timeout_s": "inf"}, "--flush-timeout: "),
    ],
)
def test_two_stores_that_make_no_sense_are_refused(flags: dict[str, object], sentence: str) -> None:
    assert sentence in problem(**flags)


def test_no_message_shows_a_password(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "secret" not in problem(store="multi", primary=POSTGRES)
    assert "secret" not in problem(store="multi", primary=POSTGRES, backup=POSTGRES)
    assert os.environ.get("CIPHER_PG_URL") is None
