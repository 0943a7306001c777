"The command, in processes of its own: exit codes, sentences, and nothing half-written."

import contextlib, csv, functools, io, json, os, re, resource, shlex, shutil, subprocess, sys
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.main import get_command

from smlxray import base, bench, cli
from smlxray.cli import app, call
from smlxray.methods import METHODS
from smlxray.phantom import write_phantoms

ONE_THREAD = {**os.environ, 'OMP_NUM_THREADS': '1'}


def run_python(*words, cwd, env=None, **more):
    "Run this Python with some words; give what subprocess gives."
    command = [sys.executable, *map(str, words)]
    env = {**ONE_THREAD, **(env or {})}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env, **more)


def smlxray(*words, cwd, limit=None):
    "Run the command; give its exit code, output and error stream."

    def low():
        if limit:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = run_python('-m', 'smlxray.cli', *words, cwd=cwd, preexec_fn=low)
    assert 'Traceback' not in done.stdout + done.stderr, done.stderr
    return done.returncode, done.stdout, done.stderr


def within(*words, cwd):
    "Run the command in this process, which need not load anything; give what `smlxray` gives."
    before = os.getcwd()
    os.chdir(cwd)
    try:
        return said_by(shlex.join(map(str, words)))
    finally:
        os.chdir(before)


@pytest.fixture(scope='module')
def xrays(tmp_path_factory):
    folder = tmp_path_factory.mktemp('cli') / 'xrays'
    return write_phantoms(folder, patients=60, size=96, progress=False)


def test_a_build_that_hits_the_file_size_limit_goes_on_afterwards(xrays, tmp_path):
    build = 'cache', 'build', xrays, '--size', '128', '--cache-path', 'cache'
    code, out, said = smlxray(*build, cwd=tmp_path, limit=500_000)
    assert code == 1 and said.startswith('smlxray: ') and len(said.splitlines()) == 1, said
    assert within('cache', 'info', '--cache-path', 'cache', cwd=tmp_path)[1].count('complete') == 0
    assert smlxray(*build, cwd=tmp_path)[0] == 0
    code, out, _ = within('cache', 'verify', '--cache-path', 'cache', cwd=tmp_path)
    assert code == 0 and 'sound' in out


def test_a_disk_that_may_not_be_written_is_one_sentence(xrays, tmp_path):
    (tmp_path / 'file').write_text('no folder')
    build = 'cache', 'build', xrays, '--size', '32', '--cache-path', 'file/cache'
    code, _, said = within(*build, cwd=tmp_path)
    assert code == 1 and 'file' in said and len(said.splitlines()) == 1


def write_download(folder, share):
    "A download of NIH ChestX-ray14 with some of the images that the study's manifest names."
    manifest = pd.read_csv(base.shipped_file('tables/nih_manifest.csv.gz'), dtype=str)
    names = manifest['image'][manifest['collection'] == 'realcxr']
    names = names[: int(share * len(names))]
    (folder / 'images_001' / 'images').mkdir(parents=True)
    one = folder / 'one.png'
    Image.fromarray(np.zeros((8, 8), 'uint8')).save(one)
    for name in names:
        os.link(one, folder / 'images_001' / 'images' / name)
    patients = names.str[:8].astype(int)
    table = {'Image Index': names, 'Finding Labels': 'No Finding', 'Patient ID': patients}
    table |= {'Follow-up #': names.str[9:12].astype(int), 'Patient Age': 50}
    table |= {'Patient Gender': 'F', 'View Position': 'PA'}
    pd.DataFrame(table).to_csv(folder / 'Data_Entry_2017_v2020.csv', index=False)
    return len(names)


