"A Dask cluster of two processes gives the bytes of this process, though one is killed meanwhile."

import multiprocessing
import os
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from select import select

import pandas as pd
import pytest
import torch
from plans import TWO_METHODS
from processes import lives

import smlxray.bundle as bundles
import smlxray.cache as caches
import smlxray.encoders as encoders
import smlxray.study as studies
from smlxray import cluster
from smlxray.base import CLUSTERS, SmlxrayError
from smlxray.bundle import Bundle, add_finding, image_files, make_bundle, predict_files
from smlxray.cache import ImageCache
from smlxray.cluster import spread
from smlxray.config import load_settings
from smlxray.encoders import embed_table, open_encoder
from smlxray.lab import open_lab
from smlxray.phantom import write_phantoms
from smlxray.processes import _free_port
from smlxray.readers import read_chexpert
from smlxray.siamese import SiameseNet
from smlxray.plan import load_plan
from smlxray.study import read_study, run_study

distributed = pytest.importorskip('distributed', reason="smlxray[cluster] is not installed")


@pytest.fixture(scope='module')
def two():
    "A cluster of two processes; those that die are replaced."
    how = dict(threads_per_worker=1, dashboard_address=None, silence_logs='CRITICAL')
    with distributed.LocalCluster(2, **how) as running: yield running


@pytest.fixture(scope='module')
def xrays(tmp_path_factory):
    folder = tmp_path_factory.mktemp('cluster') / 'x'
    write_phantoms(folder, patients=160, size=64, seed=0, workers=1, progress=False)
    table = read_chexpert(folder)
    (folder / table.frame['path'].iat[70]).write_bytes(b'broken')
    return table


def address(two): return f'dask:{two.scheduler_address}'


def killing(monkeypatch, module, two):
    "Kill a worker after the first answer; return the list of those that were killed."
    killed = []

    def patched(*args, **more):
        for answer in spread(*args, **more):
            if not killed:
                killed.append(next(iter(two.workers.values())).pid)
                os.kill(killed[0], signal.SIGKILL)
            yield answer

    monkeypatch.setattr(module, 'spread', patched)
    return killed


def content(folder):
    names = ('pixels.npy', 'rows.npy', 'sources.npy')
    return {name: (folder / name).read_bytes() for name in names}


def test_a_cache_has_the_same_bytes(xrays, two, tmp_path, monkeypatch):
    alone = ImageCache.build(xrays, (48, 48), tmp_path / 'a', 1, False)
    killed = killing(monkeypatch, caches, two)
    ours = ImageCache.build(xrays, (48, 48), tmp_path / 'b', 1, False, address(two))
    assert killed and not lives(killed[0])
    assert content(ours.path) == content(alone.path) and ours.digest == alone.digest
    assert ours.quarantined == alone.quarantined and list(ours.quarantined) == [70]


@pytest.fixture(scope='module')
def bundle(xrays, tmp_path_factory):
    place = tmp_path_factory.mktemp('model')
    paths = dict(dataset_path=xrays.root, cache_path=place / 'c', runs_path=place / 'r')
    usual = dict(backbone='conv4', novel_findings='Cardiomegaly', patients=160)
    lab = open_lab(load_settings('tiny', **usual, **paths))
    made = make_bundle(lab, SiameseNet('conv4', 8))
    made.save(place / 'bundle')
    return Bundle.load(place / 'bundle')


@pytest.mark.slow
def test_predictions_are_the_same(xrays, bundle, two, monkeypatch):
    few = torch.stack([torch.from_numpy(bundle.picture(f).pixels)[None] for f in some(xrays, 8)])
    add_finding(bundle, bundle.teach('Air', few[:4], few[4:], steps=0))
    files = image_files(xrays.root)
    def table(*how): return pd.concat(predict_files(bundle, files, 0.1, 16, *how)).to_csv()
    alone = table(1)
    killed = killing(monkeypatch, bundles, two)
    assert table(1, address(two)) == alone
    assert killed and not lives(killed[0]) and 'Air' in alone.splitlines()[0]


def some(xrays, count):
    return [Path(xrays.root) / path for path in xrays.frame['path'][:count]]


