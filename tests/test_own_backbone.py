"A backbone of the user's own: named in settings, saved by its factory's name, never run unasked."

import json, os, subprocess, sys

import pytest
import torch

from smlxray import base
from smlxray.base import ConfigError
from smlxray.cache import open_pixels
from smlxray.cli import call
from smlxray.config import load_settings
from smlxray.encoders import embed_table, open_encoder
from smlxray.lab import open_lab
from smlxray.train import ensure_siamese

NETS = '''
from torch import nn

def small(width=8):
    "A network of one convolution."
    first = nn.Conv2d(1, width, 5, 2)
    return nn.Sequential(first, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
'''
PLACE = 'nets_of_mine:small'


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "A folder with a network, a run of it, and a bundle to hand on."
    home = tmp_path_factory.mktemp('own')
    (home / 'nets_of_mine.py').write_text(NETS)
    folders = {key: str(home / key) for key in ('dataset_path', 'cache_path', 'runs_path')}
    told = dict(preset='tiny', data=dict(image_size=32, patients=60, phantom_size=32))
    told['siamese'] = dict(backbone=PLACE)
    told['training'] = dict(siamese_epochs=1)
    told['evaluation'] = dict(run='mine')
    (home / 'mine.yaml').write_text(json.dumps(told))
    sys.path.insert(0, str(home))
    lab = open_lab(load_settings(config=home / 'mine.yaml', **folders))
    net = ensure_siamese(lab)
    where = ['-p', f'runs_path={home}/runs_path', '--model', 'mine']
    assert call(['model', 'export', str(home / 'shared'), *where]) == 0
    yield home, lab, net
    sys.path.remove(str(home))


def elsewhere(folder, *words, **variables):
    "Run a command in a process of its own, and give its exit code and last line."
    command = [sys.executable, '-m', 'smlxray.cli', *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=variables)
    return done.returncode, (done.stdout + done.stderr).strip().splitlines()[-1]


def test_a_checkpoint_is_built_again_by_its_factory(home):
    _, lab, net = home
    again = ensure_siamese(lab)  # from the file
    assert again.to_config()['backbone'] == PLACE
    images = torch.rand(2, 1, 32, 32)
    assert torch.equal(again(images), net(images))


def test_a_bundle_runs_own_code_only_where_the_user_says_so(home, tmp_path, monkeypatch):
    folder, lab, _ = home
    usual = {k: v for k, v in os.environ.items() if not k.startswith('SMLXRAY')}
    verify, trust = ['model', 'verify', str(folder / 'shared')], dict(SMLXRAY_TRUST=PLACE)
    code, said = elsewhere(folder, *verify, **usual)
    assert code == 1 and f'SMLXRAY_TRUST={PLACE}' in said, said
    code, said = elsewhere(tmp_path, *verify, **usual, **trust)
    assert code == 1 and "'nets_of_mine:small' cannot be imported" in said, said
    (tmp_path / 'nets_of_mine.py').write_text(NETS.replace('nn.ReLU()', 'nn.Sigmoid()'))
    code, said = elsewhere(tmp_path, *verify, **usual, **trust)
    assert code == 1 and 'has changed since this bundle was made' in said, said


@pytest.mark.parametrize('cluster', ['loky', 'dask'])
def test_workers_trust_what_the_user_trusts(home, tmp_path, monkeypatch, cluster):
    "Each opens the bundle anew, and knows of its code what was named here, in no variable."
    if cluster == 'dask': pytest.importorskip('distributed', reason='needs smlxray[cluster]')
    folder, lab, _ = home
    monkeypatch.delenv('SMLXRAY_TRUST', raising=False)
    encoder = open_encoder(str(folder / 'shared'))
    pixels = open_pixels(lab.table, encoder.size, cache_path=tmp_path)
    alone = embed_table(encoder, lab.table, pixels, 32)
    with monkeypatch.context() as nobody, pytest.raises(ConfigError, match=f'TRUST={PLACE}'):
        nobody.setattr(base, '_trusted', set())
        embed_table(encoder, lab.table, pixels, 32, workers=2, cluster=cluster)
    there = embed_table(encoder, lab.table, pixels, 32, workers=2, cluster=cluster)
    assert torch.equal(there.values, alone.values)


def test_the_card_and_the_hub_name_the_factory(home, capsys):
    folder, *_ = home
    assert call(['model', 'verify', str(folder / 'shared')]) == 0
    assert call(['model', 'info', str(folder / 'shared')]) == 0
    assert f'built by `{PLACE}`' in capsys.readouterr().out
    hub = ['model', 'export', str(folder / 'hub'), '--hub', '--model', str(folder / 'shared')]
    assert call(hub) == 0
    config = json.loads((folder / 'hub' / 'config.json').read_text())
    assert config['net']['backbone'] == PLACE


@pytest.mark.parametrize('place, words', [
    ('nets_of_mine:smal', "did you mean 'small'"),
    ('no_such_nets:small', "'no_such_nets:small' cannot be imported"),
    ('builtins:dict', 'must return an nn.Module'),
])
def test_config_check_tries_the_factory(home, tmp_path, capsys, place, words):
    wrong = dict(preset='tiny', siamese=dict(backbone=place))
    (tmp_path / 'wrong.yaml').write_text(json.dumps(wrong))
    assert call(['config', 'check', str(tmp_path / 'wrong.yaml')]) == 1
    assert words in capsys.readouterr().err.splitlines()[-1]
