"""The part of the tests that needs no torch, under the other Pythons that are found here.

`python tests/pythons.py` is a line of `make test`. Torch is most of an installation, and is tested
under every Python by those who make it; what can be wrong under another version are our own lines.
So each version gets an environment without torch, in which every module must parse and the tests
with the mark `light` must pass. It is kept in build/pythons until the requirements change. A
version that is not here, or that has no packages to install, is named and left out.
"""

import configparser
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PLACE = ROOT / 'build' / 'pythons'
VERSIONS = '3.10', '3.11', '3.12', '3.13'
OWN = '{}.{}'.format(*sys.version_info)  # the one that all tests run under
NEED_TORCH = {'torch', 'torchvision', 'higher', 'accelerate'}
FOR_NOTEBOOKS = {'papermill', 'ipykernel', 'ipywidgets'}
PARSE = """
import ast, pathlib
for path in sorted(pathlib.Path('.').glob('smlxray/**/*.py')):
    ast.parse(path.read_text(encoding='utf-8'), str(path))
"""


def run(*words: str | Path) -> subprocess.CompletedProcess:
    "Run a command at the root of the checkout, on one core, with our modules and nobody else's."
    env = {key: value for key, value in os.environ.items() if not key.startswith('PYTHON')}
    env |= dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1')
    return subprocess.run(list(map(str, words)), cwd=ROOT, env=env, capture_output=True, text=True)


def find(version: str) -> Path | None:
    "A Python of a version: on the PATH, or among those of pyenv, whose own commands may be off."
    pyenv = Path(os.environ.get('PYENV_ROOT', Path.home() / '.pyenv'))
    places = [*pyenv.glob(f'versions/{version}.*/bin/python')]
    if named := shutil.which(f'python{version}'): places.insert(0, Path(named))
    for place in places:
        said = run(place, '-c', 'import sys; print("{}.{}".format(*sys.version_info))')
        if said.stdout.strip() == version: return place
    return None


def requirements() -> list[str]:
    "What settings.ini asks for, decoders included, without torch and what runs notebooks."
    ini = configparser.ConfigParser(delimiters=['='], interpolation=None)
    ini.read(ROOT / 'settings.ini', encoding='utf-8')
    asked = ini['DEFAULT']
    words = [*asked['requirements'].split(), *asked['dicom_requirements'].split(), 'pytest']
    return [w for w in words if re.split('[<>=]', w)[0] not in NEED_TORCH | FOR_NOTEBOOKS]


def prepare(version: str, base: Path) -> str:
    "Make the environment of a version, unless it is there; return why that cannot be, or nothing."
    home = PLACE / version
    wanted, made = '\n'.join([str(base), *requirements()]), home / 'installed.txt'
    if made.is_file() and made.read_text() == wanted: return ''
    shutil.rmtree(home, ignore_errors=True)
    python = home / 'bin' / 'python'
    pip = [sys.executable, '-m', 'pip', '--python', python, '--disable-pip-version-check']
    quick = ['--quiet', '--no-compile', '--retries', '0', '--timeout', '15']
    packages = ['-c', 'constraints.txt', *requirements()]
    for step in ([base, '-m', 'venv', '--without-pip', home], [*pip, 'install', *quick, *packages]):
        done = run(*step)
        if done.returncode:
            said = (done.stderr + done.stdout).strip().splitlines() or ['it failed']
            return f'its packages cannot be installed ({said[-1][:200]})'
    made.write_text(wanted)
    return ''


def light_tests() -> list[Path]:
    "The files that say of themselves that they need no torch."
    files = sorted(ROOT.glob('tests/test_*.py'))
    return [file for file in files if 'pytest.mark.light' in file.read_text(encoding='utf-8')]


def try_version(version: str) -> bool:
    "Say how it went under a version; False if something failed."
    base = find(version)
    why = prepare(version, base) if base else 'it is not on this machine'
    if why:
        print(f'Python {version} is not tried: {why}.', flush=True)
        return True
    python = PLACE / version / 'bin' / 'python'
    parsed = run(python, '-W', 'error', '-c', PARSE)
    chosen = 'light and not process and not slow'
    tests = ['-m', 'pytest', '-q', '-m', chosen, '-p', 'no:cacheprovider', *light_tests()]
    done = parsed if parsed.returncode else run(python, *tests)
    if done.returncode:
        print(f'Python {version}:\n{done.stdout[-6000:]}{done.stderr[-3000:]}', flush=True)
        return False
    print(f'Python {version}: {done.stdout.strip().splitlines()[-1]}', flush=True)
    return True


if __name__ == '__main__':
    went = [try_version(version) for version in VERSIONS if version != OWN]
    sys.exit(not all(went))
