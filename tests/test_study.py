"The study where its X-rays lie beside the checkout: the committed file is what its code computes, and the set-up is the one that the text claims."

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from smlxray import study as study_module
from smlxray.base import DataError, resolve_path
from smlxray.study import (
    AGAINST_OTHERS,
    AT_CHANCE,
    CHECKED,
    DEFAULT,
    FOLDS,
    FROZEN,
    MEASURED,
    PROTOCOLS,
    RECIPES,
    REFERENCE,
    WITHOUT,
    Corner,
    Recipe,
    checked_episodes,
    fair_deals,
    main,
    strata,
    study_corners,
)

REAL, FILE = resolve_path('../shared/realcxr'), resolve_path('nbs/real_xrays.json')
needs_real = pytest.mark.skipif(
    not (REAL / 'labels.csv').is_file(), reason='no ../shared/realcxr beside the checkout'
)
needs_file = pytest.mark.skipif(
    not FILE.is_file(), reason='no nbs/real_xrays.json: `make real` writes it'
)


def corner(tmp_path, fold, deal):
    return Corner(
        fold,
        deal,
        changes=dict(
            dataset_path=str(REAL),
            cache_path=str(tmp_path / 'cache'),
            runs_path=str(tmp_path / 'runs'),
        ),
    )


@needs_file
def test_the_file_of_the_study_is_small_and_holds_what_it_names():
    study = json.loads(FILE.read_text())
    assert FILE.stat().st_size <= 200_000
    assert (
        study['default'] == DEFAULT
        and study['reference'] == REFERENCE
        and study['commit']
        and not study['changed']
        and len(study['data']['digest']) == 16
    )
    there = {
        (r['method'], r['protocol'], r['fold'], r['split'], r['seed'], r['finding'])
        for r in study['rows']
    }
    assert len(there) == len(study['rows']), 'a row stands twice'
    every = {
        (m, p, f, s, seed, x)
        for i, p in enumerate(PROTOCOLS)
        for m in (AGAINST_OTHERS if i else FROZEN)
        for f in FOLDS
        for s in study['splits']
        for seed in study['seeds']
        for x in FOLDS[f]
    }
    assert there <= every and (
        not study['complete']
        or (there == every and len(study['splits']) >= 3 and len(study['slow']) > len(FROZEN))
    )
    assert all(0 <= r['auc_low'] <= r['auc'] <= r['auc_high'] <= 1 for r in study['rows'])
    assert {
        k: Recipe(**{**v, 'views': tuple(v['views'])}) for k, v in study['recipes'].items()
    } == RECIPES, 'the recipes changed: run `make real` again'


@needs_file
def test_the_means_of_the_file_are_means_of_its_rows():
    study = json.loads(FILE.read_text())
    for s in study['summary']:
        rows = [
            r for r in study['rows'] if (r['method'], r['protocol']) == (s['method'], s['protocol'])
        ]
        folds = [
            np.mean([r['auc'] for r in rows if r['fold'] == f])
            for f in sorted({r['fold'] for r in rows})
            if s['fold'] in (f, 'all')
        ]
        assert abs(np.mean(folds) - s['auc']) < 2e-4


@needs_file
def test_the_baselines_are_those_that_were_measured_before_and_the_default_beats_them():
    "Means by fold from `SOURCES.md` of the X-rays; a weaker baseline would flatter the default."
    study = json.loads(FILE.read_text())
    summary = {
        (r['method'], r['fold']): r
        for r in study['summary']
        if r['protocol'] == next(iter(PROTOCOLS))
    }
    assert set(MEASURED) == {'imagenet, prototypes', REFERENCE}
    for method, means in MEASURED.items():
        assert set(means) == set(FOLDS)
        for fold, mean in means.items():
            assert abs(summary[method, fold]['auc'] - mean) < 0.03, (method, fold)
    assert summary[DEFAULT, 'all']['gain_low'] > 0
    compared = {(r['method'], r['over'], r['protocol'], r['fold']): r for r in study['compared']}
    for fold in ('all', WITHOUT):
        row = compared[DEFAULT, REFERENCE, next(iter(PROTOCOLS)), fold]
        assert row['gain_low'] > 0 and row['wide_low'] > 0, (
            fold,
            'the default is no longer better, or no longer surely',
        )


