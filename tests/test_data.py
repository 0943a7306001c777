"""What the table and its readers promise on whole folders.

The phantoms, the real NIH images (where there are some), and hostile label files.
"""

import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from real import REAL, needs_real

from smlxray.base import DataError
from smlxray.config import CHEXPERT_FINDINGS
from smlxray.data import (
    XrayTable,
    carries,
    check_patient_disjoint,
    clean_negatives,
    relatives,
    split_findings,
    split_patients,
    summary,
    training_rows,
)
from smlxray.readers import check_files, read_chexpert, read_xrays

pytestmark = pytest.mark.light  # needs no torch


@pytest.fixture(scope='module')
def real():
    return read_xrays(REAL)


@needs_real
def test_real_folder_reads_as_its_description_says(real):
    assert (len(real), len(np.unique(real.patients))) == (2815, 1710)
    counts = summary(real)
    told = {
        'Atelectasis': (409, 365),
        'Pleural Effusion': (394, 332),
        'Pneumonia': (587, 454),
        'Pleural_Thickening': (65, 64),
        'No Finding': (1479, 717),
    }
    for finding, (images, patients) in told.items():
        assert tuple(counts.loc[finding, ['positive', 'patients']]) == (images, patients), finding
    assert counts[['uncertain', 'blank']].to_numpy().sum() == 0
    assert set(real.frame['projection']) == {'AP', 'PA'} and set(real.frame['view']) == {'frontal'}
    assert real.frame['origin'].nunique() == 2 and set(real.frame['sex']) == {'F', 'M'}
    assert check_files(real) is real


@needs_real
def test_real_folder_splits_without_leaks(real):
    split = split_patients(real, 0.1, 0.4, seed=0)
    check_patient_disjoint(real, split)
    names = [set(real.frame['patient'].iloc[rows]) for rows in split]
    assert not (names[0] & names[1] or names[0] & names[2] or names[1] & names[2])
    for people, wanted in zip(names, (0.5, 0.1, 0.4)):
        assert abs(len(people) / 1710 - wanted) < 0.05
    findings = split_findings(real, ['Cardiomegaly', 'Pneumothorax', 'Edema', 'Mass'])
    assert findings.related == ()  # the NIH has no parent column
    rows = training_rows(real, split.train, findings.novel)
    assert not any(real.positive(f)[rows].any() for f in findings.novel) and len(rows) > 500
    for f in findings.novel:
        clean = clean_negatives(real, f)
        assert not set(real.frame['patient'][clean]) & set(real.frame['patient'][real.positive(f)])


@pytest.mark.process
def test_phantoms_read_as_chexpert(tmp_path):
    phantom = pytest.importorskip('smlxray.phantom')
    folder = phantom.write_phantoms(
        tmp_path / 'phantoms', patients=12, size=48, seed=0, workers=1, progress=False
    )
    table = check_files(read_xrays(folder, views='all'))
    assert table.findings == CHEXPERT_FINDINGS and set(table.frame['split']) == {'train', 'valid'}
    assert set(read_xrays(folder, 'phantom').frame['view']) == {'frontal'}


def small(n=40, seed=0):
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {'path': [f'{i}.jpg' for i in range(n)], 'patient': [f'p{i // 3}' for i in range(n)]}
    )
    for f in CHEXPERT_FINDINGS:
        frame[f] = rng.choice([1, 0, -1, np.nan], n, p=[0.2, 0.2, 0.1, 0.5])
    return XrayTable(frame, CHEXPERT_FINDINGS, name='small')


def test_table_takes_nothing_from_its_maker_and_gives_nothing_away():
    frame = pd.DataFrame({'path': ['a.jpg', 'b.jpg'], 'patient': [7, 8], 'Edema': [1, np.nan]})
    table = XrayTable(frame, ['Edema'])
    assert list(frame.columns) == ['path', 'patient', 'Edema']  # the caller's frame is as it was
    assert frame['patient'].tolist() == [7, 8]
    frame.loc[0, 'Edema'] = 0
    assert table.labels[0, 0] == 1 and table.frame['patient'].tolist() == ['7', '8']
    with pytest.raises(ValueError, match='read-only'):
        table.labels[0, 0] = 0
    with pytest.raises(ValueError, match='read-only'):
        table.patients[0] = 5


def test_table_survives_pickle_and_every_kind_of_index():
    table = small()
    again = pickle.loads(pickle.dumps(table))
    np.testing.assert_array_equal(again.labels, table.labels)
    for rows in (
        [1, 5, 2],
        np.array([1, 5, 2]),
        slice(3, 9),
        np.arange(40) % 2 == 0,
        np.array([], int),
        [],
        -1,
        np.int64(4),
    ):
        piece = table[rows]
        index = np.atleast_1d(
            np.arange(40)[np.asarray(rows, int) if isinstance(rows, list) and not rows else rows]
        )
        assert piece.frame['path'].tolist() == table.frame['path'].iloc[index].tolist()
        np.testing.assert_array_equal(piece.labels, table.labels[index])
        assert len(piece.patients) == len(index)
    with pytest.raises(IndexError):
        table[[99]]
    with pytest.raises(IndexError):
        table[np.ones(39, bool)]


