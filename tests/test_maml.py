"""The meta-gradient of the very objective of training, and tasks that need adaptation.

The chapter proves the same on a toy network, and here learning to adapt must work over seeds.
"""

import copy
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from smlxray.engines import LearnedRates, multi_step_weights
from smlxray.losses import pair_loss, query_loss, query_scores
from smlxray.maml import (
    ALGORITHMS,
    ENGINES,
    AdaptationError,
    accumulate,
    adapt,
    meta_gradient,
    meta_step,
    use,
)
from smlxray.metrics import auc
from smlxray.siamese import SiameseNet, norm_mode, unit_vectors

LR = 0.003
# a probe is no part of these losses: the chapter `tasks` tests the algorithm that adapts one
WITHOUT_PROBE = [a for a in ALGORITHMS if ALGORITHMS[a].adapts != 'probe']
DIFFERENTIATED = [a for a in WITHOUT_PROBE if ALGORITHMS[a].differentiates]
OTHERS = [e for e in ENGINES if e != 'higher']  # all are held against `higher`


def rows_of(shots=3, queries=3, size=16, seed=0):
    "Support and query images with labels: blocks of grey, the positives a little brighter."
    g = torch.Generator().manual_seed(seed)
    y, yq = (torch.arange(2 * n) % 2 for n in (shots, queries))

    def draw(labels):
        coarse = torch.randn(len(labels), 1, 2, 2, generator=g).double()
        blocks = F.interpolate(coarse, scale_factor=size // 2)
        return 4 * blocks + labels[:, None, None, None]

    x, xq = draw(y), draw(yq)
    return x, y.double(), xq, yq.double()


def losses_of(task):
    "The losses of training, of the support and of the query, as functions of the network."
    x, y, xq, yq = task

    def of_query(net):
        z = net(torch.cat([x, xq]))
        return query_loss(z[len(x) :], yq, z[: len(x)], y, net.scale)

    return (lambda net: pair_loss(net(x), y, net.scale, net.bias)), of_query


def smooth_net(seed=0, **options):
    "The network of training without hinges, its embeddings spread as after some training."
    torch.manual_seed(seed)
    options = {**dict(width=8, norm=None, activation='softplus', pool='avg'), **options}
    net = SiameseNet('conv4', embedding_dim=4, hidden=8, **options).double().eval()
    with torch.no_grad():
        for m in net.backbone.layers:
            if isinstance(m, nn.Conv2d):
                m.weight *= 3
        x, net.scale[()] = rows_of()[0], 3.0
        for i in (0, 2):
            z = net.head[: i + 1](net.features(x))
            net.head[i].weight /= z.std(0).mean()
            net.head[i].bias -= net.head[: i + 1](net.features(x)).mean(0)
    return net


def gradient(net, task=None, steps=3, algorithm='maml', engine='loop', **kw):
    kw.setdefault('params', net.adaptable(algorithm))
    kw.update(steps=steps, lr=LR, algorithm=algorithm, engine=engine)
    return meta_gradient(net, *losses_of(task or rows_of()), **kw)


def grads_of(net):
    "What `backward` left behind, with zeros where it left nothing."
    return {
        n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in net.named_parameters()
    }


def furthest(a, b):
    assert list(a) == list(b)
    return max((a[n] - b[n]).abs().max().item() for n in a)


# First proofs


@pytest.mark.parametrize('engine', ENGINES)
@pytest.mark.parametrize('algorithm', WITHOUT_PROBE)
def test_every_tensor_moves_and_nothing_else_is_touched(algorithm, engine):
    net = smooth_net()
    before = copy.deepcopy(net.state_dict())
    m = gradient(net, algorithm=algorithm, engine=engine)
    still = {n for n, g in m.grads.items() if g.abs().max() < 1e-9}
    # the query score has no bias: only the inner gradient reaches it, and not in first order
    assert still == ({'bias'} if algorithm == 'fomaml' else set())
    assert list(m.grads) == [n for n, _ in net.named_parameters()] and len(m.support_losses) == 3
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    opt = torch.optim.SGD(net.parameters(), lr=0.1)
    kw = dict(params=net.adaptable(algorithm), algorithm=algorithm, engine=engine)
    meta_step(net, opt, [losses_of(rows_of())], steps=3, lr=LR, **kw)
    assert {n for n, p in net.named_parameters() if torch.equal(p, before[n])} == still


def agree(run, engines=OTHERS, tolerance=1e-9):
    "Hold engines against `higher`, and look where the random numbers stand afterwards."
    torch.manual_seed(3)
    plain = run('higher')
    dice = torch.rand(1)
    scale = max(1.0, max(g.abs().max().item() for g in plain.grads.values()))
    for e in engines:
        torch.manual_seed(3)
        said = run(e)
        assert torch.equal(torch.rand(1), dice), e
        assert furthest(said.grads, plain.grads) < tolerance * scale, e
        assert furthest(said.fast, plain.fast) < tolerance, e
        assert len(said.rate_grads) == len(plain.rate_grads), e
        for (_, a), (_, b) in zip(said.rate_grads, plain.rate_grads):
            assert (a - b).abs().max() < tolerance * scale, e
        assert said.query_loss == pytest.approx(plain.query_loss, abs=1e-9), e
        assert said.support_losses == pytest.approx(plain.support_losses, abs=1e-9), e
        if e == 'vmap': continue
        for n, b in (plain.fast.buffers or {}).items():
            assert torch.allclose(said.fast.buffers[n], b), e
    return plain


@pytest.mark.parametrize('steps', [0, 1, 3])
@pytest.mark.parametrize('algorithm', WITHOUT_PROBE)
def test_engines_agree(algorithm, steps):
    net = smooth_net()
    agree(lambda e: gradient(net, steps=steps, algorithm=algorithm, engine=e, budget=1.0))


@pytest.mark.parametrize('algorithm', DIFFERENTIATED)
@pytest.mark.parametrize('mode', ['group', 'frozen', 'support', 'transductive'])
def test_engines_agree_through_every_norm(mode, algorithm):
    net = smooth_net(norm='group' if mode == 'group' else 'batch')
    before = copy.deepcopy(net.state_dict())
    task = rows_of()
    with norm_mode(net, 'frozen' if mode == 'group' else mode, task[0]):
        agree(lambda e: gradient(net, task, engine=e, algorithm=algorithm, budget=1.0))
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())


