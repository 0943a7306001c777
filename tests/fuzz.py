"""Mutated inputs for every reader: `make fuzz`, or `python tests/fuzz.py --minutes 20`.

Each reader is tried in a process of its own, on files that are sound and on what random changes
make of them. An input may be read, or refused in a sentence (a `SmlxrayError`, or an `OSError` of
the system). Everything else is counted: a raw error, five seconds of computing, a process of more
than a gigabyte, a file that is written outside of the folder of the input.
"""

import argparse, hashlib, io, json, os, random, shutil, signal, subprocess, sys, tempfile
import time, traceback, zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from smlxray.base import SmlxrayError
from smlxray.config import CHEXPERT_FINDINGS

SECONDS = 5  # of computing
ODD = (
    None, True, -1, 0, 2, 10**30, 1e308, '', 'NaN', '../x', '\x1b[2J', '=1+1', [], {}, [[]], ['x'],
    'x' * 5000, float('nan'), [None], {'a': {}},
)  # fmt: skip
BITS = (
    b'\0', b'\xff' * 4, b'\n', b',', b'"', b'{', b'}', b'[', b'NaN', b'1e999', b'\xef\xbb\xbf',
    b'-1', b'../', b'\x1b[2J', b'\xff\xda', b'IDAT', b'\x7f\xff\xff\xff', b': &a [*a]', b'\r',
)  # fmt: skip


def mutate(data: bytes, rng: random.Random) -> bytes:
    "Change a file as accidents, and people of ill will, do."
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at, kind = rng.randrange(len(out) + 1), rng.randrange(7)
        if kind == 0 and out: out[at % len(out)] ^= 1 << rng.randrange(8)
        if kind == 1: out[at:at] = rng.choice(BITS)
        if kind == 2: del out[at : at + rng.choice((1, 4, 64, 4096))]
        if kind == 3: out[at : at + 4] = rng.choice(BITS)
        if kind == 4: out[at:at] = out[at : at + rng.choice((8, 200))] * rng.choice((1, 3))
        if kind == 5 and rng.random() < 0.5: del out[at:]
        if kind == 6: out[at : at + 8] = rng.randbytes(8)
    return bytes(out)


def mutate_json(value, rng: random.Random):
    "Change one place in what JSON holds."
    if not isinstance(value, (dict, list)) or not value or rng.random() < 0.15:
        return rng.choice(ODD)
    keys = list(value) if isinstance(value, dict) else range(len(value))
    key, copy = rng.choice(list(keys)), value.copy()
    if rng.random() < 0.1:
        del copy[key]
    else:
        copy[key] = mutate_json(value[key], rng)
    return copy


def changed(data: bytes, rng: random.Random, text: bool) -> bytes:
    "Mutate bytes or, of JSON, every second time what they say."
    if not text or rng.random() < 0.5: return mutate(data, rng)
    try:
        return json.dumps(mutate_json(json.loads(data), rng)).encode()
    except ValueError:
        return mutate(data, rng)


def encoded(image, kind, **options) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, kind, **options)
    return out.getvalue()


def make_seeds(home: Path) -> None:
    "Make a small run, its bundle, a taught finding, a cache, and files of every kind."
    import torch
    from smlxray.app.session import phantom_run
    from smlxray.app.teach import export_finding
    from smlxray.evaluate import evaluate, save_results
    from smlxray.methods import FrozenMethod

    os.environ.setdefault('OMP_NUM_THREADS', '1')
    few = dict(shots=1, queries=2, episodes=4, bootstrap=20, novel_findings='Cardiomegaly')
    few |= dict(backbone='conv4', image_size=32, patients=200, progress=False)
    lab, bundle = phantom_run(home, **few)
    bundle.save(home / 'bundle')
    x = lab.pixels.gather(lab.test[:8])
    (home / 'taught.zip').write_bytes(export_finding(bundle.teach('New', x[:4], x[4:], steps=1)))
    vectors = torch.nn.functional.normalize(torch.randn(len(lab.test), 8), dim=1)
    results = evaluate(lab, [FrozenMethod('noise', lab.test, vectors)])
    save_results(results)


def make_images(home: Path) -> None:
    "Make an X-ray of every kind of file."
    from pydicom.uid import JPEG2000Lossless, RLELossless
    from smlxray.phantom import draw_phantom

    sys.path.insert(0, str(Path(__file__).parent))
    from test_images import dicom

    xray = draw_phantom(patient=3, size=64).image
    images = home / 'images'
    images.mkdir()
    (images / 'a.jpg').write_bytes(encoded(xray, 'JPEG'))
    (images / 'b.jpg').write_bytes(encoded(xray, 'JPEG', progressive=True))
    (images / 'c.png').write_bytes(encoded(xray, 'PNG'))
    (images / 'd.png').write_bytes(encoded(257 * xray.astype(np.uint16), 'PNG'))
    film = xray.astype(np.uint16) * 16
    (images / 'e.dcm').write_bytes(dicom(film, 12))
    for name, syntax in dict(f=JPEG2000Lossless, g=RLELossless).items():
        (images / f'{name}.dcm').write_bytes(dicom(film, 12, syntax))


