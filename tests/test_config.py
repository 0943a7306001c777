"""What the chapter `00_config` promises and cannot show inside a notebook: papermill from end to end, and other working folders."""

import os, shutil, subprocess, sys
from pathlib import Path

import nbformat
import pytest

from smlxray.base import ConfigError, resolve_path
from smlxray.config import PRESETS, load_settings

ROOT = Path(__file__).resolve().parent.parent
SETTINGS_CELL = """\
from smlxray.config import *
import os
settings = notebook_settings(globals())
print('SETTINGS', settings.evaluation.run, settings.meta.shots, settings.meta.queries, list(settings.data.image_size),
      settings.data.novel_findings, settings.data.use_cache)
"""
PARAMETERS_CELL = """\
preset: str = 'tiny'   # tiny, demo, real or paper
config: str = None     # a YAML file of your own, laid over the preset
shots: int = None      # support patients a class
"""


@pytest.fixture
def notebook(tmp_path):
    "A notebook as short as one can be: a cell of parameters, and the cell that reads them."
    nb = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_code_cell(PARAMETERS_CELL, metadata=dict(tags=['parameters'])),
            nbformat.v4.new_code_cell(SETTINGS_CELL),
        ]
    )
    nb.metadata.kernelspec = dict(name='python3', display_name='python3', language='python')
    nbformat.write(nb, tmp_path / 'small.ipynb')
    return tmp_path / 'small.ipynb'


def papermill(notebook, *options):
    "Run papermill's command in the notebook's folder; return exit code, what the notebook printed, and what papermill said."
    out = notebook.with_name('out.ipynb')
    env = os.environ | {
        'OMP_NUM_THREADS': '1',
        'PYTHONPATH': os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')]),
    }
    done = subprocess.run(
        [sys.executable, '-m', 'papermill', notebook.name, out.name, '--no-progress-bar', *options],
        cwd=notebook.parent,
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
    )
    printed = ''.join(
        o.get('text', '')
        for cell in nbformat.read(out, 4).cells
        for o in cell.get('outputs', [])
        if o.get('name') == 'stdout'
    )
    return done.returncode, printed, done.stderr


def test_papermill_parameters_reach_the_settings(notebook):
    code, printed, said = papermill(
        notebook,
        '-p',
        'shots',
        '3',
        '-p',
        'image_size',
        '48',
        '-p',
        'novel_findings',
        'Edema, Fracture',
        '-p',
        'use_cache',
        'False',
        '-p',
        'queries',
        'None',
    )
    assert code == 0, said
    assert printed == "SETTINGS tiny 3 8 [48, 48] ['Edema', 'Fracture'] False\n"


def test_papermill_defaults_leave_the_decision_to_the_preset(notebook):
    code, printed, said = papermill(notebook, '-y', 'image_size: [40, 48]')
    assert code == 0, said
    assert printed.startswith('SETTINGS tiny 2 8 [40, 48]')


@pytest.mark.parametrize(
    'options, sentence',
    [
        (('-p', 'shotz', '3'), 'ConfigError: shotz is not a parameter; did you mean shots?'),
        (
            ('-p', 'shots', '0'),
            'ConfigError: meta.shots is 0; it must be a whole number of at least 1.',
        ),
        (
            ('-p', 'preset', 'tiny', '-p', 'config', 'none.yaml'),
            'ConfigError: none.yaml: there is no such file',
        ),
    ],
)
def test_papermill_ends_with_the_sentence(notebook, options, sentence):
    code, _, said = papermill(notebook, *options)
    assert code == 1
    assert said.strip().splitlines()[-1].startswith(sentence)
    assert 'ValidationError' not in said


def in_folder(folder, expression, path=ROOT):
    "Evaluate an expression on `smlxray.config` in a new Python whose working folder is `folder`."
    code = f'from smlxray.config import *; print({expression})'
    done = subprocess.run(
        [sys.executable, '-c', code],
        cwd=folder,
        env=os.environ | {'PYTHONPATH': str(path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize('folder', ['.', 'nbs', 'smlxray'])
def test_paths_count_from_the_root_anywhere_in_a_checkout(folder):
    assert (
        Path(in_folder(ROOT / folder, "resolve_path('data/phantoms')"))
        == ROOT / 'data' / 'phantoms'
    )
    assert (
        Path(in_folder(ROOT / folder, "resolve_path('../shared')"))
        == (ROOT.parent / 'shared').resolve()
    )


def test_paths_count_from_the_working_folder_outside_a_checkout(tmp_path):
    assert (
        Path(in_folder(tmp_path, "resolve_path('data/phantoms')"))
        == tmp_path.resolve() / 'data' / 'phantoms'
    )
    assert in_folder(tmp_path, 'repo_root()') == 'None'
    assert (
        Path(in_folder(tmp_path, "run_folder(load_settings('tiny'))"))
        == tmp_path.resolve() / 'runs' / 'tiny'
    )


def test_presets_are_found_in_a_checkout_from_outside(tmp_path):
    for preset in PRESETS:
        assert in_folder(tmp_path, f'load_settings({preset!r}).evaluation.run') == preset


def test_presets_are_found_in_an_installed_package(tmp_path):
    package = tmp_path / 'site' / 'smlxray'
    package.mkdir(parents=True)
    for name in ('__init__.py', 'config.py'):
        shutil.copy(ROOT / 'smlxray' / name, package)
    shutil.copytree(ROOT / 'config', package / '_presets')
    for preset in PRESETS:
        assert (
            in_folder(tmp_path, f'load_settings({preset!r}).evaluation.run', path=tmp_path / 'site')
            == preset
        )
    shutil.rmtree(package / '_presets')
    with pytest.raises(AssertionError, match='please reinstall smlxray'):
        in_folder(tmp_path, "load_settings('tiny')", path=tmp_path / 'site')


def test_a_user_file_is_found_from_the_root(tmp_path, monkeypatch):
    for folder in (ROOT, ROOT / 'nbs'):
        monkeypatch.chdir(folder)
        assert (
            load_settings('demo', config='config/tiny.yaml').data.image_size
            == load_settings('tiny').data.image_size
            == (32, 32)
        )
    monkeypatch.chdir(tmp_path)
    assert resolve_path('config/tiny.yaml') == tmp_path.resolve() / 'config' / 'tiny.yaml'
    with pytest.raises(ConfigError, match='config/tiny.yaml: there is no such file'):
        load_settings('demo', config='config/tiny.yaml')


def test_reading_settings_is_quick(tmp_path):
    "Settings are read by every command and every worker process, so they must not drag torch or pandas in."
    assert (
        in_folder(
            tmp_path,
            "(load_settings('tiny') and 0, [m for m in ('torch', 'pandas', 'matplotlib') if m in __import__('sys').modules])",
        )
        == '(0, [])'
    )
