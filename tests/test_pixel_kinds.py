"More kinds of DICOM, PNG and JPEG: right, refused, or right with a word of warning."

import io, struct, zlib

import numpy as np
import pydicom
import pytest
from PIL import Image, ImageOps
from pydicom.dataset import Dataset
from pydicom.pixels import apply_voi_lut
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)
from test_dicom import FILM, RIGHT, changed, dicom, kinds, near, written

from smlxray.base import ImageError
from smlxray.images import decode, decode_picture

pytestmark = pytest.mark.light  # needs no torch

SIGNED = (FILM.astype(int) - 2048).astype(np.int16)
ROOT = (np.linspace(0, 1, 4096) ** 0.5 * 4095).round().astype(int)  # a table of 12 bits
CURVED = (ROOT[FILM] / 4095 * 255 + 0.5).astype(np.uint8)


def scaled(x, low, high):
    return (np.clip((np.asarray(x, float) - low) / (high - low), 0, 1) * 255 + 0.5).astype(np.uint8)


def lut(entries=ROOT, first=0, bits=12, words='<u2'):
    "A sequence of one look-up table."
    item = Dataset()
    item.add_new('LUTDescriptor', 'US', [len(entries) % 65536, first, bits])
    item.add_new('LUTData', 'OW', np.asarray(entries).astype(words).tobytes())
    return [item]


def as_png(values) -> bytes:
    out = io.BytesIO()
    Image.fromarray(values).save(out, 'PNG')
    return out.getvalue()


@pytest.mark.parametrize('bits', [12, 16])
@pytest.mark.parametrize('write', [as_png, dicom])
def test_bytes_in_the_wrong_order_are_said(write, bits):
    film = FILM.astype(np.uint16) << (bits - 12)
    fields = dict(BitsStored=16, HighBit=15) if write is dicom else {}
    assert 'bytes' not in kinds(write(film, **fields))
    assert 'bytes' in kinds(write(film.byteswap(), **fields))


# DICOM: tables, windows, slopes


def test_inverted_with_table_and_padding():
    film = FILM.copy()
    film[:, :8] = 0
    fields = dict(PhotometricInterpretation='MONOCHROME1', PixelPaddingValue=0)
    pad = film == 0
    curved = np.where(pad, 0, 255 - (ROOT[film] / 4095 * 255 + 0.5).astype(np.uint8))
    assert near(decode(dicom(film, VOILUTSequence=lut(), **fields)), curved)
    plain = np.where(pad, 0, 255 - scaled(film, film[~pad].min(), film.max()))
    assert near(decode(dicom(film, **fields)), plain)


