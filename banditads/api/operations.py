"""Running it: /healthz, /readyz, /stats, /snapshot, and hug's own help at /help."""

from __future__ import annotations

from typing import Any

import msgspec

from .. import wire
from ..calibration import Reliability


class AdStats(msgspec.Struct):
    """Counts of one ad."""

    choices: int
    rewards: int
    reward_sum: float
    expired: int
    impressions: int


class SignalStats(msgspec.Struct):
    """What visitors did, of one kind: how often, and the money or the seconds of all."""

    count: int
    value: float


class StatsReply(msgspec.Struct):
    """Counts since the journal began. `rewards` are those that came in time; silence is `expired`.

    `calibration` says how far `expected_reward` could be believed, with rewards scaled to [0, 1].
    """

    choices: int
    rewards: int
    reward_sum: float
    expired: int
    impressions: int
    late: int
    unfilled: int
    unfilled_reasons: dict[str, int]
    pending: int
    given_up: int
    set_aside: int
    signals: dict[str, SignalStats]
    ads: dict[str, AdStats]
    policy: dict[str, Any]
    calibration: Reliability
    offset: int


class Health(msgspec.Struct):
    """The process is alive."""

    status: str = "ok"


class AlarmReply(msgspec.Struct):
    """Something that somebody should look at, while the server goes on."""

    code: str
    message: str
    advice: str


class Ready(msgspec.Struct):
    """`ready`, or why rewards are not accepted; and what to look at in either case."""

    status: str
    alarms: list[AlarmReply]


class SnapshotReply(msgspec.Struct):
    """The snapshot holds every event below this offset."""

    offset: int


def mount(routes, engine) -> None:  # noqa: D103
    @routes.add("HEAD", "/healthz", scope=None)
    @routes.add("GET", "/healthz", scope=None, reply=Health)
    def healthz(call):
        """The process is alive."""
        return Health()

    @routes.add("HEAD", "/readyz", scope=None, statuses={503: "Not able to accept rewards."})
    @routes.add("GET", "/readyz", scope=None, reply=Ready, statuses={503: "Not able to accept rewards."})
    def readyz(call):
        """Recovered and able to write."""
        trouble = engine.trouble() or routes.keys.trouble()
        said = Ready(trouble or "ready", [AlarmReply(*alarm) for alarm in engine.alarms()])
        return wire.Reply(said, 503 if trouble else 200)

    @routes.add("GET", "/stats", scope="admin", reply=StatsReply, compress=True)
    def stats(call):
        """What was shown and what it earned, in total and by ad."""
        with engine.lock:
            state = engine.state
            counts = state.stats
            total = counts.total
            return StatsReply(
                total.choices,
                total.rewards,
                total.reward_sum,
                total.expired,
                total.impressions,
                counts.late,
                counts.unfilled,
                dict(counts.reasons),
                len(state.joiner.open),
                state.joiner.given_up,
                counts.set_aside,
                {kind: SignalStats(each.count, each.amount) for kind, each in sorted(counts.signals.items())},
                {ad: AdStats(*msgspec.structs.astuple(each)) for ad, each in sorted(counts.ads.items())},
                {"name": state.policy_name, **state.policy.describe()},
                state.calibration.reliability(),
                state.applied,
            )

    @routes.add("POST", "/snapshot", scope="admin", reply=SnapshotReply, statuses={503: "The disk refused."})
    def snapshot(call):
        """Save the state now."""
        return SnapshotReply(engine.snapshot())

    @routes.add("GET", "/help", scope=None, reply=dict[str, Any], compress=True)
    def help_page(call):
        """hug's own help: every handler with its usage. The contract is /openapi.json."""
        return routes.api.http.documentation()
