"""Authentication: a token in, an identity out. Three kinds, chosen by the settings.

    NoAuthenticator         nobody is asked; everyone is `default-user` (the gateway is bound to loopback then)
    TokenFile               random tokens; a TOML or JSON file holds their SHA-256
    JwtAuthenticator        JSON Web Tokens signed by somebody we trust

Rules this module keeps:

- A token is compared, never kept: neither an identity, nor an exception, nor a log line holds one. Exceptions of
  libraries are cut off with `from None`, because their messages may quote what they were given.
- What is wrong with a token is told in words that help its owner and nobody else: unknown and revoked sound the same.
- A user's name is a folder's name; one that could not be made as such is refused, whoever signed it.
- Files are read again when they change, so revoking needs no restart. A file that became unreadable leaves the last
  good one in force and is logged: an editor's half-written file must not lock everybody out.
- A plain SHA-256 is enough for a token of 256 random bits: there is no dictionary to try. Passwords would need more.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
import json
import math
import secrets
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Generic, Literal, Protocol, TypeVar

import jwt
import msgspec
import structlog

from tellback_protocol.errors import Refused
from tellback_protocol.ids import new_name_problem
from tellback_server.clock import Clock
from tellback_server.config import HMAC_ALGORITHMS, ConfigurationError, Problem, Settings
from tellback_server.fs import FileStat, Fs, FsError

__all__ = [
    "DEFAULT_USER",
    "Authenticator",
    "Identity",
    "JwtAuthenticator",
    "NoAuthenticator",
    "TokenEntry",
    "TokenFile",
    "authenticator_for",
    "new_token",
    "parse_token_file",
    "token_digest",
]

log = structlog.get_logger()

DEFAULT_USER: Final = "default-user"
TOKEN_PREFIX: Final = "tb_"  # noqa: S105 -- It marks a token, so that scanners for leaked secrets can find one.
TOKEN_RANDOM_BYTES: Final = 32
TOKEN_CHARACTERS_MAX: Final = 4096
"""More is refused unread; hello has at most 8 KiB anyway."""

RELOAD_INTERVAL_S: Final = 1.0
"""How long a revoked token may go on working at most, and how often a file is looked at."""

HMAC_KEY_BYTES_MIN: Final = {"HS256": 32, "HS384": 48, "HS512": 64}  # RFC 7518 section 3.2.


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a token says its bearer is. `expires_ms` is None when it never ends."""

    user: str
    expires_ms: int | None = None
    credential: str = field(default="", repr=False)
    """What the authenticator knows the token by; empty when it keeps nothing. Not for logs."""


class Authenticator(Protocol):
    """What the rest of the server knows of authentication. Synchronous and quick: at most one small file is read."""

    @property
    def kind(self) -> Literal["none", "token-file", "jwt"]:
        """For the front door, and the log."""

    @property
    def users(self) -> frozenset[str] | None:
        """The users there are now; None when only the signer of tokens knows."""

    def authenticate(self, token: str | None) -> Identity:
        """Who the bearer of `token` is. Raises Refused (`unauthenticated`, `forbidden`)."""

    def check(self, identity: Identity) -> None:
        """Whether an identity given out before still holds; for long connections. Raises Refused."""


class NoAuthenticator:
    """Whoever reaches a loopback port is the user. A token is not looked at."""

    kind: Literal["none"] = "none"
    users: frozenset[str] | None = frozenset({DEFAULT_USER})

    def authenticate(self, token: str | None) -> Identity:
        return Identity(DEFAULT_USER)

    def check(self, identity: Identity) -> None:
        return


def authenticator_for(settings: Settings, fs: Fs, clock: Clock) -> Authenticator:
    """The authenticator that the settings ask for. Reads its file once. Raises ConfigurationError."""
    if settings.auth_file is not None:
        return TokenFile(fs, clock, settings.auth_file)
    if settings.jwt_key_file is not None:
        return JwtAuthenticator(
            fs, clock, settings.jwt_key_file, algorithms=settings.jwt_algorithms, audience=settings.jwt_audience
        )
    return NoAuthenticator()


# -- token file ------------------------------------------------------------------------------------------------------


class TokenEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One `[[tokens]]` of a token file."""

    user: str
    sha256: str
    """Of the token, 64 hexadecimal digits."""
    expires: str | None = None
    """RFC 3339 in UTC; None: never."""
    label: str = ""
    """For people: which device it is on."""
    created: str | None = None


class _TokenFileContent(msgspec.Struct, forbid_unknown_fields=True):
    tokens: list[TokenEntry] = []


class _Token(msgspec.Struct, frozen=True):
    user: str
    digest: str
    expires_ms: int | None


def new_token() -> str:
    """A fresh token of 256 random bits.

    From the system itself and not from Clock: a secret must not come from a generator that a test can repeat.
    """
    return TOKEN_PREFIX + secrets.token_urlsafe(TOKEN_RANDOM_BYTES)


def token_digest(token: str) -> str:
    """What a token file holds of a token."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def parse_token_file(path: str, data: bytes) -> list[TokenEntry]:
    """The entries of a token file; JSON when the name ends in .json, else TOML. Raises ConfigurationError."""
    try:
        text = data.decode()
        value = json.loads(text) if path.endswith(".json") else tomllib.loads(text)
        # TOML knows dates; here they are texts, as in JSON.
        content = msgspec.convert(json.loads(json.dumps(value, default=_iso)), _TokenFileContent)
    except (ValueError, msgspec.ValidationError) as error:
        raise ConfigurationError(Problem(path, f"this is no token file: {error}.")) from None
    for number, entry in enumerate(content.tokens, 1):
        _token(path, number, entry)
    return content.tokens


def _iso(value: Any) -> str:
    return str(value.isoformat())


def _token(path: str, number: int, entry: TokenEntry) -> _Token:
    where = f"{path}, token {number}"
    problem = new_name_problem(entry.user)
    if problem:
        raise ConfigurationError(Problem(where, f"the user {entry.user[:64]!r} cannot be a folder: {problem}."))
    digest = entry.sha256.lower()
    if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
        remedy = "`tellback token new` writes one; the token itself does not belong into the file."
        raise ConfigurationError(Problem(where, "sha256 has 64 hexadecimal digits.", remedy))
    return _Token(entry.user, digest, _expires_ms(where, entry.expires))


_Moment = Annotated[datetime.datetime, msgspec.Meta(tz=True)]


def _expires_ms(where: str, expires: str | None) -> int | None:
    if expires is None:
        return None
    try:
        # Decoded by msgspec, which demands RFC 3339; a moment without an offset would depend on the machine.
        moment = msgspec.convert(expires, _Moment)
    except msgspec.ValidationError:
        raise ConfigurationError(
            Problem(where, f"expires is {expires[:64]!r}.", "Write it like 2027-01-31T12:00:00Z.")
        ) from None
    return int(moment.timestamp() * 1000)


class TokenFile:
    """Users and their tokens from a file."""

    kind: Literal["token-file"] = "token-file"

    def __init__(self, fs: Fs, clock: Clock, path: str) -> None:
        """Raises ConfigurationError when the file cannot be read or is none."""
        self._clock = clock
        self._file: _WatchedFile[list[_Token]] = _WatchedFile(fs, clock, path, self._parsed)

    @property
    def users(self) -> frozenset[str] | None:
        """The users with a token, expired or not."""
        return frozenset(entry.user for entry in self._file.value())

    @staticmethod
    def _parsed(path: str, data: bytes) -> list[_Token]:
        return [_token(path, number, entry) for number, entry in enumerate(parse_token_file(path, data), 1)]

    def authenticate(self, token: str | None) -> Identity:
        if token is None:
            raise Refused("unauthenticated", "This server needs a token in hello.", pointer="/token")
        if len(token) > TOKEN_CHARACTERS_MAX:
            raise Refused("unauthenticated", "The token is too long.", pointer="/token")
        return self._identity(token_digest(token))

    def check(self, identity: Identity) -> None:
        if self._identity(identity.credential).user != identity.user:
            raise Refused("unauthenticated", "The token now belongs to another user.", pointer="/token")

    def _identity(self, digest: str) -> Identity:
        found: _Token | None = None
        # All of them, in constant time each, so that the time tells nothing about the file.
        for entry in self._file.value():
            if hmac.compare_digest(entry.digest, digest):
                found = entry
        if found is None:
            raise Refused("unauthenticated", "The token is not known here.", pointer="/token")
        if found.expires_ms is not None and found.expires_ms <= self._clock.now_ms():
            raise Refused("unauthenticated", "The token has expired.", pointer="/token")
        return Identity(found.user, found.expires_ms, found.digest)


# -- JSON Web Tokens -------------------------------------------------------------------------------------------------


