"Each kind of odd DICOM file, decoded right or refused; GDCM and DCMTK as independent witnesses."

import io, shutil, subprocess
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
)

from smlxray.base import ImageError
from smlxray.images import decode, decode_picture
from smlxray.phantom import draw_phantom

pytestmark = pytest.mark.light  # needs no torch

XRAY = draw_phantom(patient=11, findings=['Cardiomegaly'], size=96).image
LEVELS = (XRAY - float(XRAY.min())) / np.ptp(XRAY)
FILM = (LEVELS * 4095 + 0.5).astype(np.uint16)  # twelve bits, all of them
RIGHT = (FILM / 4095 * 255 + 0.5).astype(np.uint8)


def dicom(stored, bits=12, syntax=ExplicitVRLittleEndian, compress=None, **fields):
    "Write an array as a DICOM file."
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = '1.2.840.10008.5.1.4.1.1.1'
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = '1.2.3'
    ds.file_meta.TransferSyntaxUID = syntax
    ds.Rows, ds.Columns = stored.shape[:2]
    ds.SamplesPerPixel = 1 if stored.ndim == 2 else 3
    if stored.ndim == 3: ds.PlanarConfiguration = 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8 * stored.dtype.itemsize, bits, bits - 1
    ds.PhotometricInterpretation = 'MONOCHROME2' if stored.ndim == 2 else 'RGB'
    ds.PixelRepresentation = int(stored.dtype.kind == 'i')
    big = syntax == ExplicitVRBigEndian
    data = stored.astype(stored.dtype.newbyteorder('>' if big else '<')).tobytes()
    ds.add_new('PixelData', 'OW', data + b'\0' * (len(data) % 2))
    for key, value in fields.items():
        setattr(ds, key, value)
    return written(ds, compress)


def written(ds, compress=None):
    if compress: ds.compress(compress, generate_instance_uid=False)
    out = io.BytesIO()
    ds.save_as(out, enforce_file_format=True)
    return out.getvalue()


def changed(data, **fields):
    "A DICOM file with fields changed after its pixels were packed."
    ds = pydicom.dcmread(io.BytesIO(data))
    for key, value in fields.items():
        setattr(ds, key, value)
    return written(ds)


def kinds(data):
    "The kinds of the remarks that a file gets."
    return [remark.split(':')[0] for remark in decode_picture(data).remarks]


def near(a, b, most=1):
    return a.shape == b.shape and np.abs(a.astype(int) - b.astype(int)).max() <= most


# Windows


@pytest.mark.parametrize(
    'centre, width',
    [(2000, 0), (0, 1), (9000, 1), (2000, -400), (-3000, 500), (30000, 900), (2048, 4 * 10**6)],
)
def test_a_window_that_shows_nothing_is_not_followed(centre, width):
    data = dicom(FILM, WindowCenter=centre, WindowWidth=width)
    assert near(decode(data), RIGHT) and kinds(data) == ['window ignored']


def test_the_next_window_is_taken():
    data = dicom(FILM, WindowCenter=[-3000, 2048], WindowWidth=[500, 4096])
    assert near(decode(data), RIGHT) and kinds(data) == ['window ignored']


@pytest.mark.parametrize('function', ['LINEAR', 'LINEAR_EXACT', 'SIGMOID'])
@pytest.mark.parametrize('width', [-800, 0])
def test_no_function_makes_a_width_below_zero_possible(function, width):
    data = dicom(FILM, WindowCenter=2000, WindowWidth=width, VOILUTFunction=function)
    assert near(decode(data), RIGHT)


def test_small_units_make_small_windows():
    scaled = dict(RescaleSlope='0.0001', RescaleIntercept='0')
    data = dicom(FILM, WindowCenter='0.2048', WindowWidth='0.4095', **scaled)
    assert near(decode(data), RIGHT) and kinds(data) in ([], ['window ignored'])


def test_an_image_of_one_value_says_so():
    assert kinds(dicom(np.full_like(FILM, 700))) == ['one grey level']
    assert kinds(dicom((FILM > 2000).astype(np.uint16), bits=12)) == ['two grey levels']
    assert kinds(dicom((FILM > 2000).astype(np.uint16), WindowCenter=1, WindowWidth=2)) != []


# Numbers


