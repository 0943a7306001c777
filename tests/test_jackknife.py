"Intervals hold the truth as often as they promise, in simulated worlds of patients."
import numpy as np
import pytest
from scipy.stats import binom

from smlxray.base import DataError
from smlxray.intervals import bootstrap_patients
from smlxray.jackknife import (
    WayScores,
    block_auc,
    difference_p,
    generalised_aucs,
    grid_interval,
    patient_interval,
)
from smlxray.metrics import EpisodeScores, Support

WORLDS, EPISODES, QUERIES = 100, 100, 15

def cosines(x, shots):
    "Scores (E, 2Q) of prototypes for vectors (E, 2K + 2Q, D): the support comes first."
    x = x / np.linalg.norm(x, axis=2, keepdims=True)
    towards = x[:, :shots].mean(1) - x[:, shots : 2 * shots].mean(1)
    return np.einsum('eqd,ed->eq', x[:, 2 * shots :], towards)

class World:
    "Patients with one to four X-rays each, and the episodes that are drawn from them."

    def __init__(self, seed, positives, negatives, shots, tails=None):
        self.rng, self.shots, self.positives = np.random.default_rng(seed), shots, positives
        n = positives + negatives
        centre = self.draw(tails, n, 12)
        centre[:positives, 0] += 1.2
        self.count = 1 + (3 * self.rng.random(n) ** 2).astype(int)
        self.images = centre[:, None] + 0.5 * self.draw(tails, n, 4, 12)

    def draw(self, tails, *shape):
        if tails is None: return self.rng.normal(size=shape)
        return self.rng.standard_t(tails, shape) / np.sqrt(tails / (tails - 2))

    def play(self, episodes=EPISODES):
        "Scores of two methods (E, 2Q), and the patients: support first (E, 2K + 2Q)."
        sides = np.arange(self.positives), np.arange(self.positives, len(self.count))
        k, end = self.shots, self.shots + QUERIES
        yes, no = (self.rng.permuted(np.tile(s, (episodes, 1)), axis=1)[:, :end] for s in sides)
        who = np.c_[yes[:, :k], no[:, :k], yes[:, k:], no[:, k:]]
        x = self.images[who, (self.rng.random(who.shape) * self.count[who]).astype(int)]
        return cosines(x, k), cosines(x[..., :6], k), who

def episodes_of(scores, who, shots):
    "Answers of one method to the episodes of a world."
    y, shown = np.repeat([1, 0], QUERIES), np.repeat([1, 0], shots)
    return [
        EpisodeScores(s, y, w[2 * shots :], 'Edema', Support(w[: 2 * shots], shown))
        for s, w in zip(scores, who)
    ]

def intervals(world):
    "Bootstrap of a level, and the new intervals of a level and of a gain."
    *scores, who = world.play()
    one, two = (episodes_of(s, who, world.shots) for s in scores)
    return bootstrap_patients(one, 200), patient_interval(one), patient_interval(one, two)

def truth(**setting):
    "Mean AUC of the first method, and its gain, over many worlds."
    levels = []
    for seed in range(1500):
        first, second, _ = World([1, seed], **setting).play(6)
        levels.append([block_auc(s).mean() for s in (first, second)])
    first, second = np.mean(levels, 0)
    return first, first - second

def slow(**setting):
    return pytest.param(setting, marks=pytest.mark.slow)


