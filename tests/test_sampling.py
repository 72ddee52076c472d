"""The dice are fair, and fall the same way twice."""

from hypothesis import given
from hypothesis import strategies as st

from banditads.sampling import pick, uniform


@given(st.text(), st.text(max_size=16))
def test_a_draw_depends_on_id_and_salt_alone_and_lies_in_range(event_id, salt):
    assert 0 <= uniform(event_id, salt) < 1
    assert uniform(event_id, salt) == uniform(event_id, salt)


def test_draws_are_uniform():
    draws = sorted(uniform(f"e{number}") for number in range(20_000))
    largest = max(abs(draw - rank / 20_000) for rank, draw in enumerate(draws))
    assert largest < 1.63 / 20_000**0.5  # Kolmogorov-Smirnov, 1 %


def test_salts_give_unrelated_draws():
    pairs = [(uniform(f"e{n}", "a") - 0.5) * (uniform(f"e{n}", "b") - 0.5) for n in range(20_000)]
    assert abs(sum(pairs) / len(pairs)) < 4 / 12 / 20_000**0.5


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=50).filter(lambda weights: sum(weights) > 0),
    st.floats(0, 1),
)
def test_a_pick_has_a_positive_probability_whatever_rounding_does(weights, u):
    total = sum(weights)
    pmf = [weight / total for weight in weights]
    assert pmf[pick(pmf, min(u, 1 - 2**-53))] > 0
