"""What obp 0.4.1 says of some rounds: writes `figures.json`, which `test_ope.py` compares with.

obp is not installed here; in an environment of its own, from the root of the repository:

    python3 -m venv .obp
    .obp/bin/pip install numpy scipy scikit-learn pandas matplotlib seaborn pyyaml torch
    .obp/bin/pip install --no-deps obp==0.4.1 && .obp/bin/python tests/golden/estimators/make.py
"""

import json
from pathlib import Path

import numpy as np

ARMS, LIMIT = 5, 3.0
FIGURES = Path(__file__).parent / "figures.json"


def columns(seed=7, n=1000):
    """Logged and judged distributions (n, 5), what a model expects (n, 5), what was shown and earned (n,)."""
    rng = np.random.default_rng(seed)
    mu, pi = rng.dirichlet(np.ones(ARMS), n), rng.dirichlet(np.ones(ARMS), n)
    arm = (rng.random(n)[:, None] < mu.cumsum(1)).argmax(1)
    return mu, pi, rng.random((n, ARMS)), arm, rng.random(n)


def main():
    import obp.ope as obp

    mu, pi, model, arm, reward = columns()
    row = np.arange(len(reward))
    made = {
        "ips": obp.InverseProbabilityWeighting(),
        "snips": obp.SelfNormalizedInverseProbabilityWeighting(),
        "dm": obp.DirectMethod(),
        "dr": obp.DoublyRobust(),
        "sndr": obp.SelfNormalizedDoublyRobust(),
        "switch_dr": obp.SwitchDoublyRobust(tau=LIMIT),
    }
    known = {
        "reward": reward,
        "action": arm,
        "position": np.zeros(len(reward), int),
        "pscore": mu[row, arm],
        "estimated_rewards_by_reg_model": model[:, :, None],
    }
    figures = {
        name: estimator.estimate_policy_value(action_dist=pi[:, :, None], **known)
        for name, estimator in made.items()
    }
    # obp 0.4.1 clips no weights: it gets propensities with which they are as if clipped.
    clipped = {**known, "pscore": np.maximum(mu[row, arm], pi[row, arm] / LIMIT)}
    figures["clipped_ips"] = made["ips"].estimate_policy_value(action_dist=pi[:, :, None], **clipped)
    certain = np.eye(ARMS)[pi.argmax(1)]  # obp replays only policies that do not throw dice
    figures["replay"] = obp.ReplayMethod().estimate_policy_value(action_dist=certain[:, :, None], **known)
    FIGURES.write_text(json.dumps(dict(sorted(figures.items())), indent=1) + "\n")


if __name__ == "__main__":
    main()