def test_a_download_is_laid_out_for_the_study(tmp_path):
    found = write_download(tmp_path / 'download', share=0.95)
    layout = 'data', 'layout', 'nih', '--images', 'download', '--out', 'study'
    code, out, said = smlxray(*layout, cwd=tmp_path)
    assert code == 0, said
    assert f'{found:,} of ' in said and out == 'Next: smlxray study --folder study\n'
    assert len(list((tmp_path / 'study' / 'images').iterdir())) == found
    code, out, _ = smlxray('data', 'check', 'study', '--no-images', cwd=tmp_path)
    assert f'{found:,}' in out
    code, _, said = smlxray(*layout, cwd=tmp_path)
    assert code == 1 and 'is there already' in said


def test_a_download_that_is_not_complete_leaves_nothing(tmp_path):
    write_download(tmp_path / 'download', share=0.5)
    layout = 'data', 'layout', 'nih', '--images', 'download', '--out', 'study'
    code, _, said = smlxray(*layout, cwd=tmp_path)
    assert code == 1 and 'is the download complete?' in said and len(said.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ['download']


def test_a_hospital_folder_is_checked_like_any_other(tmp_path):
    "One image is missing, one a bomb, one patient in two parts, one label contradicts another."
    folder = tmp_path / 'h'
    folder.mkdir()
    for i in range(6):
        noise = np.random.default_rng(i).integers(0, 256, (40, 40), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f'{i}.png')
    (folder / '3.png').unlink()
    Image.new('L', (30_000, 30_000)).save(folder / '4.png')
    rows = [
        'path,patient,split,No Finding,Edema',
        '0.png,a,train,1,1',
        '1.png,a,test,,1',
        '2.png,b,train,1,',
        '3.png,c,train,,1',
        '4.png,d,train,,1',
        '5.png,e,train,,0',
    ]
    (folder / 'labels.csv').write_text('\n'.join(rows) + '\n')
    code, out, err = within('data', 'check', 'h', cwd=tmp_path)
    assert code == 1 and not err
    for words in ('missing image', 'unreadable image', 'pixels', 'patient in two parts'):
        assert words in out, (words, out)
    assert 'No Finding' in out.split('warning', 1)[1]
    assert within('data', 'check', 'h', '--no-images', cwd=tmp_path)[0] == 1


def test_a_path_that_climbs_out_is_refused(tmp_path):
    (tmp_path / 'h').mkdir()
    (tmp_path / 'h/labels.csv').write_text('path,patient,Edema\n../secret.png,a,1\n')
    code, _, said = within('data', 'check', 'h', cwd=tmp_path)
    assert code == 1 and 'secret.png' in said and len(said.splitlines()) == 1


def test_bench_writes_json(tmp_path, monkeypatch, capsys):
    # at full size: smlxray bench metrics
    small = functools.partial(bench.bench_metrics, images=200, resamples=40, rounds=1)
    monkeypatch.setattr(bench, 'bench_metrics', small)
    app(['bench', 'metrics', '--json', str(tmp_path / 'b.json')], standalone_mode=False)
    saved = json.loads((tmp_path / 'b.json').read_text())
    assert {'case', 'method', 'baseline', 'ratio'} <= set(saved['rows'][0])
    assert 'auc_bootstrap' in capsys.readouterr().out
    assert str(tmp_path) not in str(saved)


MISTAKES = [
    ('data check nowhere', 1, 'nowhere'),
    ('cache build . --size 0', 1, '--size'),
    ('cache build . --dataset nihh', 1, "dataset is 'nihh'"),
    ('cache build . --dataset no.yaml', 1, 'no.yaml'),
    ('convert nowhere --data .', 1, ''),
    ('bench nothing', 2, 'nothing'),
    ('cache build', 2, 'path'),
    ('data check . --views side', 2, 'side'),
    ('cache info --cache-path none', 0, ''),
]


@pytest.mark.parametrize('line, code, say', MISTAKES)
def test_mistakes_get_a_sentence(line, code, say, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    got, out, said = said_by(line)
    assert got == code and say in said.lower() + said, (got, out, said)
    if code == 1:
        assert len(said.splitlines()) == 1 and said.startswith('smlxray: ')
    assert not list(tmp_path.iterdir()), 'a mistake left something behind'


# Every example of --help and of the README, as printed

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = [
    ['start'],
    ['runs'],
    ['report'],
    ['doctor'],
    ['run'],
    ['demo'],
    ['evaluate'],
    ['train', 'siamese'],
    ['train', 'meta'],
    ['compare'],
    ['predict'],
    ['teach'],
    ['config', 'init'],
    ['config', 'show'],
    ['config', 'check'],
    ['model', 'info'],
    ['model', 'verify'],
    ['model', 'export'],
    ['model', 'build'],
    ['episodes', 'export'],
    ['episodes', 'check'],
    ['score'],
    ['power'],
    ['cite'],
    ['app'],
    ['data', 'check'],
    ['data', 'layout', 'nih'],
    ['data', 'layout', 'experts'],
    ['cache', 'build'],
    ['cache', 'info'],
    ['cache', 'verify'],
    ['convert'],
    ['bench'],
    ['study'],
    ['embed'],
    ['leaderboard'],
]


def helped(words):
    "The help text of a command, in this process."
    with contextlib.redirect_stdout(out := io.StringIO()):
        assert call([*words, '--help']) == 0
    return out.getvalue()


def examples(words):
    _, found, lines = helped(words).partition('Examples:')
    return re.findall(r'^ +smlxray (.+)$', lines, re.M) if found else []


def commands(group=None):
    "All commands as lists of words, without the hidden ones."
    for name, command in (group or get_command(app)).commands.items():
        if command.hidden:
            continue
        if not hasattr(command, 'commands'):
            yield [name]
            continue
        for words in commands(command):
            yield [name, *words]


def test_every_command_is_known_here():
    names = 'a command was added or renamed: name it in COMMANDS'
    assert sorted(commands()) == sorted(COMMANDS), names
    for words in COMMANDS:
        line = f'smlxray {" ".join(words)} --help'
        assert examples(words) or words == ['convert'], f'{line} shows no example'


def test_the_old_name_of_teach_says_that_it_is_old(small, monkeypatch, capsys):
    monkeypatch.chdir(small)
    line = '--positive 0.png --negative 1.png --name Old --model model --steps 0 --output old'
    assert call(['adapt', *line.split()]) == 0
    said = capsys.readouterr()
    assert '`adapt` is now called `teach`' in said.err and 'Old' in said.out
    shutil.rmtree(small / 'old')


def test_help_reads_the_registries():
    said = helped(['config', 'show'])
    for registry in (base.ALGORITHMS, base.BACKBONES, base.LOSSES, base.READERS):
        assert all(name in said for name in registry.names), registry.kind
    assert all(name in helped(['cache', 'build']) for name in base.READERS)
    assert all(name in helped(['bench']) for name in base.BENCHES)
    assert 'maml|fomaml|anil|reptile' in helped(['teach'])


def test_the_methods_of_a_study_are_listed(capsys):
    assert call(['study', '--methods']) == 0
    said = capsys.readouterr().out
    for name in METHODS:
        assert name in said and METHODS.help(name) in said


@pytest.fixture(scope='module')
def clone(tmp_path_factory):
    "A bare clone: what git knows, and nothing that was made here."
    here = tmp_path_factory.mktemp('clone')
    copy_known_files(here, ('smlxray', 'config', 'nbs', 'settings.ini'))
    return here


def copy_known_files(folder, tops):
    "Copy what git knows of some files and folders."
    listed = subprocess.run(
        ['git', 'ls-files', '-co', '--exclude-standard'], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip('no git here')
    for name in filter(None, listed.stdout.split('\n')):
        if name.split('/')[0] not in tops or not (ROOT / name).is_file():
            continue
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((ROOT / name).read_bytes())


def readme_commands(command='smlxray'):
    "The lines of the README (written from the notebook index) and of the tour that call a command."
    cells = []
    for page in ('index.ipynb', 'tour.ipynb'):
        cells += json.loads((ROOT / 'nbs' / page).read_text(encoding='utf-8'))['cells']
    texts = [''.join(cell['source']) for cell in cells if cell['cell_type'] == 'markdown']
    blocks = re.findall(r'```bash\n(.*?)```', '\n'.join(texts), re.S)
    lines = [line.split(' #')[0].strip() for block in blocks for line in block.split('\n')]
    return [
        line.removeprefix(f'{command} ') for line in lines if line.startswith(f'{command} ')
    ]


TRAINS = ('run ', 'demo', 'train', 'evaluate')
MORE_DATA = ('study', 'data layout', 'embed data/nih', 'leaderboard mine', 'leaderboard runs')
# a server until it is stopped; X-rays of your own
NEEDS_MORE = ('app', 'start my-xrays', 'model build', *MORE_DATA)
# a notebook or three each, or measuring
LONG = (*TRAINS, 'start', 'report', 'score', 'bench', 'model export embedding.onnx')


def all_examples():
    "Every line of --help and of the README, those that train first, the README's in its order."
    helps = [line for words in [[], *COMMANDS] for line in examples(words)]
    lines = dict.fromkeys([*helps, *readme_commands()])
    able = [line for line in lines if not line.startswith(NEEDS_MORE)]
    return sorted(able, key=lambda line: not line.startswith(TRAINS))


RUN_LINES = """
import json, sys
import smlxray.cli as cli

bad = []
for words in json.load(open('lines.json')):
    print('$', *words, flush=True)
    if cli.call(words):
        bad.append(words)
print('failed:', bad)
sys.exit(bool(bad))
"""


def run_lines(lines, clone):
    "Run commands in one process, so that PyTorch is loaded once (notebooks have their own)."
    (clone / 'lines.json').write_text(json.dumps([shlex.split(line) for line in lines]))
    done = run_python('-c', RUN_LINES, cwd=clone, env={'PYTHONPATH': str(clone)})
    said = done.stdout[-1500:] + done.stderr[-3000:]
    assert done.returncode == 0 and 'Traceback' not in done.stderr, said


MADE = [
    'runs/tiny/train_siamese.ipynb',
    'runs/tiny/bundle/card.md',
    'predictions.csv',
    'comparison.png',
    'shared-model/manifest.json',
    'answers-with-mine.csv',
    'to-a-colleague/card.md',
    'run.yaml',
]


def test_the_examples_run_as_printed(clone):
    "The quick ones; all of them run in test_cli_examples.py, which is slow."
    lines = all_examples()
    assert len(lines) > 25
    assert all('-p preset tiny' in line for line in lines if line.startswith(TRAINS))
    quick = [line for line in lines if not line.startswith(LONG)]
    run_lines(['train siamese -p preset tiny', *quick], clone)
    for made in MADE:
        assert (clone / made).exists(), made
    rows = list(csv.DictReader(open(clone / 'predictions.csv')))
    assert len(rows) == 16 and all(0 < float(row['Edema']) < 1 for row in rows)


# Wrong input, at every command


@pytest.fixture(scope='module')
def small(tmp_path_factory):
    "A folder with a bundle, two X-rays, and things that are none."
    import torch
    from smlxray.bundle import Bundle
    from smlxray.config import load_settings
    from smlxray.phantom import draw_phantom
    from smlxray.siamese import SiameseNet

    here = tmp_path_factory.mktemp('small')
    torch.manual_seed(0)
    labels = dict(uncertain='ignore', blanks='negative', negatives='normals', matched_on=[])
    data = dict(name='x', rows=1, patients=1, digest='0')
    facts = dict(phase='siamese', smlxray='0', base=[], novel=[], split={}, data=data)
    settings = load_settings('tiny', backbone='conv4')
    pairs = {'pairs.same': torch.empty(0), 'pairs.different': torch.empty(0)}
    b = Bundle(SiameseNet('conv4', 8), settings, {}, pairs, dict(facts, labels=labels))
    for k in range(2):
        Image.fromarray(draw_phantom(k, size=64).image).save(here / f'{k}.png')
    x = b.read([here / '0.png', here / '1.png'])
    b.findings['Edema'] = b.teach('Edema', x[:1], x[1:], steps=0)
    b.save(here / 'model')
    (here / 'text.png').write_text('no image')
    (here / 'empty').mkdir()
    (here / 'pairs.csv').write_text('left,right\n0.png,1.png\n')
    (here / 'bad.yaml').write_text('data: 7\n')
    (here / 'there.csv').write_text('file\n')
    (here / 'broken.yaml').write_text('a: [1, 2\n  b: {')
    (here / 'binary.yaml').write_bytes(b'\xff\xfe\x00')
    (here / 'key.yaml').write_text('fold: {}\n')
    (here / 'method.yaml').write_text('folds: {a: [Edema]}\nmethods: {m: {method: frozenn}}\n')
    (here / 'three.yaml').write_text('folds: 3\n')
    (here / 'fake.pth').write_bytes(b'no tensors')
    (here / 'table').mkdir()
    (here / 'table/labels.csv').touch()
    (here / 'runs/begun').mkdir(parents=True)
    stranger = Bundle(SiameseNet('conv4', 8), b.settings, {}, {})
    stranger.teach('Other', x[:1], x[1:], steps=0).save(here / 'other')
    return here


WRONG = [
    ('run --mode everything', 2, 'everything'),
    ('run -p preset huge', 1, 'preset'),
    ('run -p shotss 7', 1, 'did you mean meta.shots'),
    ('run --config bad.yaml', 1, 'data'),
    ('run --config none.yaml', 1, 'none.yaml'),
    ('run --config broken.yaml', 1, 'not valid YAML in line 2'),
    ('run --config binary.yaml', 1, 'not UTF-8'),
    ('run --config empty', 1, 'Is a directory'),
    ('run -p run ../elsewhere', 1, 'plain name of a folder'),
    ('run -p preset tiny -p runs_path text.png', 1, 'cannot be made'),
    ('train meta -p algorithm mamll', 1, "Did you mean 'maml'?"),
    ('evaluate -p backbone resnet19', 1, "Did you mean 'resnet18'?"),
    ('trian', 2, 'trian'),
    ('data check empty', 1, 'empty'),
    ('data check text.png', 1, 'is a file, not a folder'),
    ('data check . --list empty', 1, 'empty is a folder'),
    ('data check table --dataset chexpertt', 1, "did you mean 'chexpert'?"),
    ('data check table --dataset broken.yaml', 1, 'not valid YAML'),
    ('data check table', 1, 'is empty'),
    ('data layout nih --images gone --out laid', 1, 'gone'),
    ('data layout nih --images empty --out laid', 1, 'Data_Entry_2017'),
    ('data layout nih --images empty --out model', 1, 'not empty'),
    ('data layout experts --folder gone --readings table --out laid', 1, 'gone'),
    ('data layout experts --folder empty --readings gone.csv --out laid', 1, 'gone.csv'),
    ('cache build table --size 1x2x3', 1, '--size'),
    ('convert text.png --data table', 1, 'table'),
    ('bench metrics --json no/where.json', 1, 'where.json'),
    ('bench metrics --json empty', 1, 'empty is a folder'),
    ('study gone.yaml', 1, 'gone.yaml'),
    ('study broken.yaml', 1, 'not valid YAML'),
    ('study key.yaml', 1, 'did you mean study.folds?'),
    ('study method.yaml', 1, "did you mean 'frozen'?"),
    ('study three.yaml', 1, 'names with values under them'),
    ('study --folder gone', 1, 'gone'),
    ('study --fold 9', 1, 'Known are'),
    ('demo -p shots none', 1, 'meta.shots'),
    ('evaluate -p shots 0', 1, 'meta.shots'),
    ('train', 2, ''),
    ('train cnn', 2, 'cnn'),
    ('train siamese -p shots', 2, '-p takes a key'),
    ('train meta -p algorithm sgd', 1, 'meta.algorithm'),
    ('compare 0.png --model model', 2, 'Name two X-rays'),
    ('compare 0.png gone.png --model model', 1, 'gone.png'),
    ('compare 0.png text.png --model model', 1, 'text.png'),
    ('compare 0.png 1.png --model none_such', 1, 'none_such'),
    ('compare --pairs pairs.csv --model model', 1, 'columns a and b'),
    ('compare --pairs gone.csv --model model', 1, 'gone.csv'),
    ('compare 0.png 1.png --model model --picture no/where.png', 1, 'where.png'),
    ('compare 0.png 1.png --model empty', 1, 'manifest.json'),
    ('compare 0.png 1.png --model begum', 1, "did you mean 'begun'?"),
    ('compare 0.png 1.png --model begun', 1, 'was not trained yet'),
    ('compare 0.png 1.png --model model --picture two.xyz', 1, 'end its name in .png'),
    ('compare 0.png 1.png --model model --picture empty', 1, 'empty is a folder'),
    ('compare 0.png empty --model model', 1, 'name an image file'),
    ('compare --pairs binary.yaml --model model', 1, 'no CSV file'),
    ('predict gone --model model', 1, 'gone'),
    ('predict empty --model model', 1, 'empty'),
    ('predict . --model model --output no/p.csv', 1, 'p.csv'),
    ('predict . --model model --output there.csv', 1, 'there.csv exists'),
    ('predict . --model model --prevalence often', 1, '--prevalence'),
    ('predict . --model model --prevalence 2', 1, 'between 0 and 1'),
    ('predict . --model model --prevalence Gout=.1', 1, 'Gout'),
    ('predict . --model model --prevalence Edma=.1', 1, "did you mean 'Edema'?"),
    ('predict . --model model --batch-size 0', 2, 'batch-size'),
    ('predict . --model model --output empty --overwrite', 1, 'empty is a folder'),
    ('predict . --model model --finding other', 1, 'another network'),
    ('predict . --model model --finding empty', 1, 'manifest.json'),
    ('predict', 2, 'source'),
    ('teach --positive 0.png --negative 0.png --name A --model model', 1, 'among the positive'),
    ('teach --positive empty --negative 1.png --name A --model model', 1, 'empty'),
    ('teach --positive 0.png --name A', 2, '--negative'),
    ('teach --positive 0.png --negative 1.png --name Edema --model model', 1, 'already'),
    ('teach --positive 0.png --negative 1.png --name " " --model model', 1, 'needs a name'),
    ('teach --positive text.png --negative 1.png --name A --model model', 1, 'text.png'),
    ('teach --positive 0.png --negative 1.png --name A --model model --steps -1', 2, 'steps'),
    ('teach --positive 0.png --negative 1.png --name A --model model --lr 1e30 --output x', 1, ''),
    ('config init bad.yaml', 1, 'exists'),
    ('config init no/such/place.yaml --preset huge', 2, 'huge'),
    ('config show -p nothing 1', 1, 'nothing'),
    ('config check gone.yaml', 1, 'gone.yaml'),
    ('config check bad.yaml', 1, 'data'),
    ('config init empty --force', 1, 'empty is a folder'),
    ('model info gone.pth', 1, 'gone.pth'),
    ('model info none_such', 1, 'none_such'),
    ('model verify empty', 1, 'manifest.json'),
    ('model verify begun', 1, 'has no bundle yet'),
    ('model info fake.pth', 1, 'fake.pth is refused'),
    ('app --run gone', 1, 'gone'),
    ('app --bundle empty', 1, 'manifest.json'),
    ('app --store text.png', 1, 'text.png is a file'),
    ('app --port 99999', 2, 'port'),
    ('model export no/where --model model', 1, 'where'),
    ('model export empty --model model', 1, 'empty exists'),
    ('model export', 2, 'output'),
]


def said_by(line):
    "Call the command in this process; give its exit code, output and error stream."
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = call(shlex.split(line))
    return code, out.getvalue(), err.getvalue()


def test_wrong_input_gets_a_sentence_at_every_command(small, monkeypatch):
    "Each in a process would take minutes; the way out is the same function."

    def listed():
        return sorted(path.relative_to(small).as_posix() for path in small.rglob('*'))

    monkeypatch.chdir(small)
    there = listed()
    for line, code, say in WRONG:
        got, out, err = said_by(line)
        assert got == code and say in out + err, (line, got, out, err)
        if code == 1:
            assert err.startswith('smlxray: ') and len(err.splitlines()) == 1, (line, err)
            assert not out, (line, out)
        left = [path for path in listed() if path not in there]
        assert not left, (line, 'left something behind', left)


def test_a_mistake_is_a_sentence_in_a_process_too(small):
    code, out, said = smlxray('predict', 'gone', '--model', 'model', cwd=small)
    assert (code, out, said) == (1, '', 'smlxray: There is no folder or file gone.\n')


def test_results_are_alone_on_the_output(small, tmp_path):
    "Progress and remarks go to the error stream: the output is JSON and nothing else."
    words = 'predict', '.', '--model', 'model', '--output', tmp_path / 'p.csv', '--json'
    code, out, err = smlxray(*words, cwd=small)
    assert code == 0, err
    assert json.loads(out)['rows'] == 3 and json.loads(out)['errors'] == 1
    code, out, err = smlxray(*'config show -p preset tiny -p shots 3 --json'.split(), cwd=small)
    assert json.loads(out)['meta']['shots'] == 3


def test_a_notebook_that_stops_at_a_mistake_says_its_sentence(tmp_path):
    "The settings are fine, and so is the table; what is wrong, only the notebook can know."
    write_phantoms(tmp_path / 'x', patients=60, size=48, seed=0, workers=1, progress=False)
    for image in (tmp_path / 'x').rglob('*.jpg'): image.write_bytes(b'cut off')
    line = 'train siamese -p preset tiny -p dataset chexpert -p dataset_path x -p run r'
    code, out, err = smlxray(*line.split(), cwd=tmp_path)
    last = err.splitlines()[-1]
    assert code == 1 and not out, err
    assert 'images of x can be read' in last and last.startswith('smlxray: '), err
    assert (tmp_path / 'runs/r/train_siamese.ipynb').exists()


@pytest.mark.parametrize('command', ['run', 'evaluate', 'train siamese --processes 2'])
def test_a_run_without_data_leaves_nothing(tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    line = f'{command} -p preset tiny -p dataset chexpert -p dataset_path nowhere'
    assert call(line.split()) == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith('smlxray: The data folder ') and "nowhere' does not exist" in said
    assert not list(tmp_path.iterdir())


def test_remarks_are_no_results(tmp_path):
    "A table with a column that is no finding: the remark must not get among the JSON."
    rows = 'path,patient,ward,Edema\na.png,p,north,1\nb.png,q,south,0\n'
    (tmp_path / 'labels.csv').write_text(rows)
    words = 'data', 'check', '.', '--no-images', '--json'
    code, out, err = smlxray(*words, cwd=tmp_path)
    assert 'ward' in err and isinstance(json.loads(out), list), (out, err)


def test_a_closed_pipe_is_no_mistake(tmp_path):
    read, write = os.pipe()
    os.close(read)
    words = [sys.executable, '-m', 'smlxray.cli', 'config', 'show']
    done = subprocess.run(words, stdout=write, stderr=subprocess.PIPE, cwd=tmp_path)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b'')


def test_ctrl_c_is_one_line(small, monkeypatch, capsys):
    def interrupted(*words, **options):
        raise KeyboardInterrupt

    monkeypatch.chdir(small)
    monkeypatch.setattr('smlxray.bundle.predict_files', interrupted)
    line = 'predict 0.png --model model --output stopped.csv'
    assert call(line.split()) == 130
    said = capsys.readouterr()
    how = 'the same command goes on after the rows that are written'
    assert said.err == f'smlxray: stopped; {how}.\n' and not said.out
    for left in small.glob('*stopped.csv*'):
        left.unlink()


def test_a_folder_that_may_not_be_written_is_one_sentence(small, monkeypatch, capsys):
    "Tests may run as root, who may write anywhere, so the refusal is played."

    def refused(*words, **options):
        raise PermissionError(13, 'Permission denied', 'kept/p.csv')

    monkeypatch.chdir(small)
    monkeypatch.setattr('smlxray.cli.write_atomic', refused)
    for line in ('predict 0.png --model model --output p.csv', 'config init new.yaml'):
        assert call(line.split()) == 1
        said = capsys.readouterr()
        assert said.err == 'smlxray: Permission denied: kept/p.csv\n' and not said.out


def test_completion_is_offered(tmp_path):
    words = '-m', 'smlxray.cli', '--show-completion', 'bash'
    env = {'_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION': '1'}
    done = run_python(*words, cwd=tmp_path, env=env)
    assert done.returncode == 0 and 'complete' in done.stdout and 'smlxray' in done.stdout


PACKAGED = ('smlxray', 'config', 'nbs', 'settings.ini', 'setup.py', 'LICENSE', 'README.md')


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
    "A wheel, built and put into a folder of its own."
    here = tmp_path_factory.mktemp('wheel')
    copy_known_files(here / 'src', PACKAGED)
    pip = '-m', 'pip', '--disable-pip-version-check', '-q'
    how = '--no-deps', '--no-build-isolation', '-w', here
    made = run_python(*pip, 'wheel', *how, here / 'src', cwd=here)
    assert made.returncode == 0, made.stderr[-2000:]
    wheel = next(here.glob('*.whl'))
    made = run_python(*pip, 'install', '--no-deps', '--target', here / 'site', wheel, cwd=here)
    assert made.returncode == 0, made.stderr[-2000:]
    return here / 'site'


@pytest.mark.slow  # `make test` installs a wheel and runs the notebooks, but not both at once
def test_an_installed_wheel_trains(installed, tmp_path):
    "The notebooks and presets are in it, and a run happens far from any checkout."

    def run(*words):
        return run_python(*words, cwd=tmp_path, env={'PYTHONPATH': str(installed)})

    few = '-p patients 150 -p backbone conv4 -p novel_findings Cardiomegaly'
    line = f'train siamese -p preset tiny {few}'
    done = run('-m', 'smlxray.cli', *line.split())
    assert done.returncode == 0, done.stderr[-2000:]
    cells = json.loads((tmp_path / 'runs/tiny/train_siamese.ipynb').read_text())['cells']
    assert all(cell.get('execution_count') for cell in cells if cell['cell_type'] == 'code')
    assert str(installed) in run('-c', 'import smlxray; print(smlxray.__file__)').stdout
    assert run('-m', 'smlxray.cli', 'model', 'info', 'tiny').returncode == 0


@pytest.mark.parametrize('line, words', [
    ('import os; os.kill(os.getpid(), 9)', 'train was killed, for want of memory'),
    ('raise MemoryError', 'train found no memory left'),
    ('raise RuntimeError("DefaultCPUAllocator: can\'t allocate memory")', 'found no memory left'),
])  # fmt: skip
def test_a_notebook_without_memory_ends_in_a_sentence(tmp_path, monkeypatch, line, words):
    cells = [nbformat.v4.new_code_cell(line)]
    kernel = dict(kernelspec=dict(name='python3', display_name='python3', language='python'))
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), tmp_path / 'it.ipynb')
    monkeypatch.setattr(cli, 'shipped_notebook', lambda name: tmp_path / 'it.ipynb')
    with pytest.raises(base.SmlxrayError, match=words) as error:
        cli.run_notebook('train', {}, tmp_path)
    assert 'data.batch_size' in str(error.value)
