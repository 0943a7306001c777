"From a folder as other people keep it to settings, and the manners of the command around it."

import os
import shlex
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from smlxray import cli, doctor
from smlxray.base import SmlxrayError
from smlxray.config import load_settings
from smlxray.readers import read_table
from smlxray.start import propose

WANTED = {'Pneumothorax': 26, 'Cardiomegaly': 26, 'Pleural Effusion': 26, 'No Finding': 40}
IN_WORDS = {1: 'ja', 0: 'nein', -1: 'unklar'}


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    "Small noise under labels of our own: one image per patient, enough of each finding."
    folder, rng = tmp_path_factory.mktemp('start'), np.random.default_rng(0)
    kinds = [kind for kind, count in WANTED.items() for _ in range(count)]
    frame = pd.DataFrame({kind: [float(kind == own) for own in kinds] for kind in WANTED})
    frame.loc[frame.index % 13 == 0, 'Cardiomegaly'] = -1.0
    frame['patient'] = [f'K-{7 * i}' for i in frame.index]
    frame['projection'] = ['AP' if i % 2 else 'PA' for i in frame.index]
    frame['path'] = [f'{i}.jpg' for i in frame.index]
    for path in frame['path']:
        Image.fromarray(rng.integers(0, 255, (40, 40), np.uint8)).save(folder / path)
    return folder, frame


def lay_out(source, folder, name):
    "Put the images below a folder under names that a function gives; return the labels."
    root, frame = source
    for i, path in enumerate(frame['path']):
        target = folder / name(i, frame)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((root / path).read_bytes())
    return frame


def sheet(folder, file, sep=',', **columns):
    pd.DataFrame(columns).to_csv(folder / file, index=False, sep=sep)


def words_of(frame):
    "The findings of each row in words, with a semicolon between."
    names = ['Pneumothorax', 'Cardiomegaly', 'Pleural Effusion']
    said = [[n.lower() for n in names if row[n] == 1] for _, row in frame.iterrows()]
    return ['; '.join(row) or 'normal' for row in said]


def test_foreign_columns_and_words_for_yes_and_no(source, tmp_path):
    frame = lay_out(source, tmp_path, lambda i, _: f'img/{i}.jpg')
    told = {ours: frame[theirs].map(IN_WORDS) for ours, theirs in
            dict(Erguss='Pleural Effusion', Herz='Cardiomegaly', Pneu='Pneumothorax').items()}
    sheet(tmp_path, 't.tsv', '\t', Datei=[f'img/{i}.jpg' for i in range(len(frame))],
          PatNr=frame['patient'], Strahlengang=frame['projection'], **told)
    found = propose(tmp_path, findings='Erguss=Effusion, Herz, Pneu', preset='tiny')
    assert found.rule['patient'] == '{PatNr}' and found.rule['normals'] == 'derived'
    assert found.table.findings == ('No Finding', 'Pleural Effusion', 'Herz', 'Pneu')
    assert (found.table.column('Herz') == frame['Cardiomegaly']).all()
    assert set(found.table.frame['projection']) == {'AP', 'PA'}


def test_a_list_of_findings_and_patients_in_the_names_of_files(source, tmp_path):
    frame = lay_out(source, tmp_path, lambda i, _: f'pat{i:04d}_{i % 3}.jpg')
    sheet(tmp_path, 'reports.csv', Bild=[f'pat{i:04d}_{i % 3}' for i in range(len(frame))],
          report=words_of(frame))
    found = propose(tmp_path, preset='tiny')
    assert found.rule['path'] == '{Bild}.jpg' and found.rule['patient'] == '{Bild:person}'
    assert found.table.frame['patient'].tolist() == [f'pat{i:04d}' for i in range(len(frame))]
    assert (found.table.positive('Pneumothorax') == (frame['Pneumothorax'] == 1)).all()
    assert found.table.reading.known


def test_no_table_but_folders_of_classes(source, tmp_path):
    lay_out(source, tmp_path,
            lambda i, frame: f'{words_of(frame.iloc[[i]])[0].partition(";")[0]}/person{i}_1.jpg')
    found = propose(tmp_path, preset='tiny')
    assert found.dataset == 'classes' and found.task.novel
    with pytest.raises(SmlxrayError, match='read as classes, without a table'):
        found.change('patients', 'names')


