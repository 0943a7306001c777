"Episodes as a file: another process, another copy of the data, and what may be wrong with both."

import json, os, shutil, subprocess, sys

import pandas as pd
import pytest
from smlxray.cli import call
from smlxray.config import load_settings
from smlxray.evaluate import evaluate, save_results
from smlxray.lab import open_lab
from smlxray.methods import FrozenMethod, pixel_method, probe_head

OTHERS = '''
import csv, hashlib, json, sys
from pathlib import Path
import numpy as np
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import normalize

episodes, folder, answers = map(Path, sys.argv[1:])
head, *lines = map(json.loads, episodes.read_text().splitlines())
where = {hashlib.sha256(p.read_bytes()).hexdigest()[:16]: p for p in folder.rglob('*.jpg')}
images = [where[line['sha256']] for line in lines if 'image' in line]
pixels = np.stack([np.asarray(Image.open(p).convert('L'), float).ravel() for p in images])
x = normalize(pixels - pixels.mean(1, keepdims=True))
rows = []
for e in lines[len(images):]:
    yes = np.array(e['support_labels']) == 1
    support, query = x[e['support']], x[e['query']]
    near = query @ (support[yes].mean(0) - support[~yes].mean(0))
    probe = LogisticRegression(C=10, fit_intercept=False, tol=1e-10, max_iter=10_000)
    one = np.ones((len(x), 1))
    probe.fit(np.c_[support, one[:len(support)]], e['support_labels'])
    far = probe.decision_function(np.c_[query, one[:len(query)]])
    for name, scores in (('centroids', near), ('logistic', far)):
        rows += [[name, e['episode'], i, s] for i, s in zip(e['query'], scores)]
with open(answers, 'w', newline='') as out:
    csv.writer(out).writerows([['method', 'episode', 'image', 'score'], *reversed(rows)])
assert not {'smlxray', 'torch'} & set(sys.modules)
'''


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "A run with answers of its own, the file of its episodes, and another copy of its X-rays."
    home = tmp_path_factory.mktemp('exchange')
    paths = {key: str(home / key) for key in ('dataset_path', 'cache_path', 'runs_path')}
    more = dict(image_size=64, shots=3, queries=10, episodes=6)
    (home / 'run.yaml').write_text(json.dumps(dict(preset='tiny')))
    settings = load_settings('tiny', **paths, **more)
    lab = open_lab(settings)
    pixels = pixel_method(lab, size=64)
    probe = FrozenMethod('linear probe', pixels.rows, pixels.vectors, head=probe_head)
    save_results(evaluate(lab, [pixels, probe]))
    words = [word for key, value in (paths | more).items() for word in ('-p', f'{key}={value}')]
    assert call(['episodes', 'export', str(home / 'e.jsonl'), '-p', 'preset=tiny', *words]) == 0
    shutil.copytree(home / 'dataset_path', home / 'copy')
    return home


@pytest.fixture
def said(home, capsys, monkeypatch):
    "Call the command in that folder: what it printed, or its sentence."
    monkeypatch.chdir(home)

    def said(*words, code=0):
        capsys.readouterr()
        assert call(list(map(str, words))) == code
        out, err = capsys.readouterr()
        return err if code else out

    return said


def test_another_process_gets_the_same_rows(home, said):
    (home / 'others.py').write_text(OTHERS)
    words = [sys.executable, 'others.py', 'e.jsonl', 'copy', 'others.csv']
    bare = {key: value for key, value in os.environ.items() if key != 'PYTHONPATH'}
    subprocess.run(words, cwd=home, env=bare, check=True)
    run = home / 'runs_path' / 'tiny' / 'bundle'
    told = said('score', 'others.csv', '--episodes', 'e.jsonl', '--run', run, '--json',
                '--over', 'pixels', '--output', 'rows.csv')
    told = json.loads(told)
    own = json.loads((home / 'runs_path/tiny/results.json').read_text())['rows']
    own = {(row['method'], row['finding']): row for row in own}
    rows = {(row['method'], row['finding']): row for row in told['rows']}
    assert len(rows) == 4 * 4
    for theirs, ours in (('centroids', 'pixels'), ('logistic', 'linear probe')):
        for finding in ('Cardiomegaly', 'Consolidation', 'Pneumothorax', 'mean'):
            a, b = rows[theirs, finding], own[ours, finding]
            assert abs(a['auc'] - b['auc']) < 1e-9
            assert abs(a['ap'] - b['ap']) < 1e-9
            assert abs(a['auc_low'] - b['auc_low']) < 1e-5
            assert (a['patients'], a['episodes']) == (b['patients'], b['episodes'])
    paired = {(row['method'], row['finding']): row for row in told['differences']}
    assert abs(paired['centroids', 'mean']['difference']) < 1e-9
    gap = rows['logistic', 'mean']['auc'] - rows['centroids', 'mean']['auc']
    assert abs(paired['logistic', 'mean']['difference'] - gap) < 1e-9
    assert len(pd.read_csv(home / 'rows.csv')) == 16


def test_a_copy_is_checked(home, said):
    fits = said('episodes', 'check', 'e.jsonl', '--data', 'copy')
    assert 'fits copy' in fits
    assert json.loads(said('episodes', 'check', 'e.jsonl', '--data', 'copy', '--json'))['fits']
    lines = list(map(json.loads, (home / 'e.jsonl').read_text().splitlines()))
    assert not any('name' in line for line in lines)
    assert 'patient' not in json.dumps(lines[0]['data'])
    asked = {line['sha256'] for line in lines if 'image' in line}
    import hashlib
    gone = [
        path
        for path in sorted((home / 'copy').rglob('*.jpg'))
        if hashlib.sha256(path.read_bytes()).hexdigest()[:16] in asked
    ][:3]
    for path in gone: path.unlink()
    text = said('episodes', 'check', 'e.jsonl', '--data', 'copy', code=1)
    assert f'copy lacks 3 of the {len(asked)} images of e.jsonl: missing or changed' in text
    assert text.count('\n') == 1


def test_what_may_be_wrong_ends_in_a_sentence(home, said):
    (home / 'some.csv').write_text('episode,image,score\n0,0,1\n')
    (home / 'bytes.csv').write_bytes(bytes(range(256)) * 40)
    text = said('score', 'some.csv', '--episodes', 'e.jsonl', code=1)
    assert 'some.csv lacks ' in text and 'answer every query' in text
    for words, sentence in (
        (['score', 'none.csv', '--episodes', 'e.jsonl'], 'There is no file none.csv'),
        (['score', 'bytes.csv', '--episodes', 'e.jsonl'], 'bytes.csv'),
        (['score', 'some.csv', '--episodes', 'some.csv'], 'some.csv is damaged ('),
        (['score', 'some.csv', '--episodes', 'gone.jsonl'], 'gone.jsonl; ask for it again'),
        (['score', '--episodes', 'e.jsonl', '--run', 'nobody'], "no run 'nobody'"),
        (['episodes', 'export', 'run.yaml', '-p', 'preset=tiny'], 'not made by this command'),
        (['episodes', 'check', 'e.jsonl', '--data', 'nowhere'], 'nowhere'),
    ):
        text = said(*words, code=1)
        assert sentence in text and 'Traceback' not in text and text.count('\n') == 1
