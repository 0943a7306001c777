"""Mutated inputs for every reader: `make fuzz`, or `python tests/fuzz.py --seed 1`.

Each reader is tried in a process of its own, on files that are sound and on what random changes
make of them. Every second change of an own file gets checksums that fit again, so that what lies
behind them is tried as well. A sound input must be read; a changed one may be read, or refused in a
sentence (a `SmlxrayError`, or an `OSError` of the system). Everything else is counted: a raw error,
five seconds of computing, a process of more than a gigabyte, a file that is written outside of the
folder of the input.
"""

import argparse, gzip, hashlib, io, json, os, random, resource, shutil, signal, subprocess, sys
import tempfile, time, traceback, zipfile
from contextlib import redirect_stdout
from functools import cached_property, partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from PIL import Image
from plans import TWO_METHODS

from smlxray.base import SmlxrayError, sealed
from smlxray.config import CHEXPERT_FINDINGS

ONNX = bool(find_spec('onnx') and find_spec('onnxruntime'))
SECONDS = 5     # of computing
WALL = 60       # of waiting
MOST = 1000     # MB of one process
SOUND = 5       # inputs of each reader that are not changed
ODD = (
    None, True, -1, 0, 2, 10**30, 1e308, '', 'NaN', '../x', '\x1b[2J', '=1+1', [], {}, [[]], ['x'],
    'x' * 5000, float('nan'), [None], {'a': {}},
)  # fmt: skip
BITS = (
    b'\0', b'\xff' * 4, b'\n', b',', b'"', b'{', b'}', b'[', b'NaN', b'1e999', b'\xef\xbb\xbf',
    b'-1', b'../', b'\x1b[2J', b'\xff\xda', b'IDAT', b'\x7f\xff\xff\xff', b': &a [*a]', b'\r',
    b'[' * 3000, b'{"a":' * 3000,
)  # fmt: skip


class Sound(random.Random):
    "Chance that chooses, but changes nothing."


def mutate(data: bytes, rng: random.Random) -> bytes:
    "Change a file as accidents, and people of ill will, do."
    if isinstance(rng, Sound): return data
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


def changed(data: bytes, rng: random.Random, text: bool = True) -> bytes:
    "Mutate bytes or, of JSON, every second time what they say, with a digest that fits."
    if not text or isinstance(rng, Sound) or rng.random() < 0.5: return mutate(data, rng)
    try:
        value = json.loads(data)
    except ValueError:
        return mutate(data, rng)
    told = mutate_json(value, rng)
    if isinstance(told, dict) and 'digest' in told: told = sealed(told)
    return json.dumps(told).encode()


def changed_array(array: np.ndarray, rng: random.Random) -> np.ndarray:
    "Change values, type or shape of an array."
    flat = array.reshape(-1)
    return rng.choice((
        flat[:0], array[:-1] if array.ndim else flat, flat, array[None], np.repeat(flat, 3),
        np.zeros_like(array), np.full(array.shape, -7, 'i4'), np.full(array.shape, np.nan, 'f4'),
        array.astype('f8') if array.dtype.kind in 'biuf' else flat, np.full(array.shape, 2**31 - 1),
    ))  # fmt: skip


def changed_tensors(path: Path, out: Path, rng: random.Random) -> Path:
    "Change a file of tensors: its bytes, or what it holds, under a digest that fits."
    import torch
    from smlxray.train import read_tensors, write_tensors

    if isinstance(rng, Sound) or rng.random() < 0.5:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_bytes(mutate(path.read_bytes(), rng))
        return out
    told, tensors = read_tensors(path)
    told.pop('format', None)
    if rng.random() < 0.5 and told:
        told = mutate_json(told, rng)
    elif rng.random() < 0.2:
        del tensors[rng.choice(sorted(tensors))]
    else:
        name = rng.choice(sorted(tensors))
        array = changed_array(tensors[name].numpy(), rng)
        tensors[name] = torch.tensor(array)
    write_tensors(out, tensors, told if isinstance(told, dict) else {})
    return out


def encoded(image, kind, **options) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, kind, **options)
    return out.getvalue()


def make_seeds(home: Path) -> None:
    "Make a small run with a report, its bundle, a taught finding, a study and a state."
    import torch
    from smlxray.app.session import phantom_run
    from smlxray.app.teach import export_finding
    from smlxray.evaluate import evaluate
    from smlxray.methods import FrozenMethod
    from smlxray.report import write_report

    few = dict(shots=1, queries=2, episodes=4, bootstrap=20, novel_findings='Cardiomegaly')
    few |= dict(backbone='conv4', image_size=32, patients=200, progress=False)
    lab, bundle = phantom_run(home, **few)
    bundle.save(home / 'bundle')
    x = lab.pixels.gather(lab.test[:8])
    (home / 'taught.zip').write_bytes(export_finding(bundle.teach('New', x[:4], x[4:], steps=1)))
    vectors = torch.nn.functional.normalize(torch.randn(2, len(lab.test), 8), dim=2)
    names = dict(zip(('noise', 'more noise'), vectors))
    results = evaluate(lab, [FrozenMethod(name, lab.test, z) for name, z in names.items()])
    results.default = 'noise'
    write_report(results)
    make_study(home)
    save_loop(home)


