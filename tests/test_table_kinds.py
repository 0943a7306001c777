"Label tables and folders as they come: read right, refused, or read with a word of warning."

import io

import numpy as np
import pandas as pd
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from smlxray.base import DataError
from smlxray.config import CHEXPERT_FINDINGS
from smlxray.data import split_patients
from smlxray.readers import read_table, read_xrays

pytestmark = pytest.mark.light  # needs no torch


@pytest.fixture
def audit():
    "The chapter that looks data over, which needs torch."
    pytest.importorskip('torch')
    import smlxray.audit
    return smlxray.audit


def picture(seed, kind='PNG'):
    out = io.BytesIO()
    grey = np.random.default_rng(seed).integers(0, 255, (24, 24))
    Image.fromarray(grey.astype(np.uint8)).save(out, kind)
    return out.getvalue()


def folder(root, files):
    "Write files, name -> content, below a folder."
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def table(root, text, **files):
    return read_xrays(folder(root, {'labels.csv': text, **files}), views='all')


def refused(root, text, says):
    with pytest.raises(DataError) as refusal:
        table(root, text)
    assert says in str(refusal.value) and '\n' not in str(refusal.value)


# How a CSV file is written

PLAIN = 'path,patient_id,age,sex,Edema\nä.png,1.0,018M,weiblich,1\nb.png,01,060Y,M,0\n'


@pytest.mark.parametrize('separator', ',;\t|')
@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16', 'utf-16-le', 'utf-16-be'])
def test_any_separator_in_any_encoding(tmp_path, separator, encoding):
    t = table(tmp_path, PLAIN.replace(',', separator).encode(encoding))
    assert t.frame['path'].tolist() == ['ä.png', 'b.png'] and t.labels.tolist() == [[1], [0]]
    assert t.frame['age'].tolist() == [1.5, 60] and t.frame['sex'].tolist() == ['F', 'M']
    assert t.frame['patient'].nunique() == 1


def test_another_encoding_is_refused_with_a_cure(tmp_path):
    refused(tmp_path, PLAIN.encode('latin-1'), 'is not written in UTF-8; save it as "CSV UTF-8"')


def test_an_ending_in_capitals_and_two_tables(tmp_path):
    assert len(read_xrays(folder(tmp_path, {'LABELS.CSV': PLAIN}))) == 2
    with pytest.raises(DataError, match='no data set this package knows'):
        read_xrays(folder(tmp_path, {'more.csv': PLAIN}))


# Columns, labels and people

HEAD = 'path,patient_id,Edema\n'
WORDS = ['yes', 'True', 'blank', 'u', '2', '0.8', '+', '1,0', '-2', 'NEG']


@pytest.mark.parametrize('label', WORDS)
def test_a_label_that_is_none_is_refused_by_row_and_column(tmp_path, label):
    refused(tmp_path, f'{HEAD}a.png,1,1\nb.png,2,"{label}"\n', 'Row 3 of ')


@pytest.mark.parametrize('label, number', [('1.0', 1), (' 0 ', 0), ('-1', -1), ('NA', np.nan)])
def test_a_number_is_read_however_it_is_written(tmp_path, label, number):
    t = table(tmp_path, f'{HEAD}a.png,1,1\nb.png,2,{label}\n')
    np.testing.assert_equal(t.labels[1], [np.float32(number)])


@pytest.mark.parametrize('words', ['yes no yes', 'True False True', 'positive uncertain negative'])
def test_a_column_of_words_is_not_left_aside_quietly(tmp_path, words, audit):
    rows = [f'{i}.png,{i},{i % 2},{word}' for i, word in enumerate(words.split())]
    t = table(tmp_path, '\n'.join(['path,patient_id,Edema,Sarcoidosis', *rows]))
    assert t.findings == ('Edema',)
    assert "column 'Sarcoidosis' answers" in t.reading.notes[0]
    assert 'note 1' in audit.understanding(t)


def test_two_columns_of_one_name_must_agree(tmp_path):
    for head in ('path,path,patient_id', 'path,patient_id,patient_id', 'path,patient,Patient ID'):
        rows = 'a.png,1,7,0\nb.png,2,7,1\n' if 'path,path' not in head else 'a,b,1,0\nc,d,1,1\n'
        refused(tmp_path, f'{head},Edema\n{rows}', 'two columns')
    t = table(tmp_path, 'path,patient_id,subject_id,Edema\na,1,x,0\nb,2,y,1\nc,1,x,1\n')
    assert t.frame['patient'].tolist() == ['1', '2', '1']


