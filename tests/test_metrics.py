"Metrics against scikit-learn on random data full of ties, and the limits of the intervals."

import numpy as np
import pytest
from sklearn import metrics as sk
from smlxray.base import DataError
from smlxray.intervals import bootstrap_p, bootstrap_paired, bootstrap_patients, exchange_test
from smlxray.metrics import (
    EpisodeScores,
    auc,
    average_precision,
    balanced_accuracy,
    brier,
    choose_threshold,
    confusion_matrix,
    episode_mean,
    fit_temperature,
    prevalence_weights,
    reliability,
    roc_curve,
    shift_prevalence,
)

pytestmark = pytest.mark.light  # needs no torch


def sample(rng):
    n = int(rng.integers(2, 80))
    y = rng.permutation(np.r_[1, 0, rng.integers(0, 2, n - 2)])
    return (
        np.round(rng.normal(size=n) * 10 ** rng.uniform(-6, 6), int(rng.integers(0, 3))),
        y,
        rng.integers(0, 3, n) + 0.25,
    )


@pytest.mark.parametrize('seed', range(40))
def test_as_scikit_learn(seed):
    s, y, w = sample(np.random.default_rng(seed))
    assert abs(auc(s, y, w) - sk.roc_auc_score(y, s, sample_weight=w)) < 1e-12
    assert (
        abs(average_precision(s, y, w) - sk.average_precision_score(y, s, sample_weight=w)) < 1e-12
    )
    for ours, theirs in zip(
        roc_curve(s, y, w), sk.roc_curve(y, s, sample_weight=w, drop_intermediate=False)
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)
    p = s >= choose_threshold(s, y)
    assert np.array_equal(confusion_matrix(y, p), sk.confusion_matrix(y, p))
    assert abs(balanced_accuracy(y, p) - sk.balanced_accuracy_score(y, p)) < 1e-12


def test_zero_weight_is_absence():
    s, y, w = np.array([1.0, 2, 3, 4, 9]), np.array([0, 1, 0, 1, 0]), np.array([1, 1, 1, 1, 0])
    assert auc(s, y, w) == auc(s[:4], y[:4]) and average_precision(s, y, w) == average_precision(
        s[:4], y[:4]
    )
    with pytest.raises(DataError, match='both classes'):
        auc(s, y, y * 0 + (y == 1))


def few(patients, episodes=4, seed=0):
    rng = np.random.default_rng(seed)
    return [
        EpisodeScores(
            rng.normal(size=4) + [1, 1, 0, 0],
            [1, 1, 0, 0],
            rng.permutation(patients)[:4],
            'ab'[i % 2],
        )
        for i in range(episodes)
    ]


@pytest.mark.parametrize('measure', ['auc', 'ap'])
def test_classes_that_vanish_from_a_resample(measure):
    "Resamples without a positive or a negative drop out, and no number is lost or warned about."
    i = bootstrap_patients(few(4), 400, measure=measure)
    assert np.isnan(i.draws).any() and 0 <= i.low <= i.value <= i.high <= 1
    pair = bootstrap_paired(few(4), few(4), 400, measure=measure)
    assert (pair.value, pair.low, pair.high) == (0, 0, 0)


def test_order_and_names_of_patients_do_not_matter():
    eps = few(30, 12)
    flipped = [
        EpisodeScores(e.scores[::-1], e.labels[::-1], e.patients[::-1], e.finding) for e in eps
    ]
    named = [
        EpisodeScores(e.scores, e.labels, [f'{p:03d}' for p in e.patients], e.finding) for e in eps
    ]
    want = bootstrap_patients(eps, 200).draws
    for other in (flipped, named):
        np.testing.assert_allclose(bootstrap_patients(other, 200).draws, want, atol=1e-12)


def test_macro_mean_of_findings_with_uneven_episodes():
    eps = few(30, 12)
    uneven = eps + eps[::2] * 3  # more of one finding changes neither its mean nor the macro mean
    assert episode_mean(uneven) == pytest.approx(episode_mean(eps), abs=1e-12)
    np.testing.assert_allclose(
        bootstrap_patients(uneven, 200).draws, bootstrap_patients(eps, 200).draws, atol=1e-12
    )


def test_exchange_does_not_care_who_is_named_first_nor_for_the_scale():
    a, b = few(30, 6), few(30, 6, seed=1)
    b = [EpisodeScores(y.scores, x.labels, x.patients, x.finding) for x, y in zip(a, b)]
    louder = [EpisodeScores(100 * e.scores + 7, e.labels, e.patients, e.finding) for e in b]
    p = exchange_test(a, b, 500)
    assert 0 < p <= 1 and p == exchange_test(b, a, 500) == exchange_test(a, louder, 500)
    assert bootstrap_p(bootstrap_paired(a, b, 400)) == pytest.approx(
        bootstrap_p(bootstrap_paired(b, a, 400))
    )


@pytest.mark.parametrize('prevalence', [0.02, 0.3, 0.5, 0.9])
def test_a_shifted_logit_is_calibrated_at_its_prevalence(prevalence):
    "Balanced queries weighted to a prevalence, logits shifted to it: promises come true."
    rng = np.random.default_rng(0)
    y = np.repeat([1, 0], 20_000)
    x = rng.normal(size=40_000) + np.where(y, 0.75, -0.75)
    p = 1 / (1 + np.exp(-shift_prevalence(1.5 * x, prevalence)))
    w = prevalence_weights(y, prevalence)
    r = reliability(p, y, 8, w)
    assert (
        (abs(r.promised - r.came_true) < 0.06)[r.share > 0.005].all()
        and (r.share > 0.005).sum() > 1
        and (p * w).sum() / w.sum() == pytest.approx(prevalence, abs=0.01)
    )
    assert brier(p, y, w) < brier(np.full(len(y), prevalence), y, w)


@pytest.mark.parametrize('scale', [0.01, 1.0, 40.0])
def test_the_temperature_of_many_scores_is_that_of_logistic_regression(scale):
    rng = np.random.default_rng(1)
    y = np.repeat([1, 0], 2000)
    s = scale * (rng.normal(size=4000) + np.where(y, 0.5, -0.5))
    from sklearn.linear_model import LogisticRegression

    slope = (
        LogisticRegression(C=1e12, fit_intercept=False, tol=1e-10)
        .fit(s[:, None] / scale, y)
        .coef_[0, 0]
        / scale
    )
    assert fit_temperature(s, y) == pytest.approx(1 / slope, rel=0.01)
