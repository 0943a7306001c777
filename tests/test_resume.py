"A training that was interrupted and resumed is the training that was not; old files still serve."

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import smlxray.train as train
from smlxray.base import SmlxrayError, show_remarks
from smlxray.config import load_settings
from smlxray.lab import open_lab
from smlxray.siamese import SiameseNet
from smlxray.train import (
    checkpoint_path,
    ensure_siamese,
    load_checkpoint,
    read_metrics,
    save_checkpoint,
    state_path,
    train_meta,
    train_siamese,
)


class Stop(Exception):
    pass


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    return tmp_path_factory.mktemp('resume')


def a_lab(place, run, **more):
    return open_lab(
        load_settings(
            'tiny',
            patients=160,
            backbone='conv4',
            siamese_epochs=4,
            meta_episodes=10,
            novel_findings='Cardiomegaly',
            dataset_path=place / 'x',
            cache_path=place / 'c',
            runs_path=place / 'r',
            run=run,
            **more,
        )
    )


def interrupted(monkeypatch, at, run):
    "Run a training that fails in its round after `at`."
    calls, real = [], train.one_round

    def fails(*a, **k):
        calls.append(1)
        if len(calls) > at: raise Stop
        return real(*a, **k)

    with monkeypatch.context() as m:
        m.setattr(train, 'one_round', fails)
        with pytest.raises(Stop):
            run()


