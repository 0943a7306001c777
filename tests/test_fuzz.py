"Mutated inputs, always the same: a few hundred here, and the 20,000 of `make fuzz` when slow."

import pytest
from fuzz import FOREIGN, faults, prepare, run


def test_inputs_from_outside_are_read_or_refused(tmp_path):
    prepare(tmp_path, with_run=False)
    rows = run(tmp_path, 300, 2, seed=1, names=FOREIGN)
    assert not faults(rows) and sum(row['inputs'] for row in rows) == 300


@pytest.mark.slow
def test_own_files_are_read_or_refused(tmp_path):
    "With those from outside, as their readers use the same workers."
    prepare(tmp_path)
    rows = run(tmp_path, 20_000, 18, seed=1)
    assert not faults(rows) and sum(row['inputs'] for row in rows) == 20_000
