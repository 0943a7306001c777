"Names from outside: in a terminal, in a cell of a table, in a folder, and as a column."

import os

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from smlxray.base import SmlxrayError, for_cell, for_folder, for_terminal
from smlxray.bundle import Bundle, predict_files
from smlxray.cli import call, write_predictions
from smlxray.config import load_settings
from smlxray.phantom import draw_phantom
from smlxray.siamese import SiameseNet


@pytest.fixture(scope='module')
def bundle():
    torch.manual_seed(0)
    settings = load_settings('tiny', backbone='conv4', embedding_dim=8)
    data = dict(name='toy', rows=8, patients=8, digest='0' * 16)
    labels = dict(uncertain='ignore', blanks='negative', negatives='normals', matched_on=[])
    facts = dict(phase='siamese', smlxray='0.2', base=[], novel=[], split={})
    b = Bundle(SiameseNet('conv4', 8), settings, {}, {}, facts | dict(data=data, labels=labels))
    x = torch.randint(0, 256, (8, 1, *b.size), dtype=torch.uint8)
    for name in ('error', 'file', 'Unusual', 'nearest', 'model', 'remarks', '=1+1', '肺炎', '气胸'):
        b.findings[name] = b.teach(name, x[:4], x[4:], steps=0)
    return b


@pytest.fixture
def scans(tmp_path):
    folder = tmp_path / 'scans'
    folder.mkdir()
    for name in ('=HYPERLINK(1).png', '-a.png', 'b\x1b[2J.png', 'c.png'):
        Image.fromarray(draw_phantom(1, size=64).image).save(folder / name)
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(folder / 'black.png')
    return folder


def test_findings_may_be_called_anything(bundle, scans):
    rows = pd.concat(predict_files(bundle, sorted(scans.iterdir())))
    assert list(rows.columns[:3]) == ['file', 'error', 'error (finding)'] and rows.shape[1] == 16
    assert rows["'=1+1"].notna().all() and rows['Unusual (finding)'].between(0, 1).all()
    assert len({for_folder(name) for name in bundle.findings}) == len(bundle.findings)


def test_a_table_computes_and_steers_nothing(bundle, scans, tmp_path):
    out = tmp_path / 'p.csv'
    said = write_predictions(bundle, scans, out)
    text = out.read_text()
    assert said['rows'] == 5 and said['unusual'] == 5  # nothing is known about distances
    assert '\x1b' not in text and not any(line[:1] in '=+-@' for line in text.splitlines())
    table = pd.read_csv(out).set_index('file')
    assert table.remarks['black.png'].startswith('one grey level: ')
    assert 'one grey level' not in table.remarks['c.png']
    assert table.remarks.str.contains('taught on drawings only').all()


def test_a_table_resumes_under_the_names_that_it_holds(bundle, scans, tmp_path):
    write_predictions(bundle, scans, whole := tmp_path / 'whole.csv')
    from smlxray.cli import UnfinishedTable, _plan_of

    part = UnfinishedTable(tmp_path / 'part.csv', _plan_of(bundle, None, scans))
    part.start()
    part.output.write_text(''.join(whole.read_text().splitlines(keepends=True)[:3]))
    assert write_predictions(bundle, scans, part.output)['new'] == 3
    assert len(pd.read_csv(part.output)) == 5


def test_images_that_are_gone_for_a_moment_are_not_final(bundle, scans, tmp_path, monkeypatch):
    import smlxray.bundle

    real = smlxray.bundle.image_files

    def then_lost(folder):
        found = real(folder)
        os.rename(scans / 'c.png', tmp_path / 'c.png')
        return found

    monkeypatch.setattr(smlxray.bundle, 'image_files', then_lost)
    with pytest.raises(SmlxrayError, match='1 of the X-rays were gone'):
        write_predictions(bundle, scans, tmp_path / 'p.csv')
    monkeypatch.undo()
    os.rename(tmp_path / 'c.png', scans / 'c.png')
    assert write_predictions(bundle, scans, tmp_path / 'p.csv')['new'] == 1


def test_outputs_are_no_inputs(scans, tmp_path, capsys):
    pairs = tmp_path / 'pairs.csv'
    pairs.write_text('a,b\n')
    assert call(['compare', '--pairs', str(pairs), '--output', str(pairs)]) == 1
    (scans / 'labels.csv').write_text('path,Edema\nc.png,1\nblack.png,0\n')
    before = (scans / 'labels.csv').read_text()
    assert call(['data', 'check', str(scans), '--list', str(scans / 'labels.csv')]) == 1
    assert (scans / 'labels.csv').read_text() == before
    image = str(scans / 'c.png')
    assert call(['compare', image, image, '--picture', image]) == 1
    assert capsys.readouterr().err.count('name another file to write.') == 3


def test_outputs_replace_only_what_the_same_command_made(bundle, scans, tmp_path, capsys):
    bundle.save(tmp_path / 'model')
    model, image = ['--model', str(tmp_path / 'model')], str(scans / 'c.png')
    pairs, table = tmp_path / 'pairs.csv', tmp_path / 'table.csv'
    pairs.write_text(f'a,b\n{image},{scans}/=HYPERLINK(1).png\n')
    (scans / 'labels.csv').write_text('path,patient,Edema\n=gone.png,1,1\nblack.png,2,0\n')
    works = {
        tmp_path / 'both.png': ['compare', image, image, *model, '--picture'],
        tmp_path / 'both.svg': ['compare', image, image, *model, '--picture'],
        table: ['compare', '--pairs', str(pairs), *model, '--output'],
        tmp_path / 'problems.csv': ['data', 'check', str(scans), '--list'],
    }
    for path, words in works.items():
        path.write_text('a diary, kept by hand')
        assert call([*words, str(path)]) == 1, words
        assert path.read_text() == 'a diary, kept by hand'
        assert 'name another file, or say --overwrite' in capsys.readouterr().err
        done = call([*words, str(path), '--overwrite'])
        made = path.read_bytes()
        assert call([*words, str(path)]) == done and b'diary' not in made
        if path.suffix == '.csv':
            assert not any(line[:1] in '=+-@' for line in path.read_text().splitlines())
    assert not list(tmp_path.glob('.draft-*'))


def test_a_taught_finding_gives_way_to_its_other_spelling(bundle, tmp_path, capsys):
    from smlxray.bundle import TaughtFinding
    from smlxray.cli import _add_taught

    bundle.save(tmp_path / 'model')
    loaded = Bundle.load(tmp_path / 'model')
    known = list(loaded.findings)
    examples = torch.randint(0, 256, (2, 3, 1, *bundle.size), dtype=torch.uint8)
    again = bundle.teach('un_USUAL\u00a0', *examples, steps=0)
    again.save(tmp_path / 'findings' / 'again')
    assert TaughtFinding.load(tmp_path / 'findings' / 'again').name == again.name
    _add_taught(loaded)
    assert len(loaded.findings) == len(known) and again.name in loaded.findings
    assert 'takes the place of Unusual' in capsys.readouterr().err


@pytest.mark.parametrize('text', ['\x1b]0;t\x07', 'a\x9b2J', 'x\u202etxt', '\x00', '\r'])
def test_terminals_are_not_steered(text):
    assert for_terminal(text).isprintable() and for_terminal(text).isascii()
    assert for_cell(f'={text}').startswith("'=")
