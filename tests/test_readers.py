"Real label tables, as published and at full size, from the package torchxrayvision (extra `dev`)."

import gzip, importlib.util, shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from real import REAL

from smlxray.audit import conflicts, leakage_report
from smlxray.base import DataError
from smlxray.config import CHEXPERT_FINDINGS
from smlxray.data import (
    CHEXPERT_MIX,
    apply_policy,
    balanced_seed,
    derive_no_finding,
    index_rows,
    split_findings,
    split_patients,
    summary,
    training_rows,
)
from smlxray.episodes import EpisodeSampler, balanced_batches
from smlxray.readers import (
    NIH_FINDINGS,
    _nih_manifest,
    check_files,
    layout_nih,
    read_boxes,
    read_realcxr,
    read_xrays,
)

spec = importlib.util.find_spec('torchxrayvision')
TABLES = Path(spec.origin).parent / 'data' if spec else Path('missing')
pytestmark = pytest.mark.skipif(
    spec is None, reason='torchxrayvision brings the tables: install the extra dev'
)


@pytest.fixture(scope='module')
def chexpert(tmp_path_factory):
    folder = tmp_path_factory.mktemp('chexpert')
    with (
        gzip.open(TABLES / 'chexpert_train.csv.gz') as packed,
        open(folder / 'train.csv', 'wb') as out,
    ):
        shutil.copyfileobj(packed, out)
    return read_xrays(folder, views='all')


def test_chexpert_is_read_as_it_is(chexpert):
    raw = pd.read_csv(TABLES / 'chexpert_train.csv.gz')
    assert len(chexpert) == 223_414 and chexpert.frame['patient'].nunique() == 64_540
    np.testing.assert_array_equal(
        chexpert.labels, raw[list(CHEXPERT_FINDINGS)].to_numpy(np.float32)
    )
    assert (chexpert.frame['view'] == 'lateral').sum() == (
        raw['Frontal/Lateral'] == 'Lateral'
    ).sum()
    assert (
        set(chexpert.frame['projection']) == {'AP', 'PA', 'LL', 'RL', ''}
        and (chexpert.frame['sex'] == '').sum() == 1
    )
    assert raw['Path'].str.endswith(chexpert.frame['path'].iloc[-1]).sum() == 1


def test_chexpert_conflicts_and_policies(chexpert):
    found = conflicts(chexpert)
    assert found['kind'].value_counts().to_dict() == {'hierarchy': 1297, 'unlabelled': 12}
    derived, own = (
        derive_no_finding(chexpert.labels, chexpert.findings),
        chexpert.column('No Finding'),
    )
    assert (
        not ((own == 1) & (derived == 0)).any() and np.isnan(derived[own == 1]).mean() > 0.9
    )  # blanks leave it open, nothing contradicts it
    for policy in ('ignore', 'ones', 'zeros', 'smooth', 'smooth-zeros', 'chexpert'):
        y = apply_policy(chexpert.labels, policy, 'negative', chexpert.findings)
        open_ = [
            f
            for f in chexpert.findings
            if policy == 'ignore'
            or policy == 'chexpert'
            and CHEXPERT_MIX.get(f, 'ignore') == 'ignore'
        ]
        assert np.isnan(y).sum() == sum((chexpert.column(f) == -1).sum() for f in open_), policy
        assert (y[chexpert.labels == 1] == 1).all() and (y[chexpert.labels == 0] == 0).all()


def test_chexpert_splits_are_fair_stable_and_clean(chexpert):
    seed = balanced_seed(chexpert, 0.1, 0.4)
    split = split_patients(chexpert, 0.1, 0.4, seed)
    index = index_rows(chexpert)
    for f in chexpert.findings:
        patients = np.unique(chexpert.patients[index.of(f)])
        share = np.isin(patients, np.unique(chexpert.patients[split.test])).mean()
        assert abs(share - 0.4) < 1.5 * np.sqrt(0.24 / len(patients)), (
            f
        )  # a plain draw strays further for some finding
    assert leakage_report(chexpert, split)['count'].sum() == 0
    some = chexpert[
        np.random.default_rng(0).random(len(chexpert)) < 0.5
    ]  # a year earlier, half of the images
    parts = {
        p: k
        for k, rows in enumerate(split_patients(some, 0.1, 0.4, seed))
        for p in some.frame['patient'].to_numpy()[rows]
    }
    later = {
        p: k for k, rows in enumerate(split) for p in chexpert.frame['patient'].to_numpy()[rows]
    }
    assert all(later[p] == k for p, k in parts.items())


