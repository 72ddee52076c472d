"""An evaluation finds the values that the test built into its log."""

import subprocess
import sys
from itertools import islice
from pathlib import Path

import msgspec
import numpy as np
import pytest
from conftest import Clock
from rich.console import Console

from banditads import logs, ope, policies, report, server
from banditads.choosing import Request
from banditads.errors import Invalid, Misconfigured
from banditads.evaluation import LOGGED, Result, evaluate
from banditads.events import Ad, Chosen, Settled
from banditads.policies import parse
from banditads.selecting import Selection
from banditads.settings import Settings

ADS = tuple(Ad(name, {"kind": name}) for name in ("boots", "hats", "tea", "toys"))
SITES = ("cold", "warm")
MEANS = {"cold": np.array([0.7, 0.3, 0.5, 0.1]), "warm": np.array([0.1, 0.5, 0.2, 0.6])}  # of each ad
TARGET = {"cold": np.array([0.6, 0.1, 0.2, 0.1]), "warm": np.array([0.1, 0.2, 0.1, 0.6])}  # policy to judge
SKEWED = {
    "cold": np.array([0.1, 0.2, 0.3, 0.4]),
    "warm": np.array([0.4, 0.3, 0.2, 0.1]),
}  # policy that logged
EVEN = dict.fromkeys(SITES, np.full(4, 0.25))
TRUTH = float(np.mean([TARGET[site] @ MEANS[site] for site in SITES]))


def log(seed, n, logging=EVEN):
    """n interactions, half of them cold, as a server with these propensities would have had them."""
    rng = np.random.default_rng(seed)
    sites, draws, rewards = rng.integers(2, size=n), rng.random(n), rng.random(n)
    for number, (site, draw, reward) in enumerate(zip(sites, draws, rewards, strict=True)):
        pmf, means = logging[SITES[site]], MEANS[SITES[site]]
        pick = int((draw >= pmf.cumsum()[:-1]).sum())
        choice = Chosen(
            at=float(number),
            event_id=f"{seed}-{number}",
            ads=tuple(ad.id for ad in ADS),
            pmf=pmf.tobytes(),
            pick=pick,
            context={"site": SITES[site]},
        )
        yield Settled(choice, ADS, float(reward < means[pick]), float(number))


class Fixed:
    """A policy that never learns; or, given nothing sensible, never makes sense."""

    def __init__(self, pmfs):
        self.pmfs = pmfs

    def pmf(self, context, ads):
        return self.pmfs[context["site"]]

    def learn(self, *_):
        pass


class Greedy:
    """The best average of each site so far, and now and then any ad."""

    def __init__(self):
        self.sum, self.count = np.zeros((2, 4)), np.ones((2, 4))
        self.propensities = []

    def pmf(self, context, ads):
        site = SITES.index(context["site"])
        pmf = np.full(4, 0.05)
        pmf[(self.sum[site] / self.count[site]).argmax()] += 0.8
        return pmf

    def learn(self, context, ads, pick, reward, propensity):
        site = SITES.index(context["site"])
        self.sum[site, pick] += reward
        self.count[site, pick] += 1
        self.propensities.append(propensity)


def fixed(spec):
    return Fixed({"target": TARGET, "even": EVEN}[spec])


@pytest.mark.parametrize("logging", [EVEN, SKEWED], ids=["even", "skewed"])
def test_every_estimate_finds_the_true_value(logging):
    _, result = evaluate(log(1, 20_000, logging), ["target"], make=fixed)

    assert list(result.estimates) == ope.names()
    assert result.estimates["dm"].value == pytest.approx(TRUTH, abs=0.02)
    for name in set(ope.names()) - {"dm"}:
        estimate = result.estimates[name]
        assert estimate.low < TRUTH < estimate.high
        assert estimate.high - estimate.low < 0.06
    assert result.anytime.low < TRUTH < result.anytime.high
    assert result.anytime.high - result.anytime.low < 0.1
    assert result.replay_enough
    assert result.weights_enough
    assert result.notes == ()


@pytest.mark.parametrize("logging", [EVEN, SKEWED], ids=["even", "skewed"])
def test_intervals_hold_the_truth_19_times_in_20(logging, monkeypatch):
    monkeypatch.setattr("banditads.evaluation.POINTS", 1)  # curves take most of the time
    names = "replay", "ips", "snips", "dr", "sndr"
    held, always = np.zeros(5), 0
    for seed in range(200):
        _, result = evaluate(log(seed, 500, logging), ["target"], make=fixed)
        held += [result.estimates[name].low < TRUTH < result.estimates[name].high for name in names]
        always += result.anytime.low < TRUTH < result.anytime.high

    assert (np.abs(held / 200 - 0.95) <= 0.04).all(), held
    assert always >= 190


