"""Exit codes, and how a command ends when it cannot do what was asked: one clear sentence, never a traceback.

    0       done, or stopped as asked
    1       doctor or verify found something wrong
    69      there is no server, or it went away before it answered
    70      the disk failed (poison), or the disk failed at start
    73      another process has the data folder
    78      bad configuration, or a damaged log or folder that a person has to look at
    130     a second signal: ended at once
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NoReturn

import typer

from tellback_server.config import ConfigurationError
from tellback_server.fs import DirectoryLocked, FileMissing, FileTaken, FileUnsafe
from tellback_server.log import LogCorrupt
from tellback_server.logging_setup import escaped
from tellback_server.process import EXIT_INTERRUPTED
from tellback_server.store.base import StoreError, StoreUnavailable
from tellback_server.store.files import LayoutConflict

__all__ = ["CONFIGURATION", "DATA_LOCKED", "DISK_FAILED", "FOUND_WRONG", "UNREACHABLE", "explained", "fail"]

FOUND_WRONG: Final = 1
UNREACHABLE: Final = 69  # EX_UNAVAILABLE
DISK_FAILED: Final = 70  # EX_SOFTWARE of sysexits.h
DATA_LOCKED: Final = 73  # EX_CANTCREAT
CONFIGURATION: Final = 78  # EX_CONFIG

_ADDRESS: Final = frozenset({errno.EADDRINUSE, errno.EADDRNOTAVAIL})
_SENTENCE_CHARACTERS_MAX: Final = 2000


def fail(sentence: str, code: int) -> NoReturn:
    """Says `sentence` on stderr and ends the command."""
    for line in sentence.splitlines():
        typer.echo(f"tellback: {escaped(line, _SENTENCE_CHARACTERS_MAX)}", err=True)
    raise typer.Exit(code)


@contextmanager
def explained() -> Iterator[None]:
    """Turns the errors that a person can do something about into a sentence and an exit code."""
    try:
        yield
    except ConfigurationError as error:
        fail(str(error), CONFIGURATION)
    except DirectoryLocked as error:
        fail(f"{error}. Stop the other server first, or give this one another --data folder.", DATA_LOCKED)
    except LogCorrupt as error:
        advice = "Nothing was changed. Look with `tellback log verify`, and restore the folder from a backup."
        fail(f"the log is damaged: {error}. {advice}", CONFIGURATION)
    except StoreUnavailable as error:
        fail(f"the store cannot be reached: {error}.", UNREACHABLE)
    except StoreError as error:
        fail(f"the store: {error}.", CONFIGURATION)
    except (FileUnsafe, FileMissing, FileTaken, LayoutConflict) as error:
        fail(f"{error}.", CONFIGURATION)
    except BrokenPipeError:
        raise  # `tellback log dump ... | head`: click ends quietly.
    except OSError as error:
        _explain_system(error)
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None


def _explain_system(error: OSError) -> NoReturn:
    text = error.strerror or str(error)
    if error.errno in _ADDRESS:
        fail(f"cannot listen: {text}. Choose another --port (0 picks a free one) or --host.", CONFIGURATION)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        fail(f"{error.filename or 'the system'}: {text}. Give this user the right, or choose another.", CONFIGURATION)
    if error.filename is None and error.errno is not None and error.errno < 0:
        fail(f"cannot find the address to listen on: {text}.", CONFIGURATION)  # socket.gaierror
    fail(f"{error.filename or 'the system'}: {text}.", DISK_FAILED)
