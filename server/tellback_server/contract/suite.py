"""Suite: what every store promises, as tests; for ours and for plug-ins. Needs pytest.

    class TestMyStore(StoreContract):
        @pytest.fixture
        def url(self, tmp_path):
            return f"mystore:///{tmp_path}/store"

Rules of this module:
- It knows a store by its URL and by the port, and nothing of what is behind it.
- Values are what `Chat.apply` makes of effects: the same that the server's chats hold.
- Rules ST1 to ST10 of STORAGE are named by the tests that show them.
"""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence

import msgspec
import pytest
from msgspec import Raw

from tellback_protocol.effects import (
    AppendEffect,
    DeleteEffect,
    Effect,
    InsertEffect,
    MetadataEffect,
    PatchEffect,
    RenamedEffect,
    StateEffect,
)
from tellback_protocol.ids import Version
from tellback_protocol.stream import StateDocument
from tellback_server.contract.saved import ODD_LINES, ODD_TEXTS, Saved, patch_of, same, written_value
from tellback_server.store.base import ListedOwner, Store, StoreBehind, StoredChat, StoreError, StoreForeign
from tellback_server.store.schemes import open_store

__all__ = ["StoreContract"]

_WRITER = "import sys; from tellback_server.contract.saved import write_until_killed; write_until_killed(*sys.argv[1:])"