def test_paths_of_another_machine_and_nobody_known(source, tmp_path):
    frame = lay_out(source, tmp_path, lambda i, _: f'deep/{"abcdefghij"[i % 10]}{i:x}q.png.jpg')
    files = [f'C:\\old\\{"abcdefghij"[i % 10]}{i:x}q.png.jpg' for i in range(len(frame))]
    yes = {name: (frame[name] == 1).map({True: 'x', False: ''}) for name in list(WANTED)[:3]}
    sheet(tmp_path, 'list.csv', scan=files, is_valid=0, **yes)
    found = propose(tmp_path, preset='tiny')
    assert found.rule['find'] == '{scan:name}' and not found.table.reading.known
    assert found.rule['answers'] == {'x': '1', '': '0'}
    assert 'is_valid' not in found.table.findings
    assert 'counts as one' in found.lines()['patients']


def test_what_cannot_be_learned_is_said(source, tmp_path):
    lay_out(source, tmp_path / 'bare', lambda i, _: f'{i}.jpg')
    with pytest.raises(SmlxrayError, match='nothing that says what is on them'):
        propose(tmp_path / 'bare')
    sheet(tmp_path / 'bare', 't.csv', name=['1.jpg', '2.jpg', '3.jpg'], comment=['good', 'b', 'c'])
    with pytest.raises(SmlxrayError, match='no column of it answers yes or no'):
        propose(tmp_path / 'bare')
    sheet(tmp_path / 'bare', 't.csv', name=['1.jpg', '2.jpg', '3.jpg'], Edema=[1, 0, 0])
    with pytest.raises(SmlxrayError, match='Too few patients for a task'):
        propose(tmp_path / 'bare')


def test_the_command_writes_what_a_run_reads(source, tmp_path, monkeypatch, capsys):
    frame = lay_out(source, tmp_path / 'mine', lambda i, _: f'{i}.jpg')
    told = {n: frame[n].map(IN_WORDS) for n in list(WANTED)[:3]}
    sheet(tmp_path / 'mine', 't.csv', f=[f'{i}.jpg' for i in range(len(frame))],
          mrn=frame['patient'], **told)
    monkeypatch.chdir(tmp_path)
    line = 'start mine --yes --preset tiny --novel Cardiomegaly --write-only --output my.yaml'
    assert cli.call(shlex.split(line)) == 0
    said = capsys.readouterr()
    assert 'mrn' in said.out and 'smlxray run --config my.yaml' in said.err
    settings = load_settings(config=tmp_path / 'my.yaml')
    assert settings.data.novel_findings == ['Cardiomegaly']
    assert len(read_table(settings.dataset_folder, settings.table_mapping)) == len(frame)
    (tmp_path / 'my.yaml').write_text('preset: tiny\n')
    assert cli.call(shlex.split(line)) == 1
    assert 'not from `smlxray start`' in capsys.readouterr().err


def test_answers_at_the_prompt(source, tmp_path, monkeypatch, capsys):
    frame = lay_out(source, tmp_path / 'mine', lambda i, _: f'{i}.jpg')
    told = {n: frame[n].map(IN_WORDS) for n in list(WANTED)[:3]}
    sheet(tmp_path / 'mine', 't.csv', f=[f'{i}.jpg' for i in range(len(frame))],
          mrn=frame['patient'], **told)
    monkeypatch.chdir(tmp_path)
    typed = ['99', '7', 'nobody', '7', 'Pneumothorax', '']
    monkeypatch.setattr(cli, '_prompt', lambda text: typed.pop(0))
    assert cli.call(shlex.split('start mine --write-only --preset tiny')) == 0
    said = capsys.readouterr().err
    assert "There is no finding 'nobody'" in said and 'no number from 1' in said
    assert 'Pneumothorax' in (tmp_path / 'run.yaml').read_text()
    typed[:] = ['q']
    assert cli.call(shlex.split('start mine --preset tiny')) == 130
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == 'smlxray: stopped; nothing was written.'


REFUSED = """
    start nowhere
    data check nowhere
    cache build xrays --size large
    cache build nowhere
    convert nowhere --data nowhere
    run -p shotss 3
    run --config nowhere.yaml
    evaluate -p preset tini
    report nowhere
    compare nowhere.jpg other.jpg
    compare --pairs nowhere.csv
    predict nowhere
    predict . --model nowhere
    teach --positive nowhere --negative . --name A
    model info nowhere
    model info nowhere.pth
    model verify nowhere
    model export out --model nowhere
    study nowhere.yaml
    config check nowhere.yaml
    bench metrics --json no/folder/b.json
"""


def test_arguments_are_refused_before_torch_is_loaded(tmp_path):
    code = (
        'import shlex, sys\nfrom smlxray.cli import call\n'
        f'for line in {[line.strip() for line in REFUSED.split(chr(10)) if line.strip()]!r}:\n'
        '    assert call(shlex.split(line)) in (1, 2), line\n'
        '    assert "torch" not in sys.modules, line\n'
    )
    words = [sys.executable, '-c', code]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert 'Traceback' not in done.stderr


