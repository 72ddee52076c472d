"""Our own journal as a log: what a server decided and what became of it. It may be running."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..directory import read_config
from ..errors import Misconfigured
from ..events import Settled
from ..journal.file import first_offset, scan
from ..replay import settled
from ..state import State


def recognises(path: Path) -> bool:
    """Whether this is a data directory."""
    return (path / "CONFIG").is_file()


def read(path: Path) -> Iterator[Settled]:
    """Decisions in the order in which they settled. Raises `Damaged`.

    Needs the journal from its beginning, because that is where the ads are.
    """
    if first_offset(path) > 0:
        raise Misconfigured(
            f"the journal in {path} no longer goes back to its beginning; serve with keep_journal to keep it"
        )
    nobody = {"policy": "uniform", "options": {}, "challengers": ()}  # who reads asks nobody
    return settled(scan(path), State.of({**(read_config(path) or {}), **nobody}))
