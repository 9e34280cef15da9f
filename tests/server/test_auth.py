"""Authentication: three kinds, what each refuses, what changes while the server runs, and that no token leaks."""

from __future__ import annotations

import io
import json
import os
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
import structlog

from tellback_protocol.errors import Refused
from tellback_server.auth import (
    DEFAULT_USER,
    Identity,
    JwtAuthenticator,
    NoAuthenticator,
    TokenFile,
    authenticator_for,
    new_token,
    token_digest,
)
from tellback_server.clock import Clock
from tellback_server.config import ConfigurationError, Settings
from tellback_server.fs import Fs
from tests.support.logs import caught_logs

CANARY = "canary-7f3a-token-that-must-not-be-seen-anywhere"
SECRET = "k" * 64
NOW_MS = 1_800_000_000_000


class SetClock(Clock):
    """A clock that moves when it is told to."""

    __slots__ = ("ms",)

    def __init__(self) -> None:
        super().__init__()
        self.ms = NOW_MS

    def now_ms(self) -> int:
        return self.ms

    def monotonic_s(self) -> float:
        return self.ms / 1000


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


def token_file(path: Path, *entries: dict[str, str]) -> str:
    path.write_text(json.dumps({"tokens": list(entries)}))
    return str(path)


def entry(user: str, token: str, **more: str) -> dict[str, str]:
    return {"user": user, "sha256": token_digest(token), **more}


def refusal(authenticator: Any, token: str | None) -> Refused:
    with pytest.raises(Refused) as caught:
        authenticator.authenticate(token)
    return caught.value


# -- nobody is asked -------------------------------------------------------------------------------------------------


def test_without_users_everyone_is_the_default_user() -> None:
    authenticator = NoAuthenticator()
    assert authenticator.authenticate(None) == authenticator.authenticate(CANARY) == Identity(DEFAULT_USER)
    authenticator.check(Identity(DEFAULT_USER))
    assert authenticator.users == frozenset({DEFAULT_USER})


# -- token file ------------------------------------------------------------------------------------------------------


def test_a_token_says_who_its_bearer_is(tmp_path: Path, clock: SetClock) -> None:
    one, other = new_token(), new_token()
    path = token_file(tmp_path / "u.json", entry("alice", one), entry("bob", other, expires="2027-01-15T08:00:01Z"))
    authenticator = TokenFile(Fs(), clock, path)
    assert authenticator.authenticate(one).user == "alice"
    assert authenticator.authenticate(one).expires_ms is None
    assert authenticator.authenticate(other).user == "bob"
    assert authenticator.authenticate(other).expires_ms == NOW_MS + 1000
    assert authenticator.users == frozenset({"alice", "bob"})


@pytest.mark.parametrize("token", [None, "", "x", "\0", "\ud800", "é" * 10, "a" * 5000, " tb_x"])
def test_any_other_token_is_unauthenticated(tmp_path: Path, clock: SetClock, token: str | None) -> None:
    authenticator = TokenFile(Fs(), clock, token_file(tmp_path / "u.json", entry("alice", new_token())))
    refused = refusal(authenticator, token)
    assert (refused.code, refused.retry, refused.pointer) == ("unauthenticated", "after-auth", "/token")


def test_the_hash_is_no_token(tmp_path: Path, clock: SetClock) -> None:
    digest = token_digest(new_token())
    path = token_file(tmp_path / "u.json", {"user": "alice", "sha256": digest})
    assert refusal(TokenFile(Fs(), clock, path), digest).code == "unauthenticated"


def test_a_token_expires(tmp_path: Path, clock: SetClock) -> None:
    token = new_token()
    path = token_file(tmp_path / "u.json", entry("bob", token, expires="2027-01-15T09:00:01+01:00"))
    authenticator = TokenFile(Fs(), clock, path)
    identity = authenticator.authenticate(token)
    clock.ms += 1000
    assert "expired" in refusal(authenticator, token).message
    with pytest.raises(Refused, match="expired"):
        authenticator.check(identity)


def test_a_revoked_token_ends_a_session_at_its_next_check(tmp_path: Path, clock: SetClock) -> None:
    alices, bobs = new_token(), new_token()
    path = token_file(tmp_path / "u.json", entry("alice", alices), entry("bob", bobs))
    authenticator = TokenFile(Fs(), clock, path)
    alice, bob = authenticator.authenticate(alices), authenticator.authenticate(bobs)
    token_file(tmp_path / "u.json", entry("bob", bobs))
    clock.ms += 1000
    authenticator.check(bob)
    with pytest.raises(Refused) as caught:
        authenticator.check(alice)
    assert caught.value.code == "unauthenticated"
    assert refusal(authenticator, alices).code == "unauthenticated"


def test_a_token_given_to_another_user_does_not_keep_the_first(tmp_path: Path, clock: SetClock) -> None:
    token = new_token()
    authenticator = TokenFile(Fs(), clock, token_file(tmp_path / "u.json", entry("alice", token)))
    identity = authenticator.authenticate(token)
    token_file(tmp_path / "u.json", entry("mallory", token))
    clock.ms += 1000
    with pytest.raises(Refused, match="another user"):
        authenticator.check(identity)


