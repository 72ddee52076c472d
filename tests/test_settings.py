"""A setting comes from a flag, the environment, a file or its default; a wrong one is refused by name."""

import pytest

from banditads import settings
from banditads.errors import Misconfigured
from banditads.settings import load


def test_a_flag_beats_the_environment_which_beats_the_file_which_beats_the_default(tmp_path):
    file = tmp_path / "banditads.toml"
    file.write_text('port = 1\nthreads = 1\npolicy = "linucb"\n[policy_options]\ndim = 8\n')
    found = load(str(file), {"BANDITADS_PORT": "2", "BANDITADS_THREADS": "2"}, {"port": "3"})

    assert (found.port, found.threads, found.policy, found.policy_options) == (3, 2, "linucb", {"dim": 8})
    assert found.fsync == "always"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"policy_options": {"epsilon": 0.2}}, "--option was empty and is now epsilon=0.2"),
        ({"reward_wait": 60.5}, "--reward-wait was 600 and is now 60.5"),
        ({"default_reward": 0.1}, "--default-reward was 0 and is now 0.1"),
        ({"reward_min": -1.0}, "--reward-min was 0 and is now -1"),
        ({"reward_max": 5.0}, "--reward-max was 1 and is now 5"),
        ({"reward_aggregation": "sum"}, "--reward-aggregation was earliest and is now sum"),
        ({"max_pending": 9}, "--max-pending was 1000000 and is now 9"),
        ({"max_pending_bytes": 9}, "--max-pending-bytes was 1073741824 and is now 9"),
        ({"max_settled": 9}, "--max-settled was 1000000 and is now 9"),
        ({"max_users": 9}, "--max-users was 1000000 and is now 9"),
        ({"user_half_life": 86400.0}, "--user-half-life was 2592000 and is now 86400"),
        ({"recommender": "crosses"}, "--recommender was empty and is now crosses"),
        ({"recommender_options": {"bits": 10}}, "--recommender-option was empty and is now bits=10"),
        ({"advise": True}, "--advise was no and is now yes"),
        ({"silence": "immediate"}, "--silence was wait and is now immediate"),
        ({"challengers": "linucb uniform"}, "--challengers was empty and is now linucb uniform"),
    ],
)
def test_another_configuration_is_told_in_the_names_and_values_of_settings(changed, said):
    """Of everything that the state depends on, there and back."""
    from banditads.server import new_state

    def identity(**given):
        given = {"policy": "vw", **given}
        return new_state(settings.Settings(data_dir="/nowhere", **given)).identity

    usual, other = identity(), identity(**changed)
    assert settings.differences(usual, other) == [said]
    before, after = said.split(" was ")[1].split(" and is now ")
    assert settings.differences(other, usual) == [f"{said.split()[0]} was {after} and is now {before}"]


def test_a_newer_library_and_another_floor_are_told_too():
    was = {"libraries": {"river": "0.26"}, "challengers": ["logistic"], "floor": 0.1}
    now = {"libraries": {"river": "0.27"}, "challengers": ["logistic"], "floor": 0.2}

    assert settings.differences(was, now) == [
        "--floor was 0.1 and is now 0.2",
        "the version of river was 0.26 and is now 0.27",
    ]


@pytest.mark.parametrize(
    "given", ["linucb,vw", "linucb, vw", "vw:bits=10,epsilon=0.1,linucb", "linucb,vw:bits=10"]
)
def test_challengers_with_commas_between_them_are_told_to_take_spaces(given):
    with pytest.raises(Misconfigured, match="separated by spaces, not by commas"):
        load(flags={"challengers": given})
    assert load(flags={"challengers": "vw:bits=10,epsilon=0.1 linucb"}).challengers.endswith(" linucb")


OWN = {  # what may not be any value of its kind
    "segment_bytes": "4096",
    "reward_min": "-0.5",
    "reward_max": "1.5",
    "max_scored": "500",
    "proposals": "16",
    "reward_aggregation": "sum",
    "silence": "immediate",
    "promote": "auto",
    "click_reward": "0.5",
    "conversion_reward": "value / 100",
    "dwell_reward": "value*2",
    "cors_origins": "https://shop.test http://127.0.0.1:8000",
}


