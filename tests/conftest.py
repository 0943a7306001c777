"What holds for every test here. Tests of one function live in its chapter; these test the whole."

import os

os.environ.setdefault('MPLBACKEND', 'Agg')  # no test opens a window
os.environ.setdefault('OMP_NUM_THREADS', '1')  # small tensors: threads cost more than they give


def pytest_configure(config):
    "Leave out what takes minutes, unless it is asked for: `make test-slow`, or `pytest tests -m slow`."
    config.addinivalue_line('markers', 'slow: takes minutes; run by `make test-slow`')
    if not config.option.markexpr: config.option.markexpr = 'not slow'
