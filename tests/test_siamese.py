"The large backbones, batch norm under every engine, and what a checkpointed block keeps."

import copy, json

import pytest
import timm
import torch

from smlxray.engines import KeptBytes, checkpointed
from smlxray.losses import contrastive_loss, label_similarity, pair_loss, query_loss
from smlxray.maml import meta_gradient
from smlxray.siamese import SiameseNet, _timm_blocks, batch_norms, make_backbone, norm_mode

LABELS = torch.tensor([1, 1, 0, 0])
MODES = ('frozen', 'support', 'transductive')


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def small(norm='batch'):
    net = SiameseNet(
        'conv4', embedding_dim=8, hidden=16, width=8, norm=norm, activation='softplus', pool='avg'
    ).double()
    with torch.no_grad():
        for _ in range(5):
            net.train()(torch.randn(8, 1, 16, 16, dtype=torch.float64))
    return net.eval()


def task():
    support, queries = torch.randn(10, 1, 16, 16, dtype=torch.float64).split((4, 6))
    return support, queries, torch.tensor([0, 1, 0, 1, 1, 0])


def task_gradient(net, engine, support=None, queries=None):
    drawn_support, drawn_queries, wanted = task()
    support = drawn_support if support is None else support
    queries = drawn_queries if queries is None else queries

    def support_loss(call):
        return pair_loss(call(support), LABELS, call.scale, call.bias)

    def outer(call):
        z = call(torch.cat([queries, support]))
        return query_loss(z[:6], wanted, z[6:], LABELS, call.scale)

    return support, lambda: meta_gradient(
        net, support_loss, outer, steps=2, lr=0.05, params=net.adaptable(), engine=engine
    )


@pytest.mark.parametrize('name', ['resnet18', 'resnet50', 'densenet121'])
def test_large_backbone_comes_back_from_its_configuration(name):
    net = SiameseNet(name, embedding_dim=8, hidden=16).eval()
    twin = SiameseNet.from_config(json.loads(json.dumps(net.to_config()))).eval()
    twin.load_state_dict(net.state_dict())
    x = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        assert torch.equal(net(x), twin(x)) and net(x).shape == (2, 8)
    assert net.adaptable('anil') == ['scale', 'bias', 'head.2.weight', 'head.2.bias']


@pytest.mark.parametrize('name', ['resnet18', 'densenet121'])
def test_every_weight_of_a_large_backbone_gets_a_gradient(name):
    net = SiameseNet(name, embedding_dim=8, hidden=16).train()
    e = net(torch.randn(5, 1, 64, 64))
    (contrastive_loss(e, torch.eye(5)) + pair_loss(e[:4], LABELS, net.scale, net.bias)).backward()
    for n, p in net.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all() and p.grad.any(), n


@pytest.mark.parametrize('mode', MODES)
def test_engines_agree_in_every_batch_norm_mode_and_leave_no_trace(mode):
    net, grads = small(), []
    before = copy.deepcopy(net.state_dict())
    for engine in ('loop', 'higher'):
        torch.manual_seed(7)
        support, run = task_gradient(net, engine)
        with norm_mode(net, mode, support):
            grads.append(run().grads)
    for name, g in grads[0].items():
        torch.testing.assert_close(g, grads[1][name], rtol=1e-9, atol=1e-12)
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name
    # `bias`, too: absent from the query score, it acts through the inner steps
    assert all(g.any() for g in grads[0].values())


def test_modes_give_different_gradients():
    net, norms = small(), {}
    for mode in MODES:
        torch.manual_seed(7)
        support, run = task_gradient(net, 'loop')
        with norm_mode(net, mode, support):
            norms[mode] = run().grads['head.2.weight']
    assert not torch.allclose(norms['frozen'], norms['support'])
    assert not torch.allclose(norms['support'], norms['transductive'])


