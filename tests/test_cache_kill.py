"A build that is killed at random moments ends with the bytes of one that was left alone."

import os, random, subprocess, sys, time

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from smlxray.cache import ImageCache
from smlxray.data import XrayTable

pytestmark = pytest.mark.slow

BUILDER = """
import sys, pandas as pd
from smlxray.cache import ImageCache
from smlxray.data import XrayTable
folder = sys.argv[1]
rows = pd.read_csv(folder + '/table.csv', dtype=str).astype({'Edema': float})
table = XrayTable(rows, ['Edema'], folder + '/images', 'test')
print('begin', flush=True)
ImageCache.build(table, (96, 96), folder + '/cache', workers=2, progress=False)
"""


def noise_table(folder, count):
    "Write X-rays of noise, one of them broken, and their table."
    rng = np.random.default_rng(0)
    (folder / 'images').mkdir()
    for row in range(count):
        noise = rng.integers(0, 256, (320, 390), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f'images/{row}.jpg', quality=90)
    (folder / 'images/77.jpg').write_bytes(b'broken')
    frame = pd.DataFrame(
        {
            'path': [f'{row}.jpg' for row in range(count)],
            'patient': [f'p{row}' for row in range(count)],
            'Edema': 1.0,
        }
    )
    frame.to_csv(folder / 'table.csv', index=False)
    return XrayTable(frame, ['Edema'], folder / 'images', 'test')


def test_kill_nine_at_ten_random_moments(tmp_path):
    table = noise_table(tmp_path, 3000)
    began = time.monotonic()
    calm = ImageCache.build(table, (96, 96), tmp_path / 'calm', workers=2, progress=False)
    length, moments = time.monotonic() - began, random.Random(0)
    expected = (calm.path / 'pixels.npy').read_bytes()
    killed = tries = 0
    while killed < 10 and tries < 40:  # one that was ready sooner counts as no kill
        tries += 1
        builder = subprocess.Popen(
            [sys.executable, '-c', BUILDER, str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, 'OMP_NUM_THREADS': '1'},
        )
        builder.stdout.readline()
        time.sleep(moments.uniform(0, 0.6 * length))
        killed += builder.poll() is None
        builder.kill()
        builder.wait()
        if moments.random() < 0.5:
            continue  # sometimes the next attempt is killed too
        final = ImageCache.build(table, (96, 96), tmp_path / 'cache', workers=2, progress=False)
        final.verify()
        assert (final.path / 'pixels.npy').read_bytes() == expected
        assert final.quarantined.keys() == {77}
        assert final.manifest['sha256'] == calm.manifest['sha256']
        for file in final.path.iterdir():
            file.unlink()
        final.path.rmdir()
    assert killed == 10, f'of {tries} builders'