def test_the_core_is_light():
    code = 'import sys, smlxray.maml\nprint(len(sys.modules), *sys.modules)'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    count, *loaded = done.stdout.split()
    heavy = {'papermill', 'pydicom', 'pandas', 'matplotlib', 'ipykernel', 'scipy', 'sklearn'}
    assert not heavy & set(loaded) and int(count) < 1600


def test_help_stands_under_headings_in_the_order_of_use():
    done = subprocess.run(
        [sys.executable, '-m', 'smlxray.cli', '-h'], capture_output=True, text=True
    )
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith('  ')]
    names = [line[0] for line in lines]
    order = [name for group in cli._ORDER.values() for name in group]
    assert [name for name in names if name in order] == order
    assert not [line for line in done.stdout.splitlines()[1:] if line.endswith('...')]
    assert 'More:' not in done.stdout, 'a new command needs a place in `_ORDER`'


def test_what_was_stopped_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def stop(*words):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, 'run_notebook', stop)
    given = f'run -p preset tiny -p run mine -p runs_path {tmp_path}'
    assert cli.call(shlex.split(given)) == 130
    said = capsys.readouterr().err.strip()
    assert said.count('\n') == 0 and f'`smlxray {given} --resume` goes on' in said


def test_many_files_after_one_option_are_explained(capsys):
    line = 'teach --positive a.jpg b.jpg --negative c.jpg --name A'
    assert cli.call(shlex.split(line)) == 2
    assert '--positive a.jpg --positive b.jpg' in capsys.readouterr().err


def test_runs_are_listed_and_a_report_is_found(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    place = f'--runs-path {tmp_path / "all"}'
    assert cli.call(shlex.split(f'runs {place}')) == 0
    assert 'There is no run in' in capsys.readouterr().out
    for name in ('old', 'new'):
        folder = tmp_path / 'all' / name
        folder.mkdir(parents=True)
        (folder / 'config.yaml').write_text('preset: tiny\n')
        os.utime(folder / 'config.yaml', (1, 1 if name == 'old' else 2))
    (folder / 'report.html').write_text('<p>')
    assert cli.call(shlex.split(f'runs {place}')) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[1].split()[0] == 'old' and 'report.html' in said[2]
    assert cli.call(shlex.split(f'report {place}')) == 0
    assert 'all/new/report.html' in capsys.readouterr().out
    assert cli.call(shlex.split(f'report old {place}')) == 1
    assert '`smlxray evaluate -p run old` writes it' in capsys.readouterr().err


def test_doctor_names_what_is_missing(monkeypatch, capsys):
    monkeypatch.setattr(doctor, '_requirements', lambda: {'': ['torch'], 'other': ['nonesuch']})
    assert cli.call(['doctor']) == 0
    said = capsys.readouterr().out
    assert "nonesuch missing; pip install 'smlxray[other]'" in said
    assert 'X-rays per second in training' in said
    monkeypatch.setattr(doctor, '_requirements', lambda: {'': ['nonesuch']})
    assert cli.call(['doctor']) == 1


def test_a_column_that_repeats_as_ids_is_asked_about_and_said_once(source, tmp_path, capsys):
    frame = lay_out(source, tmp_path / 'mine', lambda i, _: f'{i}.jpg')
    persons = [f'X-{i * 3 // 4:03}' for i in frame.index]
    told = {kind: frame[kind].abs() for kind in WANTED if kind != 'No Finding'}
    sheet(tmp_path / 'mine', 'list.csv', image=frame['path'], who=persons, **told)
    words = ['start', str(tmp_path / 'mine'), '--yes', '--write-only', '--preset', 'tiny']
    words += ['--output', str(tmp_path / 'run.yaml')]
    assert cli.call(words) == 1 and not (tmp_path / 'run.yaml').exists()
    assert 'say --patients who, or --patients each' in capsys.readouterr().err
    assert cli.call([*words, '--patients', 'who']) == 0
    said = capsys.readouterr()
    assert 'by {who}' in said.out and 'unknown' not in said.out + said.err
    assert cli.call([*words, '--patients', 'each']) == 0
    said = capsys.readouterr()
    assert said.out.count('are they in who, which tells') == 1
    assert said.err.count('a split cannot keep a person on one side') == 1
    mapped = ['data', 'check', str(tmp_path / 'mine'), '--no-images', '--dataset']
    assert cli.call([*mapped, str(tmp_path / 'run-table.yaml')]) == 0
    assert 'kinds of warning: 1' in capsys.readouterr().out
