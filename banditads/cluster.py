"""Policies follow logs at the same time, on the processors of this machine or of a Ray cluster.

A policy that learns must meet the rounds of a log in order, so a log cannot be cut into parts that are
followed at once. What can be done at once is a policy on a log with a seed: that is a unit. Each reads the
log itself, from where every worker can: a path that is the same on all machines. A unit depends on nothing
but its arguments, so it may be done again, elsewhere, when a worker or a machine is lost, and the numbers are
those of one process, bit for bit.

Needs `pip install banditads[ray]`. Whoever may reach a Ray cluster may run programs on it: see Ray's own
documentation. The server never comes here.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from itertools import islice
from math import inf
from typing import Any

import msgspec

from . import logs
from .errors import Misconfigured, Unavailable
from .evaluation import EVERYTHING, Followed, follow
from .selecting import Selection

LOCAL = "local"  # the address that means: start Ray here, for as long as this takes
RETRIES = 10  # losses of workers that one unit may suffer
STORE = 2**28  # bytes of shared memory for what local workers hand back: 12 a round and policy
ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1"}  # as in `__main__`: the same sums everywhere


class Unit(msgspec.Struct, frozen=True):
    """Policies, usually one, to follow a log."""

    source: str
    specs: list[str]
    selection: Selection = EVERYTHING
    seed: int = 0
    limit: int | None = None  # rounds
    reward_min: float = 0.0
    reward_max: float = 1.0


def follow_log(unit: Unit, progress: Callable[[int], object] | None = None) -> Followed:
    """Do a unit, here and now. Raises what `logs.read` and `evaluation.follow` do."""
    log = logs.read(unit.source)
    followed = follow(
        islice(log, unit.limit),
        unit.specs,
        selection=unit.selection,
        seed=unit.seed,
        reward_min=unit.reward_min,
        reward_max=unit.reward_max,
        progress=progress,
    )
    waiting = [
        each.choice.at for each in log.waiting() if unit.selection.place(each.choice.at, each.offset) == 0
    ]
    return msgspec.structs.replace(followed, waiting=len(waiting), settled_until=min(waiting, default=inf))


def spread(
    units: Sequence[Unit], address: str = LOCAL, progress: Callable[[int], object] | None = None
) -> list[Followed]:
    """What `follow_log` gives for each unit, in order. `progress` hears how many are done.

    Raises `Unavailable` where the cluster cannot be reached, or one unit lost its workers again and again.
    """
    with redirect_stdout(sys.stderr):  # what Ray says of lost workers is not the answer
        return _spread(units, address, progress)


def _spread(units: Sequence[Unit], address: str, progress: Callable[[int], object] | None) -> list[Followed]:
    ray = _library()
    local = {"num_gpus": 0, "object_store_memory": STORE} if address == LOCAL else {}
    try:
        ray.init(
            address,
            include_dashboard=False if local else None,
            configure_logging=False,
            log_to_driver=False,
            runtime_env={"env_vars": ENVIRONMENT},
            **local,
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise Unavailable(f"Ray at {address!r} cannot be used: {error}", "ray") from None
    try:
        task = ray.remote(max_retries=RETRIES)(follow_log)
        tasks = [task.remote(unit) for unit in units]
        waiting = list(tasks)
        while waiting:
            _, waiting = ray.wait(waiting)
            if progress:
                progress(len(tasks) - len(waiting))
        found: list[Followed] = ray.get(tasks)
        return found
    except ray.exceptions.RayTaskError as error:  # what the unit itself raised
        raise error.cause from None
    except ray.exceptions.RayError as error:
        raise Unavailable(f"Ray lost a worker {RETRIES + 1} times, or itself: {error}", "ray") from None
    finally:
        ray.shutdown()


def _library() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would tell its makers
    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise Misconfigured("--ray needs Ray: pip install 'banditads[ray]'") from error
