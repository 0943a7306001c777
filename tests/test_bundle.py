"A bundle and the rest of the house: the same scores, the same answers elsewhere, nothing unsafe."

import json, os, subprocess, sys
from dataclasses import replace
import numpy as np, pandas as pd, pytest, torch
from smlxray.bundle import (
    Bundle,
    BundleError,
    TaughtFinding,
    decode_ahead,
    development_auc,
    export_onnx,
    guess_left_out,
    is_unusual,
    left_out_scores,
    make_bundle,
    predict_files,
    prior_line,
    spatial_features,
)
from smlxray.cache import to_float
from smlxray.config import load_settings
from smlxray.episodes import EpisodeSampler
from smlxray.images import resize_image
from smlxray.intervals import chance_interval, duel_chances
from smlxray.lab import open_lab
from smlxray.losses import query_scores
from smlxray.methods import AdaptedMethod, network_method
from smlxray.metrics import auc
from smlxray.phantom import draw_phantom
from smlxray.siamese import SiameseNet, cosine_similarity
from smlxray.train import meta_network, network_digest, train_siamese, with_probe


@pytest.fixture(scope='module')
def lab(tmp_path_factory):
    here = tmp_path_factory.mktemp('bundle')
    return open_lab(
        load_settings(
            'tiny',
            patients=260,
            backbone='resnet18',
            image_size=32,
            inner_lr=0.3,
            valid_fraction=0.2,
            dataset_path=here / 'x',
            cache_path=here / 'c',
            runs_path=here / 'r',
            progress=False,
        )
    )


@pytest.fixture(scope='module')
def net(lab):
    return train_siamese(lab)


@pytest.fixture(scope='module')
def bundle(lab, net, tmp_path_factory):
    made = make_bundle(
        lab,
        net,
        metrics=[
            dict(
                method='siamese',
                finding='mean',
                shots=2,
                auc=0.7,
                auc_low=0.6,
                auc_high=0.8,
                episodes=4,
                patients=9,
            ),
            dict(method='maml'),
        ],
    )
    made.save(tmp_path_factory.mktemp('saved') / 'model')
    return made


def an_episode(lab, shots, finding=None):
    return EpisodeSampler(
        lab.table, lab.test, finding or lab.findings.novel[0], shots, 8, match_on=()
    ).episode(1)


@pytest.mark.parametrize('shots', [1, 3])
@pytest.mark.parametrize(
    'algorithm, mode',
    [
        ('none', 'frozen'),
        ('maml', 'frozen'),
        ('maml', 'support'),
        ('anil', 'frozen'),
        ('anil', 'support'),
    ],
)
def test_a_taught_finding_scores_as_the_evaluation_does(lab, net, bundle, shots, algorithm, mode):
    e = an_episode(lab, shots)
    images, query = lab.pixels.gather(e.support), lab.pixels.gather(e.query)
    steps = 0 if algorithm == 'none' else 3
    lab.settings.meta.batch_norm = bundle.settings.meta.batch_norm = mode
    try:
        taught = bundle.teach(
            'it',
            images[:shots],
            images[shots:],
            algorithm=None if algorithm == 'none' else algorithm,
            steps=steps,
            seed=int(e.seed),
            rounds=2,
        )
        want = (
            AdaptedMethod('m', lab, net, algorithm, steps)
            if steps
            else network_method(lab, net, 'm')
        ).logits(e)
    finally:
        lab.settings.meta.batch_norm = bundle.settings.meta.batch_norm = 'frozen'
    assert np.abs(bundle.scores(taught, query) - want).max() < 1e-5
    if steps:
        assert np.abs(want - network_method(lab, net, 'm').logits(e)).max() > 1e-3, (
            'adapting changed nothing, so nothing was compared'
        )


