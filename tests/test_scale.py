"What 20,000 X-rays need above 2,000; `make scale` and the chapter on benchmarks have the rest."

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FEW, MANY = 2000, 20_000
BYTES_PER_XRAY = 20_000  # a quarter of what one number for each of 20,000 others would take


def walked(place, rows):
    "Lay out a tree and take it through all steps; what each of them said."
    layout = [sys.executable, str(HERE / 'scale.py'), '--tree', str(place), str(rows), '64']
    subprocess.run(layout, check=True)
    line = [sys.executable, str(HERE / 'on_many.py'), str(place)]
    done = subprocess.run(line, capture_output=True, text=True)
    assert not done.returncode, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.skipif(
    not find_spec('torchxrayvision'), reason="CheXpert's labels are in torchxrayvision"
)
def test_memory_grows_with_the_number_of_xrays_and_no_faster(tmp_path):
    few, many = (walked(tmp_path / str(rows), rows) for rows in (FEW, MANY))
    for less, more in zip(few, many):
        print(f'{more["step"]}: {less} {more}')
    assert [row['step'] for row in few] == [row['step'] for row in many]
    grown = {m['step']: m['megabytes'] - f['megabytes'] for f, m in zip(few, many)}
    most = BYTES_PER_XRAY * (MANY - FEW) / 2**20
    assert max(grown.values()) < most, grown
