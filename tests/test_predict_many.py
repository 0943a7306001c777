"Two thousand X-rays of three kinds: all answered, and no more memory at the end than before."

import os

import pytest, torch
from PIL import Image
from smlxray.bundle import Bundle, image_files, predict_files
from smlxray.cli import write_predictions
from smlxray.config import load_settings
from smlxray.images import read_image
from smlxray.phantom import ensure_phantoms
from smlxray.siamese import SiameseNet

pytestmark = pytest.mark.slow
FILES, BATCH = 2000, 64


def resident() -> float:
    "Megabytes of memory that this process holds now."
    with open('/proc/self/statm') as f:
        return int(f.read().split()[1]) * os.sysconf('SC_PAGE_SIZE') / 2**20


def save_dicom(image, path):
    import pydicom
    from pydicom.dataset import FileDataset, FileMetaDataset

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = '1.2.840.10008.5.1.4.1.1.1.1'
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    ds = FileDataset(str(path), {}, file_meta=meta, preamble=b'\0' * 128)
    ds.Rows, ds.Columns, ds.PhotometricInterpretation, ds.SamplesPerPixel = (
        *image.shape,
        'MONOCHROME2',
        1,
    )
    ds.BitsAllocated = ds.BitsStored = 8
    ds.HighBit, ds.PixelRepresentation, ds.PixelData = 7, 0, image.tobytes()
    ds.save_as(path, enforce_file_format=True)


@pytest.fixture(scope='module')
def scans(tmp_path_factory):
    "Phantoms as JPEG, PNG and DICOM in turn, and three files that are no images."
    here = tmp_path_factory.mktemp('scans')
    out = here / 'mixed'
    out.mkdir()
    drawn = image_files(ensure_phantoms(here / 'phantoms', patients=420, size=128, progress=False))
    for k in range(FILES):
        image = read_image(drawn[k % len(drawn)])
        if k % 3 == 2:
            save_dicom(image, out / f'{k:05d}.dcm')
        else:
            Image.fromarray(image).save(out / f'{k:05d}.{"png" if k % 3 else "jpg"}')
    for k in range(3):
        (out / f'broken{k}.png').write_bytes(b'\x89PNG\r\n\x1a\n')
    return out


@pytest.fixture(scope='module')
def bundle(scans):
    torch.manual_seed(0)
    settings = load_settings('demo')
    b = Bundle(
        SiameseNet(settings.siamese.backbone, settings.siamese.embedding_dim), settings, {}, {}
    )
    x = b.read(image_files(scans)[:64])
    features = b.look(x).features
    b.tensors = {
        'train.mean': features.mean(0),
        'train.whitener': torch.eye(features.shape[1]),
        'train.far': torch.tensor(9.0),
    }
    for k in range(12):
        b.findings[f'finding {k}'] = b.teach(
            f'finding {k}', x[k : k + 26], x[k + 26 : k + 52], steps=0
        )
    return b


def test_every_file_is_answered_and_memory_stays_flat(scans, bundle, tmp_path):
    held = []
    for turn in range(3):
        said = write_predictions(bundle, scans, tmp_path / f'{turn}.csv', batch_size=BATCH)
        assert (said['rows'], said['errors']) == (FILES + 3, 3)
        held.append(resident())
    assert held[-1] - held[0] < 40, held


def test_memory_is_flat_within_one_run(scans, bundle):
    held = [resident() for _ in predict_files(bundle, image_files(scans), batch_size=BATCH)]
    assert max(held[5:]) - held[4] < 40
