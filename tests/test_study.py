"The study of real X-rays, where there are some: the committed file is what its code computes."

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from real import NIH, REAL, needs_nih, needs_real

from smlxray import study as study_module
from smlxray.base import ConfigError, SmlxrayError, check_seal, resolve_path, show_remarks
from smlxray.episodes import strata
from smlxray.plan import cell_settings, load_plan
from smlxray.study import PROTOCOLS, Cell, checked_episodes, fair_splits, read_study, run_study

FILE = resolve_path('nbs/nih_confirm.json')
PLAN = load_plan()
CONFIRM = load_plan(resolve_path('config/nih_confirm.yaml'))
CELLS = [Cell(CONFIRM, fold, split) for split in CONFIRM.splits for fold in CONFIRM.folds]
NORMALS, OTHERS = PROTOCOLS['normals'], PROTOCOLS['others']
PLANS = [path for path in resolve_path('config').glob('*.yaml') if '\nrun: ' in path.read_text()]


@pytest.mark.parametrize('path', sorted(PLANS), ids=lambda path: path.stem)
def test_a_plan_that_is_shipped_can_be_read(path):
    assert load_plan(path).methods


@pytest.fixture
def study() -> dict:
    return read_study(FILE)


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "Where the cells of the study keep pixels and vectors: made once, read by several tests."
    return tmp_path_factory.mktemp('study')


def cell(home, fold, split, **changes):
    there = dict(cache_path=str(home / 'cache'), runs_path=str(home / 'runs'))
    return Cell(load_plan(folder=str(REAL), settings=PLAN.settings | there, **changes), fold, split)


def confirmed_cell(home, fold, split):
    "A cell of the confirmation, to be computed again instead of read."
    there = dict(cache_path=str(home / 'cache'), runs_path=str(home / 'runs'))
    settings = CONFIRM.settings | there
    changes = dict(folder=str(NIH), asked=str(NIH), settings=settings, cells='', ledger='')
    return Cell(CONFIRM.model_copy(update=changes), fold, split)


def wanted_rows() -> set:
    "Every row that a complete file has: (method, protocol, fold, split, seed, finding)."
    rows = set()
    for protocol, methods in ((NORMALS, CONFIRM.methods), (OTHERS, CONFIRM.others)):
        for fold, findings in CONFIRM.folds.items():
            for split in CONFIRM.splits:
                rows |= {(m, protocol, fold, split, 0, f) for m in methods for f in findings}
    return rows


def test_the_file_of_the_study_is_small_and_holds_what_it_names(study):
    assert FILE.stat().st_size <= 400_000
    assert study['commit'] and not study['changed'] and len(study['data']['digest']) == 16
    keys = ('method', 'protocol', 'fold', 'split', 'seed', 'finding')
    there = {tuple(row[key] for key in keys) for row in study['rows']}
    assert len(there) == len(study['rows']), 'a row is there twice'
    assert there == wanted_rows() and study['complete'] and not study['missing']
    assert all(0 <= r['auc_low'] <= r['auc'] <= r['auc_high'] <= 1 for r in study['rows'])


def test_the_plan_of_the_file_is_the_plan_that_is_shipped(study):
    shipped = CONFIRM.model_dump(mode='json')
    told = CONFIRM.model_copy(update=study['plan'])
    told = type(CONFIRM)(**told.model_dump(mode='json', warnings=False)).model_dump(mode='json')
    for key in ('folds', 'backbones', 'methods', 'slow', 'controls', 'default', 'reference'):
        assert told[key] == shipped[key], f'{key} changed: run the study again'


def test_the_means_of_the_file_are_means_of_its_rows(study):
    rows = pd.DataFrame(study['rows'])
    for s in study['summary']:
        mine = rows[(rows.method == s['method']) & (rows.protocol == s['protocol'])]
        by_fold = mine.groupby('fold').auc.mean()
        expected = by_fold.mean() if s['fold'] == 'all' else by_fold[s['fold']]
        assert abs(expected - s['auc']) < 2e-4


def test_the_default_beats_its_baseline_in_both_protocols(study):
    "In all folds together, over patients in all roles."
    wanted = CONFIRM.default, CONFIRM.reference, 'all'
    lows = [
        row['gain_low']
        for row in study['compared']
        if (row['method'], row['over'], row['fold']) == wanted
    ]
    assert len(lows) == len(PROTOCOLS) and min(lows) > 0, 'the default is no longer better'


def test_the_controls_of_the_file_hold_one_half(study):
    held = [r['holds'] for r in study['controls'] if r['method'] in CONFIRM.at_chance]
    assert len(held) == len(CONFIRM.at_chance) * len(PROTOCOLS) and all(held)


