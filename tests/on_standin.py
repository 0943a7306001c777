"""No step waits for a GPU more often than it must, and a batch of tasks is few launches per task.

Run by `test_device.py` in a process of its own: a device starts threads that no fork survives.
"""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import standin
import torch

from smlxray.config import load_settings
from smlxray.lab import Lab, open_lab
from smlxray.siamese import SiameseNet
from smlxray.tasks import InnerLoop, Task, TaskModel
from smlxray.train import (
    Course, Loop, MetaObjective, NamingSiamese, SiameseObjective, _gradients_of, one_round,
)  # fmt: skip

BEFORE = 8639  # launches of a second-order ResNet18 task of five steps, one after the other


class FarLab(Lab):
    device = standin.install()


@pytest.fixture(scope='module')
def labs(tmp_path_factory):
    place = tmp_path_factory.mktemp('device')
    paths = dict(dataset_path=place / 'x', cache_path=place / 'c', runs_path=place / 'r')
    settings = load_settings('tiny', patients=160, novel_findings='Cardiomegaly', **paths)
    near = open_lab(settings)
    return near, FarLab(**vars(near))


def an_accelerator(device):
    "What a loop asks of accelerate."
    return SimpleNamespace(
        device=device,
        scaler=None,
        autocast=nullcontext,
        backward=lambda loss: loss.backward(),
        prepare_optimizer=lambda opt: opt,
    )


def walked(lab, epochs=2):
    torch.manual_seed(0)
    model = NamingSiamese(SiameseNet('conv4', 8), len(lab.findings.base))
    objective = SiameseObjective(lab, epochs=epochs, vary={})
    loop = Loop(an_accelerator(lab.device), model, objective, Course(1e-3, 1e-3, 'one_cycle', 1.0))
    standin.waits.clear()
    standin.launches.clear()
    losses = [one_round(loop, number) for number in range(epochs)]
    return losses, epochs * len(objective.batches(0)), dict(standin.waits)


def test_a_siamese_step_waits_at_most_twice(labs):
    near, far = labs
    assert far.device.type == standin.NAME
    plain, _, none = walked(near)
    losses, steps, waits = walked(far)
    assert losses == pytest.approx(plain, rel=1e-4) and not none
    print(waits, steps, sum(standin.launches.values()) / steps)
    assert sum(waits.values()) <= 2 * steps


def test_the_stand_in_counts_and_refuses(labs):
    there = torch.ones(4, device=standin.install())
    with pytest.raises(RuntimeError, match='two devices'): there + torch.ones(4)
    standin.waits.clear()
    there[there > 0]
    float(there.sum())
    there.cpu()
    torch.ones(4).to(there.device)
    assert sum(standin.waits.values()) >= 4, standin.waits
    standin.waits.clear()
    torch.ones(4).to(there.device, non_blocking=True)
    assert not standin.waits


@pytest.mark.parametrize('engine', ['loop', pytest.param('reverse', marks=pytest.mark.slow)])
def test_a_task_of_resnet18_waits_at_most_three_times(labs, engine):
    near, far = labs
    grads = {}
    for lab in (near, far):
        lab.settings.meta.engine, lab.settings.meta.adapt_steps = engine, 5
        torch.manual_seed(0)
        model = TaskModel(SiameseNet('resnet18', 8).eval()).to(lab.device)
        objective = MetaObjective(lab, 'maml')
        episode = objective.draw(0)
        standin.waits.clear()
        standin.launches.clear()
        told = objective.task_gradient(model, episode)
        grads[lab is far] = told
    print(engine, dict(standin.waits), sum(standin.launches.values()))
    assert sum(standin.waits.values()) <= 3
    assert grads[True].query_loss == pytest.approx(grads[False].query_loss, rel=1e-3)


@pytest.mark.slow
def test_eight_tasks_at_once_are_a_fifth_of_the_launches():
    model, inner = TaskModel(SiameseNet('resnet18', 8).eval()), InnerLoop('maml', steps=5, lr=1e-3)
    y = torch.tensor([1.0, 0, 1, 0])
    tasks = [Task(torch.randn(4, 1, 8, 8), y, torch.randn(4, 1, 8, 8), y) for _ in range(8)]
    with standin.Launches() as seen: told = _gradients_of(tasks, model, inner)
    print(seen.total / 8)
    assert {t.engine for t in told} == {'vmap'}
    assert seen.total / 8 <= BEFORE / 4
