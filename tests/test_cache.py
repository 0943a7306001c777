"""What the cache promises across processes.

A killed builder leaves nothing that passes for a cache, the next one resumes its work, and two
builders share one result.
"""

import multiprocessing, os, signal, subprocess, sys, time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from smlxray import base
from smlxray import cache as cache_module
from smlxray.cache import (
    PIECE,
    DirectPixels,
    ImageCache,
    StaleCache,
    _take_over,
    cache_info,
    cache_key,
)
from smlxray.data import XrayTable
from smlxray.shards import Layout

SIZE, COUNT = (32, 32), 200

# A builder as a program of its own: it notes each image it reads in a log and dawdles over it.
BUILDER = '''
import sys, time
import pandas as pd
import smlxray.cache as cache
from smlxray.data import XrayTable
from smlxray.shards import Layout
folder, log, pause = sys.argv[1], open(sys.argv[2], 'a', buffering=1), float(sys.argv[3])
read = cache.read_picture
def slow_read(path, **options):
    log.write(path + chr(10))
    time.sleep(pause)
    return read(path, **options)
cache.read_picture = slow_read
frame = pd.read_csv(folder + '/table.csv', dtype={'patient': str})
table = XrayTable(frame, ['Edema'], folder + '/images', 'test')
options = dict(workers=2, progress=False)
print(cache.ImageCache.build(table, (32, 32), folder + '/cache', **options).manifest['sha256'])
'''


@pytest.fixture
def table(tmp_path: Path) -> XrayTable:
    rng = np.random.default_rng(0)
    (tmp_path / 'images').mkdir()
    for row in range(COUNT):
        Image.fromarray(rng.integers(0, 256, (40, 36), dtype=np.uint8)).save(
            tmp_path / f'images/{row}.png'
        )
    frame = pd.DataFrame(
        {
            'path': [f'{row}.png' for row in range(COUNT)],
            'patient': [f'p{row}' for row in range(COUNT)],
            'study': 'study1',
            'view': 'frontal',
            'projection': 'PA',
            'Edema': np.arange(COUNT) % 2.0,
        }
    )
    frame.to_csv(tmp_path / 'table.csv', index=False)
    return XrayTable(frame, ['Edema'], tmp_path / 'images', 'test')


def start(folder: Path, log: str, pause: float) -> subprocess.Popen:
    "Start a builder that hears Ctrl-C, even where a shell in the background would ignore it."
    command = [sys.executable, '-c', BUILDER, str(folder), str(folder / log), str(pause)]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_until(condition, process: subprocess.Popen, seconds: float = 180):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, 'the builder took too long'
        time.sleep(0.01)


def folders(cache: Path) -> list[str]:
    return sorted(p.name for p in cache.iterdir() if p.is_dir())


def lines(log: Path) -> int:
    return log.read_text().count('\n') if log.exists() else 0


