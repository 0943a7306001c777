"Several real processes train the network that one process trains; one that is lost ends all."

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

import smlxray.train as train
from processes import children
from smlxray.base import SmlxrayError
from smlxray.config import load_settings
from smlxray.lab import open_lab
from smlxray.processes import in_processes, team
from smlxray.siamese import SiameseNet
from smlxray.tasks import Task, TaskModel
from smlxray.train import (
    Course, MetaObjective, NamingObjective, NamingSiamese, PrototypeObjective, Record,
    SiameseObjective, checkpoint_path, fit, load_checkpoint, read_metrics, state_path, train_meta,
    train_siamese,
)  # fmt: skip

TINY = '-p preset tiny -p patients 160 -p backbone conv4'.split()


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp('processes')
    a_lab(place, 'first')
    return place


def a_lab(place, run, **more):
    paths = dict(dataset_path=place / 'x', cache_path=place / 'c', runs_path=place / 'r')
    usual = dict(patients=160, backbone='conv4', batch_size=15, split_seed=3)
    usual['novel_findings'] = 'Cardiomegaly'
    return open_lab(load_settings('tiny', **(usual | paths | more), run=run))


class InDouble:
    "The same objective on images of float64."

    def images(self, rows, generator):
        return super().images(rows, generator).double()

    def row(self, model, number, loss):
        return dict(epoch=number + 1, loss=loss)


class Compare(InDouble, SiameseObjective):
    pass


class Name(InDouble, NamingObjective):
    pass


class Prototypes(InDouble, PrototypeObjective):
    pass


class Adapt(MetaObjective):
    def task(self, episode, generator):
        made = super().task(episode, generator)
        tensors = made.support, made.labels, made.query, made.query_labels
        return Task(*(t.double() for t in tensors), made.name, made.views)


def weights(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def furthest(a, b):
    return max((a[k] - b[k]).abs().max().item() for k in a)


def walked(lab, kind):
    "The weights after a short training."
    torch.manual_seed(0)
    net = SiameseNet('conv4', 8, norm='batch')
    model = NamingSiamese(net, len(lab.findings.base) + (kind is Name)).double()
    objective = kind(lab, epochs=1, vary={})
    return weights(fit(model, objective, Course(1e-2, 1e-3, 'one_cycle', clip=1.0)))


@pytest.mark.parametrize('kind', [Compare, Name, Prototypes])
def test_two_processes_train_as_one(place, kind):
    lab = a_lab(place, 'equal')
    if kind is Name: lab.settings.data.batch_size = 14
    alone = walked(lab, kind)
    first, second = in_processes(partial(walked, lab, kind), 2)
    assert furthest(alone, first) < 1e-9
    assert furthest(first, second) == 0


def adapted(lab, algorithm):
    torch.manual_seed(0)
    model = TaskModel(SiameseNet('conv4', 8)).double()
    fit(model, Adapt(lab, algorithm), Course(1e-2, schedule='cosine', clip=10.0))
    return weights(model)


@pytest.mark.parametrize(('tasks', 'count'), [(3, 2), (1, 2), (2, 3)])
def test_tasks_are_spread_over_any_number_of_processes(place, tasks, count):
    lab = a_lab(place, 'spread', meta_batch=tasks, meta_episodes=2 * tasks, augment=True)
    alone = adapted(lab, 'maml')
    told = in_processes(partial(adapted, lab, 'maml'), count)
    assert max(furthest(alone, one) for one in told) < 1e-9


def a_piece(lab, rounds, of=4):
    "Train until some rounds are done, with a record; return the weights, and the rows written."
    torch.manual_seed(0)
    net = SiameseNet('conv4', 8, norm='batch')
    model = NamingSiamese(net, len(lab.findings.base)).double()
    objective, record = Compare(lab, epochs=of, vary={}), Record(lab, 'siamese')
    real = train.one_round

    def until(loop, number):
        if number == rounds: raise KeyboardInterrupt
        return real(loop, number)

    train.one_round = until
    try:
        fit(model, objective, Course(1e-2, 1e-3, 'one_cycle'), record)
    except KeyboardInterrupt:
        pass
    finally:
        train.one_round = real
    return weights(model), read_metrics(lab.folder, 'siamese')


def test_a_training_goes_on_with_another_number_of_processes(place):
    whole, rows = a_piece(a_lab(place, 'whole'), 4)
    in_processes(partial(a_piece, a_lab(place, 'cut'), 1), 2)
    again = a_lab(place, 'cut', resume=True)
    in_processes(partial(a_piece, again, 3), 3)
    (got, told), = in_processes(partial(a_piece, again, 4), 1)
    assert furthest(whole, got) < 1e-9
    assert [row['epoch'] for row in told] == [1, 2, 3, 4]  # one log
    assert [row['loss'] for row in told] == pytest.approx([row['loss'] for row in rows], abs=1e-9)


def everything(lab):
    return weights(train_siamese(lab)), weights(train_meta(lab, train_siamese(lab), 'protomaml'))


def test_what_is_fitted_after_the_loop_is_fitted_once(place):
    lab = a_lab(place, 'once', meta_batch=1, probe_tasks=3, meta_episodes=3)
    first, second = in_processes(partial(everything, lab), 2)
    for a, b in zip(first, second): assert furthest(a, b) == 0
    for phase, told in zip(('siamese', 'protomaml'), first):
        saved, _ = load_checkpoint(checkpoint_path(lab, phase))
        assert furthest(weights(saved), told) == 0


def refused(place, **theirs):
    lab = a_lab(place, 'refused', **(theirs if team()[0] else {}))
    try:
        walked(lab, Compare)
    except SmlxrayError as error:
        return str(error)


def test_processes_that_disagree_do_not_begin(place):
    other_data = dict(patients=170, dataset_path=place / 'y')
    for theirs, words in (dict(margin=0.5), 'margin: 0.5 instead of 1.0'), (other_data, 'table'):
        said = in_processes(partial(refused, place, **theirs), 2)
        assert said[0] == said[1] and 'Process 1 of 2 does not agree' in said[0]
        assert words in said[0]


def command(place, *words, **env):
    paths = [f'{k}={place / k[0]}' for k in ('dataset_path', 'cache_path', 'runs_path')]
    given = [word for path in paths for word in ('-p', path)]
    line = [sys.executable, '-m', 'smlxray.cli', 'train', *words, *TINY, *given]
    pipe = subprocess.PIPE
    return subprocess.Popen(line, env=os.environ | env, stdout=pipe, stderr=pipe, text=True)


def workers(pid):
    "The processes that train: those below the launcher, without its threads' helpers."
    found = []
    for child in children(pid):
        words = open(f'/proc/{child}/cmdline').read().split('\0')
        if 'smlxray.cli' in words and 'torch.distributed.run' not in words: found.append(child)
    return found


STOPS = pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)


