"Where the real X-rays of the study are, for the tests that need them."

import os
from pathlib import Path

import pytest

from smlxray.base import resolve_path

REAL = Path(os.environ.get('SMLXRAY_REAL') or resolve_path('data/nih'))
needs_real = pytest.mark.skipif(
    not (REAL / 'labels.csv').is_file(),
    reason='no X-rays in data/nih, nor in the folder that SMLXRAY_REAL names',
)

# the larger set of the confirmation stands beside them
NIH = REAL.with_name('nih')
needs_nih = pytest.mark.skipif(
    not (NIH / 'images').is_dir() or NIH == REAL,
    reason='no folder nih beside the one that SMLXRAY_REAL names',
)
