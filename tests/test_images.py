"Compressed DICOM of every kind, hostile files from disk, and memory that a bomb must not take."

import io, multiprocessing, os, struct, subprocess, sys, warnings, zlib

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    ExplicitVRLittleEndian,
    JPEG2000,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

import smlxray.base
from smlxray.base import ImageError
from smlxray.images import decode, read_image
from smlxray.phantom import draw_phantom

pytestmark = pytest.mark.light  # needs no torch

XRAY = draw_phantom(patient=5, findings=['Pneumothorax'], size=160).image
FILM = XRAY.astype(np.uint16) * 16 + 3  # twelve bits


def dicom(stored, bits, syntax=ExplicitVRLittleEndian, frame=None, **fields):
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = '1.2.840.10008.5.1.4.1.1.1.1'
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = '1.2.3'
    ds.file_meta.TransferSyntaxUID = syntax if frame else ExplicitVRLittleEndian
    ds.Rows, ds.Columns, ds.SamplesPerPixel = (*stored.shape, 1)
    ds.BitsStored, ds.HighBit, ds.BitsAllocated = bits, bits - 1, 8 * stored.dtype.itemsize
    ds.PhotometricInterpretation, ds.PixelRepresentation = 'MONOCHROME2', 0
    ds.PixelData = encapsulate([frame]) if frame else stored.tobytes()
    ds['PixelData'].VR = 'OB' if frame or bits == 8 else 'OW'
    for key, value in fields.items():
        setattr(ds, key, value)
    if not frame and syntax != ExplicitVRLittleEndian:
        ds.compress(syntax, generate_instance_uid=False)
    out = io.BytesIO()
    ds.save_as(out, enforce_file_format=True)
    return out.getvalue()


def transcode(data, folder, syntax):
    "Compress by gdcm, which writes what pydicom cannot."
    gdcm = pytest.importorskip('gdcm')
    (folder / 'in.dcm').write_bytes(data)
    reader = gdcm.ImageReader()
    reader.SetFileName(str(folder / 'in.dcm'))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    writer.SetFileName(str(folder / 'out.dcm'))
    assert writer.Write()
    return (folder / 'out.dcm').read_bytes()


@pytest.mark.parametrize('syntax', [RLELossless, JPEG2000Lossless])
def test_lossless_by_pydicom(syntax):
    assert np.array_equal(decode(dicom(FILM, 12, syntax)), decode(dicom(FILM, 12)))


BY_GDCM = {
    'JPEGLosslessProcess14_1': JPEGLosslessSV1,
    'JPEGLSLossless': JPEGLSLossless,
    'JPEG2000Lossless': JPEG2000Lossless,
}


@pytest.mark.parametrize('name, uid', BY_GDCM.items())
def test_lossless_by_gdcm(tmp_path, name, uid):
    data = transcode(dicom(FILM, 12), tmp_path, name)
    assert pydicom.dcmread(io.BytesIO(data)).file_meta.TransferSyntaxUID == uid
    assert np.array_equal(decode(data), decode(dicom(FILM, 12)))


def test_jpeg_baseline_inside_dicom_equals_the_jpeg():
    out = io.BytesIO()
    Image.fromarray(XRAY).save(out, 'JPEG', quality=92)
    idle = dict(WindowCenter=128, WindowWidth=256)  # a window that changes nothing
    wide = decode(dicom(XRAY, 8, JPEGBaseline8Bit, out.getvalue(), **idle))
    assert np.array_equal(wide, decode(out.getvalue()))


def test_a_frame_larger_than_the_record_says_is_refused():
    big = io.BytesIO()
    Image.fromarray(np.zeros((4000, 4000), np.uint8)).save(big, 'JPEG')
    with pytest.raises(ImageError, match='lie.dcm claims 4000 x 4000'):
        decode(dicom(XRAY, 8, JPEGBaseline8Bit, big.getvalue()), 'lie.dcm', 10**6)
    big = io.BytesIO()
    Image.fromarray(np.zeros((2000, 3000), np.uint8)).save(big, 'JPEG2000')
    with pytest.raises(ImageError, match='lie.dcm claims 3000 x 2000'):
        decode(dicom(XRAY, 8, JPEG2000, big.getvalue()), 'lie.dcm', 10**6)


def test_a_missing_plugin_is_named(monkeypatch):
    monkeypatch.setattr(smlxray.base, '_inside', [True])  # a worker would not see what is missing
    data = dicom(FILM, 12, JPEG2000Lossless)
    import pydicom.pixels

    class Missing:
        is_available = False

    monkeypatch.setattr(pydicom.pixels, 'get_decoder', lambda uid: Missing)
    words = r"compressed as JPEG 2000 .*pip install 'smlxray\[dicom\]'"
    with pytest.raises(ImageError, match=words):
        decode(data, 'a.dcm')


def test_voi_lut_wins_over_nothing():
    lut = Dataset()
    lut.LUTDescriptor = [4096, 0, 12]
    lut['LUTDescriptor'].VR = 'US'
    table = (4095 - np.arange(4096)).astype(np.uint16)
    lut.LUTData = table.tobytes()
    lut['LUTData'].VR = 'OW'
    expected = (table[FILM] / 4095 * 255 + 0.5).astype(np.uint8)
    assert np.array_equal(decode(dicom(FILM, 12, VOILUTSequence=[lut])), expected)