@pytest.mark.parametrize('shots', [1, 3])
def test_a_finding_taught_to_a_probe_scores_as_the_evaluation_does(lab, net, tmp_path, shots):
    probed, e = with_probe(lab, net), an_episode(lab, shots)
    made = make_bundle(lab, probed, 'protomaml')
    images, query = lab.pixels.gather(e.support), lab.pixels.gather(e.query)
    rest = dict(algorithm='protomaml', steps=3, seed=int(e.seed), rounds=2)
    taught = made.teach('it', images[:shots], images[shots:], **rest)
    taught.save(tmp_path / 'it')
    again = TaughtFinding.load(tmp_path / 'it')
    want = AdaptedMethod('m', lab, probed, 'protomaml', 3).logits(e)
    assert np.abs(made.scores(again, query) - want).max() < 1e-5
    assert np.abs(want - network_method(lab, net, 'm').logits(e)).max() > 1e-3
    before = AdaptedMethod('m', lab, probed, 'protomaml', 0).logits(e)
    plain = net.scale.item() * network_method(lab, net, 'm').logits(e)
    if shots > 1: assert np.abs(before - plain).max() < 1e-3  # no steps: prototypes
    made.save(tmp_path / 'bundle')
    loaded = Bundle.load(tmp_path / 'bundle')
    assert np.array_equal(loaded.scores(again, query), made.scores(again, query))


def test_learned_rates_travel_with_the_bundle(lab, net, tmp_path):
    "A bundle adapts with the rates that were learned, and its digest knows them."
    settings = lab.settings.model_copy(deep=True)
    settings.meta.learned_rates = True
    fast, e = meta_network(settings, net, 'anil').eval(), an_episode(lab, 3)
    slow = network_digest(fast)
    fast.rates.logs.data.fill_(1.0)
    assert network_digest(fast) != slow
    made = make_bundle(lab, fast, 'anil')
    made.save(tmp_path / 'bundle')
    images, query = lab.pixels.gather(e.support), lab.pixels.gather(e.query)
    rest = dict(algorithm='anil', steps=3, seed=int(e.seed), rounds=2)
    loaded = Bundle.load(tmp_path / 'bundle')
    taught = loaded.teach('it', images[:3], images[3:], **rest)
    want = AdaptedMethod('m', lab, fast, 'anil', 3).logits(e)
    assert np.abs(loaded.scores(taught, query) - want).max() < 1e-5
    assert np.abs(want - AdaptedMethod('m', lab, net, 'anil', 3).logits(e)).max() > 1e-4


def test_leaving_out_is_teaching_without(lab, bundle):
    e = an_episode(lab, 3)
    images = lab.pixels.gather(e.support)
    taught = bundle.teach('it', images[:3], images[3:], algorithm='maml', steps=2)
    other = bundle.teach('it', images[1:3], images[3:], algorithm='maml', steps=2)
    assert abs(
        taught.held_out[0] - bundle.scores(other, images[:1])[0]
    ) < 1e-5 and taught.held_labels == [1, 1, 1, 0, 0, 0]


def test_embeddings_are_those_of_the_lab(lab, net, bundle):
    assert torch.allclose(
        bundle.embed(lab.pixels.gather(lab.test[:70])),
        lab.embed(net, lab.test[:70]),
        atol=1e-6,
    )


def test_a_fresh_process_gives_the_same_probabilities(lab, bundle, tmp_path):
    images = lab.pixels.gather(lab.test[:9])
    torch.save(images, tmp_path / 'x.pt')
    code = (
        "import sys, torch; from smlxray.bundle import Bundle\n"
        "images = torch.load(sys.argv[2], weights_only=True)\n"
        "Bundle.load(sys.argv[1]).predict(images).to_csv(sys.argv[3], index=False)"
    )
    subprocess.run(
        [
            sys.executable,
            '-c',
            code,
            str(bundle.path),
            str(tmp_path / 'x.pt'),
            str(tmp_path / 'p.csv'),
        ],
        check=True,
        cwd=tmp_path,
    )
    there, here = pd.read_csv(tmp_path / 'p.csv'), bundle.predict(images)
    names = list(bundle.findings)
    assert len(names) > 5 and np.abs(there[names].to_numpy() - here[names].to_numpy()).max() < 1e-6
    assert list(there.nearest) == list(here.nearest)


