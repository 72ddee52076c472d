"""Reads everything in a data directory and says whether it is what was written, and leads where it should.

It also looks for what must not be there any more: any trace of a user who was erased.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import msgspec

from . import events
from .directory import read_config
from .errors import Damaged, Misconfigured
from .journal.file import first_offset, record_at, scan, torn_bytes
from .replay import set_aside
from .snapshots import Snapshots
from .state import Spoilt, State

CHUNK = 2**20  # bytes read at once


class Verdict(msgspec.Struct, frozen=True):
    """What was read, and where it leads."""

    first: int  # offset of the oldest event in the journal
    end: int  # offset of the next one
    snapshots: tuple[int, ...]  # offsets of those that were compared with the folded journal
    digest: str  # of the state in the end
    torn_bytes: int  # of an unfinished record at the end, which the next start will cut off
    erasing: int = 0  # users whose records are still being erased; then a snapshot may know more of them


class Trace(msgspec.Struct, frozen=True):
    """Where something stands that names a user, or looks as if it did."""

    path: Path
    place: int  # byte in the file; of a snapshot, in the state that it holds
    sure: bool  # it is the pseudonym, so this is about the user; otherwise only the letters of the id

    def __str__(self) -> str:
        """The place, and the event it is in."""
        place, found = f"{self.path} at byte {self.place}", None
        with suppress(FileNotFoundError):
            found = record_at(self.path, self.place) if self.path.suffix == ".journal" else None
        return f"{place} (event {found[0]}, {type(events.decode(found[1])).__name__})" if found else place


def verify(folder: Path, key: bytes, progress: Callable[[int], object] = lambda size: None) -> Verdict:
    """Check everything, as often as the server, which may be running, moves it under our hands."""
    while True:
        seen = first_offset(folder), Snapshots(folder, key).offsets()
        try:
            return _verify(folder, key, progress)
        except Damaged:
            if seen == (first_offset(folder), Snapshots(folder, key).offsets()):
                raise


def traces(folder: Path, key: bytes, user_id: str, pseudonym: str) -> Iterator[Trace]:
    """Everywhere in the files of a data directory where the bytes of an id or of its pseudonym stand.

    Snapshots are packed, so the states that they hold are looked through too, and what a kill left of one.
    Nothing else in there is packed or encrypted: of the rest this is what `grep` would find. `key` is that of
    the snapshots.
    """
    needles = [(pseudonym.encode(), True), (user_id.encode(), False)]
    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        with suppress(FileNotFoundError):  # deleted meanwhile, by a server that is running
            for needle, sure in needles:
                with path.open("rb") as file:
                    yield from (Trace(path, place, sure) for place in _places(file, needle))
    for path, state in Snapshots(folder, key).unpacked():
        for needle, sure in needles:
            yield from (Trace(path, place, sure) for place in _places(BytesIO(state), needle))


def _places(file: BinaryIO, needle: bytes) -> Iterator[int]:
    """Where these bytes begin in a file."""
    begin, part = 0, b""
    while more := file.read(CHUNK):
        part += more
        found = part.find(needle)
        while found >= 0:
            yield begin + found
            found = part.find(needle, found + 1)
        keep = min(len(part), len(needle) - 1)
        begin += len(part) - keep
        part = part[len(part) - keep :]


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
    good = _good(Snapshots(folder, key))
    first, state, compared = first_offset(folder), State.of(config), []
    erasing, differs = set[str](), ""
    if first > 0:
        begin = min((offset for offset in good if offset >= first), default=None)
        if begin is None:
            raise Damaged(f"the journal in {folder} begins at {first} and no snapshot reaches that far")
        state.load(good[begin])
    state.skip, start = set(skip), state.applied
    for offset, record in scan(folder, start):
        event = events.decode(record)
        if isinstance(event, events.UserErased):
            erasing.add(event.user)
        try:
            state.apply(offset, event)
        except Spoilt as error:
            if error.event_id in skip:
                raise
            return _verify(folder, key, progress, skip | {error.event_id, *set_aside(scan(folder, start))})
        progress(len(record))
        if state.applied in good:
            if state.dump() == good[state.applied]:
                compared.append(state.applied)
            else:
                differs = differs or f"{folder}/{state.applied:020d}.snapshot"
    if differs and not erasing:  # while users are erased, snapshots from before still know them
        raise Damaged(
            f"the snapshot {differs} is not the state that the journal leads to; remove it, and the next "
            "start folds the journal"
        )
    if good and max(good) > state.applied:
        raise Damaged(f"the journal in {folder} ends at {state.applied}, before the snapshot at {max(good)}")
    torn = torn_bytes(folder)
    return Verdict(first, state.applied, tuple(compared), state.digest(), torn, len(erasing))


def _good(snapshots: Snapshots) -> dict[int, bytes]:
    """Offset -> state of each snapshot. Raises `Damaged` if the server would not use one of them."""
    offsets, good = snapshots.offsets(), dict(snapshots.load())
    if bad := [offset for offset in offsets if offset not in good]:
        raise Damaged(
            f"the snapshot {snapshots.folder}/{bad[0]:020d}.snapshot is damaged, or signed with another key; "
            "the server would not use it. Removing it loses nothing while the journal is whole"
        )
    return good