def test_other_words_for_people(tmp_path):
    sexes = ['F', 'frau', 'Mujer', 'W', 'm.', 'Male', 'homme', 'Fixed', 'Missing', 'unknown', '']
    rows = [f'{i}.png,{i},{sex},{i % 2}' for i, sex in enumerate(sexes)]
    t = table(tmp_path, '\n'.join(['path,patient_id,sex,Edema', *rows]))
    assert ''.join(t.frame['sex']) == 'FFFFMMM'
    assert t.reading.notes == [
        "2 of the 11 sexes mean nothing here ('Fixed' for one) and count as unknown."
    ]


def test_ages_that_cannot_be_read_are_said(tmp_path):
    ages = ['058Y', '18M', '58 Jahre', '412', '6W']
    rows = [f'{i}.png,{i},{age},{i % 2}' for i, age in enumerate(ages)]
    t = table(tmp_path, '\n'.join(['path,patient_id,age,Edema', *rows]))
    assert t.frame['age'].round(2).fillna(-9).tolist() == [58, 1.5, -9, -9, 0.11]
    assert '2 of the 5 ages mean nothing here' in t.reading.notes[0]


# Paths

TWICE = [('i/a.png', 'i\\a.png'), ('a.png', ' a.png '), ('ä.png', 'a\u0308.png'), ('a', './a')]


@pytest.mark.parametrize('first, second', TWICE)
def test_one_image_under_two_spellings(tmp_path, first, second):
    refused(tmp_path, f'{HEAD}{first},1,1\n{second},1,0\n', 'repeats the path')


@pytest.mark.parametrize('name', ['img/a.png', 'u\u0308.png', '\uff21.png', 'img/sub/b.PNG'])
def test_an_image_is_found_under_its_own_name(tmp_path, name, audit):
    "Windows' path, and letters that Unicode can write in two ways."
    row = name.replace('/', '\\')
    t = table(tmp_path, f'{HEAD}{row},1,1\nz.png,2,0\n', **{name: picture(1), 'z.png': picture(2)})
    assert audit.check_data(t, progress=False).empty


def test_paths_that_lead_out(tmp_path):
    for path in ('C:\\x\\a.png', '\\\\server\\a.png', 'i\\..\\..\\a.png', '/etc/passwd'):
        refused(tmp_path, f'{HEAD}{path},1,1\n', 'write paths inside the data folder')


# Joins, lists and readers

MIMIC = {
    'metadata': 'dicom_id,subject_id,study_id,ViewPosition\naa,{s},{t},PA\n'
    'bb,10000002,50000002,AP\n',
    'chexpert': 'subject_id,study_id,' + ','.join(CHEXPERT_FINDINGS) + '\n'
    '10000001,50000001' + ',1' * 14 + '\n10000002,50000002' + ',0' * 14 + '\n',
    'split': 'dicom_id,study_id,subject_id,split\naa,50000001,{own},train\n'
    'bb,50000002,10000002,test\n',
}  # fmt: skip


def mimic(root, s='10000001', t='50000001', own='10000001'):
    files = {f'mimic-cxr-2.0.0-{k}.csv': v for k, v in MIMIC.items()}
    files = {name: text.replace('{s}', s).replace('{t}', t).replace('{own}', own)
             for name, text in files.items()}  # fmt: skip
    return read_xrays(folder(root, files))


@pytest.mark.parametrize('s, t', [('10000001.0', '50000001.0'), (' 10000001', '50000001 ')])
def test_ids_of_a_spreadsheet_give_the_same_places(tmp_path, s, t):
    sound = mimic(tmp_path / 'sound')
    odd = mimic(tmp_path / 'odd', s, t).frame
    if '.0' not in s: assert odd['path'].tolist() == sound.frame['path'].tolist()
    assert odd['patient'].tolist() == sound.frame['patient'].tolist()


@pytest.mark.parametrize('s, t', [('1.0000001E7', '50000001'), ('10000001', '5.00E+07')])
def test_keys_that_lost_their_digits(tmp_path, s, t):
    with pytest.raises(DataError, match='Row 2 of .*metadata.csv .*a spreadsheet has rounded'):
        mimic(tmp_path, s, t)


def test_a_whole_column_of_floats_gives_the_same_places(tmp_path):
    rows = 'id,who,Edema\n7.0,1.0,1\n8.0,2.0,0\n'
    mapping = dict(table='t.csv', path='i/{id}.png', patient='{who}', findings=['Edema'])
    t = read_table(folder(tmp_path, {'t.csv': rows}), mapping)
    assert t.frame['path'].tolist() == ['i/7.png', 'i/8.png']


def test_two_files_that_say_different_things(tmp_path):
    with pytest.raises(DataError, match="has '10000001' in 'subject_id', but .* says '10000009'"):
        mimic(tmp_path, own='10000009')