def test_loading_never_unpickles(bundle, monkeypatch):
    import pickle

    def no(*a, **k):
        raise AssertionError('something was unpickled')

    for name in ('load', 'loads', 'Unpickler'):
        monkeypatch.setattr(pickle, name, no)
    monkeypatch.setattr(torch, 'load', no)
    assert Bundle.load(bundle.path).network == bundle.network


def test_nothing_of_a_patient_is_in_it(lab, bundle):
    text = b''.join(
        p.read_bytes()
        for p in bundle.path.rglob('*')
        if p.is_file() and p.name != 'weights.safetensors'
    )
    frame = lab.table.frame
    for secret in {
        *frame['path'],
        *frame['patient'].astype(str),
        str(lab.folder.parent.parent),
        os.path.expanduser('~') + '/',
    }:
        assert secret.encode() not in text, secret
    assert {p.suffix for p in bundle.path.rglob('*') if p.is_file()} == {
        '.json',
        '.md',
        '.safetensors',
    }


def test_the_card_says_what_was_measured(bundle):
    card = (bundle.path / 'card.md').read_text()
    assert (
        '0.700 [0.600, 0.800]' in card
        and 'Not measured' not in card
        and [r['method'] for r in bundle.metrics] == ['siamese']
    )


def test_no_test_patient_has_a_part_in_it(lab, net, bundle):
    "The same bundle comes out of a lab whose test images are all noise."

    class Other:
        def __init__(self, pixels, test):
            self.pixels, self.test = pixels, set(test.tolist())

        def __getattr__(self, name):
            return getattr(self.pixels, name)

        def gather(self, rows):
            assert not self.test & set(np.asarray(rows).tolist()), 'a test image was looked at'
            return self.pixels.gather(rows)

    from dataclasses import replace

    again = make_bundle(replace(lab, pixels=Other(lab.pixels, lab.patients.test)), net)
    assert all(
        torch.equal(again.findings[n].support, f.support) for n, f in bundle.findings.items()
    )


@pytest.mark.parametrize(
    'change, say',
    [
        (lambda d: (d / 'weights.safetensors').unlink(), 'lacks the file weights.safetensors'),
        (lambda d: (d / 'card.md').write_text('better than it is'), 'card.md'),
        (lambda d: (d / 'manifest.json').write_text('{}'), 'changed or damaged'),
        (
            lambda d: (d / 'manifest.json').write_text(
                (d / 'manifest.json').read_text().replace('"version": 1', '"version": 2')
            ),
            'changed or damaged',
        ),
    ],
    ids=['file gone', 'card changed', 'manifest emptied', 'version changed'],
)
def test_damage_is_refused_in_one_sentence(bundle, tmp_path, change, say):
    import shutil

    d = tmp_path / 'model'
    shutil.copytree(bundle.path, d)
    change(d)
    with pytest.raises(BundleError, match=say) as error:
        Bundle.load(d)
    assert len(str(error.value).splitlines()) == 1


def test_an_empty_or_foreign_folder_is_refused(bundle, tmp_path):
    with pytest.raises(BundleError, match='no manifest.json'):
        Bundle.load(tmp_path)
    with pytest.raises(BundleError, match='is no taught finding but a bundle'):
        TaughtFinding.load(bundle.path)


def test_a_well_sealed_lie_is_refused(bundle, tmp_path):
    "Right checksums, wrong content."
    from smlxray.bundle import _bundle_files, write_folder

    files = _bundle_files(bundle)
    told = json.loads(files['bundle.json'])
    for name, change in {
        'net': dict(net=dict(backbone='resnet18', embedding_dim=8)),
        'network': dict(network='0' * 16),
        'settings': dict(settings=dict(data=dict(image_size=[2, 2]))),
        'facts': dict(findings=7),
    }.items():
        write_folder(
            tmp_path / name,
            'bundle',
            1,
            {**files, 'bundle.json': json.dumps({**told, **change}).encode()},
        )
        with pytest.raises(ValueError) as error:
            Bundle.load(tmp_path / name)
        assert type(error.value).__module__.startswith('smlxray'), error.value


