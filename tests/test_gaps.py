"What a leaderboard is asked is answered, or named with a reason: in the file and on the page."

import shutil

import numpy as np
import pandas as pd
import pytest
from test_study import noise_xrays

from smlxray.leaderboard import board_page, leaderboard_plan
from smlxray.look import decimal, number
from smlxray.plan import StudySettings
from smlxray.study import PROTOCOLS, gap_text, law_text, read_study, run_study

NOVEL = ['Edema', 'Mass', 'Infiltration']  # of which two are too rare in noise


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp('gaps')
    noise_xrays(home / 'noise', patients=240)
    paths = pd.read_csv(home / 'noise' / 'labels.csv').path
    np.save(home / 'mine.npy', np.random.default_rng(3).normal(size=(len(paths), 5)))
    (home / 'mine.txt').write_text('\n'.join(paths))
    return home


def asked(home, folder, name, **more):
    few = dict(heads=['prototypes'], splits=[5], episodes=12, curve_episodes=4, curve=[1, 2, 60])
    places = {key: str(home / name / key) for key in ('cache_path', 'runs_path')}
    settings = dict(dataset='realcxr', shots=2, queries=4, **places)
    plan = leaderboard_plan(
        [str(home / 'mine.npy')], str(folder), [NOVEL], settings=settings, run=name, **few | more
    )
    return plan, read_study(run_study(plan, workers=1, out=home / f'{name}.json'))


@pytest.fixture(scope='module')
def board(home):
    return asked(home, home / 'noise', 'board')


def test_all_that_is_asked_is_answered_or_named(board):
    plan, study = board
    named = '\n'.join(map(gap_text, study['left_out']))
    for protocol in PROTOCOLS.values():
        there = {row['finding'] for row in study['rows'] if row['protocol'] == protocol}
        for finding in NOVEL:
            without = f'{finding}, {protocol} (' in named or f'{finding} (' in named
            assert without != (finding in there), (finding, protocol, named)
        shots = {row['shots'] for row in study['curves'] if row['protocol'] == protocol}
        assert shots == {1, 2}, 'the shots that fit are kept'
        assert f'Edema, {protocol}: 60 shots (fold 1, split 5)' in named
    groups = {row['column'] for row in study['subgroups']}
    for column in ('sex', 'age', 'projection', 'origin'):
        assert column in groups or column in named
    assert set(plan.methods) == {row['method'] for row in study['rows']}
    assert study['plan']['folds'] == {'1': NOVEL}


def test_the_page_says_it_in_words(board):
    _, study = board
    page = board_page(study)
    for row in study['left_out']:
        assert row['what'] in page and row['why'].split("'")[0].rstrip('.') in page
    for words in ('<b>Edema, Infiltration, Mass</b>', 'Left out', 'split once into'):
        assert words in page
    assert 'against matched normals' in page and 'Chance, 0.5' in page
    assert {'pixels', 'untrained'} <= {row['method'] for row in study['summary']}
    patients = [row for row in study['asked'] if row['finding'] == 'Edema']
    assert len(patients) == 2 and all(row['with'] >= 6 <= row['without'] for row in patients)


def test_without_images_only_the_baselines_go(home, board):
    shutil.copytree(home / 'noise', home / 'bare', ignore=shutil.ignore_patterns('*.png'))
    plan, study = asked(home, home / 'bare', 'bare')
    assert plan.baselines == ['pixels', 'untrained']
    assert {row['method'] for row in study['summary']} == {'mine, prototypes'}
    assert any('the images cannot be read' in row['why'] for row in study['left_out'])
    assert 'pixels and untrained' in board_page(study)
    auc = [row['auc'] for row in study['summary'] if row['fold'] == 'all']
    assert auc == [
        row['auc'] for row in board[1]['summary']
        if (row['method'], row['fold']) == ('mine, prototypes', 'all')
    ]


def test_a_plan_without_controls_has_no_card_of_controls(home):
    _, study = asked(
        home, home / 'noise', 'plain', baselines=False, controls={}, at_chance=[], curve=[]
    )
    page = board_page(study)
    assert 'controls at chance' not in page and '>Controls<' not in page
    assert '1 encoder<' in page and 'pixels' not in page.split('The plan')[0]


def test_the_law_is_told_where_the_curve_tells_it():
    told = dict(z=0.5, z_low=0.1, z_high=0.9, c=9.0, c_low=2.0, c_high=30.0)
    assert law_text(told) == dict(z='0.50 [0.10, 0.90]', c='9 [2, 30]', end='0.691')
    assert law_text(told | dict(c=999.0)) == dict(z='', c='over 200', end='')
    assert law_text(told | dict(z_low=-525.0, z_high=533.0)) == dict(z='', c='unclear', end='')
    assert law_text(dict(z=0.5, c=9.0)) == dict(z='0.50', c='9', end='0.691')


def test_nothing_is_minus_zero():
    assert [decimal(-0.0004), decimal(-0.04, 1, '+'), number(-1e-9)] == ['0.000', '+0.0', '0.000']
    assert StudySettings().baselines == []
