"A grid over settings: every point is the study that a plan with that setting would be."

import numpy as np
import pandas as pd
import pytest
from test_study import noise_xrays

from smlxray.leaderboard import leaderboard_plan, write_leaderboard
from smlxray.study import TABLES, read_study, run_study, study_cells

GRID = dict(shots=[1, 3], match_on=[['projection'], ['projection', 'age_band']])
POINTS = [
    'shots=1, match_on=projection',
    'shots=1, match_on=projection+age_band',
    'shots=3, match_on=projection',
    'shots=3, match_on=projection+age_band',
]


@pytest.fixture(scope='module')
def planned(tmp_path_factory):
    "Make plans for random vectors of X-rays of noise."
    home = tmp_path_factory.mktemp('grid')
    noise_xrays(home / 'noise')
    paths = pd.read_csv(home / 'noise' / 'labels.csv').path
    np.save(home / 'mine.npy', np.random.default_rng(0).normal(size=(len(paths), 8)))
    (home / 'mine.txt').write_text('\n'.join(paths))

    def planned(place, **more):
        settings = dict(dataset='realcxr', queries=6, image_size=[32, 32])
        settings |= {key: str(home / place / key) for key in ('cache_path', 'runs_path')}
        settings |= more.pop('settings', {})
        few = dict(heads=['prototypes', 'ridge'], curve=[1, 2], episodes=20, curve_episodes=10)
        few |= dict(splits=[5], cells=str(home / 'cells'), settings=settings)
        novel = [['Cardiomegaly', 'Edema']]
        where = [str(home / 'mine.npy')], str(home / 'noise'), novel
        return leaderboard_plan(*where, **(few | more)), home / f'{place}.json'

    return planned


@pytest.fixture(scope='module')
def whole(planned):
    plan, file = planned('whole', grid=GRID)
    return read_study(run_study(plan, workers=1, out=file))


def test_each_point_is_the_study_with_that_setting(planned, whole):
    assert list(dict.fromkeys(row['point'] for row in whole['rows'])) == POINTS
    assert whole['complete'] and whole['plan']['grid'] == GRID
    point = dict(shots=3, match_on=['projection', 'age_band'])
    plan, file = planned('alone', settings=point, cells='')
    alone = read_study(run_study(plan, workers=1, out=file))
    assert 'grid' not in alone['plan']
    for table in {*TABLES} - {'published'}:
        mine = [row for row in whole[table] if row['point'] == POINTS[3]]
        assert [row | dict(point=POINTS[3]) for row in alone[table]] == mine, table


def means(row):
    "A row, without the intervals of a curve: a kept cell has the means of a curve alone."
    ends = ('auc_low', 'auc_high', 'z_low', 'z_high', 'c_low', 'c_high')
    return {key: value for key, value in row.items() if 'shots' not in row or key not in ends}


def test_a_grid_goes_on_from_the_cells_that_are_kept(planned, whole):
    "On another machine, with empty runs; a point more is asked, and no other again."
    plan, file = planned('elsewhere', grid=GRID | dict(shots=[1, 3, 4]))
    first = study_cells(plan)[0]
    assert first.name == 'fold1-split5-seed0-shots=1-match_on=projection'
    again = read_study(run_study(plan, workers=1, out=file))
    for table in {*TABLES} - {'published'}:
        there = [row for row in again[table] if row['point'] in POINTS]
        assert list(map(means, there)) == list(map(means, whole[table])), table
    new = [row for row in again['rows'] if row['point'] not in POINTS]
    assert {row['point'].split(',')[0] for row in new} == {'shots=4'}
    answered = [cell.name for cell in study_cells(plan) if (cell.folder / 'scores').exists()]
    assert len(answered) == 2 and all('shots=4' in name for name in answered)


def test_tables_and_the_page_say_the_point(planned, whole, tmp_path, capsys):
    plan, file = planned('whole', grid=GRID)
    run_study(plan, workers=1, out=file, report=True)
    said = capsys.readouterr().out
    page = write_leaderboard(whole, tmp_path).read_text()
    tex = (tmp_path / 'leaderboard.tex').read_text()
    for point in POINTS:
        assert f'mine, ridge, {point}' in said and f'mine, ridge, {point}' in page
        assert f'mine, ridge, {point}'.replace('_', r'\_') in tex
    assert '1 or 3-shot leaderboard' in page
    frame = pd.read_csv(tmp_path / 'leaderboard.csv')
    assert {*frame.point} == {*POINTS}
