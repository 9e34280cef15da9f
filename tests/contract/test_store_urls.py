"""URLs of stores: what they name, what is refused, and plug-ins."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint, EntryPoints
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tellback_server.store import schemes
from tellback_server.store.address import StoreAddress
from tellback_server.store.base import StoreUnsafe
from tellback_server.store.memory import MemoryStore
from tellback_server.store.schemes import open_store


@given(st.text(), st.sampled_from(["", "sqlite:", "postgresql://", "redis://u:", "files:///", "memory:"]))
def test_st5_any_text_is_a_store_or_a_sentence(text: str, beginning: str) -> None:
    try:
        open_store(beginning + text).close()
    except StoreUnsafe as error:
        assert str(error)


@given(
    password=st.text(st.characters(exclude_categories=("Cs",)), min_size=6).filter(lambda text: "*" not in text),
    scheme=st.sampled_from(["postgresql", "redis", "rediss", "valkey"]),
)
def test_st5_no_password_is_told(password: str, scheme: str) -> None:
    address = StoreAddress(f"{scheme}://somebody:{quote(password, safe='')}@db.local:1/chats")
    assert address.password == password
    assert str(address) == repr(address) == f"{scheme}://somebody:***@db.local:1/chats"


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("", "no scheme"), ("/srv/chats.db", "no scheme"), ("mongodb://x/y", "no store is called 'mongodb'"),
        ("memory:?durability=store", "keeps nothing when the process ends"), ("memory://host", "memory:<name>"),
        ("memory:a?x", "cannot be read"), ("memory:?durability=disk", "store or log"),
    ],
)
def test_st5_what_is_no_store_says_why(url: str, sentence: str) -> None:
    with pytest.raises(StoreUnsafe, match=sentence):
        open_store(url)


def plug_in(address: StoreAddress) -> MemoryStore:
    address.refuse_rest()
    return MemoryStore()


def _installed(monkeypatch: pytest.MonkeyPatch, *values: str, name: str = "plugged") -> None:
    points = EntryPoints(EntryPoint(name, value, schemes.ENTRY_POINTS) for value in values)
    monkeypatch.setattr(schemes, "entry_points", lambda group: points.select(group=group))


def test_a_plug_in_is_found_by_its_scheme(monkeypatch: pytest.MonkeyPatch) -> None:
    _installed(monkeypatch, f"{MemoryStore.__module__}:MemoryStore", name="other")
    with pytest.raises(StoreUnsafe, match="there are files, memory, other"):
        open_store("plugged://x")
    schemes_seen: list[str] = []

    class Point(EntryPoint):
        def load(self) -> object:
            schemes_seen.append(self.name)
            return plug_in

    points = EntryPoints([Point("plugged", "my_package:open_address", schemes.ENTRY_POINTS)])
    monkeypatch.setattr(schemes, "entry_points", lambda group: points.select(group=group))
    assert isinstance(open_store("plugged://host/x"), MemoryStore)
    assert schemes_seen == ["plugged"]
    with pytest.raises(StoreUnsafe, match="no option 'y'"):
        open_store("plugged://host/x?y=1")


@pytest.mark.parametrize(
    ("values", "sentence"),
    [(["no_such_package:open"], "cannot be loaded"), (["os:no_such_name"], "cannot be loaded"),
     (["a:b", "c:d"], "claimed by several plug-ins: a:b, c:d")],
)
def test_a_plug_in_that_cannot_be_used_is_told(
    monkeypatch: pytest.MonkeyPatch, values: list[str], sentence: str
) -> None:
    _installed(monkeypatch, *values)
    with pytest.raises(StoreUnsafe, match=sentence):
        open_store("plugged://x")


def test_a_plug_in_does_not_take_a_scheme_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    _installed(monkeypatch, "no_such_package:open", name="memory")
    assert isinstance(open_store("memory:"), MemoryStore)


def test_a_missing_driver_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "tellback_server.store.redis", raising=False)
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(StoreUnsafe, match=r"pip install 'tellback\[server,redis\]'"):
        open_store("redis://localhost/0")
