"Intervals hold the truth as often as they promise, in simulated worlds of patients."
import numpy as np
import pytest
from scipy.stats import binom

from smlxray.intervals import Support, bootstrap_patients, count_pairs, patient_interval
from smlxray.metrics import EpisodeScores

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

def intervals(world):
    "Bootstrap of a level, and the new intervals of a level and of a gain."
    first, second, who = world.play()
    k, y = world.shots, np.repeat([1, 0], QUERIES)
    asked = who[:, 2 * k :]
    supports = [Support(w[: 2 * k], np.repeat([1, 0], k)) for w in who]
    one, two = ([EpisodeScores(*e) for e in zip(s, [y] * len(s), asked)] for s in (first, second))
    bootstrap = bootstrap_patients(count_pairs(first, asked), 200)
    return bootstrap, patient_interval(one, supports), patient_interval(one, supports, two)

def truth(**setting):
    "Mean AUC of the first method, and its gain, over many worlds."
    levels = []
    for seed in range(1500):
        first, second, who = World([1, seed], **setting).play(6)
        asked = who[:, 2 * setting['shots'] :]
        levels.append([count_pairs(s, asked).auc for s in (first, second)])
    first, second = np.mean(levels, 0)
    return first, first - second

@pytest.mark.parametrize('setting', [
    dict(positives=60, negatives=200, shots=7),
    dict(positives=25, negatives=120, shots=7),
    dict(positives=60, negatives=200, shots=1),
    dict(positives=60, negatives=200, shots=7, tails=3),
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