PLAN = f"""
run: study
preset: tiny
settings: {{shots: 1, queries: 2, backbone: conv4, image_size: 32, patients: 200}}
folds: {{1: [Cardiomegaly], 2: [Edema]}}
splits: [5]
developed: 1
episodes: 6
slow_episodes: 2
backbones:
  untrained: {{pretrained: false}}
  supervised: {{objective: naming, epochs: 1, augment: {{}}, views: [mirror]}}
{TWO_METHODS}"""


def plan_of(home: Path):
    from smlxray.plan import load_plan

    (home / 'plan.yaml').write_text(PLAN)
    plan = load_plan(home / 'plan.yaml', folder=str(home / 'dataset'))
    there = {f'{name}_path': str(home / name) for name in ('cache', 'runs')}
    return plan.model_copy(update=dict(settings=plan.settings | there))


def make_study(home: Path) -> None:
    from smlxray.study import run_study

    with redirect_stdout(io.StringIO()):
        run_study(plan_of(home), workers=1, out=home / 'study.json')


def save_loop(home: Path):
    "Take one step of a training and keep its state; return the loop, and the recipe."
    from smlxray.app.nursery import lab_of_run
    from smlxray.train import (
        Course, Loop, NamingSiamese, SiameseObjective, make_accelerator, new_network, one_round,
        recipe, save_state,
    )  # fmt: skip

    lab = lab_of_run(home / 'runs' / 'phantoms')
    model = NamingSiamese(new_network(lab.settings), len(lab.findings.base))
    objective = SiameseObjective(lab, epochs=2)
    course = Course(1e-3, 1e-3, 'one_cycle')
    loop = Loop(make_accelerator(lab.settings), model, objective, course)
    made_by = recipe(lab, 'siamese')
    if not (home / 'a.state.safetensors').exists():
        one_round(loop, 0)
        save_state(home / 'a.state.safetensors', loop, 1, made_by)
    return loop, made_by


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


def make_few(home: Path) -> None:
    "Make a table of three X-rays, its cache, an old cache of it, and an archive of MedMNIST's."
    from smlxray.cache import ImageCache
    from smlxray.readers import read_xrays

    few = home / 'few'
    few.mkdir()
    (home / 'old').mkdir()
    rows = ['path,patient,Edema']
    for k, path in enumerate(sorted((home / 'images').glob('[abc].*'))):
        shutil.copy(path, few / path.name)
        rows.append(f'{path.name},p{k},{k % 2}')
        np.save(home / 'old' / f'{path.stem}.npy', np.full((3, 16, 16), k / 255 * 9, 'f4'))
    (few / 'labels.csv').write_text('\n'.join(rows) + '\n')
    table = read_xrays(few, 'auto', 'all')
    ImageCache.build(table, (16, 16), home / 'cut', 1, False, shard=0.01)
    cache = ImageCache.build(table, (16, 16), home / 'whole', 1, False)
    np.save(home / 'right.npy', cache.pixels)
    lines = [json.dumps(piece) + '\n' for piece in cache.manifest['pieces']]
    (home / 'journal.jsonl').write_text(''.join(lines))
    arrays = {}
    for part in ('train', 'val', 'test'):
        arrays[f'{part}_images'] = np.arange(2 * 28 * 28).reshape(2, 28, 28).astype('u1')
        arrays[f'{part}_labels'] = np.eye(14, dtype='u1')[:2]
    np.savez_compressed(home / 'chestmnist.npz', **arrays)


NAMES = [f'{k}.png' for k in range(8)]


def make_foreign(home: Path) -> None:
    "Make vectors, encoders and episodes of others: each kind of file that is read."
    import torch
    from smlxray.encoders import EncoderCard, Vectors, write_vectors
    from smlxray.siamese import make_backbone

    folder = home / 'foreign'
    folder.mkdir()
    values = np.arange(32, dtype='f4').reshape(8, 4)
    np.save(folder / 'v.npy', values)
    (folder / 'v.txt').write_text('\n'.join(NAMES))
    card = 'encoder: x.onnx\nimage_size: 32\nfindings_seen: [Edema, Mass]\n'
    (folder / 'v.yaml').write_text(card)
    made = Vectors('x', NAMES, torch.tensor(values), EncoderCard(), dict(table='f00'))
    write_vectors(folder / 'sealed.safetensors', made)
    if find_spec('pyarrow'):
        pd.DataFrame(dict(path=NAMES, vector=list(values))).to_parquet(folder / 'v.parquet')
    net = make_backbone('conv4', width=4)[0].eval()
    torch.export.save(torch.export.export(net, (torch.zeros(2, 1, 16, 16),)), folder / 'net.pt2')
    if ONNX: (folder / 'net.onnx').write_bytes(small_onnx())
    write_episodes_file(folder / 'e.jsonl')


