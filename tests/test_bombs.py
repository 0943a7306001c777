"Files that ask for more than they look: each ends in a sentence, within five seconds and 1 GB."

import gzip, io, struct, subprocess, sys, zipfile, zlib

import numpy as np
import pytest
from PIL import Image

from smlxray.base import SmlxrayError


def chunk(kind, body):
    return struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body))


def ihdr(side, bits=8, colour=0):
    return chunk(b'IHDR', struct.pack('>IIBBBBB', side, side, bits, colour, 0, 0, 0))


def png(*parts, side=13_300):
    "A PNG of one grey whose chunks stand in any order."
    packer, rows = zlib.compressobj(), b''
    for _ in range(side): rows += packer.compress(bytes(side + 1))
    body = chunk(b'IDAT', rows + packer.flush())
    return b'\x89PNG\r\n\x1a\n' + b''.join(parts) + body + chunk(b'IEND', b'')


def many_scans(side=7000, scans=3000):
    "A progressive JPEG that goes over all its pixels again and again."
    out = io.BytesIO()
    Image.fromarray(np.zeros((side, side), np.uint8)).save(out, 'JPEG', progressive=True)
    data = out.getvalue()
    last = data.rindex(b'\xff\xda')
    table = data.rindex(b'\xff\xc4', 0, last)
    first = data.index(b'\xff\xda')
    return data[:-2] + data[last:-2] * scans + b'\xff\xd9' if table > first else data


def many_fields(count=1_500_000):
    "A DICOM file of empty private fields."
    from pydicom.uid import ImplicitVRLittleEndian

    meta = b'\2\0\x10\0UI' + struct.pack('<H', 18) + ImplicitVRLittleEndian.encode() + b'\0'
    fields = b''.join(struct.pack('<HHI', 9 + 2 * (k >> 16), k & 0xFFFF, 0) for k in range(count))
    return bytes(128) + b'DICM' + meta + fields


def jpeg2000_behind_box(side=12_000):
    "A DICOM file of 64 x 64 whose JPEG 2000 frame, behind a long box, is larger."
    from test_images import dicom
    from pydicom.uid import JPEG2000Lossless

    out = io.BytesIO()
    Image.fromarray(np.zeros((side, side), np.uint8)).save(out, 'JPEG2000', irreversible=False)
    data = out.getvalue()
    at = data.index(b'ftyp') - 4
    size = int.from_bytes(data[at : at + 4], 'big')
    box = struct.pack('>I4s', 6008, b'uuid') + bytes(6000)
    frame = data[: at + size] + box + data[at + size :]
    return dicom(np.zeros((64, 64), np.uint8), 8, JPEG2000Lossless, frame)


def deflated_behind_long_uid():
    "A deflated DICOM file whose transfer syntax stands behind a UID of 5,000 bytes."
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    def field(group, element, kind, value):
        return struct.pack('<HH', group, element) + kind + struct.pack('<H', len(value)) + value

    uid = field(2, 2, b'UI', b'1.2.3'.ljust(5000, b'4'))
    syntax = DeflatedExplicitVRLittleEndian.encode()
    syntax = field(2, 16, b'UI', syntax + b'\0' * (len(syntax) % 2))
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    body = b''.join(packer.compress(bytes(1 << 20)) for _ in range(2000)) + packer.flush()
    return bytes(128) + b'DICM' + uid + syntax + body


BOMBS = {
    'two-ihdr.png': lambda: png(ihdr(50), ihdr(13_300)),
    'late-ihdr.png': lambda: png(chunk(b'tEXt', b'a\0' + bytes(11)), ihdr(13_300)),
    'fields.dcm': many_fields,
    'box.dcm': jpeg2000_behind_box,
    'scans.jpg': many_scans,
    'deflated.dcm': deflated_behind_long_uid,
    'chunks.png': lambda: b'\x89PNG\r\n\x1a\n' + ihdr(50) + chunk(b'IDAT', b'') * 3_000_000,
    'segments.jpg': lambda: b'\xff\xd8' + b'\xff\xe5\0\2' * 6_000_000,
}

