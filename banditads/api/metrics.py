"""GET /metrics, for Prometheus."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from itertools import accumulate

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from .. import parsing, stats, wire
from ..diagnosis import CODES
from .policies import standings

MAX_ADS = 1000  # ads with a label of their own, by id; /stats has all of them
BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)  # seconds
BOUNDS = [*map(str, BUCKETS), "+Inf"]
TEXT = "text/plain; version=0.0.4; charset=utf-8"


def mount(routes, engine) -> None:  # noqa: D103
    registry, times = CollectorRegistry(), _Times()
    registry.register(times)
    registry.register(_State(engine, routes.door))
    routes.observe = times.observe

    @routes.add("GET", "/metrics", scope="admin", produces=TEXT, compress=True)
    def metrics(call):
        """Counters and gauges in Prometheus' text format."""
        return wire.Reply(generate_latest(registry), content_type=TEXT)


class _Times:
    """Time to answer a request, by method, route and status.

    prometheus_client's own `Histogram` says the same for .8 us a request instead of .3.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.rows: dict[tuple[str, str, int], list[float]] = {}  # a count each bucket; the sum; since when

    def observe(self, method: str, path: str, status: int, seconds: float) -> None:
        with self.lock:
            row = self.rows.get((method, path, status))
            if row is None:
                row = self.rows[method, path, status] = [0.0] * (len(BUCKETS) + 2) + [time.time()]
            row[bisect_left(BUCKETS, seconds)] += 1
            row[-2] += seconds

    def collect(self):
        with self.lock:
            rows = [(key, list(row)) for key, row in self.rows.items()]
        name, labels = "banditads_request_seconds", ("method", "route", "status")
        family = HistogramMetricFamily(name, "Time to answer a request, by route and status.", labels=labels)
        for (method, path, status), (*counts, total, created) in rows:
            said = (method, path, str(status))
            family.add_metric(said, list(zip(BOUNDS, accumulate(counts), strict=True)), total)
            family.add_sample(f"{name}_created", dict(zip(labels, said, strict=True)), created)
        yield family


class _State:
    """Reads the engine's state when it is asked."""

    def __init__(self, engine, door) -> None:
        self.engine, self.door = engine, door

    def collect(self):
        engine = self.engine
        with engine.lock:
            state = engine.state
            total = state.stats.total
            counters = {
                "choices": ("Decisions made.", total.choices),
                "rewards": ("Rewards that came in time.", total.rewards),
                "expired": ("Decisions that nobody rewarded in time.", total.expired),
                "impressions": ("Ads reported as seen.", total.impressions),
                "late_rewards": ("Rewards that came after their window.", state.stats.late),
                "unfilled": ("Requests for which nothing was eligible.", state.stats.unfilled),
                "given_up": ("Decisions that had to stop waiting early.", state.joiner.given_up),
                "set_aside": ("Decisions that spoilt the model and were not learned.", state.stats.set_aside),
                "forgotten": ("Settled decisions forgotten to make room.", state.joiner.forgotten),
                "users_forgotten": ("Users forgotten to make room.", state.users.forgotten),
                "connections_cut": ("Connections whose request did not arrive in time.", self.door.cut),
                "unwritten_choices": ("Choices served though the disk refused them.", engine.unwritten),
            }
            gauges = {
                "reward_sum": ("Sum of the rewards that came in time.", total.reward_sum),
                "pending": ("Decisions that wait for a reward.", len(state.joiner.open)),
                "pending_limit": ("Of those, at most.", state.joiner.max_open),
                "pending_bytes": ("What they take, in packed bytes.", state.joiner.open_bytes),
                "pending_bytes_limit": ("Of those bytes, at most.", state.joiner.max_open_bytes),
                "settled": ("Settled decisions remembered.", len(state.joiner.done)),
                "settled_limit": ("Of those, at most.", state.joiner.max_done),
                "requests_remembered": ("Request ids remembered.", len(state.joiner.requests)),
                "ads": ("Ads in the catalog.", len(state.catalog.ads)),
                "ads_limit": ("Of those, at most.", parsing.MAX_ADS),
                "ads_counted": ("Ads with counts of their own.", len(state.stats.ads)),
                "ads_counted_limit": ("Of those, at most; the rest count together.", stats.MAX_ADS),
                "users": ("Users of whom a profile is kept.", len(state.users.profiles)),
                "users_limit": ("Of those, at most.", state.users.max_users),
                "users_bytes": ("What their profiles take, packed.", state.users.bytes),
                "journal_offset": ("Offset of the next event.", state.applied),
                "snapshot_offset": ("Offset of the newest snapshot.", engine.snapshot_offset),
                "ready": ("1 when rewards are accepted.", 0.0 if engine.trouble() else 1.0),
            }
            facts = GaugeMetricFamily("banditads_policy", "What the policy says of itself.", labels=["fact"])
            for fact, value in state.policy.describe().items():
                if isinstance(value, int | float):
                    facts.add_metric([fact], value)
            standing = standings(engine)
            signals = [(kind, each.count, each.amount) for kind, each in state.stats.signals.items()]
            by_ad = [(ad, each.choices, each.reward_sum) for ad, each in state.stats.ads.items()][:MAX_ADS]
        for name, (text, value) in counters.items():
            yield CounterMetricFamily(f"banditads_{name}", text, value=value)
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(f"banditads_{name}", text, value=value)
        refused = CounterMetricFamily(
            "banditads_refused_at_the_door", "Requests that no route saw, by status.", labels=["status"]
        )
        for status, count in sorted(self.door.refused.items()):
            refused.add_metric([str(status)], count)
        yield refused
        yield facts
        values = GaugeMetricFamily("banditads_policy_value", "Rewards a decision.", labels=["policy"])
        gains = GaugeMetricFamily(
            "banditads_policy_gain_low", "More than the champion, at least.", labels=["policy"]
        )
        decides = GaugeMetricFamily("banditads_policy_decides", "1 of the champion.", labels=["policy"])
        for each in standing.policies:
            if each.value is not None:
                values.add_metric([each.name], each.value)
            if each.gain_low is not None:
                gains.add_metric([each.name], each.gain_low)
            decides.add_metric([each.name], float(each.name == standing.champion))
        yield from (values, gains, decides)
        alarm = GaugeMetricFamily("banditads_alarm", "1 while /readyz says this.", labels=["code"])
        raised = {each.code for each in engine.alarms()}
        for code in CODES:
            alarm.add_metric([code], float(code in raised))
        yield alarm
        happened = CounterMetricFamily("banditads_signals", "What visitors did.", labels=["kind"])
        amounts = GaugeMetricFamily("banditads_signal_value", "Money or seconds of it.", labels=["kind"])
        for kind, count, amount in signals:
            happened.add_metric([kind], count)
            amounts.add_metric([kind], amount)
        yield happened
        yield amounts
        choices = CounterMetricFamily("banditads_ad_choices", "Decisions by ad.", labels=["ad"])
        rewards = GaugeMetricFamily("banditads_ad_reward_sum", "Rewards by ad.", labels=["ad"])
        for ad, chosen, earned in by_ad:
            choices.add_metric([ad], chosen)
            rewards.add_metric([ad], earned)
        yield choices
        yield rewards
