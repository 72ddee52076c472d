"""Dice that can be thrown again: one uniform number per event id.

>>> uniform("e1") == uniform("e1")
True
>>> uniform("e1") == uniform("e1", salt="another loop")
False
>>> [pick((0.2, 0.0, 0.8), u) for u in (0.0, 0.19, 0.2, 0.999)]
[0, 0, 2, 2]
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray


def uniform(event_id: str, salt: str = "") -> float:
    """A number in [0, 1), a multiple of 2**-53, that depends on the event id and the loop's salt alone."""
    digest = hashlib.blake2b(event_id.encode(), digest_size=8, key=salt.encode()[:64]).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53  # 53 bits: dividing by 2**64 could round up to 1


def pick(pmf: Sequence[float] | NDArray[np.float64], u: float) -> int:
    """The index whose slice of [0, 1) holds `u`; slices of width zero are never hit."""
    if isinstance(pmf, np.ndarray):
        index = int(pmf.cumsum().searchsorted(u, "right"))  # the same sums, in the same order
        if index < len(pmf):
            return index
    else:
        for index, edge in enumerate(accumulate(pmf)):
            if u < edge:
                return index
    return max(index for index, p in enumerate(pmf) if p > 0)  # rounding left u above the last edge
