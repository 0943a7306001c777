"What holds for every test here. Tests of one function live in its chapter; these are tests of the whole."

import os

os.environ.setdefault('MPLBACKEND', 'Agg')  # no test opens a window
os.environ.setdefault('OMP_NUM_THREADS', '1')  # small tensors: threads cost more than they give
