"Every engine on every backbone in every mode of batch norm, in float64, and the promises of `smlxray bench engines`."

import copy, json, subprocess, sys

import pytest
import torch

from smlxray.losses import pair_loss, query_loss
from smlxray.maml import meta_gradient
from smlxray.siamese import SiameseNet, norm_mode


@pytest.mark.parametrize('mode', ['group', 'frozen', 'support', 'transductive'])
@pytest.mark.parametrize('backbone', ['conv4', 'resnet18', 'densenet121'])
def test_engines_agree(backbone, mode):
    torch.manual_seed(0)
    net, y = (
        SiameseNet(backbone, 8, 16, norm='group' if mode == 'group' else 'batch').double().eval(),
        torch.tensor([1.0, 1, 0, 0]).double(),
    )
    x, xq = torch.randn(2, 4, 1, 32, 32).double() + y[:, None, None, None]

    def of_query(net):
        z = net(torch.cat([x, xq]))
        return query_loss(z[4:], y, z[:4], y, net.scale)

    before = copy.deepcopy(net.state_dict())
    lr = (
        1e-5 if mode == 'support' else 3e-4
    )  # statistics of four images make steep losses; one step too far they saturate, and a gradient is all rounding
    with norm_mode(net, 'frozen' if mode == 'group' else mode, x):
        said = {
            e: meta_gradient(
                net,
                lambda net: pair_loss(net(x), y, net.scale, net.bias),
                of_query,
                2,
                lr,
                engine=e,
                budget=1.0,
            ).grads
            for e in ('higher', 'loop', 'reverse', 'checkpoint', 'vmap', 'auto')
        }
    largest = max(g.abs().max().item() for g in said['higher'].values())
    for e, grads in said.items():
        assert (
            max((grads[n] - g).abs().max().item() for n, g in said['higher'].items())
            < 1e-9 * largest
        ), e
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())


def test_the_promises_of_the_benchmark(tmp_path):
    "In a process of its own: memory that earlier tests gave back would help a graph to fit into the budget."
    subprocess.run(
        [
            sys.executable,
            '-m',
            'smlxray.cli',
            'bench',
            'engines',
            '--json',
            str(tmp_path / 'rows.json'),
        ],
        check=True,
    )
    rows = json.loads((tmp_path / 'rows.json').read_text())['rows']
    assert all(r['gradient_error'] < 1e-9 for r in rows), rows

    def of(case, engine, algorithm='maml'):
        return next(
            r
            for r in rows
            if r['case'].startswith(case) and r['engine'] == engine and r['algorithm'] == algorithm
        )

    assert (
        of('conv4 64 px', 'loop')['time_ratio'] <= 1.05
        and of('conv4 64 px', 'loop', 'anil, one pass')['time_ratio'] <= 0.15
    ), rows
    assert all(r['time_ratio'] <= 0.8 for r in rows if 'one forward' in r['case']), rows
    for steps, least in ((10, 1 / 5), (20, 1 / 8)):
        assert any(
            of(f'conv4 64 px, {steps} steps', e)['memory_ratio'] <= least
            and of(f'conv4 64 px, {steps} steps', e)['time_ratio'] <= 1.5
            for e in ('reverse', 'checkpoint')
        ), rows
    assert of('resnet50', 'loop')['memory_ratio'] > 1 > of('resnet50', 'reverse')['memory_ratio'], (
        rows
    )
