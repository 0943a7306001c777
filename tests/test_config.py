"What the chapter `00_config` promises and cannot show in itself: papermill, other working folders."

import os, shutil, subprocess, sys
from pathlib import Path

import pytest

from smlxray import config
from smlxray.base import BACKBONES, READERS, ConfigError, resolve_path
from smlxray.config import PATH_SETTINGS, PRESETS, load_settings, make_run_folder

pytestmark = pytest.mark.light  # needs no torch

ROOT = Path(__file__).resolve().parent.parent
SETTINGS_CELL = """\
from smlxray.config import *
import os
settings = notebook_settings(globals())
data, meta = settings.data, settings.meta
print('SETTINGS', settings.evaluation.run, meta.shots, meta.queries, list(data.image_size),
      data.novel_findings, data.use_cache)
"""
PARAMETERS_CELL = """\
preset: str = 'tiny'   # tiny, demo, real or paper
config: str = None     # a YAML file of your own, laid over the preset
shots: int = None      # support patients per class
"""


@pytest.fixture
def notebook(tmp_path):
    "A notebook as short as one can be: a cell of parameters, and the cell that reads them."
    nbformat = pytest.importorskip('nbformat')
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
    "Run papermill's command; return its exit code, what the notebook printed and what it said."
    import nbformat
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
    printed = ''
    for cell in nbformat.read(out, 4).cells:
        stdout = [o for o in cell.get('outputs', []) if o.get('name') == 'stdout']
        printed += ''.join(o['text'] for o in stdout)
    return done.returncode, printed, done.stderr


@pytest.mark.process
def test_papermill_parameters_reach_the_settings(notebook):
    options = '-p shots 3 -p image_size 48 -p use_cache False -p queries None'.split()
    options += ['-p', 'novel_findings', 'Edema, Fracture']
    code, printed, said = papermill(notebook, *options)
    assert code == 0, said
    assert printed == "SETTINGS tiny 3 8 [48, 48] ['Edema', 'Fracture'] False\n"


@pytest.mark.process
def test_papermill_defaults_leave_the_decision_to_the_preset(notebook):
    code, printed, said = papermill(notebook, '-y', 'image_size: [40, 48]')
    assert code == 0, said
    assert printed.startswith('SETTINGS tiny 2 8 [40, 48]')


@pytest.mark.process
@pytest.mark.parametrize('options, sentence', [
    ('-p shotz 3', 'shotz is not a parameter; did you mean shots?'),
    ('-p shots 0', 'meta.shots is 0; it must be a whole number of at least 1.'),
    ('-p preset tiny -p config none.yaml', 'none.yaml: there is no such file'),
])
def test_papermill_ends_with_the_sentence(notebook, options, sentence):
    code, _, said = papermill(notebook, *options.split())
    assert code == 1
    assert said.strip().splitlines()[-1].startswith(f'ConfigError: {sentence}')
    assert 'ValidationError' not in said


