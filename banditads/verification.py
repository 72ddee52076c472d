"""Reads everything in a data directory and says whether it is what was written, and leads where it should."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from . import events
from .directory import read_config
from .errors import Damaged, Misconfigured
from .journal.file import first_offset, scan, torn_bytes
from .replay import set_aside
from .snapshots import Snapshots
from .state import Spoilt, State


class Verdict(msgspec.Struct, frozen=True):
    """What was read, and where it leads."""

    first: int  # offset of the oldest event in the journal
    end: int  # offset of the next one
    snapshots: tuple[int, ...]  # offsets of those that were compared with the folded journal
    digest: str  # of the state in the end
    torn_bytes: int  # of an unfinished record at the end, which the next start will cut off


def verify(folder: Path, key: bytes, progress: Callable[[int], object] = lambda size: None) -> Verdict:
    """Check everything, as often as the server, which may be running, moves it under our hands."""
    while True:
        seen = first_offset(folder), Snapshots(folder, key).offsets()
        try:
            return _verify(folder, key, progress)
        except Damaged:
            if seen == (first_offset(folder), Snapshots(folder, key).offsets()):
                raise


def _verify(
    folder: Path, key: bytes, progress: Callable[[int], object], skip: frozenset[str] = frozenset()
) -> Verdict:
    """Check every checksum, fold the journal, and compare with each snapshot on the way.

    Decisions in `skip` are known to spoil the model. `progress` is told the bytes of each record. Raises
    `Damaged`, naming the file, at the first difference.
    """
    config = read_config(folder)
    if config is None:
        raise Misconfigured(f"{folder} is not a data directory: it has no CONFIG")
    snapshots = Snapshots(folder, key)
    offsets, good = snapshots.offsets(), dict(snapshots.load())
    if bad := [offset for offset in offsets if offset not in good]:
        raise Damaged(
            f"the snapshot {folder}/{bad[0]:020d}.snapshot is damaged, or signed with another key; the "
            "server would not use it. Removing it loses nothing while the journal is whole"
        )
    first, state, compared = first_offset(folder), State.of(config), []
    if first > 0:
        begin = min((offset for offset in good if offset >= first), default=None)
        if begin is None:
            raise Damaged(f"the journal in {folder} begins at {first} and no snapshot reaches that far")
        state.load(good[begin])
    state.skip, start = set(skip), state.applied
    for offset, record in scan(folder, start):
        try:
            state.apply(offset, events.decode(record))
        except Spoilt as error:
            if error.event_id in skip:
                raise
            return _verify(folder, key, progress, skip | {error.event_id, *set_aside(scan(folder, start))})
        progress(len(record))
        if state.applied in good:
            compared.append(state.applied)
            if state.dump() != good[state.applied]:
                raise Damaged(
                    f"the snapshot {folder}/{state.applied:020d}.snapshot is not the state that the journal "
                    "leads to; remove it, and the next start folds the journal"
                )
    if good and max(good) > state.applied:
        raise Damaged(f"the journal in {folder} ends at {state.applied}, before the snapshot at {max(good)}")
    return Verdict(first, state.applied, tuple(compared), state.digest(), torn_bytes(folder))