def test_chexpert_sampling(chexpert):
    split = split_patients(chexpert, 0.1, 0.4, 0)
    findings = split_findings(chexpert, ['Fracture', 'Pneumothorax'])
    assert 'Support Devices' not in findings.base
    train = training_rows(chexpert, split.train, findings.novel)
    block = EpisodeSampler(chexpert, split.test, 'Fracture', 7, 15).episodes(range(1000))
    rows = np.concatenate([block.support, block.query], 1)
    assert all(len(np.unique(p)) == 44 for p in chexpert.patients[rows])
    ill = np.unique(chexpert.patients[np.abs(chexpert.column('Fracture')) == 1])
    assert not np.isin(
        chexpert.patients[np.concatenate([block.support[:, 7:], block.query[:, 15:]], 1)], ill
    ).any()
    batches = np.stack(balanced_batches(chexpert, train, findings.base, 32, 0, 0))
    assert (
        not set(chexpert.patients[batches.ravel()]) & set(chexpert.patients[split.test])
        and not (np.abs(chexpert.column('Fracture')[batches]) == 1).any()
    )
    assert (
        chexpert.positive('Pleural Other')[batches].mean()
        > 3 * chexpert.positive('Pleural Other')[train].mean()
    )


def test_nih_table(tmp_path):
    for name in ('Data_Entry_2017_v2020.csv', 'BBox_List_2017.csv'):
        shutil.copy(TABLES / f'{name}.gz', tmp_path / f'{name}.gz')
    table, raw = read_xrays(tmp_path), pd.read_csv(TABLES / 'Data_Entry_2017_v2020.csv.gz')
    assert (
        table.name == 'NIH ChestX-ray14'
        and len(table) == 112_120
        and table.frame['patient'].nunique() == 30_805
        and len(table.findings) == 15
    )
    assert (
        table.positive('Pleural Effusion').sum()
        == raw['Finding Labels'].str.contains('Effusion').sum()
    )
    assert (
        not np.isnan(table.labels).any()
        and ((table.labels[:, 1:].sum(1) == 0) == table.positive('No Finding')).all()
    )
    boxes = read_boxes(tmp_path)
    assert (
        len(boxes) == 984
        and boxes['image'].nunique() == 880
        and (boxes[['width', 'height']] > 0).all().all()
    )


def test_padchest_table(tmp_path):
    name = 'PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv.gz'
    shutil.copy(TABLES / name, tmp_path / name)
    table, raw = read_xrays(tmp_path), pd.read_csv(TABLES / name, dtype=str)
    frontal = raw[raw['Projection'].isin(['PA', 'AP', 'AP_horizontal'])]
    assert len(table) == len(frontal) and set(table.frame['patient']) == set(frontal['PatientID'])
    assert (
        table.positive('Cardiomegaly').sum()
        == frontal['Labels'].fillna('').str.contains(r"'\s*cardiomegaly\s*'").sum()
    )
    said = (
        frontal['Labels']
        .fillna('')
        .str.findall("'([^']*)'")
        .map(lambda names: {n.strip() for n in names} - {''})  # an empty list says nothing
        .to_numpy()
    )
    void, at = (
        {'unchanged', 'exclude', 'suboptimal study'},
        {p: k for k, p in enumerate(frontal['ImageDir'] + '/' + frontal['ImageID'])},
    )
    said = said[[at[p] for p in table.frame['path']]]
    silent = np.array([not names or bool(names & void) for names in said])
    assert (
        np.array_equal(np.isnan(table.labels).any(1), silent)
        and np.isnan(table.labels[np.array([names <= void for names in said])]).all()
    )
    for name, finding in (
        ('atypical pneumonia', 'Pneumonia'),
        ('segmental atelectasis', 'Atelectasis'),
        ('reservoir central venous catheter', 'Support Devices'),
    ):
        assert table.positive(finding)[np.array([name in names for names in said])].all(), name
    with pytest.raises(DataError, match='images of .* are missing'):
        check_files(table)


def test_layout_has_the_labels_of_the_study(tmp_path):
    "The NIH's own table of 2020 and files of the right names give the study's 2,815 rows."
    download = tmp_path / 'download'
    (download / 'images').mkdir(parents=True)
    shutil.copy(TABLES / 'Data_Entry_2017_v2020.csv.gz', download)
    for name in _nih_manifest(None, 'realcxr')['image']:
        (download / 'images' / name).touch()
    layout = layout_nih(download, tmp_path / 'realcxr')
    assert (layout.found, layout.missing, layout.extra) == (2815, (), 0)
    table = read_xrays(layout.folder, 'realcxr')
    assert table.frame['patient'].nunique() == 1710
    assert summary(table)['positive'].to_dict() == {
        'No Finding': 1479,
        'Atelectasis': 409,
        'Cardiomegaly': 200,
        'Consolidation': 101,
        'Edema': 133,
        'Pleural Effusion': 394,
        'Emphysema': 43,
        'Fibrosis': 26,
        'Hernia': 4,
        'Infiltration': 486,
        'Mass': 154,
        'Nodule': 180,
        'Pleural_Thickening': 65,
        'Pneumonia': 587,
        'Pneumothorax': 173,
    }
    if not (REAL / 'labels.csv').is_file(): return
    real = read_realcxr(REAL)
    columns = ['patient', 'study', 'view', 'projection', 'age', 'sex', 'origin', *real.findings]
    pd.testing.assert_frame_equal(table.frame[columns], real.frame[columns])
    assert len(real.findings) == len(NIH_FINDINGS)
