"What costs little stays cheap: imports, the help, and a command that is typed wrong."

import resource
import subprocess
import sys

WRONG = '''
import contextlib, io, os, sys
import typer.main
from smlxray.cli import app, call

def commands(group, path=()):
    for name, command in group.commands.items():
        if hasattr(command, 'commands'): yield from commands(command, (*path, name))
        else: yield (*path, name)

tiny = '-p preset tiny -p dataset_path undrawn -p runs_path unmade -p'.split()
words = [*commands(typer.main.get_command(app))]
cases = [[*path, '--no-such-option'] for path in words]
cases += [
    ['predict', 'nowhere'], ['compare', 'nowhere.jpg', 'nor-here.jpg'], ['start', 'nowhere'],
    ['run', '-p', 'shotz', '7'], ['train', 'siamese', '-p', 'preset', 'tiniest'],
    ['train', 'siamese', *tiny, 'novel_findings', 'Cardiomegalie'],
    ['train', 'meta', *tiny, 'shots', '400', '--processes', '2'],
    ['train', 'meta', *tiny, 'folds', 'Edema'], ['evaluate', *tiny, 'folds', 'Edema, Edemma'],
    ['evaluate', *tiny, 'match_on', 'scanner'], ['run', *tiny, 'split', 'own'],
    ['teach', '--positive', 'nowhere', '--negative', 'nowhere', '--name', 'x'],
]
for case in cases:
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        status = call(case)
    assert status in (1, 2), (case, status)
    assert said.getvalue().strip(), case
    assert 'torch' not in sys.modules, case
assert not {'undrawn', 'unmade'} & {*os.listdir()}
print(len(cases))
'''


FIRST_PAGE = '''
import sys
from smlxray.app.nursery import open_parts, open_session, prepare
from smlxray.app.pages import App

told = prepare(say=lambda words: None)
app = App(open_session(told=told, opened=open_parts(told)))
assert app.pages['Compare'].pair is not None
print([*app.pages.made], {SLOW} & {*sys.modules})
'''
SLOW = {'torch._dynamo', 'sympy', 'torchvision', 'sklearn', 'pydicom', 'scipy.spatial'}


def python(code, home=None):
    "Run some code in a new Python; give what it prints."
    run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=home)
    assert run.returncode == 0, run.stderr[-1500:]
    return run.stdout.strip()


def test_a_wrong_argument_is_refused_before_torch_is_loaded(tmp_path):
    assert int(python(WRONG, tmp_path)) > 40


def test_maml_needs_no_notebooks_and_no_dicom():
    names = "{'papermill', 'pydicom', 'ipykernel', 'voila'} & {*sys.modules}"
    assert python(f'import sys, smlxray.maml; print({names})') == 'set()'


def test_the_pages_begin_with_what_the_first_page_needs(tmp_path):
    loaded = "{'torch', 'pandas', 'voila'} & {*sys.modules}"
    assert python(f'import sys, smlxray.app.serve; print({loaded})') == 'set()'
    code = FIRST_PAGE.replace('{SLOW}', str(SLOW))
    assert python(code, tmp_path) == "['Compare'] set()"
    assert not list(tmp_path.glob('runs/example/*.zip')), 'the drawings are unpacked, not copied'


def test_the_help_is_quick():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, '-m', 'smlxray.cli', '--help'], stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert seconds < 2, 'measured alone it takes 0.4 s'
