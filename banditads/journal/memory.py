"""A journal that forgets when the process ends: for tests and for trying things out."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ..errors import Damaged

EXAMPLE = "memory:"


class Journal:
    """Records in a list."""

    def __init__(self, rest: str = "") -> None:
        self.poisoned = ""
        self.start = 0
        self.records: list[bytes] = []

    @property
    def end(self) -> int:
        """The offset that the next record will get."""
        return self.start + len(self.records)

    def append(self, payload: bytes) -> int:
        """Keep one record."""
        self.records.append(payload)
        return self.end - 1

    def sync(self, offset: int) -> None:
        """Memory is as durable as it gets."""

    def flush(self) -> None:
        """As for `sync`."""

    def settle(self) -> None:
        """A list has no files."""

    def read(self, start: int) -> Iterator[tuple[int, bytes]]:
        """(offset, payload) from `start` on, to the end as it is now."""
        if start < self.start:
            raise Damaged(f"records from {start} to {self.start - 1} are no longer there")
        yield from enumerate(self.records[start - self.start :], start)

    def drop_before(self, offset: int) -> None:
        """Forget records below `offset`."""
        dropped = max(0, min(offset, self.end) - self.start)
        del self.records[:dropped]
        self.start += dropped

    def seal(self) -> int:
        """Records in a list can always be replaced."""
        return self.end

    def rewrite(
        self,
        replace: Callable[[int, bytes], bytes | None],
        start: int,
        stop: int,
        pause: Callable[[], object] = lambda: None,
    ) -> int:
        """Put other payloads in place of some."""
        count = 0
        for offset in range(max(start, self.start), min(stop, self.end)):
            pause()
            new = replace(offset, self.records[offset - self.start]) if offset >= self.start else None
            if new is not None and offset >= self.start:  # otherwise it was dropped meanwhile
                self.records[offset - self.start] = new
                count += 1
        return count

    def close(self) -> None:
        """Nothing to let go of."""
