"Protocols of others: the presets run on phantoms, and NIH's patients are counted as they are."

import hashlib, logging

import numpy as np
import pytest
import test_episodes
from PIL import Image
from smlxray.base import shipped_file
from smlxray.cli import call
from smlxray.config import load_settings
from smlxray.lab import open_lab
from smlxray.methods import pixel_method
from smlxray.phantom import ensure_phantoms
from smlxray.protocols import published_methods, published_rows
from smlxray.published import METACHEST, LabelSampler, MetaChestSampler, SingleSampler
from smlxray.published import metachest_sides, metachest_split, nih_labels, patient_overlap
from smlxray.readers import CHESTMNIST_FINDINGS, read_chexpert


@pytest.fixture(scope='module')
def opened(tmp_path_factory):
    "Open a preset of config/benchmark on small phantoms."
    home = tmp_path_factory.mktemp('published')
    paths = {key: str(home / key) for key in ('dataset_path', 'cache_path', 'runs_path')}
    small = dict(image_size=32, phantom_size=32, patients=300, dataset='phantom', progress=False)
    small['workers'] = 1

    def opened(preset, **more):
        file = shipped_file(f'benchmark/{preset}.yaml')
        return open_lab(load_settings(config=str(file), **(paths | small | more)))

    return opened


def test_metachest_runs_on_phantoms(opened, caplog):
    few = dict(shots=3, queries=6, published_episodes=4)
    lab = opened('metachest', **few)
    assert not set(lab.table.patients[lab.train]) & set(lab.table.patients[lab.test])
    assert not set(lab.findings.base) & set(METACHEST['test'])
    pixels = pixel_method(lab)
    rows = published_rows(lab, [pixels, *published_methods(pixels)])
    assert [row['method'] for row in rows] == ['pixels', 'pixels, BatchBased', 'pixels, ProtoNet']
    assert {row['episodes'] for row in rows} == {4}
    assert 'patients apart' in rows[0]['protocol']
    with caplog.at_level(logging.WARNING, logger='smlxray'):
        loose = opened('metachest', split='metachest', **few)
    assert 'test patients (' in caplog.text and 'are trained on' in caplog.text
    assert set(loose.table.patients[loose.train]) & set(loose.table.patients[loose.test])
    assert 'as published' in published_rows(loose, [pixel_method(loose)])[0]['protocol']


def test_bscd_fsl_runs_on_phantoms(opened):
    lab = opened(
        'bscd_fsl',
        novel_findings=['Cardiomegaly', 'Pneumothorax'],
        ways=2,
        shots=1,
        queries=2,
        test_fraction=0.8,
        published_episodes=5,
    )
    (row,) = published_rows(lab, [pixel_method(lab)])
    assert row['chance'] == 0.5 and row['episodes'] == 5
    assert 'Cardiomegaly' not in row['seen_in_training']


@pytest.fixture(scope='module')
def many(tmp_path_factory):
    "So many phantoms that some findings are shown fifty times."
    folder = tmp_path_factory.mktemp('many') / 'x'
    ensure_phantoms(folder, patients=500, size=32, seed=0, workers=1, progress=False)
    return folder


def test_medimeta_runs_on_phantoms(opened, many):
    few = dict(shots=2, queries=4, test_fraction=0.8, published_episodes=4)
    here = dict(dataset_path=str(many), patients=500)
    lab = opened('medimeta', novel_findings=['Cardiomegaly', 'Pneumothorax'], **few, **here)
    (row,) = published_rows(lab, [pixel_method(lab)])
    assert row['protocol'].startswith('MedIMeta, ') and row['episodes'] == 4
    assert row['auc_low'] < row['auc'] < row['auc_high'] and row['unseen'] is not None


def write_chestmnist(folder, phantoms):
    "Write phantoms in MedMNIST's layout, and return how many images each part has."
    table = read_chexpert(phantoms)
    known = [name for name in CHESTMNIST_FINDINGS if name in table.findings]
    labels = np.zeros((len(table), len(CHESTMNIST_FINDINGS)), np.uint8)
    for name in known: labels[:, CHESTMNIST_FINDINGS.index(name)] = table.positive(name)
    files = [f'{table.root}/{path}' for path in table.frame['path']]
    images = np.stack([np.asarray(Image.open(f).convert('L').resize((28, 28))) for f in files])
    arrays, places = {}, np.split(np.arange(len(table)), [100, 120])
    for part, rows in zip(('train', 'val', 'test'), places):
        arrays |= {f'{part}_images': images[rows], f'{part}_labels': labels[rows]}
    folder.mkdir()
    np.savez_compressed(folder / 'chestmnist.npz', **arrays)
    return list(map(len, places))