def same(a, b):
    return all(
        torch.equal(x, y)
        for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize('at', [1, 3])
def test_siamese_training_resumes(place, monkeypatch, at):
    whole, cut = a_lab(place, 'whole'), a_lab(place, f'cut{at}')
    want = train_siamese(whole)
    interrupted(monkeypatch, at, lambda: train_siamese(cut))
    assert state_path(cut, 'siamese').exists() and not checkpoint_path(cut, 'siamese').exists()
    torch.manual_seed(99)
    got = train_siamese(a_lab(place, f'cut{at}', resume=True))
    assert (
        same(got, want)
        and same(load_checkpoint(checkpoint_path(cut, 'siamese'))[0], want)
        and not state_path(cut, 'siamese').exists()
    )
    assert [(r['epoch'], r['loss']) for r in read_metrics(cut.folder)] == [
        (r['epoch'], r['loss']) for r in read_metrics(whole.folder, 'siamese')
    ]


def test_meta_training_resumes(place, monkeypatch):
    monkeypatch.setattr(train, 'STATE_EVERY', 0)
    torch.manual_seed(0)
    net = SiameseNet('conv4', 16).eval()
    whole, cut = a_lab(place, 'whole-meta'), a_lab(place, 'cut-meta')
    want = train_meta(whole, net, 'maml')
    interrupted(monkeypatch, 3, lambda: train_meta(cut, net, 'maml'))
    torch.manual_seed(99)
    again = a_lab(place, 'cut-meta', resume=True)
    assert same(train_meta(again, net, 'maml'), want)
    assert [(r['step'], r['query_loss']) for r in read_metrics(cut.folder)] == [
        (r['step'], r['query_loss']) for r in read_metrics(whole.folder)
    ]
    with monkeypatch.context() as m:
        m.setattr(train, 'one_round', lambda *a: pytest.fail('it was finished'))
        assert same(train_meta(again, net, 'maml'), want)


def test_without_resume_it_begins_again(place, monkeypatch):
    cut = a_lab(place, 'again')
    interrupted(monkeypatch, 2, lambda: train_siamese(cut))
    train_siamese(cut)
    assert [r['epoch'] for r in read_metrics(cut.folder)] == [1, 2, 3, 4]


def test_a_state_made_differently_is_left_alone(place, monkeypatch, capsys):
    show_remarks()
    interrupted(monkeypatch, 2, lambda: train_siamese(a_lab(place, 'other')))
    train_siamese(a_lab(place, 'other', resume=True, margin=0.5))
    assert 'margin: 1.0 -> 0.5' in capsys.readouterr().out


def test_a_broken_state_is_left_alone(place, monkeypatch, capsys):
    show_remarks()
    cut = a_lab(place, 'broken')
    interrupted(monkeypatch, 1, lambda: train_siamese(cut))
    path = state_path(cut, 'siamese')
    path.write_bytes(path.read_bytes()[:200])
    train_siamese(a_lab(place, 'broken', resume=True))
    assert 'cannot be read' in capsys.readouterr().out


# --- files of version 0.1 ---------------------------------------------------------------------

RECIPE_OF_0_1 = (
    'image_size uncertain blanks views split split_seed sampling novel_findings valid_fraction '
    'test_fraction seed backbone pretrained embedding_dim margin similarity_rule label_weight '
    'batch_size siamese_epochs siamese_lr weight_decay augment'
).split()


def old_recipe(lab):
    "Write the recipe of the Siamese phase as 0.1 did: these keys, and no others."
    flat = lab.settings.flat()
    made_by = dict(phase='siamese', table=train.table_digest(lab.table), unreadable=0)
    return json.loads(json.dumps(made_by | {k: flat[k] for k in RECIPE_OF_0_1}))


def rewrite(path, change):
    "Change the header of a safetensors file."
    with safe_open(path, 'pt') as f:
        told = f.metadata()
    save_file(load_file(path), path, metadata=change(told))


def test_a_checkpoint_of_0_1_is_used(place, capsys):
    show_remarks()
    lab = a_lab(place, 'old')
    net = train_siamese(lab)
    path = checkpoint_path(lab, 'siamese')
    rewrite(path, lambda told: dict(net=told['net'], recipe=json.dumps(old_recipe(lab))))
    assert same(ensure_siamese(lab), net) and 'using siamese' in capsys.readouterr().out
    lab.settings.siamese.margin = 0.7
    made_by = load_checkpoint(path)[1]
    assert train.recipe_changes(made_by, train.recipe(lab, 'siamese')) == ['margin: 1.0 -> 0.7']


def test_a_setting_of_today_is_not_taken_for_one_of_0_1(place):
    "An old recipe says nothing of the loss; it was contrastive, and another one is a change."
    lab = a_lab(place, 'old-loss')
    changed = train.recipe(lab, 'siamese') | dict(loss='another')
    assert train.recipe_changes(old_recipe(lab), changed) == ['loss: contrastive -> another']


def test_a_state_of_0_1_resumes(place, monkeypatch):
    want, cut = train_siamese(a_lab(place, 'whole')), a_lab(place, 'old-state')
    interrupted(monkeypatch, 2, lambda: train_siamese(cut))

    def as_then(told):
        state = {k: v for k, v in json.loads(told['state']).items() if k != 'format'}
        return dict(state=json.dumps(state | dict(recipe=old_recipe(cut))))

    rewrite(state_path(cut, 'siamese'), as_then)
    assert same(train_siamese(a_lab(place, 'old-state', resume=True)), want)
    assert [r['epoch'] for r in read_metrics(cut.folder)] == [1, 2, 3, 4]


def test_a_checkpoint_of_a_later_version_says_what_to_do(tmp_path):
    path = tmp_path / 'siamese.safetensors'
    save_checkpoint(SiameseNet('conv4', 8), path, {})
    rewrite(path, lambda told: told | dict(format='99'))
    with pytest.raises(SmlxrayError, match='format 99.*update smlxray'):
        load_checkpoint(path)


# --- several processes ------------------------------------------------------------------------

SCRIPT = """
import os, sys
from pathlib import Path
from safetensors.torch import save_file
from test_resume import a_lab
from smlxray.siamese import SiameseNet
from smlxray.train import train_meta, train_siamese
import torch
place, run = Path(sys.argv[1]), sys.argv[2]
lab = a_lab(place, run, augment=False)
torch.manual_seed(0)
train_meta(lab, SiameseNet('conv4', 16), 'maml')
net = train_siamese(lab)
save_file(net.state_dict(), place / f"{run}{os.environ.get('RANK', '')}.safetensors")
"""


@pytest.mark.slow
def test_two_processes_train_as_one(place):
    "A meta-batch shared by two gives the same weights; and the copies of both stay equal."
    script = place / 'script.py'
    script.write_text(SCRIPT)
    here = Path(__file__).parent
    env = os.environ | dict(PYTHONPATH=os.pathsep.join(map(str, (here, here.parent))))
    two = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2']
    for run, command in dict(one=[sys.executable], two=two).items():
        command = [*command, str(script), str(place), run]
        subprocess.run(command, env=env, check=True, timeout=600)
    saved = (place / f'r/{run}/checkpoints/maml.safetensors' for run in ('one', 'two'))
    one, both = map(load_file, saved)
    assert max((one[k] - both[k]).abs().max() for k in one) < 1e-4
    first, second = (load_file(place / f'two{rank}.safetensors') for rank in (0, 1))
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert [r['epoch'] for r in read_metrics(place / 'r' / 'two', 'siamese')] == [1, 2, 3, 4]
