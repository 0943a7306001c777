"A training that was interrupted and resumed is the training that was not."

import numpy as np, pytest, torch
import smlxray.train as train
from smlxray.config import load_settings
from smlxray.siamese import SiameseNet
from smlxray.train import (
    checkpoint_path,
    load_checkpoint,
    open_lab,
    read_metrics,
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


def interrupted(monkeypatch, name, at, run):
    "Run something whose `name` fails at its `at`-th call."
    calls, real = [], getattr(train, name)

    def fails(*a, **k):
        calls.append(1)
        if len(calls) > at: raise Stop
        return real(*a, **k)

    with monkeypatch.context() as m:
        m.setattr(train, name, fails)
        with pytest.raises(Stop):
            run()


def same(a, b):
    return all(
        torch.equal(x, y)
        for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize('at', [1, 3])
def test_siamese_training_goes_on(place, monkeypatch, at):
    whole, cut = a_lab(place, 'whole'), a_lab(place, f'cut{at}')
    want = train_siamese(whole)
    interrupted(monkeypatch, 'siamese_epoch', at, lambda: train_siamese(cut))
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


def test_meta_training_goes_on(place, monkeypatch):
    monkeypatch.setattr(train, 'STATE_EVERY', 0)
    torch.manual_seed(0)
    net = SiameseNet('conv4', 16).eval()
    whole, cut = a_lab(place, 'whole-meta'), a_lab(place, 'cut-meta')
    want = train_meta(whole, net, 'maml')
    interrupted(monkeypatch, 'outer_step', 3, lambda: train_meta(cut, net, 'maml'))
    torch.manual_seed(99)
    again = a_lab(place, 'cut-meta', resume=True)
    assert same(train_meta(again, net, 'maml'), want)
    assert [(r['step'], r['query_loss']) for r in read_metrics(cut.folder)] == [
        (r['step'], r['query_loss']) for r in read_metrics(whole.folder)
    ]
    with monkeypatch.context() as m:
        m.setattr(train, 'outer_step', lambda *a: pytest.fail('it was finished'))
        assert same(train_meta(again, net, 'maml'), want)


def test_without_resume_it_begins_anew(place, monkeypatch):
    cut = a_lab(place, 'anew')
    interrupted(monkeypatch, 'siamese_epoch', 2, lambda: train_siamese(cut))
    train_siamese(cut)
    assert [r['epoch'] for r in read_metrics(cut.folder)] == [1, 2, 3, 4]


def test_a_state_made_differently_is_left_alone(place, monkeypatch, capsys):
    interrupted(monkeypatch, 'siamese_epoch', 2, lambda: train_siamese(a_lab(place, 'other')))
    train_siamese(a_lab(place, 'other', resume=True, margin=0.5))
    assert 'margin: 1.0 -> 0.5' in capsys.readouterr().out


def test_a_broken_state_is_left_alone(place, monkeypatch, capsys):
    cut = a_lab(place, 'broken')
    interrupted(monkeypatch, 'siamese_epoch', 1, lambda: train_siamese(cut))
    path = state_path(cut, 'siamese')
    path.write_bytes(path.read_bytes()[:200])
    train_siamese(a_lab(place, 'broken', resume=True))
    assert 'cannot be read' in capsys.readouterr().out