@pytest.mark.parametrize('function', ['SIGMOID', 'LINEAR_EXACT'])
def test_window_functions_agree_with_pydicom(function):
    from pydicom.pixels import apply_windowing

    data = dicom(FILM, 12, WindowCenter=2000, WindowWidth=1500, VOILUTFunction=function)
    theirs = apply_windowing(FILM, pydicom.dcmread(io.BytesIO(data))) / 4095 * 255
    assert np.abs(decode(data).astype(float) - theirs).max() <= 0.51


def jpeg_inside():
    out = io.BytesIO()
    Image.fromarray(XRAY).save(out, 'JPEG', quality=92)
    return dicom(XRAY, 8, JPEGBaseline8Bit, out.getvalue())


def test_damaged_dicom_gives_pixels_or_one_error():
    "Random damage, with warnings turned into errors: none may leak."
    rng, seen = np.random.default_rng(1), {'pixels': 0, 'error': 0}
    sources = [
        dicom(FILM, 12, WindowCenter=2000, WindowWidth=1500),
        dicom(FILM, 12, RLELossless),
        dicom(FILM, 12, JPEG2000Lossless),
        jpeg_inside(),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for k in range(300):
            hurt = bytearray(sources[k % 4])
            for at in rng.integers(0, min(len(hurt), 900 if k % 2 else len(hurt)), 8):
                hurt[at] = rng.integers(256)
            try:
                assert decode(bytes(hurt), 'x.dcm', max_pixels=10**6).dtype == np.uint8
                seen['pixels'] += 1
            except ImageError as error:
                assert str(error).startswith('x.dcm') and '\n' not in str(error)
                seen['error'] += 1
    assert min(seen.values()) > 20, seen


@pytest.mark.process
def test_a_decoder_that_crashes_takes_nothing_along(tmp_path):
    """Bytes of a JPEG header make GDCM end its process (abort, or a segmentation fault): one file
    is lost, the next is read."""
    good = transcode(dicom(FILM, 12), tmp_path, 'JPEGLosslessProcess14_1')
    whole, crashed = decode(good), 0
    for source in (good, jpeg_inside()):
        start = source.find(b'\xff\xd8\xff')
        for at in range(start + 2, start + 40, 2):
            hurt = bytearray(source)
            hurt[at] ^= 255
            try:
                decode(bytes(hurt), 'x.dcm')
            except ImageError as error:
                crashed += 'decoder crashed' in str(error)
    assert crashed and np.array_equal(decode(good), whole)


def test_a_forked_process_has_a_decoder_of_its_own(tmp_path):
    data = dicom(FILM, 12, RLELossless)
    mine = decode(data)
    with multiprocessing.get_context('fork').Pool(2) as pool:
        theirs = pool.map(decode, [data] * 8)
    assert all(np.array_equal(t, mine) for t in theirs) and np.array_equal(decode(data), mine)


def test_a_pipe_is_no_image(tmp_path):
    os.mkfifo(tmp_path / 'x.png')
    for path in (tmp_path / 'x.png', tmp_path, '/dev/zero'):
        with pytest.raises(ImageError, match='no file but a folder, a pipe or a device'):
            read_image(path)
    with pytest.raises(ImageError, match='is no path'):
        read_image('a\0b.png')


@pytest.mark.process
def test_a_bomb_takes_no_memory(tmp_path):
    "30,000 x 30,000 real pixels in a PNG of under a megabyte are refused without growing by 50 MB."

    def chunk(kind, data):
        check = struct.pack('>I', zlib.crc32(kind + data))
        return struct.pack('>I', len(data)) + kind + data + check

    raw = zlib.compressobj(9)
    body = b''.join(raw.compress(bytes(30_001)) for _ in range(30_000)) + raw.flush()
    size = struct.pack('>IIBBBBB', 30_000, 30_000, 8, 0, 0, 0, 0)
    chunks = chunk(b'IHDR', size) + chunk(b'IDAT', body) + chunk(b'IEND', b'')
    bomb = tmp_path / 'bomb.png'
    bomb.write_bytes(b'\x89PNG\r\n\x1a\n' + chunks)
    code = (
        "import resource, sys; from smlxray.images import read_image\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: read_image(sys.argv[1])\n"
        "except ValueError as e: print(e)\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)"
    )
    command = [sys.executable, '-c', code, str(bomb)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    said, grown = done.stdout.splitlines()
    assert 'claims 30000 x 30000 = 900.0 million pixels' in said and int(grown) < 50


def test_paths_that_are_no_images(tmp_path):
    (tmp_path / 'text.jpg').write_text('not an image')
    (tmp_path / 'zero.jpg').touch()
    with pytest.raises(ImageError, match='text.jpg is not an image'):
        read_image(tmp_path / 'text.jpg')
    with pytest.raises(ImageError, match=r'zero.jpg is empty \(0 bytes\)'):
        read_image(tmp_path / 'zero.jpg')


def test_a_missing_package_is_no_damage(tmp_path, monkeypatch):
    Image.fromarray(XRAY).save(tmp_path / 'sound.png')

    def lacks(*_):
        raise ModuleNotFoundError("No module named 'nowhere'", name='nowhere')

    monkeypatch.setattr('smlxray.images._decode_png', lacks)
    with pytest.raises(ImageError, match="decoded here: No module named 'nowhere'; install that"):
        read_image(tmp_path / 'sound.png')
    with pytest.raises(ModuleNotFoundError), smlxray.base.own_file(tmp_path, 'make it again'):
        lacks()
