"""Every long command, killed at random moments, ends with the bytes of one that was left alone.

`make torture` kills fifty and prints a table; `make test` kills one, and the pages once, in
`test_pages.py`. A kill is a kill -9 of the command alone, as the system does it when memory is
short: what the command has started must follow. Each chain of kills ends with a run that is left
alone, after which nothing may lie about. The commands are copies of one process that has imported
the package, so that the time goes into their work; the pages are started as users start them.
"""

import hashlib
import json
import os
import random
import re
import select
import shutil
import signal
import subprocess
import sys
import time
import traceback
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from browser import Served
from plans import TWO_METHODS
from processes import children, lives

from smlxray.base import SmlxrayError

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

    ensure_phantoms(home / 'out' / 'phantoms', 60, 48, workers=2, progress=False)


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


def embed(home):
    import smlxray.encoders as encoders

    encoders.PART_EVERY = 0.0
    how = ['--output', home / 'out' / 'vectors.safetensors', '--cache-path', home / 'cache']
    command('embed', home / 'dataset', '--encoder', home / 'bundle', '--batch-size', 4, *how)


PLAN = f"""
preset: tiny
folds: {{1: [Cardiomegaly], 2: [Edema]}}
splits: [5]
episodes: 20
backbones: {{supervised: {{objective: naming, epochs: 1, augment: {{}}}}}}
{TWO_METHODS}"""


def study(home, workers=1):
    from smlxray.plan import load_plan
    from smlxray.study import run_study

    plan = load_plan(home / 'plan.yaml', folder=str(home / 'dataset'))
    there = dict(cache_path=str(home / 'cache'), runs_path=str(home / 'out'), patients=160)
    there |= dict(shots=1, queries=2, backbone='conv4', test_fraction=0.4)
    run_study(plan.model_copy(update=dict(settings=there)), workers=workers)


def study_workers(home):
    study(home, workers=2)


# name -> kills in `make torture`, and whether two are started at once in half of the chains
WORKS = dict(
    phantoms=(6, True), cache=(6, True), siamese=(6, True), meta=(6, True), evaluate=(6, True),
    predict=(6, True), export=(4, True), teach=(4, True), embed=(5, True), study=(5, True),
    study_workers=(1, False),
)  # fmt: skip
APP_KILLS = 3


def prepare(home):
    "Make what the commands need: data, a trained run, its bundle, and X-rays in a folder."
    from smlxray.bundle import bundle_of_run
    from smlxray.train import ensure_siamese

    (home / 'plan.yaml').write_text(PLAN)
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


class Nursery:
    "A process that has imported the package, and starts commands as copies of itself."

    def __init__(self, home, works):
        self.ends = home / 'ends'
        self.ends.mkdir(exist_ok=True)
        words = [sys.executable, '-W', 'ignore', str(Path(__file__)), str(home), *works]
        env = {**os.environ, 'OMP_NUM_THREADS': '1'}
        env.pop('SMLXRAY_PHANTOMS', None)
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True, env=env)
        self.process.stdout.readline()

    def start(self, work):
        self.process.stdin.write(f'{work}\n')
        self.process.stdin.flush()
        return Command(int(self.process.stdout.readline()), self.ends)

    def end(self):
        self.process.stdin.close()
        self.process.wait(10)


class Command:
    "A command that runs, or has ended."

    def __init__(self, pid, ends):
        self.pid, self.place = pid, ends

    def code(self):
        "Its exit code; None while it runs."
        told = self.place / f'{self.pid}.code'
        return int(told.read_text()) if told.exists() else None

    def finish(self, seconds=300):
        "Wait for it; return its exit code, and what it said."
        end = time.time() + seconds
        while self.code() is None:
            assert time.time() < end, f'it still runs after {seconds} s'
            time.sleep(0.01)
        return self.code(), (self.place / f'{self.pid}.said').read_text()

    def kill(self):
        "Kill it alone; return whether it ran, and how many of its children live on for seconds."
        if self.code() is not None: return False, 0
        below = children(self.pid)
        with suppress(ProcessLookupError):  # it ended just now
            os.kill(self.pid, signal.SIGKILL)
        code, _ = self.finish()
        return code == -signal.SIGKILL, survivors(below)


def survivors(pids, seconds=5):
    "How many processes live on some seconds later."
    end = time.time() + seconds
    while any(map(lives, pids)) and time.time() < end:
        time.sleep(0.05)
    return sum(map(lives, pids))


@contextmanager
def nursery_of(home, works):
    nursery = Nursery(home, works)
    yield nursery
    nursery.end()


def be_nursery(home, works):
    "Start what is asked for at the input, and write down how it ends."
    import smlxray.phantom

    if {*works} - {'phantoms'}: import smlxray.cli, smlxray.report, smlxray.study  # noqa: E401, F401
    print('ready', flush=True)
    while True:
        asked, _, _ = select.select([sys.stdin], [], [], 0.01)
        while reaped(home / 'ends'): pass
        if not asked: continue
        work = sys.stdin.readline().strip()
        if not work: return
        pid = os.fork()
        if not pid: be_command(home, work)
        print(pid, flush=True)