@needs_file
def test_the_controls_of_the_file_hold_one_half():
    held = [
        r['holds'] for r in json.loads(FILE.read_text())['controls'] if r['method'] in AT_CHANCE
    ]
    assert len(held) == len(AT_CHANCE) * len(PROTOCOLS) and all(held)


@needs_file
def test_the_readme_says_what_the_file_says():
    summary = {
        (r['method'], r['protocol']): r
        for r in json.loads(FILE.read_text())['summary']
        if r['fold'] == 'all'
    }
    readme = resolve_path('README.md').read_text()
    mine, base, others = (
        summary[DEFAULT, 'finding vs matched normals'],
        summary[REFERENCE, 'finding vs matched normals'],
        summary[DEFAULT, 'finding vs other findings'],
    )
    for words in (
        f"{mine['auc']:.3f} [{mine['auc_low']:.3f}, {mine['auc_high']:.3f}]",
        f"+{mine['gain']:.3f} [{mine['gain_low']:.3f}, {mine['gain_high']:.3f}]",
        f"{base['auc']:.3f}",
        f"{others['auc']:.3f} against *other* findings",
    ):
        assert words in readme, words


@needs_real
@needs_file
def test_twenty_episodes_of_the_file_come_out_again(tmp_path):
    check = json.loads(FILE.read_text())['check']
    again = checked_episodes(corner(tmp_path, check['fold'], check['split']), 20)
    assert again['finding'] == check['finding'] and set(check['auc']) == set(CHECKED)
    for method, aucs in check['auc'].items():
        assert len(aucs) == 20 and np.abs(np.array(aucs) - again['auc'][method]).max() < 1e-6


@needs_real
@pytest.mark.parametrize('fold', FOLDS)
def test_no_finding_no_patient_and_no_stratum_leaks(tmp_path, fold):
    "Nothing novel is trained on, patients are apart, and a negative has the stratum of its positive and is a normal (or has another finding)."
    c = corner(tmp_path, fold, 40)
    table, lab = c.lab.table, c.lab
    assert lab.findings.novel == FOLDS[fold] or set(lab.findings.novel) == set(FOLDS[fold])
    assert not any(table.positive(f)[lab.train].any() for f in FOLDS[fold])
    assert not set(table.patients[lab.train]) & set(table.patients[lab.test])
    assert (
        abs(len(np.unique(table.patients[lab.test])) / len(np.unique(table.patients)) - 0.4) < 0.03
    )
    stratum, c.episodes = strata(lab), 50
    for f in lab.findings.novel:
        for negatives in PROTOCOLS.values():
            q = c.questions(f, negatives)
            for places in (q.support, q.query):
                rows = lab.test[places.numpy()]
                k = rows.shape[1] // 2
                assert (
                    table.positive(f)[rows[:, :k]].all()
                    and not table.positive(f)[rows[:, k:]].any()
                )
                assert (table.positive('No Finding')[rows[:, k:]] == (negatives == 'normals')).all()
                assert (np.sort(stratum[rows[:, :k]], 1) == np.sort(stratum[rows[:, k:]], 1)).all()
            both = np.concatenate([table.patients[lab.test[q.support.numpy()]], q.patients], 1)
            assert all(len(set(p)) == len(p) for p in both)


@needs_real
def test_the_deals_are_chosen_by_labels_alone(tmp_path):
    table = corner(tmp_path, 1, 0).lab.table
    assert fair_deals(table) == [40, 92, 145]


def test_wrong_words_are_answered_with_a_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr('sys.argv', ['x', '--folds', '7'])
    with pytest.raises(SystemExit):
        main()
    assert 'invalid choice: 7' in capsys.readouterr().err
    monkeypatch.setattr('sys.argv', ['x', '--folder', str(tmp_path / 'nowhere')])
    with pytest.raises(SystemExit, match='nowhere'):
        main()
    with pytest.raises(DataError, match='There is no fold 9'):
        Corner(9, 0).lab


