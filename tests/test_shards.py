"""Caches in shards, here and elsewhere: an S3 server and a web server of this machine.

Skipped without `smlxray[dev]`: moto is the S3 server, s3fs and aiohttp are the clients.
"""

import functools
import http.server
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from smlxray import cache as caches
from smlxray.base import ConfigError, DataError, RemoteFolder
from smlxray.cache import ImageCache, StaleCache, cache_info, open_pixels, verify_caches
from smlxray.data import XrayTable
from smlxray.processes import _free_port
from smlxray.shards import lengths

SIZE, COUNT, SHARD = (32, 32), 400, 0.07  # 64 rows per shard, so 7 of them
BUILDER = '''
import sys, time
from pathlib import Path
import pandas as pd
import smlxray.cache as cache
from smlxray.base import RemoteFolder
from smlxray.data import XrayTable
home, scratch, url, pause = sys.argv[1:]
read = cache.read_picture
def slow_read(path):
    time.sleep(float(pause))
    return read(path)
cache.read_picture = slow_read
table = XrayTable(pd.read_csv(home + '/table.csv'), ['Edema'], home + '/images', 'test')
place = RemoteFolder(url, Path(scratch), 1.0)
print('begin', flush=True)
print(cache.ImageCache.build(table, (32, 32), place, 1, False, shard=0.07).digest)
'''


@pytest.fixture
def home(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / 'images').mkdir()
    for row in range(COUNT):
        noise = rng.integers(0, 256, (40, 36), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / f'images/{row}.png')
    frame = dict(path=[f'{row}.png' for row in range(COUNT)], Edema=np.arange(COUNT) % 2.0)
    frame |= dict(patient=[f'p{row}' for row in range(COUNT)], study='s', view='frontal')
    pd.DataFrame(frame | dict(projection='PA')).to_csv(tmp_path / 'table.csv', index=False)
    return tmp_path


@pytest.fixture
def table(home):
    return XrayTable(pd.read_csv(home / 'table.csv'), ['Edema'], home / 'images', 'test')


@pytest.fixture(scope='module')
def server():
    "An S3 server with one bucket, and the environment in which clients find it."
    server = pytest.importorskip('moto.server', reason='moto is not installed (smlxray[dev])')
    s3fs = pytest.importorskip('s3fs', reason='s3fs is not installed (smlxray[remote])')
    running = server.ThreadedMotoServer(port=_free_port(), verbose=False)
    logging.getLogger('werkzeug').setLevel(logging.ERROR)
    running.start()
    host, port = running.get_host_and_port()
    address = f'http://{host}:{port}'
    with pytest.MonkeyPatch.context() as patch:
        for key in 'AWS_ACCESS_KEY_ID', 'AWS_SECRET_ACCESS_KEY': patch.setenv(key, 'test')
        patch.setenv('AWS_DEFAULT_REGION', 'us-east-1')
        patch.setenv('AWS_ENDPOINT_URL', address)
        patch.setenv('AWS_MAX_ATTEMPTS', '1')
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir('bucket')
        yield running
    running.stop()


@pytest.fixture
def place(server, tmp_path):
    return RemoteFolder(f's3://bucket/{tmp_path.name}', tmp_path / 'scratch', 1.0)


@pytest.fixture
def reads(monkeypatch):
    "The images that are decoded in a test."
    found, read = [], caches.read_picture
    monkeypatch.setattr(caches, 'read_picture', lambda path: found.append(path) or read(path))
    return found


def build(table, folder, shard=SHARD, rows=COUNT):
    return ImageCache.build(table[np.arange(rows)], SIZE, folder, 1, False, shard=shard)


def same(cache, whole):
    rows = np.random.default_rng(1).integers(0, len(whole), 100)
    assert torch.equal(cache.gather(rows), whole.gather(rows)) and cache.digest == whole.digest
    cache.verify()


def shards_here(place): return [*place.scratch.rglob('pixels-*')]


def sentence(work, kind=DataError):
    with pytest.raises(kind) as error: work()
    assert '\n' not in str(error.value)
    return str(error.value)


def test_shards_hold_what_one_file_holds_and_stand_for_it(table, tmp_path, reads):
    whole, parts = build(table, tmp_path / 'a', 0), build(table, tmp_path / 'b')
    assert len([*parts.path.glob('pixels-*.bin')]) == 7 and not (parts.path / 'pixels.npy').exists()
    same(parts, whole)
    assert np.array_equal(parts.pixels, whole.pixels)
    assert parts.manifest['sha256'] == whole.manifest['sha256']
    reads.clear()
    assert build(table, tmp_path / 'b', 0).path == parts.path   # asked for one file: fits
    assert build(table, tmp_path / 'a').path == whole.path and not reads
    assert list(cache_info(tmp_path / 'b')['shards']) == [7]