@pytest.mark.parametrize(
    'backbone, mode',
    [('resnet18', 'support'), ('resnet18', 'group'), ('densenet121', 'transductive')],
)
def test_engines_agree_on_large_backbones(backbone, mode):
    "One mode each; test_engines_agree.py, which is slow, has all of them."
    torch.manual_seed(0)
    task = rows_of(1, 1, 32)
    norm = 'group' if mode == 'group' else 'batch'
    net = SiameseNet(backbone, embedding_dim=8, hidden=16, norm=norm).double().eval()
    with norm_mode(net, 'frozen' if mode == 'group' else mode, task[0]):
        agree(lambda e: gradient(net, task, steps=1, engine=e), ['loop', 'reverse', 'checkpoint'])


@pytest.mark.parametrize(
    'kind', ['a rate a weight', 'meta-sgd', 'maml++', 'first order', 'momentum']
)
def test_engines_agree_on_what_else_there_is(kind):
    net = smooth_net()
    torch.manual_seed(1)
    kw = {
        'a rate a weight': dict(lr={n: LR * torch.rand_like(p) for n, p in net.named_parameters()}),
        'meta-sgd': dict(lr=LearnedRates(net, LR)),
        'maml++': dict(
            lr=LearnedRates(net, LR, each='tensor', steps=3), multi_step=multi_step_weights(3, 0.2)
        ),
        'first order': dict(lr=LearnedRates(net, LR), algorithm='fomaml'),
        'momentum': dict(lr=LR, optimizer='momentum', multi_step=[0, 1, 1]),
    }[kind]

    def run(e):
        return meta_gradient(net, *losses_of(rows_of()), steps=3, engine=e, budget=1.0, **kw)

    if kind != 'first order':
        agree(run)
        return
    with pytest.raises(AdaptationError, match='inner rates cannot be learned'):
        run('higher')
    agree(lambda e: run('loop' if e == 'higher' else e))


