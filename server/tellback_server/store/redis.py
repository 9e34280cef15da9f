"""Redis: a store in one Redis or Valkey server, `redis://[[<user>]:<password>@]<host>[:<port>][/<database>]`.

    rediss, valkeys            the same with TLS
    prefix=tellback            before every key
    connections=4              in the pool
    timeout_s=5                for connecting and for one answer
    durability=store|log       log: any settings are taken, and only the log is believed

    <prefix>:meta                      hash: schema, data_id, and a field for every user
    <prefix>:list:<user>               hash: id -> what `list` tells
    <prefix>:owner:<user>:<id>         hash: head, the chat document's version, metadata, counts
    <prefix>:lines:<user>:<id>         hash: message id -> position and line
    <prefix>:order:<user>:<id>         sorted set: message ids by position
    <prefix>:states:<user>:<id>        hash: namespace -> document

Rules of this module:
- A call watches the owner's key, reads, and writes in one MULTI/EXEC: all of it or nothing, in memory and in the
  append-only file, whose torn last transaction Redis drops.
- User and id stand in keys by hexadecimal: nothing in them can end a part of a key.
- Values carry a CRC-32 and owners count what is theirs: an evicted key is StoreDamaged, never an empty chat (ST9).
- Settings are asked on every new connection (ST5), and by `check`. They are not enough: a server whose append-only file
  was switched on while it ran confirms what is in no file until the first rewrite ends, so while any rewrite runs it is
  not trusted, and unavailable.
"""

from __future__ import annotations

import contextlib
import queue
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeVar

import msgspec
import redis
from redis.backoff import ExponentialBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    WatchError,
)
from redis.retry import Retry

from tellback_protocol.effects import Effect
from tellback_protocol.ids import Version
from tellback_server.store.address import StoreAddress
from tellback_server.store.base import (
    Durability,
    ListedOwner,
    StoreBehind,
    StoreDamaged,
    StoredChat,
    StoreError,
    StoreForeign,
    StoreHealth,
    StoreUnavailable,
    StoreUnsafe,
    is_at_least,
)
from tellback_server.store.difference import difference_of
from tellback_server.store.redis_rows import (
    Keys,
    Line,
    Listed,
    Owner,
    Pipeline,
    difference_writes,
    document_of,
    octets,
    read,
    text,
    whole_writes,
    written,
)

__all__ = ["RedisStore", "open_address"]

_T = TypeVar("_T")
SCHEMA: Final = 1
_USER: Final = b"user:"
_ATTEMPTS_MAX: Final = 20  # Of a transaction that others got in the way of; only a second server does.
_NEEDED: Final = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}
_SETTLED: Final = {
    "aof_enabled": "1", "aof_rewrite_in_progress": "0", "aof_rewrite_scheduled": "0", "aof_last_bgrewrite_status": "ok",
    "aof_last_write_status": "ok",
}
_PASSES: Final = (BusyLoadingError, OutOfMemoryError, ReadOnlyError, redis.ConnectionError, redis.TimeoutError)
_PASSING_WORDS: Final = ("MISCONF", "LOADING", "MASTERDOWN", "READONLY", "OOM", "EXECABORT", "NOREPLICAS", "TRYAGAIN")


def open_address(address: StoreAddress) -> RedisStore:
    """See schemes. Raises StoreUnsafe."""
    database = address.path.removeprefix("/") or "0"
    if not database.isascii() or not database.isdigit():
        raise StoreUnsafe(f"{address}: the database is a number, as in redis://localhost/0")
    if not address.host:
        raise StoreUnsafe(f"{address}: wants a host, as in redis://localhost/0")
    prefix = address.take("prefix", "tellback", str, "text")
    connections = int(address.take_number("connections", 4, 1, 100))
    timeout_s = address.take_number("timeout_s", 5, 0.01, 600)
    durability = address.take_durability()
    address.refuse_rest()
    tls: dict[str, Any] = {"connection_class": redis.SSLConnection} if address.scheme in ("rediss", "valkeys") else {}
    pool = redis.BlockingConnectionPool(  # type: ignore[no-untyped-call]
        redis_connect_func=_Asking(str(address), durability),
        host=address.host, port=address.port or 6379, db=int(database), username=address.user or None,
        password=address.password or None, socket_timeout=timeout_s, socket_connect_timeout=timeout_s,
        socket_keepalive=True, max_connections=connections, timeout=timeout_s, client_name="tellback",
        queue_class=_InTurn,
        retry=Retry(ExponentialBackoff(cap=0.5, base=0.05), 3), **tls,
    )
    return RedisStore(str(address), pool, prefix=prefix, durability=durability)