@pytest.mark.parametrize(("logging", "rate"), [(EVEN, 0.25), (SKEWED, 0.1)], ids=["even", "skewed"])
def test_accepted_rounds_are_a_run_of_the_policy_itself(logging, rate):
    seen = {site: np.zeros(4) for site in SITES}

    class Witness(Fixed):
        def learn(self, context, ads, pick, reward, propensity):
            if propensity == self.pmfs[context["site"]][pick]:  # its own, not the logged one
                seen[context["site"]][pick] += 1

    _, result = evaluate(log(2, 30_000, logging), ["target"], make=lambda _: Witness(TARGET))

    assert result.match_rate == pytest.approx(
        rate, abs=0.01
    )  # on an even log 1 / n_ads, else the smallest propensity
    if logging is SKEWED:
        for site in SITES:
            assert seen[site] / seen[site].sum() == pytest.approx(TARGET[site], abs=0.03)


def test_learning_beats_not_learning():
    results = evaluate(
        log(3, 8000), ["greedy", "even"], make=lambda spec: Greedy() if spec == "greedy" else fixed(spec)
    )
    logged, greedy, even = results

    assert greedy.replay.low > even.replay.high
    assert greedy.snips.low > even.snips.high
    best = np.mean([max(MEANS[site]) for site in SITES])
    assert 0.8 * best < greedy.replay.value < best
    assert logged.replay.low < even.replay.value < logged.replay.high


def test_one_copy_learns_everything_with_logged_propensities_the_other_its_own_run():
    made = []

    def make(_):
        made.append(Greedy())
        return made[-1]

    _, result = evaluate(log(4, 2000, SKEWED), ["greedy"], make=make)
    learner, player = made

    assert learner.propensities == [each.choice.probability for each in log(4, 2000, SKEWED)]
    assert len(player.propensities) == result.accepted
    assert set(player.propensities) <= {0.05, 0.05 + 0.8}


def test_a_policy_is_asked_before_it_is_told():
    said = []

    class Diary(Fixed):
        def pmf(self, context, ads):
            said.append("asked")
            return EVEN["cold"]

        def learn(self, *_):
            said.append("told")

    evaluate(log(5, 1), ["diary"], make=lambda _: Diary(EVEN))

    assert said[:2] == ["asked", "told"]


def test_the_logged_policy_comes_first_and_is_simply_averaged():
    rounds = list(log(6, 3000, SKEWED))
    logged, _ = evaluate(rounds, ["even"], make=fixed)
    rewards = np.array([each.reward for each in rounds])

    assert logged.policy == LOGGED
    assert logged.replay.value == logged.ips.value == rewards.mean()
    assert logged.estimates["dr"].value == pytest.approx(rewards.mean())
    assert logged.replay.high - logged.replay.value == pytest.approx(1.96 * rewards.std(ddof=1) / 3000**0.5)
    assert (logged.accepted, logged.match_rate) == (3000, 1.0)
    assert (logged.effective_sample_size, logged.largest_weight) == (3000, 1.0)


def test_the_same_seed_gives_the_same_bits_and_another_one_does_not():
    def run(seed):
        return msgspec.json.encode(evaluate(log(7, 1500), ["greedy"], seed=seed, make=lambda _: Greedy()))

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_curves_end_at_the_estimates():
    for result in evaluate(log(8, 3000), ["target"], make=fixed):
        assert len(result.replay_curve) == len(result.snips_curve) == 200
        assert result.replay_curve[-1].rounds == 3000
        assert result.replay_curve[-1].estimate == result.replay
        assert result.snips_curve[-1].estimate == result.snips
        assert result.snips_curve[0].rounds == 15


@pytest.mark.parametrize("n", [0, 1, 2, 5])
def test_short_logs_say_little_but_break_nothing(n):
    results = evaluate(log(9, n), ["target"], make=fixed)

    assert [each.rounds for each in results] == [n, n]
    assert not any(each.replay_enough or each.weights_enough for each in results)
    assert msgspec.json.decode(msgspec.json.encode(results), type=list[Result]) == results


def test_a_log_that_gave_some_ad_no_chance_cannot_be_replayed():
    never = {site: np.array([0.5, 0.5, 0.0, 0.0]) for site in SITES}
    _, result = evaluate(log(10, 500, never), ["target"], make=fixed)

    assert result.accepted == 0
    assert result.replay.value is None
    assert "nothing to replay" in result.notes[0]