def reaped(ends):
    "Write down how one command has ended, if one has."
    try:
        pid, status = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return False
    if not pid: return False
    draft = ends / f'{pid}.draft'
    draft.write_text(str(os.waitstatus_to_exitcode(status)))
    draft.rename(ends / f'{pid}.code')
    return True


def be_command(home, work):
    "Be one command, from here to its end."
    said = os.open(home / 'ends' / f'{os.getpid()}.said', os.O_WRONLY | os.O_CREAT)
    for stream in (1, 2): os.dup2(said, stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    code = 1
    try:
        globals()[work](home)
        code = 0
    except SystemExit as end:
        code = end.code or 0
    except SmlxrayError as error:
        print(f'smlxray: {error}')
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def empty(folder):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()


def chain(nursery, work, length, most, twice, chance):
    "Kill a command up to three times; return kills and orphans, and commands that were let be."
    kills, orphans, others = 0, 0, []
    for _ in range(min(chance.randint(1, 3), most)):
        process = nursery.start(work)
        if twice and chance.random() < 0.4: others.append(nursery.start(work))
        time.sleep(chance.uniform(0, 0.9 * length))
        killed, left = process.kill()
        kills, orphans = kills + killed, orphans + left
    return kills, orphans, others


def tortured(nursery, work, home, calm, length, kills, twice, chance):
    "Kill a command again and again, let it end, and compare; return what is to be told of it."
    told = dict(work=work, kills=0, chains=0, twice=0, equal=0, orphans=0)
    while told['kills'] < kills:
        empty(home / 'out')
        done, orphans, others = chain(nursery, work, length, kills - told['kills'], twice, chance)
        for other in others:
            code, said = other.finish()
            assert code == 0 or 'Traceback' not in said, said[-2000:]
        code, said = nursery.start(work).finish()
        assert code == 0, f'{work}: {said[-2000:]}'
        found = contents(home / 'out')
        assert found == calm, f'{work}: {sorted(set(found.items()) ^ set(calm.items()))[:6]}'
        new = dict(kills=done, chains=1, twice=len(others), equal=1, orphans=orphans)
        told |= {key: told[key] + value for key, value in new.items()}
    return told


def torture(home, works, chance):
    "Torture some commands; print and return the table."
    table = []
    with nursery_of(home, works) as nursery:
        for work, (kills, twice) in works.items():
            empty(home / 'out')
            began = time.monotonic()
            code, said = nursery.start(work).finish()
            assert code == 0, f'{work}: {said[-2000:]}'
            length, calm = time.monotonic() - began, contents(home / 'out')
            assert calm, f'{work} wrote nothing'
            told = tortured(nursery, work, home, calm, length, kills, twice, chance)
            table.append(told | dict(seconds=round(time.monotonic() - began)))
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
    assert sum(row['kills'] for row in table) >= 50 - APP_KILLS
    assert all(row['orphans'] == 0 for row in table)


def ask(server_log):
    "Ask a server for its page, as a visitor does; this begins a kernel."
    address = re.search(r'http://\S+', server_log.read_text())[0]
    with urllib.request.urlopen(address, timeout=60) as answer: return answer.read(200)


@pytest.mark.slow
def test_the_pages_are_killed_with_all_that_they_started(home):
    "No process, no temporary file and no changed run is left, wherever the server was killed."
    chance, run, place = random.Random(SEED), home / 'runs' / 'kept', home / 'app'
    place.mkdir()
    began = time.monotonic()
    calm = Served(place, run)
    length = time.monotonic() - began
    calm.stop()
    before, scratch = contents(run), str(calm.scratch)
    env = {**os.environ, 'HOME': scratch, 'TMPDIR': scratch, 'OMP_NUM_THREADS': '1'}
    for k in range(APP_KILLS):
        with calm.log.open('w') as log:
            process = subprocess.Popen(calm.process.args, env=env, stdout=log, stderr=log)
        time.sleep(chance.uniform(0.2, length))
        while not k and 'Ctrl-C ends it' not in calm.log.read_text(): time.sleep(0.1)
        if not k: ask(calm.log)
        below = children(process.pid)
        process.kill()
        process.wait()
        assert survivors(below, 10) == 0
    last = Served(place, run)
    assert b'<!DOCTYPE html>' in ask(last.log)
    below = children(last.process.pid)
    last.stop()
    assert survivors(below, 10) == 0 and contents(run) == before
    left = [path for path in calm.scratch.iterdir() if not path.name.startswith('.')]
    assert not left, left


if __name__ == '__main__': be_nursery(Path(sys.argv[1]), sys.argv[2:])
