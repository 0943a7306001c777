"Every engine on every backbone in every mode of batch norm, in float64, and memory."

import copy, json, subprocess, sys

import pytest
import torch

from smlxray.bench import EngineTask, absent_row, gradient_error
from smlxray.losses import pair_loss, query_loss
from smlxray.maml import meta_gradient
from smlxray.siamese import SiameseNet, norm_mode

pytestmark = pytest.mark.slow


@pytest.mark.parametrize('mode', ['group', 'frozen', 'support', 'transductive'])
@pytest.mark.parametrize('backbone', ['conv4', 'resnet18', 'densenet121'])
def test_engines_agree(backbone, mode):
    torch.manual_seed(0)
    norm = 'group' if mode == 'group' else 'batch'
    net = SiameseNet(backbone, 8, 16, norm=norm).double().eval()
    y = torch.tensor([1.0, 1, 0, 0]).double()
    x, xq = torch.randn(2, 4, 1, 32, 32).double() + y[:, None, None, None]

    def of_query(net):
        z = net(torch.cat([x, xq]))
        return query_loss(z[4:], y, z[:4], y, net.scale)

    before = copy.deepcopy(net.state_dict())
    # statistics of four images make steep losses: one step too far they saturate, and a gradient
    # is all rounding
    lr = 1e-5 if mode == 'support' else 3e-4

    def of_support(net):
        return pair_loss(net(x), y, net.scale, net.bias)

    said = {}
    with norm_mode(net, 'frozen' if mode == 'group' else mode, x):
        for engine in ('higher', 'loop', 'reverse', 'checkpoint', 'vmap', 'auto'):
            found = meta_gradient(net, of_support, of_query, 2, lr, engine=engine, budget=1.0)
            said[engine] = found.grads
    reference = said['higher']
    largest = max(g.abs().max().item() for g in reference.values())
    for engine, grads in said.items():
        error = max((grads[n] - g).abs().max().item() for n, g in reference.items())
        assert error < 1e-9 * largest, engine
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())


def test_gradients_and_memory_of_the_benchmark(tmp_path):
    "In a process of its own: memory that earlier tests gave back would help a graph to fit."
    out = tmp_path / 'rows.json'
    program = (
        'import json, sys\n'
        'from smlxray.bench import bench_engines\n'
        'with open(sys.argv[1], "w") as file: json.dump(bench_engines(rounds=1), file)\n'
    )
    subprocess.run([sys.executable, '-c', program, str(out)], check=True)
    rows = json.loads(out.read_text())
    absent = [r for r in rows if r['gradient_error'] is None]  # peers that are not installed
    assert all('is not installed' in r['case'] for r in absent)
    assert all(r['gradient_error'] < 1e-9 for r in rows if r not in absent), rows

    def memory(case, engine):
        "The memory ratio of plain MAML in the first case that begins so."
        for r in rows:
            if r['case'].startswith(case) and (r['engine'], r['algorithm']) == (engine, 'maml'):
                return r['memory_ratio']

    for steps, least in ((10, 1 / 5), (20, 1 / 8)):
        case = f'conv4 64 px, {steps} steps'
        assert min(memory(case, 'reverse'), memory(case, 'checkpoint')) <= least, rows
    assert memory('resnet50', 'loop') > 1 > memory('resnet50', 'reverse'), rows


@pytest.mark.parametrize(
    'algorithm, peer',
    [('maml', 'learn2learn'), ('maml', 'torchopt'), ('anil, one pass', 'learn2learn')],
)
def test_other_libraries_say_the_same(algorithm, peer):
    pytest.importorskip(peer, reason=f'{peer} is not installed')
    small = EngineTask('conv4', 'group', size=16, shots=2, steps=2)
    before = {name: t.clone() for name, t in small.net.state_dict().items()}
    assert gradient_error(small, algorithm, peer) < 1e-9
    assert all(torch.equal(t, before[name]) for name, t in small.net.state_dict().items())


def test_what_is_not_installed_is_a_row_that_says_so():
    row = absent_row('conv4', 'maml', 'torchopt')
    assert row['time_ratio'] is None and 'not installed' in row['case']
