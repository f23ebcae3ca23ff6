"""One run to a folder: a lock file that says who is at work in it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from editar.errors import ConfigError
from editar.runtime.files import parse_json

NAME = "running.lock"


@contextmanager
def sole_run(folder: Path) -> Iterator[None]:
    """Hold `folder` (made if it is missing) inside the context. Raises ConfigError if another process has it.

    The file system's own lock ends with the process that holds it, so what a killed run of this host leaves is
    stale. Of another host nothing is known, unless it belonged to the same torchrun or Slurm job.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = _take(folder / NAME)
    try:
        yield
    finally:
        (folder / NAME).unlink(missing_ok=True)
        file.close()


def _take(path: Path) -> IO[str]:
    """The lock file, open, locked and with this process's name in it."""
    mine = {"host": platform.node(), "process": os.getpid(), "job": os.environ.get("TORCHELASTIC_RUN_ID", "none")}
    while True:
        file = _open(path)
        busy = False
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:  # held, or a file system without locks, where only the text tells
            busy = error.errno in (errno.EACCES, errno.EAGAIN) or _alive(_owner(file).get("process"))
        owner = _owner(file)
        if owner.get("host", mine["host"]) != mine["host"]:
            busy |= mine["job"] == "none" or owner.get("job") != mine["job"]
        if busy:
            file.close()
            raise ConfigError(
                f"{path.parent}: process {owner.get('process', '?')} on {owner.get('host', 'this host')} is at work "
                f"in this folder; wait for it, or choose another output_dir. If it is gone, remove {path}"
            )
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            break
        file.close()  # its holder has just removed it
    try:
        file.truncate(0)
        json.dump(mine, file)
        file.flush()
    except OSError as error:  # a full disk
        path.unlink(missing_ok=True)
        raise ConfigError(f"{path}: cannot be written ({error.strerror}); make room there") from None
    return file


def _open(path: Path) -> IO[str]:
    """For reading and writing, made where it is missing. Raises ConfigError for a link or another special file, through
    which something else would be overwritten."""
    try:
        number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        if stat.S_ISREG(os.fstat(number).st_mode):
            return os.fdopen(number, "a+")
        os.close(number)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise
    raise ConfigError(f"{path}: not a plain file; remove it")


def _owner(file: IO[str]) -> dict[str, Any]:
    """What the file says; {} where it is empty or was cut."""
    file.seek(0)
    try:
        found = parse_json(file.read())
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _alive(process: Any) -> bool:
    return isinstance(process, int) and process != os.getpid() and Path(f"/proc/{process}").exists()
