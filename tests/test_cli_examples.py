"The long examples of `--help` and of the README, in a bare clone; the others: test_cli.py."

import os, shlex, subprocess, sys

import pytest
import test_cli as cli_tests

pytestmark = pytest.mark.slow
clone = cli_tests.clone  # the fixture


def test_the_long_examples_run_as_printed(clone):
    lines = cli_tests.all_examples()
    chosen = (*cli_tests.LONG, 'episodes export')  # `score` needs its file
    cli_tests.run_lines([line for line in lines if line.startswith(chosen)], clone)
    for made in (
        'train_siamese.ipynb',
        'train_meta.ipynb',
        'evaluate_meta.ipynb',
        'results.json',
        'bundle/card.md',
    ):
        assert (clone / 'runs/tiny' / made).exists(), made
    assert 'Not measured' not in (clone / 'runs/tiny/bundle/card.md').read_text()
    assert not list((clone / 'runs/tiny/checkpoints').glob('*.state.*'))


def test_the_papermill_lines_of_the_readme_run(clone):
    lines = cli_tests.readme_commands('papermill')
    assert len(lines) >= 3
    for line in lines:
        done = subprocess.run(
            [sys.executable, '-m', 'papermill', *shlex.split(line)],
            capture_output=True,
            text=True,
            cwd=clone,
            env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(clone)},
        )
        assert done.returncode == 0, (line, done.stderr[-2000:])