def small_onnx() -> bytes:
    "A network that averages rows of 16 x 16 pixels."
    from onnx import TensorProto, helper

    shape = [None, 1, 16, 16], [None, 16]
    given, made = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, sides)
        for name, sides in zip(('image', 'vector'), shape)
    )
    mean = helper.make_node('ReduceMean', ['image'], ['vector'], axes=[1, 2], keepdims=0)
    graph = helper.make_graph([mean], 'small', [given], [made])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 13)])
    model.ir_version = 8
    return model.SerializeToString()


def write_episodes_file(path: Path) -> None:
    "Eight images and two episodes, as `episodes export` writes them."
    from smlxray.exchange import FORMAT, KIND, _body_digest, _line

    lines = [dict(image=k, sha256=f'{k:016x}', bytes=9, patient=k) for k in range(8)]
    sides = dict(support=[0, 1], support_labels=[1, 0], query=[2, 3], query_labels=[1, 0])
    lines += [dict(episode=k, finding='Edema', seed=k, **sides) for k in range(2)]
    body = ''.join(map(_line, lines))
    protocol = dict(name='finding', version=1, shots=1, negatives='normals', match_on=[])
    data = dict(name='few', table='f00', digest='f00', views='all')
    head = dict(kind=KIND, format=FORMAT, protocol=protocol, data=data, seed=0, images=8)
    path.write_text(_line(sealed(head | dict(body=_body_digest(body.encode())))) + body)


class Seeds:
    "What the readers start from."

    def __init__(self, home: Path):
        self.home = home
        self.run = home / 'runs' / 'phantoms'
        self.images = sorted((home / 'images').iterdir())

    @cached_property
    def few(self):
        from smlxray.readers import read_xrays

        return read_xrays(self.home / 'few', 'auto', 'all')

    @cached_property
    def bundle(self):
        from smlxray.bundle import Bundle

        return Bundle.load(self.home / 'bundle')

    @cached_property
    def loop(self):
        return save_loop(self.home)

    @cached_property
    def cell(self):
        from smlxray.study import Cell, Path, won_cells

        cell = Cell(plan_of(self.home), '1', 5)
        cell.whole = Path(cell.folder)
        won_cells([cell], ['pixels', 'prototypes'])  # draws the episodes, and keeps them
        return cell


def write(place: Path, name: str, data: bytes) -> Path:
    (place / name).parent.mkdir(parents=True, exist_ok=True)
    (place / name).write_bytes(data)
    return place / name


def fuzz_images(seeds, place, rng):
    from smlxray.images import read_picture

    source = rng.choice(seeds.images)
    return read_picture(write(place, source.name, mutate(source.read_bytes(), rng)))


def fuzz_settings(seeds, place, rng):
    from smlxray.base import shipped_file
    from smlxray.config import load_settings, stated_preset

    own = seeds.run / 'config.yaml'
    sources = [shipped_file('demo.yaml')] + [own] * own.exists()
    file = write(place, 'c.yaml', mutate(rng.choice(sources).read_bytes(), rng))
    return stated_preset(file), load_settings('tiny', config=file)


def fuzz_plan(seeds, place, rng):
    from smlxray.base import shipped_file
    from smlxray.plan import load_plan

    data = shipped_file('study.yaml').read_bytes() if rng.random() < 0.2 else PLAN.encode()
    if rng.random() < 0.5 and not isinstance(rng, Sound):
        data = yaml.safe_dump(mutate_json(yaml.safe_load(data), rng)).encode()
    else:
        data = mutate(data, rng)
    return load_plan(write(place, 'plan.yaml', data))


MAPPING = b"""
table: rows.csv
join: [{table: more.csv, on: [image]}]
path: '{image}.png'
patient: '{who}'
age: Age
sex: '{Sex}'
findings: [Edema, Fracture]
names: {Fracture: Rib fracture}
"""


def fuzz_mapping(seeds, place, rng):
    "A mapping of one's own, and those that are shipped; the sound one fits its table."
    from smlxray.base import shipped_file
    from smlxray.readers import _load_mapping, read_table

    name = rng.choice(('mimic', 'padchest', 'vindr', 'chexpert_plus', 'own'))
    data = MAPPING if name == 'own' else shipped_file(f'tables/{name}.yaml').read_bytes()
    write(place, 'rows.csv', b'image,who,Edema,Fracture\na,p1,1,0\nb,p2,,1\n')
    write(place, 'more.csv', b'image,Age,Sex\na,60,F\nb,41,M\n')
    for image in ('a.png', 'b.png'): write(place, image, b'')
    file = write(place, 'm.yaml', mutate(data, rng))
    return read_table(place, file) if name == 'own' else _load_mapping(file)


