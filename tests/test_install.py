"How `make` chooses the build of torch, with a pip that only takes notes."

import importlib.util
import sys
from pathlib import Path

import pytest
import pythons

pytestmark = pytest.mark.light  # needs no torch

ROOT = Path(__file__).resolve().parents[1]
spec = importlib.util.spec_from_file_location('install', ROOT / '.ci' / 'install.py')
install = importlib.util.module_from_spec(spec)
spec.loader.exec_module(install)


class Pip:
    "Notes what it is asked for; fails where the words contain `broken`."

    def __init__(self, broken='nothing'):
        self.broken, self.calls = broken, []

    def __call__(self, python, *words, silent=False):
        self.calls.append(' '.join(words))
        return self.broken not in self.calls[-1]


@pytest.fixture
def no_gpu(monkeypatch):
    "A Linux machine without a GPU."
    monkeypatch.setattr(install, 'sees_gpu', lambda: False)
    monkeypatch.setattr(install.torch_index, '__defaults__', ('linux',))


def run(monkeypatch, broken='nothing', **environ):
    "Install with a pip that takes notes; return the exit code and the notes."
    pip = Pip(broken)
    monkeypatch.setattr(install, 'pip', pip)
    return install.main('.venv', environ), pip.calls


def test_without_a_gpu_the_cpu_build_is_taken(monkeypatch, no_gpu):
    code, calls = run(monkeypatch)
    assert code == 0
    assert len(calls) == 2
    assert f'--index-url {install.CPU_INDEX}' in calls[0]
    assert '--no-deps' in calls[0]
    assert '--timeout 10' in calls[0]
    assert calls[1].endswith('-e .[dev]')
    assert 'constraints.txt' in calls[1]
    if sys.version_info >= (3, 11): assert '+cpu' in calls[0]


def test_where_there_is_no_cpu_build_the_default_one_is_taken(monkeypatch, no_gpu, capsys):
    code, calls = run(monkeypatch, broken=install.CPU_INDEX)
    assert code == 0
    assert calls[1].endswith('-e .[dev]')
    said = capsys.readouterr().out
    assert 'gave no CPU build of torch' in said
    assert 'default build instead' in said


@pytest.mark.parametrize('platform, gpu', [('linux', True), ('darwin', False), ('win32', False)])
def test_with_a_gpu_or_elsewhere_the_default_build_is_right(monkeypatch, platform, gpu):
    monkeypatch.setattr(install, 'sees_gpu', lambda: gpu)
    assert install.torch_index({}, platform) is None


def test_an_index_of_your_own_is_asked_and_must_answer(monkeypatch, no_gpu):
    code, calls = run(monkeypatch, TORCH_INDEX='https://wheels.example/cu126')
    assert code == 0
    assert '--index-url https://wheels.example/cu126' in calls[0]
    assert '+cpu' not in calls[0]
    assert '--retries' not in calls[0]
    code, calls = run(monkeypatch, broken='example', TORCH_INDEX='https://wheels.example/cu126')
    assert (code, len(calls)) == (1, 1)


def test_an_empty_index_is_the_default_one(monkeypatch, no_gpu):
    code, calls = run(monkeypatch, TORCH_INDEX='')
    assert (code, len(calls)) == (0, 1)


def test_constraints_can_be_left_out(monkeypatch, no_gpu, capsys):
    code, calls = run(monkeypatch, TORCH_INDEX='', CONSTRAINTS='')
    assert calls == ['-e .[dev]']
    code, calls = run(monkeypatch, broken='dev', TORCH_INDEX='')
    assert code == 1
    assert 'make CONSTRAINTS= takes the newest' in capsys.readouterr().err


def test_no_tool_means_no_gpu(monkeypatch):
    monkeypatch.setenv('PATH', '')
    assert install.sees_gpu() is False


def test_a_python_that_is_not_here_is_named_and_left_out(capsys, monkeypatch, tmp_path):
    assert pythons.find('3.99') is None
    assert pythons.try_version('3.99')
    assert 'Python 3.99 is not tried: it is not on this machine.' in capsys.readouterr().out
    monkeypatch.setattr(pythons, 'PLACE', tmp_path)
    assert 'its packages cannot be installed' in pythons.prepare('3.99', Path('/bin/false'))


def test_a_light_test_that_fails_is_told(capsys, monkeypatch, tmp_path):
    (tmp_path / 'test_wrong.py').write_text('def test_wrong(): assert 1 == 2')
    done = pythons.run(sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', tmp_path)
    monkeypatch.setattr(pythons, 'find', lambda version: Path(sys.executable))
    monkeypatch.setattr(pythons, 'prepare', lambda version, base: '')
    monkeypatch.setattr(pythons, 'run', lambda *words: done)
    assert not pythons.try_version('3.12')
    assert 'assert 1 == 2' in capsys.readouterr().out
