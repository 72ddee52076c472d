"""Our own journal as a log: what a server decided and what became of it. It may be running."""

from __future__ import annotations

from pathlib import Path

from ..directory import read_config
from ..errors import Misconfigured
from ..journal.file import first_offset, scan
from ..replay import settled
from ..state import State
from . import Log


def recognises(path: Path) -> bool:
    """Whether this is a data directory."""
    return (path / "CONFIG").is_file()


def read(path: Path) -> Log:
    """Decisions in the order in which they settled, and those that have not. Raises `Damaged`.

    Needs the journal from its beginning, because that is where the ads are.
    """
    if first_offset(path) > 0:
        raise Misconfigured(
            f"the journal in {path} no longer goes back to its beginning; serve with keep_journal to keep it"
        )
    nobody = {"policy": "uniform", "options": {}, "challengers": ()}  # who reads asks nobody
    state = State.of({**(read_config(path) or {}), **nobody})
    return Log(settled(scan(path), state), state.joiner.open.values)
