"The command, in processes of its own: exit codes, sentences, and nothing half-written."

import csv, functools, json, os, re, resource, shlex, subprocess, sys
from pathlib import Path
import numpy as np, pytest
from PIL import Image
from smlxray import bench
from smlxray.cli import app
from smlxray.phantom import write_phantoms


def smlxray(*words, cwd, limit=None):
    "Run the command; give its exit code, output and error stream."
    low = (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))) if limit else None
    done = subprocess.run(
        [sys.executable, '-m', 'smlxray.cli', *map(str, words)],
        capture_output=True,
        text=True,
        cwd=cwd,
        preexec_fn=low,
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
    )
    assert 'Traceback' not in done.stdout + done.stderr, done.stderr
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope='module')
def xrays(tmp_path_factory):
    return write_phantoms(
        tmp_path_factory.mktemp('cli') / 'xrays', patients=60, size=96, progress=False
    )


def test_a_build_that_hits_the_file_size_limit_goes_on_afterwards(xrays, tmp_path):
    build = 'cache', 'build', xrays, '--size', '128', '--cache-path', 'cache'
    code, out, said = smlxray(*build, cwd=tmp_path, limit=500_000)
    assert code == 1 and said.startswith('smlxray: ') and len(said.splitlines()) == 1, said
    assert smlxray('cache', 'info', '--cache-path', 'cache', cwd=tmp_path)[1].count('complete') == 0
    assert smlxray(*build, cwd=tmp_path)[0] == 0
    code, out, _ = smlxray('cache', 'verify', '--cache-path', 'cache', cwd=tmp_path)
    assert code == 0 and 'sound' in out


def test_a_disk_that_may_not_be_written_is_one_sentence(xrays, tmp_path):
    (tmp_path / 'file').write_text('no folder')
    code, _, said = smlxray(
        'cache', 'build', xrays, '--size', '32', '--cache-path', 'file/cache', cwd=tmp_path
    )
    assert code == 1 and 'file' in said and len(said.splitlines()) == 1


def test_a_hospital_folder_is_checked_like_any_other(tmp_path):
    "A folder with a CSV: one image missing, one a bomb, one patient on two sides, one label contradicting."
    (tmp_path / 'h').mkdir()
    for i in range(6):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (40, 40), dtype=np.uint8)).save(
            tmp_path / f'h/{i}.png'
        )
    (tmp_path / 'h/3.png').unlink()
    Image.new('L', (30_000, 30_000)).save(tmp_path / 'h/4.png')
    rows = [
        'path,patient,split,No Finding,Edema',
        '0.png,a,train,1,1',
        '1.png,a,test,,1',
        '2.png,b,train,1,',
        '3.png,c,train,,1',
        '4.png,d,train,,1',
        '5.png,e,train,,0',
    ]
    (tmp_path / 'h/labels.csv').write_text('\n'.join(rows) + '\n')
    code, out, err = smlxray('data', 'check', 'h', cwd=tmp_path)
    assert code == 1 and not err
    for word in (
        'missing image',
        'unreadable image',
        'pixels',
        'patient in two parts',
        'No Finding beside a finding',
    ):
        assert word in out, (word, out)
    assert smlxray('data', 'check', 'h', '--no-images', cwd=tmp_path)[0] == 1


def test_a_path_that_climbs_out_is_refused(tmp_path):
    (tmp_path / 'h').mkdir()
    (tmp_path / 'h/labels.csv').write_text('path,patient,Edema\n../secret.png,a,1\n')
    code, _, said = smlxray('data', 'check', 'h', cwd=tmp_path)
    assert code == 1 and 'secret.png' in said and len(said.splitlines()) == 1


def test_bench_writes_json(tmp_path, monkeypatch, capsys):
    # at full size: smlxray bench metrics
    small = functools.partial(bench.bench_metrics, images=200, resamples=40, rounds=1)
    monkeypatch.setattr(bench, 'bench_metrics', small)
    app(['bench', 'metrics', '--json', str(tmp_path / 'b.json')], standalone_mode=False)
    saved = json.loads((tmp_path / 'b.json').read_text())
    assert (
        {'case', 'method', 'baseline', 'ratio'} <= set(saved['rows'][0])
        and 'auc_bootstrap' in capsys.readouterr().out
        and str(tmp_path) not in str(saved)
    )


