"""What engines must honour in any module and what they must refuse, and the trap of vmap.

That the engines agree on the networks and losses of training is in `test_maml.py`.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, vmap

from smlxray.engines import (
    KeptBytes,
    LearnedRates,
    checkpointed,
    meta_gradients,
    multi_step_weights,
)
from smlxray.maml import ENGINES, AdaptationError, accumulate, adapt, meta_gradient, meta_step, use

FRUGAL = ['reverse', 'checkpoint']


def furthest(a, b):
    return max((a[n] - b[n]).abs().max().item() for n in b) / max(
        t.abs().max().item() for t in b.values()
    )


def points(seed=0, tasks=None):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*([tasks] if tasks else []), 2, 6, 3, generator=g, dtype=torch.float64)


def losses(x):
    def of_support(m, *given):
        return m(x[0]).square().mean()

    def of_query(m, *given):
        return (m(x[1]) - 1).square().mean()

    return of_support, of_query


class Net(nn.Module):
    "A layer that is shared, one that is frozen, one without use; a norm and dropout on demand."

    def __init__(self, norm=None, drop=0.0):
        super().__init__()
        self.a, self.norm = nn.Linear(3, 3), norm or nn.Identity()
        self.drop, self.b = nn.Dropout(drop), nn.Linear(3, 3)
        self.b.weight, self.again = self.a.weight, self.b
        self.unused, self.frozen = nn.Linear(1, 1), nn.Linear(3, 3).requires_grad_(False)

    def forward(self, x):
        return self.again(self.drop(torch.tanh(self.norm(self.a(self.frozen(x))))))


class Counting(nn.Module):
    "A buffer that the forward changes, and that changes the forward."

    def __init__(self):
        super().__init__()
        self.line = nn.Linear(3, 1)
        self.register_buffer('gain', torch.ones(1, 3))

    def forward(self, x):
        with torch.no_grad():
            self.gain.mul_(1.1)
        return self.line(x * self.gain)


def made(cls=Net, **kw):
    torch.manual_seed(0)
    return cls(**kw).double()


NETS = {
    'plain': lambda: made(),
    'dropout': lambda: made(drop=0.4),
    'batch statistics': lambda: made(norm=nn.BatchNorm1d(3, track_running_stats=False)),
    'running statistics': lambda: made(norm=nn.BatchNorm1d(3)),
    'frozen statistics': lambda: made(norm=nn.BatchNorm1d(3)).eval(),
    'layer norm': lambda: made(norm=nn.LayerNorm(3)),
    'a buffer that counts': lambda: made(Counting),
}


@pytest.mark.parametrize('optimizer', ['sgd', 'momentum'])
@pytest.mark.parametrize('engine', [e for e in ENGINES if e != 'higher'])
@pytest.mark.parametrize('name', NETS)
def test_every_engine_behaves_like_higher_or_refuses(name, engine, optimizer):
    net, x = NETS[name](), points()
    before = copy.deepcopy(net.state_dict())

    def run(e):
        torch.manual_seed(5)
        options = dict(engine=e, optimizer=optimizer, budget=1.0)
        return meta_gradient(net, *losses(x), 3, 0.1, **options), torch.rand(1)

    if engine == 'vmap' and name in ('running statistics', 'a buffer that counts'):
        with pytest.raises(AdaptationError, match='choose another engine'):
            run(engine)
    else:
        (plain, dice), (said, here) = run('higher'), run(engine)
        assert furthest(said.grads, plain.grads) < 1e-12
        assert furthest(said.fast, plain.fast) < 1e-12
        assert torch.equal(dice, here)
        assert list(said.grads) == list(plain.grads)
        assert not any(n.startswith('frozen') for n in said.grads)
        if name == 'running statistics':
            for n, b in plain.fast.buffers.items():
                assert torch.allclose(said.fast.buffers[n], b), n
        if 'unused.weight' in said.grads:
            assert said.grads['unused.weight'].item() == 0
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


def test_forgotten_dice_would_be_noticed(monkeypatch):
    "The test above can fail: without the state of the random numbers, the reverse pass is wrong."
    import smlxray.engines as engines

    net, x = NETS['dropout'](), points()
    torch.manual_seed(5)
    plain = meta_gradient(net, *losses(x), 3, 0.1).grads
    monkeypatch.setattr(engines, '_put_back', lambda dice: None)
    torch.manual_seed(5)
    assert furthest(meta_gradient(net, *losses(x), 3, 0.1, engine='reverse').grads, plain) > 1e-3


# The trap of vmap


def of_batch(net, data, order, steps=3, lr=0.3):
    "Mean meta-gradient of a batch of tasks by torch.func, the gradient inside or outside of vmap."
    own = dict(net.named_parameters())

    def task(weights, x):
        fast = weights
        for _ in range(steps):
            g = grad(lambda w: functional_call(net, w, (x[0],)).square().mean())(fast)
            fast = {n: w - lr * g[n] for n, w in fast.items()}
        return (functional_call(net, fast, (x[1],)) - 1).square().mean()

    if order == 'outside':
        mean = vmap(task, in_dims=(None, 0))(own, data).mean()
        return dict(zip(own, torch.autograd.grad(mean, list(own.values()))))
    detached = {n: p.detach() for n, p in own.items()}
    grads = vmap(grad(task), in_dims=(None, 0))(detached, data)
    return {n: g.mean(0) for n, g in grads.items()}


def of_first(m, a, b):
    return m(a).square().mean()


def of_second(m, a, b):
    return (m(b) - 1).square().mean()


def by_our_engine(net, data):
    tasks = [(x[0], x[1]) for x in data]
    said = meta_gradients(net, of_first, of_second, tasks, 'vmap', steps=3, lr=0.3)
    return {n: sum(m.grads[n] for m in said) / len(said) for n in said[0].grads}


def check_exact(formulation, norm):
    "The regression test: agree with the plain loop to 1e-9."
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), norm, nn.Tanh(), nn.Linear(8, 1)).double()
    data = points(tasks=4)
    plain = [meta_gradient(net, *losses(x), 3, 0.3).grads for x in data]
    mean = {n: sum(g[n] for g in plain) / 4 for n in plain[0]}
    assert furthest(formulation(net, data), mean) < 1e-9


@pytest.mark.parametrize(
    'norm',
    [nn.BatchNorm1d(8, track_running_stats=False), nn.LayerNorm(8), nn.GroupNorm(2, 8)],
    ids=['batch', 'layer', 'group'],
)
def test_vmap_is_exact_with_the_gradient_inside(norm):
    check_exact(by_our_engine, norm)
    check_exact(lambda net, data: of_batch(net, data, 'inside'), norm)


@pytest.mark.parametrize(
    'norm', [nn.BatchNorm1d(8, track_running_stats=False), nn.LayerNorm(8)], ids=['batch', 'layer']
)
def test_the_wrong_order_fails_that_test(norm):
    with pytest.raises(AssertionError):
        check_exact(lambda net, data: of_batch(net, data, 'outside'), norm)


def test_vmap_refuses_what_it_cannot_honour():
    tasks = [(x[0], x[1]) for x in points(tasks=3)]

    def refused(net, words, support=of_first, tasks=tasks):
        with pytest.raises(AdaptationError, match=words):
            meta_gradients(net, support, of_second, tasks, 'vmap', steps=2)

    refused(NETS['running statistics'](), "cannot honour batch norm 'norm'")
    refused(NETS['dropout'](), 'cannot draw dropout masks')
    refused(NETS['a buffer that counts'](), "cannot run these losses")
    refused(made(), 'the same shapes', tasks=[*tasks, (tasks[0][0][:4], tasks[0][1])])
    net = made()
    refused(net, 'outside of it', lambda m, a, b: net(a).square().mean())
    sick = [tasks[0], (tasks[1][0] * float('nan'), tasks[1][1]), tasks[2]]
    refused(made(), 'Task 2 of 3: The support loss is nan at inner step 1 of 2', tasks=sick)


def test_vmap_refuses_mixed_precision_in_a_sentence():
    net, pair = made(), losses(points())
    with torch.autocast('cpu', torch.bfloat16):
        with pytest.raises(AdaptationError, match='cannot mix precisions'):
            meta_gradient(net, *pair, 2, 0.1, engine='vmap')


# Features that are computed once


@pytest.mark.parametrize('engine', ENGINES)
@pytest.mark.parametrize('algorithm', ['maml', 'fomaml', 'anil'])
def test_given_features_carry_the_gradient_on(engine, algorithm):
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(3, 4), nn.Linear(4, 1)

        def forward(self, x):
            return self.head(torch.tanh(self.body(x)))

    both, x, head = made(Both), points(), ['head.weight', 'head.bias']
    plain = meta_gradient(both, *losses(x), 3, 0.1, head, algorithm, 'higher').grads
    seen = []
    hook = both.body.register_forward_hook(lambda *a: seen.append(1))
    f, fq = torch.tanh(both.body(x))

    def of_support(m, f, fq):
        return m.head(f).square().mean()

    def of_query(m, f, fq):
        return (m.head(fq) - 1).square().mean()

    task = of_support, of_query, 3, 0.1, head, algorithm
    once = meta_gradient(both, *task, engine, given=(f, fq)).grads
    hook.remove()
    assert len(seen) == 1 and furthest(once, plain) < 1e-12


@pytest.mark.parametrize('engine', ['reverse', 'vmap'])
def test_features_brought_along_are_never_silently_lost(engine):
    net, x = made(), points()
    f = torch.tanh(net.a(x[0]))

    def of_support(m):
        return m.b(f).square().mean()

    def of_query(m):
        return (m.b(f) - 1).square().mean()

    with pytest.raises(AdaptationError, match='by `given`'):
        meta_gradient(net, of_support, of_query, 3, 0.1, ['b.bias'], 'anil', engine)


# What has no derivative, or carries one where it cannot be followed


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return 2 * ctx.saved_tensors[0] * g


@pytest.mark.parametrize('engine', ENGINES)
def test_an_operation_without_a_second_derivative_is_refused_and_first_order_is_not(engine):
    net, x = made(), points()
    of_query = losses(x)[1]

    def attention(m):
        h = m.a(x[0])[None]
        return F.scaled_dot_product_attention(h, h, h).square().mean()

    for of_support in (lambda m: Once.apply(m(x[0])).mean(), attention):
        with pytest.raises(AdaptationError, match="no second derivative|cannot run these losses"):
            meta_gradient(net, of_support, of_query, 3, 0.1, engine=engine)
    if engine != 'vmap':
        said = meta_gradient(net, attention, of_query, 3, 0.1, engine=engine, algorithm='fomaml')
        assert said.grads['a.bias'].abs().max() > 0


@pytest.mark.parametrize('engine', FRUGAL)
def test_a_buffer_with_a_gradient_is_refused(engine):
    class Carrying(Counting):
        def forward(self, x):
            self.gain.mul_(self.line.weight)
            return self.line(x * self.gain)

    with pytest.raises(AdaptationError, match="'gain' carries a gradient from step to step"):
        meta_gradient(made(Carrying), *losses(points()), 2, 0.1, engine=engine)


@pytest.mark.parametrize('engine', ENGINES)
def test_losses_that_go_round_the_call_are_refused(engine):
    net, x = made(), points()
    of_support, of_query = losses(x)
    for pair in ((lambda m: of_support(net), of_query), (of_support, lambda m: of_query(net))):
        with pytest.raises(AdaptationError, match='the `call`'):
            meta_gradient(net, *pair, 2, 0.1, engine=engine)


@pytest.mark.parametrize('engine', ENGINES)
def test_nan_names_step_and_task(engine):
    net, x = made(), points()
    opt, good = torch.optim.SGD(net.parameters(), 0.1), losses(x)
    steep = (lambda m: torch.log(m(x[0]).square().sum() * 0), good[1])
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(
        AdaptationError, match='Task 2 of 2: The support loss is -?(inf|nan) at inner step 1 of 3'
    ):
        meta_step(net, opt, [good, steep], steps=3, lr=0.1, engine=engine)
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())  # no step was taken


# The rule, the backbone, and the rates


def test_auto_follows_its_rule():
    net, pair = made(), losses(points())
    with KeptBytes() as kept:
        adapt(net, pair[0], 1, 0.1)
    graph = kept.stop() * 4
    plain = meta_gradient(net, *pair, 3, 0.1).grads
    for budget, engine in ((graph, 'loop'), (graph - 1, 'reverse')):
        said = meta_gradient(net, *pair, 3, 0.1, engine='auto', budget=budget)
        assert said.engine == engine and furthest(said.grads, plain) < 1e-12


@pytest.mark.parametrize('engine', ['loop', 'auto', *FRUGAL])
@pytest.mark.parametrize('name', ['plain', 'dropout', 'running statistics'])
def test_a_checkpointed_block_runs_again_at_its_own_weights(name, engine):
    net, pair = NETS[name](), losses(points())

    def run(algorithm):
        torch.manual_seed(5)
        return meta_gradient(net, *pair, 3, 0.1, algorithm=algorithm, engine=engine)

    for algorithm in ('maml', 'fomaml'):
        plain = run(algorithm)
        with checkpointed([net.a, net.norm, net.drop]):
            said = run(algorithm)
        assert furthest(said.grads, plain.grads) < 1e-12
        for n, b in plain.fast.buffers.items():
            assert torch.equal(said.fast.buffers[n], b), n
    with checkpointed([net.a]), pytest.raises(AdaptationError, match="replaced forward of 'a'"):
        meta_gradient(net, *pair, 3, 0.1, engine='higher')
    assert not any('forward' in vars(m) for m in net.modules())


def test_learned_rates_learn():
    net, pair = made(), losses(points())
    rates = LearnedRates(net, 0.01, each='tensor', steps=3).double()
    opt = torch.optim.SGD(rates.parameters(), 1.0)
    first = meta_step(net, opt, [pair], steps=3, lr=rates)[0].query_loss
    for _ in range(20):
        last = meta_step(net, opt, [pair], steps=3, lr=rates, engine='reverse')[0].query_loss
    assert last < first - 1e-3 and all(len(r) == 3 for r in rates.rates)


def test_multi_step_weights_end_with_the_last_step():
    assert multi_step_weights(4, 0.0) == [0.25] * 4
    assert multi_step_weights(4, 1.0) == [0, 0, 0, 1]
    assert sum(multi_step_weights(5, 0.3)) == pytest.approx(1)


def test_accumulated_tasks_equal_one_batch():
    net, data = made(), points(tasks=3)
    for x in data:
        accumulate(net, meta_gradient(net, *losses(x), 2, 0.1, engine='reverse').grads, 1 / 3)
    whole = sum(losses(x)[1](use(net, adapt(net, losses(x)[0], 2, 0.1))) for x in data) / 3
    free = {n: p for n, p in net.named_parameters() if p.requires_grad}
    grads = torch.autograd.grad(whole, list(free.values()), allow_unused=True)
    for (n, p), g in zip(free.items(), grads):
        assert torch.allclose(p.grad, torch.zeros_like(p) if g is None else g, atol=1e-12), n