@pytest.mark.parametrize("row", list(settings.rows()), ids=lambda row: row.name)
def test_every_setting_can_be_given_everywhere_and_has_help(row, tmp_path):
    text = {"yes or no": "true", "duration": "10s", "integer": "1", "number": "0.5", "options": "a=1"}.get(
        row.kind, "always" if row.name == "fsync" else "word"
    )
    text = OWN.get(row.name, text)
    file = tmp_path / "banditads.toml"
    plain = ("integer", "number", "yes or no")
    value = text if row.kind in plain else "{a = 1}" if row.kind == "options" else f'"{text}"'
    file.write_text(f"{row.name} = {value}\n")
    by_file, by_environment = load(str(file)), load("", {f"BANDITADS_{row.name.upper()}": text})

    assert by_file == by_environment
    assert len(row.help) > 20


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"BANDITADS_PORT": "http"}, "port"),
        ({"BANDITADS_PORT": "70000"}, "port"),
        ({"BANDITADS_REWARD_WAIT": "10 parsecs"}, "reward_wait"),
        ({"BANDITADS_REWARD_WAIT": "0"}, "reward_wait"),
        ({"BANDITADS_FSYNC": "never"}, "fsync"),
        ({"BANDITADS_FLOOR": "nan"}, "floor"),
        ({"BANDITADS_KEEP_JOURNAL": "perhaps"}, "keep_journal"),
        ({"BANDITADS_PROT": "1"}, "BANDITADS_PORT"),
        ({"BANDITADS_port": "1"}, "BANDITADS_port"),
        ({"BANDITADS_REWARD_MIN": "1"}, "reward_min"),
        ({"BANDITADS_DEFAULT_REWARD": "2"}, "default_reward"),
        ({"BANDITADS_POLICY_OPTIONS": "epsilon"}, "policy_options"),
        ({"BANDITADS_POLICY_OPTIONS": "a=1 a=2"}, "policy_options"),
        ({"BANDITADS_MAX_SCORED": "499"}, "max_scored"),
        ({"BANDITADS_PROPOSALS": "600", "BANDITADS_MAX_SCORED": "500"}, "proposals"),
        ({"BANDITADS_SALT": "é" * 40}, "salt"),
        ({"BANDITADS_REWARD_AGGREGATION": "last"}, "reward_aggregation"),
        ({"BANDITADS_CLICK_REWARD": "one"}, "click_reward"),
        ({"BANDITADS_CONVERSION_REWARD": "value / 0"}, "conversion_reward"),
        ({"BANDITADS_CONVERSION_REWARD": "value + 1"}, "conversion_reward"),
        ({"BANDITADS_DWELL_REWARD": "1e999"}, "dwell_reward"),
        ({"BANDITADS_CORS_ORIGINS": "*"}, "cors_origins"),
        ({"BANDITADS_CORS_ORIGINS": "https://shop.test/"}, "cors_origins"),
        ({"BANDITADS_CORS_ORIGINS": "null"}, "cors_origins"),
        ({"BANDITADS_SALT": "x\udc9c"}, "salt"),  # a byte of the environment that is no UTF-8
    ],
)
def test_a_wrong_setting_is_refused_by_name(given, named):
    with pytest.raises(Misconfigured, match=named):
        load("", given)


@pytest.mark.parametrize(
    "text", ["prot = 1", "port = '80'", "port = 1.5", "port =", "[fsync]\na = 1", "threads = true"]
)
def test_a_wrong_file_is_refused(tmp_path, text):
    file = tmp_path / "banditads.toml"
    file.write_text(text)
    with pytest.raises(Misconfigured, match=r"banditads\.toml"):
        load(str(file))
    with pytest.raises(Misconfigured, match="cannot be read"):
        load(str(tmp_path / "missing.toml"))


def test_few_may_be_scored_where_a_recommender_learns_from_the_first_ad_on():
    few = {"BANDITADS_MAX_SCORED": "100", "BANDITADS_PROPOSALS": "32"}
    assert load("", {**few, "BANDITADS_RECOMMENDER": "hybrid"}).max_scored == 100
    with pytest.raises(Misconfigured, match="max_scored"):
        load("", few)


def test_somebody_elses_environment_is_not_ours():
    assert load("", {"PATH": "/bin", "BANDIT": "1"}) == load()


def test_an_option_is_one_value_whatever_is_in_it():
    assert settings.options(["a=1\nb=2"]) == {"a": "1\nb=2"}
