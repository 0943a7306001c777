"""Evidence belongs to weights, pixels and settings; own files that are damaged say so."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import smlxray.train as train
from smlxray.base import SmlxrayError
from smlxray.bundle import Bundle, bundle_of_run, is_fresh, model_card, write_folder
from smlxray.config import load_settings
from smlxray.evaluate import evaluate, read_answers, read_results, save_results
from smlxray.lab import open_lab
from smlxray.methods import Context, frozen_method
from smlxray.train import (
    checkpoint_path, ensure_siamese, load_checkpoint, network_digest, read_metrics, train_siamese,
)

SMALL = dict(patients=260, backbone='conv4', siamese_epochs=1, episodes=2, bootstrap=200)
SMALL |= dict(novel_findings='Cardiomegaly', match_on='')


def a_lab(place, **more):
    folders = dict(dataset_path=place / 'x', cache_path=place / 'c', runs_path=place / 'r')
    return open_lab(load_settings('tiny', **(SMALL | folders | dict(run='run') | more)))


def evaluated(lab, net):
    method = frozen_method(Context(lab, {'siamese': net}), 'siamese', 'siamese')
    method.network = network_digest(net)
    results = evaluate(lab, [method])
    save_results(results)
    return results


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    "A folder with a run that was trained and evaluated, and its bundle."
    place = tmp_path_factory.mktemp('evidence')
    lab = a_lab(place)
    evaluated(lab, train_siamese(lab))
    bundle_of_run(lab).save(lab.folder / 'bundle')
    return place


def test_what_a_run_leaves_names_no_patient_and_no_folder(place):
    "The slow tests of test_privacy look at notebooks, reports and other numbers."
    from test_privacy import everything, leaks
    files = [path for path in everything(place / 'r') if path.name != 'config.yaml']
    assert {'results.json', 'bundle.json', 'answers.npz'} <= {path.name for path in files}
    assert leaks(files, place / 'x') == []


@pytest.fixture
def copy(place, tmp_path):
    "The same, to be changed."
    for name in 'xcr': shutil.copytree(place / name, tmp_path / name)
    return tmp_path


def mutated(data: bytes, rng: random.Random) -> bytes:
    "Cut, flip, repeat or overwrite some bytes."
    data, at = bytearray(data), rng.randrange(len(data))
    kind = rng.randrange(4)
    if kind == 0: return bytes(data[:at])
    if kind == 1: data[at] ^= 1 << rng.randrange(8)
    if kind == 2: data[at:at] = data[at : at + rng.randrange(1, 60)]
    if kind == 3: data[at : at + 4] = rng.choice([b'NaN,', b'null', b'\xff\xfe\x00\x00', b'[[[['])
    return bytes(data)


READERS = {
    'checkpoints/siamese.safetensors': load_checkpoint,
    'results.json': lambda path: read_results(path.parent),
    'answers.npz': lambda path: read_answers(path.parent),
    'metrics.jsonl': lambda path: read_metrics(path.parent),
    'bundle/bundle.json': lambda path: Bundle.load(path.parent),
    'bundle/weights.safetensors': lambda path: Bundle.load(path.parent),
}


@pytest.mark.parametrize('name', READERS)
def test_a_damaged_own_file_is_one_sentence(copy, name):
    path, rng = copy / 'r' / 'run' / name, random.Random(name)
    whole, read, refused = path.read_bytes(), READERS[name], 0
    for _ in range(20):
        path.write_bytes(mutated(whole, rng))
        try:
            read(path)
        except SmlxrayError as error:
            refused += 1
            assert '\n' not in str(error)
    assert refused > 10 or name == 'metrics.jsonl'


ODD = [None, True, -1, 1e400, 'x', [], {}, [None], {'x': 1}]


def test_a_remade_bundle_with_odd_fields_is_one_sentence(copy, tmp_path):
    "The checksums are right, for whoever made it ran our own code; the values are not."
    folder, rng = copy / 'r' / 'run' / 'bundle', random.Random(0)
    parts = [path for path in folder.rglob('*') if path.is_file()]
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in parts}
    del files['manifest.json']
    named = [name for name in files if name.endswith('.json')]
    for number in range(20):
        name = rng.choice(named)
        value = json.loads(files[name])
        part = value
        while isinstance(part, (dict, list)) and part:
            key = rng.choice(list(part)) if isinstance(part, dict) else rng.randrange(len(part))
            if not isinstance(part[key], (dict, list)) or rng.random() < 0.4: break
            part = part[key]
        if isinstance(part, (dict, list)) and part: part[key] = rng.choice(ODD)
        made = tmp_path / f'made{number}'
        write_folder(made, 'bundle', 1, files | {name: json.dumps(value).encode()})
        try:
            bundle = Bundle.load(made)
            model_card(bundle)
            rows = bundle.predict(torch.zeros(1, 1, *bundle.size, dtype=torch.uint8))
            assert not np.isinf(rows.select_dtypes('number')).any(axis=None)
        except SmlxrayError as error:
            assert '\n' not in str(error)


def test_a_second_training_that_is_killed_changes_nothing(copy, monkeypatch):
    card = model_card(bundle_of_run(a_lab(copy)))
    other = dict(novel_findings='Edema', split_seed=7, test_fraction=0.2)

    def killed(*a, **k): raise KeyboardInterrupt

    with monkeypatch.context() as m:
        m.setattr(train, 'one_batch', killed)
        with pytest.raises(KeyboardInterrupt):
            train_siamese(a_lab(copy, **other))
    saved = load_settings('paper', config=copy / 'r' / 'run' / 'config.yaml')
    assert saved.data.novel_findings != ['Edema']
    assert model_card(bundle_of_run(a_lab(copy))) == card
    assert model_card(bundle_of_run(a_lab(copy, **other))) == card  # the recipe inside decides


def test_new_weights_do_not_carry_old_results(copy, caplog):
    lab = a_lab(copy)
    assert bundle_of_run(lab).metrics and is_fresh(lab.folder)
    train_siamese(a_lab(copy, seed=77))
    path = checkpoint_path(lab, 'siamese')
    os.utime(path, (0, 0))  # a clock that is behind
    assert not is_fresh(lab.folder)
    assert bundle_of_run(a_lab(copy, seed=77)).metrics == []
    assert 'measured other weights' in caplog.text


def test_other_pixels_are_another_recipe(copy):
    net, lab = ensure_siamese(a_lab(copy)), a_lab(copy)
    rng = np.random.default_rng(0)
    for path in (copy / 'x').rglob('*.jpg'):
        Image.fromarray(rng.integers(0, 256, (64, 64), dtype=np.uint8)).save(path)
    noise = a_lab(copy)
    assert noise.digest != lab.digest
    with pytest.raises(SmlxrayError, match='made differently .pixels'):
        ensure_siamese(noise)
    with pytest.raises(SmlxrayError, match='trained on other data'):
        bundle_of_run(noise)
    assert net is not None


def test_pixels_are_the_same_from_the_files(place):
    assert a_lab(place, use_cache=False).pixels.digest == a_lab(place).pixels.digest


def test_a_run_is_written_by_one_process(copy):
    hold = 'import sys; from smlxray.base import only_one\n'
    hold += 'with only_one(sys.argv[1], "training"): print("held", flush=True); input()'
    lab = a_lab(copy)
    other = subprocess.Popen(
        [sys.executable, '-c', hold, str(lab.folder)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        cwd=Path(__file__).parents[1],
    )
    other.stdout.readline()
    for work in (train_siamese, lambda lab: evaluate(lab, [])):
        with pytest.raises(SmlxrayError, match='Another process is at work on the run run'):
            work(lab)
    other.kill()
    other.wait()
    evaluate(lab, [])


def test_a_training_that_diverges_stops_before_a_checkpoint(copy):
    lab = a_lab(copy, siamese_lr=1e6, siamese_epochs=6, run='lost')
    with pytest.raises(SmlxrayError, match='epoch .* at the learning rate .*lower learning rate'):
        train_siamese(lab)
    assert not checkpoint_path(lab, 'siamese').exists()


def test_training_without_validation_patients(copy):
    lab = a_lab(copy, valid_fraction=0, run='no-valid')
    results = evaluated(lab, train_siamese(lab))
    assert results.rows and bundle_of_run(lab).save(lab.folder / 'bundle').is_dir()