@pytest.mark.parametrize('backbone, size', [('conv4', 32)])
def test_onnx_agrees_with_the_network(backbone, size, tmp_path):
    pytest.importorskip('onnxruntime')
    torch.manual_seed(0)
    b = Bundle(
        SiameseNet(backbone, 16), load_settings('tiny', backbone=backbone, image_size=size), {}, {}
    )
    assert export_onnx(b, tmp_path / 'net.onnx') <= 1e-4 and list(
        p.name for p in tmp_path.iterdir()
    ) == ['net.onnx']
    import onnxruntime

    x = torch.randint(0, 256, (7, 1, size, size), dtype=torch.uint8)
    y = onnxruntime.InferenceSession(str(tmp_path / 'net.onnx')).run(
        None, dict(image=((x.float() - 127.5) / 63.75).numpy())
    )[0]
    assert np.abs(y - b.embed(x).numpy()).max() < 1e-4


@pytest.mark.parametrize(
    'backbone, size, places',
    [('resnet18', 64, 4), ('resnet18', 224, 7), ('densenet121', 64, 4), ('conv4', 64, 4)],
)
def test_the_map_comes_from_the_deepest_layer_with_enough_places(backbone, size, places):
    assert tuple(
        spatial_features(SiameseNet(backbone, 16).eval(), torch.zeros(2, 1, size, size)).shape[-2:]
    ) == (places, places)


def test_the_map_divides_the_similarity_of_the_features_themselves():
    "With places enough in the last layer, the map's mean is the cosine of the features."
    torch.manual_seed(1)
    b = Bundle(SiameseNet('resnet18', 16), load_settings('tiny', image_size=128), {}, {})
    x = torch.stack(
        [
            torch.from_numpy(resize_image(draw_phantom(p, f, size=128).image, (128, 128)))[None]
            for p, f in ((1, []), (2, ['Edema']))
        ]
    )
    pair = b.compare(*x)
    with torch.no_grad():
        f = b.net.features(to_float(x))
    assert all(abs(m.mean() - torch.cosine_similarity(f[0], f[1], dim=0)) < 1e-4 for m in pair.maps)


def test_decoding_stays_two_batches_ahead():
    asked = []
    batches = decode_ahead(lambda p: asked.append(p) or p, range(1000), batch_size=10, workers=1)
    next(batches)
    assert len(asked) <= 30
    batches.close()


def test_bad_files_are_rows(bundle, tmp_path):
    from PIL import Image

    Image.fromarray(draw_phantom(1, size=64).image).save(tmp_path / 'a.png')
    (tmp_path / 'b.png').write_bytes(b'\x89PNG\r\n\x1a\n')
    (tmp_path / 'c.dcm').write_text('no')
    rows = pd.concat(
        predict_files(
            bundle, [tmp_path / n for n in ('a.png', 'b.png', 'c.dcm', 'gone.jpg')], batch_size=3
        ),
        ignore_index=True,
    )
    assert (
        list(rows.error == '') == [True, False, False, False]
        and rows.iloc[1:][list(bundle.findings)].isna().all().all()
        and rows.unusual.notna().sum() == 1
    )


# Guessing, and probabilities that nothing bears out


@pytest.mark.parametrize('shots', [(3, 3), (4, 9), (7, 7)])
def test_guessing_by_leaving_out_has_its_size(shots):
    "At most 2.5 % of worlds without knowledge lie above, and independent guessing fails this."
    y, worlds, most = np.repeat([1, 0], shots), 200, 5 + 2.33 * (200 * 0.025 * 0.975) ** 0.5
    above, outside, naive = 0, 0, chance_interval(*shots, 0.95)
    for world in range(worlds):
        z = torch.randn(len(y), 5, generator=torch.Generator().manual_seed(1000 + world))
        similar = cosine_similarity(z).double().numpy()
        value = auc(left_out_scores(similar, y, len(y)), y)
        low, high = guess_left_out(z, y)
        above += value > high + 1e-9
        outside += value not in naive
        assert 0 <= low < 0.5 < high <= 1
    assert above <= most
    if min(shots) > 3: assert outside > 2 * most


