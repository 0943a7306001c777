"Files of encoders and vectors that were changed at random, and the commands that read them."

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from smlxray.base import SmlxrayError
from smlxray.cli import call
from smlxray.encoders import EncoderCard, Vectors, open_encoder, read_vectors, write_vectors
from smlxray.phantom import ensure_phantoms
from smlxray.siamese import make_backbone


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    "An encoder in three kinds of file, and vectors in two."
    here = tmp_path_factory.mktemp('encoders')
    rng, names = np.random.default_rng(0), [f'{i}.png' for i in range(20)]
    values = rng.normal(size=(20, 6)).astype(np.float32)
    card = EncoderCard(trained_on='noise')
    write_vectors(here / 'sealed.safetensors', Vectors('x', names, torch.tensor(values), card))
    np.save(here / 'plain.npy', values)
    (here / 'plain.txt').write_text('\n'.join(names))
    torch.manual_seed(0)
    net, x = make_backbone('conv4')[0].eval(), torch.randn(2, 1, 32, 32)
    batch = dict(x={0: torch.export.Dim('batch')})
    program = torch.export.export(net, (x,), dynamic_shapes=batch)
    torch.export.save(program, here / 'net.pt2')
    return here


def mutated(rng, data):
    "Bytes with a few changed, cut or doubled."
    out = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(len(out)))
        match rng.integers(4):
            case 0:
                out[at] = rng.integers(256)
            case 1:
                del out[at : at + int(rng.integers(1, 200))]
            case 2:
                out[at:at] = out[max(at - 20, 0) : at]
            case 3:
                out[at : at + 8] = rng.bytes(8)
        if not out:
            break
    return bytes(out)


TRIES = {'sealed.safetensors': 150, 'plain.npy': 150, 'plain.txt': 60, 'net.pt2': 40}


@pytest.mark.parametrize('name', TRIES)
def test_a_changed_file_is_read_or_refused_in_a_sentence(files, tmp_path, name):
    rng, whole = np.random.default_rng(7), (files / name).read_bytes()
    for other in ('plain.npy', 'plain.txt'):
        (tmp_path / other).write_bytes((files / other).read_bytes())
    refused = 0
    for _ in range(TRIES[name]):
        (tmp_path / name).write_bytes(mutated(rng, whole))
        try:
            if name == 'net.pt2':
                open_encoder(str(tmp_path / name))
            else:
                found = read_vectors(tmp_path / name.replace('.txt', '.npy'))
                assert torch.isfinite(found.values).all() and len(found.paths) == len(found.values)
        except SmlxrayError as error:
            refused += 1
            assert len(str(error).splitlines()) == 1 and str(tmp_path) not in str(error), error
    assert refused


@pytest.fixture(scope='module')
def data(tmp_path_factory, files):
    "Phantoms, with vectors made without smlxray beside them."
    here = tmp_path_factory.mktemp('data')
    ensure_phantoms(here / 'data', patients=60, size=48, seed=0, progress=False)
    images = sorted((here / 'data').rglob('*.jpg'))
    paths = [image.relative_to(here / 'data').as_posix() for image in images]
    np.save(here / 'mine.npy', np.random.default_rng(0).normal(size=(len(paths), 4)))
    (here / 'mine.txt').write_text('\n'.join(paths))
    half = [path if i % 2 else f'other/{i}' for i, path in enumerate(paths)]
    np.save(here / 'half.npy', np.load(here / 'mine.npy'))
    (here / 'half.txt').write_text('\n'.join(half))
    os.link(files / 'net.pt2', here / 'net.pt2')
    torch.save({}, here / 'weights.bin')
    write_wrong(here, paths)
    return here


def write_wrong(here, paths):
    "Vectors of the right length that must not be read, each with its paths beside it."
    good = np.load(here / 'mine.npy')
    odd = dict(zeros=good.copy(), same=np.ones_like(good), nan=good.copy(), one=good[:, 0])
    odd |= dict(huge=good * 1e300, words=good.astype(str), none=good[:0], twice=good)
    odd['zeros'][3], odd['nan'][3, 1] = 0, np.nan
    for name, values in odd.items(): np.save(here / f'{name}.npy', values)
    np.save(here / 'objects.npy', np.array([dict()] * len(paths), object), allow_pickle=True)
    for name in [*odd, 'objects']: os.link(here / 'mine.txt', here / f'{name}.txt')
    (here / 'twice.txt').unlink()
    (here / 'twice.txt').write_text('\n'.join([*paths[:-1], paths[0]]))
    (here / 'empty.npy').touch()
    letters = torch.tensor([255, 254], dtype=torch.uint8)
    save_file(dict(vectors=torch.tensor(good), paths=letters), here / 'letters.safetensors')
    torch.save(dict(a=torch.tensor(good)), here / 'renamed.safetensors')
    whole = (here / 'letters.safetensors').read_bytes()
    (here / 'cut.safetensors').write_bytes(whole[:-9])
    (here / 'mistaken.py').write_text('def fails(): raise RuntimeError("one\\ntwo")\n')


