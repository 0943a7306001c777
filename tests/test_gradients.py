"""Every engine on every combination of what changes a meta-gradient, against nature.

For MAML and ANIL nature is a finite difference of the outer objective, written here once
more without any engine; for FOMAML it is the definition: the query gradient, at each query's
weights.
"""

from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_maml import LR, four_point, losses_of, rows_of, smooth_net
from torch import nn

from smlxray.maml import ENGINES, meta_gradient, use
from smlxray.siamese import norm_mode

STEPS = 3
CHOICES = dict(
    algorithm=['maml', 'fomaml', 'anil'],
    norm=[None, 'group', 'frozen', 'support', 'transductive'],
    dropout=[0.0, 0.3],
    multi_step=[None, (0.2, 0.3, 0.5), (0.0, 0.7, 0.3), (0.6, 0.4, 0.0)],
    optimizer=['sgd', 'momentum'],
)
CASES = list(product(*CHOICES.values()))
SOME = np.random.default_rng(14).permutation(len(CASES))[:6]


def made(case):
    "Give the network, the losses and the options of a case."
    c = SimpleNamespace(**dict(zip(CHOICES, case)))
    norm = c.norm if c.norm in (None, 'group') else 'batch'
    c.net, c.task = smooth_net(norm=norm), rows_of()
    if c.dropout:
        c.net.head[1] = nn.Sequential(c.net.head[1], nn.Dropout(c.dropout).train())
    c.mode = c.norm if norm == 'batch' else 'frozen'
    c.losses, c.names = losses_of(c.task), c.net.adaptable(c.algorithm)
    c.weights = c.multi_step or (0.0,) * (STEPS - 1) + (1.0,)
    return c


def objective(c, moved=None):
    "The outer objective and, in first order, its gradient, written out without an engine."
    torch.manual_seed(7)
    own = moved or dict(c.net.named_parameters())
    fast = {n: own[n].detach() for n in own}
    speed, total, grads = {}, 0.0, {n: 0.0 for n in own}
    for weight in c.weights:
        leaf = {n: t.detach().requires_grad_() for n, t in fast.items()}
        loss = c.losses[0](use(c.net, leaf))
        slopes = torch.autograd.grad(loss, [leaf[n] for n in c.names])
        for n, g in zip(c.names, slopes):
            speed[n] = g + 0.9 * speed[n] if c.optimizer == 'momentum' and n in speed else g
            fast[n] = fast[n] - LR * speed[n]
        if not weight: continue
        leaf = {n: t.detach().requires_grad_() for n, t in fast.items()}
        loss = weight * c.losses[1](use(c.net, leaf))
        here = torch.autograd.grad(loss, list(leaf.values()), allow_unused=True)
        for n, g in zip(leaf, here):
            if g is not None: grads[n] = grads[n] + g
        total += loss.item()
    return total, grads


def slope(c, along, h):
    "The slope of the outer objective along a direction."
    own = dict(c.net.named_parameters())

    def at(k):
        return objective(c, {n: p.detach() + k * along[n] for n, p in own.items()})[0]

    return four_point(at, h)


def directional(grads, along):
    return sum((grads[n] * d).sum().item() for n, d in along.items())


def check(case, engines):
    "Hold engines against nature, and their losses and random numbers against the plain walk."
    c = made(case)
    torch.manual_seed(11)
    along = {n: torch.randn_like(p) for n, p in c.net.named_parameters()}
    with norm_mode(c.net, c.mode, c.task[0]):
        total, grads = objective(c)
        dice = torch.rand(1)
        # statistics of a few images make steep losses, flat ones drown in rounding
        measured = [slope(c, along, h) for h in (1e-5, 1e-6, 1e-7)]
        if c.algorithm == 'fomaml': measured = [directional(grads, along)]
        for engine in engines:
            torch.manual_seed(7)
            said = meta_gradient(
                c.net, *c.losses, STEPS, LR, c.names, c.algorithm, engine,
                multi_step=c.multi_step, optimizer=c.optimizer, budget=1.0,
            )
            assert torch.equal(torch.rand(1), dice), engine
            assert said.query_loss == pytest.approx(total, rel=1e-9), engine
            predicted = directional(said.grads, along)
            assert min(abs(predicted / m - 1) for m in measured) < 2e-6, engine


@pytest.mark.parametrize('number', SOME)
def test_some_combinations_agree_with_nature(number):
    check(CASES[number], ENGINES)


@pytest.mark.parametrize('engine', ENGINES)
@pytest.mark.parametrize('algorithm', CHOICES['algorithm'])
def test_dropout_with_several_queries(engine, algorithm):
    check((algorithm, 'frozen', 0.3, (0.2, 0.3, 0.5), 'momentum'), [engine])


@pytest.mark.slow
@pytest.mark.parametrize('number', range(len(CASES)))
def test_all_combinations_agree_with_nature(number):
    check(CASES[number], ENGINES)