def test_the_readme_says_what_the_confirmation_found():
    found = read_study('nbs/nih_confirm.json')
    overall = {(r['method'], r['protocol']): r for r in found['summary'] if r['fold'] == 'all'}
    readme = ' '.join(resolve_path('README.md').read_text().split())
    for protocol in PROTOCOLS.values():
        mine, base = overall['default', protocol], overall[CONFIRM.reference, protocol]
        for words in (
            f"**{mine['auc']:.3f} [{mine['auc_low']:.3f}, {mine['auc_high']:.3f}]**",
            f"{base['auc']:.3f} [{base['auc_low']:.3f}, {base['auc_high']:.3f}]",
            f"+{mine['gain']:.3f} [{mine['gain_low']:.3f}, {mine['gain_high']:.3f}]",
            f"{overall['oracle, prototypes', protocol]['auc']:.3f}",
        ):
            assert words in readme, words


@needs_nih
@pytest.mark.slow
def test_what_was_not_trained_comes_out_again(home, study):
    """Twenty episodes agree to the last digit, and the means of all nearly.

    The vectors of the file were computed on another machine, whose rounding turns a few close pairs
    round.
    """
    check = study['check']
    c = confirmed_cell(home, check['fold'], check['split'])
    again = checked_episodes(c, 20)
    assert again['finding'] == check['finding'] and set(check['auc']) == set(CONFIRM.check)
    for method, aucs in check['auc'].items():
        assert len(aucs) == 20 and np.abs(np.array(aucs) - again['auc'][method]).max() < 1e-6
    told = {
        (row['method'], row['protocol'], row['finding']): row['auc']
        for row in study['rows']
        if (row['fold'], row['split']) == (check['fold'], check['split'])
    }
    method = study_module.build_method(c, 'imagenet, prototypes')
    for negatives, protocol in PROTOCOLS.items():
        for finding in c.askable(negatives):
            scores = method.logits(c.block(finding, negatives))
            auc = float(study_module.block_auc(scores).mean())
            there = told['imagenet, prototypes', protocol, finding]
            assert abs(auc - there) < 1e-3, (protocol, finding)


@needs_real
@pytest.mark.parametrize('fold', PLAN.folds)
def test_no_finding_no_patient_and_no_stratum_leaks(home, fold):
    "Nothing novel is trained on, patients are apart, and negatives are matched and of their kind."
    c = cell(home, fold, 40, episodes=50)
    table, lab = c.lab.table, c.lab
    assert set(lab.findings.novel) == set(PLAN.folds[fold])
    assert not any(table.positive(f)[lab.train].any() for f in PLAN.folds[fold])
    assert not set(table.patients[lab.train]) & set(table.patients[lab.test])
    tested = len(np.unique(table.patients[lab.test])) / len(np.unique(table.patients))
    assert abs(tested - 0.4) < 0.03
    for finding in lab.findings.novel:
        for negatives in PROTOCOLS:
            check_block(lab, c.block(finding, negatives), finding, negatives)


def check_block(lab, block, finding, negatives):
    table, stratum = lab.table, strata(lab.table, lab.settings.data.match_on)[0]
    for rows in (block.support, block.query):
        positives, negative_rows = np.split(rows, 2, axis=1)
        assert table.positive(finding)[positives].all()
        assert not table.positive(finding)[negative_rows].any()
        assert (table.positive('No Finding')[negative_rows] == (negatives == 'normals')).all()
        assert (np.sort(stratum[positives], 1) == np.sort(stratum[negative_rows], 1)).all()
    both = table.patients[np.concatenate([block.support, block.query], 1)]
    assert all(len(set(patients)) == len(patients) for patients in both)


@needs_real
def test_the_splits_are_chosen_by_labels_alone(home):
    assert fair_splits(cell(home, '1', 0).lab.table) == PLAN.splits == [40, 92, 145]


def test_wrong_words_are_answered_with_a_sentence(tmp_path):
    with pytest.raises(ConfigError, match="a fold of the study is '7'"):
        run_study(PLAN, folds=['7'])
    with pytest.raises(SmlxrayError, match='nowhere'):
        run_study(load_plan(folder=str(tmp_path / 'nowhere')))
    with pytest.raises(ConfigError, match="a fold of the study is '9'"):
        cell_settings(PLAN, '9', 0)