def test_a_sharded_cache_grows_without_a_copy_of_what_it_had(table, tmp_path, reads):
    whole, few = build(table, tmp_path / 'a'), build(table, tmp_path / 'b', rows=150)
    reads.clear()
    grown = build(table, tmp_path / 'b')
    assert len(reads) == COUNT - 128
    links = [file.stat().st_nlink for file in sorted(grown.path.glob('pixels-*'))]
    assert links == [2, 2, 1, 1, 1, 1, 1]
    Image.fromarray(np.full((40, 36), 9, np.uint8)).save(table.paths()[70])
    changed = build(table, tmp_path / 'b')
    assert (changed.gather([70]) == 9).all() and grown.digest == whole.digest != changed.digest
    few.verify()   # shared a file with what was changed


@pytest.mark.parametrize(('before', 'after'), [(0, SHARD), (SHARD, 0), (SHARD, 2 * SHARD)])
def test_growth_may_change_the_shards(table, tmp_path, reads, before, after):
    whole = build(table, tmp_path / 'a', 0)
    build(table, tmp_path / 'b', before, rows=130)
    reads.clear()
    same(build(table, tmp_path / 'b', after), whole)
    assert len(reads) == COUNT - 128


@pytest.mark.parametrize('harm', ['cut', 'gone', 'altered'])
def test_a_damaged_shard_here_is_a_sentence(table, tmp_path, harm):
    cache = build(table, tmp_path)
    file = cache.path / 'pixels-00002.bin'
    if harm == 'cut': os.truncate(file, 100)
    if harm == 'gone': file.unlink()
    if harm == 'altered': file.write_bytes(b'~' + file.read_bytes()[1:])
    again = ImageCache(cache.path, cache.manifest)
    assert {'cut': '100 bytes', 'gone': 'No such file', 'altered': 'row 128'}[harm] in sentence(
        lambda: again.gather([128])
    )
    if harm != 'altered':
        sentence(lambda: ImageCache.open(tmp_path, table, SIZE), StaleCache)
    shutil.rmtree(cache.path)
    build(table, tmp_path).verify()


class Killed(BaseException):
    "What stands for kill -9: nothing of ours catches it."


@pytest.mark.parametrize('call', [2, 5, 9])
def test_a_growth_in_shards_that_is_killed_goes_on(table, tmp_path, monkeypatch, reads, call):
    whole, few = build(table, tmp_path / 'a', 0), build(table, tmp_path / 'b', rows=150)
    write, calls = caches._write_at, []

    def dying(*told):
        calls.append(told)
        if len(calls) == call: raise Killed
        return write(*told)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(caches, '_write_at', dying)
        build(table, tmp_path / 'b')
    with pytest.raises(StaleCache): ImageCache.open(tmp_path / 'b', table, SIZE)
    reads.clear()
    same(build(table, tmp_path / 'b'), whole)
    assert len(reads) <= COUNT - 128
    few.verify()


@pytest.fixture
def memory(tmp_path):
    "A store that needs no server."
    return RemoteFolder(f'memory://{tmp_path.name}', tmp_path / 'scratch', 1.0)


def test_a_store_that_fails_in_the_middle_ends_in_a_sentence(table, memory, monkeypatch, reads):
    work, calls = caches.send, []

    def failing(place, file, name):
        calls.append(name)
        if len(calls) < 4: return work(place, file, name)
        raise DataError(f'{place} cannot be read or written (Broken pipe).')

    with monkeypatch.context() as patch:
        patch.setattr(caches, 'send', failing)
        assert 'Broken pipe' in sentence(lambda: build(table, memory))
    reads.clear()
    there = build(table, memory)
    assert len(reads) <= COUNT - 4 * 64, 'three shards were there, and one was decoded'
    there.verify()


def test_readers_share_a_folder_that_is_too_small(table, memory, tmp_path):
    whole, there = build(table, tmp_path / 'w', 0), build(table, memory)
    tight = memory._replace(gigabytes=2.5 * 64 * 1024 / 1e9)
    wrong = []

    def read(seed):
        cache, rng = ImageCache(there.path, there.manifest, tight), np.random.default_rng(seed)
        for rows in rng.integers(0, COUNT, (10, 16)):
            if not torch.equal(cache.gather(rows), whole.gather(rows)): wrong.append(rows)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert not wrong
    assert sum(file.stat().st_size for file in shards_here(tight)) <= 2.5 * 64 * 1024