@pytest.mark.parametrize('how', [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_builder_leaves_no_cache_and_the_next_goes_on(table, tmp_path, how):
    key, undisturbed = (
        cache_key(table, SIZE),
        ImageCache.build(table, SIZE, tmp_path / 'calm', progress=False),
    )
    builder = start(tmp_path, 'log', 0.04)
    wait_until(lambda: lines(tmp_path / 'log') > 150, builder)
    builder.send_signal(how)
    builder.communicate(timeout=180)
    assert builder.returncode != 0 and folders(tmp_path / 'cache') == [f'{key}.building']
    with pytest.raises(StaleCache, match='There is no cache'):
        ImageCache.open(tmp_path / 'cache', table, SIZE)
    assert list(cache_info(tmp_path / 'cache')['state']) == ['half built']

    second = start(tmp_path, 'log2', 0)  # the lock died with its holder
    out, err = second.communicate(timeout=180)
    assert second.returncode == 0, err
    assert lines(tmp_path / 'log2') <= COUNT - PIECE, 'at least one piece was safe on the disk'
    assert folders(tmp_path / 'cache') == [key]
    cache = ImageCache.open(tmp_path / 'cache', table, SIZE)
    cache.verify()
    assert cache.manifest['sha256'] == undisturbed.manifest['sha256']
    assert (cache.path / 'pixels.npy').read_bytes() == (
        undisturbed.path / 'pixels.npy'
    ).read_bytes()
    assert torch.equal(cache.gather(range(COUNT)), DirectPixels(table, SIZE).gather(range(COUNT)))


def test_a_damaged_draft_is_not_believed(table, tmp_path):
    whole = ImageCache.build(table, SIZE, tmp_path / 'cache', progress=False)
    expected, key = (whole.path / 'pixels.npy').read_bytes(), whole.path.name
    _take_over(whole.path, tmp_path / f'cache/{key}.building', Layout(COUNT, SIZE))
    with open(tmp_path / f'cache/{key}.building/pixels.npy', 'r+b') as file:
        file.seek(128 + 70 * 32 * 32)
        file.write(b'damage')  # in the second piece
    with open(tmp_path / f'cache/{key}.building/journal.jsonl', 'r+') as file:
        file.truncate(len(file.read()) - 9)  # the last line is half written
    (whole.path / 'manifest.json').unlink()
    again = ImageCache.build(table, SIZE, tmp_path / 'cache', progress=False)
    again.verify()
    assert (again.path / 'pixels.npy').read_bytes() == expected


def test_a_file_size_limit_is_a_sentence_and_nothing_is_lost(table, tmp_path):
    code = BUILDER.replace(
        'table = ',
        'import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (90_000, 90_000))\ntable = ',
        1,
    )
    code = code.replace('print(cache', 'try: print(cache').replace(
        "['sha256'])", "['sha256'])\nexcept ValueError as e: print('refused:', e)"
    )
    out = subprocess.run(
        [sys.executable, '-c', code, str(tmp_path), str(tmp_path / 'log'), '0'],
        capture_output=True,
        text=True,
    )
    assert (
        out.returncode == 0
        and 'refused: The cache' in out.stdout
        and 'cannot be written (File too large)' in out.stdout
    ), out
    with pytest.raises(StaleCache):
        ImageCache.open(tmp_path / 'cache', table, SIZE)
    cache = ImageCache.build(table, SIZE, tmp_path / 'cache', progress=False)
    cache.verify()


def test_killed_while_replacing_a_stale_cache(table, tmp_path):
    old = ImageCache.build(table, SIZE, tmp_path / 'cache', progress=False)
    kept = old.gather([0, 1]).clone()
    Image.fromarray(np.zeros((40, 36), np.uint8)).save(tmp_path / 'images/0.png')
    log = tmp_path / 'log'
    builder = start(tmp_path, 'log', 0.02)
    wait_until(lambda: log.exists() and log.read_text().count('\n') > 20, builder)
    builder.kill()
    builder.communicate()
    assert torch.equal(old.gather([0, 1]), kept)
    with pytest.raises(StaleCache, match='have changed'):
        ImageCache.open(tmp_path / 'cache', table, SIZE)
    new = ImageCache.build(table, SIZE, tmp_path / 'cache', progress=False)
    assert not new.gather([0]).any() and torch.equal(new.gather([1]), kept[1:])
    assert folders(tmp_path / 'cache') == [old.path.name]


class Killed(BaseException):
    "What stands for kill -9 in these tests: nothing of ours catches it."


def kill_at(monkeypatch, module, name, call):
    "Let the n-th call of a function be the last thing that a process does."
    work, calls = getattr(module, name), []

    def dying(*args, **options):
        calls.append(args)
        if len(calls) == call:
            raise Killed
        return work(*args, **options)

    monkeypatch.setattr(module, name, dying)


@pytest.mark.parametrize('moment', ['before', 'between the renames', 'after the exchange'])
def test_a_kill_while_a_cache_is_replaced_loses_nothing(table, tmp_path, monkeypatch, moment):
    home = tmp_path / 'cache'
    old = ImageCache.build(table, SIZE, home, progress=False)
    kept = old.gather([1, 2]).clone()
    Image.fromarray(np.zeros((40, 36), np.uint8)).save(tmp_path / 'images/0.png')
    with monkeypatch.context() as patched, pytest.raises(Killed):
        if moment == 'after the exchange':
            kill_at(patched, cache_module, '_remove_leftovers', 1)
        else:
            patched.setattr(base, '_exchange', lambda a, b: False)
            kill_at(patched, base.os, 'rename', 1 if moment == 'before' else 2)
        ImageCache.build(table, SIZE, home, progress=False)
    found = set(folders(home))
    assert found & {old.path.name, f'.{old.path.name}.old'}, 'an old or a new cache is there'
    reads = []
    with monkeypatch.context() as patched:
        read = cache_module.read_picture
        patched.setattr(cache_module, 'read_picture', lambda p: reads.append(p) or read(p))
        new = ImageCache.build(table, SIZE, home, progress=False)
    assert not reads, 'what was decoded is decoded again'
    new.verify()
    assert not new.gather([0]).any() and torch.equal(new.gather([1, 2]), kept)
    assert folders(home) == [old.path.name]


def test_two_builders_share_one_result(table, tmp_path):
    builders = [start(tmp_path, f'log{i}', 0.005) for i in range(2)]
    outputs = [b.communicate(timeout=300) for b in builders]
    assert [b.returncode for b in builders] == [0, 0], outputs
    sums = [out.split()[-1] for out, _ in outputs]
    assert sums[0] == sums[1] == ImageCache.open(tmp_path / 'cache', table, SIZE).manifest['sha256']
    read = [(tmp_path / f'log{i}').read_text().count('\n') for i in range(2)]
    assert sorted(read) == [0, COUNT], 'only one of them may have read the images'
    assert folders(tmp_path / 'cache') == [cache_key(table, SIZE)]


def _total(cache, rows) -> int:
    return int(cache.gather(rows).sum())


@pytest.mark.parametrize('method', ['fork', 'spawn'])
def test_gather_in_other_processes(table, tmp_path, method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f'{method} does not exist here')
    cache = ImageCache.build(table, SIZE, tmp_path / 'cache', progress=False)
    expected = [
        _total(cache, [i, i + 1]) for i in range(4)
    ]  # the map is open before the processes start
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.starmap(_total, [(cache, [i, i + 1]) for i in range(4)]) == expected


def test_any_number_of_threads_gives_the_same_file(table, tmp_path):
    sums = {
        ImageCache.build(table, SIZE, tmp_path / f'cache{n}', workers=n, progress=False).manifest[
            'sha256'
        ]
        for n in (1, 2, 5)
    }
    assert len(sums) == 1


def held(cache):
    names = ('pixels.npy', 'rows.npy', 'sources.npy', 'manifest.json')
    return [(cache.path / name).read_bytes() for name in names]


@pytest.mark.parametrize('rows', [30, 128, 199])
def test_a_cache_grows_by_new_rows_without_reading_the_others(table, tmp_path, monkeypatch, rows):
    whole = ImageCache.build(table, SIZE, tmp_path / 'at once', progress=False)
    few = ImageCache.build(table[np.arange(rows)], SIZE, tmp_path / 'grown', progress=False)
    before, read = held(few), cache_module.read_picture
    opened = []
    monkeypatch.setattr(cache_module, 'read_picture', lambda p: opened.append(p) or read(p))
    ours = ImageCache.build(table, SIZE, tmp_path / 'grown', progress=False)
    assert held(ours) == held(whole) and ours.digest == whole.digest
    assert len(opened) == COUNT - rows // PIECE * PIECE  # the last piece was not full
    assert held(few) == before and torch.equal(few.gather([3]), ours.gather([3]))


def test_growth_reads_files_again_that_changed_and_knows_other_rows(table, tmp_path):
    few = ImageCache.build(table[np.arange(150)], SIZE, tmp_path / 'cache', progress=False)
    Image.fromarray(np.full((40, 36), 9, np.uint8)).save(tmp_path / 'images/70.png')
    ours = ImageCache.build(table, SIZE, tmp_path / 'cache', progress=False)
    assert (ours.gather([70]) == 9).all() and not (few.gather([70]) == 9).all()
    backwards = table[np.arange(COUNT)[::-1]]
    site = cache_module._site(backwards, SIZE, tmp_path / 'cache')
    assert cache_module._predecessor(backwards, SIZE, site) != few.path
    other = ImageCache.build(backwards, SIZE, tmp_path / 'cache', progress=False)
    assert torch.equal(other.gather([0]), ours.gather([COUNT - 1]))


@pytest.mark.parametrize(('name', 'call'), [('_write_journal', 1), ('_write_at', 3)])
def test_a_growth_that_is_killed_goes_on(table, tmp_path, monkeypatch, name, call):
    whole = ImageCache.build(table, SIZE, tmp_path / 'at once', progress=False)
    ImageCache.build(table[np.arange(130)], SIZE, tmp_path / 'grown', progress=False)
    with monkeypatch.context() as patch:
        kill_at(patch, cache_module, name, call)
        with pytest.raises(Killed): ImageCache.build(table, SIZE, tmp_path / 'grown', 1, False)
    ours = ImageCache.build(table, SIZE, tmp_path / 'grown', progress=False)
    assert held(ours) == held(whole)
