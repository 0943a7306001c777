"Episodes: the same in another process, sound on random tables, worthless with shuffled labels."

import hashlib, os, subprocess, sys
import numpy as np
import pandas as pd
import pytest
from smlxray.base import DataError
from smlxray.data import XrayTable
from smlxray.episodes import PROTOCOL_VERSION, EpisodeSampler, WaySampler, age_band
from smlxray.episodes import one_shot_trials
from smlxray.metrics import EpisodeScores, auc, episode_mean


def make_table(seed=0, patients=300, findings=('No Finding', 'Edema', 'Fracture')):
    "A random table with several images per patient, two projections and origins, and all labels."
    rng = np.random.default_rng(seed)
    images = rng.integers(1, 5, patients)
    patient = np.repeat(np.arange(patients), images)
    n = len(patient)
    frame = pd.DataFrame(
        {
            'path': [f'{i}.png' for i in range(n)],
            'patient': [f'p{p}' for p in patient],
            'projection': rng.choice(['AP', 'PA', ''], n, p=[0.5, 0.4, 0.1]),
            'origin': rng.choice(['a', 'b'], n),
        }
    )
    for f in findings:
        frame[f] = rng.choice([1, 0, -1, np.nan], n, p=[0.25, 0.3, 0.05, 0.4])
    return XrayTable(frame, findings)


def digest():
    "One hash over many episodes; also run by `test_same_in_another_process` as a script."
    table = make_table()
    sampler = EpisodeSampler(
        table,
        np.arange(len(table)),
        ['Edema', 'Fracture'],
        3,
        8,
        match_on=['projection'],
        negatives='others',
        seed=5,
    )
    h = hashlib.sha256()
    for i in range(20):
        e = sampler.sample(i)
        h.update(f'{e.finding} {e.seed} {e.support.tolist()} {e.query.tolist()}'.encode())
    return h.hexdigest()


