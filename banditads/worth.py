"""What a visitor did, as a reward: a number, or in proportion to the money or the time it was about.

The money is what the visitor spent, or what the ad says: a click is worth what its advertiser bids.

>>> [parse(text)(59.9, low=0.0, high=1.0) for text in ("0.5", "value / 100", "value")]
[0.5, 0.599, 1.0]
>>> parse("ad.bid / 10").of_ad
'bid'
>>> parse("") is None  # no reward
True
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import isfinite
from typing import NamedTuple, TypeAlias

NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"


class Worth(NamedTuple):
    """A straight line, cut off where the range of rewards ends."""

    start: float  # reward of nothing
    slope: float  # rewards per unit of the amount
    of_ad: str = ""  # the feature of the ad that is the amount; empty: the visitor's

    def __call__(self, amount: float, low: float, high: float) -> float:
        """The reward of this amount, within [low, high]."""
        return min(high, max(low, self.start + self.slope * amount))


Worths: TypeAlias = Mapping[str, Worth | None]  # by kind of signal


def parse(text: str) -> Worth | None:
    """`""`, `"0.5"`, `"value"`, `"value * 2"` or `"ad.bid / 100"`. Raises `ValueError` for others."""
    if not text.strip():
        return None
    found = re.fullmatch(rf"\s*(?:({NUMBER})|(?:value|ad\.([^\s*/]+))(?:\s*([*/])\s*({NUMBER}))?)\s*", text)
    if found:
        start, sign, factor = float(found[1] or 0), found[3], float(found[4] or 1)
        if sign == "/":
            factor = 1 / factor if factor else float("inf")
        if isfinite(start) and isfinite(factor):
            return Worth(start, 0.0 if found[1] else factor, found[2] or "")
    raise ValueError(
        f"{text!r} is not a number, `value` or `ad.FEATURE`, or one of these `* NUMBER` or `/ NUMBER`"
    )


DEFAULT: Worths = {"click": parse("1"), "conversion": parse("value"), "dwell": None}