class Seeds:
    "What the readers start from."

    def __init__(self, home: Path):
        self.home = home
        self.run = home / 'runs' / 'phantoms'
        self.phantoms = home / 'dataset'
        self.images = sorted((home / 'images').iterdir())


def write(place: Path, name: str, data: bytes) -> Path:
    (place / name).parent.mkdir(parents=True, exist_ok=True)
    (place / name).write_bytes(data)
    return place / name


def fuzz_images(seeds, place, rng):
    from smlxray.images import read_picture

    source = rng.choice(seeds.images)
    return read_picture(write(place, source.name, mutate(source.read_bytes(), rng)))


def fuzz_settings(seeds, place, rng):
    from smlxray.config import load_settings

    from smlxray.base import shipped_file

    data = shipped_file('demo.yaml').read_bytes()
    return load_settings('tiny', config=write(place, 'c.yaml', mutate(data, rng)))


def fuzz_mapping(seeds, place, rng):
    from smlxray.base import shipped_file
    from smlxray.readers import read_table

    name = rng.choice(('mimic', 'padchest', 'vindr', 'chexpert_plus'))
    data = shipped_file(f'tables/{name}.yaml').read_bytes()
    write(place, 'train.csv', TABLES['labels.csv'])
    return read_table(place, write(place, 'm.yaml', mutate(data, rng)))


TABLES = {
    'labels.csv': b'path,patient,age,sex,view,Edema,Fracture\na.png,p1,60,F,frontal,1,0\n'
    b'b.png,p2,41,M,lateral,0,1\n',
    'Data_Entry_2017_v2020.csv': b'Image Index,Finding Labels,Patient ID,Patient Age,'
    b'Patient Gender,View Position\n00000001_000.png,Edema|Mass,1,58,M,PA\n',
    'train.csv': b'Path,Sex,Age,Frontal/Lateral,AP/PA,' + ','.join(CHEXPERT_FINDINGS).encode()
    + b'\nx/train/patient00001/study1/view1_frontal.jpg,F,60,Frontal,AP' + b',1.0,0.0' * 7 + b'\n',
}  # fmt: skip


def fuzz_tables(seeds, place, rng):
    from smlxray.readers import read_xrays

    name = rng.choice(list(TABLES))
    data = mutate(TABLES[name], rng)
    for image in ('a.png', 'b.png', '00000001_000.png'): write(place, image, b'')
    write(place, name, data)
    return read_xrays(place, 'auto', 'all')


def fuzz_pairs(seeds, place, rng):
    from smlxray.cli import _read_pairs

    return _read_pairs(write(place, 'p.csv', mutate(b'a,b\nx.png,y.png\n"z,1.png",x.png\n', rng)))


def fuzz_unfinished(seeds, place, rng):
    from smlxray.cli import UnfinishedTable

    data = b'file,error,Edema,unusual,remarks,model\na.png,,0.5,1.2,,m\nb.png,bad,,,,m\n'
    table = UnfinishedTable(write(place, 'p.csv', mutate(data, rng)), 'plan')
    write(place, table.note.name, b'plan' if rng.random() < 0.9 else mutate(b'plan', rng))
    table.start()
    return table.finish() if table.output.exists() else None


def copy_of_run(seeds, place, rng, name, text):
    run = place / 'run'
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir(parents=True)
    for file in ('results.json', 'answers.npz', 'metrics.jsonl', 'config.yaml'):
        if (seeds.run / file).exists(): shutil.copy(seeds.run / file, run / file)
    write(run, name, changed((seeds.run / name).read_bytes(), rng, text))
    return run


def fuzz_results(seeds, place, rng):
    from smlxray.evaluate import results_text

    return results_text(copy_of_run(seeds, place, rng, 'results.json', True))


def fuzz_answers(seeds, place, rng):
    from smlxray.evaluate import read_answers

    return read_answers(copy_of_run(seeds, place, rng, 'answers.npz', False))


def fuzz_metrics(seeds, place, rng):
    from smlxray.train import read_metrics

    return read_metrics(copy_of_run(seeds, place, rng, 'metrics.jsonl', False), 'siamese')


def fuzz_checkpoint(seeds, place, rng):
    from smlxray.train import load_checkpoint

    file = next(path for path in seeds.run.rglob('*.safetensors') if '.state.' not in path.name)
    return load_checkpoint(write(place, file.name, mutate(file.read_bytes(), rng)))