def fixed_table(patients, *findings):
    "A table that no generator has drawn: its numbers are bytes of a hash."
    shown = np.frombuffer(hashlib.shake_256(b'table').digest(patients * 16), np.uint8)
    shown = shown.reshape(patients * 2, 8)  # two images of each patient
    frame = pd.DataFrame({'path': [f'{i}.png' for i in range(len(shown))]})
    frame['patient'] = [f'p{i // 2}' for i in range(len(shown))]
    frame['projection'] = np.array(['AP', 'PA', ''])[shown[:, 0] // 100]
    for j, f in enumerate(('No Finding', *findings), 1):
        frame[f] = np.array([1, 0, np.nan, -1])[shown[:, j] // 80]
    return XrayTable(frame, ('No Finding', *findings))


def added(h, *arrays):
    for array in arrays:
        h.update(np.asarray(array).astype('<i8').tobytes())


def protocol_digest():
    "One hash over episodes of both protocols, drawn in each of the ways that the chapter has."
    h, table = hashlib.sha256(), fixed_table(300, 'Edema', 'Fracture')
    for negatives in ('others', 'normals'):
        for match_on in ([], ['projection']):
            draws = dict(shots=3, queries=8, match_on=match_on, negatives=negatives, seed=5)
            sampler = EpisodeSampler(table, np.arange(len(table)), ['Edema', 'Fracture'], **draws)
            for finding in sampler.findings:
                block = sampler.episodes(np.arange(1500), finding)
                added(h, block.support, block.query, block.seeds)
    table = fixed_table(3000, 'Edema', 'Fracture')  # large: drawn with replacement
    sampler = EpisodeSampler(table, np.arange(len(table)), ['Edema', 'Fracture'], 3, 8, seed=5)
    for finding in sampler.findings:
        block = sampler.episodes(np.arange(1500), finding)
        added(h, block.support, block.query, block.seeds)
    table = fixed_table(900, *'ABCD')
    rows, groups = np.arange(len(table)), (['A', 'B'], ['C', 'D'])
    ways = WaySampler(table, rows, *groups, 3, 1, 2, 8, ['projection'])
    for i in range(50):
        e = ways.episode(i)
        h.update(repr((e.findings, e.seed, e.support.tolist(), e.query.tolist())).encode())
    return h.hexdigest()


FIXED = {1: '1228447f27c887bfc768d13cc48950ae573fb4d8efe68e0eb6b052d4c4c27a5d'}


def test_the_protocol_draws_what_it_always_drew():
    "If this fails, raise PROTOCOL_VERSION and add a line to FIXED; do not change the old one."
    assert protocol_digest() == FIXED[PROTOCOL_VERSION]


@pytest.mark.parametrize('hashseed', ['0', '12345'])
def test_same_in_another_process(hashseed):
    code = 'import runpy, sys; print(runpy.run_path(sys.argv[1])["digest"]())'
    env = {**os.environ, 'PYTHONHASHSEED': hashseed}
    done = subprocess.run(
        [sys.executable, '-c', code, __file__], capture_output=True, text=True, env=env, check=True
    )
    assert done.stdout.strip() == digest()


@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize('match_on', [[], ['projection'], ['projection', 'origin']])
@pytest.mark.parametrize('negatives', ['normals', 'others'])
def test_sound_on_random_tables(seed, match_on, negatives):
    table = make_table(seed)
    rows = np.random.default_rng(seed).permutation(len(table))[:-50]
    try:
        sampler = EpisodeSampler(
            table, rows, 'Edema', 2, 10_000, match_on=match_on, negatives=negatives
        )
    except DataError as e:
        assert 'shots and 8 queries' in str(e)
        return
    counts, f = sampler.counts(), table.frame
    assert sampler.queries == counts['usable'] - 2
    ever = set(f.loc[f['Edema'].isin([1, -1]), 'patient'])
    for i in range(10):
        e = sampler.episode(i)
        every = np.r_[e.support, e.query]
        assert set(every) <= set(rows) and f['patient'].iloc[every].is_unique
        for side, y in ((e.support, e.support_labels), (e.query, e.query_labels)):
            yes, no = side[y == 1], side[y == 0]
            assert (
                len(yes) == len(no)
                and (f['Edema'].iloc[yes] == 1).all()
                and not set(f['patient'].iloc[no]) & ever
            )
            assert (f[match_on].iloc[yes].to_numpy() == f[match_on].iloc[no].to_numpy()).all()
            own = f.iloc[no]
            if negatives == 'normals':
                assert (own['No Finding'] == 1).all()
            else:
                assert (
                    (own['Edema'] == 0) & (own['No Finding'] != 1) & (own['Fracture'] == 1)
                ).all()


def test_rows_as_mask_and_as_repeated_index():
    table = make_table()
    mask = np.arange(len(table)) % 5 > 0
    by_mask = EpisodeSampler(table, mask, 'Edema', 2, 8).episode(3)
    by_index = EpisodeSampler(
        table, np.r_[np.flatnonzero(mask)[::-1], np.flatnonzero(mask)[:9]], 'Edema', 2, 8
    ).episode(3)
    assert np.array_equal(by_mask.query, by_index.query) and np.array_equal(
        by_mask.support, by_index.support
    )


def test_a_negative_patient_is_clean_outside_the_rows_too():
    frame = pd.DataFrame(
        {
            'path': [f'{i}.png' for i in range(61)],
            'patient': [f'p{i}' for i in range(60)] + ['p59'],
            'projection': 'PA',
            'No Finding': [np.nan] * 20 + [1] * 40 + [np.nan],
            'Edema': [1] * 20 + [np.nan] * 40 + [-1],
        }
    )
    table = XrayTable(frame, ['No Finding', 'Edema'])
    assert EpisodeSampler(table, np.arange(60), 'Edema', 1, 8).counts()['negative'] == 39


def test_shuffled_support_labels_are_worthless():
    table = make_table(patients=600)
    features = (
        np.random.default_rng(0).normal(size=(len(table), 4))
        + 0.8 * (table.positive('Edema')[:, None])
    )
    sampler = EpisodeSampler(table, np.arange(len(table)), 'Edema', 7, 15)
    rng, real, fake = np.random.default_rng(1), [], []
    for i in range(400):
        e = sampler.episode(i)
        for labels, into in ((e.support_labels, real), (rng.permutation(e.support_labels), fake)):
            towards = features[e.support[labels == 1]].mean(0) - features[
                e.support[labels == 0]
            ].mean(0)
            into.append(
                EpisodeScores(
                    features[e.query] @ towards, e.query_labels, table.patients[e.query], e.finding
                )
            )
    assert episode_mean(real) > 0.75
    each = np.array(
        [auc(e.scores, e.labels) for e in fake]
    )  # independent shuffles, so here the episodes are the sample
    assert abs(each.mean() - 0.5) < 3.29 * each.std(ddof=1) / np.sqrt(len(each))


def ways_digest():
    "One hash over many episodes of several findings and one-shot trials."
    table = make_table(patients=600, findings=('No Finding', 'Edema', 'Fracture', 'Mass', 'Hernia'))
    sampler = WaySampler(
        table,
        np.arange(len(table)),
        ['Edema', 'Fracture'],
        ['Mass', 'Hernia'],
        3,
        1,
        2,
        8,
        ['projection'],
        'others',
        5,
    )
    h = hashlib.sha256()
    for i in range(15):
        e = sampler.episode(i)
        h.update(f'{e.findings} {e.seed} {e.support.tolist()} {e.query.tolist()}'.encode())
    t = one_shot_trials(
        table, np.arange(len(table)), ['Edema', 'Fracture', 'Mass'], 3, 20, ['origin'], 7
    )
    h.update(f'{t.query.tolist()} {t.candidates.tolist()} {t.answer.tolist()}'.encode())
    return h.hexdigest()


def test_ways_are_the_same_in_another_process():
    code = 'import runpy, sys; print(runpy.run_path(sys.argv[1])["ways_digest"]())'
    done = subprocess.run(
        [sys.executable, '-c', code, __file__],
        capture_output=True,
        text=True,
        env={**os.environ, 'PYTHONHASHSEED': '99'},
        check=True,
    )
    assert done.stdout.strip() == ways_digest()


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('match_on', [[], ['projection'], ['projection', 'origin']])
@pytest.mark.parametrize('negatives', ['normals', 'others'])
def test_ways_are_sound_on_random_tables(seed, match_on, negatives):
    findings = ('No Finding', 'Edema', 'Fracture', 'Mass', 'Hernia')
    table = make_table(seed, 500, findings)
    f = table.frame
    f.loc[f['No Finding'] == 1, findings[1:]] = np.nan
    table = XrayTable(f, findings)
    rows = np.random.default_rng(seed).permutation(len(table))[:-50]
    try:
        sampler = WaySampler(
            table, rows, ['Edema', 'Fracture'], ['Mass', 'Hernia'], 3, 1, 2, 8, match_on, negatives
        )
    except DataError as e:
        assert '10 patients each' in str(e)
        return
    groups = 3 + (negatives == 'normals')
    for i in range(8):
        e = sampler.episode(i)
        every = np.r_[e.support, e.query]
        assert set(every) <= set(rows) and f['patient'].iloc[every].is_unique
        assert (len(e.support), len(e.query)) == (groups * 2, groups * 8)
        unseen = {x for x, u in zip(e.findings, e.unseen) if u}
        assert e.unseen.sum() == 1 and unseen <= {'Mass', 'Hernia'}
        for part, y, n in ((e.support, e.support_labels, 2), (e.query, e.query_labels, 8)):
            assert_one_stratum_per_place(f.iloc[part], groups, match_on)
            assert_labels_are_the_tables(f, part, y, e.findings, n)


def assert_one_stratum_per_place(drawn, groups, match_on):
    if not match_on: return
    strata = drawn[match_on].astype(str).agg('|'.join, axis=1).to_numpy().reshape(groups, -1)
    assert (strata == strata[0]).all()


def assert_labels_are_the_tables(f, part, y, findings, n):
    for j, x in enumerate(findings):
        assert ((y[:, j] == 1) == (f[x].iloc[part].to_numpy() == 1)).all()
        assert (y[j * n : (j + 1) * n, j] == 1).all() and (y[:, j] == 0).any()
        free = f['patient'].iloc[part[y[:, j] == 0]]
        assert not f.loc[f['patient'].isin(free), x].isin([1, -1]).any()


def test_many_shots_are_refused_where_patients_do_not_suffice():
    table = make_table(patients=40)
    for shots in (15, 30):
        with pytest.raises(
            DataError, match=f'{shots} shots and 8 queries per class need {shots + 8}'
        ):
            EpisodeSampler(
                table, np.arange(len(table)), 'Edema', shots, 15, match_on=['projection', 'origin']
            )


def test_age_bands_are_matched_and_unknown_ages_with_unknown():
    table = make_table(patients=900)
    rng = np.random.default_rng(0)
    table = XrayTable(
        table.frame.assign(
            age=np.where(rng.random(len(table)) < 0.2, np.nan, rng.integers(0, 100, len(table)))
        ),
        table.findings,
    )
    band = age_band(table.frame['age'])
    sampler = EpisodeSampler(
        table, np.arange(len(table)), 'Edema', 3, 8, match_on=['age_band'], negatives='others'
    )
    for i in range(20):
        e = sampler.episode(i)
        for part in (e.support, e.query):
            yes, no = np.split(part, 2)
            assert (band[yes] == band[no]).all()
    assert 'unknown' in band[np.concatenate([sampler.episode(i).query for i in range(20)])]