def four_point(at, h):
    "The slope of a function at 0."
    return (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)


@pytest.mark.parametrize('engine', ['loop', 'reverse', 'checkpoint', 'vmap'])
@pytest.mark.parametrize(
    'each, steps, multi', [('element', None, None), ('tensor', 3, [0.2, 0.3, 0.5])]
)
def test_finite_differences_agree_for_learned_rates(engine, each, steps, multi):
    net, (of_support, of_query) = smooth_net(), losses_of(rows_of())
    rates = LearnedRates(net, LR, each=each, steps=steps).double()
    said = meta_gradient(net, of_support, of_query, 3, rates, engine=engine, multi_step=multi)
    accumulate(net, {}, 1.0, said.rate_grads)
    weights = {k: w for k, w in enumerate(multi or [0, 0, 1], 1) if w}

    def objective(way, k):
        moved = copy.deepcopy(rates)
        for r, d in zip(moved.rates, way):
            r.data += k * d
        with torch.no_grad():
            adapted = {i: use(net, adapt(net, of_support, i, moved)) for i in weights}
            return sum(w * of_query(adapted[i]).item() for i, w in weights.items())

    for seed in range(2):
        torch.manual_seed(seed)
        way = [torch.randn_like(r) for r in rates.rates]
        measured = four_point(partial(objective, way), h=1e-6)
        predicted = sum((r.grad * d).sum().item() for r, d in zip(rates.rates, way))
        assert predicted == pytest.approx(measured, rel=1e-6)


@pytest.mark.parametrize('algorithm', ['maml', 'anil'])
@pytest.mark.parametrize('steps', [1, 3])
def test_finite_differences_agree(steps, algorithm):
    net, (of_support, of_query) = smooth_net(), losses_of(rows_of())
    grads = gradient(net, steps=steps, algorithm=algorithm).grads

    def objective(direction, k):
        there = copy.deepcopy(net)
        for n, p in there.named_parameters():
            p.data += k * direction[n]
        with torch.no_grad():
            fast = adapt(there, of_support, steps, LR, net.adaptable(algorithm))
            return of_query(use(there, fast)).item()

    for seed in range(5):
        torch.manual_seed(100 + seed)
        direction = {n: torch.randn_like(p) for n, p in net.named_parameters()}
        measured = four_point(partial(objective, direction), h=1e-5)
        predicted = sum((grads[n] * direction[n]).sum().item() for n in grads)
        assert predicted == pytest.approx(measured, rel=1e-6)


@pytest.mark.parametrize('engine', ENGINES)
def test_fomaml_is_the_query_gradient_at_the_fast_weights(engine):
    net = smooth_net()
    first, second = gradient(net, algorithm='fomaml', engine=engine), gradient(net, engine=engine)
    twin = copy.deepcopy(net)
    twin.load_state_dict({**net.state_dict(), **first.fast})
    losses_of(rows_of())[1](twin).backward()
    assert furthest(first.grads, grads_of(twin)) < 1e-12
    assert furthest(first.grads, second.grads) > 1e-3


@pytest.mark.parametrize('algorithm', DIFFERENTIATED)
def test_zero_steps_give_the_plain_gradient(algorithm):
    net = smooth_net()
    m = gradient(net, steps=0, algorithm=algorithm)
    losses_of(rows_of())[1](net).backward()
    assert furthest(m.grads, grads_of(net)) < 1e-12