@pytest.mark.parametrize(
    'words, code, say',
    [
        (('data', 'check', 'nowhere'), 1, 'nowhere'),
        (('cache', 'build', '.', '--size', '0'), 1, '--size'),
        (('cache', 'build', '.', '--dataset', 'nihh'), 1, "dataset='nihh'"),
        (('cache', 'build', '.', '--dataset', 'no.yaml'), 1, 'no.yaml'),
        (('convert', 'nowhere', '--data', '.'), 1, ''),
        (('bench', 'nothing'), 2, 'nothing'),
        (('cache', 'build'), 2, 'path'),
        (('data', 'check', '.', '--views', 'side'), 2, 'side'),
        (('cache', 'info', '--cache-path', 'none'), 0, ''),
    ],
    ids=str,
)
def test_mistakes_get_a_sentence(words, code, say, tmp_path):
    got, out, said = smlxray(*words, cwd=tmp_path)
    assert got == code and say in said.lower() + said, (got, out, said)
    if code == 1:
        assert len(said.splitlines()) == 1 and said.startswith('smlxray: ')
    assert not list(tmp_path.iterdir()), 'a mistake left something behind'


# Every example of --help and of the README, as printed

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = [
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
    ['app'],
    ['data', 'check'],
    ['cache', 'build'],
    ['cache', 'info'],
    ['cache', 'verify'],
    ['convert'],
    ['study'],
    ['bench'],
]


def helped(words):
    "The help text of a command, in this process."
    import contextlib, io
    from smlxray.cli import call

    with contextlib.redirect_stdout(out := io.StringIO()):
        assert call([*words, '--help']) == 0
    return out.getvalue()


def examples(words):
    return (
        re.findall(r'^ +smlxray (.+)$', helped(words).split('Examples:')[-1], re.M)
        if 'Examples:' in helped(words)
        else []
    )


def test_every_command_is_known_here():
    from typer.main import get_command
    from smlxray.cli import app

    tree = get_command(app)
    found = [
        [n, m] if hasattr(c, 'commands') else [n]
        for n, c in tree.commands.items()
        if not c.hidden
        for m in (c.commands if hasattr(c, 'commands') else [None])
    ]
    assert sorted(found) == sorted(COMMANDS), 'a command was added or renamed: name it in COMMANDS'
    for words in COMMANDS:
        assert examples(words) or words == ['convert'], (
            f'smlxray {" ".join(words)} --help shows no example'
        )


@pytest.fixture(scope='module')
def clone(tmp_path_factory):
    "A bare clone: what git knows, and nothing that was made here."
    here = tmp_path_factory.mktemp('clone')
    listed = subprocess.run(
        ['git', 'ls-files', '-co', '--exclude-standard'], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip('no git here')
    for name in listed.stdout.split('\n'):
        if (
            name
            and (ROOT / name).is_file()
            and name.split('/')[0] in ('smlxray', 'config', 'nbs', 'settings.ini')
        ):
            (here / name).parent.mkdir(parents=True, exist_ok=True)
            (here / name).write_bytes((ROOT / name).read_bytes())
    return here


def readme_commands(command='smlxray'):
    "The lines of the README (written from the notebook index) that call a command."
    text = ''.join(
        ''.join(c['source']) + '\n'
        for c in json.loads((ROOT / 'nbs' / 'index.ipynb').read_text(encoding='utf-8'))['cells']
        if c['cell_type'] == 'markdown'
    )
    blocks = re.findall(r'```bash\n(.*?)```', text, re.S)
    return [
        line.split(' #')[0].strip().removeprefix(f'{command} ')
        for block in blocks
        for line in block.split('\n')
        if line.startswith(f'{command} ')
    ]


TRAINS = ('run', 'demo', 'train', 'evaluate')


def all_examples():
    "Every line of --help and of the README, those that train first, those of the README in its order; `app` serves until it is stopped, in test_pages; `study` needs real X-rays, in test_study."
    lines = dict.fromkeys(
        [*(line for words in [[], *COMMANDS] for line in examples(words)), *readme_commands()]
    )
    return sorted(
        (line for line in lines if not line.startswith(('app', 'study'))),
        key=lambda line: not line.startswith(TRAINS),
    )


LONG = (
    *TRAINS,
    'bench',
    'model export embedding.onnx',
)  # a notebook or three each, or many seconds of measuring


def run_lines(lines, clone):
    "Run commands one after the other, in one process, so that PyTorch is loaded once (notebooks have processes of their own)."
    (clone / 'lines.json').write_text(json.dumps([shlex.split(line) for line in lines]))
    code = (
        "import json, sys\nimport smlxray.cli as cli\nbad = []\n"
        "for words in json.load(open('lines.json')):\n    print('$', *words, flush=True)\n    if cli.call(words): bad.append(words)\n"
        "print('failed:', bad)\nsys.exit(bool(bad))"
    )
    done = subprocess.run(
        [sys.executable, '-c', code],
        capture_output=True,
        text=True,
        cwd=clone,
        env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(clone)},
    )
    assert done.returncode == 0 and 'Traceback' not in done.stderr, (
        done.stdout[-1500:] + done.stderr[-3000:]
    )


