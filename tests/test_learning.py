"""It learns: over HTTP, from visitors whose taste depends on who they are and when they come."""

from banditads.client import Client
from banditads.logs import open_bandit
from banditads.simulation import World, visits


def test_after_5000_visits_it_earns_at_least_half_again_as_much_as_random_ads(start):
    server = start("--catalog", "demo")
    world = World(open_bandit.items("all"), seed=1)
    with Client(server.url) as client:
        seen = list(visits(world, client.choose, client.reward, 5000))
    clicked, uniform = sum(visit.clicked for visit in seen), sum(visit.uniform for visit in seen)

    assert clicked >= 1.5 * uniform
    assert server.data("/stats")["reward_sum"] == clicked
    early, late = (sum(visit.expected for visit in part) for part in (seen[:1000], seen[-1000:]))
    assert late > 1.3 * early  # it goes on learning
