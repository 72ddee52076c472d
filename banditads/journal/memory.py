"""A journal that forgets when the process ends: for tests and for trying things out."""

from __future__ import annotations

from collections.abc import Iterator

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

    def close(self) -> None:
        """Nothing to let go of."""