def test_a_cache_elsewhere_holds_the_same(table, place, tmp_path, reads):
    whole, there = build(table, tmp_path / 'a', 0), build(table, place)
    assert not shards_here(place)   # they were sent, and are fetched when they are read
    same(there, whole)
    assert len(shards_here(place)) == 7
    reads.clear()
    again = build(table, place)
    opened = ImageCache.open(place._replace(scratch=tmp_path / 'other'), table, SIZE)
    same(opened, whole)
    assert not reads and again.digest == whole.digest
    seen = verify_caches(place)
    assert list(seen['found']) == ['sound'] and list(seen['MB']) == [0.4]


def test_it_is_read_without_the_images(home, table, place, tmp_path):
    there = build(table, place)
    frame = pd.read_csv(home / 'table.csv')
    away = XrayTable(frame, ['Edema'], tmp_path / 'of another machine', 'test')
    other = place._replace(scratch=tmp_path / 'other')
    same(open_pixels(away, SIZE, cache_path=other, progress=False), there)


def test_it_grows_and_changes_elsewhere(table, place, tmp_path, reads):
    build(table, place, rows=150)
    reads.clear()
    grown = build(table, place, 100)   # keeps the shards that it has
    assert len(reads) == COUNT - 128 and grown.manifest['shard'] == 64
    same(grown, build(table, tmp_path / 'a'))
    before = lengths(place, grown.path.name)
    shutil.copy(table.paths()[7], table.paths()[70])
    reads.clear()
    changed = build(table, place)
    assert len(reads) == 64 and torch.equal(changed.gather([70]), changed.gather([7]))
    after = lengths(place, grown.path.name)
    kept = {name for name in before if name in after and name.startswith('pixels')}
    assert len(kept) == 6 and len(after) == len(before)   # one other shard, no other file


def test_no_more_lies_here_than_is_allowed(table, place, tmp_path):
    there = build(table, place)
    tight = place._replace(gigabytes=2.5 * 64 * 1024 / 1e9)
    cache, whole = ImageCache(there.path, there.manifest, tight), build(table, tmp_path / 'w', 0)
    for rows in np.random.default_rng(0).integers(0, COUNT, (5, 20)):
        assert torch.equal(cache.gather(rows), whole.gather(rows))
        assert sum(file.stat().st_size for file in shards_here(tight)) <= 2.5 * 64 * 1024
    too_small = ImageCache(there.path, there.manifest, place._replace(gigabytes=1e-5))
    for file in shards_here(place): file.unlink()
    assert 'more than scratch_gb allows' in sentence(lambda: too_small.gather([0]))


def system():
    import s3fs

    return s3fs.S3FileSystem()


@pytest.mark.parametrize('harm', ['cut', 'gone', 'swapped', 'manifest'])
def test_damage_elsewhere_is_a_sentence_and_is_mended(table, place, tmp_path, harm):
    there, s3 = build(table, place), system()
    folder = f'{place.url}/{there.path.name}'
    names = sorted(name for name in lengths(place, there.path.name) if name.startswith('pixels'))
    file = f'{folder}/{names[1]}'
    if harm == 'cut': s3.pipe_file(file, s3.cat_file(file)[:-5])
    if harm == 'gone': s3.rm_file(file)
    if harm == 'swapped': s3.pipe_file(file, s3.cat_file(f'{folder}/{names[0]}'))
    if harm == 'manifest': s3.pipe_file(f'{folder}/manifest.json', b'{"rows": 4')
    if harm == 'manifest':
        assert 'is damaged' in sentence(lambda: ImageCache.open(place, table, SIZE), StaleCache)
        return same(build(table, place), there)
    opened = ImageCache.open(place, table, SIZE)
    said = sentence(lambda: opened.gather([5, 70]))
    told = {'cut': 'has 65,531 bytes and not 65,536', 'gone': 'is missing'}
    assert told.get(harm, 'Shard 1 of s3://bucket/') in said and 'delete' in said
    assert len(shards_here(place)) == 1   # the sound one
    assert verify_caches(place)['found'][0] != 'sound'
    s3.rm(folder, recursive=True)   # as the sentence says
    same(build(table, place), build(table, tmp_path / 'w'))


def start(home, scratch, url, pause):
    words = [sys.executable, '-c', BUILDER, *map(str, (home, scratch, url, pause))]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_killed_builder_leaves_no_cache_and_the_next_goes_on(home, table, place, reads):
    builder = start(home, place.scratch, place.url, 0.01)
    key, until = caches.cache_key(table, SIZE, True), time.monotonic() + 180
    while len([name for name in lengths(place, key) if name.startswith('pixels')]) < 3:
        assert builder.poll() is None, builder.communicate()
        assert time.monotonic() < until, 'the builder took too long'
        time.sleep(0.02)
    builder.send_signal(signal.SIGKILL)
    builder.communicate()
    sentence(lambda: ImageCache.open(place, table, SIZE), StaleCache)
    assert not len(cache_info(place))
    there = build(table, place)
    assert len(reads) <= COUNT - 3 * 64, 'three shards were there'
    same(there, build(table, home / 'w'))