def noise_xrays(folder, patients=300):
    "X-rays of noise in the layout of the usual folder: half of the patients normal, one finding too rare to be asked for, another that nobody has."
    rng, names = (
        np.random.default_rng(0),
        [f.removeprefix('Pleural ') for fold in FOLDS.values() for f in fold],
    )
    (folder / 'images').mkdir(parents=True)
    labels = (rng.random((patients, len(names))) < 0.4) & (np.arange(patients) % 2)[:, None].astype(
        bool
    )
    labels[:, names.index('Mass')], labels[:, names.index('Infiltration')] = (
        np.arange(patients) < 9,
        False,
    )
    table = pd.DataFrame(labels.astype(int), columns=names).assign(
        Emphysema=0, Fibrosis=0, Hernia=0, **{'No Finding': (~labels.any(1)).astype(int)}
    )
    table = table.assign(
        path=[f'images/{i}.png' for i in range(patients)],
        patient_id=[f'p{i}' for i in range(patients)],
        view='PA',
        age=50,
        sex='F',
        origin='here',
    )
    for path in table.path:
        Image.fromarray(rng.integers(0, 256, (64, 64), dtype=np.uint8)).save(folder / path)
    table.to_csv(folder / 'labels.csv', index=False)


def test_other_xrays_go_through_the_same_command(tmp_path, monkeypatch, capsys):
    "From files to tables, on noise: no method knows anything, what cannot be asked is said, and what is there is not computed again."
    noise_xrays(tmp_path / 'elsewhere')
    settings, out = study_module.study_settings, tmp_path / 'out.json'
    monkeypatch.setattr(
        study_module,
        'study_settings',
        lambda *a, **kw: settings(
            *a,
            **{
                **kw,
                'cache_path': str(tmp_path / 'cache'),
                'runs_path': str(tmp_path / 'runs'),
                'image_size': [64, 64],
            },
        ),
    )
    monkeypatch.setattr(
        study_module,
        'RECIPES',
        {k: replace(RECIPES[k], epochs=1) for k in ('imagenet', 'supervised')},
    )
    monkeypatch.setattr(
        study_module,
        'FROZEN',
        {k: FROZEN[k] for k in ('pixels', 'imagenet, prototypes', REFERENCE)},
    )
    few_draws = partial(study_module.kept_patients, draws=10)
    for name, value in dict(
        SLOW={},
        CONTROLS={'age and sex': study_module.age_and_sex},
        AT_CHANCE=(),
        THINNED=(REFERENCE,),
        COMPARED=((REFERENCE, 'imagenet, prototypes'),),
        kept_patients=few_draws,
    ).items():
        monkeypatch.setattr(study_module, name, value)

    def run(*words):
        monkeypatch.setattr(
            'sys.argv',
            [
                'x',
                '--folder',
                str(tmp_path / 'elsewhere'),
                '--workers',
                '1',
                '--out',
                str(out),
                *words,
            ],
        )
        main()
        return capsys.readouterr().out, json.loads(out.read_text())

    with pytest.raises(SystemExit, match='Nothing of the study is in the run study-elsewhere yet'):
        run('--report')
    capsys.readouterr()
    said, one = run('--folds', '1')
    assert (
        "Fold 1, deal" in said
        and "left out: 'Mass' has" in said
        and 'No X-ray shows Infiltration: left out.' in said
        and '30 of 45 results are missing' in said
        and not one['complete']
    )
    assert {r['finding'] for r in one['rows']} == set(FOLDS[1]) - {'Mass'} and {
        r['fold'] for r in one['summary']
    } == {1, 'all'}
    for row in one['summary']:
        assert f"{row['auc']:.3f}" in said and abs(row['auc'] - 0.5) < 0.1, row
    monkeypatch.setattr(study_module, 'make_body', None)
    again, same = run('--report')
    assert same == one and [l for l in again.splitlines() if REFERENCE in l] == [
        l for l in said.splitlines() if REFERENCE in l
    ]