def test_mode_ends_after_an_error_and_nests():
    net, support = small().train(), task()[0]
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(RuntimeError, match='stop'):
        with norm_mode(net, 'support', support):
            with norm_mode(net, 'transductive'):
                net(support)
            assert not any(m.training for m in batch_norms(net))
            raise RuntimeError('stop')
    assert all(m.training and m.track_running_stats for m in batch_norms(net))
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_wrong_support_shape_restores_the_network():
    net = small()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(RuntimeError):
        with norm_mode(net, 'support', torch.randn(2, 3, 16, 16, dtype=torch.float64)):
            pass
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert not any(m._forward_pre_hooks for m in batch_norms(net))


def test_losses_under_autocast_stay_close_to_float32():
    e, labels = torch.randn(12, 32), torch.randint(0, 2, (12, 5)).float()
    similar, y = label_similarity(labels), torch.tensor([1] * 6 + [0] * 6)
    plain = contrastive_loss(e, similar), pair_loss(e, y), query_loss(e[:4], y[:4], e, y)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        mixed = (
            contrastive_loss(e, label_similarity(labels)),
            pair_loss(e, y),
            query_loss(e[:4], y[:4], e, y),
        )
    torch.testing.assert_close(mixed, plain, rtol=1e-5, atol=1e-6)


def test_similarity_of_bfloat16_labels_counts_exactly():
    labels = torch.randint(0, 2, (30, 14)).float()
    assert torch.equal(label_similarity(labels.bfloat16()), label_similarity(labels))


def test_a_checkpoint_of_a_pretrained_backbone_is_read_without_its_imagenet_weights(
    tmp_path, monkeypatch
):
    import smlxray.siamese as siamese
    from smlxray.train import load_checkpoint, save_checkpoint

    net = SiameseNet('efficientnet_lite0', embedding_dim=8, hidden=16, pretrained=True).eval()
    save_checkpoint(net, tmp_path / 'net.safetensors', {})

    def gone(net):
        raise AssertionError('the weights were asked for')

    monkeypatch.setattr(siamese, '_lite0_weights', gone)
    twin, _ = load_checkpoint(tmp_path / 'net.safetensors')
    x = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        assert torch.equal(net(x), twin.eval()(x))


def test_folding_takes_its_spread_from_the_cache():
    from smlxray.cache import MEAN, STD
    from smlxray.siamese import GREY_MEAN, GREY_STD

    assert (GREY_MEAN, GREY_STD) == (MEAN, STD)


@pytest.mark.parametrize(
    'name', ['timm/resnet10t', 'timm/mobilenetv3_small_050', 'timm/vit_tiny_patch16_224']
)
def test_other_networks_of_timm_take_one_channel(name):
    net, channels = make_backbone(name)
    with torch.no_grad():
        assert net.eval()(torch.randn(2, 1, 224, 224)).shape == (2, channels)


@pytest.mark.parametrize('name', ['efficientnet_lite0', 'timm/resnet10t', 'timm/convnext_atto'])
def test_checkpointed_blocks_keep_less_and_change_no_gradient(name):
    net = SiameseNet(name, embedding_dim=8, hidden=16).double().eval()
    support, queries = torch.randn(10, 1, 32, 32, dtype=torch.float64).split((4, 6))
    kept, said = [], []
    for modules in ([], net.blocks()):
        with checkpointed(modules):
            with KeptBytes() as counter:
                net(support)
            kept.append(counter.stop())
            said.append(task_gradient(net, 'loop', support, queries)[1]().grads)
    assert kept[1] < 0.8 * kept[0]
    for n, g in said[0].items():
        torch.testing.assert_close(said[1][n], g, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('name', ['hrnet_w18_small', 'inception_v3', 'vgg11', 'swin_s3_tiny_224'])
def test_every_network_of_timm_has_blocks_and_none_within_another(name):
    with torch.device('meta'):
        net = timm.create_model(name)
    blocks, inner = _timm_blocks(net), []
    for block in blocks:
        inner += [m for m in block.modules() if m is not block]
    assert blocks and not {id(m) for m in blocks} & {id(m) for m in inner}