def fuzz_lines(seeds, place, rng):
    "The same rows as JSON lines, or as a gzipped table."
    from smlxray.readers import read_table

    rows = [dict(image='a', who='p1', Edema='1'), dict(image='b', who='p2', Edema='0')]
    lines = ''.join(json.dumps(row) + '\n' for row in rows).encode()
    packed = gzip.compress(b'image,who,Edema\na,p1,1\nb,p2,0\n')
    name, data = rng.choice((('rows.jsonl', lines), ('rows.csv.gz', packed)))
    if data is packed and rng.random() < 0.5:
        data = gzip.compress(mutate(gzip.decompress(packed), rng))
    else:
        data = mutate(data, rng)
    for image in ('a.png', 'b.png'): write(place, image, b'')
    write(place, name, data)
    words = dict(table=name, path='{image}.png', patient='{who}', findings=['Edema'])
    return read_table(place, words)


def fuzz_archive(seeds, place, rng):
    "An archive of MedMNIST's: its bytes, or its members."
    from smlxray.readers import read_chestmnist

    shutil.rmtree(place / 'chestmnist', ignore_errors=True)
    whole = (seeds.home / 'chestmnist.npz').read_bytes()
    if rng.random() < 0.5:
        write(place, 'chestmnist.npz', mutate(whole, rng))
        return read_chestmnist(place)
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    name = rng.choice(sorted(files))
    files[name] = mutate(files[name], rng)
    write(place, 'chestmnist.npz', zipped(files))
    return read_chestmnist(place)