def test_a_file_that_was_replaced_at_the_same_size_and_time_is_read_again(tmp_path: Path, clock: SetClock) -> None:
    one, other = new_token(), new_token()
    path = tmp_path / "u.json"
    authenticator = TokenFile(Fs(), clock, token_file(path, entry("alice", one)))
    before = path.stat()
    token_file(tmp_path / "new.json", entry("alice", other))
    os.utime(tmp_path / "new.json", ns=(before.st_atime_ns, before.st_mtime_ns))
    os.replace(tmp_path / "new.json", path)
    clock.ms += 1000
    assert authenticator.authenticate(other).user == "alice"


@pytest.mark.parametrize("broken", ["", None, "{", '{"tokens":[{"user":"alice"}]}'])
def test_a_file_broken_while_running_leaves_the_last_good_one(
    tmp_path: Path, clock: SetClock, broken: str | None
) -> None:
    token = new_token()
    path = tmp_path / "u.json"
    authenticator = TokenFile(Fs(), clock, token_file(path, entry("alice", token)))
    if broken is None:
        path.unlink()
    else:
        path.write_text(broken)
    clock.ms += 1000
    assert authenticator.authenticate(token).user == "alice"
    token_file(path)
    clock.ms += 1000
    assert refusal(authenticator, token).code == "unauthenticated"


def test_a_toml_file_with_comments_and_dates(tmp_path: Path, clock: SetClock) -> None:
    token = new_token()
    path = tmp_path / "u.toml"
    digest = token_digest(token).upper()
    path.write_text(f'# mine\n[[tokens]]\nuser = "Ålice"\nsha256 = "{digest}"\nexpires = 2027-02-01T00:00:00Z\n')
    assert TokenFile(Fs(), clock, str(path)).authenticate(token).user == "Ålice"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("[", "no token file"),
        ('{"tokens":[{"user":"../x","sha256":"' + "0" * 64 + '"}]}', "cannot be a folder"),
        ('{"tokens":[{"user":"con","sha256":"' + "0" * 64 + '"}]}', "cannot be a folder"),
        ('{"tokens":[{"user":"a","sha256":"' + CANARY + '"}]}', "64 hexadecimal digits"),
        ('{"tokens":[{"user":"a","sha256":"' + "0" * 64 + '","expires":"tomorrow"}]}', "Write it like"),
        ('{"tokens":[{"user":"a","sha256":"' + "0" * 64 + '","expires":"2027-01-01T00:00:00"}]}', "Write it like"),
        ('{"tokens":[{"user":"a","sha256":"' + "0" * 64 + '","expiry":"x"}]}', "expiry"),
    ],
)
def test_a_bad_file_stops_the_start_with_a_sentence(
    tmp_path: Path, clock: SetClock, content: str, sentence: str
) -> None:
    path = tmp_path / "u.json"
    path.write_text(content)
    with pytest.raises(ConfigurationError, match=sentence) as caught:
        TokenFile(Fs(), clock, str(path))
    assert CANARY not in str(caught.value)


def test_a_missing_file_stops_the_start(tmp_path: Path, clock: SetClock) -> None:
    with pytest.raises(ConfigurationError, match="does not exist"):
        TokenFile(Fs(), clock, str(tmp_path / "nowhere.toml"))


def test_tokens_are_long_and_never_the_same() -> None:
    tokens = {new_token() for _ in range(100)}
    assert len(tokens) == 100
    assert all(len(token) == 46 and token.startswith("tb_") for token in tokens)


# -- JSON Web Tokens -------------------------------------------------------------------------------------------------


@pytest.fixture
def signer(tmp_path: Path, clock: SetClock) -> JwtAuthenticator:
    (tmp_path / "key").write_text(SECRET + "\n")
    return JwtAuthenticator(Fs(), clock, str(tmp_path / "key"), algorithms=("HS256",))