def test_embeddings_are_the_same(xrays, bundle, two, tmp_path, monkeypatch):
    pixels = ImageCache.build(xrays, (32, 32), tmp_path, 1, False)
    encoder = open_encoder(str(bundle.path))
    alone = embed_table(encoder, xrays, pixels, 16)
    killed = killing(monkeypatch, encoders, two)
    ours = embed_table(encoder, xrays, pixels, 16, cluster=address(two))
    assert killed and not lives(killed[0])
    assert ours.digest == alone.digest and ours.made_of == alone.made_of


@pytest.fixture
def spawned(monkeypatch):
    "Let `spawned` be a cluster: a process that inherits nothing, as on macOS and Windows."
    with multiprocessing.get_context('spawn').Pool(1) as pool:

        def by_spawn(work, jobs, shared, workers, address):
            told = cluster.who_we_are(), work, *cluster.pickled(shared)
            for job in jobs: yield pool.apply(cluster._on_worker, (*told, *job))

        monkeypatch.setattr(CLUSTERS, '_entries', dict(CLUSTERS._entries))
        CLUSTERS.add('spawned', by_spawn)
        yield 'spawned'


def test_a_spawned_process_gives_the_same(xrays, bundle, spawned, tmp_path):
    alone = ImageCache.build(xrays, (32, 32), tmp_path / 'a', 1, False)
    ours = ImageCache.build(xrays, (32, 32), tmp_path / 'b', 1, False, spawned)
    assert content(ours.path) == content(alone.path)
    encoder, few = open_encoder(str(bundle.path)), xrays[:40]
    pixels = ImageCache.build(few, (32, 32), tmp_path / 'c', 1, False)
    vectors = [embed_table(encoder, few, pixels, 16, cluster=how) for how in ('threads', spawned)]
    assert vectors[0].digest == vectors[1].digest
    files = image_files(xrays.root)[:20]
    told = [pd.concat(predict_files(bundle, files, 0.1, 8, 1, how)) for how in ('threads', spawned)]
    assert told[0].to_csv() == told[1].to_csv()


PLAN = f"""
run: study
preset: tiny
folds: {{1: [Cardiomegaly], 2: [Edema], 3: [Pneumothorax]}}
splits: [5]
episodes: 20
backbones: {{supervised: {{objective: naming, epochs: 1, augment: {{}}}}}}
{TWO_METHODS}"""


def a_study(xrays, place, how):
    (place / 'plan.yaml').write_text(PLAN)
    there = dict(cache_path=str(place / 'c'), runs_path=str(place / how[:4]), patients=160)
    there |= dict(shots=1, queries=2, backbone='conv4', test_fraction=0.4)
    plan = load_plan(place / 'plan.yaml', folder=str(xrays.root), cluster=how)
    path = run_study(plan.model_copy(update=dict(settings=there)), workers=1)
    told = read_study(path)
    return {key: told[key] for key in ('rows', 'controls')}


@pytest.mark.slow
def test_a_study_has_the_same_rows(xrays, two, tmp_path, monkeypatch):
    alone = a_study(xrays, tmp_path, 'loky')
    killed = killing(monkeypatch, studies, two)
    assert a_study(xrays, tmp_path, address(two)) == alone
    assert killed and not lives(killed[0]) and len(alone['rows']) >= 6


@pytest.mark.slow
def test_the_command_starts_a_cluster_of_its_own(xrays, tmp_path):
    said = run(['cache', 'build', str(xrays.root), '--size', '32', '--cache-path', str(tmp_path),
                '--cluster', 'dask', '--workers', '2'])
    assert said.returncode == 0, said.stderr
    assert '1 in quarantine' in said.stdout


def run(words):
    line = [sys.executable, '-m', 'smlxray.cli', *words]
    return subprocess.run(line, capture_output=True, text=True)


def failed(*told, **more):
    with pytest.raises(SmlxrayError) as error: list(spread(*told, **more))
    assert '\n' not in str(error.value)
    return str(error.value)


