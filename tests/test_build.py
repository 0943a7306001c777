"The recommended model from a folder in NIH's layout: small networks, X-rays of noise."

import json

import pytest
from test_study import noise_xrays

from smlxray import build
from smlxray.bundle import Bundle, model_card
from smlxray.cli import call

FINDINGS = ['Cardiomegaly', 'Edema']


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "X-rays of noise as `data layout nih` lays them out, and a plan for small networks."
    home = tmp_path_factory.mktemp('build')
    noise_xrays(home / 'nih', patients=300)
    short = dict(objective='naming', epochs=1, image_size=32, one_cycle=True)
    places = dict(cache_path=str(home / 'cache'), runs_path=str(home / 'runs'))
    small = dict(backbone='conv4', image_size=32, shots=3, queries=5, valid_fraction=0.2)
    plan = dict(
        like=str(build.shipped_file('recommended.yaml')),
        folder=str(home / 'nih'),
        folds={'1': FINDINGS},
        settings=small | places | dict(progress=False),
        backbones=dict(supervised=short, default=short | dict(start='supervised')),
        episodes=20,
    )
    (home / 'plan.yaml').write_text(json.dumps(plan))
    return home


def run(home, *more):
    return call(['model', 'build', 'real', '--plan', str(home / 'plan.yaml'), *more])


def test_a_folder_becomes_a_bundle_with_its_results(home, capsys):
    assert run(home, '--json') == 0
    out, said = capsys.readouterr()
    assert json.loads(out)['compared'] == []  # other findings than those of the study
    assert 'other results are to be expected' in said
    bundle = Bundle.load(home / 'runs' / 'recommended' / 'bundle')
    card = model_card(bundle)
    for words in ('## What was to be expected', '## Terms', '## Intended use', 'naming + prior'):
        assert words in card, words
    export = ['model', 'export', str(home / 'hub'), '--hub', '--model', 'recommended']
    assert call([*export, '-p', f'runs_path={home}/runs']) == 0
    assert '## Terms' in (home / 'hub' / 'README.md').read_text()


def test_what_falls_short_of_the_study_is_said(home, monkeypatch, capsys):
    "On noise no network reaches the study; those that are trained are not trained again."
    kept = sorted((home / 'runs').rglob('backbones/*.safetensors'))
    before = [path.stat().st_mtime_ns for path in kept]
    rows = [dict(finding=f, auc=0.9, auc_low=0.8, auc_high=1) for f in [*FINDINGS, 'mean']]
    expected = build.read_expected() | dict(rows=rows)
    monkeypatch.setattr(build, 'read_expected', lambda: expected)
    assert run(home) == 1
    out, said = capsys.readouterr()
    assert said.splitlines()[-1].startswith('smlxray: The model is kept, but its mean AUC of 0.')
    assert "falls short of the study's 0.900 [0.800, 1.000]" in said and 'Edema' in out
    assert len(before) == 2 and before == [path.stat().st_mtime_ns for path in kept]


@pytest.mark.parametrize('words, said', [
    ((), 'name your download of NIH ChestX-ray14 with --images'),
    (('--images', 'gone'), 'gone'),
    (('--plan', 'none.yaml'), 'none.yaml'),
])
def test_a_mistake_is_one_sentence(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    plan = dict(like=str(build.shipped_file('recommended.yaml')), folder=str(tmp_path / 'nih'))
    (tmp_path / 'plan.yaml').write_text(json.dumps(plan))
    if '--plan' not in words: words = '--plan', 'plan.yaml', *words
    assert call(['model', 'build', 'real', *words]) == 1
    last = capsys.readouterr().err.splitlines()
    assert len(last) == 1 and said in last[0], last
    assert [path.name for path in tmp_path.iterdir()] == ['plan.yaml']
