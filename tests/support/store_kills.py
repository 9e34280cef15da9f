"""A database server that is killed while chats are written to it: what was confirmed is there each time."""

from __future__ import annotations

import contextlib
import threading

from tellback_server.contract import Saved, same
from tellback_server.store.base import Store, StoredChat, StoreUnavailable
from tests.support.database_servers import ServerProcess

KILLS = 3
WRITERS = 4


def survives_kills(server: ServerProcess, store: Store) -> None:
    """Some writers, and kill -9 of the server in the middle of them, some times."""
    owners = [Saved(f"character:A/{number}") for number in range(WRITERS)]
    confirmed: dict[str, StoredChat] = {}
    halt = threading.Event()
    failures: list[BaseException] = []

    def write(saved: Saved) -> None:
        try:
            while not halt.is_set():
                saved.append()
                while saved.effects:
                    # A save whose end is not known is made again, as it is.
                    with contextlib.suppress(StoreUnavailable):
                        confirmed[saved.chat_id] = saved.save(store)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(saved,)) for saved in owners]
    for thread in threads:
        thread.start()
    for _ in range(KILLS):
        before = {chat_id: value.head.seq for chat_id, value in confirmed.items()}
        while len(confirmed) < len(owners) or any(
            value.head.seq <= before.get(chat_id, 0) + 5 for chat_id, value in list(confirmed.items())
        ):
            assert not failures
            halt.wait(0.01)
        server.kill()
        known = dict(confirmed)
        server.start()
        for chat_id, value in known.items():
            found = store.load("default-user", chat_id)
            assert found is not None
            assert found.head.seq >= value.head.seq
            assert len(found.messages) == found.head.seq
    halt.set()
    for thread in threads:
        thread.join()
    assert failures == []
    for saved in owners:
        same(store.load("default-user", saved.chat_id), saved.value())
