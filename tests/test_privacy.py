"Nothing that leaves the machine names a patient, or a folder of whoever made it."

import hashlib, io, json, os, re, shutil, tempfile, zipfile
from pathlib import Path

import numpy as np
import pytest
from test_cli import smlxray

from smlxray.bundle import Bundle, bundle_of_run
from smlxray.config import load_settings
from smlxray.lab import open_lab
from smlxray.phantom import write_phantoms
from smlxray.train import train_siamese

FIRST, STEP = 8_120_000, 37  # numbers that nothing else in a run has


def write_clinic(here, patients):
    "Phantoms of patients with telling numbers."
    write_phantoms(here / 'drawn', patients=patients, size=48, progress=False)
    clinic = here / 'clinic of secrets'

    def renamed(text):
        return re.sub(r'patient(\d{5})', lambda m: f'patient{FIRST + STEP * int(m[1])}', text)

    for part in ('train', 'valid'):
        for folder in (here / 'drawn' / part).iterdir():
            shutil.copytree(folder, clinic / part / renamed(folder.name))
        labels = (here / 'drawn' / f'{part}.csv').read_text()
        (clinic / f'{part}.csv').write_text(renamed(labels))
    shutil.rmtree(here / 'drawn')
    return clinic


def spellings(clinic):
    "What would give a patient away: (names as text, digests as bytes, numbers)."
    texts = [path.name for part in ('train', 'valid') for path in (clinic / part).iterdir()]
    digits = [text.removeprefix('patient') for text in texts]
    named = [*texts, *digits, *(number.zfill(8) for number in digits)]
    digests = set()
    for text in named:
        for hashed in (hashlib.md5, hashlib.sha1, hashlib.sha256, hashlib.blake2b, hashlib.sha512):
            digests.add(hashed(text.encode()).digest()[:8])
        for size in (4, 8, 16, 20, 32):
            digests.add(hashlib.blake2b(text.encode(), digest_size=size).digest()[:8])
    return digits, digests, {int(number) for number in digits if int(number) > FIRST}


def parts_of(name, data):
    "A file and, where it is an archive, its members: (name, bytes)."
    yield name, data
    if data[:2] == b'PK':
        with zipfile.ZipFile(io.BytesIO(data)) as packed:
            for member in packed.namelist():
                yield from parts_of(f'{name}:{member}', packed.read(member))


def telling(name, data, digits, digests, numbers):
    "What a part of a file gives away of patients."
    text = data.decode('latin-1')
    found = [number for number in re.findall(r'(?<!\d)0*(81[2-9]\d{4})(?!\d)', text)
             if number in digits]  # fmt: skip
    found += re.findall(r'patient\d{5,}', text)
    hexes = re.findall('[0-9a-f]{16,}', text)
    found += [word for word in hexes if bytes.fromhex(word[:16]) in digests]
    if name.endswith('.npy'):
        values = np.load(io.BytesIO(data))
        if values.dtype.kind in 'iuf': found += numbers.intersection(values.ravel().tolist())
        else: found += [v for v in values.ravel().astype(str) if any(d in v for d in digits)]
        found += [d.hex() for d in digests if d in data or d[::-1] in data]
    return found


def leaks(files, clinic):
    "Every word of a patient or of a folder in some files, as `file: word`."
    digits, digests, numbers = spellings(clinic)
    digits = set(digits)
    folders = {str(clinic.parent), tempfile.gettempdir() + '/', str(Path.home()) + '/'}
    folders.add(os.getcwd() + '/')  # the last name of the folder is the name of the data set
    found = []
    for path in files:
        for name, data in parts_of(path.name, path.read_bytes()):
            found += [f'{name}: {word}' for word in telling(name, data, digits, digests, numbers)]
            found += [f'{name}: {f}' for f in folders if f.encode() in data]
    return found


def everything(folder):
    return [path for path in folder.rglob('*') if path.is_file()]


# A run, as a library makes it


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "A clinic, and what a run on it leaves: (clinic, run folder, bundle)."
    from test_evidence import evaluated
    here = tmp_path_factory.mktemp('left')
    clinic = write_clinic(here, 260)
    small = dict(backbone='conv4', siamese_epochs=1, episodes=2, bootstrap=200, match_on='')
    places = dict(dataset_path=clinic, cache_path=here / 'c', runs_path=here / 'r')
    lab = open_lab(load_settings(
        'tiny', dataset='chexpert', novel_findings='Cardiomegaly', run='run', **small, **places
    ))  # fmt: skip
    evaluated(lab, train_siamese(lab))
    made = bundle_of_run(lab)
    paths = [lab.table.root / path for path in lab.table.frame['path']]
    ill = np.flatnonzero(lab.table.positive('Cardiomegaly'))[:3]
    well = np.flatnonzero(lab.table.positive('No Finding'))[:3]
    ill, well = (made.read([paths[row] for row in rows]) for rows in (ill, well))
    made.findings['Cardiomegaly'] = made.teach('Cardiomegaly', ill, well, steps=0)
    made.save(here / 'bundle')
    return clinic, lab.folder, here / 'bundle'


def test_the_search_finds_what_it_looks_for(tmp_path):
    clinic = write_clinic(tmp_path, 3)
    digits = next((clinic / 'train').iterdir()).name.removeprefix('patient')
    hidden = {
        'a.json': json.dumps(dict(patient=f'000{digits}')),
        'b.json': hashlib.sha1(f'patient{digits}'.encode()).hexdigest(),
        'c.html': f'<td>{hashlib.sha256(digits.encode()).hexdigest()[:16]}</td>',
        'd.txt': f'read from {clinic}',
    }
    for name, text in hidden.items():
        (tmp_path / name).write_text(text)
    np.savez(tmp_path / 'e.npz', who=np.array([3, int(digits)]))
    np.savez(tmp_path / 'f.npz', who=np.array([f'patient{digits}']))
    files = [tmp_path / name for name in (*hidden, 'e.npz', 'f.npz')]
    assert {word.split(':')[0] for word in leaks(files, clinic)} == {path.name for path in files}


@pytest.mark.slow
def test_a_bundle_names_nobody(run):
    clinic, _, bundle = run
    assert len(everything(bundle)) >= 2 and leaks(everything(bundle), clinic) == []
    assert Bundle.load(bundle).findings


LOCAL = {'config.yaml'}  # where the run finds its data, to go on; it says so


@pytest.mark.slow
def test_a_run_names_nobody(run):
    clinic, folder, _ = run
    files = [path for path in everything(folder) if path.name not in LOCAL]
    names = {path.name for path in files}
    assert {'results.json', 'answers.npz', 'metrics.jsonl'} <= names
    assert leaks(files, clinic) == []


@pytest.mark.slow
def test_notebooks_and_report_name_nobody(tmp_path):
    clinic = write_clinic(tmp_path, 500)
    shutil.copy(Path(__file__).parents[1] / 'config' / 'tiny.yaml', tmp_path)
    words = dict(dataset='chexpert', dataset_path=clinic, cache_path='cache', runs_path='runs')
    settings = [word for key, value in words.items() for word in ('-p', key, str(value))]
    code, _, said = smlxray('run', '--config', 'tiny.yaml', *settings, cwd=tmp_path)
    assert code == 0, said
    files = [path for path in everything(tmp_path / 'runs') if path.name not in LOCAL]
    assert {'.html', '.ipynb', '.npz', '.safetensors'} <= {path.suffix for path in files}
    assert leaks(files, clinic) == []
