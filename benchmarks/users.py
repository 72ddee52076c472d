"""What a million profiles take, and how long an act: `python benchmarks/users.py`.

Users with three attributes do things one by one: 100,000 items in 300 categories, some of them far more
popular, some users far busier, over 60 days. Then ads are shown to them and clicked. Memory is what the
process has more than when it was empty; time is CPU time of the room alone, without journal and HTTP.
"""

from __future__ import annotations

import time

import click
import numpy as np
from memory import resident

from banditads.events import Act, Chosen, Heard, UserActed, UserPut
from banditads.signing import Pseudonyms
from banditads.users import DAY, Users

NOW = 1.7e9
AT_ONCE = 50_000  # events made before they are applied
KINDS, SHARES = ("view", "search", "like", "cart", "purchase"), (0.7, 0.12, 0.05, 0.08, 0.05)
HEAD = "| acts | choices | users | RSS, MB | bytes/user | of these packed | us of an event |"


@click.command(help=__doc__)
@click.option("--users", "n_users", default=1_000_000, show_default=True)
@click.option("--acts", default=10_000_000, show_default=True)
@click.option("--choices", default=2_000_000, show_default=True)
@click.option("--seed", default=1, show_default=True)
def main(*, n_users: int, acts: int, choices: int, seed: int) -> None:
    dice, pseudonym = np.random.default_rng(seed), Pseudonyms(b"k" * 32)
    empty, room = resident(), Users(max_users=n_users)
    names = [pseudonym(f"user-{number}") for number in range(n_users)]
    names_list = 8 * n_users / 1e6  # MB of the list, which is ours; the room keeps the same strings
    print(f"{HEAD}\n|{'---:|' * HEAD.count(' | ')}---:|")

    def row(acted: int, chosen: int, spent: float, events: int) -> None:
        users, taken = len(room.profiles), resident() - empty - names_list
        print(
            f"| {acted:,} | {chosen:,} | {users:,} | {taken:,.0f} | {taken * 1e6 / users:.0f} "
            f"| {room.bytes / users:.0f} | {spent / events * 1e6:.1f} |",
            flush=True,
        )

    spent = 0.0
    for first in range(0, n_users, AT_ONCE):
        ages, cities = dice.integers(18, 90, AT_ONCE), dice.integers(0, 1000, AT_ONCE)
        put = [
            UserPut(NOW, name, {"age": float(age), "city": f"city-{city}", "member": "true"}, True)
            for name, age, city in zip(names[first : first + AT_ONCE], ages, cities, strict=False)
        ]
        spent += _timed(room, put)
        del put
    row(0, 0, spent, n_users)
    done, spent, since = 0, 0.0, 0
    while done < acts:
        count = min(AT_ONCE, acts - done)
        when = NOW + 60 * DAY * done / acts
        items = _skewed(dice, 100_000, count)
        acted = [
            UserActed(
                when,
                names[user],
                (Act(KINDS[kind], f"item-{item}", f"cat-{item % 300}", 9.9 if kind == 4 else 0.0, when),),
            )
            for user, kind, item in zip(
                _skewed(dice, n_users, count).tolist(),
                dice.choice(len(KINDS), count, p=SHARES).tolist(),
                items.tolist(),
                strict=True,
            )
        ]
        spent, done, since = spent + _timed(room, acted), done + count, since + count
        del acted
        if done % 1_000_000 == 0 or done == acts:
            row(done, 0, spent, since)
            spent, since = 0.0, 0
    done, spent, since = 0, 0.0, 0
    while done < choices:
        count = min(AT_ONCE, choices - done)
        chosen = [
            Chosen(when, "e", (f"ad-{ad}",), b"", 0, {}, user_id=names[user])
            for user, ad in zip(
                _skewed(dice, n_users, count).tolist(), dice.integers(0, 1000, count).tolist(), strict=True
            )
        ]
        clicked = [Heard(each.user_id, each.ad_id, "click", 1.0, when) for each in chosen[::20]]
        spent, done = spent + _timed(room, [*chosen, *clicked]), done + count
        since += len(chosen) + len(clicked)
        del chosen, clicked
        if done % 1_000_000 == 0 or done == choices:
            row(acts, done, spent, since)
            spent, since = 0.0, 0
    before, some = time.process_time(), names[:: max(1, n_users // 10_000)]
    found = [len(room.features(name, when)) for name in some]
    spent = time.process_time() - before
    print(
        f"\nfeatures of a user: {np.mean(found):.1f} in the mean, {max(found)} at most, "
        f"{spent / len(some) * 1e6:.1f} us; largest profile {max(map(len, room.profiles.values()))} bytes"
    )


def _timed(room: Users, events: list[UserPut] | list[UserActed] | list[Chosen | Heard]) -> float:
    """CPU seconds to apply them."""
    before = time.process_time()
    for event in events:
        room.apply(event)
    return time.process_time() - before


def _skewed(dice: np.random.Generator, n: int, count: int) -> np.ndarray:
    """`count` of `n` numbers; a tenth of them come about half of the time."""
    return np.minimum((n * dice.random(count) ** 3.3).astype(int), n - 1)


if __name__ == "__main__":
    main()