def zipped(files: dict[str, bytes], how=zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w', how) as archive:
        for name, data in files.items(): archive.writestr(name, data)
    return out.getvalue()


TABLES = {
    'labels.csv': b'path,patient,age,sex,view,Edema,Fracture\na.png,p1,60,F,frontal,1,0\n'
    b'b.png,p2,41,M,lateral,0,1\n',
    'Data_Entry_2017_v2020.csv': b'Image Index,Finding Labels,Follow-up #,Patient ID,'
    b'Patient Age,Patient Gender,View Position\n00000001_000.png,Edema|Mass,0,1,58,M,PA\n',
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


RUN = ('results.json', 'answers.npz', 'metrics.jsonl', 'config.yaml')


def copy_of_run(seeds, place, name='', data=b''):
    run = place / 'run'
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir(parents=True)
    for file in RUN: shutil.copy(seeds.run / file, run / file)
    if name: write(run, name, data)
    return run


def run_with_results(seeds, place, rng):
    data = (seeds.run / 'results.json').read_bytes()
    return copy_of_run(seeds, place, 'results.json', changed(data, rng))


def run_with_answers(seeds, place, rng):
    "Change answers; every second time inside, and the results then name their digest."
    from smlxray.evaluate import _digest_of

    whole = seeds.run / 'answers.npz'
    if isinstance(rng, Sound) or rng.random() < 0.5:
        return copy_of_run(seeds, place, 'answers.npz', mutate(whole.read_bytes(), rng))
    with np.load(whole) as arrays: arrays = dict(arrays)
    name = rng.choice(sorted(arrays))
    arrays[name] = changed_array(arrays[name], rng)
    if rng.random() < 0.1: del arrays[name]
    arrays['digest'], out = np.array(_digest_of(arrays)), io.BytesIO()
    np.savez(out, **arrays)
    run = copy_of_run(seeds, place, 'answers.npz', out.getvalue())
    told = json.loads((run / 'results.json').read_text()) | dict(answers=str(arrays['digest']))
    write(run, 'results.json', json.dumps(sealed(told)).encode())
    return run


def fuzz_results(seeds, place, rng):
    from smlxray.app.pages import rows_of_run
    from smlxray.evaluate import results_text

    run = run_with_results(seeds, place, rng)
    return rng.choice((results_text, rows_of_run))(run)


def fuzz_measured(seeds, place, rng):
    "What a bundle takes over from results, and whether it is fresh."
    from smlxray.bundle import is_fresh, measured_rows

    run = run_with_results(seeds, place, rng)
    data = (seeds.home / 'bundle' / 'bundle.json').read_bytes()
    write(run / 'bundle', 'bundle.json', changed(data, rng))
    return is_fresh(run), measured_rows(run, seeds.bundle.net)


def fuzz_answers(seeds, place, rng):
    from smlxray.evaluate import read_answers

    return read_answers(run_with_answers(seeds, place, rng))


def fuzz_report(seeds, place, rng):
    from smlxray.report import render_report

    return render_report(run_with_results(seeds, place, rng))


def fuzz_comparison(seeds, place, rng):
    from smlxray.report import write_comparison

    run = rng.choice((run_with_answers, run_with_results))(seeds, place, rng)
    return write_comparison(run, seeds.run, n=5)


def fuzz_metrics(seeds, place, rng):
    from smlxray.train import read_metrics

    data = mutate((seeds.run / 'metrics.jsonl').read_bytes(), rng)
    return read_metrics(copy_of_run(seeds, place, 'metrics.jsonl', data), 'siamese')


def fuzz_study(seeds, place, rng):
    from smlxray.study import print_study, read_study

    data = changed((seeds.home / 'study.json').read_bytes(), rng)
    study = read_study(write(place, 'study.json', data))
    with redirect_stdout(io.StringIO()):
        print_study(study)


def fuzz_committed(seeds, place, rng):
    "The file of a finished cell, and the ledger."
    from smlxray.study import announce, read_ledger, read_scores, save_cell

    cell = seeds.cell
    aside = dict(cells=f'{place}/cells', ledger=f'{place}/ledger.jsonl')
    cell.plan, cell.folder = cell.plan.model_copy(update=aside), cell.whole
    cell.__dict__.pop('recipe', None)
    if not hasattr(seeds, 'finished'):
        save_cell(cell)
        announce(cell.plan)
        seeds.finished = (place / f'cells/{cell.name}.json').read_bytes()
        seeds.ledger = (place / 'ledger.jsonl').read_bytes()
    if rng.random() < 0.2:
        return read_ledger(write(place, 'ledger.jsonl', changed(seeds.ledger, rng)))
    write(place / 'cells', f'{cell.name}.json', changed(seeds.finished, rng))
    cell.folder = place / 'nothing'
    return [read_scores(cell, name, 'normals') for name in ('pixels', 'prototypes')]


def fuzz_kept(seeds, place, rng):
    "What a study keeps: scores, weights, vectors, and how a cell was made."
    from smlxray.study import check_made_by, finding_rows, kept, score_path, won_cells

    cell, whole = seeds.cell, seeds.cell.whole
    cell.folder = place / 'cell'
    cell.__dict__.pop('recipe', None)
    shutil.rmtree(cell.folder, ignore_errors=True)
    shutil.copytree(whole, cell.folder)
    kind = rng.randrange(4)
    if kind == 0:
        score = score_path(cell, 'prototypes', 'normals').relative_to(cell.folder)
        changed_tensors(whole / score, cell.folder / score, rng)
        return finding_rows(cell.plan, won_cells([cell], ['pixels', 'prototypes']))
    if kind == 1:
        write(cell.folder, 'made_by.json', changed((whole / 'made_by.json').read_bytes(), rng))
        return check_made_by(cell)
    name = Path('backbones' if kind == 2 else 'vectors') / 'supervised.safetensors'
    file = changed_tensors(whole / name, cell.folder / name, rng)
    nets = [] if kind == 2 else ['supervised']
    if kept(file, cell.origin(*nets)) is None: return None  # it is made again
    if kind == 2: return cell.model('supervised')
    return cell.vectors('supervised', cell.lab.test[:9])


def fuzz_checkpoint(seeds, place, rng):
    from smlxray.train import load_checkpoint

    file = next(path for path in seeds.run.rglob('*.safetensors') if '.state.' not in path.name)
    return load_checkpoint(changed_tensors(file, place / file.name, rng))


def fuzz_state(seeds, place, rng):
    "A state is taken up, or left alone and the training begins at the beginning."
    import torch
    from smlxray.train import load_state

    loop, made_by = seeds.loop
    file = changed_tensors(seeds.home / 'a.state.safetensors', place / 's.state.safetensors', rng)
    done = load_state(file, loop, made_by)
    if done not in (0, 1, 2): raise AssertionError(f'{done} rounds of 2 are done')
    if isinstance(rng, Sound) and done != 1: raise AssertionError('a sound state was left alone')
    for weight in loop.model.parameters():
        if not torch.isfinite(weight).all(): raise AssertionError('a weight is no number')


def fuzz_pth(seeds, place, rng):
    import torch
    from smlxray.bundle import read_pth

    out = io.BytesIO()
    torch.save(dict(state_dict={'a.weight': torch.ones(3, 4)}), out)
    return read_pth(write(place, 'x.pth', mutate(out.getvalue(), rng)))


def with_sums(files: dict[str, bytes], rng) -> dict[str, bytes]:
    "Change one of the files that a manifest lists; the manifest gets sums that fit, or is changed."
    from smlxray.bundle import _json, _manifest

    files = dict(files)
    manifest = files.pop('manifest.json')
    told = json.loads(manifest)
    name = rng.choice([*sorted(files), 'manifest.json'])
    if name == 'manifest.json': return files | {name: changed(manifest, rng)}
    files[name] = changed(files[name], rng, name.endswith('.json'))
    if not isinstance(rng, Sound): manifest = _json(_manifest(told['kind'], told['version'], files))
    return files | {'manifest.json': manifest}


def fuzz_bundle(seeds, place, rng):
    "A bundle with one changed member."
    from smlxray.bundle import Bundle

    files, whole = {}, seeds.home / 'bundle'
    for path in whole.rglob('*'):
        if path.is_file(): files[str(path.relative_to(whole))] = path.read_bytes()
    shutil.rmtree(place / 'bundle', ignore_errors=True)
    for name, data in with_sums(files, rng).items(): write(place / 'bundle', name, data)
    bundle = Bundle.load(place / 'bundle')
    return bundle.predict(np.zeros((1, 1, *bundle.size), np.uint8))


def fuzz_taught(seeds, place, rng):
    "A finding that was exported: the archive, or its members."
    from smlxray.app.teach import import_finding

    data = (seeds.home / 'taught.zip').read_bytes()
    if rng.random() < 0.4: return import_finding(mutate(data, rng))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    how = zipfile.ZIP_DEFLATED if rng.random() < 0.05 and type(rng) is not Sound else 0
    finding = import_finding(zipped(with_sums(files, rng), how))
    blank = np.zeros((1, 1, *seeds.bundle.size), np.uint8)
    if finding.network == seeds.bundle.network: seeds.bundle.scores(finding, blank)
    return finding


def fuzz_upload(seeds, place, rng):
    "A file and its name, as a browser sends them to the pages."
    from smlxray.app.session import open_upload
    from smlxray.app.widgets import Batch

    source, batch = rng.choice(seeds.images), Batch(100_000)
    told = dict(name=source.name, size=source.stat().st_size, end=True, last=True)
    if not isinstance(rng, Sound) and rng.random() < 0.3: told = mutate_json(told, rng)
    if not isinstance(told, dict): return None  # `Upload` leaves these out
    data = mutate(source.read_bytes(), rng)
    half = len(data) // 2
    batch.take({}, [data[:half]])
    batch.take(told, [data[half:]])
    return [open_upload(seeds.bundle, name, content) for name, content in batch.files]


def fuzz_cache(seeds, place, rng):
    "A cache with one changed file: what is read from it is what was written, or it is built again."
    from smlxray.cache import ImageCache

    shutil.rmtree(place / 'cache', ignore_errors=True)
    kind = rng.choice(('whole', 'cut'))
    shutil.copytree(seeds.home / kind, place / 'cache')
    folder = next(path.parent for path in (place / 'cache').glob('*/manifest.json'))
    pixels = 'pixels.npy' if kind == 'whole' else 'pixels-00000.bin'
    name = rng.choice((pixels, 'sources.npy', 'manifest.json'))
    write(folder, name, changed((folder / name).read_bytes(), rng, name.endswith('.json')))
    if rng.random() < 0.5:
        draft = folder.with_name(f'{folder.name}.building')
        folder.rename(draft)
        write(draft, 'journal.jsonl', changed((seeds.home / 'journal.jsonl').read_bytes(), rng))
    shard = 0 if kind == 'whole' else 0.01
    again = ImageCache.build(seeds.few, (16, 16), place / 'cache', 1, False, shard=shard)
    read, right = again.gather(np.arange(3))[:, 0], np.load(seeds.home / 'right.npy')
    if not np.array_equal(read, right): raise AssertionError('wrong pixels')


def fuzz_old_cache(seeds, place, rng):
    "A cache of SML-X-ray: tensors in .npy files or .pt files."
    import torch
    from smlxray.cache import convert_cache

    for folder in ('old', 'new'): shutil.rmtree(place / folder, ignore_errors=True)
    shutil.copytree(seeds.home / 'old', place / 'old')
    file = place / 'old' / 'a.npy'
    data, out = mutate(file.read_bytes(), rng), io.BytesIO()
    if rng.random() < 0.5:
        torch.save(torch.from_numpy(np.load(file)), out)
        file.unlink()
        file, data = file.with_suffix('.pt'), mutate(out.getvalue(), rng)
    file.write_bytes(data)
    return convert_cache(place / 'old', seeds.few, (16, 16), place / 'new', progress=False)


def fuzz_phantoms(seeds, place, rng):
    from smlxray.phantom import _read_manifest

    data = (seeds.home / 'dataset' / 'manifest.json').read_bytes()
    write(place, 'manifest.json', changed(data, rng))
    return _read_manifest(place)


def fuzz_vectors(seeds, place, rng):
    "Vectors of others with the paths beside them, or vectors that were sealed."
    from smlxray.encoders import read_vectors

    source = seeds.home / 'foreign'
    names = [name for name in ('v.npy', 'v.txt', 'v.parquet') if (source / name).exists()]
    name = rng.choice([*names, 'sealed.safetensors'])
    for file in ('v.npy', 'v.txt'): write(place, file, (source / file).read_bytes())
    if name.startswith('sealed'):
        return read_vectors(changed_tensors(source / name, place / name, rng))
    write(place, name, mutate((source / name).read_bytes(), rng))
    return read_vectors(place / name.replace('.txt', '.npy'))


def fuzz_card(seeds, place, rng):
    from smlxray.encoders import read_card

    data = (seeds.home / 'foreign' / 'v.yaml').read_bytes()
    return read_card(write(place, 'v.yaml', mutate(data, rng)))


def fuzz_program(seeds, place, rng):
    "An exported program: its bytes, or one of its parts."
    from smlxray.encoders import open_encoder

    whole = (seeds.home / 'foreign' / 'net.pt2').read_bytes()
    if isinstance(rng, Sound) or rng.random() < 0.3:
        return open_encoder(str(write(place, 'net.pt2', mutate(whole, rng))))
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    name = rng.choice(sorted(files))
    files[name] = changed(files[name], rng, name.endswith('.json'))
    return open_encoder(str(write(place, 'net.pt2', zipped(files))))


def fuzz_onnx(seeds, place, rng):
    from smlxray.encoders import open_encoder

    data = (seeds.home / 'foreign' / 'net.onnx').read_bytes()
    return open_encoder(str(write(place, 'net.onnx', mutate(data, rng))))


def fuzz_episodes(seeds, place, rng):
    "A file of episodes; every second change gets digests that fit."
    from smlxray.exchange import _body_digest, _line, read_episodes

    whole = (seeds.home / 'foreign' / 'e.jsonl').read_bytes()
    first, _, body = whole.partition(b'\n')
    if isinstance(rng, Sound) or rng.random() < 0.5:
        return read_episodes(write(place, 'e.jsonl', mutate(whole, rng)))
    lines = body.splitlines()
    at = rng.randrange(len(lines) + 1)
    head = json.loads(first)
    if at == len(lines): head = mutate_json(head, rng)
    else: lines[at] = json.dumps(mutate_json(json.loads(lines[at]), rng)).encode()
    body = b'\n'.join(lines) + b'\n'
    if isinstance(head, dict): head = sealed(head | dict(body=_body_digest(body)))
    return read_episodes(write(place, 'e.jsonl', _line(head).encode() + body))


def fuzz_scores(seeds, place, rng):
    from smlxray.exchange import read_episodes, read_scores

    file = read_episodes(seeds.home / 'foreign' / 'e.jsonl')
    rows = [f'{e},{i},{e + i / 7}' for e in range(2) for i in (2, 3)]
    data = '\n'.join(['episode,image,score', *rows]).encode() + b'\n'
    return read_scores(write(place, 'a.csv', mutate(data, rng)), file)


if not ONNX: del fuzz_onnx
READERS = {name[5:]: call for name, call in list(globals().items()) if name.startswith('fuzz_')}
FOREIGN = (
    'images', 'settings', 'mapping', 'lines', 'archive', 'tables', 'pairs', 'unfinished', 'cache',
    'vectors', 'card', 'program', 'episodes', 'scores', *['onnx'] * ONNX,
)  # fmt: skip
SHARES = dict(images=3, cache=0.5, old_cache=0.5, pth=0.5, program=0.3)  # of the inputs; others: 1


class OutOfTime(BaseException):
    "No reader can take this for an error of the file."


def out_of_time(*_):
    raise OutOfTime


OPENS = ('open', 'os.rename', 'os.remove', 'os.mkdir', 'os.rmdir', 'os.link', 'os.symlink')


def watch_writes(place: Path, seen: list) -> None:
    "Note every file that this process writes, moves or removes outside of a folder."
    allowed = (f'{place}/', '/dev/null', '/proc/')

    def hook(event, words):
        if event not in OPENS or not isinstance(words[0], (str, bytes, os.PathLike)): return
        path, mode = os.path.abspath(os.fsdecode(words[0])), words[1]
        if event == 'open':
            writes = set(mode) & set('wax+') if isinstance(mode, str) else words[2] & 3
            if not writes or '__pycache__' in path: return
        if not f'{path}/'.startswith(allowed) and path not in allowed: seen.append(path)

    sys.addaudithook(hook)


def try_input(read, seeds, place, rng) -> tuple[str, str]:
    "Let a reader read one input; say how that ended."
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.setitimer(signal.ITIMER_REAL, WALL)
    try:
        read(seeds, place, rng)
        return 'read', ''
    except OutOfTime:
        return 'hangs', f'more than {SECONDS} seconds'
    except (SmlxrayError, OSError) as error:
        said = f'{type(error).__name__}: {str(error)[:300]!r}'
        return ('raw' if '\n  File' in str(error) else 'refused'), said
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        at = f'{Path(where.filename).name}:{where.lineno}'
        return 'raw', f'{at} {type(error).__name__}: {str(error)[:90]!r}'
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)


def one_reader(name: str, home: Path, count: int, seed: int, end: float) -> dict:
    "Try one reader on so many inputs; return what happened."
    import logging

    logging.disable(logging.CRITICAL)
    seeds, read, began = Seeds(home), READERS[name], time.time()
    told = dict(reader=name, inputs=0, read=0, refused=0, raw=0, hangs=0, outside=0)
    first, outside = {}, []
    for number in (signal.SIGPROF, signal.SIGALRM): signal.signal(number, out_of_time)
    with tempfile.TemporaryDirectory(dir=home) as folder:
        place = Path(folder)
        os.chdir(place)
        tempfile.tempdir = folder
        os.environ['TORCHINDUCTOR_CACHE_DIR'] = folder  # PyTorch makes it when it first compiles
        for k in range(SOUND):  # imports and caches as well, so the clock runs for the last alone
            ended, said = try_input(read, seeds, place, Sound(k))
            if ended == 'read' or ended == 'hangs' and k < SOUND - 1: continue
            told['raw'] += 1
            first.setdefault('sound', f'sound input {k}: {said}')
        watch_writes(place, outside)
        for k in range(count):
            if time.time() > end: break
            rng = random.Random(hashlib.sha256(f'{name}{seed}{k}'.encode()).digest())
            ended, said = try_input(read, seeds, place, rng)
            told['inputs'] += 1
            told[ended] += 1
            if ended in ('raw', 'hangs'): first.setdefault(said.split(':')[0], f'input {k}: {said}')
        told['outside'], outside = len(outside), outside[:3]
        os.chdir(home)
    told |= dict( MB=most_memory(), seconds=round(time.time() - began))
    return dict(told, examples=[*first.values(), *outside])


def most_memory() -> int:  # MB
    "The most memory that this process had, or one of its workers."
    from smlxray import base

    for worker in base._idle.get(os.getpid(), []): worker.end()
    line = next(line for line in open('/proc/self/status') if line.startswith('VmHWM'))
    below = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return max(int(line.split()[1]), below) // 1000


def prepare(home: Path, with_run: bool = True) -> None:
    "Make the sound files that all begin with; those of a run take half a minute."
    make_images(home)
    make_few(home)
    make_foreign(home)
    if with_run: make_seeds(home)


def import_for(names) -> None:
    "Import once what the readers need; each is tried in a copy of this process."
    import smlxray.cache, smlxray.cli, smlxray.exchange, smlxray.readers  # noqa: F401

    if not set(names) <= set(FOREIGN):
        import smlxray.app.pages, smlxray.report, smlxray.study  # noqa: F401


def fork(work) -> int:
    "Do some work in a copy of this process; return its id."
    sys.stdout.flush()
    pid = os.fork()
    if pid: return pid
    code = 1
    try:
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def shares(names, inputs: int) -> dict[str, int]:
    "How many inputs each reader gets."
    parts = [SHARES.get(name, 1) for name in names]
    ends = [round(inputs * sum(parts[: k + 1]) / sum(parts)) for k in range(len(parts))]
    return {name: b - a for name, a, b in zip(names, [0, *ends], ends)}


def try_all(home: Path, inputs: int, minutes: float, seed: int, names, jobs: int) -> list[dict]:
    "Try readers, so many at once."
    import_for(names)
    end, rows, running = time.time() + 60 * minutes, [], {}
    waiting = list(shares(names, inputs).items())
    while waiting or running:
        while waiting and len(running) < jobs:
            name, count = waiting.pop(0)
            running[fork(partial(keep, home, name, count, seed, end))] = name
        pid, _ = os.wait()
        if pid not in running: continue
        name = running.pop(pid)
        lost = dict(reader=name, inputs=0, read=0, refused=0, raw=1, hangs=0, outside=0, MB=0)
        lost |= dict(seconds=0, examples=['its process died'])
        file = home / f'{name}.told'
        rows.append(json.loads(file.read_text()) if file.exists() else lost)
        show(rows[-1])
    return rows


def keep(home: Path, name: str, count: int, seed: int, end: float) -> None:
    told = one_reader(name, home, count, seed, end)
    (home / f'{name}.told').write_text(json.dumps(told))


def run(home: Path, inputs: int, minutes: float, seed: int, names=tuple(READERS)) -> list[dict]:
    "Try readers from a process of their own; print and return the table."
    words = ['--home', home, '--inputs', inputs, '--minutes', minutes, '--seed', seed]
    for name in names: words += ['--reader', name]
    done = subprocess.run([sys.executable, __file__, *map(str, words)], stdout=subprocess.PIPE)
    print(done.stdout.decode())
    return [json.loads((home / f'{name}.told').read_text()) for name in names]


COLUMNS = ('reader', 'inputs', 'read', 'refused', 'raw', 'hangs', 'outside', 'MB', 'seconds')


def show(row: dict) -> None:
    print(''.join(f'{row[key]!s:>11}' for key in COLUMNS), flush=True)
    for example in row['examples'][:8]: print(f'    {example}', flush=True)


def faults(rows: list[dict]) -> int:
    "Count what must not happen."
    return sum(row['raw'] + row['hangs'] + row['outside'] + (row['MB'] > MOST) for row in rows)


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument('--inputs', type=int, default=20_000)
    words.add_argument('--minutes', type=float, default=18)
    words.add_argument('--seed', type=int, default=0)
    words.add_argument('--jobs', type=int, default=1, help='readers at once')
    words.add_argument('--reader', choices=READERS, action='append', help='this one alone')
    words.add_argument('--home', type=Path, help='what `prepare` has made')
    given = words.parse_args()
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    names = given.reader or list(READERS)
    with tempfile.TemporaryDirectory() as folder:
        home = given.home or Path(folder)
        if not given.home and os.waitpid(fork(partial(prepare, home)), 0)[1]: sys.exit(1)
        print(''.join(f'{key:>11}' for key in COLUMNS), flush=True)
        rows = try_all(home, given.inputs, given.minutes, given.seed, names, given.jobs)
    done = sum(row['inputs'] for row in rows)
    print(f'{done:,} of {given.inputs:,} inputs, {faults(rows)} faults')
    sys.exit(faults(rows) > 0)


if __name__ == '__main__': main()