def test_adapt_is_plain_sgd_and_keeps_no_graph_without_grad():
    net, (of_support, _) = smooth_net(), losses_of(rows_of())
    twin = copy.deepcopy(net)
    opt = torch.optim.SGD(twin.parameters(), lr=LR)
    for _ in range(4):
        opt.zero_grad()
        of_support(twin).backward()
        opt.step()
    with torch.no_grad():
        fast = adapt(net, of_support, 4, LR)
    assert furthest(fast, dict(twin.named_parameters())) < 1e-12
    assert not any(w.requires_grad for w in fast.values())


def test_first_order_adapt_never_falls_silent():
    "A user's own outer loop over `adapt` gets the gradient of FOMAML or of MAML, never none."
    for first_order, algorithm in ((True, 'fomaml'), (False, 'maml')):
        net, (of_support, of_query) = smooth_net(), losses_of(rows_of())
        of_query(use(net, adapt(net, of_support, 3, LR, first_order=first_order))).backward()
        said = gradient(net, algorithm=algorithm).grads
        assert furthest(said, grads_of(net)) < 1e-12


# Any module


class Tied(nn.Module):
    "One weight in two layers, one layer under two names."

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        self.b.weight = self.a.weight
        self.c = self.b

    def forward(self, x):
        return self.c(torch.tanh(self.b(torch.tanh(self.a(x)))))


@pytest.mark.parametrize('params', [None, ['c.weight'], ['b.bias']])
def test_tied_weights_follow_and_stay_tied(params):
    torch.manual_seed(0)
    net = Tied().double()
    weight, bias = net.a.weight, net.b.bias
    x = torch.randn(2, 5, 3).double()
    losses = lambda m: m(x[0]).square().sum(), lambda m: (m(x[1]) - 1).square().sum()
    agree(lambda e: meta_gradient(net, *losses, 2, 0.05, params, engine=e))
    assert net.a.weight is weight and net.b.weight is weight
    assert net.c is net.b and net.b.bias is bias


def test_frozen_parameters_neither_adapt_nor_get_gradients():
    net = smooth_net()
    net.backbone.requires_grad_(False)
    said = agree(lambda e: meta_gradient(net, *losses_of(rows_of()), steps=2, lr=LR, engine=e))
    assert not any(n.startswith('backbone') for n in [*said.grads, *said.fast])
    with pytest.raises(AdaptationError, match='is frozen'):
        gradient(net)


def test_gradients_add_up_over_a_meta_batch():
    net = smooth_net()
    tasks = [rows_of(seed=s) for s in range(3)]
    said = [gradient(net, t).grads for t in tasks]
    for grads in said:
        accumulate(net, grads, 1 / 3)
    for n, p in net.named_parameters():
        assert torch.allclose(p.grad, sum(g[n] for g in said) / 3, atol=1e-12)


@pytest.mark.parametrize(
    'wrong, sentence',
    [
        (dict(algorithm='reptil'), "did you mean 'reptile'"),
        (dict(engine='jax'), 'Known are loop, higher, reverse, checkpoint, vmap, auto'),
        (dict(params=['head.9.weight']), 'did you mean'),
        (dict(algorithm='anil'), "name the head's parameters"),
        (dict(steps=-1), 'whole number'),
        (dict(lr={'scale': 0.1}), 'name none for'),
        (dict(lr=1e300, steps=3), 'at inner step'),
        (dict(params=[]), 'No parameter adapts'),
        (dict(optimizer=torch.optim.Adam), 'no differentiable form'),
        (dict(optimizer='lbfgs'), 'choose one of sgd, momentum'),
        (dict(multi_step=[1.0]), 'must be 5 weights'),
    ],
)
def test_mistakes_are_answered_in_a_sentence(wrong, sentence):
    with pytest.raises(AdaptationError, match=sentence):
        meta_gradient(smooth_net(), *losses_of(rows_of()), **wrong)


@pytest.mark.parametrize('engine', ENGINES)
def test_nan_names_the_step(engine):
    task = rows_of()
    task[0][0, 0, 0, 0] = float('nan')
    with pytest.raises(AdaptationError, match='support loss is nan at inner step 1 of 3'):
        gradient(smooth_net(), task, engine=engine)