@pytest.mark.parametrize('seed', range(20))
def test_selections_agree_with_their_definitions_on_random_tables(seed):
    table = small(seed=seed)
    frame = table.frame
    for finding in (
        'Edema',
        'Lung Opacity',
        'Cardiomegaly',
        'Enlarged Cardiomediastinum',
        'Pneumothorax',
        'Support Devices',
    ):
        family = [
            finding,
            *(
                relatives(finding)
                if finding in ('Lung Opacity', 'Enlarged Cardiomediastinum')
                else ()
            ),
        ]
        carried = frame[family].isin([1, -1]).any(axis=1).to_numpy()
        np.testing.assert_array_equal(carries(table, finding), carried)
        certain = (frame[finding] == 0) | (
            (frame['No Finding'] == 1) & (finding != 'Support Devices')
        )
        patient_carries = frame['patient'].isin(frame['patient'][carried])
        np.testing.assert_array_equal(
            clean_negatives(table, finding), (certain & ~patient_carries).to_numpy()
        )


def test_split_is_the_same_in_another_process_and_for_any_order():
    table = small(3000)
    names = table.frame['patient'].to_numpy()
    where = {
        p: part
        for part, rows in split_patients(table, 0.1, 0.4, 3)._asdict().items()
        for p in names[rows]
    }
    back = table[np.arange(2999, -1, -1)]
    for part, rows in split_patients(back, 0.1, 0.4, 3)._asdict().items():
        assert {where[p] for p in back.frame['patient'].iloc[rows]} == {part}
    # written down once: a split that changed would make old and new results incomparable
    known = 'train test train test train train test valid'
    assert [where[f'p{i}'] for i in range(8)] == known.split()


def chexpert(folder: Path, **columns):
    n = 3
    frame = pd.DataFrame(
        {
            'Path': [f'CheXpert-v1.0/train/patient{i}/study1/view1_frontal.jpg' for i in range(n)],
            'Frontal/Lateral': 'Frontal',
            'AP/PA': 'AP',
            **{f: [1.0, 0.0, np.nan] for f in CHEXPERT_FINDINGS},
            **columns,
        }
    )
    frame.to_csv(folder / 'train.csv', index=False)
    return folder


def test_sex_and_age_may_be_absent(tmp_path):
    table = read_chexpert(chexpert(tmp_path))
    assert set(table.frame['sex']) == {''} and table.frame['age'].isna().all()


def test_columns_that_are_not_needed_are_left_out(tmp_path):
    table = read_chexpert(chexpert(tmp_path, true_Edema=[1, 0, 0], Weight=[70, 80, 90]))
    assert not {'true_Edema', 'Weight'} & set(table.frame.columns)


def test_same_image_in_both_files_is_refused(tmp_path):
    chexpert(tmp_path)
    (tmp_path / 'valid.csv').write_bytes((tmp_path / 'train.csv').read_bytes())
    with pytest.raises(DataError, match='repeats the path'):
        read_chexpert(tmp_path)


def test_byte_order_mark_and_windows_line_ends(tmp_path):
    text = (chexpert(tmp_path) / 'train.csv').read_text()
    (tmp_path / 'train.csv').write_bytes(b'\xef\xbb\xbf' + text.replace('\n', '\r\n').encode())
    assert len(read_chexpert(tmp_path)) == 3


@pytest.mark.parametrize(
    'content, words',
    [
        (b'', 'is empty'),
        (b'\x89PNG\r\n\x1a\n\x00\xff\xfe', 'cannot be read as CSV'),
        (b'Path\n\xff\xfe\n', 'cannot be read as CSV'),
        (b'Path;Sex\na;b\n', "has no column 'No Finding'"),
        (b'Paths,Sex\na,b\n', "has no column 'Path'"),
    ],
)
def test_files_that_are_no_label_files(tmp_path, content, words):
    (tmp_path / 'train.csv').write_bytes(content)
    with pytest.raises(DataError, match=words) as e:
        read_chexpert(tmp_path)
    assert 'train.csv' in str(e.value) and '\n' not in str(e.value)


@pytest.mark.parametrize(
    'path', ['/etc/passwd', '../a.jpg', 'a/../../b.jpg', 'C:/a.jpg', '..\\a.jpg', '\\\\host\\a.jpg']
)
def test_paths_out_of_the_folder_are_refused(path):
    with pytest.raises(DataError, match='write paths inside the data folder'):
        XrayTable(
            pd.DataFrame({'path': ['ok..jpg', path], 'patient': ['1', '2'], 'Edema': [1, 0]}),
            ['Edema'],
        )


def test_missing_images_are_counted_and_named(tmp_path):
    table = read_chexpert(chexpert(tmp_path))
    table.paths()[1].parent.mkdir(parents=True)
    table.paths()[1].touch()
    with pytest.raises(
        DataError, match=r'2 of the 3 images .* row 0 \(train/patient0/.*row 2 \(train/patient2/'
    ):
        check_files(table)