NO_NUMBERS = [b'NaN   ', b'Inf   ', b'------', b'      ', b'1e999 ', b'\0\0\0\0\0\0']


@pytest.mark.parametrize('text', NO_NUMBERS)
@pytest.mark.parametrize('syntax', [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_malformed_numbers_are_as_good_as_none(text, syntax):
    sound = dicom(FILM, syntax=syntax, WindowCenter='2048.5', WindowWidth='4096.0')
    slopes = dicom(FILM, syntax=syntax, RescaleSlope='1.0002', RescaleIntercept='0.0001')
    for data, field in ((sound, b'2048.5'), (sound, b'4096.0'), (slopes, b'1.0002')):
        hurt = data.replace(field, text)
        assert near(decode(hurt), RIGHT)
        blank = not text.strip(b' \0')
        assert blank or 'malformed number' in kinds(hurt)


def test_a_comma_is_a_decimal_point():
    data = dicom(FILM, WindowCenter='2100.5', WindowWidth='3000.0')
    assert np.array_equal(decode(data.replace(b'2100.5', b'2100,5')), decode(data))


@pytest.mark.parametrize('field', ['BitsStored', 'HighBit', 'PixelRepresentation', 'BitsAllocated'])
def test_blank_fields_of_the_layout(field):
    assert near(decode(dicom(FILM, **{field: None})), RIGHT)


def test_no_text_of_a_field_is_quoted():
    data = dicom(FILM, WindowCenter='2048.5', WindowWidth='4096.0', NumberOfFrames='1')
    for field in (b'2048.5', b'4096.0'):
        assert 'Muller' not in str(decode_picture(data.replace(field, b'Muller')).remarks)


# Tables


def table(entries, first=0, bits=12, words='<u2', kind='OW'):
    item = Dataset()
    item.add_new('LUTDescriptor', 'SS' if first < 0 else 'US', [len(entries) % 65536, first, bits])
    values = np.asarray(entries).astype(words)
    item.add_new('LUTData', kind, values.tolist() if kind == 'US' else values.tobytes())
    return [item]


def curve(top, count=4096):
    return (np.linspace(0, 1, count) ** 0.5 * top).round().astype(int)


CURVED = (curve(4095)[FILM] / 4095 * 255 + 0.5).astype(np.uint8)


@pytest.mark.parametrize('kind', ['OW', 'US'])
@pytest.mark.parametrize('true', [8, 10, 12, 14, 16])
@pytest.mark.parametrize('said', [8, 10, 12, 14, 16])
def test_tables_of_any_declared_and_true_width(true, said, kind):
    entries = curve(2**true - 1)
    data = dicom(FILM, VOILUTSequence=table(entries, bits=said, kind=kind))
    assert near(decode(data), CURVED)
    assert kinds(data) == ([] if true == said else ['VOI LUT'])
    data = dicom(FILM, ModalityLUTSequence=table(entries, bits=said, kind=kind))
    assert near(decode(data), CURVED) and kinds(data) == []


@pytest.mark.parametrize('count', [255, 256])
def test_entries_of_one_byte(count):
    small = np.minimum(FILM >> 4, count - 1)
    right = (curve(255, count)[small]).astype(np.uint8)
    bytes_ = curve(255, count).astype('u1').tobytes()
    item = table(curve(255, count), bits=8)
    item[0].LUTData = bytes_ + b'\0' * (count % 2)
    assert near(decode(dicom(small.astype(np.uint16), VOILUTSequence=item)), right)


@pytest.mark.parametrize('first', [-2048, 63488])
def test_the_sign_of_a_tables_first_value(first):
    signed = (FILM.astype(int) - 2048).astype(np.int16)
    for key in ('VOILUTSequence', 'ModalityLUTSequence'):
        data = dicom(signed, 16, **{key: table(curve(4095), first)})
        assert near(decode(data), CURVED), key
    high = (FILM.astype(int) + 40000).astype(np.uint16)
    assert near(decode(dicom(high, 16, VOILUTSequence=table(curve(4095), 40000))), CURVED)


def test_a_big_endian_table():
    entries = table(curve(4095), words='>u2')
    data = dicom(FILM, syntax=ExplicitVRBigEndian, VOILUTSequence=entries)
    assert near(decode(data), CURVED)


def test_tables_that_are_none():
    empty = Dataset()
    empty.add_new('LUTDescriptor', 'US', None)
    empty.add_new('LUTData', 'OW', None)
    broken = table(curve(4095))
    broken[0].LUTDescriptor = [4096]
    for key in ('VOILUTSequence', 'ModalityLUTSequence'):
        for item in ([empty], [Dataset()], broken, table(np.zeros(4096)), table(np.full(9, 77))):
            data = dicom(FILM, **{key: item})
            assert near(decode(data), RIGHT) and kinds(data)


# Signs, padding


FRAME = np.zeros(FILM.shape, bool)
FRAME[:9] = FRAME[:, :7] = True


def framed(values, padding):
    inside = values[~FRAME].astype(float)
    right = (np.clip((values - inside.min()) / np.ptp(inside), 0, 1) * 255 + 0.5).astype(np.uint8)
    return np.where(FRAME, padding, values).astype(values.dtype), np.where(FRAME, 0, right)


@pytest.mark.parametrize('kind', ['US', 'SS'])
@pytest.mark.parametrize('syntax', [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_padding_of_either_sign(kind, syntax):
    signed = (FILM.astype(int) - 2048).astype(np.int16)
    for values, padding in ((signed, -20000), (FILM, 63488)):
        stored, right = framed(values, padding)
        ds = pydicom.dcmread(io.BytesIO(dicom(stored, 16, syntax=syntax)))
        written_as = padding % 65536 if kind == 'US' else (padding + 32768) % 65536 - 32768
        ds.add_new('PixelPaddingValue', kind, written_as)
        assert near(decode(written(ds)), right), (kind, padding)


@pytest.mark.parametrize('ends', [(63000, 63500), (63500, 63000), (62000, 65535)])
def test_a_range_of_padding(ends):
    stored, right = framed(FILM, 63000)
    stored[:4] = 63500
    data = dicom(stored, 16, PixelPaddingValue=ends[0], PixelPaddingRangeLimit=ends[1])
    assert near(decode(data), right)


def test_a_range_of_signed_padding():
    signed = (FILM.astype(int) - 2048).astype(np.int16)
    stored, right = framed(signed, -30000)
    stored[:4] = -29000
    ds = pydicom.dcmread(io.BytesIO(dicom(stored, 16)))
    ds.add_new('PixelPaddingValue', 'US', 65536 - 30000)
    ds.add_new('PixelPaddingRangeLimit', 'US', 65536 - 29000)
    assert near(decode(written(ds)), right)


# Bits


OVERLAY = np.zeros(FILM.shape, np.uint16)
OVERLAY[10:30, 20:60] = 1


@pytest.mark.parametrize('compress', [None, RLELossless, JPEG2000Lossless])
@pytest.mark.parametrize('bits', [(12,), (15,), (12, 13, 14, 15)])
def test_bits_above_those_that_count(compress, bits):
    noted = FILM | sum(OVERLAY << bit for bit in bits).astype(np.uint16)
    data = changed(dicom(noted, 16, compress=compress), BitsStored=12, HighBit=11)
    assert near(decode(data), RIGHT) and kinds(data) == ['overlay']


@pytest.mark.parametrize('compress', [None, RLELossless, JPEG2000Lossless])
@pytest.mark.parametrize('bits, high', [(12, 15), (12, 13), (10, 11), (8, 15)])
def test_bits_that_are_not_the_lowest(compress, bits, high):
    stored = (FILM >> (12 - bits)) << (high + 1 - bits)
    data = changed(dicom(stored, 16, compress=compress), BitsStored=bits, HighBit=high)
    top = 2**bits - 1
    right = ((FILM >> (12 - bits)) / top * 255 + 0.5).astype(np.uint8)
    assert near(decode(data), right) and kinds(data) == []
    with_window = changed(data, WindowCenter=top / 2 + 1, WindowWidth=top + 1)
    assert near(decode(with_window), right)


def test_bits_below_those_that_count():
    noted = (FILM << 4) | OVERLAY
    assert near(decode(dicom(noted, HighBit=15)), RIGHT)


def test_a_record_that_names_too_few_bits():
    wide = FILM.astype(np.uint16) * 16 + 15
    data = dicom(wide, 12)
    assert near(decode(data), RIGHT) and kinds(data) == ['BitsStored']


@pytest.mark.parametrize('compress', [None, RLELossless, JPEG2000Lossless])
def test_signed_values_with_and_without_their_sign_bits(compress):
    signed = (FILM.astype(int) - 2048).astype(np.int16)
    for stored in (signed, (signed.view(np.uint16) & 0xFFF).view(np.int16)):
        data = changed(dicom(stored, 16, compress=compress), BitsStored=12, HighBit=11)
        assert near(decode(data), RIGHT) and kinds(data) == []


# Polarity and colour


def test_polarity():
    for kind, shape, inverted, said in [
        ('MONOCHROME1', '', True, False),
        ('MONOCHROME1', 'INVERSE', True, False),
        ('MONOCHROME1', 'IDENTITY', True, True),
        ('MONOCHROME2', 'INVERSE', True, True),
        ('MONOCHROME2', 'IDENTITY', False, False),
    ]:
        data = dicom(FILM, PhotometricInterpretation=kind, PresentationLUTShape=shape)
        assert near(decode(data), 255 - RIGHT if inverted else RIGHT)
        assert kinds(data) == (['polarity'] if said else [])


@pytest.mark.parametrize('compress', [None, RLELossless])
@pytest.mark.parametrize('bits', [10, 12, 16])
def test_colour_of_more_than_eight_bits(bits, compress):
    grey = FILM << 4 >> (16 - bits)
    data = dicom(grey[..., None].repeat(3, 2), bits, compress=compress)
    assert near(decode(data), (grey / (2**bits - 1) * 255 + 0.5).astype(np.uint8))


def test_twelve_bits_of_colour_in_sixteen():
    data = dicom(FILM[..., None].repeat(3, 2), 16)
    assert near(decode(data), RIGHT) and kinds(data) == ['depth']


# Files without preamble or transfer syntax


@pytest.mark.parametrize(
    'syntax', [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian]
)
def test_without_preamble_or_description(syntax):
    whole = dicom(FILM, syntax=syntax)
    ds = pydicom.dcmread(io.BytesIO(whole))
    del ds.file_meta
    bare, implicit = io.BytesIO(), syntax == ImplicitVRLittleEndian
    little = syntax != ExplicitVRBigEndian
    pydicom.dcmwrite(bare, ds, implicit_vr=implicit, little_endian=little)
    without = bare.getvalue()[132:] if bare.getvalue()[128:132] == b'DICM' else bare.getvalue()
    for data in (without, whole[132:], whole[128:], bytes(128) + whole[132:]):
        assert near(decode(data), RIGHT)
        assert 'preamble' in kinds(data)


@pytest.mark.parametrize('compress', [None, RLELossless, JPEG2000Lossless])
def test_without_transfer_syntax(compress):
    ds = pydicom.dcmread(io.BytesIO(dicom(FILM, compress=compress)))
    implicit, little = ds.original_encoding
    for missing in (True, False):
        if missing: del ds.file_meta.TransferSyntaxUID
        else: ds.file_meta.TransferSyntaxUID = ''
        out = io.BytesIO()
        pydicom.dcmwrite(out, ds, implicit_vr=implicit, little_endian=little)
        assert near(decode(out.getvalue()), RIGHT)
        assert kinds(out.getvalue()) == ['transfer syntax']


def test_a_transfer_syntax_that_is_wrong():
    data = dicom(FILM, compress=RLELossless)
    uid = str(RLELossless).encode()
    wrong = data.replace(uid, b'1.2.840.10008.1.2.1'.ljust(len(uid), b'\0'))
    assert near(decode(wrong), RIGHT) and kinds(wrong) == ['transfer syntax']


@pytest.mark.parametrize('allocated', [8, 16])
def test_a_jpeg_of_eight_bits_in_a_record_of_sixteen(allocated):
    out = io.BytesIO()
    Image.fromarray(XRAY).save(out, 'JPEG', quality=95)
    ds = pydicom.dcmread(io.BytesIO(dicom(XRAY, 8)))
    ds.BitsAllocated = allocated
    ds.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    ds.add_new('PixelData', 'OB', encapsulate([out.getvalue()]))
    frame = np.array(Image.open(out)).astype(float)
    right = ((frame - frame.min()) / np.ptp(frame) * 255 + 0.5).astype(np.uint8)
    assert near(decode(written(ds)), right)


# Witnesses


def sources():
    "The test files that come with pydicom."
    return sorted((Path(pydicom.__file__).parent / 'data/test_files').glob('*.dcm'))


def test_twelve_bit_jpeg_names_its_decoder():
    if pydicom.pixels.get_decoder('1.2.840.10008.1.2.4.51')._available.get('pylibjpeg'):
        pytest.skip('pylibjpeg-libjpeg is installed')
    path = next(p for p in sources() if p.name == 'JPGExtended.dcm')
    with pytest.raises(ImageError, match='no installed decoder reads; install pylibjpeg-libjpeg'):
        decode(path.read_bytes())


def by_dcmtk(path, folder):
    "The picture that dcmj2pnm makes by the first window or the full range; None if it makes none."
    ds = pydicom.dcmread(path, force=True, stop_before_pixels=True)
    window = ['+Wi', '1'] if 'WindowCenter' in ds else ['+Wm']
    out = folder / 'out.pgm'
    out.unlink(missing_ok=True)
    command = ['dcmj2pnm', '--write-raw-pnm', '-O', *window, str(path), str(out)]
    subprocess.run(command, capture_output=True, timeout=60)
    return np.array(Image.open(out)) if out.exists() and out.stat().st_size else None


@pytest.mark.skipif(not shutil.which('dcmj2pnm'), reason='needs the Debian package dcmtk')
def test_dcmtk_agrees(tmp_path):
    "Grey single frames of pydicom's files, within the rounding of two ways to apply a window."
    compared = 0
    for path in sources():
        try:
            ours = decode(path.read_bytes())
        except ImageError:
            continue
        theirs = by_dcmtk(path, tmp_path)
        if theirs is None or theirs.ndim == 3 or theirs.shape != ours.shape: continue
        assert near(ours, theirs, 2), path
        compared += 1
    assert compared > 5


@pytest.mark.parametrize(
    'fields',
    [
        {},
        dict(WindowCenter=1800, WindowWidth=2400),
        dict(PhotometricInterpretation='MONOCHROME1'),
        dict(PresentationLUTShape='INVERSE'),
        dict(RescaleSlope=-2, RescaleIntercept=100),
        dict(HighBit=15),
        dict(VOILUTSequence=table(curve(4095))),
        dict(VOILUTSequence=table(curve(65535), bits=16)),
        dict(ModalityLUTSequence=table(curve(4095))),
    ],
    ids=lambda fields: '-'.join(fields) or 'plain',
)
@pytest.mark.skipif(not shutil.which('dcmj2pnm'), reason='needs the Debian package dcmtk')
def test_dcmtk_agrees_on_what_we_make(tmp_path, fields):
    stored = FILM << 4 if 'HighBit' in fields else FILM
    path = tmp_path / 'made.dcm'
    path.write_bytes(dicom(stored, **fields))
    which = ['+Wl', '1'] if 'VOILUTSequence' in fields else None
    theirs = by_dcmtk(path, tmp_path)
    if which:
        out = tmp_path / 'table.pgm'
        subprocess.run(['dcmj2pnm', '--write-raw-pnm', *which, str(path), str(out)], check=True)
        theirs = np.array(Image.open(out))
    assert near(decode(path.read_bytes()), theirs, 2)


def test_gdcm_agrees():
    "Grey single frames of pydicom's files, unpacked by GDCM's own reader and shown by the chapter."
    gdcm = pytest.importorskip('gdcm')
    gdcm.Trace.WarningOff()
    gdcm.Trace.ErrorOff()
    compared = 0
    for path in sources():
        reader = gdcm.ImageReader()
        reader.SetFileName(str(path))
        try:
            ours = decode(path.read_bytes())
        except ImageError:
            continue
        ds = pydicom.dcmread(path, force=True)
        if ds.SamplesPerPixel != 1 or not reader.Read(): continue
        image = reader.GetImage()
        ds.PixelData = image.GetBuffer().encode('utf-8', 'surrogateescape')
        ds.BitsAllocated = image.GetPixelFormat().GetBitsAllocated()
        ds['PixelData'].VR = 'OW'
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        if not ds.is_little_endian: continue
        out = io.BytesIO()
        ds.save_as(out, implicit_vr=False, little_endian=True)
        assert np.array_equal(ours, decode(out.getvalue())), path
        compared += 1
    assert compared > 10