MISTAKES = [
    ('embed data --vectors half.npy', 'half.npy has vectors of'),
    ('embed data --vectors gone.npy', 'no file gone.npy'),
    ('embed data --encoder net.pt2 --size 64', 'wants images of 32 x 32 pixels, not of 64 x 64'),
    ('embed data --encoder weights.bin', 'weights.bin is refused'),
    ('embed data --encoder timm/resnet19', 'timm has no network'),
    ('embed data --encoder nowhere:thing', 'cannot be imported'),
    ('embed nowhere --encoder net.pt2', 'nowhere'),
    ('embed data --encoder mistaken:fails', 'mistaken:fails gives no encoder (one)'),
    ('embed data --vectors zeros.npy', 'zeros.npy has nothing but zeros in 1 of'),
    ('embed data --vectors same.npy', 'the same vector for all X-rays'),
    ('embed data --vectors nan.npy', 'nan.npy has NaN or infinity in 1 of'),
    ('embed data --vectors huge.npy', 'huge.npy has NaN or infinity in'),
    ('embed data --vectors one.npy', 'not one vector per X-ray'),
    ('embed data --vectors words.npy', 'is no array of numbers'),
    ('embed data --vectors objects.npy', 'is no array of numbers'),
    ('embed data --vectors none.npy', 'holds numbers of shape (0, 4)'),
    ('embed data --vectors empty.npy', 'is no array of numbers, or is damaged'),
    ('embed data --vectors twice.npy', 'twice (1 such paths)'),
    ('embed data --vectors letters.safetensors', 'paths in letters.safetensors is no text'),
    ('embed data --vectors renamed.safetensors', 'reading a pickle can run code'),
    ('embed data --vectors cut.safetensors', 'cut.safetensors is damaged'),
    ('leaderboard half.npy --data data --novel Edema', 'half.npy has vectors of'),
    ('leaderboard mine.npy --data data --novel Edemaa', "did you mean 'Edema'?"),
    ('leaderboard mine.npy --data data --novel Edema --curve 1,x', "--curve has 'x'"),
]


@pytest.mark.parametrize('line, words', MISTAKES)
def test_a_mistake_is_one_sentence_and_leaves_nothing(data, monkeypatch, capsys, line, words):
    monkeypatch.chdir(data)
    out = '--output made' if line.startswith('leader') else '--output made.safetensors'
    assert call([*line.split(), *out.split()]) == 1
    said = capsys.readouterr().err.splitlines()
    assert words in said[-1] and said[-1].startswith('smlxray: '), said
    assert not list(Path().glob('made*'))


def test_parquet_of_a_real_writer_is_read(data, monkeypatch, capsys):
    pytest.importorskip('pyarrow', reason='pyarrow writes Parquet')
    monkeypatch.chdir(data)
    values, paths = np.load('mine.npy'), (data / 'mine.txt').read_text().split()
    pd.DataFrame(dict(path=paths, vector=list(values))).to_parquet('lists.parquet')
    pd.DataFrame(values, columns=list('abcd')).assign(path=paths).to_parquet('wide.parquet')
    found = [read_vectors(data / f'{name}.parquet') for name in ('lists', 'wide')]
    assert torch.equal(found[0].values, found[1].values) and found[0].paths == paths
    assert call('embed data --vectors lists.parquet --output p.safetensors'.split()) == 0


def test_onnx_may_not_read_other_files(data, monkeypatch, capsys):
    onnx = pytest.importorskip('onnx', reason='onnx writes ONNX')
    pytest.importorskip('onnxruntime')
    from onnx import TensorProto, helper

    (data.parent / 'secret.bin').write_bytes(bytes(4096))
    for place in ('../secret.bin', str(data.parent / 'secret.bin')):
        weight = onnx.TensorProto(name='w', data_type=TensorProto.FLOAT, dims=[256, 4])
        weight.data_location = TensorProto.EXTERNAL
        for key, value in dict(location=place, offset='0', length='4096').items():
            entry = weight.external_data.add()
            entry.key, entry.value = key, value
        ends = [('image', [None, 1, 16, 16]), ('vector', [None, 4])]
        given, made = (helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in ends)
        nodes = [helper.make_node('Flatten', ['image'], ['flat'])]
        nodes.append(helper.make_node('MatMul', ['flat', 'w'], ['vector']))
        graph = helper.make_graph(nodes, 'g', [given], [made], [weight])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 13)])
        model.ir_version = 8
        (data / 'reads.onnx').write_bytes(model.SerializeToString())
        monkeypatch.chdir(data)
        assert call('embed data --encoder reads.onnx --output made.safetensors'.split()) == 1
        said = capsys.readouterr().err.splitlines()
        assert len(said) == 1 and 'reads.onnx is no ONNX file that can be run' in said[0], said


def test_what_was_sealed_is_bound_to_its_table(data, monkeypatch, capsys):
    monkeypatch.chdir(data)
    seal = 'embed data --vectors mine.npy --findings-seen none --output sealed.safetensors'
    assert call(seal.split()) == 0
    assert 'findings seen: none' in capsys.readouterr().out
    labels = data / 'data' / 'train.csv'
    whole = labels.read_bytes()
    pd.read_csv(labels).assign(Fracture=1.0).to_csv(labels, index=False)
    board = 'leaderboard sealed.safetensors --data data --novel Edema --output made'
    assert call(board.split()) == 1
    assert 'was made of another table' in capsys.readouterr().err
    labels.write_bytes(whole)
