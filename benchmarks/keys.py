"""What it costs to know a key and an event id: `python benchmarks/keys.py`.

Microseconds of one thread, the fastest of several rounds: what else runs on the machine only adds.
"""

from __future__ import annotations

import tempfile
import timeit
from contextlib import suppress
from pathlib import Path

from rich.console import Console
from rich.table import Table

from banditads import keys
from banditads.errors import Unauthenticated
from banditads.signing import EventIds

ROUNDS, CALLS = 20, 20_000


def cost(what) -> float:
    """Microseconds of one call."""
    return min(timeit.repeat(what, number=CALLS, repeat=ROUNDS)) / CALLS * 1e6


def main() -> None:
    table = Table("checked", "microseconds")
    ids = EventIds(b"k" * 32)
    ours = ids.mint(1_700_000_000.0)
    forged = ours[:-1] + ("A" if ours[-1] != "A" else "B")
    table.add_row("an event id that we signed", f"{cost(lambda: ids.minted_at(ours)):.2f}")
    table.add_row("a forged event id", f"{cost(lambda: ids.minted_at(forged)):.2f}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "keys"
        free, rated = keys.create(path, ("choose",)), keys.create(path, ("choose",), rate=1e6)
        for _ in range(100):
            keys.create(path, ("reward",))
        known = keys.Keys(path)

        def wrong(token):
            with suppress(Unauthenticated):
                known.check(token, "choose")

        table.add_row("a key", f"{cost(lambda: known.check(free, 'choose')):.2f}")
        table.add_row("a key with a rate", f"{cost(lambda: known.check(rated, 'choose')):.2f}")
        table.add_row("a wrong secret", f"{cost(lambda: wrong(free[:-1] + '0')):.2f}")
        table.add_row("an unknown id", f"{cost(lambda: wrong('ba_' + '9' * 12 + free[15:])):.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