def noise_xrays(folder, patients=300):
    """Write X-rays of noise in the layout of the study's folder.

    Half of the patients are normal, one finding is too rare for an episode, and none has another.
    """
    rng = np.random.default_rng(0)
    names = [f.removeprefix('Pleural ') for findings in PLAN.folds.values() for f in findings]
    (folder / 'images').mkdir(parents=True)
    ill = (np.arange(patients) % 2)[:, None].astype(bool)
    labels = (rng.random((patients, len(names))) < 0.4) & ill
    labels[:, names.index('Mass')] = np.arange(patients) < 9
    labels[:, names.index('Infiltration')] = False
    table = pd.DataFrame(labels.astype(int), columns=names)
    table = table.assign(Emphysema=0, Fibrosis=0, Hernia=0)
    table['No Finding'] = (~labels.any(1)).astype(int)
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


def noise_plan(tmp_path):
    "A small plan on noise: three methods, a control, one epoch."
    names = ['pixels', 'imagenet, prototypes', PLAN.reference]
    short = dict(epochs=1)
    kept = ('imagenet', 'supervised')
    backbones = {k: PLAN.backbones[k].model_copy(update=short) for k in kept}
    there = dict(cache_path=str(tmp_path / 'cache'), runs_path=str(tmp_path / 'runs'))
    return load_plan(
        folder=str(tmp_path / 'elsewhere'),
        settings=PLAN.settings | there | dict(image_size=[64, 64]),
        splits=3,
        backbones=backbones,
        methods={name: PLAN.methods[name] for name in names},
        slow={},
        controls={'age and sex': PLAN.controls['age and sex']},
        at_chance=[],
        others=names,
        episodes=200,
        compare=[[PLAN.reference, 'imagenet, prototypes']],
        check=['pixels'],
        default=PLAN.reference,
    )


@pytest.mark.slow
def test_other_xrays_go_through_the_same_function(tmp_path, monkeypatch, capsys):
    "On noise no method knows anything, and what is there is not computed a second time."
    show_remarks()
    noise_xrays(tmp_path / 'elsewhere')
    plan, out = noise_plan(tmp_path), tmp_path / 'out.json'

    def run(**how):
        run_study(plan, workers=1, out=out, **how)
        return capsys.readouterr().out, json.loads(out.read_text())

    with pytest.raises(SmlxrayError, match='Nothing is in the run study yet'):
        run(report=True)
    capsys.readouterr()
    said, one = run(folds=['1'])
    assert "Fold 1, split" in said and "left out: 'Mass' has" in said
    assert 'No X-ray shows Infiltration: left out.' in said
    assert '24 of 36 results are missing' in said and not one['complete']
    assert {r['finding'] for r in one['rows']} == set(PLAN.folds['1']) - {'Mass'}
    assert {r['fold'] for r in one['summary']} == {'1', 'all'}
    for row in one['summary']:
        assert f"{row['auc']:.3f}" in said and abs(row['auc'] - 0.5) < 0.1, row
    monkeypatch.setattr(study_module, 'train_backbone', None)
    again, same = run(report=True)
    assert same == one
    lines = [line for line in said.splitlines() if PLAN.reference in line]
    assert [line for line in again.splitlines() if PLAN.reference in line] == lines


def test_the_default_that_was_announced_is_that_of_the_plan():
    "A setting or a key that is new changes no digest, or what was announced would be forgotten."
    lines = study_module.read_ledger(CONFIRM.ledger)
    assert lines[0]['what'] == 'announced'
    assert {line['choice'] for line in lines} == {study_module.choice_of(CONFIRM)}
    asked = [line['cell'] for line in lines if line['what'] == 'asked']
    assert {cell.name for cell in CELLS} <= {*asked}


@pytest.mark.parametrize('cell', CELLS, ids=lambda cell: cell.name)
def test_a_committed_cell_has_answers_of_all_methods(cell):
    told, plan = study_module.committed(cell), cell.plan
    wanted = {*plan.methods, *plan.controls}
    assert {*told} == wanted
    for method in wanted:
        assert {*told[method]} == {*study_module.protocols_of(plan, method)}
    assert {told[method]['normals']['curve_of'] for method in plan.methods} == {
        study_module.curve_digest(plan)
    }


ROWS = resolve_path('nbs/cells/maml_rows/fold1-split40-seed0.json')


def test_the_curves_of_the_committed_cell_are_long_and_flat_at_their_end():
    "Each meta-training of it saw two thousand tasks, and its last looks agree."
    training = check_seal(json.loads(ROWS.read_text()))['training']
    assert {*training} == {'anil', 'fomaml', 'maml', 'protomaml'}
    for algorithm, told in training.items():
        curve, looks = told['curve'], told['curve']['looks']
        assert curve['episodes'][-1] == 2000 == looks['episodes'][-1]
        assert max(looks['valid_loss'][-3:]) - min(looks['valid_loss'][-3:]) < 0.005
        assert f'weights of {algorithm}' in told['made_of']
