"""Four regressors, stacked by how well they predict; the ad whose reward may still be the highest is shown.

No single model is safe everywhere. One ridge regression per ad is the best where the world is linear; one on
random cosines of the context where it is not; a logistic regression on all products of a visitor's and an
ad's features where ads are many and clicks are few, and for ads that are new; and an ad's mere reward rate
where nothing else can be known. The reward is regressed on the four, online and by how often the ad was
shown, so each is trusted as far as it has been right, and all of them together no further than the data bear;
what a recommender says of an ad, if it says anything, is one more. Where ads are a crowd, more than it has
room for one by one, Vowpal Wabbit's regression joins, which knows any number of them by their features; and
the doubt about one ad counts as far as models are trusted that know each ad by itself. On MovieLens, with
1,682 films, that made .68 clicks a visit of .62; `vw` alone earns .69.

How unsure an ad's estimate is comes from its ridge regression, taken as if features were independent, and
from the noise of rewards, so that rare clicks are not explored as if they were frequent ones. The more of the
rewards the models explain, the more is explored: where visitors and ads tell much, one more look at an ad
teaches much, and where a click is mostly chance, next to nothing. Decisions that still wait for their reward
count as if they had come as expected: nobody is shown the same ad again and again until the first click
arrives. There is no regret bound: the width is below what theory asks for, because it
earns more. Thompson sampling on the same estimates was tried, and earned less, mostly where ads are many.

Memory is bounded: an ad takes 170 KB, and of names and words that are many some share their weights.

Sources: Li, Chu, Langford, Schapire 2010 (arXiv:1003.0146, LinUCB); Rahimi, Recht 2007 (NeurIPS:
random Fourier features); Breiman 1996 (stacked regressions); McMahan et al. 2013 (KDD: clicks on ads); Duchi,
Hazan, Singer 2011 (AdaGrad); Weinberger et al. 2009 (arXiv:0902.2206, hashing).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from math import asinh, exp, isfinite, isnan, log, pi, sqrt
from typing import Any, NamedTuple, TypeAlias
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

# A call of these takes a fourth of numpy's time for so few numbers.
from scipy.linalg.blas import dger, saxpy, sdot, sgemv, sger, sspmv, sspr  # type: ignore[import-untyped]
from scipy.linalg.lapack import dgesv  # type: ignore[import-untyped]

from ..events import Ad, Features, Saved, apart
from ..features import tokens
from ..scaling import Scale
from . import Floats, check_ranges, vw

LIBRARIES = ("numpy", "scipy", "vowpalwabbit")
EXAMPLES: tuple[dict[str, Any], ...] = (
    {"width": 0.1, "epsilon": 0.1, "bandwidth": 1.5},
    {"dim": 16, "kernel": 16, "bits": 6, "seed": 7},
    {"max_ads": 4, "ridge": 1.0, "learning_rate": 0.5, "memory": 300},
)

Singles: TypeAlias = NDArray[np.float32]
Places: TypeAlias = NDArray[np.int64]
Slate: TypeAlias = tuple[Sequence[Ad], Places, Singles]
Token: TypeAlias = str | tuple[str] | tuple[str, str]  # a number, that there is one, a word

PLACES = 2**16  # scales and counts that are kept; names that meet in one place share theirs
KEPT = 10_000  # ads whose features are kept hashed
COLUMNS = 128  # numbers that an ad is hashed into for the shared model
MODELS = 6  # linear, kernel, shared, rate, that of a crowd, and what a recommender says
EQUAL = np.array([0.25, 0.25, 0.25, 0.25, 0.0, 0.0])  # (MODELS,), trust before anything is learned
CROWDED = np.array([0.2, 0.2, 0.2, 0.2, 0.2, 0.0])  # (MODELS,), the same where ads are a crowd
PULL = np.eye(MODELS)  # towards that
OWN = np.array([1.0, 1.0, 0.0, 1.0, 0.0, 0.0])  # (MODELS,), whether a model knows each ad by itself
STAGES = 8  # an ad is in stage k after 2 ** (k - 1) rewards: trust depends on it
SPILL = 0.5  # what is seen in one stage counts so much in the next, and that squared in the one beyond
OFTEN, SELDOM = 200, 8  # rewards after which trust is renewed at every eighth one only
EXPLAINED = 2.0  # times that variance counts which models explain; 1 earns less with many ads, 4 with words
PRIOR = 5.0  # rewards that an ad's rate begins with, all of them average
SPAN = 0.7  # cosines are up to exp(SPAN) times as wide or as narrow as the bandwidth
RARE = 0.01  # share of visitors who have a word, from which on it may have a slot of its own
UNSEEN = Scale()
SPARK = np.float32(0.01)  # AdaGrad begins with squared gradients of this sum
SPILLS = SPILL ** np.abs(np.subtract.outer(np.arange(STAGES), np.arange(STAGES)))  # (STAGES, STAGES)
NOT_ASKED: tuple[None, Sequence[Ad], Floats] = None, (), np.zeros(0)
NO_SLATE: Slate = (), np.zeros(0, np.int64), np.zeros((0, COLUMNS), np.float32)
BY_ROW = ("weights", "cosines", "variances", "linear", "kernels", "rates", "stages")


class Read(NamedTuple):
    """A context as the models see it."""

    linear: Singles  # (n,), the constant first; of mean squared length 1
    kernel: Singles  # (kernel,), random cosines, and a constant
    rows: Places  # (n_features,), of the shared model
    values: Singles  # (n_features,), of length 1


class Kept(NamedTuple):
    """An ad as the shared model sees it."""

    ad: Ad
    columns: Places  # (n_columns,)
    values: Singles  # (n_columns,), of length 1
    row: Singles  # (COLUMNS,), the same with all that are 0
    unknown: bool  # some of its words have no column yet


class Policy:
    """Stacked regressors with upper confidence bounds.

    Parameters
    ----------
    width
        How far above its estimate an ad is judged, in standard deviations where rewards are a toss-up that
        nothing explains, in [0, 100]: more explores more.
    epsilon
        Share of choices spread evenly over all ads, in [0, 1].
    dim
        Numbers that a context may become, with the constant, 2 to 512; beyond, names share. Time and memory
        grow with the square of how many there are.
    kernel
        Random cosines of the context, with a constant, 2 to 1024. Memory of an ad grows with its square.
    bandwidth
        How far apart two contexts must lie not to be alike, in mean distances, in [0.01, 100].
    ridge
        Strength of the pull of an ad's weights towards 0, in rewards, in [1e-3, 1e6].
    learning_rate
        First step of the weights that ads share, in [1e-6, 10].
    bits
        They are a table with 2 ** bits rows of 128, 4 to 16.
    memory
        Rewards after which a model's mistake is forgotten, 10 to 1e9.
    max_ads
        Ads with weights of their own; beyond, the one that learned longest ago has to start again from
        what ads share.
    seed
        Of the random cosines, 0 to 2 ** 32 - 1.

    Attributes
    ----------
    waiting
        Choices that wait for their reward, by ad id. Not learned and not dumped: who knows says it.
    sound
        Whether everything that the last step touched is finite.

    >>> policy, ads = Policy(epsilon=0.1), [Ad("shoes"), Ad("hats")]
    >>> for reward, pick in ((1.0, 1), (0.0, 0)) * 20:
    ...     policy.learn({"device": "mobile"}, ads, pick=pick, reward=reward, propensity=0.5)
    >>> policy.pmf({"device": "mobile"}, ads).round(3)
    array([0.05, 0.95])
    >>> round(policy.expected({"device": "mobile"}, ads, pick=1), 1)
    1.0
    """

    _asked: tuple[Features | None, Sequence[Ad], Floats]  # no context is None

    def __init__(
        self,
        *,
        width: float = 0.25,
        epsilon: float = 0.01,
        dim: int = 256,
        kernel: int = 128,
        bandwidth: float = 1.0,
        ridge: float = 0.3,
        learning_rate: float = 0.4,
        bits: int = 12,
        memory: int = 1000,
        max_ads: int = 256,
        seed: int = 0,
    ) -> None:
        check_ranges(
            ("width", width, 0.0, 100.0),
            ("epsilon", epsilon, 0.0, 1.0),
            ("dim", dim, 2, 512),
            ("kernel", kernel, 2, 1024),
            ("bandwidth", bandwidth, 0.01, 100.0),
            ("ridge", ridge, 1e-3, 1e6),
            ("learning_rate", learning_rate, 1e-6, 10.0),
            ("bits", bits, 4, 16),
            ("memory", memory, 10, 10**9),
            ("max_ads", max_ads, 1, 10**5),
            ("seed", seed, 0, 2**32 - 1),
        )
        self.width, self.epsilon, self.dim, self.kernel = width, epsilon, dim, kernel
        self.bandwidth, self.ridge, self.learning_rate = bandwidth, ridge, learning_rate
        self.mask, self.memory, self.max_ads = 2**bits - 1, memory, max_ads
        self.waiting: Mapping[str, int] = {}
        # The last cosine is that of 0, a constant.
        dice = np.random.Generator(np.random.PCG64(seed))
        lengths = np.exp(dice.uniform(-SPAN, SPAN, kernel)) / bandwidth
        directions = (dice.standard_normal((kernel, dim)) * lengths[:, None]).astype(np.float32)
        self.phases = dice.uniform(0, 2 * pi, kernel).astype(np.float32)
        directions[:, 0] = directions[-1] = self.phases[-1] = 0.0
        self.directions = directions.T.copy()  # (dim, kernel): few numbers of a context are not 0
        self.heights = np.full(kernel, sqrt(2 / kernel), np.float32)
        self.heights[-1] = 1.0
        self.diagonal = _diagonal(dim)

        self.learned = 0  # rewards
        self.earned = 0.0  # their sum
        self.length = 0.0  # sum of squared lengths of contexts
        # Recent rewards; squares of what was wrong with estimates, and with the average reward.
        self.noise = np.array([5.0, 5 * 0.25, 5 * 0.25])
        self.scales: dict[int, Scale] = {}  # of the numbers in contexts, by hashed name
        self.counts: dict[int, int] = {}  # of the words in contexts, by hash
        self.slots: dict[int, int] = {}  # hash -> where it stands in a context, 1 to dim - 1
        self.columns: dict[int, int] = {}  # hash -> where it stands in an ad, 1 to COLUMNS - 1
        self.shared = np.zeros((2**bits, COLUMNS), np.float32)  # weights of visitor x ad features
        self.squares = np.zeros((2**bits, COLUMNS), np.float32)  # sums of their squared gradients
        self.stack = np.zeros((STAGES, MODELS * (MODELS + 1)))  # both of these
        stack = self.stack.reshape(STAGES, MODELS, MODELS + 1)
        self.gram = stack[:, :, :-1]  # of the models' estimates, in units of the noise
        self.moment = stack[:, :, -1]  # of them and the rewards, likewise
        self.fades = 1 - SPILLS[:, :, None] / memory  # what is kept of each stage when one learns
        # Row 0 is that of an ad which never learned. Rows are never empty: the first ones that are taken are.
        self.rows: OrderedDict[str, int] = OrderedDict()  # ad id -> its row; learned longest ago first
        self.weights = np.zeros((1, dim), np.float32)
        self.cosines = np.zeros((1, kernel), np.float32)
        self.variances = np.zeros((1, dim), np.float32)  # diagonals of what follows
        self.linear = np.zeros((1, dim * (dim + 1) // 2), np.float32)  # inverse Gram matrices, packed
        self.kernels = np.zeros((1, kernel * (kernel + 1) // 2), np.float32)
        self.rates = np.zeros((1, 2))  # rewards, and their sum
        self.stages = np.zeros(1, np.int64)
        self.crowd: vw.Policy | None = None  # once there were more ads than rows
        self.trust: Floats = np.asfortranarray(np.repeat(EQUAL[:, None], STAGES, axis=1))
        self._begin(0)
        self._start()

    def pmf(self, context: Features, ads: Sequence[Ad]) -> Floats:
        """The ads with the highest bound, and `epsilon` for all, shape (n_ads,)."""
        read = self._read(context)
        estimates, rows = self._estimates(context, read, ads)
        self._asked = context, ads, estimates
        variances = self.variances[:, : len(read.linear)][rows] @ np.square(read.linear)
        if self.waiting:
            waiting = self.waiting
            variances /= 1 + variances * np.array([waiting.get(ad.id, 0) for ad in ads])
        # With the variance of rewards and not their standard deviation, which among ads that 1 % click made
        # rare clicks a quarter fewer: it explored them too much.
        rewards, wrong, varied = self.noise.tolist()
        spread = np.sqrt(variances) * (
            4 * self.width * (wrong + EXPLAINED * max(0.0, varied - wrong)) / rewards
        )
        if self.crowd:  # what is known of them together is not as unsure as each is by itself
            spread *= (OWN @ self.trust)[self.stages[rows]]
        bounds = estimates + spread
        top = bounds.max()
        if isnan(top):
            return np.full(len(ads), top)
        best = bounds == top
        return best * ((1 - self.epsilon) / np.count_nonzero(best)) + self.epsilon / len(ads)

    def expected(self, context: Features, ads: Sequence[Ad], pick: int) -> float | None:
        """What the models say together, within [0, 1]."""
        asked, among, estimates = self._asked
        if asked is not context or among is not ads:
            estimates = self._estimates(context, self._read(context), ads)[0]
        return min(1.0, max(0.0, float(estimates[pick])))

    def learn(
        self, context: Features, ads: Sequence[Ad], pick: int, reward: float, propensity: float
    ) -> None:
        """One step of each model, and of how far each is trusted, for the ad that was picked."""
        plain, advice = apart(ads)
        ad, average = plain[pick], self._average()
        self._asked = NOT_ASKED
        self._meet(context)
        slots, numbers, rows, values = self._vector(context)
        self.learned += 1
        self.length += sdot(numbers, numbers)
        read = Read(*self._scaled(slots, numbers), rows, values)
        kept, row, size = self._ad(ad, learn=True), self._row(ad.id), len(read.linear)
        weights, variances, cosines = self.weights[row, :size], self.variances[row, :size], self.cosines[row]
        shown, earned = self.rates[row].tolist()
        linear, kernel = sdot(weights, read.linear), sdot(cosines, read.kernel)
        cells = np.add.outer(rows * COLUMNS, kept.columns)
        shared, squares = self.shared.take(cells), self.squares.take(cells)
        logit = log(average / (1 - average)) + sdot(values, shared.dot(kept.values))
        click = 1 / (1 + exp(-max(-20.0, min(20.0, logit))))
        error = reward - average
        said = (
            linear,
            kernel,
            click - average,
            (earned + PRIOR * average) / (shown + PRIOR) - average,
            self.crowd.estimates(context, ads[pick : pick + 1])[0] - average if self.crowd else 0.0,
            1 / (1 + exp(-advice[pick])) - average if advice else 0.0,
            error,
        )
        self._weigh(int(self.stages[row]), np.array(said))

        _regress(self.linear[row], weights, read.linear, error - linear)
        _regress(self.kernels[row], cosines, read.kernel, error - kernel)
        self.linear[row].take(self.diagonal[:size], out=variances, mode="clip")
        gradient = sger(click - reward, kept.values, values).T
        self._descend(cells, shared, squares, gradient)
        self.rates[row] = shown + 1, earned + reward
        self.stages[row] = min(STAGES - 1, int(shown + 1).bit_length())
        self.earned += reward

        if self.crowd:
            self.crowd.learn(context, ads, pick, reward, propensity)
        left = sdot(variances, variances) + sdot(cosines, cosines)
        left += sdot(values, (shared + squares).dot(kept.values))
        self._look(left, context, ads[pick : pick + 1])

    def correct(
        self,
        context: Features,
        ads: Sequence[Ad],
        pick: int,
        *,
        reward: float,
        propensity: float,
        before: float,
    ) -> None:
        """Learn that a choice earned `reward`, which had been learned as `before`.

        Regressions per ad and what they are trusted for are sums, to which the difference is added. Weights
        that ads share go a second step, so that both together are one; a crowd learns the choice again.
        """
        ad, more, average = apart(ads)[0][pick], reward - before, self._average()
        read = self._read(context)
        row, size, one = self.rows.get(ad.id, 0), len(read.linear), ads[pick : pick + 1]
        linear = sspmv(size, 1.0, self.linear[row], read.linear)
        if not row or sdot(linear, read.linear) >= 1:  # it was forgotten since, and knows nothing of this
            self.learn(context, ads, pick, reward, propensity)
            return
        self._asked = NOT_ASKED
        kept = self._ad(ad)
        weights, cosines = self.weights[row, :size], self.cosines[row]
        cells = np.add.outer(read.rows * COLUMNS, kept.columns)
        shared, squares = self.shared.take(cells), self.squares.take(cells)
        products = np.outer(read.values, kept.values)
        shown, earned = self.rates[row].tolist()

        # What the models would have said, had they not learned of this choice already. With what they say now
        # a demo's visitors clicked a tenth less.
        said = self._said(context, read, one)[0][:, 0]
        kernel = sspmv(self.kernel, 1.0, self.kernels[row], read.kernel)
        for model, gain, x in ((0, linear, read.linear), (1, kernel, read.kernel)):
            share = min(0.9, sdot(gain, x))  # of what it says is from this choice
            said[model] = max(-1.0, min(1.0, (said[model] - share * (before - average)) / (1 - share)))
        click = min(max(float(said[2]) + average, 1e-9), 1 - 1e-9)
        step = np.square(products) * (click - before) / np.sqrt(squares + SPARK)
        logit = log(click / (1 - click)) + self.learning_rate * float(step.sum())
        said[2] = 1 / (1 + exp(-max(-20.0, min(20.0, logit)))) - average
        said[3] = (earned - before - average * (shown - 1)) / (shown - 1 + PRIOR)
        stage = min(STAGES - 1, int(shown - 1).bit_length())
        off = reward - average - float(said @ self.trust[:, stage])
        self.noise[1:] += more * (2 * off - more), more * (2 * (reward - average) - more)
        # Of many that are corrected together the first have faded: a twentieth of the variance is left.
        least = 0.05 * self.noise[0] * max(average * (1 - average), 1e-3)
        np.maximum(self.noise[1:], least, out=self.noise[1:])
        noise = self.noise[1] / self.noise[0]
        self.moment += np.multiply.outer(SPILLS[stage], said * (more / noise))

        weights += linear * more
        cosines += kernel * more
        self._descend(cells, shared, squares, products * -more)
        self.rates[row, 1] += more
        self.earned += more
        if self.crowd:
            self.crowd.learn(context, ads, pick, reward, propensity)
        left = sdot(weights, weights) + sdot(cosines, cosines) + shared.sum() + squares.sum()
        self._look(left, context, one)

    def dump(self) -> Saved:
        """Counts; scales and names; the shared table; stacking; rows of ads."""
        used = np.flatnonzero(self.squares.any(axis=1))
        n = len(self.rows) + 1
        return [
            [self.learned, self.earned, self.length, self.noise.tobytes()],
            [list(each.items()) for each in (self.scales, self.counts, self.slots, self.columns)],
            [each.tobytes() for each in (used, self.shared[used], self.squares[used])],
            [self.gram.tobytes(), self.moment.tobytes(), self.trust.tobytes()],
            list(self.rows.items()),
            [getattr(self, name)[:n, :size].tobytes() for name, size in self._sizes().items()],
            self.crowd.dump() if self.crowd else None,
        ]

    def load(self, saved: Saved) -> None:
        """The inverse of `dump`."""
        (self.learned, self.earned, self.length, noise), names, table, stack, rows, by_row, crowd = saved
        self.crowd = _crowd() if crowd else None
        if self.crowd:
            self.crowd.load(crowd)
        self.noise = np.frombuffer(noise).copy()
        scales, self.counts, self.slots, self.columns = map(dict, names)
        self.scales = {place: Scale(*scale) for place, scale in scales.items()}
        used = np.frombuffer(table[0], np.int64)
        for into, raw in ((self.shared, table[1]), (self.squares, table[2])):
            into[:] = 0.0
            into[used] = np.frombuffer(raw, np.float32).reshape(-1, COLUMNS)
        self.gram[:] = np.frombuffer(stack[0]).reshape(self.gram.shape)
        self.moment[:] = np.frombuffer(stack[1]).reshape(self.moment.shape)
        self.rows = OrderedDict(rows)
        for (name, size), raw in zip(self._sizes().items(), by_row, strict=True):
            table = getattr(self, name)[:1].repeat(len(rows) + 1, axis=0)  # as nobody has changed it
            table[:, :size] = np.frombuffer(raw, table.dtype).reshape(-1, size)
            setattr(self, name, table)
        self.stages = np.minimum(np.frexp(self.rates[:, 0])[1].astype(np.int64), STAGES - 1)
        self._start()
        # Lying as `_weigh` leaves it: BLAS adds what lies otherwise in another order.
        self.trust = np.asfortranarray(np.frombuffer(stack[2]).reshape(self.trust.shape))

    def describe(self) -> dict[str, Any]:
        """The options, how much was learned, and how far each model is trusted for well-known ads."""
        linear, kernel, shared, rate, crowd, advice = self.trust[:, -1].round(3).tolist()
        return {
            "width": self.width,
            "epsilon": self.epsilon,
            "dim": self.dim,
            "kernel": self.kernel,
            "bandwidth": self.bandwidth,
            "ridge": self.ridge,
            "learning_rate": self.learning_rate,
            "memory": self.memory,
            "max_ads": self.max_ads,
            "learned": self.learned,
            "ads": len(self.rows),
            "scales": len(self.scales),
            "trust_linear": linear,
            "trust_kernel": kernel,
            "trust_shared": shared,
            "trust_rate": rate,
            "trust_crowd": crowd,
            "trust_advice": advice,
        }

    def _size(self) -> int:
        """Numbers of a context: as many as there are slots, in steps of 16; the first is the constant."""
        return min(self.dim, (len(self.slots) + 18) // 16 * 16)

    def _sizes(self) -> dict[str, int]:
        """How much of each table by row has ever changed."""
        n = self._size()
        return {
            "weights": n,
            "cosines": self.kernel,
            "variances": n,
            "linear": n * (n + 1) // 2,
            "kernels": self.kernels.shape[1],
            "rates": 2,
        }

    def _start(self) -> None:
        """What is made from the rest, and kept for speed."""
        self._hashes: dict[Token, int] = {}
        self._places: dict[Token, tuple[int, int]] = {}
        self._asked = NOT_ASKED
        self.sound = True
        self._kept: OrderedDict[str, Kept] = OrderedDict()  # by ad id; least recently used first
        self._slate = NO_SLATE  # the last long one, the rows of its ads, and they for the shared model

    # What is said

    def _average(self) -> float:
        """Reward of any ad, in (0, 1)."""
        return (self.earned + 0.05) / (self.learned + 1.0001)

    def _estimates(self, context: Features, read: Read, ads: Sequence[Ad]) -> tuple[Floats, Places]:
        """(expected reward of each ad, their rows), shape (n_ads,) each."""
        said, rows = self._said(context, read, ads)
        said *= self.trust[:, self.stages[rows]]
        estimates: Floats = np.add.reduce(said)
        estimates += self._average()
        return estimates, rows

    def _said(self, context: Features, read: Read, ads: Sequence[Ad]) -> tuple[Floats, Places]:
        """(what each model says of each ad, beyond the average, shape (MODELS, n_ads); their rows)."""
        plain, advice = apart(ads)
        rows, columns = self._rows(plain)
        average, rates = self._average(), self.rates[rows]
        said = np.empty((MODELS, len(ads)))
        said[0] = self.weights[:, : len(read.linear)][rows] @ read.linear
        said[1] = self.cosines[rows] @ read.kernel
        logits = columns @ (read.values @ self.shared[read.rows])
        logits += np.float32(log(average / (1 - average)))
        said[2] = 1 / (1 + np.exp(-logits))
        said[2] -= average
        said[3] = (rates[:, 1] - average * rates[:, 0]) / (rates[:, 0] + PRIOR)
        said[4] = np.array(self.crowd.estimates(context, ads)) - average if self.crowd else 0.0
        said[5] = 1 / (1 + np.exp(np.negative(advice))) - average if advice else 0.0
        return said, rows

    def _look(self, left: float, context: Features, shown: Sequence[Ad]) -> None:
        """Whether a step left nothing that is not finite: in a sum it leaves no other number."""
        left += self.noise[1] + self.trust.sum()
        if self.crowd:
            left += self.crowd.estimates(context, shown)[0]
        self.sound = isfinite(left)

    def _descend(self, cells: Places, shared: Singles, squares: Singles, gradient: Singles) -> None:
        """A step of AdaGrad for these cells of the table that ads share, whose weights and sums are given."""
        squares += gradient * gradient
        shared -= gradient * self.learning_rate / np.sqrt(squares + SPARK)
        self.shared.ravel()[cells], self.squares.ravel()[cells] = shared, squares

    def _weigh(self, stage: int, said: Floats) -> None:
        """How far each model is to be trusted: ridge regression on what they said, towards equal trust.

        Last in `said` is what all of them together should have been.
        """
        models, error = said[:-1], float(said[-1])
        wrong = error - float(models.dot(self.trust[:, stage]))
        keep = 1 - 1 / self.memory
        self.noise *= keep
        self.noise += 1.0, wrong * wrong, error * error
        noise = max(self.noise[1] / self.noise[0], 1e-4)
        products = dger(1 / noise, said, models).ravel("F")  # as in a row of the stack
        self.stack *= self.fades[stage]
        dger(1.0, products, SPILLS[stage], a=self.stack.T, overwrite_a=1)
        if self.learned > OFTEN and self.learned % SELDOM:
            return  # 45 us, and changes little by then
        equal = CROWDED if self.crowd else EQUAL
        each = zip(self.gram + PULL, self.moment + equal, strict=True)
        trust = np.maximum(np.array([dgesv(*one)[2] for one in each]).T, 0.0)
        self.trust = trust / np.maximum(np.add.reduce(trust), 1.0)

    # What is read

    def _meet(self, context: Features) -> None:
        """Learn scales and slots of a context."""
        seen, full = self.learned + 1, len(self.slots) >= self.dim - 1
        for name, value in context.items():
            if isinstance(value, str):
                if full:
                    continue
                key = self._hash((name, value))
                if key in self.slots:
                    continue
                place = key % PLACES
                count = self.counts[place] = self.counts.get(place, 0) + 1
                # The first half of the slots is for whoever comes, the other for what comes often.
                if len(self.slots) >= self.dim // 2 and (count < 3 or count < RARE * seen):
                    continue
            else:
                key = self._hash(name)
                place = key % PLACES
                scale = self.scales[place] = self.scales.get(place, UNSEEN).after(value)
                if scale.seen < seen:
                    self._slot(self._hash((name,)))
            self._slot(key)

    def _slot(self, key: int) -> None:
        """Its own place in contexts, for as long as there are any."""
        if key not in self.slots and len(self.slots) < self.dim - 1:
            self.slots[key] = len(self.slots) + 1
            self._places.clear()

    def _vector(self, context: Features) -> tuple[Places, Singles, Places, Singles]:
        """The numbers of a context that are not 0, and their slots; rows of the shared model, and values."""
        numbers, rows, values = {0: 1.0}, [0], [1.0]
        places, find = self._places, self._place
        for name, value in context.items():
            if isinstance(value, str):
                slot, row = places.get((name, value)) or find((name, value))
                number = 1.0
            else:
                scale = self.scales.get(self._hash(name) % PLACES)
                if scale is None:
                    continue
                number = scale.of(value)
                if scale.seen < self.learned:  # some come without it: that it is there tells something
                    slot, row = places.get((name,)) or find((name,))
                    numbers[slot] = numbers.get(slot, 0.0) + 1.0
                    rows.append(row)
                    values.append(1.0)
                slot, row = places.get(name) or find(name)
            numbers[slot] = numbers.get(slot, 0.0) + number
            rows.append(row)
            values.append(number)
        numbers[0] = 1.0
        found = np.array(values, np.float32)
        found *= 1 / sqrt(sdot(found, found))
        return np.array([*numbers]), np.array([*numbers.values()], np.float32), np.array(rows), found

    def _place(self, token: Token) -> tuple[int, int]:
        """(slot, row) of a word, a number, or that there is a number."""
        key = self._hash(token)
        if len(self._places) >= PLACES:
            self._places.clear()
        others = len(self.slots) if len(self.slots) >= self.dim - 1 else 0
        slot = self.slots.get(key) or (1 + key % others if others else 0)
        found = self._places[token] = slot, key & self.mask
        return found

    def _scaled(self, slots: Places, numbers: Singles) -> tuple[Singles, Singles]:
        """A context of mean length 1, and random cosines of it, both with a constant."""
        square = self.length / self.learned if self.learned else 2.0
        x = np.zeros(self._size(), np.float32)
        x[slots] = numbers * (1 / sqrt(max(square, 1.0)))
        directions = self.directions.take(slots, axis=0)
        cosines: Singles = sgemv(1 / sqrt(max(square - 1, 0.5)), directions.T, numbers)
        cosines += self.phases
        np.cos(cosines, out=cosines)
        cosines *= self.heights
        return x, cosines

    def _read(self, context: Features) -> Read:
        slots, numbers, rows, values = self._vector(context)
        return Read(*self._scaled(slots, numbers), rows, values)

    def _hash(self, token: Token) -> int:
        found = self._hashes.get(token)
        if found is None:
            if len(self._hashes) >= PLACES:
                self._hashes.clear()
            found = self._hashes[token] = crc32(repr(token).encode())
        return found

    # What is known of ads

    def _ad(self, ad: Ad, learn: bool = False) -> Kept:
        """An ad for the shared model; its words get columns while there are any, if it is to `learn`."""
        kept = self._kept.get(ad.id)
        if kept is None or kept.unknown or (kept.ad is not ad and kept.ad.features != ad.features):
            numbers, unknown = {0: 1.0}, False
            for token, value in [("=" + ad.id, 1.0), *tokens(ad.features)]:
                key = crc32(token.encode())
                column = self.columns.get(key)
                if column is None and len(self.columns) >= COLUMNS - 1:
                    column = 1 + key % (COLUMNS - 1)
                elif column is None and learn:
                    column = self.columns[key] = len(self.columns) + 1
                    self._slate = NO_SLATE
                if column is None:
                    unknown = True
                else:
                    numbers[column] = numbers.get(column, 0.0) + (value if "=" in token else asinh(value))
            columns, values = np.array([*numbers]), np.array([*numbers.values()], np.float32)
            values *= 1 / sqrt(sdot(values, values))
            row = np.zeros(COLUMNS, np.float32)
            row[columns] = values
            kept = self._kept[ad.id] = Kept(ad, columns, values, row, unknown)
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(ad.id)
        return kept

    def _rows(self, ads: Sequence[Ad]) -> tuple[Places, Singles]:
        """(row of each ad, all for the shared model); at once for a tuple that was asked for last time."""
        if ads is self._slate[0]:
            return self._slate[1:]
        rows, columns = self._rows_of(ads), np.array([self._ad(ad).row for ad in ads])
        if isinstance(ads, tuple) and len(ads) > 1:  # a correction asks about one
            self._slate = ads, rows, columns
        return rows, columns

    def _row(self, name: str) -> int:
        """The row of an ad that learns; a new one takes the next, or that of who learned longest ago."""
        if name in self.rows:
            self.rows.move_to_end(name)
            return self.rows[name]
        if len(self.rows) < self.max_ads:
            row = len(self.rows) + 1
            if row == len(self.stages):
                for each in BY_ROW:
                    old = getattr(self, each)
                    new = np.zeros((min(2 * row + 6, self.max_ads + 1), *old.shape[1:]), old.dtype)
                    new[:row] = old
                    setattr(self, each, new)
        else:
            row = self.rows.popitem(last=False)[1]
            self.crowd = self.crowd or _crowd()
        self.rows[name] = row
        self._begin(row)
        ads, _, columns = self._slate
        self._slate = ads, self._rows_of(ads), columns  # a fifth of making all of it anew
        return row

    def _rows_of(self, ads: Sequence[Ad]) -> Places:
        return np.array([self.rows.get(ad.id, 0) for ad in ads], np.int64)

    def _begin(self, row: int) -> None:
        """What is believed of an ad that was never shown."""
        for each in BY_ROW:
            getattr(self, each)[row] = 0
        self.variances[row] = self.linear[row, self.diagonal] = 1 / self.ridge
        self.kernels[row, _diagonal(self.kernel)] = 1 / self.ridge


def _crowd() -> vw.Policy:
    """It knows any number of ads by their features, and learns unweighted, from those that were shown."""
    return vw.Policy(exploration="epsilon", min_propensity=1.0)


def _regress(inverse: Singles, weights: Singles, x: Singles, error: float) -> None:
    """Recursive least squares: the inverse Gram matrix by Sherman and Morrison, in place.

    It is packed by columns of its upper half, so one of fewer numbers is the beginning of one of more.
    """
    gain = sspmv(len(x), 1.0, inverse, x)
    shrink = 1 / (1 + max(0.0, sdot(gain, x)))
    weights[:] = saxpy(gain, weights, a=error * shrink)
    sspr(len(x), -shrink, gain, inverse, overwrite_ap=1)


def _diagonal(n: int) -> Places:
    """Where the diagonal of a symmetric matrix lies, packed by columns of its upper half; shape (n,)."""
    return np.cumsum(range(1, n + 1)) - 1
