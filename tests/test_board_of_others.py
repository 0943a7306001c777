"Published protocols in the leaderboard: two commands, rows with what an encoder has seen."

import json

import numpy as np
import pandas as pd
import pytest

from smlxray.cli import call
from smlxray.phantom import write_phantoms
from smlxray.readers import read_chexpert
from smlxray.study import read_study

FEW = '--shots 2 --queries 4 --episodes 5 --curve 0 --workers 1 --head prototypes --head ridge'


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "Small phantoms, and vectors that half know what they show."
    home = tmp_path_factory.mktemp('others')
    write_phantoms(home / 'x', patients=800, size=32, seed=0, workers=1, progress=False)
    table = read_chexpert(home / 'x')
    shown = np.nan_to_num(table.labels).clip(0)
    noise = np.random.default_rng(0).normal(size=shown.shape)
    np.save(home / 'mine.npy', shown + 0.7 * noise)
    (home / 'mine.txt').write_text('\n'.join(table.frame['path']))
    return home


@pytest.mark.parametrize('protocol, title, measure', [
    ('metachest', 'MetaChest, 3 findings, 1 unseen, patients apart', 'hm'),
    ('medimeta', 'MedIMeta, ', 'auc'),
])
def test_a_protocol_has_rows_in_the_leaderboard(
    home, monkeypatch, capsys, protocol, title, measure
):
    monkeypatch.chdir(home)
    words = f'leaderboard mine.npy --data x --protocol {protocol} --output {protocol} {FEW}'
    if protocol == 'medimeta': words += ' --novel Cardiomegaly,Pneumothorax --splits 2'
    assert call(f'{words} --run {protocol}'.split()) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    study = read_study(home / protocol / 'leaderboard.json')
    rows = study['published']
    cells = {(row['split'], row['seed']) for row in rows}
    assert len(cells) == (2 if protocol == 'medimeta' else 1)
    assert len(rows) == 4 * len(cells) and {row['episodes'] for row in rows} == {5}
    assert all(row['protocol'].startswith(title) for row in rows)
    mine = [row for row in rows if row['method'].startswith('mine')]
    assert all(row[measure] > 0.6 for row in mine) and len(mine) == 2 * len(cells)
    told = 'taught the novel findings: unknown; saw test patients: unknown'
    assert {row['leak'] for row in mine} == {told}
    assert {'pixels', 'untrained'} < {row['method'] for row in rows}
    page = (home / protocol / 'leaderboard.html').read_text()
    assert title in said and title in page and 'Protocols of others' in page
    table = pd.read_csv(home / protocol / 'published.csv')
    assert list(table.method) == [row['method'] for row in rows]
    before = json.dumps(rows)
    assert call(f'{words} --run {protocol}'.split()) == 0  # from what is kept
    assert json.dumps(read_study(home / protocol / 'leaderboard.json')['published']) == before


def test_a_table_that_cannot_serve_the_protocol_is_told_at_once(home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    words = 'leaderboard mine.npy --data x --protocol bscd_fsl --novel Edema --run single'
    assert call(words.split()) == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith('smlxray: 5 findings with 40 patients each that show it alone'), said


def test_a_misspelt_protocol_is_one_sentence(home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    assert call('leaderboard mine.npy --data x --protocol metachst'.split()) == 2
    assert 'metachest' in capsys.readouterr().err