class _InTurn(queue.LifoQueue[Any]):
    """Connections go to who waits longest: the driver's queue gives them to who comes just then, and others starve."""

    def __init__(self, maxsize: int = 0) -> None:
        super().__init__(maxsize)
        self._waiting: deque[object] = deque()

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        turn = object()
        with self.mutex:
            self._waiting.append(turn)
            try:
                if not self.not_empty.wait_for(
                    lambda: self._waiting[0] is turn and self._qsize() > 0, timeout if block else 0
                ):
                    raise queue.Empty
                item = self._get()
                self.not_full.notify()
                return item
            finally:
                self._waiting.remove(turn)
                self.not_empty.notify_all()

    def _put(self, item: Any) -> None:
        super()._put(item)
        # `put` wakes one, who may not be the first.
        self.not_empty.notify_all()


class _Asking:
    """What is done on every new connection: say who we are, and ask for the settings."""

    def __init__(self, shown: str, durability: Durability) -> None:
        self._shown = shown
        self._durability = durability

    def __call__(self, connection: redis.Connection) -> None:
        connection.on_connect()  # type: ignore[no-untyped-call]
        settings: dict[str, str] = {}
        try:
            for name in _NEEDED:
                connection.send_command("CONFIG", "GET", name)  # type: ignore[no-untyped-call]
                with contextlib.suppress(redis.ResponseError):
                    answer = connection.read_response()
                    pairs = answer.items() if isinstance(answer, dict) else zip(answer[::2], answer[1::2], strict=True)
                    settings.update({key.decode(): value.decode() for key, value in pairs})
            connection.send_command("INFO", "persistence")  # type: ignore[no-untyped-call]
            answer = connection.read_response()
            lines = (line.partition(b":") for line in bytes(answer).splitlines())
            _judge(self._shown, self._durability, settings, {name.decode(): value.decode() for name, _, value in lines})
        except (StoreUnsafe, StoreUnavailable):
            connection.disconnect()  # type: ignore[no-untyped-call]
            raise


def _judge(shown: str, durability: Durability, settings: Mapping[str, str], persistence: Mapping[str, object]) -> None:
    """Raises StoreUnsafe when these settings lose what was confirmed, StoreUnavailable when they may not hold yet."""
    for name, needed in _NEEDED.items():
        if durability == "store" and settings.get(name) != needed:
            found = settings.get(name, "not told (CONFIG GET is not allowed)")
            raise StoreUnsafe(
                f"{shown}: {name} is {found} and has to be {needed}, or what it confirmed can be lost;"
                " durability=log says that only the log is believed"
            )
    for name, needed in _SETTLED.items():
        if durability == "store" and str(persistence.get(name)) != needed:
            raise StoreUnavailable(
                f"{shown}: {name} is {persistence.get(name)}: the append-only file may not hold everything yet"
            )