@pytest.mark.parametrize('pair', [(1, 1), (2, 2), (3, 3), (3, 8), (6, 6), (20, 3)])
def test_independent_guessing_keeps_its_promise_for_few(pair):
    chances, ends = duel_chances(*pair), chance_interval(*pair, 0.95)
    at = np.arange(len(chances)) / (len(chances) - 1)
    assert chances[at > ends.high + 1e-9].sum() <= 0.025
    assert chances[at < ends.low - 1e-9].sum() <= 0.025
    if ends.high < 1: assert chances[at > ends.high - 1e-9].sum() > 0.025


@pytest.mark.parametrize('scale', [0.01, 1.0, 1500.0])
def test_one_patient_per_class_has_no_probability(bundle, scale):
    "Whatever others were calibrated on: without held-out X-rays it is the prevalence, and said."
    images = [torch.full((1, *bundle.size), grey, dtype=torch.uint8) for grey in (30, 200)]
    one = replace(teach(bundle, images), scale=scale)
    bundle = replace(bundle, findings={**bundle.findings, 'One': one})
    row = bundle.predict(torch.stack(images), prevalence=0.07)
    assert row['One'].tolist() == [0.07, 0.07]
    assert 'assumed prevalence' in one.doubt and one.trust['auc'] is None
    borrowed = replace(one, slope=1500.0, offset=3.0)  # as version 0.1 saved it
    assert borrowed.probabilities(np.array([-1e6, 1e6]), 0.07).tolist() == [0.07, 0.07]


def teach(bundle, images):
    return bundle.teach('One', torch.stack(images[:1]), torch.stack(images[1:]), steps=0)


def test_probabilities_stay_inside(bundle):
    for f in bundle.findings.values():
        p = f.probabilities(np.array([-1e9, -1.0, 0.0, 1.0, 1e9]), 0.1)
        assert ((p > 0) & (p < 1)).all() and (np.diff(p) >= 0).all()


def test_what_is_not_known_is_unusual(bundle):
    images = torch.zeros(2, 1, *bundle.size, dtype=torch.uint8)
    lost = replace(bundle.findings[next(iter(bundle.findings))])
    lost.support = lost.support * float('nan')
    sick = replace(bundle, findings={lost.name: lost})
    assert is_unusual(sick.predict(images)['unusual']).all()


def test_the_prior_travels_with_the_bundle_if_validation_patients_are_for_it(lab, net, tmp_path):
    made = make_bundle(lab, net, prior=True)
    plain = make_bundle(lab, net)
    aucs = [development_auc(b.findings, lab.findings.base)[0] for b in (made, plain)]
    assert aucs[0] >= aucs[1] and 'validation patients' in made.facts['why']
    assert made.facts['method'] in ('siamese', 'siamese + prior')
    line = prior_line(torch.randn(30, made.net.head[-1].out_features), np.arange(30) < 12)
    for f in made.findings.values():
        f.prior = line
    images = lab.pixels.gather(lab.test[:3])
    name, f = next(iter(made.findings.items()))
    z = made.embed(images)
    wanted = query_scores(z, f.support, f.labels) + z @ line[:-1] + line[-1]
    assert np.allclose(made.scores(f, images), wanted, atol=1e-5)
    made.save(tmp_path / 'with')
    again = Bundle.load(tmp_path / 'with')
    assert np.allclose(again.predict(images)[name], made.predict(images)[name])
    assert 'It answers by `siamese' in (tmp_path / 'with' / 'card.md').read_text()