@pytest.mark.parametrize('setting', [
    dict(positives=60, negatives=200, shots=7),
    slow(positives=25, negatives=120, shots=7),
    slow(positives=60, negatives=200, shots=1),
    slow(positives=60, negatives=200, shots=7, tails=3),
], ids=['60', '25', 'one-shot', 'tails'])
def test_intervals_over_patients_in_all_roles_cover(setting):
    level, gain = truth(**setting)
    held, width, values = np.zeros(3, int), [], []
    for seed in range(WORLDS):
        found = intervals(World([2, seed], **setting))
        held += [level in found[0], level in found[1], gain in found[2]]
        width.append([i.high - i.low for i in found[1:]])
        values.append([i.value for i in found[1:]])
    few = setting['positives'] < 40
    low, high = (0.91, 0.98) if few else (0.93, 0.97)
    least, most = binom.ppf(0.001, WORLDS, low), binom.ppf(0.999, WORLDS, high)
    assert (held[1:] >= least).all() and (held[1:] <= most).all(), held
    assert held[0] < least, f'the bootstrap over queries covers after all: {held}'
    relative = np.mean(width, 0) / 3.92 / np.std(values, 0)
    rough = 1.2  # so much may a deviation over a hundred worlds be off
    assert (relative < 1.25 * rough).all(), relative


def few(seed=0, episodes=6, patients=30, gain=1.0):
    "Episodes of two shots and four queries per class, of two findings."
    rng = np.random.default_rng(seed)
    y, shown, out = np.repeat([1, 0], 4), np.repeat([1, 0], 2), []
    for i in range(episodes):
        who = rng.permutation(patients)
        scores = rng.normal(size=8) + gain * y
        out.append(EpisodeScores(scores, y, who[:8], 'ab'[i % 2], Support(who[8:12], shown)))
    return out


def width(interval):
    return interval.high - interval.low


def test_splits_that_are_all_alike_add_nothing_to_one():
    one = few()
    same = grid_interval({(s, k): one for s in range(3) for k in range(2)})
    alone = patient_interval(one)
    assert same.value == pytest.approx(alone.value)
    assert width(same) == pytest.approx(width(alone), rel=0.02)


@pytest.mark.parametrize('keys', [[(0, 0), (0, 1), (0, 2)], [(0, 0), (1, 0), (2, 0)]])
def test_runs_that_differ_widen_the_interval(keys):
    near = {key: few(seed) for seed, key in enumerate(keys)}
    far = {key: few(seed, gain=3.0 * seed) for seed, key in enumerate(keys)}
    assert width(grid_interval(far)) > width(grid_interval(near))
    both = [np.mean([patient_interval(r).value for r in runs.values()]) for runs in (near, far)]
    assert [grid_interval(runs).value for runs in (near, far)] == pytest.approx(both)


@pytest.mark.parametrize(
    'splits, seeds, words',
    [
        (3, 2, '3 patient splits, 2 training seeds of each'),
        (1, 3, '3 training seeds; not another split'),
        (1, 1, 'another training seed'),
    ],
)
def test_a_grid_says_what_it_covers(splits, seeds, words):
    runs = {(s, k): few(3 * s + k) for s in range(splits) for k in range(seeds)}
    assert words in grid_interval(runs).covers


def test_nothing_moves_for_a_method_and_itself_and_signs_turn():
    one, two = few(0), few(0, gain=0.2)
    none, gain, loss = (patient_interval(*pair) for pair in ((one, one), (one, two), (two, one)))
    assert (none.value, none.low, none.high, difference_p(none)) == (0, 0, 0, 1)
    assert (gain.low, gain.high) == pytest.approx((-loss.high, -loss.low))
    assert difference_p(gain) == pytest.approx(difference_p(loss))


def test_answers_that_do_not_know_their_support_are_refused():
    bare = [EpisodeScores(e.scores, e.labels, e.patients, e.finding) for e in few()]
    with pytest.raises(DataError, match='needs the support of every episode'):
        patient_interval(bare)


def test_a_side_without_findings_is_left_out():
    rng = np.random.default_rng(0)
    y = np.repeat([[1.0, 0], [0, 1], [0, 0]], 4, 0)
    shown = Support(np.array([20, 21, 22]), np.array([[1.0, 0], [0, 1], [0, 0]]))
    scores, unseen = rng.normal(size=(12, 2)) + y, np.array([False, False])
    one = WayScores(scores, y, np.arange(12), ('a', 'b'), unseen, shown)
    assert set(generalised_aucs([one])) == {'seen', 'macro', 'micro'}