# A family of tasks that needs adaptation: what matters changes from task to task

CROSS = torch.tensor([[1.0, -1, -1, 1], [-1, 1, 1, -1], [-1, 1, 1, -1], [1, -1, -1, 1]])
NOVEL = [3, 5, 10, 12]  # places that never occur in meta-training, not even as distractors
BASE = [i for i in range(16) if i not in NOVEL]


def draw_task(seed, novel=False, shots=7, queries=15):
    "Sixteen places with a cross or none; the task is about one, and only its support says which."
    g = torch.Generator().manual_seed(seed)
    n, places = 2 * (shots + queries), NOVEL if novel else BASE
    place = places[torch.randint(len(places), (1,), generator=g)]
    marks = torch.rand(n, 16, generator=g) < 0.5
    if not novel:
        marks[:, NOVEL] = False
    marks[:, place] = torch.arange(n) % 2 == 1
    brightness = torch.randn(n, 16, 1, 1, generator=g)
    noise = 0.5 * torch.randn(n, 16, 4, 4, generator=g)
    cells = marks[..., None, None] * CROSS + brightness + noise
    x = cells.view(n, 4, 4, 4, 4).transpose(2, 3).reshape(n, 1, 16, 16)
    y, k = marks[:, place].float(), 2 * shots
    return x[:k], y[:k], x[k:], y[k:]


class Small(nn.Module):
    "Eight filters per place, squeezed into four numbers: too few for all places at once."

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 4, stride=4), nn.Tanh(), nn.Flatten())
        self.head = nn.Linear(128, 4)
        self.scale, self.bias = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.tensor(0.0))

    def forward(self, x):
        return unit_vectors(self.head(self.body(x)))


HEAD = ['head.weight', 'head.bias', 'scale', 'bias']


def learn(net, episodes, seed, **kw):
    opt = torch.optim.Adam(net.parameters(), lr=0.01)
    cool = torch.optim.lr_scheduler.CosineAnnealingLR(opt, episodes // 4)
    first = 1_000_000 * (seed + 1)
    for i in range(first, first + episodes, 4):
        meta_step(net, opt, [losses_of(draw_task(i + j)) for j in range(4)], **kw)
        cool.step()
    return net


def aucs(net, steps, novel, params=None, tasks=40):
    "AUC of held-out tasks, the same for every network."
    found = []
    for i in range(tasks):
        x, y, xq, yq = draw_task(i, novel)
        with torch.no_grad():
            call = use(net, adapt(net, losses_of((x, y, xq, yq))[0], steps, 0.3, params))
            found.append(auc(query_scores(call(xq), call(x), y).numpy(), yq.numpy()))
    return np.array(found)


def lower(difference):
    return difference.mean() - 1.96 * difference.std(ddof=1) / len(difference) ** 0.5


@pytest.mark.parametrize('seed, algorithm', [(0, 'maml')])  # others, and ANIL: test_learning.py
def test_learning_to_adapt_works(seed, algorithm):
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    params = HEAD if algorithm == 'anil' else None
    compared = learn(Small(), 400, seed + 10, steps=0)
    how = dict(steps=5, lr=0.3, algorithm=algorithm, params=params)
    adapting = learn(copy.deepcopy(compared), 240, seed, **how)
    for novel in (False, True):
        before, after = aucs(adapting, 0, novel), aucs(adapting, 5, novel, params)
        said = f'{algorithm}, seed {seed}, novel {novel}: {before.mean():.3f} -> {after.mean():.3f}'
        assert lower(after - before) > 0.1, said
    if algorithm != 'maml': return
    rival = learn(compared, 240, seed, steps=0)  # the same tasks, without learning to adapt
    compared_only = aucs(rival, 5, novel, params)
    said = f'learned to adapt {after.mean():.3f}, only to compare {compared_only.mean():.3f}'
    assert lower(after - compared_only) > 0, said
