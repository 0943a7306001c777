"""The house as a whole: what a chapter cannot test about itself.

That notebooks and modules agree, are clean and use known directives is checked by `python -m smlxray.site` (see the Makefile).
"""

import ast
import configparser
import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from smlxray import site

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = site.notebooks(ROOT)
CHAPTERS = [p for p in NOTEBOOKS if p.name[0].isdigit()]
MODULES = {
    m[1]: p
    for p in CHAPTERS
    for c in site.read_cells(p)
    if (m := re.search(r'^#\| default_exp (\w+)', c['source'], re.M))
}
MACHINE_PATH = re.compile(
    r'(?<![\w.])/(?:work|tmp|root|home/\w+|Users/\w+|content|var/folders)/|[A-Z]:\\\\?Users'
)
name = lambda p: p.name


@pytest.fixture(scope='session')
def settings() -> dict:
    ini = configparser.ConfigParser(delimiters=['='], interpolation=None)
    ini.read(ROOT / 'settings.ini', encoding='utf-8')
    return dict(ini['DEFAULT'])


def texts(output: dict) -> str:
    "All that an output says in words (pictures left out: base64 may spell anything)."
    data = {k: v for k, v in output.get('data', {}).items() if not k.startswith('image/')}
    return '\n'.join(
        ''.join(t) if isinstance(t, (str, list)) else json.dumps(t)
        for t in [output.get('text', ''), *data.values()]
    )


# Notebooks


@pytest.mark.parametrize('path', NOTEBOOKS, ids=name)
def test_notebook_is_small(path):
    assert path.stat().st_size < 200_000, (
        f'{path.name} has {path.stat().st_size // 1000} kB: make its figures smaller or fewer'
    )


@pytest.mark.parametrize('path', NOTEBOOKS, ids=name)
def test_outputs_hold_no_errors_and_no_machine_paths(path):
    for n, cell in enumerate(site.read_cells(path), 1):
        for output in cell.get('outputs', []):
            where, text = f'{path.name}, cell {n}', texts(output)
            assert (
                output['output_type'] != 'error' and 'Traceback (most recent call last)' not in text
            ), f'{where} was saved with an error'
            assert not (m := MACHINE_PATH.search(text)), (
                f'{where} names a folder of somebody\'s machine: ...{text[max(0, m.start() - 20) : m.end() + 30]}...'
            )


@pytest.mark.parametrize('path', CHAPTERS, ids=name)
def test_chapter_opens_with_title_and_lead(path):
    first, second = site.read_cells(path)[:2]
    module = path.stem.split('_', 1)[1]
    assert re.match(rf'# {module}\n\n> \S', first['source']), (
        f'{path.name} must open with "# {module}" and a lead "> one sentence"'
    )
    assert second['source'].startswith(f'#| default_exp {module}'), (
        f'the second cell of {path.name} must say #| default_exp {module}'
    )


def test_notebooks_are_executed():
    for path in CHAPTERS:
        assert any(c.get('outputs') for c in site.read_cells(path)), (
            f'{path.name} has no outputs: run it before you commit it, the site shows them'
        )


@pytest.mark.parametrize('stem', site.RUN_NOTEBOOKS)
def test_run_notebook_has_one_parameters_cell(stem):
    path = ROOT / 'nbs' / f'{stem}.ipynb'
    tagged = [
        c for c in site.read_cells(path) if 'parameters' in c.get('metadata', {}).get('tags', [])
    ]
    assert len(tagged) == 1, (
        f'{path.name} needs one cell tagged "parameters", or papermill ignores -p without a word'
    )


# Modules


@pytest.mark.parametrize('module', MODULES)
def test_arrows_go_down(module):
    "A chapter imports earlier chapters only, and nobody imports the three that face the outside; only the command serves the pages."
    tree = ast.parse((ROOT / 'smlxray' / f'{module}.py').read_text(encoding='utf-8'))
    for node in ast.walk(tree):
        imported = []
        if isinstance(node, ast.ImportFrom) and (
            node.level or (node.module or '').split('.')[0] == 'smlxray'
        ):
            tail = (node.module or '').removeprefix('smlxray').lstrip('.')
            imported = [tail] if tail else [a.name for a in node.names]
        if isinstance(node, ast.Import):
            imported = [
                a.name.removeprefix('smlxray.') for a in node.names if a.name.startswith('smlxray.')
            ]
        for other in imported:
            if other not in MODULES: continue
            assert other not in ('app', 'cli', 'site') or (module, other) == ('cli', 'app'), (
                f'{module} imports {other}, which nobody may import'
            )
            assert MODULES[other].name < MODULES[module].name, (
                f'{module} imports {other}, which comes later'
            )