def test_the_examples_run_as_printed(clone):
    "The quick ones; all of them run in test_cli_examples.py, which is slow."
    lines = all_examples()
    assert len(lines) > 25 and all(
        '-p preset tiny' in line for line in lines if line.startswith(TRAINS)
    )
    run_lines(
        ['train siamese -p preset tiny', *(line for line in lines if not line.startswith(LONG))],
        clone,
    )
    for made in (
        'runs/tiny/train_siamese.ipynb',
        'runs/tiny/bundle/card.md',
        'predictions.csv',
        'comparison.png',
        'shared-model/manifest.json',
        'answers-with-mine.csv',
        'to-a-colleague/card.md',
        'my.yaml',
    ):
        assert (clone / made).exists(), made
    rows = list(csv.DictReader(open(clone / 'predictions.csv')))
    assert len(rows) == 16 and all(0 < float(r['Edema']) < 1 for r in rows)


# Wrong input, at every command


@pytest.fixture(scope='module')
def small(tmp_path_factory):
    "A folder with a bundle, two X-rays, and things that are none."
    import torch
    from smlxray.bundle import Bundle, TaughtFinding
    from smlxray.config import load_settings
    from smlxray.phantom import draw_phantom
    from smlxray.siamese import SiameseNet

    here = tmp_path_factory.mktemp('small')
    torch.manual_seed(0)
    b = Bundle(
        SiameseNet('conv4', 8),
        load_settings('tiny', backbone='conv4'),
        {},
        {'pairs.same': torch.empty(0), 'pairs.different': torch.empty(0)},
        dict(
            phase='siamese',
            smlxray='0',
            base=[],
            novel=[],
            split={},
            data=dict(name='x', rows=1, patients=1, digest='0'),
            labels=dict(uncertain='ignore', blanks='negative', negatives='normals', matched_on=[]),
        ),
    )
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
    stranger = Bundle(SiameseNet('conv4', 8), b.settings, {}, {})
    stranger.teach('Other', x[:1], x[1:], steps=0).save(here / 'other')
    return here


WRONG = [
    ('run --mode everything', 2, 'everything'),
    ('run -p preset huge', 1, 'preset'),
    ('run -p shotss 7', 1, 'did you mean meta.shots'),
    ('run --config bad.yaml', 1, 'data'),
    ('run --config none.yaml', 1, 'none.yaml'),
    ('demo -p shots none', 1, 'meta.shots'),
    ('evaluate -p shots 0', 1, 'meta.shots'),
    ('train', 2, ''),
    ('train cnn', 2, 'cnn'),
    ('train siamese -p shots', 2, '-p takes a key'),
    ('train meta -p algorithm sgd', 1, 'meta.algorithm'),
    ('compare 0.png --model model', 2, 'Name two X-rays'),
    ('compare 0.png gone.png --model model', 1, 'gone.png'),
    ('compare 0.png text.png --model model', 1, 'text.png'),
    ('compare 0.png 1.png --model nobody', 1, 'nobody'),
    ('compare --pairs pairs.csv --model model', 1, 'columns a and b'),
    ('compare --pairs gone.csv --model model', 1, 'gone.csv'),
    ('compare 0.png 1.png --model model --picture no/where.png', 1, 'where.png'),
    ('compare 0.png 1.png --model empty', 1, 'manifest.json'),
    ('predict gone --model model', 1, 'gone'),
    ('predict empty --model model', 1, 'empty'),
    ('predict . --model model --output no/p.csv', 1, 'p.csv'),
    ('predict . --model model --output there.csv', 1, 'there.csv exists'),
    ('predict . --model model --prevalence often', 1, '--prevalence'),
    ('predict . --model model --prevalence 2', 1, 'between 0 and 1'),
    ('predict . --model model --prevalence Gout=.1', 1, 'Gout'),
    ('predict . --model model --batch-size 0', 2, 'batch-size'),
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
    ('model info gone.pth', 1, 'gone.pth'),
    ('model info nobody', 1, 'nobody'),
    ('model verify empty', 1, 'manifest.json'),
    ('model export no/where --model model', 1, 'where'),
    ('model export empty --model model', 1, 'empty exists'),
    ('model export', 2, 'output'),
]


