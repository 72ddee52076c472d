"""Journals: an ordered list of records that only grows. The scheme of the address is the file name.

`memory:` and `file:/var/lib/banditads`. A journal has one writer; any number of readers may follow it.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from ..errors import Misconfigured


class Journal(Protocol):
    """What every file in this package promises."""

    poisoned: str  # why nothing can be written any more; empty while it can

    @property
    def start(self) -> int:
        """The offset of the oldest record there still is."""

    @property
    def end(self) -> int:
        """The offset that the next record will get."""

    def append(self, payload: bytes) -> int:
        """Write one record; return its offset (start, start + 1, ...). It survives the death of the process.

        Raises `errors.Unavailable` when it could not be written; then nothing was, and a later try may work.
        """

    def sync(self, offset: int) -> None:
        """Return once the record at `offset` is as durable as the journal's policy promises.

        Called outside the engine's lock, from many threads at once; they share one fsync. Raises
        `errors.DiskFailure` when an fsync has failed: from then on no append or sync succeeds.
        """

    def flush(self) -> None:
        """Return once every record is as durable as it can be, whatever the policy promises to `sync`."""

    def settle(self) -> None:
        """Do what was put off while somebody appended. To be called every now and then."""

    def read(self, start: int) -> Iterator[tuple[int, bytes]]:
        """(offset, payload) from `start` on, to the end as it is now; `errors.Damaged` if unreadable."""

    def drop_before(self, offset: int) -> None:
        """Forget records below `offset`, or fewer: whole segments only."""

    def seal(self) -> int:
        """Let every record there is be rewritten from now on; the offset where they end.

        One thread at a time, and none that appends meanwhile; it waits for no disk. Raises like `append`.
        """

    def rewrite(
        self,
        replace: Callable[[int, bytes], bytes | None],
        start: int,
        stop: int,
        pause: Callable[[], object] = lambda: None,
    ) -> int:
        """Put other payloads in place of records from `start` to `stop`, at the same offsets; how many.

        Only of sealed ones; those that are gone are left out. `replace(offset, payload)` is asked about each,
        once, in order, and gives None for what stays as it is. `pause` is called between records; it may take
        its time, or raise to give up. Everybody else appends, syncs and reads on meanwhile, and reads the old
        or the new. When this returns the old ones are gone; given up, or after a crash, some are and some are
        not. Raises `errors.Unavailable` and `errors.DiskFailure`.
        """

    def close(self) -> None:
        """Make everything durable and let go of the files."""


def names() -> list[str]:
    """All kinds of journal there are."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def connect(address: str, **options: Any) -> Journal:
    """The journal at an address, opened for writing.

    >>> connect("memory:").append(b"first")
    0
    """
    scheme, _, rest = address.partition(":")
    if scheme not in names():
        raise Misconfigured(f"there is no journal {scheme!r}; there are: {', '.join(names())}")
    journal: Journal = importlib.import_module(f"{__name__}.{scheme}").Journal(rest, **options)
    return journal