class RedisStore:
    """See base.Store."""

    def __init__(self, shown: str, pool: redis.ConnectionPool, *, prefix: str, durability: Durability) -> None:
        """`shown` stands in messages for the address with its password."""
        self._shown = shown
        self._pool = pool
        self._redis = redis.Redis(connection_pool=pool)
        self._prefix = prefix
        self._durability = durability
        self._is_closed = False

    def check(self) -> StoreHealth:
        def prepare(pipe: Pipeline) -> tuple[str, dict[str, str]]:
            settings: dict[str, str] = {}
            with contextlib.suppress(redis.ResponseError):
                for name in _NEEDED:
                    settings.update(pipe.config_get(name))
            _judge(self._shown, self._durability, settings, pipe.info("persistence"))
            schema = pipe.hget(self._key("meta"), "schema")
            if schema is not None and int(schema) > SCHEMA:
                raise StoreUnsafe(
                    f"{self._shown}: has schema {int(schema)}, made by a newer tellback; this one knows {SCHEMA}"
                )
            server = pipe.info("server")
            pipe.multi()
            pipe.hset(self._key("meta"), "schema", SCHEMA)
            product = "Valkey" if "valkey_version" in server else "Redis"
            return f"{product} {server.get('valkey_version') or server['redis_version']}", settings

        backend, settings = self._done(prepare, self._key("meta"))
        return StoreHealth(backend=backend, durability=self._durability, settings=settings)

    def load(self, user: str, chat_id: str) -> StoredChat | None:
        keys = self._keys(user, chat_id)

        def ask(pipe: Pipeline) -> None:
            pipe.hget(keys.owner, "owner")
            pipe.zrange(keys.order, 0, -1)
            pipe.hgetall(keys.lines)
            pipe.hgetall(keys.states)
            pipe.hexists(keys.listed, keys.field)

        found, order, lines, states, is_listed = self._read_at_once(ask)
        if found is None:
            if order or lines or states or is_listed:
                raise StoreDamaged(f"{chat_id}: the key of the owner is gone, and others of it are there")
            return None
        owner = read(found, Owner, chat_id)
        # One that is missing leaves the count short.
        messages = {text(one): read(lines[one], Line, chat_id).line for one in order if one in lines}
        if (len(messages), len(order), len(lines), len(states)) != (
            owner.messages, owner.messages, owner.messages, owner.states,
        ):
            raise StoreDamaged(
                f"{chat_id}: {len(messages)} messages and {len(states)} states are there, {owner.messages} and"
                f" {owner.states} were saved"
            )
        return StoredChat(
            chat_id=chat_id, name=text(owner.name), head=owner.head, version=owner.version, metadata=owner.metadata,
            messages=messages, summary=owner.summary,
            states={text(namespace): document_of(data, chat_id) for namespace, data in states.items()},
        )

    def save(self, user: str, base: Version | None, effects: Sequence[Effect] | None, value: StoredChat) -> None:
        keys = self._keys(user, value.chat_id)

        def save(pipe: Pipeline) -> None:
            found = pipe.hget(keys.owner, "owner")
            old = None
            if found is not None:
                try:
                    old = read(found, Owner, value.chat_id)
                except StoreDamaged:
                    if effects is not None:
                        raise
            head = None if old is None else old.head
            if is_at_least(head, value.head):
                return
            if effects is not None and head != base:
                raise StoreBehind(head, base)
            difference = None if effects is None or old is None else difference_of(effects, value)
            writes = None
            if difference is not None and old is not None:
                writes = difference_writes(pipe, keys, old, difference, value)
            pipe.multi()
            if writes is None:
                pipe.delete(keys.owner, keys.lines, keys.order, keys.states)
                writes = whole_writes(keys, value)
            for command in writes:
                command(pipe)
            self._put_owner(pipe, keys, Owner(
                octets(value.name), value.head, value.version, value.metadata, value.summary, len(value.messages),
                len(value.states),
            ), is_new=old is None)

        self._done(save, keys.owner)

    def delete(self, user: str, chat_id: str, head: Version) -> None:
        keys = self._keys(user, chat_id)

        def delete(pipe: Pipeline) -> None:
            found = pipe.hget(keys.owner, "owner")
            if found is None:
                return
            stands = read(found, Owner, chat_id).head
            others = pipe.hlen(keys.listed)
            if (stands.epoch, stands.seq) > (head.epoch, head.seq):
                return
            pipe.multi()
            pipe.delete(keys.owner, keys.lines, keys.order, keys.states)
            pipe.hdel(keys.listed, keys.field)
            if others <= 1:
                pipe.hdel(self._key("meta"), keys.user)

        # A list that is added to meanwhile would make `others` wrong.
        self._done(delete, keys.owner, keys.listed)

    def rename(self, user: str, chat_id: str, name: str) -> None:
        keys = self._keys(user, chat_id)

        def rename(pipe: Pipeline) -> None:
            found = pipe.hget(keys.owner, "owner")
            if found is None:
                return
            owner = read(found, Owner, chat_id)
            pipe.multi()
            self._put_owner(pipe, keys, msgspec.structs.replace(owner, name=octets(name)), is_new=False)

        self._done(rename, keys.owner)

    def list(self, user: str) -> Iterator[ListedOwner]:
        def ask(pipe: Pipeline) -> None:
            pipe.hgetall(self._key("list", user))
            pipe.hexists(self._key("meta"), _USER + octets(user))
            pipe.hexists(self._key("meta"), "schema")

        listed, is_known, is_prepared = self._read_at_once(ask)
        if is_known != bool(listed) or not is_prepared:
            raise StoreDamaged(f"{self._shown}: what is known of the user's chats is gone, or part of it")
        owners = []
        for field, data in listed.items():
            one = read(data, Listed, text(field))
            owners.append(ListedOwner(text(field), text(one.name), one.head, one.summary))
        return iter(owners)

    def users(self) -> Sequence[str]:
        (meta,) = self._read_at_once(lambda pipe: pipe.hgetall(self._key("meta")))
        if b"schema" not in meta:
            raise StoreDamaged(f"{self._shown}: what is known of users is gone")
        return [text(field[len(_USER) :]) for field in meta if field.startswith(_USER)]

    def claim(self, data_id: str) -> None:
        def claim(pipe: Pipeline) -> None:
            found = pipe.hget(self._key("meta"), "data_id")
            if found not in (None, data_id.encode()):
                raise StoreForeign(
                    f"{self._shown}: belongs to another data folder; give this one a database or prefix of its own"
                )
            pipe.multi()
            pipe.hset(self._key("meta"), "data_id", data_id)

        self._done(claim, self._key("meta"))

    def close(self) -> None:
        self._is_closed = True
        self._redis.close()
        self._pool.disconnect()

    # -- transactions ------------------------------------------------------------------------------------------------

    def _done(self, what: Callable[[Pipeline], _T], *watched: bytes) -> _T:
        """What `what` gives; it reads, then calls `multi` and writes what is done at once. Raises StoreError."""
        with self._told():
            for _ in range(_ATTEMPTS_MAX):
                with self._redis.pipeline(transaction=True) as pipe, contextlib.suppress(WatchError):
                    pipe.watch(*watched)  # type: ignore[no-untyped-call]
                    given = what(pipe)
                    if pipe.explicit_transaction:
                        pipe.execute()
                    return given
        raise StoreUnavailable(f"{self._shown}: others change the same owner all the time; is there a second server?")

    def _read_at_once(self, ask: Callable[[Pipeline], object]) -> Sequence[Any]:
        """The answers to what `ask` asks, all of one moment. Raises StoreError."""
        with self._told(), self._redis.pipeline(transaction=True) as pipe:
            ask(pipe)
            answers: Sequence[Any] = pipe.execute()
            return answers

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """The driver's errors as ours."""
        if self._is_closed:
            raise StoreError(f"{self._shown}: the store was closed")
        try:
            yield
        except (AuthenticationError, AuthorizationError, NoPermissionError) as error:
            raise StoreUnsafe(f"{self._shown}: {error}") from error
        except _PASSES as error:
            raise StoreUnavailable(f"{self._shown}: {error}") from error
        except redis.RedisError as error:
            sentence = f"{self._shown}: {error}"
            if str(error).lstrip("-").startswith(_PASSING_WORDS):
                raise StoreUnavailable(sentence) from error
            if "WRONGTYPE" in str(error):
                raise StoreDamaged(f"{sentence}; somebody else uses the prefix {self._prefix}") from error
            raise StoreError(sentence) from error

    def _put_owner(self, pipe: Pipeline, keys: Keys, owner: Owner, *, is_new: bool) -> None:
        pipe.hset(keys.owner, "owner", written(owner))
        pipe.hset(keys.listed, keys.field, written(Listed(owner.name, owner.head, owner.summary)))
        if is_new:
            pipe.hset(self._key("meta"), keys.user, 1)

    def _key(self, kind: str, *parts: str) -> bytes:
        return ":".join([self._prefix, kind, *(octets(part).hex() for part in parts)]).encode()

    def _keys(self, user: str, chat_id: str) -> Keys:
        return Keys(
            user=_USER + octets(user), field=octets(chat_id), listed=self._key("list", user),
            owner=self._key("owner", user, chat_id), lines=self._key("lines", user, chat_id),
            order=self._key("order", user, chat_id), states=self._key("states", user, chat_id),
        )