def test_wrong_input_gets_a_sentence_at_every_command(small):
    "Each in a process would take minutes; the way out is the same function."
    import contextlib, io
    from smlxray.cli import call

    before, listed = (
        os.getcwd(),
        lambda: sorted(p.relative_to(small).as_posix() for p in small.rglob('*')),
    )
    there, os_dir = listed(), os.chdir(small)
    try:
        for line, code, say in WRONG:
            out, err = io.StringIO(), io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                got = call(shlex.split(line))
            said = out.getvalue() + err.getvalue()
            assert got == code and say in said, (line, got, said)
            if code == 1:
                assert (
                    err.getvalue().startswith('smlxray: ')
                    and len(err.getvalue().splitlines()) == 1
                    and not out.getvalue()
                ), (line, said)
            left = [p for p in listed() if p not in there]
            assert not left, (line, 'left something behind', left)
    finally:
        os.chdir(before)


def test_a_mistake_is_a_sentence_in_a_process_too(small):
    code, out, said = smlxray('predict', 'gone', '--model', 'model', cwd=small)
    assert (code, out, said) == (1, '', 'smlxray: There is no folder or file gone.\n')


def test_results_are_alone_on_the_output(small, tmp_path):
    "Progress and remarks go to the error stream: the output is JSON and nothing else."
    code, out, err = smlxray(
        'predict', '.', '--model', 'model', '--output', tmp_path / 'p.csv', '--json', cwd=small
    )
    assert code == 0, err
    assert json.loads(out)['rows'] == 3 and json.loads(out)['errors'] == 1
    code, out, err = smlxray(
        'config', 'show', '-p', 'preset', 'tiny', '-p', 'shots', '3', '--json', cwd=small
    )
    assert json.loads(out)['meta']['shots'] == 3


def test_a_notebook_that_stops_at_a_mistake_says_its_sentence(tmp_path):
    "The settings are fine; the folder is what is wrong, and only the notebook can know."
    code, out, err = smlxray(
        'train',
        'siamese',
        '-p',
        'preset',
        'tiny',
        '-p',
        'dataset',
        'chexpert',
        '-p',
        'dataset_path',
        'nowhere',
        '-p',
        'run',
        'r',
        cwd=tmp_path,
    )
    assert (
        code == 1
        and not out
        and 'nowhere' in err.splitlines()[-1]
        and err.splitlines()[-1].startswith('smlxray: ')
    ), err
    assert (tmp_path / 'runs/r/train_siamese.ipynb').exists()


def test_completion_is_offered(tmp_path):
    done = subprocess.run(
        [sys.executable, '-m', 'smlxray.cli', '--show-completion', 'bash'],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, '_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION': '1'},
    )
    assert done.returncode == 0 and 'complete' in done.stdout and 'smlxray' in done.stdout


def test_an_installed_wheel_trains(tmp_path):
    "Built as a wheel and put into a folder of its own: the notebooks and presets are in it, and a run happens far from any checkout."
    src = tmp_path / 'src'
    for name in subprocess.run(
        ['git', 'ls-files', '-co', '--exclude-standard'], cwd=ROOT, capture_output=True, text=True
    ).stdout.split('\n'):
        if (
            name.split('/')[0]
            in ('smlxray', 'config', 'nbs', 'settings.ini', 'setup.py', 'LICENSE', 'README.md')
            and (ROOT / name).is_file()
        ):
            (src / name).parent.mkdir(parents=True, exist_ok=True)
            (src / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, '-m', 'pip', '--disable-pip-version-check', '-q']
    made = subprocess.run(
        [*pip, 'wheel', '--no-deps', '--no-build-isolation', '-w', str(tmp_path), str(src)],
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0, made.stderr[-2000:]
    subprocess.run(
        [
            *pip,
            'install',
            '--no-deps',
            '--target',
            str(tmp_path / 'site'),
            str(next(tmp_path.glob('*.whl'))),
        ],
        check=True,
        capture_output=True,
    )
    work = tmp_path / 'work'
    work.mkdir()
    run = lambda *words: subprocess.run(
        [sys.executable, '-m', 'smlxray.cli', *words],
        capture_output=True,
        text=True,
        cwd=work,
        env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(tmp_path / 'site')},
    )
    done = run(
        'train',
        'siamese',
        '-p',
        'preset',
        'tiny',
        '-p',
        'patients',
        '150',
        '-p',
        'backbone',
        'conv4',
        '-p',
        'novel_findings',
        'Cardiomegaly',
    )
    assert done.returncode == 0, done.stderr[-2000:]
    nb = json.loads((work / 'runs/tiny/train_siamese.ipynb').read_text())
    assert all(c.get('execution_count') for c in nb['cells'] if c['cell_type'] == 'code')
    where = subprocess.run(
        [sys.executable, '-c', 'import smlxray; print(smlxray.__file__)'],
        capture_output=True,
        text=True,
        cwd=work,
        env={**os.environ, 'PYTHONPATH': str(tmp_path / 'site')},
    ).stdout
    assert str(tmp_path / 'site') in where
    assert run('model', 'info', 'tiny').returncode == 0