WINDOW = dict(WindowCenter=2048, WindowWidth=4096)
DOWN = dict(RescaleSlope=-1, RescaleIntercept=4095)
MONO1 = dict(PhotometricInterpretation='MONOCHROME1')
MILD = ROOT * 1000 // 4095
BOTH = dict(VOILUTSequence=lut(), WindowCenter=500, WindowWidth=9)
FIELDS = {
    'a table before a window': (BOTH, CURVED),
    'the first of two windows': (dict(WindowCenter=[2048, 500], WindowWidth=[4096, 200]), RIGHT),
    'a slope below zero': (WINDOW | DOWN, 255 - RIGHT),
    'the same, inverted': (WINDOW | DOWN | MONO1, RIGHT),
    'a small slope below zero': (dict(RescaleSlope='-0.001', RescaleIntercept='0'), 255 - RIGHT),
    'a falling table': (dict(VOILUTSequence=lut(4095 - ROOT)), 255 - CURVED),
    'a table of ten bits': (dict(VOILUTSequence=lut(ROOT // 4, bits=10)), CURVED),
    'a window of a modality table': (
        dict(ModalityLUTSequence=lut(MILD, bits=16), WindowCenter=500, WindowWidth=1000),
        scaled(MILD[FILM], 0, 1000),
    ),
    'a function in small letters': (
        dict(WindowCenter=2048, WindowWidth=2000, VOILUTFunction='linear'),
        scaled(FILM, 1048, 3047),
    ),
}  # fmt: skip


@pytest.mark.parametrize('fields, right', FIELDS.values(), ids=FIELDS)
def test_what_a_record_asks_for(fields, right):
    picture = decode_picture(dicom(FILM, **fields))
    assert near(picture.pixels, right, 2) and not picture.remarks


@pytest.mark.parametrize('centre, width', [(2048, 4096), (1500, 800), (3000, 2500), (100, 700)])
@pytest.mark.parametrize('slope', [1, -1, 2.5])
def test_pydicom_agrees_on_windows_after_a_slope(centre, width, slope):
    data = dicom(FILM, RescaleSlope=slope, RescaleIntercept=0,
                 WindowCenter=centre * slope, WindowWidth=width * abs(slope))  # fmt: skip
    ds = pydicom.dcmread(io.BytesIO(data))
    units = FILM.astype(float) * slope
    shown = apply_voi_lut(units, ds)
    ends = apply_voi_lut(np.array([-1e9, 1e9]), ds)
    assert near(decode(data), scaled(shown, *ends), 2)


# DICOM: bits, signs, byte order, samples

TEN = FILM >> 2
BOX = np.zeros_like(TEN)
BOX[10:40, 10:50] = 1


@pytest.mark.parametrize('above', [BOX << 12, BOX << 10 | BOX << 15, (1 - BOX) << 14, 0xFC00])
@pytest.mark.parametrize('compress', [None, RLELossless])
def test_ten_bits_below_an_overlay(above, compress):
    data = changed(dicom((TEN | above).astype(np.uint16), bits=16, compress=compress),
                   BitsStored=10, HighBit=9)  # fmt: skip
    assert near(decode(data), scaled(TEN, 0, 1023)) and kinds(data) == ['overlay']


@pytest.mark.parametrize('ends', [(-3000, -2500), (-2500, -3000)])
def test_signed_padding_is_a_range(ends):
    film = SIGNED.copy()
    film[:, :5], film[:5] = -3000, -2500
    pad = film <= -2500
    right = np.where(pad, 0, scaled(film, film[~pad].min(), film.max()))
    data = dicom(film, bits=16, PixelPaddingValue=ends[0], PixelPaddingRangeLimit=ends[1])
    assert near(decode(data), right)


@pytest.mark.parametrize('film', [FILM, SIGNED])
def test_big_endian(film):
    assert near(decode(dicom(film, bits=16, syntax=ExplicitVRBigEndian)), RIGHT)


def test_big_endian_tables_and_bytes():
    table = dict(VOILUTSequence=lut(words='>u2'))
    assert near(decode(dicom(FILM, syntax=ExplicitVRBigEndian, **table)), CURVED)
    words = RIGHT.view('<u2').astype('>u2').view(np.uint8)  # as OW has bytes: two to a word
    assert np.array_equal(decode(dicom(words, bits=8, syntax=ExplicitVRBigEndian)), RIGHT)


def test_a_table_whose_first_value_lost_its_sign():
    table = dict(VOILUTSequence=lut(first=63488))
    assert near(decode(dicom(SIGNED, bits=16, syntax=ImplicitVRLittleEndian, **table)), CURVED)


GREY = RIGHT[..., None].repeat(3, 2)
LUMA = np.dstack([RIGHT, np.full((*RIGHT.shape, 2), 128)]).astype(np.uint8)


def colours(stored, planar, kind):
    ds = pydicom.dcmread(io.BytesIO(dicom(stored, bits=8 * stored.dtype.itemsize)))
    ds.PlanarConfiguration, ds.PhotometricInterpretation = planar, kind
    ds.PixelData = np.ascontiguousarray(np.moveaxis(stored, -1, 0) if planar else stored).tobytes()
    return ds


@pytest.mark.parametrize('planar', [0, 1])
def test_planes_and_pixels_of_colour(planar):
    deep = (FILM * 16).astype(np.uint16)[..., None].repeat(3, 2)
    for stored, kind in ((GREY, 'RGB'), (LUMA, 'YBR_FULL'), (deep, 'RGB')):
        assert near(decode(written(colours(stored, planar, kind))), RIGHT, 2), kind


def test_half_of_the_colours_left_out():
    ds = colours(GREY, 0, 'YBR_FULL_422')
    pairs = [RIGHT[:, ::2], RIGHT[:, 1::2], np.full_like(RIGHT[:, ::2], 128)]
    ds.PixelData = np.stack([*pairs, pairs[2]], -1).tobytes()
    assert near(decode(written(ds)), RIGHT)


def odd_records():
    frames = pydicom.dcmread(io.BytesIO(dicom(FILM)))
    frames.NumberOfFrames, frames.PixelData = 2, 2 * frames.PixelData
    deflated, packed = pydicom.dcmread(io.BytesIO(dicom(FILM))), io.BytesIO()
    deflated.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    pydicom.dcmwrite(packed, deflated)
    floats = pydicom.dcmread(io.BytesIO(dicom(FILM)))
    del floats.PixelData
    floats.FloatPixelData = FILM.astype(np.float32).tobytes()
    return {
        '2 frames': written(frames),
        'deflated': packed.getvalue(),
        'without pixels': written(floats),
        '32 bits per pixel': dicom(FILM.astype(np.uint32), bits=32),
        'of the kind PALETTE COLOR': changed(
            dicom(RIGHT, bits=8), PhotometricInterpretation='PALETTE COLOR'
        ),
        'contradicts itself': written(colours(GREY, 0, 'MONOCHROME2')),
        'damaged or truncated': dicom(FILM)[:-5000],
    }


@pytest.mark.parametrize('why, data', odd_records().items())
def test_refused_with_the_reason(why, data):
    with pytest.raises(ImageError, match=why) as refusal:
        decode(data, 'x.dcm')
    assert '\n' not in str(refusal.value)


# Pictures that show nothing


def saved(picture, kind='PNG', **options):
    out = io.BytesIO()
    picture = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    picture.save(out, kind, **options)
    return out.getvalue()


MASK = (RIGHT > 128).astype(np.uint8) * 255
HOT = np.full_like(FILM, 100)
HOT[0, 0] = 4095
EMPTY = {
    'one value': dicom(np.full_like(FILM, 900)),
    'one hot pixel': dicom(HOT),
    'a faint picture with one hot pixel': dicom(np.where(HOT > 100, HOT, FILM // 8)),
    'a mask of 1 bit': saved(Image.fromarray(RIGHT).convert('1')),
    'white of 1 bit': saved(Image.new('1', (96, 96), 1)),
    'a mask': saved(MASK),
    'a mask as a JPEG': saved(MASK, 'JPEG', quality=95),
    'a mask as a DICOM file': dicom((FILM > 2000).astype(np.uint16) * 3000),
    'nothing but transparency': saved(
        Image.merge('LA', (Image.fromarray(RIGHT), Image.new('L', RIGHT.shape[::-1], 0)))
    ),
}


@pytest.mark.parametrize('data', EMPTY.values(), ids=EMPTY)
def test_a_picture_of_two_levels_is_never_passed_on_quietly(data):
    assert set(kinds(data)) & {'one grey level', 'two grey levels', 'hardly any contrast'}


# PNG and JPEG


def chunk(name, body):
    return struct.pack('>I', len(body)) + name + body + struct.pack('>I', zlib.crc32(name + body))


def png(rows, depth, kind, extra=b''):
    "A PNG of numbers as they stand, (H, W) or (H, W, samples)."
    if rows.dtype.itemsize == 2: rows = rows.astype('>u2')
    lines = b''.join(b'\0' + row.tobytes() for row in rows)
    width = 2 * rows.shape[1] if depth == 4 else rows.shape[1]
    head = struct.pack('>IIBBBBB', width, len(rows), depth, kind, 0, 0, 0)
    body = chunk(b'IHDR', head) + extra + chunk(b'IDAT', zlib.compress(lines))
    return b'\x89PNG\r\n\x1a\n' + body + chunk(b'IEND', b'')


DEEP = FILM * np.uint16(16)
SOLID = np.full_like(DEEP, 65535)
FOURS = RIGHT // 16
TURNED = Image.fromarray(RIGHT, 'L').convert('P')
TURNED.putpalette([value for i in range(256) for value in [255 - i] * 3])
HALF = bytes([255] * 128 + [0] * 128)
PNGS = {
    '16 bits': (png(DEEP, 16, 0), RIGHT),
    'gamma': (png(DEEP, 16, 0, chunk(b'gAMA', struct.pack('>I', 100000))), RIGHT),
    'deep, with alpha': (png(np.dstack([DEEP, SOLID]), 16, 4), RIGHT),
    'deep colours, with alpha': (png(np.dstack([DEEP] * 3 + [SOLID]), 16, 6), RIGHT),
    '12 bits, with alpha': (png(np.dstack([FILM, SOLID]), 16, 4), RIGHT),
    '8 bits in 16': (png(RIGHT.astype(np.uint16), 16, 0), RIGHT),
    '4 bits': (png(FOURS[:, ::2] << 4 | FOURS[:, 1::2], 4, 0), FOURS * 17),
    'palette': (saved(TURNED), 255 - RIGHT),
    'a palette half of glass': (
        saved(TURNED, transparency=HALF),
        np.where(RIGHT < 128, 255 - RIGHT, 0),
    ),
    'the first of two frames': (
        saved(Image.fromarray(RIGHT), save_all=True, append_images=[Image.fromarray(255 - RIGHT)]),
        RIGHT,
    ),
}  # fmt: skip


@pytest.mark.parametrize('data, right', PNGS.values(), ids=PNGS)
def test_png(data, right):
    if data is PNGS['12 bits, with alpha'][0]: pytest.importorskip('torchvision')
    assert near(decode(data), right)


def test_jpeg_of_inks_and_of_two_pictures():
    inks = saved(Image.fromarray(RIGHT).convert('CMYK'), 'JPEG', quality=98)
    assert near(decode(inks), RIGHT, 8)
    two = saved(RIGHT, 'JPEG', quality=98) + saved(255 - RIGHT, 'JPEG', quality=98)
    assert near(decode(two), RIGHT, 8)


@pytest.mark.parametrize('kind', ['JPEG', 'PNG'])
@pytest.mark.parametrize('code', range(1, 10))
def test_every_turn(kind, code):
    note = Image.Exif()
    note[0x0112] = code
    data = saved(RIGHT[:80], kind, exif=note)
    with Image.open(io.BytesIO(data)) as image:
        right = np.array(ImageOps.exif_transpose(image).convert('L'))
    assert near(decode(data), right)


@pytest.mark.parametrize('kind', ['GIF', 'TIFF', 'WEBP', 'BMP', 'JPEG2000'])
def test_other_kinds_are_named(kind):
    with pytest.raises(ImageError, match='(GIF|TIFF|WebP|BMP) file, not a JPEG|is not an image'):
        decode(saved(RIGHT, kind))
