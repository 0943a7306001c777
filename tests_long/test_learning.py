"Learning to adapt works with other seeds, and with the head alone."

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / 'tests'))
from test_maml import test_learning_to_adapt_works as check


@pytest.mark.parametrize('seed, algorithm', [(1, 'maml'), (2, 'maml'), (0, 'anil')])
def test_it_works_again(seed, algorithm):
    check(seed, algorithm)
