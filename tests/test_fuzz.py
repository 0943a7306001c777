"Mutated inputs, always the same; `make fuzz` tries 20,000 of them, own files included."

import pytest
from fuzz import READERS, faults, prepare, run

FOREIGN = ('images', 'settings', 'mapping', 'tables', 'pairs', 'unfinished')


def test_inputs_from_outside_are_read_or_refused(tmp_path):
    prepare(tmp_path, with_run=False)
    rows = run(tmp_path, 180, 2, seed=1, names=FOREIGN)
    assert not faults(rows) and sum(row['inputs'] for row in rows) == 180


@pytest.mark.slow
def test_own_files_are_read_or_refused(tmp_path):
    prepare(tmp_path)
    rows = run(tmp_path, 2000, 10, seed=1, names=[name for name in READERS if name not in FOREIGN])
    assert not faults(rows)