def test_what_is_wrong_with_a_cluster_is_one_sentence(two, tmp_path, monkeypatch):
    jobs, there = [(1,), (2,)], address(two)
    assert "mean 'dask'" in failed(max, jobs, 0, 1, 'dusk')
    silent = f'dask:tcp://127.0.0.1:{_free_port()}'
    assert 'The cluster does not answer' in failed(max, jobs, 0, 1, silent)
    (tmp_path / 'only_here.py').write_text('def work(shared, k): return k')
    monkeypatch.syspath_prepend(tmp_path)
    said = failed(import_module('only_here').work, jobs, 0, 1, there)
    assert "No module named 'only_here'" in said and 'install the same there' in said
    ours = cluster.who_we_are()
    monkeypatch.setattr(cluster, 'who_we_are', lambda: ours | dict(torch='1.0'))
    assert f"has torch {ours['torch']}, not 1.0" in failed(max, jobs, 0, 1, there)
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, 'distributed', None)
    assert "pip install 'smlxray[cluster]'" in failed(max, jobs, 0, 1, there)


@pytest.mark.parametrize('kind', ['threads', 'loky'])
def test_what_nobody_waits_for_is_dropped_without_a_word(kind, recwarn):
    waits = [([], [], seconds) for seconds in (0, *[0.2] * 8)]
    answers = spread(select, waits, [], 2, kind)
    assert next(answers) == ([], [], [])
    answers.close()
    assert [str(w.message) for w in recwarn] == []


def test_a_job_that_kills_every_worker_ends_the_command(two):
    two.scheduler.allowed_failures = 0
    assert 'died one after another' in failed(os._exit, [()], 1, 1, address(two))
    two.scheduler.allowed_failures = 3
    assert list(spread(max, [(1,), (2,)], 0, 1, address(two))) == [1, 2]


def test_a_worker_that_sees_other_data_ends_the_command(xrays, bundle, two, tmp_path, monkeypatch):
    real = caches._sources
    monkeypatch.setattr(caches, '_sources', lambda *told: real(*told) + 1)
    with pytest.raises(SmlxrayError, match='sees another file .*: all machines need'):
        ImageCache.build(xrays, (48, 48), tmp_path, 1, False, address(two))
    monkeypatch.setattr(bundles, '_lengths', lambda paths: [7 for _ in paths])
    with pytest.raises(SmlxrayError, match='bytes, not 7; -1: none'):
        list(predict_files(bundle, some(xrays, 4), cluster=address(two)))
    encoder = open_encoder(str(bundle.path))
    pixels = ImageCache.build(xrays, (32, 32), tmp_path, 1, False)
    encoder.digest = 'another'
    with pytest.raises(SmlxrayError, match='sees other pixels, or another encoder'):
        embed_table(encoder, xrays, pixels, cluster=address(two))


SBATCH = """#!/bin/sh
cp "$1" {place}/script
sh {place}/script > {place}/log 2>&1 &
echo $! > {place}/pid
echo "Submitted batch job $!"
"""


def test_slurm_is_asked_for_workers(tmp_path, monkeypatch):
    "There is no Slurm here: a script in its place runs the job that it is given."
    for name, text in dict(sbatch=SBATCH, scancel='#!/bin/sh\nkill $1\n').items():
        (tmp_path / name).write_text(text.format(place=tmp_path))
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv('PATH', f'{tmp_path}{os.pathsep}{os.environ["PATH"]}')
    pytest.importorskip('dask_jobqueue')
    import dask
    with dask.config.set({'jobqueue.slurm.cores': None}):
        assert '~/.config/dask/jobqueue.yaml' in failed(max, [(1,)], 0, 1, 'slurm')
    asked = {'cores': 1, 'memory': '1GB', 'walltime': '00:10:00', 'queue': 'short'}
    with dask.config.set({f'jobqueue.slurm.{key}': value for key, value in asked.items()}):
        assert list(spread(max, [(1,), (2,)], 0, 1, 'slurm')) == [1, 2]
    script = (tmp_path / 'script').read_text()
    for line in '#SBATCH -p short', '#SBATCH -t 00:10:00', '#SBATCH --mem=': assert line in script
    assert 'distributed.cli.dask_worker' in script