def fuzz_pth(seeds, place, rng):
    import torch
    from smlxray.bundle import read_pth

    out = io.BytesIO()
    torch.save(dict(state_dict={'a.weight': torch.ones(3, 4)}), out)
    return read_pth(write(place, 'x.pth', mutate(out.getvalue(), rng)))


def fuzz_bundle(seeds, place, rng):
    "A bundle whose files were changed; every second one gets sums that fit again."
    from smlxray.bundle import Bundle, _json, _manifest

    files = {}
    for path in (seeds.home / 'bundle').rglob('*'):
        if path.is_file(): files[str(path.relative_to(seeds.home / 'bundle'))] = path.read_bytes()
    told = json.loads(files.pop('manifest.json'))
    name = rng.choice(sorted(files))
    files[name] = changed(files[name], rng, name.endswith('.json'))
    manifest = _json(_manifest(told['kind'], told['version'], files))
    if rng.random() < 0.2: manifest = changed(manifest, rng, True)
    shutil.rmtree(place / 'bundle', ignore_errors=True)
    for name, data in files.items(): write(place / 'bundle', name, data)
    write(place / 'bundle', 'manifest.json', manifest)
    bundle = Bundle.load(place / 'bundle')
    return bundle.predict(np.zeros((1, 1, *bundle.size), np.uint8))


def fuzz_taught(seeds, place, rng):
    from smlxray.app.teach import import_finding

    data = (seeds.home / 'taught.zip').read_bytes()
    if rng.random() < 0.5: return import_finding(mutate(data, rng))
    from smlxray.bundle import _json, _manifest

    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    told = json.loads(files.pop('manifest.json'))
    name = rng.choice(sorted(files))
    files[name] = changed(files[name], rng, name.endswith('.json'))
    files['manifest.json'] = _json(_manifest(told['kind'], told['version'], files))
    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w') as archive:
        for name, data in files.items(): archive.writestr(name, data)
    return import_finding(out.getvalue())


def fuzz_cache(seeds, place, rng):
    "A cache with one changed file: what is read from it is what was written, or it is built again."
    from smlxray.cache import ImageCache
    from smlxray.readers import read_xrays

    table = read_xrays(seeds.images[0].parent.parent / 'few', 'auto', 'all')
    whole = seeds.home / 'whole'
    if not whole.exists(): ImageCache.build(table, (16, 16), whole, 1, progress=False)
    right = seeds.home / 'right.npy'
    cache = ImageCache.build(table, (16, 16), whole, 1, progress=False)
    if not right.exists(): np.save(right, cache.pixels)
    shutil.rmtree(place / 'cache', ignore_errors=True)
    shutil.copytree(whole, place / 'cache')
    folder = place / 'cache' / cache.path.name
    name = rng.choice(('pixels.npy', 'sources.npy', 'manifest.json'))
    write(folder, name, changed((folder / name).read_bytes(), rng, name.endswith('.json')))
    if rng.random() < 0.5:
        draft = folder.with_name(f'{folder.name}.building')
        folder.rename(draft)
        lines = [json.dumps(piece) for piece in cache.manifest['pieces']]
        write(draft, 'journal.jsonl', changed('\n'.join(lines).encode() + b'\n', rng, True))
    again = ImageCache.build(table, (16, 16), place / 'cache', 1, progress=False)
    if not np.array_equal(again.pixels, np.load(right)): raise AssertionError('wrong pixels')


READERS = {name[5:]: call for name, call in list(globals().items()) if name.startswith('fuzz_')}


def watch_writes(place: Path, seen: list) -> None:
    "Note every file that this process opens for writing outside of a folder."
    allowed = (str(place), '/dev/null', '/proc/')

    def hook(event, words):
        if event != 'open' or not isinstance(words[0], (str, bytes, os.PathLike)): return
        path, mode = os.path.abspath(os.fsdecode(words[0])), words[1]
        writes = set(mode or '') & set('wax+') if isinstance(mode, str) else words[2] & 3
        if writes and not path.startswith(allowed) and '__pycache__' not in path: seen.append(path)

    sys.addaudithook(hook)


def out_of_time(*_):
    raise TimeoutError(f'more than {SECONDS} seconds')


