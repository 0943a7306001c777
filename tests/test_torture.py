"""Every long command, killed at random moments, ends with the bytes of one that was left alone.

`make torture` kills fifty and prints a table; `make test` kills two, and the pages once, in
`test_pages.py`. A kill is a kill -9 of the
command alone, as the system does it when memory is short: what the command has started must follow.
Each chain of kills ends with a run that is left alone, after which nothing may lie about.
"""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from processes import children, lives

SEED = 14
FINDING = 'Cardiomegaly'


def lab_of(home, **changes):
    from smlxray.config import load_settings
    from smlxray.lab import open_lab

    there = {f'{k}_path': home / k for k in ('dataset', 'cache', 'runs')}
    small = dict(patients=160, backbone='conv4', siamese_epochs=3, meta_episodes=6, episodes=3)
    small |= dict(queries=4)
    how = dict(novel_findings=FINDING, bootstrap=50, run='kept', progress=False)
    return open_lab(load_settings('tiny', **{**there, **small, **how, **changes}))


def phantoms(home):
    from smlxray.phantom import ensure_phantoms

    ensure_phantoms(home / 'out' / 'phantoms', 100, 48, workers=2, progress=False)


def cache(home):
    lab_of(home, cache_path=home / 'out' / 'cache')


def siamese(home):
    from smlxray.train import train_siamese

    train_siamese(lab_of(home, runs_path=home / 'out', run='siamese', resume=True))


def meta(home):
    import smlxray.train as train

    train.STATE_EVERY = 0.1
    lab = lab_of(home, runs_path=home / 'out', run='meta', resume=True)
    train.train_meta(lab, train.ensure_siamese(lab_of(home)), 'fomaml')


def evaluate(home):
    from smlxray.evaluate import evaluate, save_results
    from smlxray.methods import network_method
    from smlxray.train import ensure_siamese

    lab = lab_of(home, runs_path=home / 'out', run='evaluated')
    save_results(evaluate(lab, [network_method(lab, ensure_siamese(lab_of(home)), 'siamese')]))


def command(*words):
    from smlxray.cli import call

    if code := call([str(word) for word in words]): sys.exit(code)


def predict(home):
    done = home / 'out' / 'predictions.csv'
    if done.exists() and not list(done.parent.glob('*unfinished*')): return
    command('predict', home / 'xrays', '--model', home / 'bundle', '--output', done)


def export(home):
    command('model', 'export', home / 'out' / 'bundle', '--model', home / 'bundle')


def teach(home):
    examples = ['--positive', home / 'with', '--negative', home / 'without']
    how = ['--model', home / 'bundle', '--name', 'Fluid', '--output', home / 'out' / 'taught']
    command('teach', *examples, *how)


# name -> kills in `make torture`, and whether two are started at once in half of the chains
WORKS = dict(
    phantoms=(8, True), cache=(6, True), siamese=(7, True), meta=(7, True), evaluate=(6, False),
    predict=(6, True), export=(5, True), teach=(5, False),
)  # fmt: skip


def prepare(home):
    "Make what the commands need: data, a trained run, its bundle, and X-rays in a folder."
    from smlxray.bundle import bundle_of_run
    from smlxray.train import ensure_siamese

    lab = lab_of(home)
    ensure_siamese(lab)
    bundle_of_run(lab).save(home / 'bundle')
    paths = [Path(path) for path in lab.table.paths()]
    parts = {'xrays': paths[:90], 'with': paths[:4], 'without': paths[4:8]}
    for folder, part in parts.items():
        (home / folder).mkdir()
        for k, path in enumerate(part):
            shutil.copy(path, home / folder / f'{k:03d}{path.suffix}')


def content(path):
    "The content of a file, without what tells only when it was written."
    if path.suffix == '.safetensors':
        from safetensors.numpy import load_file

        return {name: array.tobytes() for name, array in sorted(load_file(path).items())}
    if path.suffix == '.npz':
        with np.load(path) as arrays:
            return {name: arrays[name].tobytes() for name in sorted(arrays.files)}
    if path.name == 'results.json':
        return json.loads(path.read_text())['rows']
    if path.name == 'metrics.jsonl':
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        return [{k: v for k, v in row.items() if 'seconds' not in k} for row in rows]
    return path.read_bytes()