@pytest.mark.parametrize('module', MODULES)
def test_modules_do_without_the_dev_packages(module):
    tree = ast.parse((ROOT / 'smlxray' / f'{module}.py').read_text(encoding='utf-8'))
    names = {
        (a.name if isinstance(n, ast.Import) else n.module or '').split('.')[0]
        for n in ast.walk(tree)
        if isinstance(n, (ast.Import, ast.ImportFrom))
        for a in n.names
    }
    assert not names & {'nbdev', 'fastcore', 'execnb', 'pytest', 'smalldocs', 'jupyterlab'}, (
        f'smlxray/{module}.py needs a package that users do not have'
    )


def test_version_is_said_once(settings):
    assert f'__version__ = "{settings["version"]}"' in (ROOT / 'smlxray/__init__.py').read_text()
    assert f'## {settings["version"]}' in (ROOT / 'CHANGELOG.md').read_text(encoding='utf-8')


# README and site


def test_readme_is_what_the_index_gives():
    assert not site.readme_problems(ROOT)


@pytest.mark.parametrize('page', ['README.md', 'CONTRIBUTING.md', 'CHANGELOG.md'])
def test_relative_links_exist(page):
    text = re.sub(r'^```.*?^```', '', (ROOT / page).read_text(encoding='utf-8'), flags=re.M | re.S)
    for link in re.findall(r'\]\(([^)\s]+)', text):
        if re.match(r'[a-z]+:|#', link): continue
        assert (ROOT / link.partition('#')[0]).exists(), (
            f'{page} links to {link}, which is not there'
        )


def test_every_notebook_is_in_the_sidebar():
    assert not site.sidebar_problems(ROOT)


def test_nbdev_finds_the_site():
    link = ROOT / 'nbs/_quarto.yml'
    assert link.is_symlink() and link.resolve() == (ROOT / '_quarto.yml').resolve()


# Git, make and the wheel


def test_nothing_large_is_tracked():
    listed = subprocess.run(['git', 'ls-files', '-z'], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip('this copy is not a git checkout')
    for f in filter(None, listed.stdout.split('\0')):
        path = ROOT / f
        if path.is_file():
            assert path.stat().st_size < 1_000_000, (
                f'{f} has {path.stat().st_size // 1000} kB: nothing over 1 MB is tracked'
            )
        assert path.suffix not in ('.npy', '.safetensors', '.pth', '.pt'), (
            f'{f} is made by a run; it does not belong in git'
        )


@pytest.mark.skipif(not shutil.which('make'), reason='make is not installed')
def test_make_lists_its_targets():
    said = subprocess.run(
        ['make', '--no-print-directory'], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    listed = re.findall(r'^  make (\w+) +\S', said, re.M)
    assert {'demo', 'test', 'lab', 'docs', 'clean'} <= set(listed)
    assert set(listed) == set(re.findall(r'^([a-z]+):', (ROOT / 'Makefile').read_text(), re.M))


def test_pins_that_belong_together(settings):
    dev = settings['dev_requirements'].split()
    for pin in ('nbdev==2.4.14', 'fastcore>=1.12.3,<2', 'execnb>=0.1.12,<0.2'):
        assert pin in dev, (
            f'{pin} is needed: another version of one of the three stops nbdev from starting'
        )


def test_wheel_carries_presets_and_run_notebooks(tmp_path):
    pytest.importorskip('setuptools')
    copy = tmp_path / 'source'
    keep = ['setup.py', 'settings.ini', 'LICENSE', 'smlxray', 'config', 'nbs']
    for k in keep:
        if (ROOT / k).is_dir():
            shutil.copytree(
                ROOT / k,
                copy / k,
                ignore=shutil.ignore_patterns(
                    '__pycache__', '_presets', '_notebooks', 'runs', 'data'
                ),
            )
        elif (ROOT / k).exists():
            (copy / k).parent.mkdir(parents=True, exist_ok=True), shutil.copy(ROOT / k, copy / k)
    run = subprocess.run(
        [sys.executable, 'setup.py', '-q', 'bdist_wheel', '-d', str(tmp_path)],
        cwd=copy,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    inside = set(zipfile.ZipFile(next(tmp_path.glob('*.whl'))).namelist())
    for folder, files in (
        ('_presets', (ROOT / 'config').glob('*.yaml')),
        ('_notebooks', (ROOT / 'nbs' / f'{n}.ipynb' for n in site.RUN_NOTEBOOKS)),
    ):
        for f in files:
            assert f'smlxray/{folder}/{f.name}' in inside, f'the wheel lacks {folder}/{f.name}'
    assert 'smlxray/config.py' in inside and not any(
        n.startswith(('nbs/', 'tests/', 'config/')) for n in inside
    )