def test_two_label_tables_of_one_kind(tmp_path):
    rows = {'a.csv': 'id,Edema\n1,0\n2,1\n', 'b.csv': 'id,Edema\n1,1\n2,1\n'}
    mapping = dict(table='a.csv', join=[dict(table='b.csv', on='id')], path='{id}.png',
                   patient='p{id}', findings=['Edema'])  # fmt: skip
    with pytest.raises(DataError, match="a.csv has '0' in 'Edema', but .*b.csv says '1'"):
        read_table(folder(tmp_path, rows), mapping)
    rows['b.csv'] = 'id,Edema\n1.0,0.0\n2.0,1.0\n'
    assert read_table(folder(tmp_path, rows), mapping).labels.tolist() == [[0], [1]]


NIH = 'Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position\n'
ROWS = '00000001_000.png,{},0,1,060Y,M,PA\n00000002_000.png,No Finding,0,2,018M,F,AP\n'


@pytest.mark.parametrize('names', ['"Edema,Mass"', 'Edema;Mass', 'Effusion / edema', 'mass+nodule'])
def test_a_list_with_another_separator(tmp_path, names):
    with pytest.raises(DataError, match='Row 2 of .* looks like several findings; write'):
        read_xrays(folder(tmp_path, {'Data_Entry_2017.csv': NIH + ROWS.format(names)}))


def test_an_image_in_two_lists(tmp_path):
    lists = {'train_val_list.txt': '00000001_000.png', 'test_list.txt': '00000001_000.png'}
    with pytest.raises(DataError, match='names 00000001_000.png, which another list has'):
        read_xrays(folder(tmp_path, {'Data_Entry_2017.csv': NIH + ROWS.format('Mass'), **lists}))


def test_readers_under_two_spellings_and_without_a_name(tmp_path):
    head, test = 'image_id,rad_id,Edema,No finding\n', 'image_id,Edema,No finding\nt,0,1\n'
    places = ['annotations/image_labels_train.csv', 'annotations/image_labels_test.csv']
    votes = 'a,R1,1,0\na,r1 ,1,0\na,R2,0,1\na,R3,0,1\n'
    t = read_xrays(folder(tmp_path, dict(zip(places, (head + votes, test)))))
    assert t.column('Edema')[0] == 0 and not t.reading.known
    with pytest.raises(DataError, match='Row 3 of .* does not say who read the image; fill in'):
        read_xrays(folder(tmp_path, {places[0]: head + 'a,R1,1,0\na,,0,1\n'}))


# Persons in tags and in names


def dicom(person, seed):
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID, ds.SOPInstanceUID = '1.2.840.10008.5.1.4.1.1.1', '1.2.3'
    ds.Rows = ds.Columns = 24
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, 'MONOCHROME2'
    ds.BitsAllocated = ds.BitsStored = 8
    ds.HighBit, ds.PixelRepresentation = 7, 0
    if person is not None: ds.PatientID = person
    pixels = np.random.default_rng(seed).integers(0, 255, (24, 24)).astype(np.uint8)
    ds.add_new('PixelData', 'OW', pixels.tobytes())
    out = io.BytesIO()
    pydicom.dcmwrite(out, ds, enforce_file_format=True)
    return out.getvalue()


def tagged(root, persons, ending='.dcm'):
    "Two classes of DICOM files whose names tell nothing; persons in order."
    files = {}
    for i, person in enumerate(persons):
        files[f'{"NORMAL" if i % 2 else "SICK"}/{chr(97 + i)}{ending}'] = dicom(person, i)
    return read_xrays(folder(root, files))


def of(t, name):
    "The patient of the file with this name."
    return t.frame['patient'][t.frame['path'].str.contains(f'/{name}.', regex=False)].iloc[0]


@pytest.mark.parametrize('ending', ['.dcm', '.DCM', '.dicom'])
def test_persons_from_tags_stay_on_one_side(tmp_path, ending, audit):
    more = [str(i) for i in range(5, 20)]
    t = tagged(tmp_path, ['1', '1.0', ' 2 ', '02', 'A', 'a', *more], ending)
    assert t.frame['patient'].nunique() == 18 and t.reading.known
    assert of(t, 'a') == of(t, 'b') and of(t, 'c') == of(t, 'd') and of(t, 'e') == of(t, 'f')
    split = split_patients(t, 0.2, 0.4, seed=1)
    sides = [set(t.frame['patient'].iloc[rows]) for rows in split]
    assert not (sides[0] & sides[1] or sides[0] & sides[2] or sides[1] & sides[2])
    assert 'known by the DICOM tags' in audit.understanding(t)
    assert audit.check_data(t, progress=False).empty