UNTOLD = ('config.yaml', 'sources.npy')  # the folder itself; times of the images


def contents(folder):
    "A digest of each file below a folder; drafts and locks count as files, so none may be left."
    files = [p for p in sorted(folder.rglob('*')) if p.is_file() and p.name not in UNTOLD]
    digests = {}
    for path in files:
        words = repr(content(path)).encode()
        digests[str(path.relative_to(folder))] = hashlib.sha256(words).hexdigest()[:12]
    return digests


def start(work, home):
    "Start a command; return it when it has imported what it needs."
    words = [sys.executable, '-W', 'ignore', str(Path(__file__)), work, str(home)]
    env = {**os.environ, 'OMP_NUM_THREADS': '1'}
    env.pop('SMLXRAY_PHANTOMS', None)
    pipe = subprocess.PIPE
    process = subprocess.Popen(words, stdout=pipe, stderr=subprocess.STDOUT, text=True, env=env)
    while line := process.stdout.readline():
        if line == 'begin\n': break
    return process


def finish(process, seconds=300):
    "Wait for a command; return its exit code, and what it said."
    said, _ = process.communicate(timeout=seconds)
    return process.returncode, said


def kill(process):
    "Kill a command alone; return how many of its children live on some seconds later."
    if process.poll() is not None: return 0
    below = children(process.pid)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    end = time.time() + 5
    while any(map(lives, below)) and time.time() < end:
        time.sleep(0.05)
    return sum(map(lives, below))


def tortured(work, home, calm, length, kills, twice, chance):
    "Kill a command again and again, let it end, and compare; return what is to be told of it."
    told = dict(work=work, kills=0, chains=0, equal=0, orphans=0)
    while told['kills'] < kills:
        shutil.rmtree(home / 'out', ignore_errors=True)
        (home / 'out').mkdir()
        others = []
        for _ in range(chance.randint(1, 3)):
            if told['kills'] >= kills: break
            process = start(work, home)
            if twice and chance.random() < 0.4: others.append(start(work, home))
            time.sleep(chance.uniform(0, 0.9 * length))
            told['kills'] += process.poll() is None
            told['orphans'] += kill(process)
        for other in others:
            code, said = finish(other)
            assert code == 0 or 'Traceback' not in said, said[-2000:]
        code, said = finish(start(work, home))
        assert code == 0, f'{work}: {said[-2000:]}'
        told['chains'] += 1
        found = contents(home / 'out')
        assert found == calm, f'{work}: {sorted(set(found.items()) ^ set(calm.items()))[:6]}'
        told['equal'] += 1
    return told


def torture(home, works, chance):
    "Torture some commands; print and return the table."
    table = []
    for work, (kills, twice) in works.items():
        shutil.rmtree(home / 'out', ignore_errors=True)
        (home / 'out').mkdir()
        process = start(work, home)
        began = time.monotonic()
        code, said = finish(process)
        assert code == 0, f'{work}: {said[-2000:]}'
        length, calm = time.monotonic() - began, contents(home / 'out')
        assert calm, f'{work} wrote nothing'
        table.append(tortured(work, home, calm, length, kills, twice, chance))
        print(*(f'{k} {v}' for k, v in table[-1].items()), sep=', ', flush=True)
    return table


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp('torture')
    prepare(folder)
    return folder


def test_a_few_kills(tmp_path):
    table = torture(tmp_path, dict(phantoms=(1, False)), random.Random(SEED))
    assert all(row['orphans'] == 0 for row in table)


@pytest.mark.slow
def test_fifty_kills(home):
    table = torture(home, WORKS, random.Random(SEED))
    assert sum(row['kills'] for row in table) >= 50
    assert all(row['orphans'] == 0 for row in table)


if __name__ == '__main__':
    name, place = sys.argv[1:]
    import smlxray.bundle
    import smlxray.cli
    import smlxray.evaluate  # noqa: F401

    print('begin', flush=True)
    globals()[name](Path(place))
