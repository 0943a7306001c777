"What holds for every test here. Tests of one function live in its chapter; these test the whole."

import os

os.environ.setdefault('MPLBACKEND', 'Agg')  # no test opens a window
os.environ.setdefault('OMP_NUM_THREADS', '1')  # small tensors: threads cost more than they give


# The file that forks, before anything starts threads; then the longest ones, longest first
FIRST = (
    'test_processes.py',
    'test_torture.py',
    'test_fuzz.py',
    'test_cli_examples.py',
    'test_cli.py',
    'test_study.py',
    'test_pages.py',
    'test_report.py',
    'test_cache.py',
    'test_bundle.py',
    'test_app.py',
)


def pytest_configure(config):
    "Leave out what takes minutes unless it is asked for: `make test-slow` or `pytest -m slow`."
    config.addinivalue_line('markers', 'slow: takes minutes; run by `make test-slow`')
    config.addinivalue_line('markers', 'light: needs no torch; run by `tests/pythons.py` as well')
    config.addinivalue_line('markers', 'process: starts a Python of its own; left out there')
    if not config.option.markexpr: config.option.markexpr = 'not slow'


def pytest_collection_modifyitems(items):
    "Begin with what cannot come later, and with what would keep one core waiting at the end."

    def place(item):
        name = item.path.name
        return FIRST.index(name) if name in FIRST else len(FIRST)

    items.sort(key=place)