def test_a_log_that_hardly_shows_some_ads_is_found_out():
    hardly = {site: np.array([0.999, 0.00099, 0.000005, 0.000005]) for site in SITES}
    _, result = evaluate(log(17, 8000, hardly), ["target"], make=fixed)

    assert result.effective_sample_size > 100
    assert not result.weights_enough
    assert "weights average 0.48, not 1" in result.notes[-1]


def test_rewards_reach_policies_between_0_and_1_and_estimates_in_their_own_unit():
    told = []

    class Ear(Fixed):
        def learn(self, context, ads, pick, reward, propensity):
            told.append(reward)

    rounds = [msgspec.structs.replace(each, reward=each.reward * 20 - 10) for each in log(11, 400)]
    _, result = evaluate(rounds, ["even"], reward_min=-10, reward_max=10, make=lambda _: Ear(EVEN))

    assert set(told) == {0.0, 1.0}
    assert result.ips.value == pytest.approx(np.mean([each.reward for each in rounds]))
    with pytest.raises(Invalid, match=r"not in 0\.0"):
        evaluate(rounds, ["even"], make=fixed)


@pytest.mark.parametrize(
    "bad", [np.full(3, 1 / 3), np.array([1, 0, 0, np.nan]), np.array([2, -1, 0, 0]), np.full(4, 0.2)]
)
def test_what_is_no_distribution_is_not_evaluated(bad):
    with pytest.raises(ArithmeticError, match="policy odd gave"):
        evaluate(log(12, 1), ["odd"], make=lambda _: Fixed(dict.fromkeys(SITES, bad)))


def test_a_propensity_that_cannot_be_is_refused():
    (first,) = log(12, 1)
    choice = msgspec.structs.replace(first.choice, pmf=np.zeros(4).tobytes())

    with pytest.raises(Invalid, match=r"12-0 has the propensity 0\.0"):
        evaluate([msgspec.structs.replace(first, choice=choice)], ["even"], make=fixed)


def test_progress_is_heard():
    heard = []
    evaluate(log(13, 250), [], progress=heard.append)

    assert heard == [100, 200, 250]


def test_specs_are_parsed():
    assert parse("uniform") == ("uniform", {})
    assert parse("vw:epsilon=0.2, bits=18 ,exploration=squarecb,flag=true,rate=1e-3") == (
        "vw",
        {"epsilon": 0.2, "bits": 18, "exploration": "squarecb", "flag": True, "rate": 0.001},
    )


@pytest.mark.parametrize("spec", ["vw:epsilon", "vw:=1", "vw:a=1,a=2", "vw:a=1,"])
def test_specs_that_are_none_are_refused(spec):
    with pytest.raises(Misconfigured, match="wanted name:option=value"):
        parse(spec)


@pytest.mark.parametrize("spec", ["magic", "uniform:speed=9"])
def test_unknown_policies_and_options_are_refused_before_the_log_is_read(spec):
    def unread():
        raise AssertionError
        yield

    with pytest.raises(Misconfigured):
        evaluate(unread(), [spec])


@pytest.mark.parametrize("name", policies.names())
def test_every_policy_can_be_evaluated_and_repeats_itself(name):
    first = evaluate(log(14, 300), [name])

    assert msgspec.json.encode(first) == msgspec.json.encode(evaluate(log(14, 300), [name]))
    assert first[1].snips.value is not None


def test_the_random_log_judges_the_uniform_policy_as_it_was():
    logged, even = evaluate(logs.read("random/men"), ["uniform"])

    assert logged.replay.value == even.ips.value == 0.0046
    assert even.effective_sample_size == 10_000
    assert even.match_rate == pytest.approx(1 / 34, abs=0.005)


def test_the_bts_log_of_women_has_not_enough_to_say_about_the_uniform_policy():
    _, even = evaluate(logs.read("bts/women"), ["uniform"])

    assert round(even.effective_sample_size) == 2
    assert round(even.largest_weight) == 21739
    assert not even.weights_enough
    assert not even.replay_enough


def test_a_report_prints_only_what_may_be_said(tmp_path):
    reports = report.run(["bts/women", "random/women"], ["uniform"], limit=10_000)
    console = Console(width=80, record=True, file=(tmp_path / "out").open("w"))
    report.show(reports, console)
    console.file.close()
    text = console.export_text()

    assert "bts/women, 10,000 rounds, seed 0" in text
    assert text.count("to say") == 4  # all three of bts, and the replay of random: 213 rounds, no click
    assert "21,739" in text
    assert "± 0.0013" in text
    assert all(len(line.rstrip()) <= 80 for line in text.splitlines())