ALONE = """
import resource, sys
from smlxray.base import SmlxrayError
from smlxray.images import read_picture
import smlxray.base
before = resource.getrusage(resource.RUSAGE_SELF)
try:
    read_picture(sys.argv[1])
    said = 'read'
except SmlxrayError as error:
    said = str(error)
for workers in smlxray.base._idle.values():
    for worker in workers: worker.end()
own = resource.getrusage(resource.RUSAGE_SELF)
child = resource.getrusage(resource.RUSAGE_CHILDREN)
spent = own.ru_utime + own.ru_stime - before.ru_utime - before.ru_stime
here = next(x for x in open('/proc/self/status') if x.startswith('VmHWM'))
most = max(int(here.split()[1]), child.ru_maxrss)
print(spent + child.ru_utime + child.ru_stime, most / 1e6, said)
"""


SLOW = ('box.dcm', 'chunks.png', 'deflated.dcm', 'fields.dcm')  # seconds to make, or to refuse
CASES = [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in BOMBS]


@pytest.mark.parametrize('name', CASES)
def test_image_bombs_end_in_a_sentence(name, tmp_path):
    file = tmp_path / name
    file.write_bytes(BOMBS[name]())
    out = subprocess.run([sys.executable, '-c', ALONE, str(file)], capture_output=True, text=True)
    assert out.returncode == 0, out.stderr[-800:]
    seconds, gigabytes, said = out.stdout.split(' ', 2)
    print(name, file.stat().st_size, seconds, gigabytes, said)
    assert name in said and said.strip().endswith('.') and '\n' not in said.strip()
    assert float(seconds) < 6 and float(gigabytes) < 1


def test_packed_tables_do_not_grow(tmp_path):
    from smlxray.readers import read_xrays

    with gzip.open(tmp_path / 'Data_Entry_2017_v2020.csv.gz', 'w') as file:
        for _ in range(300): file.write(b'a' * (1 << 20))
    with pytest.raises(SmlxrayError, match='Data_Entry.*hundredfold'):
        read_xrays(tmp_path, 'nih', 'all')


def npz(file, shape, content):
    "A ChestMNIST whose images claim a shape."
    with zipfile.ZipFile(file, 'w', zipfile.ZIP_DEFLATED) as archive:
        for part in ('train', 'val', 'test'):
            header, labels = io.BytesIO(), io.BytesIO()
            told = dict(descr='|u1', fortran_order=False, shape=shape)
            np.lib.format.write_array_header_1_0(header, told)
            archive.writestr(f'{part}_images.npy', header.getvalue() + bytes(content))
            np.save(labels, np.zeros((1, 14), np.uint8))
            archive.writestr(f'{part}_labels.npy', labels.getvalue())


def test_arrays_are_as_large_as_they_claim(tmp_path):
    from smlxray.readers import read_chestmnist

    liar, bomb = ((1, 60000, 60000), 100, 'claims'), ((1, 6000, 6000), 36_000_000, 'grow')
    for shape, content, words in (liar, bomb):
        npz(tmp_path / 'chestmnist.npz', shape, content)
        with pytest.raises(SmlxrayError, match=words): read_chestmnist(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ['chestmnist.npz']


def test_settings_and_mappings_do_not_grow(tmp_path):
    from smlxray.config import load_settings
    from smlxray.readers import read_table

    rows = [f'{b}: &{b} [{", ".join([f"*{a}"] * 9)}]' for a, b in zip('abcdefgh', 'bcdefghi')]
    (tmp_path / 'a.yaml').write_text('\n'.join(['a: &a [x, x]', *rows, 'meta: {shots: *i}']))
    (tmp_path / 'm.yaml').write_text('{a: ' * 20_000)
    with pytest.raises(SmlxrayError, match='alias'):
        load_settings('tiny', config=tmp_path / 'a.yaml')
    with pytest.raises(SmlxrayError, match='deeply'): read_table(tmp_path, tmp_path / 'm.yaml')


def test_a_network_is_built_only_for_weights_that_are_there():
    from smlxray.siamese import SiameseNet
    from smlxray.train import network_of

    net = SiameseNet('conv4', 8)
    claimed = net.to_config() | dict(embedding_dim=2_000_000_000)
    with pytest.raises(ValueError, match='not that of its network'):
        network_of(claimed, net.state_dict())


def test_a_compressed_finding_is_refused():
    from smlxray.app.teach import PARTS, import_finding

    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w', zipfile.ZIP_DEFLATED) as archive:
        for part in PARTS: archive.writestr(part, b'[' * 50_000_000)
    with pytest.raises(SmlxrayError, match='not a finding that was exported here'):
        import_finding(out.getvalue(), 'finding.zip')