class StoreContract:
    """Inherit, and give the fixture `url`: a store of its own for every test, the same one whenever it is opened."""

    outlives_process = True
    """False for a store that is gone with the process that opened it."""

    @pytest.fixture
    def store(self, url: str) -> Iterator[Store]:
        """The store, checked."""
        with contextlib.closing(open_store(url)) as store:
            store.check()
            yield store

    @pytest.fixture
    def again(self, url: str, store: Store) -> Iterator[Callable[[], Store]]:
        """Opens the store anew, as a server does that was started again."""
        with contextlib.ExitStack() as stack:

            def reopen() -> Store:
                store.close()
                other = stack.enter_context(contextlib.closing(open_store(url)))
                other.check()
                return other

            yield reopen

    def test_st1_nothing_is_there_at_first(self, store: Store) -> None:
        assert store.load("default-user", str(uuid.uuid4())) is None
        assert list(store.list("default-user")) == []
        assert list(store.users()) == []
        health = store.check()
        assert health.durability in ("store", "log")
        assert health.backend

    def test_st1_what_was_saved_is_loaded_byte_for_byte(self, store: Store, again: Callable[[], Store]) -> None:
        saved = Saved()
        for template in ODD_LINES:
            saved.append(2, template)
        saved.commit(MetadataEffect(patch_of(b"big", b"9223372036854775807")))
        saved.commit(StateEffect("memory", saved.head, None, data=Raw(b'{"b":1, "a" : 2}')))
        saved.commit(StateEffect("gone", saved.head, None, deleted=True))
        saved.states["broken"] = StateDocument(None, b"no JSON \xff\x00", corrupt=True)
        value = saved.save(store)
        same(store.load("default-user", saved.chat_id), value)
        same(again().load("default-user", saved.chat_id), value)

    def test_st1_an_owner_without_messages_and_an_empty_one(self, store: Store) -> None:
        preset = Saved("preset:OpenAI Settings/Default")
        preset.commit(StateEffect("memory", preset.head, None, data=Raw(b"{}")))
        values = [(preset, preset.save(store)), (empty := Saved(), empty.save(store))]
        for saved, value in values:
            same(store.load("default-user", saved.chat_id), value)

    @pytest.mark.parametrize("seed", range(6))
    def test_st2_any_changes_in_any_batches_make_the_value(
        self, store: Store, again: Callable[[], Store], seed: int
    ) -> None:
        chance = random.Random(seed)
        saved = Saved()
        saved.append(4)
        value = saved.save(store)
        for _ in range(25):
            for _ in range(chance.choice([1, 1, 2, 5])):
                saved.change(chance)
            value = saved.save(store, whole=chance.random() < 0.1)
            same(store.load("default-user", saved.chat_id), value)
        same(again().load("default-user", saved.chat_id), value)

    def test_st2_many_insertions_at_one_place_keep_their_order(self, store: Store) -> None:
        saved = Saved()
        saved.append(2)
        saved.save(store)
        for index in range(60):
            saved.commit(InsertEffect("m1" if index % 2 else None, saved.lines(1)))
            value = saved.save(store)
        same(store.load("default-user", saved.chat_id), value)

    def test_st3_saving_again_changes_nothing(self, store: Store) -> None:
        saved = Saved()
        saved.append(3)
        first = saved.save(store)
        effects: list[Effect] = [AppendEffect(saved.lines(1))]
        saved.commit(*effects)
        value = saved.save(store)
        store.save("default-user", first.head, effects, value)
        store.save("default-user", None, None, value)
        same(store.load("default-user", saved.chat_id), value)

    @pytest.mark.parametrize("whole", [False, True])
    def test_st3_an_older_value_is_left_alone(self, store: Store, whole: bool) -> None:
        saved = Saved()
        saved.append()
        older = saved.save(store)
        saved.append()
        newer = saved.save(store)
        store.save("default-user", None, None if whole else [], older)
        same(store.load("default-user", saved.chat_id), newer)
        restored = msgspec.structs.replace(older, head=Version(2, 1, str(uuid.uuid4())))
        store.save("default-user", None, None, restored)
        same(store.load("default-user", saved.chat_id), restored)

    def test_st4_a_gap_is_refused_and_a_whole_value_closes_it(self, store: Store) -> None:
        saved = Saved()
        saved.append()
        first = saved.save(store)
        saved.append()
        missed, saved.effects = saved.head, []
        saved.append()
        value = saved.value()
        with pytest.raises(StoreBehind) as behind:
            store.save("default-user", missed, saved.effects, value)
        assert (behind.value.found, behind.value.base) == (first.head, missed)
        same(store.load("default-user", saved.chat_id), first)
        store.save("default-user", missed, None, value)
        same(store.load("default-user", saved.chat_id), value)

    def test_st4_effects_for_an_owner_that_is_not_there_are_refused(self, store: Store) -> None:
        saved = Saved()
        saved.append()
        with pytest.raises(StoreBehind) as behind:
            store.save("default-user", Version(1, 0, str(uuid.uuid4())), saved.effects, saved.value())
        assert behind.value.found is None
        assert store.load("default-user", saved.chat_id) is None

    def test_st4_the_same_number_with_another_integrity_is_another_history(self, store: Store) -> None:
        saved = Saved()
        saved.append()
        value = saved.save(store)
        other = msgspec.structs.replace(value, head=Version(1, value.head.seq, str(uuid.uuid4())))
        with pytest.raises(StoreBehind):
            store.save("default-user", other.head, [], msgspec.structs.replace(
                value, head=Version(1, value.head.seq + 1, str(uuid.uuid4()))
            ))
        store.save("default-user", None, None, other)
        same(store.load("default-user", saved.chat_id), other)

    def test_st6_users_names_and_ids_are_taken_as_they_are(self, store: Store, again: Callable[[], Store]) -> None:
        expected: dict[str, dict[str, StoredChat]] = {}
        for text in self.odd_texts():
            for user in ("default-user", text):
                saved = Saved(f"character:{text}/{text}")
                saved.append()
                expected.setdefault(user, {})[saved.chat_id] = saved.save(store, user)
        opened = again()
        assert sorted(opened.users()) == sorted(expected)
        for user, owners in expected.items():
            assert sorted(opened.list(user), key=_chat_id) == sorted(map(_listed, owners.values()), key=_chat_id)
            for chat_id, value in owners.items():
                same(opened.load(user, chat_id), value)

    def odd_texts(self) -> Sequence[str]:
        """Names of users, characters and chats; fewer where the place cannot hold them."""
        return ODD_TEXTS

    def test_st6_message_ids_are_taken_as_they_are(self, store: Store) -> None:
        saved = Saved()
        ids = [text for text in ODD_TEXTS if "\ud800" not in text]
        saved.commit(AppendEffect([Raw(msgspec.json.encode({"id": text, "mes": "x"})) for text in ids]))
        saved.save(store)
        saved.commit(*(PatchEffect(text, patch_of(b"mes", b'"y"')) for text in ids))
        saved.commit(DeleteEffect(ids[1:3]))
        value = saved.save(store)
        same(store.load("default-user", saved.chat_id), value)

    def test_st6_users_are_apart(self, store: Store) -> None:
        mine, theirs = Saved(chat_id=(chat_id := str(uuid.uuid4()))), Saved(chat_id=chat_id)
        mine.append(1)
        theirs.append(2)
        my_value, their_value = mine.save(store, "me"), theirs.save(store, "you")
        store.rename("me", chat_id, "character:Mine/Now")
        store.delete("you", str(uuid.uuid4()), theirs.head)
        same(store.load("me", chat_id), msgspec.structs.replace(my_value, name="character:Mine/Now"))
        same(store.load("you", chat_id), their_value)
        store.delete("me", chat_id, mine.head)
        assert store.load("me", chat_id) is None
        same(store.load("you", chat_id), their_value)
        assert list(store.users()) == ["you"]

    def test_st8_rename_delete_and_list(self, store: Store, again: Callable[[], Store]) -> None:
        saved, other = Saved(), Saved("group:Other")
        for one in (saved, other):
            one.append(2)
            one.save(store)
        store.rename("default-user", saved.chat_id, "character:Bob/Two")
        store.rename("default-user", saved.chat_id, "character:Bob/Two")
        store.rename("default-user", str(uuid.uuid4()), "character:Nobody/None")
        renamed = msgspec.structs.replace(saved.value(), name="character:Bob/Two")
        same(store.load("default-user", saved.chat_id), renamed)
        assert sorted(store.list("default-user"), key=_chat_id) == sorted(
            [_listed(renamed), _listed(other.value())], key=_chat_id
        )
        saved.commit(RenamedEffect("character:Bob/Three"))
        value = saved.save(store)
        same(store.load("default-user", saved.chat_id), value)
        store.delete("default-user", saved.chat_id, Version(1, saved.head.seq - 1, str(uuid.uuid4())))
        same(store.load("default-user", saved.chat_id), value)
        for _ in range(2):
            store.delete("default-user", saved.chat_id, saved.head)
        opened = again()
        assert opened.load("default-user", saved.chat_id) is None
        assert list(opened.list("default-user")) == [_listed(other.value())]
        saved.base = None
        same_again = saved.save(opened)
        same(opened.load("default-user", saved.chat_id), same_again)

    def test_st8_names_go_round(self, store: Store) -> None:
        first, second = Saved("character:Alice/One"), Saved("character:Alice/Two")
        for one in (first, second):
            one.append(1 if one is first else 2)
            one.save(store)
        store.rename("default-user", first.chat_id, "character:Alice/Two")
        store.rename("default-user", second.chat_id, "character:Alice/One")
        same(store.load("default-user", first.chat_id), msgspec.structs.replace(first.value(), name=second.name))
        same(store.load("default-user", second.chat_id), msgspec.structs.replace(second.value(), name=first.name))

    def test_st10_a_store_belongs_to_one_data_folder(self, store: Store, again: Callable[[], Store]) -> None:
        store.claim("first")
        store.claim("first")
        opened = again()
        with pytest.raises(StoreForeign):
            opened.claim("second")
        opened.claim("first")

    def test_st8_closing_twice_is_harmless(self, store: Store) -> None:
        store.close()
        store.close()

    def test_st7_ten_thousand_messages(self, store: Store, again: Callable[[], Store]) -> None:
        saved = Saved()
        saved.append(10_000)
        saved.save(store)
        saved.append(1)
        saved.commit(PatchEffect("m5000", patch_of(b"mes", b'"changed"')))
        saved.commit(InsertEffect("m5000", saved.lines(2)))
        saved.save(store)
        saved.commit(DeleteEffect([f"m{number}" for number in range(100, 1600)]))
        value = saved.save(store)
        same(again().load("default-user", saved.chat_id), value)

    def test_st2_different_owners_at_once(self, store: Store) -> None:
        failures: list[BaseException] = []
        owners = [Saved(f"character:A/{number}") for number in range(8)]

        def write(saved: Saved) -> None:
            try:
                for _ in range(10):
                    saved.append()
                    saved.save(store)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=write, args=(saved,)) for saved in owners]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        for saved in owners:
            same(store.load("default-user", saved.chat_id), saved.value())

    @pytest.mark.parametrize("after", [3, 17])
    def test_st1_a_killed_process_leaves_what_it_was_told_is_saved(
        self, url: str, store: Store, again: Callable[[], Store], after: int
    ) -> None:
        if not self.outlives_process:
            assert store.check().durability == "log"
            return
        chat_id = str(uuid.uuid4())
        told = 0
        with subprocess.Popen(  # noqa: S603
            [sys.executable, "-c", _WRITER, url, chat_id], stdout=subprocess.PIPE
        ) as writer:
            assert writer.stdout is not None
            for line in writer.stdout:
                told = int(line)
                if told == after:
                    writer.kill()
        assert told >= after
        self.check_written(again(), chat_id, told)

    def check_written(self, store: Store, chat_id: str, told: int) -> None:
        """What `write_until_killed` left is one of its values, not older than what it told."""
        found = store.load("default-user", chat_id)
        assert found is not None
        assert found.head.seq >= told
        same(found, written_value(chat_id, found.head.seq))

    def test_a_call_after_close_is_an_error_or_an_answer(self, store: Store) -> None:
        saved = Saved()
        saved.append()
        value = saved.save(store)
        store.close()
        try:
            found = store.load("default-user", saved.chat_id)
        except StoreError:
            return
        same(found, value)


def _listed(value: StoredChat) -> ListedOwner:
    return ListedOwner(value.chat_id, value.name, value.head, value.summary)


def _chat_id(one: ListedOwner) -> str:
    return one.chat_id
