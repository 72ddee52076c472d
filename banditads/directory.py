"""The data directory: held by one process, made for one configuration, written so that a power cut leaves the
old or the new and nothing between.

Two writers would tear a journal apart, and a state means nothing without the configuration it was learned
under. The lock is the kernel's: it ends with the process, however that ends, and never has to be removed.
Nothing here looks into a journal or a snapshot.
"""

from __future__ import annotations

import fcntl
import json
import os
import zlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any

from .errors import Damaged, DiskFailure, InUse, Misconfigured
from .settings import differences


def aside(path: Path) -> Path:
    """The temporary name of a file that is being written."""
    return path.with_name(path.name + ".tmp")


def write_aside(
    path: Path,
    *parts: bytes,
    more: Iterable[bytes] = (),
    check: Callable[[Path], None] = lambda new: None,
    mode: int = 0o666,
) -> None:
    """Write what is to stand under `path` under its temporary name, and bring it to the disk.

    `more` are parts that need not be in memory together. The file gets the permissions `mode`, less the
    umask. `check` may look at it when it is finished, and raise. Whatever is raised, the temporary file is
    gone.
    """
    new = aside(path)
    try:
        with open(new, "wb", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, mode)) as file:
            for part in chain(parts, more):
                file.write(part)
            file.flush()
            fsync(file.fileno(), new)
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # `check` is to read from the disk
        check(new)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


def give_name(path: Path) -> None:
    """Let what was written aside stand under `path`, for good."""
    try:
        aside(path).replace(path)
    except BaseException:
        aside(path).unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def write_durably(
    path: Path,
    *parts: bytes,
    more: Iterable[bytes] = (),
    check: Callable[[Path], None] = lambda new: None,
    mode: int = 0o666,
) -> None:
    """Write a file under a temporary name, and give it its own once the disk has it: see `write_aside`.

    Whatever is raised, nothing stands under `path` that did not before (after a `DiskFailure` of the folder,
    the new file may).
    """
    write_aside(path, *parts, more=more, check=check, mode=mode)
    give_name(path)


def make_folder(path: Path) -> None:
    """A folder for us only, and those it lies in, unless they are there; durable like everything else."""
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    for folder in made:
        fsync_folder(folder.parent)


def beside(folder: Path, suffix: str, name: str, setting: str) -> Path:
    """Where a secret of a data directory lies: beside it, unless `name` says where.

    Never in it: whoever gets a copy of the data must not find the secret there. Raises `Misconfigured`.
    """
    folder = folder.absolute()
    path = Path(name).absolute() if name else folder.with_name(f"{folder.name}.{suffix}")
    if path.resolve().is_relative_to(folder.resolve()):
        raise Misconfigured(f"setting {setting}: {path} lies inside the data directory {folder}")
    return path


def fsync(number: int, path: Path) -> None:
    """Wait until the disk has this open file. Raises `DiskFailure`: trying again proves nothing."""
    try:
        os.fsync(number)
    except OSError as error:
        raise DiskFailure(f"{path}: fsync failed: {error.strerror}") from error


def fsync_folder(folder: Path) -> None:
    """Make names in a folder durable: creating, renaming and deleting is not, until then."""
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fsync(number, folder)
    finally:
        os.close(number)


class DataDirectory:
    """A directory that is ours until it is closed, or the process ends. Raises `InUse` if it is another's."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            make_folder(path)
            self._lock = (path / "LOCK").open("a+b", buffering=0)
        except OSError as error:
            raise Misconfigured(f"the data directory {path} cannot be used: {error.strerror}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.seek(0)
            holder = self._lock.read(20).decode("ascii", "replace").strip()
            self._lock.close()
            by = f" (process {holder})" if holder else ""
            raise InUse(f"the data directory {path} is in use by another process{by}") from None
        with suppress(OSError):  # a full disk: the lock holds all the same
            self._lock.truncate(0)
            self._lock.write(b"%d\n" % os.getpid())
        for left in path.glob("*.tmp"):
            left.unlink()

    def check(self, identity: Mapping[str, Any], *, relearn: bool = False) -> bool:
        """Whether what was learned here was learned under another configuration, and may be learned again.

        A directory without one takes this configuration. Raises `Misconfigured`, naming what differs, if
        there is another and `relearn` is not set.
        """
        stored = read_config(self.path)
        identity = json.loads(json.dumps(identity))  # as it would be read: a tuple comes back as a list
        if stored is None:
            self.commit(identity)
            return False
        if stored == identity:
            return False
        if not relearn:
            raise Misconfigured(
                f"{self.path} was learned under another configuration: "
                f"{'; '.join(differences(stored, identity))}. Put it back, or start once with --relearn to "
                "fold the whole journal again under the new one"
            )
        return True

    def commit(self, identity: Mapping[str, Any]) -> None:
        """From now on this is the configuration."""
        text = json.dumps(identity, indent=1, sort_keys=True)
        write_durably(self.path / "CONFIG", f"{_checksum(text)}\n{text}\n".encode())

    def close(self) -> None:
        """Let somebody else have it."""
        self._lock.close()

    def __enter__(self) -> DataDirectory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_config(folder: Path) -> dict[str, Any] | None:
    """What the state in this directory depends on; None if it has none yet. Raises `Damaged`."""
    path = folder / "CONFIG"
    try:
        checksum, _, text = path.read_text("utf-8").partition("\n")
        if checksum != _checksum(text.removesuffix("\n")) or not text.endswith("\n"):
            raise ValueError("its checksum does not fit")
        stored = json.loads(text)
        if not isinstance(stored, dict):
            raise ValueError("it is not an object")
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, not ours
        raise Damaged(
            f"{path} is damaged: {error}. If you know the configuration that was in force, remove the file "
            "and start with exactly that"
        ) from None
    return stored


def _checksum(text: str) -> str:
    return f"crc32 {zlib.crc32(text.encode()):08x}"