NOBODY = ['ANON', 'Anonymized', 'Anonymous^Patient', '0000', 'XXXX', '-', '*', 'no name', '', None,
          'REMOVED', 'Unknown', 'DEIDENTIFIED', 'N/A', 'Patient']  # fmt: skip


@pytest.mark.parametrize('nobody', NOBODY)
def test_a_placeholder_is_no_person(tmp_path, nobody, caplog, audit):
    t = tagged(tmp_path, ['1', '2', nobody, nobody, nobody])
    assert t.frame['patient'].nunique() == 5 and not t.reading.known
    assert 'unknown of 3 images' in audit.understanding(t) and 'no split can keep' in caplog.text


def test_one_tag_for_all_is_no_person(tmp_path):
    assert not tagged(tmp_path, ['STUDY01'] * 6).reading.known


def named(root, names):
    files = {f'{"NORMAL" if i % 2 else "SICK"}/{n}': picture(i) for i, n in enumerate(names)}
    return read_xrays(folder(root, files))


PERSONS = {
    'CheXpert': [f'patient0000{i // 2}_study{i % 2}_view1_frontal.png' for i in range(8)],
    'NIH': [f'0000000{i // 2}_00{i % 2}.png' for i in range(8)],
    'MIMIC': [f'p1000003{i // 2}_s5041426{i}_02aa804e-bde0afdd-112c0b34.png' for i in range(8)],
    'copies': [f'person{i // 2}_x{" (1)" if i % 2 else ""}.JPG.png' for i in range(8)],
}
NOT_PERSONS = {
    'uuid': [f'02aa804e-bde0afdd-112c0b34-7bc16630-4e38401{i}.png' for i in range(8)],
    'dates': [f'2020-01-15_{i:03d}.png' for i in range(8)],
    'days': [f'202001{15 + i // 4}_{i:03d}.png' for i in range(8)],
    'a disease': [f'COVID-19_{i}.png' if i % 2 else f'IM-{i:04d}-1.png' for i in range(40)],
    'a year': [f'scan_2021_{i:04d}.png' for i in range(40)],
}


@pytest.mark.parametrize('names', PERSONS.values(), ids=PERSONS)
def test_names_that_tell_persons(tmp_path, names, audit):
    t = named(tmp_path, names)
    assert t.reading.known and t.frame['patient'].nunique() == 4
    assert 'known by the names of the files' in audit.understanding(t)


@pytest.mark.parametrize('names', NOT_PERSONS.values(), ids=NOT_PERSONS)
def test_names_that_tell_none(tmp_path, names):
    t = named(tmp_path, names)
    assert not t.reading.known and t.frame['patient'].nunique() == len(names)


def test_files_that_no_reader_opens_are_counted(tmp_path, audit):
    shut = {'SICK/7.tif': b'II', 'SICK/deep/8.png': picture(8), 'NORMAL/IM01': dicom('1', 9)}
    folder(tmp_path, {**shut, 'NORMAL/masks/a.png': picture(7), 'NORMAL/a.csv': 'a'})
    t = named(tmp_path, [f'{i}.png' for i in range(6)])
    assert len(t) == 6 and list(t.reading.dropped.values()) == [3]
    assert 'left out:  3 (files that are no images or lie too deep)' in audit.understanding(t)


# What `data check` says of patients


@pytest.mark.parametrize('ids', [['unknown'] * 3 + list('abcdefghijk'), ['7'] * 8 + list('abcdef')])
def test_a_patient_who_has_too_many_images(tmp_path, ids, audit):
    rows = [f'{i}.png,{person},{i % 2}' for i, person in enumerate(ids)]
    t = table(tmp_path, HEAD + '\n'.join(rows))
    found = audit.count_problems(audit.check_data(t, images=False))
    assert found['kind'].tolist() == ['one patient for many images']


def test_one_patient_with_a_few_images_is_fine(tmp_path, audit):
    rows = [f'{i}.png,{i // 3},{i % 2}' for i in range(12)]
    assert audit.check_data(table(tmp_path, HEAD + '\n'.join(rows)), images=False).empty
    assert isinstance(audit.understanding(table(tmp_path, HEAD + '\n'.join(rows))), str)


def test_tables_have_text_ids(tmp_path):
    "The same table by pandas and by hand."
    frame = pd.DataFrame({'path': ['a', 'b'], 'patient_id': [1.0, 2.0], 'Edema': [1.0, None]})
    t = table(tmp_path, frame.to_csv(index=False))
    assert t.frame['patient'].tolist() == ['1', '2']