def test_two_builders_on_two_machines_make_one_cache(home, table, place, tmp_path):
    builders = [start(home, tmp_path / f'machine{k}', place.url, 0.002) for k in range(2)]
    said = [builder.communicate(timeout=300) for builder in builders]
    assert [builder.returncode for builder in builders] == [0, 0], said
    whole = build(table, tmp_path / 'w')
    assert [out.split()[-1] for out, _ in said] == 2 * [whole.digest]
    same(ImageCache.open(place, table, SIZE), whole)
    key = caches.cache_key(table, SIZE, True)
    assert len([name for name in lengths(place, key) if name.startswith('pixels')]) == 7


def test_wrong_credentials_and_names_are_sentences(table, place, monkeypatch):
    from moto.core import set_initial_no_auth_action_count

    build(table, place)
    s3fs = pytest.importorskip('s3fs')
    missing = place._replace(url='s3://no-such-bucket/x')
    assert 's3://no-such-bucket/x does not exist' in sentence(lambda: build(table, missing))
    monkeypatch.setenv('AWS_SECRET_ACCESS_KEY', 'wrong')
    s3fs.S3FileSystem.clear_instance_cache()

    @set_initial_no_auth_action_count(0)
    def refused(): return sentence(lambda: ImageCache.open(place, table, SIZE))

    assert 'refuses us; check the credentials' in refused()
    monkeypatch.setitem(sys.modules, 's3fs', None)
    s3fs.S3FileSystem.clear_instance_cache()
    other = place._replace(url='s3a://bucket/x')
    assert "pip install 'smlxray[remote]'" in sentence(lambda: build(table, other), ConfigError)


@pytest.fixture
def web(tmp_path):
    "A web server of a folder."
    pytest.importorskip('aiohttp', reason='aiohttp is not installed (smlxray[remote])')
    (tmp_path / 'web').mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_): pass

    handler = functools.partial(Quiet, directory=tmp_path / 'web')
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield running
        running.shutdown()


def test_a_web_server_gives_a_cache_and_takes_none(table, web, tmp_path):
    files = RemoteFolder(f'local://{tmp_path}/web', tmp_path / 'scratch', 1.0)
    there = build(table, files)
    site = files._replace(url=f'http://127.0.0.1:{web.server_port}')
    whole = build(table, tmp_path / 'w')
    opened = ImageCache.open(site, table, SIZE)
    assert torch.equal(opened.gather([5, 6]), whole.gather([5, 6]))
    assert list(cache_info(site)['cache']) == [there.path.name]
    assert 'cannot be written to' in sentence(lambda: build(table, site, rows=30))
    web.shutdown()   # it goes away: what is here is read, the rest is a sentence
    web.server_close()
    assert torch.equal(opened.gather([7]), whole.gather([7]))
    assert f'127.0.0.1:{web.server_port} cannot be read' in sentence(lambda: opened.gather([399]))
    same(ImageCache.open(files._replace(scratch=tmp_path / 'other'), table, SIZE), whole)


def test_the_commands_and_a_lab_read_it(table, tmp_path, place):
    from typer.testing import CliRunner

    from smlxray.cli import app
    from smlxray.config import load_settings
    from smlxray.lab import open_lab
    from smlxray.phantom import write_phantoms

    data, scratch = tmp_path / 'x', ['--scratch', str(tmp_path / 's')]
    write_phantoms(data, patients=80, size=64, seed=0, workers=1, progress=False)
    where = ['--cache-path', place.url, *scratch]
    words = ['cache', 'build', str(data), '--size', '32', '--shard', '0.07', *where]
    said = CliRunner().invoke(app, words)
    assert said.exit_code == 0 and f'{place.url}/' in said.stdout, said
    assert ' sound' in CliRunner().invoke(app, ['cache', 'verify', *where]).stdout
    assert '"shards"' in CliRunner().invoke(app, ['cache', 'info', '--json', *where]).stdout
    paths = dict(dataset_path=data, runs_path=tmp_path / 'r', scratch_path=tmp_path / 's')
    usual = dict(image_size=32, patients=80, novel_findings='Cardiomegaly', shots=1, queries=1)
    lab = open_lab(load_settings('tiny', cache_path=place.url, **paths, **usual))
    usual |= dict(cache_path=tmp_path / 'c', cache_shard=0.07)
    here = open_lab(load_settings('tiny', **paths, **usual))
    assert lab.pixels.place.url == place.url and lab.pixels.digest == here.pixels.digest
    rows = lab.train[:20]
    assert torch.equal(lab.pixels.gather(rows), here.pixels.gather(rows))
    assert here.pixels.manifest['shard'] and lab.digest == here.digest
