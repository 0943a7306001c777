"What training asks of a GPU, counted on a stand-in (`on_standin.py`) in a process of its own."

import os
import subprocess
import sys
from pathlib import Path

import pytest


def passed(*words):
    "The tests on the stand-in pass, where no other test can be disturbed by its threads."
    file = Path(__file__).with_name('on_standin.py')
    line = [sys.executable, '-m', 'pytest', '-q', '-p', 'no:xdist', '-p', 'no:cacheprovider']
    env = {k: v for k, v in os.environ.items() if not k.startswith('PYTEST_')}
    done = subprocess.run([*line, str(file), *words], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert 'passed' in done.stdout


def test_training_waits_for_no_device():
    passed()


@pytest.mark.slow
def test_tasks_at_once_are_few_launches():
    passed('-m', 'slow')