@pytest.mark.parametrize('how', [signal.SIGKILL, STOPS])
def test_a_lost_process_ends_all_with_one_sentence(tmp_path, how):
    lasting = ['-p', 'siamese_epochs', '400', '-p', 'run', 'lost']
    started = command(tmp_path, 'siamese', '--processes', '2', *lasting, SMLXRAY_PATIENCE='6')
    state = tmp_path / 'r' / 'lost' / 'checkpoints' / 'siamese.state.safetensors'
    until = time.monotonic() + 90
    while not state.exists() and time.monotonic() < until: time.sleep(0.2)
    assert state.exists(), started.communicate()
    below = workers(started.pid)
    assert len(below) == 2
    began = time.monotonic()
    os.kill(below[1], how)
    _, said = started.communicate(timeout=60)
    assert started.returncode == 1 and time.monotonic() - began < 60
    last = said.strip().splitlines()[-1]
    assert last.startswith('smlxray: Process') and 'of 2' in last and '--resume' in last
    assert said.count('smlxray: ') == 1 and 'Traceback' not in said
    assert not any(os.path.exists(f'/proc/{pid}') for pid in below)
    told, _ = train.read_tensors(state)
    assert told['state']['done'] >= 1
    assert not state_path(a_lab(tmp_path, 'other'), 'siamese').exists()


def test_a_launch_of_one_process_for_two_is_refused(tmp_path):
    fake = tmp_path / 'accelerate'
    starts_one = f'sys.exit(subprocess.call([{sys.executable!r}, *sys.argv[5:]]))'
    fake.write_text(f'import subprocess, sys\n{starts_one}\n')
    words = [sys.executable, str(fake), 'launch', '--cpu', '--num_processes', '2']
    line = ['-m', 'smlxray.cli', 'train', 'siamese', *TINY]
    done = subprocess.run([*words, *line], capture_output=True, text=True)
    assert done.returncode == 1 and 'asked for 2 processes, but 1 would train' in done.stderr


def printed_lines():
    "The lines of the how-to that start a training of the preset tiny on this machine."
    page = Path(__file__).parents[1] / 'nbs' / 'how_to_use_several_processes.ipynb'
    cells = [''.join(cell['source']) for cell in json.loads(page.read_text())['cells']]
    lines = [line for cell in cells for line in cell.splitlines()]
    starts = ('smlxray train', 'torchrun --standalone', 'accelerate launch')
    return [line for line in lines if line.startswith(starts) and 'preset tiny' in line]


@pytest.mark.slow
@pytest.mark.parametrize('line', printed_lines())
def test_the_lines_of_the_how_to_start_two_processes(line, place):
    paths = [f'{k}={place / k[0]}' for k in ('dataset_path', 'cache_path', 'runs_path')]
    words = [*line.split(), *(word for path in paths for word in ('-p', *path.split('=')))]
    path = f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}'
    env = os.environ | dict(PATH=path, SMLXRAY_PROCESSES='2')  # fewer would be refused
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    phase = 'meta' if ' meta ' in line else 'siamese'
    assert [*(place / 'r' / 'tiny' / 'checkpoints').glob(f'*{phase[0]}*.safetensors')]


def test_the_how_to_prints_a_line_for_each_launcher():
    assert {line.split()[0] for line in printed_lines()} == {'smlxray', 'torchrun', 'accelerate'}