def signed(key: str = SECRET, algorithm: str = "HS256", **claims: object) -> str:
    claims = {"sub": "alice", "exp": NOW_MS // 1000 + 60, **claims}
    claims = {name: value for name, value in claims.items() if value is not None}
    return jwt.encode(claims, key, algorithm=algorithm)


def test_a_signed_token_names_its_user(signer: JwtAuthenticator) -> None:
    assert signer.authenticate(signed()) == Identity("alice", NOW_MS + 60_000)
    assert signer.users is None


@pytest.mark.parametrize(
    ("token", "code"),
    [
        (None, "unauthenticated"),
        ("", "unauthenticated"),
        ("a.b.c", "unauthenticated"),
        ("\ud800.a.b", "unauthenticated"),
        ("x" * 5000, "unauthenticated"),
        (signed(key="o" * 64), "unauthenticated"),
        (signed(key="k" * 64, algorithm="HS512"), "unauthenticated"),
        (signed(key="", algorithm="none"), "unauthenticated"),
        (signed(exp=None), "unauthenticated"),
        (signed(exp=NOW_MS // 1000), "unauthenticated"),
        (signed(exp="9999999999"), "unauthenticated"),
        (signed(exp=True), "unauthenticated"),
        (signed(exp=1e400), "unauthenticated"),
        (signed(nbf=NOW_MS // 1000 + 1), "unauthenticated"),
        (signed(sub=None), "unauthenticated"),
        (signed(aud="other"), "unauthenticated"),
        (signed(sub=""), "forbidden"),
        (signed(sub="../bob"), "forbidden"),
        (signed(sub="nul"), "forbidden"),
    ],
)
def test_what_is_not_signed_for_us_is_refused(signer: JwtAuthenticator, token: str | None, code: str) -> None:
    assert refusal(signer, token).code == code


def test_the_audience_is_checked_where_one_is_set(tmp_path: Path, clock: SetClock) -> None:
    (tmp_path / "key").write_text(SECRET)
    authenticator = JwtAuthenticator(Fs(), clock, str(tmp_path / "key"), algorithms=("HS256",), audience="tellback")
    assert authenticator.authenticate(signed(aud="tellback")).user == "alice"
    assert authenticator.authenticate(signed(aud=["other", "tellback"])).user == "alice"
    for token in (signed(), signed(aud="other")):
        assert refusal(authenticator, token).code == "unauthenticated"


def test_an_expired_jwt_ends_a_session_at_its_next_check(signer: JwtAuthenticator, clock: SetClock) -> None:
    identity = signer.authenticate(signed())
    signer.check(identity)
    clock.ms += 60_000
    with pytest.raises(Refused, match="expired"):
        signer.check(identity)


def test_a_changed_key_revokes_what_the_old_one_signed(
    signer: JwtAuthenticator, clock: SetClock, tmp_path: Path
) -> None:
    (tmp_path / "key").write_text("n" * 65)
    clock.ms += 1000
    assert refusal(signer, signed()).code == "unauthenticated"
    assert signer.authenticate(signed(key="n" * 65)).user == "alice"


@pytest.mark.parametrize(
    ("key", "algorithm", "sentence"),
    [
        ("short", "HS256", "at least 32"),
        ("k" * 40, "HS512", "at least 64"),
        ("-----BEGIN PUBLIC KEY-----\n" + "A" * 60 + "\n-----END PUBLIC KEY-----", "HS256", "no key for HS256"),
        ("not a PEM", "RS256", "no key for RS256|needs the package cryptography"),
    ],
)
def test_a_key_that_does_not_fit_stops_the_start(
    tmp_path: Path, clock: SetClock, key: str, algorithm: str, sentence: str
) -> None:
    (tmp_path / "key").write_text(key)
    with pytest.raises(ConfigurationError, match=sentence) as caught:
        JwtAuthenticator(Fs(), clock, str(tmp_path / "key"), algorithms=(algorithm,))
    assert key not in str(caught.value)


# -- chosen by the settings ------------------------------------------------------------------------------------------


def test_the_settings_choose_the_kind(tmp_path: Path, clock: SetClock) -> None:
    tokens = token_file(tmp_path / "u.json")
    (tmp_path / "key").write_text(SECRET)
    kinds = [
        authenticator_for(settings, Fs(), clock).kind
        for settings in (
            Settings(data="/x"),
            Settings(data="/x", auth_file=tokens),
            Settings(data="/x", jwt_key_file=str(tmp_path / "key")),
        )
    ]
    assert kinds == ["none", "token-file", "jwt"]


# -- nothing leaks ---------------------------------------------------------------------------------------------------


@pytest.fixture
def logged() -> Iterator[io.StringIO]:
    with caught_logs() as stream:
        yield stream


def test_no_token_stands_in_an_exception_an_identity_or_a_log_line(
    tmp_path: Path, clock: SetClock, logged: io.StringIO
) -> None:
    path = token_file(tmp_path / "u.json", entry("alice", CANARY))
    (tmp_path / "key").write_text(SECRET)
    tokens = TokenFile(Fs(), clock, path)
    signer = JwtAuthenticator(Fs(), clock, str(tmp_path / "key"), algorithms=("HS256",))
    log = structlog.get_logger()
    causes: list[BaseException | None] = []
    seen = [repr(tokens.authenticate(CANARY)), repr(tokens), repr(signer)]
    log.info("identity", identity=tokens.authenticate(CANARY))
    for authenticator, token in ((tokens, CANARY + "x"), (signer, CANARY), (signer, f"{CANARY}.{CANARY}.{CANARY}")):
        try:
            authenticator.authenticate(token)
        except Refused as refused:
            log.exception("refused")
            seen += [repr(refused), str(refused), "".join(traceback.format_exception(refused))]
            causes.append(refused.__cause__)
    (tmp_path / "u.json").write_text(json.dumps({"tokens": [{"user": "alice", "sha256": CANARY}]}))
    clock.ms += 1000
    seen.append(repr(tokens.authenticate(CANARY)))
    assert causes == [None, None, None]
    everything = "\n".join([*seen, logged.getvalue()])
    assert "auth-file-unusable" in everything
    assert "canary" not in everything
    assert token_digest(CANARY) not in everything
    assert SECRET not in everything