class JwtAuthenticator:
    """JSON Web Tokens: `sub` is the user, `exp` is required, algorithms are pinned (RFC 8725)."""

    kind: Literal["jwt"] = "jwt"
    users: frozenset[str] | None = None

    def __init__(
        self, fs: Fs, clock: Clock, key_path: str, *, algorithms: tuple[str, ...], audience: str | None = None
    ) -> None:
        """Raises ConfigurationError when the key cannot be read or does not fit the algorithms."""
        self._clock = clock
        self._algorithms = list(algorithms)
        self._audience = audience
        self._key: _WatchedFile[bytes] = _WatchedFile(fs, clock, key_path, self._parsed_key)

    def _parsed_key(self, path: str, data: bytes) -> bytes:
        key = data.strip()  # Editors and `openssl rand -base64 48 > key` leave a line end that is no part of a secret.
        for name in self._algorithms:
            if name not in HMAC_ALGORITHMS and name not in jwt.algorithms.get_default_algorithms():
                raise ConfigurationError(
                    Problem("jwt_algorithms", f"{name} needs the package cryptography.", "pip install cryptography")
                )
            least_bytes = HMAC_KEY_BYTES_MIN.get(name, 0)
            if len(key) < least_bytes:
                raise ConfigurationError(
                    Problem(path, f"the key has {len(key)} bytes; {name} needs at least {least_bytes}.",
                            "Make one with `openssl rand -base64 48`.")
                )
            try:
                jwt.algorithms.get_default_algorithms()[name].prepare_key(key)
            except (jwt.InvalidKeyError, ValueError, TypeError):
                raise ConfigurationError(Problem(path, f"this is no key for {name}.")) from None
        return key

    def authenticate(self, token: str | None) -> Identity:
        if token is None:
            raise Refused("unauthenticated", "This server needs a token in hello.", pointer="/token")
        if len(token) > TOKEN_CHARACTERS_MAX:
            raise Refused("unauthenticated", "The token is too long.", pointer="/token")
        claims = self._claims(token)
        expires_ms = _claimed_ms(claims, "exp")
        now_ms = self._clock.now_ms()
        if expires_ms is None or expires_ms <= now_ms:
            raise Refused("unauthenticated", "The token has expired.", pointer="/token")
        not_before_ms = _claimed_ms(claims, "nbf")
        if not_before_ms is not None and not_before_ms > now_ms:
            raise Refused("unauthenticated", "The token is not valid yet.", pointer="/token")
        user = claims.get("sub")
        if not isinstance(user, str) or new_name_problem(user):
            raise Refused("forbidden", "The token names a user that cannot have a folder here.", pointer="/token")
        return Identity(user, expires_ms)

    def _claims(self, token: str) -> dict[str, Any]:
        try:
            # Times are compared by us, with the clock that the rest of the server uses.
            claims: dict[str, Any] = jwt.decode(
                token,
                self._key.value(),
                algorithms=self._algorithms,
                audience=self._audience,
                options={
                    "require": ["exp", "sub"], "verify_exp": False, "verify_nbf": False, "verify_iat": False,
                },
            )
        except (jwt.PyJWTError, ValueError):
            raise Refused("unauthenticated", "The token is not valid here.", pointer="/token") from None
        return claims

    def check(self, identity: Identity) -> None:
        if identity.expires_ms is not None and identity.expires_ms <= self._clock.now_ms():
            raise Refused("unauthenticated", "The token has expired.", pointer="/token")


def _claimed_ms(claims: dict[str, Any], name: str) -> int | None:
    """A NumericDate (RFC 7519 section 2) in milliseconds, or None when there is none. Raises Refused."""
    value = claims.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise Refused("unauthenticated", "The token is not valid here.", pointer="/token")
    return int(value * 1000)


# -- files that change -----------------------------------------------------------------------------------------------

_Value = TypeVar("_Value")


class _WatchedFile(Generic[_Value]):
    """What a small file means, read again when its size, time or inode changes; looked at once a second at most."""

    def __init__(self, fs: Fs, clock: Clock, path: str, parse: Callable[[str, bytes], _Value]) -> None:
        """Raises ConfigurationError when the file is not good at the start."""
        self._fs = fs
        self._clock = clock
        self._path = path
        self._parse = parse
        self._looked_s = clock.monotonic_s()
        try:
            self._seen: FileStat | None = fs.stat(path)
            self._value = parse(path, fs.read(path))
        except FsError as error:
            raise ConfigurationError(Problem(path, f"the file {error.reason}.")) from None
        except OSError as error:
            raise ConfigurationError(Problem(path, f"the file cannot be read: {error.strerror}.")) from None

    def value(self) -> _Value:
        """The last good content."""
        now_s = self._clock.monotonic_s()
        if now_s - self._looked_s >= RELOAD_INTERVAL_S:
            self._looked_s = now_s
            self._look()
        return self._value

    def _look(self) -> None:
        try:
            seen = self._fs.stat(self._path)
            if _same(seen, self._seen):
                return
            self._seen = seen
            self._value = self._parse(self._path, self._fs.read(self._path))
        except (OSError, ConfigurationError) as error:
            log.error("auth-file-unusable", path=self._path, problem=str(error), in_force="the last good content")
            return
        log.info("auth-file-read-again", path=self._path)


def _same(one: FileStat | None, other: FileStat | None) -> bool:
    if one is None or other is None:
        return one is other
    return (one.size_bytes, one.mtime_ns, one.inode) == (other.size_bytes, other.mtime_ns, other.inode)
