"""Failpoint: named places where a test makes the process die, fail, stall or tear a write.

Rules this module keeps:

- Without `TELLBACK_FAILPOINTS` in the environment at import, `failpoint` is a function that does nothing.
- The variable holds entries separated by commas: `name=action` or `name=action@N`, which strikes at the Nth hit only.
- Actions:

      kill           SIGKILL to this process: nothing runs any more, as at kill -9
      error:EIO      OSError with that errno is raised
      delay:50       the calling thread sleeps 50 ms
      torn:17        the write that follows puts down its first 17 bytes, then the process is killed

- A name is `<module>.<moment>` and never changes its meaning; STORAGE.md lists the names of the log.
- A setting that cannot be read stops the process at import: a crash test that silently tests nothing is worse than
  none.
"""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from typing import Final

__all__ = ["Failpoints", "failpoint", "kill_this_process"]

_VARIABLE: Final = "TELLBACK_FAILPOINTS"


def kill_this_process() -> None:
    """Ends the process as kill -9 does."""
    os.kill(os.getpid(), signal.SIGKILL)


class Failpoints:
    """The parsed setting. Counts hits per name; usable from any thread."""

    def __init__(self, setting: str) -> None:
        """Parses `setting`. Raises ValueError, naming the entry that cannot be read."""
        self._actions: dict[str, tuple[str, str, int]] = {}
        self._hits: dict[str, int] = {}
        self._lock = threading.Lock()
        for entry in filter(None, (part.strip() for part in setting.split(","))):
            name, equals, rest = entry.partition("=")
            action, _, nth = rest.partition("@")
            verb, _, argument = action.partition(":")
            known = verb == "kill" or (verb == "error" and hasattr(errno, argument))
            known = known or (verb in ("delay", "torn") and argument.isdigit())
            if not (name and equals and known and (not nth or nth.isdigit())):
                raise ValueError(f"{_VARIABLE}: cannot read {entry!r}")
            self._actions[name] = (verb, argument, int(nth or 0))

    def hit(self, name: str) -> int | None:
        """Carries out what is set for `name`. Returns the byte count of a `torn` action, else None."""
        found = self._actions.get(name)
        if found is None:
            return None
        verb, argument, nth = found
        with self._lock:
            count = self._hits[name] = self._hits.get(name, 0) + 1
        if nth and count != nth:
            return None
        match verb:
            case "kill":
                kill_this_process()
            case "error":
                number = getattr(errno, argument)
                raise OSError(number, f"failpoint {name}: {os.strerror(number)}")
            case "delay":
                time.sleep(int(argument) / 1000)
            case "torn":
                return int(argument)
        return None


def _no_failpoint(name: str) -> int | None:
    return None


failpoint = Failpoints(os.environ[_VARIABLE]).hit if os.environ.get(_VARIABLE) else _no_failpoint