def test_chestmnist_runs_on_phantoms(many, tmp_path):
    "In MedMNIST's layout, at its smallest size; its split and labels are taken."
    sizes = write_chestmnist(tmp_path / 'data', many)
    paths = dict(dataset_path='data', cache_path='cache', runs_path='runs')
    paths = {key: str(tmp_path / name) for key, name in paths.items()}
    few = dict(shots=1, queries=3, published_episodes=3, progress=False)
    few['novel_findings'] = ['Cardiomegaly', 'Pneumothorax']  # no phantom has a mass
    file = shipped_file('benchmark/chestmnist.yaml')
    lab = open_lab(load_settings(config=str(file), **paths, **few))
    assert [len(rows) for rows in lab.patients] == sizes
    (row,) = published_rows(lab, [pixel_method(lab)])
    found = int(row['protocol'].split()[1])
    assert row['protocol'] == f'MedIMeta, {found} findings, patients apart' and found >= 2
    assert row['auc_low'] < row['auc'] < row['auc_high']


def test_a_preset_is_found_from_any_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call('config show --config config/benchmark/medimeta.yaml'.split()) == 0
    assert 'protocol: medimeta' in capsys.readouterr().out
    assert call('config show --config config/benchmark/gone.yaml'.split()) == 1
    assert 'there is no such file' in capsys.readouterr().err


def test_two_thirds_of_the_test_patients_of_nih_are_trained_on():
    nih = nih_labels()
    if nih is None: pytest.skip('torchxrayvision, with the label table of NIH, is not installed')
    counted = patient_overlap(nih, metachest_sides(nih))
    assert (counted['train'], counted['valid'], counted['test']) == (32590, 3191, 13776)
    assert round(counted['share_of_test_patients'], 3) == 0.673
    apart = metachest_split(nih, apart=True)
    asked = np.isin(apart.test, np.flatnonzero(metachest_sides(nih) == 'test'))
    assert asked.sum() == 13776  # the same images are asked about
    assert not set(nih.patients[apart.test]) & set(nih.patients[apart.train])


def published_digest():
    "One hash over episodes of both protocols."
    findings = ['Pleural Effusion', 'Lung Opacity', 'Edema', 'Pneumonia', 'Cardiomegaly']
    table, h = test_episodes.fixed_table(900, *findings), hashlib.sha256()
    rows, sides = np.arange(len(table)), (METACHEST['train'], METACHEST['test'])
    for apart in (True, False):
        few = dict(ways=3, novel=2, shots=3, queries=6, apart=apart)
        sampler = MetaChestSampler(table, rows, *sides, **few)
        for e in map(sampler.episode, range(30)):
            h.update(repr((e.findings, e.seed, e.support.tolist(), e.query.tolist())).encode())
    singles = SingleSampler(table, rows, findings, 2, 2, 3)
    for e in map(singles.episode, range(30)):
        h.update(repr((e.findings, e.seed, e.support.tolist(), e.query.tolist())).encode())
    return h.hexdigest()


def label_digest():
    "One hash over episodes of MedIMeta."
    findings = ['Pleural Effusion', 'Lung Opacity', 'Edema', 'Pneumonia', 'Cardiomegaly']
    table, h = test_episodes.fixed_table(900, *findings), hashlib.sha256()
    for apart in (True, False):
        sides = dict(seen=findings[:3], unseen=findings[3:])
        sampler = LabelSampler(table, np.arange(len(table)), **sides, apart=apart, least=20)
        for e in map(sampler.episode, range(30)):
            h.update(repr((e.findings, e.seed, e.support.tolist(), e.query.tolist())).encode())
    return h.hexdigest()


FIXED = {1: '3833ed9997d9e55ddf5170570725f8b276b1ee12bb658e1829a4dfd057a796e4'}
LABELS_FIXED = {1: '1ac2f1121b2c100d303fdbb72ef17e1b8f46a56aea5abb245b53585cb457b4e1'}


def test_the_protocols_draw_what_they_always_drew():
    "If this fails, raise PROTOCOL_VERSION and add a line to FIXED; do not change the old one."
    assert published_digest() == FIXED[test_episodes.PROTOCOL_VERSION]
    assert label_digest() == LABELS_FIXED[test_episodes.PROTOCOL_VERSION]
