"""GET /metrics, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from .. import parsing, stats, wire
from ..diagnosis import CODES

MAX_ADS = 1000  # ads with a label of their own, by id; /stats has all of them
BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)  # seconds
TEXT = "text/plain; version=0.0.4; charset=utf-8"


def mount(routes, engine) -> None:  # noqa: D103
    registry = CollectorRegistry()
    requests = Histogram(
        "banditads_request_seconds",
        "Time to answer a request, by route and status.",
        ("method", "route", "status"),
        registry=registry,
        buckets=BUCKETS,
    )
    registry.register(_State(engine, routes.door))
    children = {}  # looking one up by label costs more than observing

    def observe(method: str, path: str, status: int, seconds: float) -> None:
        key = (method, path, status)
        child = children.get(key) or children.setdefault(key, requests.labels(method, path, status))
        child.observe(seconds)

    routes.observe = observe

    @routes.add("GET", "/metrics", scope="admin", produces=TEXT)
    def metrics(call):
        """Counters and gauges in Prometheus' text format."""
        return wire.Reply(generate_latest(registry), content_type=TEXT)


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
                "connections_cut": ("Connections whose request did not arrive in time.", self.door.cut),
                "unwritten_choices": ("Choices served though the disk refused them.", engine.unwritten),
            }
            gauges = {
                "reward_sum": ("Sum of the rewards that came in time.", total.reward_sum),
                "pending": ("Decisions that wait for a reward.", len(state.joiner.open)),
                "pending_limit": ("Of those, at most.", state.joiner.max_open),
                "pending_bytes": ("What they take, as bytes in the journal.", state.joiner.open_bytes),
                "pending_bytes_limit": ("Of those bytes, at most.", state.joiner.max_open_bytes),
                "settled": ("Settled decisions remembered.", len(state.joiner.done)),
                "settled_limit": ("Of those, at most.", state.joiner.max_done),
                "requests_remembered": ("Request ids remembered.", len(state.joiner.requests)),
                "ads": ("Ads in the catalog.", len(state.catalog.ads)),
                "ads_limit": ("Of those, at most.", parsing.MAX_ADS),
                "ads_counted": ("Ads with counts of their own.", len(state.stats.ads)),
                "ads_counted_limit": ("Of those, at most; the rest count together.", stats.MAX_ADS),
                "journal_offset": ("Offset of the next event.", state.applied),
                "snapshot_offset": ("Offset of the newest snapshot.", engine.snapshot_offset),
                "ready": ("1 when rewards are accepted.", 0.0 if engine.trouble() else 1.0),
            }
            facts = GaugeMetricFamily("banditads_policy", "What the policy says of itself.", labels=["fact"])
            for fact, value in state.policy.describe().items():
                if isinstance(value, int | float):
                    facts.add_metric([fact], value)
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
        alarm = GaugeMetricFamily("banditads_alarm", "1 while /readyz says this.", labels=["code"])
        raised = {each.code for each in engine.alarms()}
        for code in CODES:
            alarm.add_metric([code], float(code in raised))
        yield alarm
        choices = CounterMetricFamily("banditads_ad_choices", "Decisions by ad.", labels=["ad"])
        rewards = GaugeMetricFamily("banditads_ad_reward_sum", "Rewards by ad.", labels=["ad"])
        for ad, chosen, earned in by_ad:
            choices.add_metric([ad], chosen)
            rewards.add_metric([ad], earned)
        yield choices
        yield rewards
