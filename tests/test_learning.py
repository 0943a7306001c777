"Learning to adapt works with other seeds, and with the head alone."

import pytest
from test_maml import test_learning_to_adapt_works as check

pytestmark = pytest.mark.slow


@pytest.mark.parametrize('seed, algorithm', [(1, 'maml'), (2, 'maml'), (0, 'anil')])
def test_it_works_again(seed, algorithm):
    check(seed, algorithm)