def test_a_report_is_json_and_markdown(tmp_path):
    reports = report.run(["random/men"], ["uniform"], limit=300)
    console = Console(width=200, record=True, file=(tmp_path / "out").open("w"))
    report.show(reports, console, markdown=True)
    console.file.close()

    assert "| logged  |" in console.export_text()
    assert msgspec.json.decode(msgspec.json.encode(reports), type=list[report.Report]) == reports


@pytest.mark.parametrize("end", ["png", "svg"])
def test_a_plot_is_saved(end, tmp_path):
    results = evaluate(log(15, 2000), ["target", "even"], make=fixed)
    short = evaluate(log(15, 5), ["target", "even"], make=fixed)
    report.plot([report.Report("even", 0, results), report.Report("short", 0, short)], tmp_path / f"x.{end}")

    assert (tmp_path / f"x.{end}").stat().st_size > 10_000


def test_a_plot_without_matplotlib_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)

    with pytest.raises(Misconfigured, match=r"banditads\[plots\]"):
        report.plot([], tmp_path / "x.png")


def test_the_benchmark_runs():
    script = Path(__file__).parent.parent / "benchmarks" / "replay.py"
    done = subprocess.run(
        [sys.executable, script, "--quick", "--policy", "uniform", "--json"],
        capture_output=True,
        check=True,
        cwd=script.parent.parent,
        env={"PYTHONPATH": "."},
    )
    first, _ = msgspec.json.decode(done.stdout, type=list[report.Report])

    assert first.log == "random/men"
    assert first.results[0].rounds == len(list(islice(logs.read("random/men"), 1000)))


def test_a_data_directory_knows_its_own_range_of_rewards(tmp_path):
    settings = Settings(data_dir=str(tmp_path / "data"), policy="uniform", reward_max=5.0)
    with server.opened(settings) as engine:
        engine.put_ads([Ad("a")])
        for n in range(5):
            engine.choose(Request(), f"e{n}")
            engine.reward(f"e{n}", 4.0)
    (found,) = report.run([str(tmp_path / "data")], ["uniform"])
    assert found.results[0].estimates["ips"].value == 4.0
    with pytest.raises(Invalid, match="reward"):
        report.run([str(tmp_path / "data")], ["uniform"], reward_max=3.0)


def test_a_report_says_how_many_decisions_still_wait_where_they_are_many(tmp_path):
    """Of 40 decisions 10 were clicked and 30 wait: what is judged earned 1 each, all of them .25."""
    settings = Settings(data_dir=str(tmp_path / "data"), policy="uniform", reward_wait=100.0)
    with server.opened(settings) as engine:
        engine.clock = clock = Clock()
        engine.put_ads([Ad("a"), Ad("b")])
        for n in range(100):  # of these all are settled
            engine.choose(Request(), f"old{n}")
        clock.now += 1000.0
        for n in range(40):
            engine.choose(Request(), f"e{n}")
            if n % 4 == 0:
                engine.reward(f"e{n}", 1.0)
    folder = str(tmp_path / "data")
    recent = Selection(since=clock.now)
    (found,) = report.run([folder], ["uniform"], selection=recent)
    (note,) = found.notes

    assert (found.waiting, found.results[0].rounds, found.results[0].replay.value) == (30, 10, 1.0)
    assert "30 of 40 decisions had not settled where reading stopped and are left out" in note
    assert "mostly those that clicked" in note
    assert f"made before {clock.now:.0f} none waits" in note
    console = Console(width=80, record=True, file=(tmp_path / "out").open("w"))
    report.show([found], console)
    console.file.close()
    assert note in " ".join(console.export_text().split())
    assert msgspec.json.decode(msgspec.json.encode(found), type=report.Report).notes == (note,)

    (all_of_it,) = report.run([folder], ["uniform"])  # 21 % wait
    (settled,) = report.run([folder], ["uniform"], selection=Selection(until=clock.now))
    (beginning,) = report.run([folder], ["uniform"], limit=100)  # when the last of these expired, one was new
    assert (len(all_of_it.notes), all_of_it.waiting) == (1, 30)
    assert (settled.notes, settled.waiting, settled.results[0].rounds) == ((), 0, 100)
    assert (beginning.notes, beginning.results[0].rounds) == ((), 100)


def test_a_feature_that_no_round_has_is_named_and_refused():
    with pytest.raises(Misconfigured, match="devise"):
        report.run(["random/men"], ["uniform"], limit=50, selection=Selection(by="devise"))
