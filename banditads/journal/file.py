"""A journal in a folder of files: survives kill -9 when `append` returns, a power cut when `sync` does.

A segment is a header (magic, version, first offset, salt, crc) and records (length, crc, offset, payload).
The crc covers the segment's salt, the length, the offset and the payload, so old bytes on the disk are never
taken for records, and a lost or repeated record is seen. A crash can tear the last record; opening cuts a
torn tail and goes on. Anything else that is not as it was written is `Damaged`, with the file and the byte:
nothing is repaired by guessing. A failed fsync is final: the system may have dropped the pages, so trying
again proves nothing.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
import zlib
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from struct import Struct
from typing import BinaryIO, NamedTuple

from ..directory import fsync, fsync_folder, write_durably
from ..errors import Damaged, DiskFailure, Misconfigured, TooLarge, Unavailable

log = logging.getLogger(__name__)

EXAMPLE = "file:{tmp}"
HEADER = Struct("<8sIQ16sI")  # magic, version, first offset, salt, crc of all before
HEAD = Struct("<IIQ")  # length, crc, offset
COVERED = Struct("<IQ")  # length, offset: what the crc covers of a record's head
MAGIC, VERSION = b"BAJRNL\r\n", 1
MAX_RECORD = 64 * 2**20  # bytes of payload
MARK_EVERY = 256  # records between two remembered places


class Segment(NamedTuple):
    """A file of records; the next segment begins where it ends."""

    first: int  # offset of its first record
    path: Path


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
        self.cut_bytes = 0  # of a torn tail that opening found
        self._segments = _segments(self.folder)
        self._marks = list[tuple[int, Path, int]]()  # (offset, file, byte) of some records, offsets growing
        if self._segments:
            self._open_last()
        else:
            self.end = 0
            self._begin_segment()
        self._durable = self.end  # opening has seen to it: every record below this is on the disk
        self._syncing = False
        self._change = threading.Condition()
        self._stop = threading.Event()
        self._ticker: threading.Thread | None = None
        if fsync == "everysec":
            self._ticker = threading.Thread(target=self._every_second, name="fsync", daemon=True)
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
        if self._size > HEADER.size and (self._size >= self.segment_bytes or old):
            self._rotate()
        offset = self.end
        record = _record(self._salt_crc, offset, payload)
        try:
            _write_all(self._file, record)
        except OSError as error:
            try:
                os.ftruncate(self._file, self._size)
            except OSError as worse:
                self._poison(f"cannot take back a broken write: {worse.strerror}")
            raise Unavailable(f"the journal cannot be written: {error.strerror}") from error
        if offset % MARK_EVERY == 0:
            self._marks.append((offset, self._segments[-1].path, self._size))
        self._size += len(record)
        self.end = offset + 1
        return offset

    def sync(self, offset: int) -> None:
        """Return once the record at `offset` is as durable as `fsync` promises. Any thread, any time."""
        if self.fsync == "everysec":
            self._check()
        else:
            self._sync(offset)

    def _sync(self, offset: int) -> None:
        """Whoever comes while nobody does it calls fdatasync for all; the others wait, and look again."""
        with self._change:
            while self._durable <= offset:
                self._check()
                if not self._syncing:
                    self._syncing = True
                    break
                self._change.wait()
            else:
                return
            written, done = self.end, 0
        try:
            os.fdatasync(self._file)  # it stays open: a rotation first waits for this, in `_sync`
            done = written
        except OSError as error:
            self._poison(f"fdatasync failed: {error.strerror}")
        finally:
            with self._change:
                self._durable = max(self._durable, done)
                self._syncing = False
                self._change.notify_all()
        self._check()

    def read(self, start: int) -> Iterator[tuple[int, bytes]]:
        """(offset, payload) from `start` on, to the end as it is now."""
        end = self.end
        if start >= end:
            return
        if start < self.start:
            raise Damaged(f"{self.folder}: records from {start} to {self.start - 1} are no longer there")
        near = self._marks[max(0, bisect_right(self._marks, start, key=lambda mark: mark[0]) - 1) :][:1]
        place = near[0] if near and near[0][0] <= start else None
        for offset, payload in _read(self._segments[:], start, place):
            yield offset, payload
            if offset + 1 == end:
                return

    def drop_before(self, offset: int) -> None:
        """Delete segments that hold nothing from `offset` on; never the one that is written to."""
        while len(self._segments) > 1 and self._segments[1].first <= offset:
            try:
                self._segments[0].path.unlink(missing_ok=True)
                fsync_folder(self.folder)  # one by one: no power cut may leave a hole
            except OSError as error:
                raise Unavailable(f"a segment cannot be deleted: {error.strerror}") from error
            except DiskFailure as error:
                self._poison(str(error))
            del self._segments[0]
        self._marks = [mark for mark in self._marks if mark[0] >= self.start]

    def close(self) -> None:
        """Make everything durable and let go of the file."""
        self._stop.set()
        if self._ticker:
            self._ticker.join()
        try:
            if not self.poisoned and self.end:
                self._sync(self.end - 1)
        finally:
            os.close(self._file)

    def _check(self) -> None:
        if self.poisoned:
            raise DiskFailure(self.poisoned)

    def _poison(self, why: str) -> None:
        """From here on nothing is acknowledged any more, by this process."""
        self.poisoned = f"journal {self.folder}: {why}"
        log.critical("%s; nothing more is accepted", self.poisoned)
        self._check()

    def _rotate(self) -> None:
        """A new segment, once all of this one is on the disk: what is durable is always a prefix."""
        try:
            self._sync(self.end - 1)
            self._begin_segment()
        except OSError as error:
            raise Unavailable(f"the journal cannot begin a segment: {error.strerror}") from error
        except DiskFailure as error:
            if not self.poisoned:
                self._poison(str(error))
            raise

    def _begin_segment(self) -> None:
        salt = secrets.token_bytes(16)
        header = HEADER.pack(MAGIC, VERSION, self.end, salt, 0)[:-4]
        path = self.folder / f"{self.end:020d}.journal"
        write_durably(path, header + zlib.crc32(header).to_bytes(4, "little"))
        self._use(path, salt, HEADER.size)
        self._segments.append(Segment(self.end, path))

    def _use(self, path: Path, salt: bytes, size: int) -> None:
        """Append to this segment from now on."""
        file = os.open(path, os.O_WRONLY | os.O_APPEND)
        old = getattr(self, "_file", None)
        self._file, self._size, self._salt_crc = file, size, zlib.crc32(salt)
        self._begun = time.monotonic()
        if old is not None:
            os.close(old)

    def _open_last(self) -> None:
        """Find the end, and cut a torn tail."""
        segment = self._segments[-1]
        with segment.path.open("rb") as file:
            salt = _header(file, segment)
            self.end, size = segment.first, HEADER.size
            for offset, payload, place in _records(file, segment.path, salt, segment.first):
                if offset % MARK_EVERY == 0:
                    self._marks.append((offset, segment.path, place))
                self.end, size = offset + 1, place + HEAD.size + len(payload)
            total = file.seek(0, os.SEEK_END)
        self._use(segment.path, salt, size)
        if total > size:
            self.cut_bytes = total - size
            log.warning("%s: cut %d bytes of a torn record off the end", segment.path, self.cut_bytes)
            os.ftruncate(self._file, size)
        fsync(self._file, segment.path)  # a killed process may have left records, and names, that only
        fsync_folder(self.folder)  # memory has; they will be acknowledged when they are sent again

    def _every_second(self) -> None:
        while not self._stop.wait(1.0):
            if self._durable < self.end:
                try:
                    self._sync(self.end - 1)
                except DiskFailure:  # said by `_poison`, and to everybody who writes from now on
                    return


def scan(folder: Path, start: int = 0) -> Iterator[tuple[int, bytes]]:
    """(offset, payload) from `start` on, of a folder that another process may be writing to.

    Stops at a torn tail, which may be a record in the making. Raises `Damaged`.
    """
    segments = _segments(folder)
    if segments and segments[0].first > start:
        raise Damaged(f"{folder}: records from {start} to {segments[0].first - 1} are no longer there")
    yield from _read(segments, start, None)


def first_offset(folder: Path) -> int:
    """The offset of the oldest record in a folder; 0 if there is none."""
    segments = _segments(folder)
    return segments[0].first if segments else 0


def _segments(folder: Path) -> list[Segment]:
    paths = sorted(folder.glob(f"{'[0-9]' * 20}.journal"))
    return [Segment(int(path.stem), path) for path in paths]


def _record(salt_crc: int, offset: int, payload: bytes) -> bytes:
    crc = zlib.crc32(payload, zlib.crc32(COVERED.pack(len(payload), offset), salt_crc))
    return HEAD.pack(len(payload), crc, offset) + payload


def _write_all(file: int, data: bytes) -> None:
    """`os.write` may write less than it was given."""
    while data:
        data = data[os.write(file, data) :]


def _open(segment: Segment) -> BinaryIO:
    try:
        return segment.path.open("rb")
    except FileNotFoundError:
        raise Damaged(f"{segment.path} is no longer there") from None


def _header(file: BinaryIO, segment: Segment) -> bytes:
    """The salt of a segment."""
    raw = file.read(HEADER.size)
    fits = len(raw) == HEADER.size and zlib.crc32(raw[:-4]) == int.from_bytes(raw[-4:], "little")
    if not fits or HEADER.unpack(raw)[:3] != (MAGIC, VERSION, segment.first):
        raise _damaged(segment.path, 0, "its header is not what was written")
    salt: bytes = HEADER.unpack(raw)[3]
    return salt


def _read(
    segments: list[Segment], start: int, place: tuple[int, Path, int] | None
) -> Iterator[tuple[int, bytes]]:
    """Records from `start` on, across segments. `place` is a known record at or before `start`."""
    for number, segment in enumerate(segments):
        last = number + 1 == len(segments)
        if not last and segments[number + 1].first <= start:
            continue
        expected = segment.first
        with _open(segment) as file:
            salt = _header(file, segment)
            if place and place[1] == segment.path:
                expected = place[0]
                file.seek(place[2])
            for offset, payload, _ in _records(file, segment.path, salt, expected):
                expected = offset + 1
                if offset >= start:
                    yield offset, payload
        if not last and expected != segments[number + 1].first:
            raise _damaged(segment.path, None, f"it ends before offset {expected}, the next begins later")


def _records(file: BinaryIO, path: Path, salt: bytes, expected: int) -> Iterator[tuple[int, bytes, int]]:
    """(offset, payload, byte) of the records from here on; stops before a torn tail."""
    salt_crc = zlib.crc32(salt)
    place = file.tell()
    rest = None
    while rest is None or _is_whole(rest, 0, salt_crc, expected):  # whole only now: a writer is at work
        file.seek(place)
        while len(head := file.read(HEAD.size)) == HEAD.size:
            length, crc, offset = HEAD.unpack(head)
            payload = file.read(length) if length <= MAX_RECORD else b""
            covered = zlib.crc32(COVERED.pack(length, offset), salt_crc)
            if len(payload) < length or offset != expected or zlib.crc32(payload, covered) != crc:
                break
            yield offset, payload, place
            expected, place = offset + 1, place + HEAD.size + length
        file.seek(place)
        rest = file.read()
    if not _is_torn(rest, salt_crc, expected):
        raise _damaged(path, place, f"the record at offset {expected} is not what was written")


def _is_whole(raw: bytes, begin: int, salt_crc: int, wanted: int) -> bool:
    """Whether the record at offset `wanted` begins here, whole and as it was written."""
    if len(raw) < begin + HEAD.size:
        return False
    length, crc, offset = HEAD.unpack_from(raw, begin)
    payload = raw[begin + HEAD.size :][:length] if length <= MAX_RECORD else b""
    covered = zlib.crc32(COVERED.pack(length, offset), salt_crc)
    return len(payload) == length and offset == wanted and zlib.crc32(payload, covered) == crc


def _is_torn(rest: bytes, salt_crc: int, expected: int) -> bool:
    """Whether what stands where record `expected` should begin is a write that never ended."""
    if not rest.strip(b"\0"):
        return True  # nothing, or zeros: the length reached the disk before the data did
    if len(rest) < HEAD.size:
        return True
    length, crc, offset = HEAD.unpack_from(rest)
    if HEAD.size + length <= len(rest):
        return False  # complete, and wrong
    real = len(rest) - HEAD.size  # perhaps complete, and only its length is wrong
    if zlib.crc32(rest[HEAD.size :], zlib.crc32(COVERED.pack(real, offset), salt_crc)) == crc:
        return False
    return not _intact_after(rest, salt_crc, expected + 1)


def _intact_after(rest: bytes, salt_crc: int, offset: int) -> bool:
    """Whether the record that would come next is there: then the one before it had been written whole."""
    wanted = offset.to_bytes(8, "little")
    at = rest.find(wanted)
    while at >= 0:
        begin = at - (HEAD.size - 8)
        if begin > 0 and _is_whole(rest, begin, salt_crc, offset):
            return True
        at = rest.find(wanted, at + 1)
    return False


def _damaged(path: Path, place: int | None, what: str) -> Damaged:
    where = f"{path} at byte {place}" if place is not None else str(path)
    return Damaged(
        f"{where} is damaged: {what}. Restore the file from a copy; what comes after it cannot be trusted "
        "without it"
    )
