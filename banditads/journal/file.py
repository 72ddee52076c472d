"""A journal in a folder of files: survives kill -9 when `append` returns, a power cut when `sync` does.

A segment is a header (magic, version, first offset, first offset of the segment before, salt, crc) and
records (length, crc, offset, payload). The crc covers the segment's salt, the length, the offset and the
payload, so old bytes on the disk are never taken for records, and a lost or repeated record is seen. A crash
can tear the last record: opening cuts it off and goes on. Anything else that is not as it was written is
`Damaged`, with the file and the byte; nothing is repaired by guessing. A failed fsync is final: the system
may have dropped the pages, so trying again proves nothing.

Opening reads the last segment, and of the others the headers: a restart does not take longer for a longer
history. Their records are checked whenever they are read.

Rewriting replaces whole segments, each by a new file with a salt of its own, under the same name: whoever has
the old one open reads it to its end, and byte places that are remembered of it do not count for the new one.

>>> from tempfile import TemporaryDirectory
>>> with TemporaryDirectory() as folder:
...     journal = Journal(folder)
...     journal.sync(journal.append(b"first"))
...     list(journal.read(0))
[(0, b'first')]
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from struct import Struct
from typing import BinaryIO, NamedTuple, TypeAlias

import numpy as np

from ..directory import fsync, fsync_folder, write_durably
from ..errors import Damaged, DiskFailure, Misconfigured, TooLarge, Unavailable

log = logging.getLogger(__name__)

EXAMPLE = "file:{tmp}"
HEADER = Struct("<8sIQQ16sI")  # magic, version, first offset, that of the segment before, salt, crc of these
HEAD = Struct("<IIQ")  # length of the payload, crc, offset
COVERED = Struct("<IQ")  # length, offset: what the crc covers of a record's head
MAGIC, VERSION = b"BAJRNL\r\n", 1
MAX_RECORD = 64 * 2**20  # bytes of payload
MARK_EVERY = 1024  # records between two whose places are remembered: reading one record takes a millisecond
FLUSH_SECONDS = 1.0  # between two fdatasyncs with `everysec`
BUFFER = 2**18  # bytes read at once


# Offset of every MARK_EVERYth record -> (crc of its segment's salt, byte in it). The salt tells whether the
# file is still the same.
Marks: TypeAlias = dict[int, tuple[int, int]]


class Segment(NamedTuple):
    """A file of records; the next segment begins where it ends."""

    first: int  # offset of its first record
    path: Path


class Early(NamedTuple):
    """A segment that is written to, but has no name: what stands before it may not be on the disk yet."""

    old: int  # the file before it
    new: int
    path: Path  # what it will be called


class Journal:
    """The one writer of a folder.

    Parameters
    ----------
    rest
        The folder; it must be there, and be ours alone (see `directory.py`).
    fsync
        `always`: `sync` returns after fdatasync, one for all who wait. `everysec`: it returns at once, and
        fdatasync runs each second.
    segment_bytes, segment_seconds
        A new segment begins when the present one has reached either.

    Attributes
    ----------
    end
        The offset that the next record will get.
    cut_bytes
        How much of a torn record opening has cut off.
    """

    def __init__(
        self,
        rest: str,
        *,
        fsync: str = "always",
        segment_bytes: int = 64 * 2**20,
        segment_seconds: float = 3600.0,
    ) -> None:
        if fsync not in ("always", "everysec"):
            raise Misconfigured(f"journal option fsync must be always or everysec, not {fsync!r}")
        self.folder = Path(rest)
        self.fsync, self.segment_bytes, self.segment_seconds = fsync, segment_bytes, segment_seconds
        self.poisoned = ""
        self.cut_bytes = 0
        self.end = 0
        self._file = -1
        self._marks: Marks = {}
        self._files = threading.Lock()  # held while a segment that is not written to is deleted or replaced
        self._durable = 0  # every record below this is on the disk
        self._early: Early | None = None
        self._leading = False  # somebody is syncing, or changing which file is written
        self._waiting: list[tuple[int, threading.Lock]] = []  # (offset, what its thread waits for)
        self._guard = threading.Lock()  # of the four above
        try:
            self._segments = _segments(self.folder)
            if self._segments:
                self._open_last()
            else:
                self._begin_segment()
            self._adopt()
        except OSError as error:
            raise DiskFailure(f"the journal in {self.folder} cannot be opened: {error.strerror}") from error
        self._durable = self.end
        self._stop = threading.Event()
        self._ticker = threading.Thread(target=self._every_second, name="fsync", daemon=True)
        if fsync == "everysec":
            self._ticker.start()

    @property
    def start(self) -> int:
        """The offset of the oldest record there still is."""
        return self._segments[0].first

    def append(self, payload: bytes) -> int:
        """Write one record; return its offset. One thread at a time."""
        self._check()
        if len(payload) > MAX_RECORD:
            raise TooLarge(f"a record may have at most {MAX_RECORD} bytes")
        old = time.monotonic() - self._begun >= self.segment_seconds
        if self._size > HEADER.size and (old or self._size >= self.segment_bytes):
            self._rotate()
        offset = self.end
        record = _record(self._salt_crc, offset, payload)
        try:
            _write_all(self._file, record)
        except BaseException as error:  # whatever it was, half a record must not stay
            self._take_back()
            if isinstance(error, OSError):
                raise Unavailable(f"the journal cannot be written: {error.strerror}") from error
            raise
        if offset % MARK_EVERY == 0:
            self._marks[offset] = self._salt_crc, self._size
        self._size += len(record)
        self.end = offset + 1
        return offset

    def sync(self, offset: int) -> None:
        """Return once the record at `offset` is as durable as `fsync` promises. Any thread, any time."""
        if self.fsync == "always":
            self._sync(offset)
        else:
            self._check()

    def flush(self) -> None:
        """Return once every record is on the disk, whatever `fsync` promises to `sync`."""
        self._sync(self.end if self._early else self.end - 1)  # it needs its name, though it may be empty

    def settle(self) -> None:
        """Give the newest segment its name, and make durable what stands before it, if nobody has yet."""
        if self._early:
            self.flush()

    def read(self, start: int) -> Iterator[tuple[int, bytes]]:
        """(offset, payload) from `start` on, to the end as it is now."""
        end = self.end
        if start >= end:
            return
        offset = start - 1
        for offset, payload in _read(self.folder, list(self._segments), start, self._marks):
            yield offset, payload
            if offset + 1 == end:
                return
        raise Damaged(f"{self.folder}: records from {offset + 1} to {end - 1} are no longer there")

    def drop_before(self, offset: int) -> None:
        """Delete segments that hold nothing from `offset` on; never the one that is written to."""
        if self._early:  # or a killed process would leave nothing that has a name
            self.flush()
        with self._files:
            while len(self._segments) > 1 and self._segments[1].first <= offset:
                oldest = self._segments.pop(0)  # first: who reads from here on knows that it is gone
                try:
                    oldest.path.unlink(missing_ok=True)
                    fsync_folder(self.folder)  # one by one: no power cut may leave a hole
                except OSError as error:
                    self._segments.insert(0, oldest)
                    raise Unavailable(f"a segment cannot be deleted: {error.strerror}") from error
                except DiskFailure as error:
                    raise self._poison(str(error)) from error
        self._marks = {at: place for at, place in list(self._marks.items()) if at >= self.start}

    def seal(self) -> int:
        """Begin a segment, so that all that is written stands in one that is not written to any more.

        Waits for no disk: whoever syncs next makes the old one durable, and gives the new one its name.
        """
        self._check()
        if self._size > HEADER.size:
            self.settle()
            self._begin_early()
        return self._segments[-1].first

    def rewrite(
        self,
        replace: Callable[[int, bytes], bytes | None],
        start: int,
        stop: int,
        pause: Callable[[], object] = lambda: None,
    ) -> int:
        """Put other payloads in place of sealed records. A segment in which none changes is left alone."""
        if self._early:
            self.flush()
        count = 0
        for segment, after in pairwise(list(self._segments)):
            if segment.first >= stop or after.first <= start:
                continue
            try:
                count += self._rewrite(segment, replace, start, stop, pause)
            except FileNotFoundError:
                if segment in self._segments:  # otherwise it was dropped just now
                    raise _damaged(segment.path, "it is no longer there, but a later segment is") from None
            except OSError as error:
                raise Unavailable(f"a segment cannot be rewritten: {error.strerror}") from error
            except DiskFailure as error:
                raise self._poison(str(error)) from error
        return count

    def _rewrite(
        self,
        segment: Segment,
        replace: Callable[[int, bytes], bytes | None],
        start: int,
        stop: int,
        pause: Callable[[], object],
    ) -> int:
        """Look for what changes in one segment; if anything does, put a new file in its place."""
        new: dict[int, bytes] = {}
        for offset, payload, _ in _records(segment, self._marks, start, last=False):
            pause()
            if start <= offset < stop and (other := replace(offset, payload)) is not None:
                new[offset] = other
        if not new:
            return 0
        written = 0  # crc of the new file

        def parts() -> Iterator[bytes]:
            nonlocal written
            for part in _anew(segment, new):
                pause()
                written = zlib.crc32(part, written)
                yield part

        def check(path: Path) -> None:
            found = 0
            with path.open("rb") as file:
                while part := file.read(BUFFER):
                    pause()
                    found = zlib.crc32(part, found)
            if found != written:
                raise Unavailable(f"the segment {path} does not read back as it was written")

        with self._files:  # a segment that is deleted must not come back: there must be something to read
            write_durably(segment.path, more=parts(), check=check)
        return len(new)

    def close(self) -> None:
        """Make everything durable and let go of the file."""
        self._stop.set()
        if self._ticker.is_alive():
            self._ticker.join()
        try:
            if not self.poisoned:
                self.flush()
        finally:
            file, self._file = self._file, -1  # nobody must write to whatever gets this number next
            os.close(file)

    def _sync(self, offset: int) -> None:
        """Whoever comes while nobody does it calls fdatasync for all; the others wait."""
        if not self._lead(offset):
            return
        durable = 0
        try:
            reached = self.end
            with self._guard:
                early, file = self._early, self._file
            if early:
                self._give_name(early)
            os.fdatasync(file)
            durable = reached
        except OSError as error:
            raise self._poison(f"fdatasync failed: {error.strerror}") from error
        except DiskFailure as error:
            raise self._poison(str(error)) from error
        finally:
            self._hand_over(durable)

    def _lead(self, offset: int) -> bool:
        """Wait for one's turn to sync; not that any more, if the record at `offset` is durable before.

        Each waits for a lock of its own: those who are not done yet sleep on. With one condition for all, 64
        threads wake and wait for each other at every fdatasync, which costs half as much CPU again.
        """
        while True:
            with self._guard:
                self._check()
                if offset < self._durable:
                    return False
                if not self._leading:
                    self._leading = True
                    return True
                turn = threading.Lock()
                turn.acquire()
                self._waiting.append((offset, turn))
            turn.acquire()

    def _hand_over(self, durable: int = 0) -> None:
        """Wake those whose records are durable now, and one of the others to go on."""
        with self._guard:
            self._leading = False
            self._durable = max(self._durable, durable)
            done = [turn for offset, turn in self._waiting if offset < self._durable]
            self._waiting = [each for each in self._waiting if each[0] >= self._durable]
            if self._waiting:
                done.insert(0, self._waiting.pop(0)[1])
        for turn in done:
            turn.release()

    def _every_second(self) -> None:
        while not self._stop.wait(FLUSH_SECONDS):
            try:
                self._sync(self.end - 1)
            except DiskFailure:  # said by `_poison`, and to everybody who writes from now on
                return

    def _check(self) -> None:
        if self.poisoned:
            raise DiskFailure(self.poisoned)

    def _poison(self, why: str) -> DiskFailure:
        """From here on nothing is acknowledged any more, by this process."""
        with self._guard:
            self.poisoned = f"journal {self.folder}: {why}"
            waiting, self._waiting = self._waiting, []
        for _, turn in waiting:
            turn.release()
        log.critical("%s; nothing more is accepted", self.poisoned)
        return DiskFailure(self.poisoned)

    def _take_back(self) -> None:
        """Cut off what a failed write may have left."""
        try:
            os.ftruncate(self._file, self._size)
        except OSError as error:
            raise self._poison(f"cannot take back a broken write: {error.strerror}") from error

    def _rotate(self) -> None:
        """A new segment, without waiting for the disk: whoever appends keeps everybody waiting.

        Only where the last one has no name yet, two within a second, that is waited for.

        With choices only nothing was brought to the disk for a whole segment, which took 34 ms and more.
        """
        self.settle()
        self._begin_early()

    def _begin_segment(self) -> None:
        before = self._segments[-1].first if self._segments else self.end
        salt = secrets.token_bytes(16)
        path = _path(self.folder, self.end)
        write_durably(path, _head(self.end, before, salt))
        self._use(path, salt, HEADER.size)
        self._segments.append(Segment(self.end, path))

    def _begin_early(self) -> None:
        """As `_begin_segment`; after a power cut it counts only if nothing before it is missing."""
        salt, path = secrets.token_bytes(16), _path(self.folder, self.end)
        try:
            file = os.open(_early(path), os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_TRUNC, 0o666)
            try:
                _write_all(file, _head(self.end, self._segments[-1].first, salt))
            except BaseException:
                os.close(file)
                raise
        except OSError as error:  # nothing has changed
            raise Unavailable(f"the journal cannot begin a segment: {error.strerror}") from error
        with self._guard:
            self._early, self._file = Early(self._file, file, path), file
        self._size, self._salt_crc, self._begun = HEADER.size, zlib.crc32(salt), time.monotonic()
        self._segments.append(Segment(self.end, path))

    def _give_name(self, early: Early) -> None:
        """What is durable is always a prefix: first the old segment, then the new one, then its name."""
        os.fdatasync(early.old)
        os.fsync(early.new)
        _early(early.path).rename(early.path)
        fsync_folder(self.folder)
        with self._guard:
            self._early = None
        os.close(early.old)

    def _adopt(self) -> None:
        """A process before us may have ended before a segment had its name.

        If that goes on where the last one ends, only the process was killed, and nothing is missing. Else
        nothing in it was ever acknowledged as durable.
        """
        for early in [*self.folder.glob("*.journal.early")]:
            path = early.with_suffix("")
            try:
                with early.open("rb") as file:
                    _header(file, Segment(self.end, path))
                    fsync(file.fileno(), early)  # only what is on the disk has a name
            except Damaged:  # it begins elsewhere, or its header was never written
                log.warning("%s is left out: a power cut took what stood before it", early)
                early.unlink()
                fsync_folder(self.folder)  # or another power cut might bring it back, where it would fit
            else:
                early.rename(path)
                self._segments.append(Segment(self.end, path))
                self._open_last()

    def _use(self, path: Path, salt: bytes, size: int) -> None:
        """Append to this segment from now on."""
        self._lead(self.end)  # or somebody might have the old file in hand
        try:
            old, self._file = self._file, os.open(path, os.O_WRONLY | os.O_APPEND)
        finally:
            self._hand_over()
        self._size, self._salt_crc, self._begun = size, zlib.crc32(salt), time.monotonic()
        if old >= 0:
            os.close(old)

    def _open_last(self) -> None:
        """Find the end, cut a torn tail, and make sure of what a process before us did not."""
        before = None
        for segment in self._segments:
            with segment.path.open("rb") as file:
                linked, salt = _header(file, segment)
            if before not in (None, linked):
                raise _damaged(_path(self.folder, linked), f"it is not there, but {segment.path.name} is")
            before = segment.first
        self.end, size = segment.first, HEADER.size
        for offset, payload, place in _records(segment, self._marks, segment.first, last=True):
            self.end, size = offset + 1, place + HEAD.size + len(payload)
        self._use(segment.path, salt, size)
        self.cut_bytes = segment.path.stat().st_size - size
        if self.cut_bytes:
            log.warning(
                "%s: cut %d bytes of a torn record off the end; offset %d is the next",
                segment.path,
                self.cut_bytes,
                self.end,
            )
            os.ftruncate(self._file, size)
        fsync(self._file, segment.path)  # a killed process may have left records, and names, that only
        fsync_folder(self.folder)  # memory has; they will be acknowledged when they are sent again


def scan(folder: Path, start: int = 0) -> Iterator[tuple[int, bytes]]:
    """(offset, payload) from `start` on, of a folder that another process may be writing to.

    Stops at a torn tail, which may be a record in the making. Raises `Damaged`.
    """
    segments = _segments(folder)
    return _read(folder, segments, start, {}) if segments else iter(())


def torn_bytes(folder: Path) -> int:
    """Bytes of a record at the end that was never finished: a crash, or one that is being written now."""
    segments = _segments(folder)
    if not segments:
        return 0
    segment, end = segments[-1], HEADER.size
    for _, payload, place in _records(segment, {}, segment.first, last=True):
        end = place + HEAD.size + len(payload)
    return max(0, segment.path.stat().st_size - end)


def record_at(path: Path, place: int) -> tuple[int, bytes] | None:
    """(offset, payload) of the record that this byte of a segment is in; None if it is in none."""
    segment, end = Segment(int(path.stem), path), 0
    for offset, payload, begin in _records(segment, {}, segment.first, last=True):
        end = begin + HEAD.size + len(payload)
        if begin <= place < end:
            return offset, payload
        if place < begin:
            break
    return None


def first_offset(folder: Path) -> int:
    """The offset of the oldest record in a folder; 0 if there is none."""
    segments = _segments(folder)
    return segments[0].first if segments else 0


def _early(path: Path) -> Path:
    """What a segment is called before it has its name."""
    return path.with_name(f"{path.name}.early")


def _opened(path: Path) -> BinaryIO:
    """A segment, by its name or the one before."""
    for each in (path, _early(path)):
        with suppress(FileNotFoundError):
            return each.open("rb", BUFFER)
    return path.open("rb", BUFFER)  # if it is there, it got its name just now


def _path(folder: Path, first: int) -> Path:
    return folder / f"{first:020d}.journal"


def _segments(folder: Path) -> list[Segment]:
    paths = sorted(folder.glob(f"{'[0-9]' * 20}.journal"))
    return [Segment(int(path.stem), path) for path in paths]


def _record(salt_crc: int, offset: int, payload: bytes) -> bytes:
    length = len(payload)
    return HEAD.pack(length, _crc(salt_crc, length, offset, payload), offset) + payload


def _crc(salt_crc: int, length: int, offset: int, payload: bytes | memoryview) -> int:
    return zlib.crc32(payload, zlib.crc32(COVERED.pack(length, offset), salt_crc))


def _write_all(file: int, data: bytes) -> None:
    """`os.write` may write less than it was given."""
    while data:
        data = data[os.write(file, data) :]


def _head(first: int, before: int, salt: bytes) -> bytes:
    """The header of a segment."""
    header = HEADER.pack(MAGIC, VERSION, first, before, salt, 0)[:-4]
    return header + zlib.crc32(header).to_bytes(4, "little")


def _anew(segment: Segment, new: dict[int, bytes]) -> Iterator[bytes]:
    """The bytes of a segment with `new` payloads at their offsets, and another salt."""
    salt = secrets.token_bytes(16)
    with segment.path.open("rb") as file:
        before, _ = _header(file, segment)
    yield _head(segment.first, before, salt)
    salt_crc = zlib.crc32(salt)
    for offset, payload, _ in _records(segment, {}, segment.first, last=False):
        yield _record(salt_crc, offset, new.get(offset, payload))


def _header(file: BinaryIO, segment: Segment) -> tuple[int, bytes]:
    """(first offset of the segment before, salt)."""
    raw = file.read(HEADER.size)
    if len(raw) < HEADER.size or zlib.crc32(raw[:-4]) != int.from_bytes(raw[-4:], "little"):
        raise _damaged(segment.path, "its header is not what was written")
    magic, version, first, before, salt, _ = HEADER.unpack(raw)
    if (magic, version, first) != (MAGIC, VERSION, segment.first):
        raise _damaged(segment.path, "its header is that of another file, or of a newer banditads")
    return before, salt


def _read(folder: Path, segments: list[Segment], start: int, marks: Marks) -> Iterator[tuple[int, bytes]]:
    """Records from `start` on. The next segment is the one named after where this one has ended."""
    begin = bisect_right(segments, start, key=lambda segment: segment.first) - 1
    if begin < 0:
        raise Damaged(f"{folder}: records from {start} to {segments[0].first - 1} are no longer there")
    segment, newest = segments[begin], segments[-1].first
    while True:
        end, last = segment.first, segment.first == newest  # those before the newest were complete before it
        try:
            for offset, payload, _ in _records(segment, marks, start, last=last):
                end = offset + 1
                if offset >= start:
                    yield offset, payload
        except FileNotFoundError:
            raise _damaged(segment.path, "it is no longer there, but a later segment is") from None
        if last:
            return
        if end == segment.first:
            raise _damaged(segment.path, "it has no records, but there is a later segment")
        segment = Segment(end, _path(folder, end))


def _records(segment: Segment, marks: Marks, start: int, *, last: bool) -> Iterator[tuple[int, bytes, int]]:
    """(offset, payload, byte) of the records of a segment, from the last mark before `start` on.

    Stops at a torn tail, if this is the last segment. `marks` are added to.
    """
    marked = range(start - start % MARK_EVERY, segment.first - 1, -MARK_EVERY) if marks else ()
    with _opened(segment.path) as file:
        salt_crc = zlib.crc32(_header(file, segment)[1])
        expected, place = segment.first, HEADER.size
        for offset in marked:
            if (mark := marks.get(offset)) and mark[0] == salt_crc:
                expected, place = offset, mark[1]
                break
        file.seek(place)
        while True:
            while len(head := file.read(HEAD.size)) == HEAD.size:
                length, crc, offset = HEAD.unpack(head)
                payload = file.read(length) if length <= MAX_RECORD else b""
                fits = len(payload) == length and _crc(salt_crc, length, offset, payload) == crc
                if not fits or offset != expected:
                    break
                if offset % MARK_EVERY == 0:
                    marks[offset] = salt_crc, place
                yield offset, payload, place
                expected, place = offset + 1, place + HEAD.size + length
            file.seek(place)
            rest = file.read()
            if not rest or (last and _is_torn(rest, salt_crc, expected)):
                return
            file.seek(place)
            if not _is_whole(rest, salt_crc, expected) and file.read(len(rest)) == rest:
                raise _damaged(
                    segment.path, f"the record at offset {expected} is not what was written", place
                )
            file.seek(place)  # it was being written while we read: once more


def _is_whole(rest: bytes | memoryview, salt_crc: int, expected: int) -> bool:
    """Whether this begins with the record of offset `expected`, as it was written."""
    if len(rest) < HEAD.size:
        return False
    length, crc, offset = HEAD.unpack_from(rest)
    payload = rest[HEAD.size : HEAD.size + length]
    return offset == expected and len(payload) == length and _crc(salt_crc, length, offset, payload) == crc


def _is_torn(rest: bytes, salt_crc: int, expected: int) -> bool:
    """Whether this is the beginning of record `expected`, of which the end was never written.

    A flipped bit in the length of a complete record must not pass for that: so a length is not believed while
    another one makes the crc fit, or while anything intact follows.
    """
    if not rest.strip(b"\0"):
        return True  # after a power cut a file may be longer than what was written into it
    if len(rest) < HEAD.size:
        return True
    length, crc, offset = HEAD.unpack_from(rest)
    if offset != expected or length > MAX_RECORD or HEAD.size + length <= len(rest):
        return False
    real = len(rest) - HEAD.size
    for other in (real, *(length ^ (1 << bit) for bit in range(32))):
        if other <= real and _crc(salt_crc, other, offset, rest[HEAD.size : HEAD.size + other]) == crc:
            return False
    return not _intact_after(rest, salt_crc, expected)


def _intact_after(rest: bytes, salt_crc: int, expected: int) -> bool:
    """Whether a record later than `expected` stands anywhere in here."""
    most = expected + len(rest) // HEAD.size
    for shift in range(8):
        words = np.frombuffer(rest, "<u8", (len(rest) - shift) // 8, shift)
        for index in np.flatnonzero((words > expected) & (words <= most)).tolist():
            begin = shift + 8 * index - 8  # the offset is the second half of a head
            if begin > 0 and _is_whole(memoryview(rest)[begin:], salt_crc, int(words[index])):
                return True
    return False


def _damaged(path: Path, what: str, place: int = 0) -> Damaged:
    return Damaged(
        f"{path} at byte {place} is damaged: {what}. Nothing was changed. Put back a good copy of the file: "
        "what comes after that place means nothing without it"
    )