def one_reader(name: str, home: Path, count: int, seed: int, seconds: float) -> dict:
    "Try one reader on so many inputs; return what happened."
    import logging

    logging.disable(logging.CRITICAL)
    seeds, read = Seeds(home), READERS[name]
    told = dict(reader=name, inputs=0, read=0, refused=0, raw=0, hangs=0, outside=0)
    first, outside = {}, []
    with tempfile.TemporaryDirectory(dir=home) as folder:
        place = Path(folder)
        os.chdir(place)
        tempfile.tempdir = folder
        read_once = random.Random(0)
        try:
            read(seeds, place, read_once)  # imports and caches, before the clock runs
        except Exception:
            pass
        start = time.time()
        watch_writes(home, outside)
        signal.signal(signal.SIGPROF, out_of_time)
        for k in range(count):
            if time.time() - start > seconds: break
            rng = random.Random(hashlib.sha256(f'{name}{seed}{k}'.encode()).digest())
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            told['inputs'] += 1
            try:
                read(seeds, place, rng)
                told['read'] += 1
            except TimeoutError:
                told['hangs'] += 1
                first.setdefault('hang', k)
            except (SmlxrayError, OSError) as error:
                long = '\n  File' in str(error)
                told['raw' if long else 'refused'] += 1
            except BaseException as error:
                told['raw'] += 1
                where = traceback.extract_tb(error.__traceback__)[-1]
                at = f'{Path(where.filename).name}:{where.lineno}'
                said = f'{type(error).__name__}: {str(error)[:90]!r} {at}'
                first.setdefault(said.split(':')[0] + at, f'input {k}: {said}')
            signal.setitimer(signal.ITIMER_PROF, 0)
        os.chdir(home)
    peak = next(line for line in open('/proc/self/status') if line.startswith('VmHWM'))
    told |= dict(outside=len(outside), MB=int(peak.split()[1]) // 1000)
    return dict(told, examples=[*first.values(), *outside[:3]])


def prepare(home: Path, with_run: bool = True) -> None:
    "Make the sound files that all begin with; those of a run take half a minute."
    make_images(home)
    few = home / 'few'
    few.mkdir()
    rows = ['path,patient,Edema']
    for k, path in enumerate(sorted((home / 'images').glob('[abc].*'))):
        shutil.copy(path, few / path.name)
        rows.append(f'{path.name},p{k},{k % 2}')
    (few / 'labels.csv').write_text('\n'.join(rows) + '\n')
    if with_run: make_seeds(home)


def run(home: Path, inputs: int, minutes: float, seed: int, names=tuple(READERS)) -> list[dict]:
    "Try all readers, each in a process of its own, as many at once as there are cores."
    share, seconds = inputs // len(names), 60 * minutes / len(names) * (os.cpu_count() or 1)
    waiting, running, done = list(names), [], []
    while waiting or running:
        while waiting and len(running) < (os.cpu_count() or 1):
            name = waiting.pop(0)
            words = ['--reader', name, '--home', str(home), '--inputs', str(share)]
            words += ['--seed', str(seed), '--seconds', str(seconds)]
            command = [sys.executable, __file__, *words]
            pipe = subprocess.PIPE
            process = subprocess.Popen(command, stdout=pipe, stderr=subprocess.STDOUT, text=True)
            running.append((name, process))
        name, process = running.pop(0)
        out, _ = process.communicate()
        lines = [line for line in out.splitlines() if line.startswith('{"reader"')]
        lost = dict(reader=name, inputs=0, read=0, refused=0, raw=1, hangs=0, outside=0, MB=0)
        done.append(json.loads(lines[-1]) if lines else dict(lost, examples=[out[-800:]]))
        show(done[-1])
    return done


COLUMNS = ('reader', 'inputs', 'read', 'refused', 'raw', 'hangs', 'outside', 'MB')


def show(row: dict) -> None:
    print(''.join(f'{row[key]!s:>11}' for key in COLUMNS), flush=True)
    for example in row['examples'][:8]: print(f'    {example}', flush=True)


def faults(rows: list[dict]) -> int:
    "Count what must not happen."
    return sum(row['raw'] + row['hangs'] + row['outside'] + (row['MB'] > 1000) for row in rows)


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument('--inputs', type=int, default=20_000)
    words.add_argument('--minutes', type=float, default=18)
    words.add_argument('--seed', type=int, default=0)
    words.add_argument('--reader', choices=READERS)
    words.add_argument('--home', type=Path)
    words.add_argument('--seconds', type=float, default=1e9)
    given = words.parse_args()
    if given.reader and given.home:
        told = one_reader(given.reader, given.home, given.inputs, given.seed, given.seconds)
        return print(json.dumps(told))
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        prepare(home)
        print(''.join(f'{key:>11}' for key in COLUMNS))
        names = [given.reader] if given.reader else list(READERS)
        rows = run(home, given.inputs, given.minutes, given.seed, names)
    print(f'{sum(row["inputs"] for row in rows):,} inputs, {faults(rows)} faults')
    sys.exit(faults(rows) > 0)


if __name__ == '__main__': main()