def in_folder(folder, expression, path=ROOT):
    "Evaluate an expression on base and config in a new Python whose working folder is `folder`."
    imports = 'from smlxray.base import *; from smlxray.base import repo_root'
    code = f'{imports}; from smlxray.config import *; print({expression})'
    done = subprocess.run(
        [sys.executable, '-c', code],
        cwd=folder,
        env=os.environ | {'PYTHONPATH': str(path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.process
@pytest.mark.parametrize('folder', ['.', 'nbs', 'smlxray'])
def test_paths_count_from_the_root_anywhere_in_a_checkout(folder):
    phantoms = in_folder(ROOT / folder, "resolve_path('data/phantoms')")
    assert Path(phantoms) == ROOT / 'data' / 'phantoms'
    shared = in_folder(ROOT / folder, "resolve_path('../shared')")
    assert Path(shared) == (ROOT.parent / 'shared').resolve()
    run = in_folder(ROOT / folder, "load_settings('tiny').run_folder")
    assert Path(run) == ROOT / 'runs' / 'tiny'


@pytest.mark.process
def test_paths_count_from_the_working_folder_outside_a_checkout(tmp_path):
    here = tmp_path.resolve()
    assert Path(in_folder(tmp_path, "resolve_path('data/phantoms')")) == here / 'data' / 'phantoms'
    assert in_folder(tmp_path, 'repo_root()') == 'None'
    made = in_folder(tmp_path, "make_run_folder(load_settings('tiny'))")
    assert Path(made) == here / 'runs' / 'tiny'
    assert Path(made).is_dir()


def test_folders_stay_when_the_working_folder_changes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = load_settings('tiny')
    monkeypatch.chdir(ROOT)
    assert settings.run_folder == tmp_path.resolve() / 'runs' / 'tiny'
    assert settings.dataset_folder == tmp_path.resolve() / 'data' / 'phantoms-tiny'
    assert load_settings('tiny').run_folder == ROOT / 'runs' / 'tiny'


def test_published_settings_name_no_folder():
    paths = dict(dataset_path='/hospital/xrays', cache_path='~/hospital/cache')
    paths |= dict(runs_path='../hospital/runs', dataset='/hospital/mine.yaml')
    paths |= dict(scratch_path='/hospital/copies')
    shared = load_settings('tiny', **paths).without_folders()
    assert 'hospital' not in str(shared)
    assert [getattr(getattr(shared, section), key) for section, key in PATH_SETTINGS] == [
        'xrays', 'cache', 'copies', 'mine.yaml', 'runs',
    ]  # fmt: skip


def test_a_backbone_that_is_registered_may_be_set(monkeypatch):
    monkeypatch.setattr(BACKBONES, '_entries', dict(BACKBONES._entries))
    with pytest.raises(ConfigError, match="Did you mean 'resnet18'?"):
        load_settings('tiny', backbone='resnet12')
    BACKBONES.add('resnet12', None, 'mine')
    assert load_settings('tiny', backbone='resnet12').siamese.backbone == 'resnet12'


@pytest.mark.parametrize('old, new', [('run_folder', make_run_folder), ('DATASETS', READERS)])
def test_old_names_are_found_with_a_warning(old, new):
    with pytest.warns(DeprecationWarning, match=f'config.{old} is now'):
        assert getattr(config, old) is new


@pytest.mark.process
def test_presets_are_found_in_a_checkout_from_outside(tmp_path):
    for preset in PRESETS:
        assert in_folder(tmp_path, f'load_settings({preset!r}).evaluation.run') == preset


@pytest.mark.process
def test_presets_are_found_in_an_installed_package(tmp_path):
    site = tmp_path / 'site'
    package = site / 'smlxray'
    package.mkdir(parents=True)
    for name in ('__init__.py', 'base.py', 'config.py'):
        shutil.copy(ROOT / 'smlxray' / name, package)
    shutil.copytree(ROOT / 'config', package / '_presets')
    for preset in PRESETS:
        run = in_folder(tmp_path, f'load_settings({preset!r}).evaluation.run', path=site)
        assert run == preset
    shutil.rmtree(package / '_presets')
    with pytest.raises(AssertionError, match='please reinstall smlxray'):
        in_folder(tmp_path, "load_settings('tiny')", path=site)


def test_a_user_file_is_found_from_the_root(tmp_path, monkeypatch):
    for folder in (ROOT, ROOT / 'nbs'):
        monkeypatch.chdir(folder)
        assert load_settings('demo', config='config/tiny.yaml').data.image_size == (32, 32)
        assert load_settings('tiny').data.image_size == (32, 32)
    monkeypatch.chdir(tmp_path)
    assert resolve_path('config/tiny.yaml') == tmp_path.resolve() / 'config' / 'tiny.yaml'
    with pytest.raises(ConfigError, match='config/tiny.yaml: there is no such file'):
        load_settings('demo', config='config/tiny.yaml')


@pytest.mark.process
def test_reading_settings_is_quick(tmp_path):
    "Every command and every worker reads settings, so they must not drag torch or pandas in."
    heavy = "[m for m in ('torch', 'pandas', 'matplotlib') if m in __import__('sys').modules]"
    assert in_folder(tmp_path, f"(load_settings('tiny') and 0, {heavy})") == '(0, [])'
