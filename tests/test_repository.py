"""The house as a whole: what a chapter cannot test about itself.

That notebooks and modules agree, are clean and use known directives, that style is kept and that
the wheel works is checked by `python -m smlxray.site` (see the Makefile).
"""

import ast
import configparser
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from smlxray import site

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = site.notebooks(ROOT)
CHAPTERS = [path for path in NOTEBOOKS if path.name[0].isdigit()]
MACHINE_PATH = re.compile(
    r'(?<![\w.])/(?:work|tmp|root|home/\w+|Users/\w+|content|var/folders)/|[A-Z]:\\\\?Users'
)


def exported_module(path: Path) -> str | None:
    "The module that a chapter writes, without the package: 'data', or 'app.teach'."
    for cell in site.read_cells(path):
        if m := re.search(r'^#\| default_exp ([\w.]+)', cell['source'], re.M): return m[1]
    return None


MODULES = {module: path for path in CHAPTERS if (module := exported_module(path))}


def name(path: Path) -> str:
    return path.name


def tree_of(module: str) -> ast.Module:
    "The syntax tree of a module of the package."
    path = ROOT / 'smlxray' / f'{module.replace(".", "/")}.py'
    return ast.parse(path.read_text(encoding='utf-8'))


@pytest.fixture(scope='session')
def settings() -> dict:
    ini = configparser.ConfigParser(delimiters=['='], interpolation=None)
    ini.read(ROOT / 'settings.ini', encoding='utf-8')
    return dict(ini['DEFAULT'])


def texts(output: dict) -> str:
    "All that an output says in words (pictures left out: base64 may spell anything)."
    data = {k: v for k, v in output.get('data', {}).items() if not k.startswith('image/')}
    parts = [output.get('text', ''), *data.values()]
    return '\n'.join(''.join(p) if isinstance(p, (str, list)) else json.dumps(p) for p in parts)


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
            failed = output['output_type'] == 'error' or 'Traceback (most recent call' in text
            assert not failed, f'{where} was saved with an error'
            found = MACHINE_PATH.search(text)
            around = text[max(0, found.start() - 20) : found.end() + 30] if found else ''
            assert not found, f'{where} names a folder of a machine: ...{around}...'


@pytest.mark.parametrize('path', CHAPTERS, ids=name)
def test_chapter_opens_with_title_and_lead(path):
    first, second = site.read_cells(path)[:2]
    module = path.stem.split('_', 1)[1]
    assert re.match(rf'# {module}\n\n> \S', first['source']), (
        f'{path.name} must open with "# {module}" and a lead "> one sentence"'
    )
    assert re.match(rf'#\| default_exp (\w+\.)?{module}$', second['source']), (
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


def imported_modules(module: str) -> set[str]:
    "The modules of the package that a module imports, however it is written."
    home, found = ['smlxray', *module.split('.')], set()
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Import): found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            above = home[: -node.level] if node.level else []
            base = '.'.join([*above, *filter(None, [node.module])])
            found |= {base, *(f'{base}.{alias.name}' for alias in node.names)}
    return {path.removeprefix('smlxray.') for path in found} & {*MODULES}


def faces_outside(module: str) -> bool:
    "Pages, command and house face the outside: no chapter below them may know them."
    return module.split('.')[0] in ('app', 'cli', 'site')


@pytest.mark.parametrize('module', MODULES)
def test_arrows_go_down(module):
    "A chapter imports earlier chapters only; pages are known to each other and to the command."
    for other in imported_modules(module):
        assert MODULES[other].name < MODULES[module].name, (
            f'{module} imports {other}, which comes later'
        )
        to_pages = other.startswith('app') and (module == 'cli' or module.startswith('app'))
        assert to_pages or not faces_outside(other), f'{module} imports {other}: not allowed'


@pytest.mark.parametrize('module', MODULES)
def test_modules_do_without_the_dev_packages(module):
    names = set()
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Import): names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom): names.add(node.module or '')
    dev = {'nbdev', 'fastcore', 'execnb', 'pytest', 'smalldocs', 'jupyterlab'}
    assert not dev & {full.split('.')[0] for full in names}, (
        f'{module} needs a package that users do not have'
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
        there = (ROOT / link.partition('#')[0]).exists()
        assert there, f'{page} links to {link}, which is not there'


def test_every_notebook_is_in_the_sidebar():
    assert not site.sidebar_problems(ROOT)


def test_the_tour_lists_every_chapter_in_the_order_of_the_sidebar():
    sidebar = re.findall(r'- (\d\d_\w+\.ipynb)', (ROOT / '_quarto.yml').read_text())
    tour = (ROOT / 'nbs/tour.ipynb').read_text()
    assert re.findall(r'"\| \[\w+\]\((\d\d_\w+\.ipynb)\) \|', tour) == sidebar


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
        if f.startswith('config/example/'):
            continue  # the one exception: `make example` packs it
        assert path.suffix not in ('.npy', '.safetensors', '.pth', '.pt'), (
            f'{f} is made by a run; it does not belong in git'
        )


@pytest.mark.skipif(not shutil.which('make'), reason='make is not installed')
def test_make_lists_its_targets():
    said = subprocess.run(
        ['make', '--no-print-directory'], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    listed = re.findall(r'^  make ([\w-]+) +\S', said, re.M)
    assert {'demo', 'test', 'lab', 'docs', 'clean'} <= set(listed)
    assert set(listed) == set(re.findall(r'^([a-z-]+):', (ROOT / 'Makefile').read_text(), re.M))


def test_pins_that_belong_together(settings):
    dev = settings['dev_requirements'].split()
    for pin in ('nbdev==2.4.14', 'fastcore>=1.12.3,<2', 'execnb>=0.1.12,<0.2'):
        assert pin in dev, (
            f'{pin} is needed: another version of one of the three stops nbdev from starting'
        )
