"A task may come as images or as features; which it is shows in its dimensions, batched or not."

import pytest
import torch

from smlxray.siamese import SiameseNet
from smlxray.tasks import InnerLoop, TaskModel, adapt_to_support
from smlxray.train import Task, _gradient_of, _gradients_of


@pytest.fixture
def net():
    torch.manual_seed(0)
    return SiameseNet('conv4', 8).double()


def task(seed):
    "Five and five X-rays of noise, brighter where the finding is."
    draw = torch.Generator().manual_seed(seed)
    labels = torch.tensor([1.0, 0.0] * 5, dtype=torch.float64)
    images = torch.randn(10, 1, 32, 32, generator=draw, dtype=torch.float64)
    images += labels.view(-1, 1, 1, 1)
    return Task(images[:6], labels[:6], images[6:], labels[6:], 'Air', 1)


def features(net, told):
    with torch.no_grad(): return [net.eval().features(x) for x in (told.support, told.query)]


@pytest.mark.parametrize('algorithm', ['anil', 'maml'])
def test_features_in_place_of_images(net, algorithm):
    told, inner = task(0), InnerLoop(algorithm, 3, 0.1, part='head')
    support, query = features(net, told)
    answers = []
    for x, asked in (told.support, told.query), (support, query), (support, told.query):
        with adapt_to_support(net, x, told.labels, inner) as adapted:
            assert adapted.from_features == (x.ndim == 2 or algorithm == 'anil')
            answers.append(adapted.query_logits(asked))
    for other in answers[1:]: assert torch.allclose(answers[0], other, atol=1e-12)
    with adapt_to_support(net, told.support, told.labels, InnerLoop(algorithm, 0)) as still:
        assert not torch.allclose(answers[0], still.query_logits(told.query), atol=1e-6)


def test_a_batch_of_tasks_of_features_is_each_of_them(net):
    "Inside vmap a batch (T, S, C) of features has two dimensions again, one of images four."
    model, inner = TaskModel(net), InnerLoop('maml', 2, 0.1, part='head')
    images = [task(seed) for seed in range(3)]
    as_features = []
    for told in images:
        support, query = features(net, told)
        as_features.append(Task(support, told.labels, query, told.query_labels, 'Air', 1))
    for tasks in images, as_features:
        batch = _gradients_of(tasks, model, inner)
        for told, got in zip(tasks, batch):
            alone = _gradient_of(told, model, inner, engine='loop')
            assert float(got.query_loss) == pytest.approx(float(alone.query_loss), abs=1e-10)
            for key, grad in alone.grads.items():
                assert torch.allclose(grad, got.grads[key], atol=1e-10)
