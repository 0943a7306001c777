"The whole path on tiny phantoms: controls come out at chance, and mistakes in one sentence."

import dataclasses, json, shutil
import numpy as np, pandas as pd, pytest, torch
from smlxray.base import SmlxrayError, show_remarks
from smlxray.cache import open_pixels
from smlxray.config import load_settings
from smlxray.data import XrayTable, check_patient_disjoint
from smlxray.episodes import EpisodeSampler
from smlxray.evaluate import answer, evaluate, print_results, save_results
from smlxray.intervals import bootstrap_patients
from smlxray.lab import open_lab
from smlxray.sides import choose_split
from smlxray.methods import (
    AdaptedMethod,
    FrozenMethod,
    network_method,
    shuffled,
    standard_methods,
)
from smlxray.metrics import auc
from smlxray.siamese import SiameseNet
from smlxray.tasks import TaskModel
from smlxray.train import (
    MetaObjective,
    ensure_siamese,
    recipe,
    train_meta,
    train_siamese,
    training_batches,
)


@pytest.fixture(scope='module')
def here(tmp_path_factory):
    return tmp_path_factory.mktemp('lab')


def tiny(here, **over):
    return load_settings(
        'tiny',
        **{
            **dict(
                dataset_path=str(here / 'phantoms'),
                cache_path=str(here / 'cache'),
                runs_path=str(here / 'runs'),
                progress=False,
            ),
            **over,
        },
    )


@pytest.fixture(scope='module')
def lab(here):
    return open_lab(tiny(here))


def novel_episodes(lab, n):
    s = lab.settings
    sampler = EpisodeSampler(
        lab.table, lab.test, list(lab.findings.novel), 2, 8, match_on=s.data.match_on, seed=5
    )
    return [sampler.episode(i, f) for f in lab.findings.novel for i in range(n)]


def oracle(lab, noise=1.0):
    "A method that sees the labels through noise: it must score high, but for a shuffled support."
    rng = np.random.default_rng(0)
    y = np.nan_to_num(
        lab.table.labels[lab.test][:, [lab.table.findings.index(f) for f in lab.findings.novel]]
    )
    z = torch.from_numpy(y + noise * rng.normal(size=y.shape)).float()
    return FrozenMethod('oracle', lab.test, torch.nn.functional.normalize(z, dim=1))


def shuffled_interval(method, episodes, lab):
    """Mean AUC over episodes with shuffled support labels, and its 99.9 % interval.

    Whatever the patients are, a permutation and its mirror image are equally likely and their AUCs
    add up to 1, so the expectation is exactly 0.5 over permutations; these are independent between
    episodes, and the interval over episodes is the right one here.
    """
    aucs = np.array(
        [auc(a.scores, a.labels) for a in answer(method, [shuffled(e) for e in episodes], lab)]
    )
    half = 3.291 * aucs.std(ddof=1) / len(aucs) ** 0.5
    return aucs.mean() - half, aucs.mean() + half


def test_shuffled_support_labels_give_chance(lab):
    "Shuffled supports hold 0.5 in a 99.9 % interval; true ones are far above it."
    episodes, method = novel_episodes(lab, 100), oracle(lab, noise=0.35)
    assert bootstrap_patients(answer(method, episodes, lab), n=4000, level=0.999).low > 0.65
    low, high = shuffled_interval(method, episodes, lab)
    assert low < 0.5 < high and high - low < 0.15, (low, high)


@pytest.mark.parametrize('algorithm', ['maml', 'anil'])
def test_shuffled_support_labels_give_chance_after_adaptation(lab, algorithm):
    "Adaptation reads nothing but the support: with shuffled labels it too falls to 0.5."
    torch.manual_seed(0)
    method = AdaptedMethod(algorithm, lab, SiameseNet('conv4', 16).eval(), algorithm, 3)
    low, high = shuffled_interval(method, novel_episodes(lab, 25), lab)
    assert low < 0.5 < high and high - low < 0.25, (low, high)


def test_no_episode_shares_a_patient_with_itself_or_with_training(lab):
    patients, trained = lab.table.patients, set(lab.table.patients[lab.train])
    for e in novel_episodes(lab, 50):
        everyone = patients[np.concatenate([e.support, e.query])]
        assert len(set(everyone)) == len(everyone)
        assert not trained & set(everyone)


def test_cache_off_gives_bit_equal_pixels(lab):
    direct = open_pixels(lab.table, tuple(lab.settings.data.image_size), use_cache=False)
    rows = lab.test[:16]
    assert torch.equal(direct.gather(rows), lab.pixels.gather(rows))


def test_training_twice_gives_the_same_weights(lab):
    siamese = ensure_siamese(lab)
    a, b = (train_meta(lab, siamese, 'anil') for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values()))


def test_results_hold_every_row_and_column_that_readers_rely_on(lab, capsys):
    siamese = ensure_siamese(lab)
    results = evaluate(
        lab, standard_methods(lab, siamese, {'anil': train_meta(lab, siamese, 'anil')})
    )
    save_results(results)
    saved = json.loads((lab.folder / 'results.json').read_text())
    assert saved['settings']['meta']['shots'] == lab.settings.meta.shots
    assert {(r['method'], r['finding']) for r in saved['rows']} == {
        (m, f)
        for m in ('pixels', 'untrained', 'siamese', 'siamese + prior', 'siamese + adapted prior',
                  'anil, 0 steps', 'anil')
        for f in (*lab.findings.novel, 'mean')
    }
    assert all(r['auc_low'] <= r['auc'] <= r['auc_high'] for r in saved['rows'])
    assert all(
        abs(r['gain']) <= 1 and r['gain_low'] <= r['gain_high']
        for r in saved['rows']
        if r['method'] == 'anil'
    )
    print_results(lab.folder)
    assert 'anil, 0 steps' in capsys.readouterr().out


@pytest.mark.parametrize('mode', ['frozen', 'support', 'transductive'])
@pytest.mark.parametrize('shots', [1, 2])
def test_nothing_is_gained_where_nothing_adapts(lab, mode, shots):
    settings = lab.settings.model_copy(deep=True)
    settings.meta.inner_lr, settings.meta.shots, settings.meta.batch_norm = 1e-12, shots, mode
    own = dataclasses.replace(lab, settings=settings)
    torch.manual_seed(0)
    nets = {a: SiameseNet('conv4', 16).eval() for a in ('maml', 'anil')}
    blocks = {f: own.episodes(f, 2) for f in own.findings.novel[:2]}
    methods = standard_methods(own, nets['maml'], nets)[-4:]
    rows = [r for r in evaluate(own, methods, blocks).rows if r['method'] in nets]
    assert len(rows) == 6 and all(r['views'] == 2 // shots for r in rows)
    assert [(r['gain'], r['gain_low'], r['gain_high']) for r in rows] == [(0.0, 0.0, 0.0)] * 6


@pytest.mark.parametrize('precision', ['bf16', 'fp16'])
def test_half_precision_is_refused_where_it_spoils_the_gradient(lab, precision):
    settings = lab.settings.model_copy(deep=True)
    settings.training.precision, settings.meta.batch_norm = precision, 'transductive'
    objective = MetaObjective(dataclasses.replace(lab, settings=settings), 'maml')
    (episodes,) = objective.batches(0)
    for norm in ('batch', 'group'):
        model = TaskModel(SiameseNet('conv4', 16, norm=norm).eval())
        half = torch.bfloat16 if precision == 'bf16' else torch.float16
        with torch.autocast('cpu', half):
            if norm == 'group':
                objective.task_gradient(model, episodes[0])
                continue
            with pytest.raises(SmlxrayError, match='Half precision spoils'):
                objective.task_gradient(model, episodes[0])


def test_a_gain_over_other_statistics_is_not_given(lab, caplog):
    settings = lab.settings.model_copy(deep=True)
    settings.meta.batch_norm = 'support'
    own, net = dataclasses.replace(lab, settings=settings), SiameseNet('conv4', 16).eval()
    blocks = {f: own.episodes(f, 2) for f in own.findings.novel[:1]}
    before = network_method(own, net, 'anil, 0 steps')
    after = AdaptedMethod('anil', own, net, 'anil', 1)
    with caplog.at_level('WARNING', logger='smlxray'):
        rows = evaluate(own, [before, after], blocks).rows
    assert not any('gain' in r for r in rows)
    assert 'other batch norm statistics' in caplog.text


# --- mistakes ---------------------------------------------------------------------------------


def sentence(f, *words):
    "The mistake comes back as a SmlxrayError of one short paragraph that holds `words`."
    with pytest.raises(SmlxrayError) as e:
        f()
    text = str(e.value)
    for w in words:
        assert w in text, f'{w!r} is not in {text!r}'
    assert len(text) < 700 and 'Traceback' not in text
    return text


@pytest.fixture
def broken(here, lab, tmp_path):
    "A private copy of the tiny phantoms that a test may damage."
    shutil.copytree(here / 'phantoms', tmp_path / 'xrays')
    return tmp_path / 'xrays'


def reopen(folder, **over):
    return open_lab(tiny(folder.parent, dataset_path=str(folder), dataset='chexpert', **over))


def test_a_missing_folder_is_named(tmp_path):
    sentence(lambda: reopen(tmp_path / 'nowhere'), 'nowhere')


def test_a_missing_column_is_named(broken):
    t = pd.read_csv(broken / 'train.csv')
    t.drop(columns='Edema').to_csv(broken / 'train.csv', index=False)
    sentence(lambda: reopen(broken), 'Edema', 'train.csv')


@pytest.mark.parametrize(
    'spoil',
    [lambda path: path.unlink(), lambda path: path.write_text('this is text')],
    ids=['missing', 'text'],
)
def test_a_spoilt_image_is_left_out_and_said(broken, spoil, capsys):
    show_remarks()
    bad = sorted(broken.rglob('*frontal.jpg'))[3]
    spoil(bad)
    lab = reopen(broken)
    row = next(
        i for i, p in enumerate(lab.table.paths()) if str(p).endswith(str(bad.relative_to(broken)))
    )
    assert '1 of' in (said := capsys.readouterr().out) and bad.parent.parent.name in said
    assert (
        not any(row in rows for rows in (*lab.patients, lab.train, lab.valid))
        and recipe(lab, 'siamese')['unreadable'] == 1
    )
    sentence(lambda: lab.pixels.gather([row]), 'quarantine', bad.parent.parent.name)


def test_too_many_spoilt_images_stop_everything(broken):
    images = sorted(broken.rglob('*frontal.jpg'))
    for bad in images[::10]:
        bad.unlink()
    sentence(lambda: reopen(broken), f'of the {len(images)} images', 'row', 'smlxray data check')


def test_without_a_cache_each_image_must_be_there_and_readable(broken):
    bad = sorted(broken.rglob('*frontal.jpg'))[3]
    bad.write_text('this is text')
    lab = reopen(broken, use_cache=False)
    sentence(lambda: lab.pixels.gather(np.arange(len(lab.table))), bad.parent.parent.name)
    bad.unlink()
    sentence(lambda: reopen(broken, use_cache=False), bad.parent.parent.name, 'row')


def test_a_data_set_without_a_split_of_its_own_says_so(broken):
    sentence(lambda: reopen(broken, split='own'), 'split: hash')


def test_validation_patients_come_out_of_training_where_none_are_named(lab):
    frame = lab.table.frame.assign(split=np.where(lab.table.patients % 3 == 0, 'test', 'train'))
    table = XrayTable(frame, lab.table.findings, lab.table.root)
    split, _ = choose_split(tiny(lab.folder, split='own', valid_fraction=0.2), table)
    assert (
        set(split.test) == set(np.flatnonzero(frame['split'] == 'test'))
        and 0.1 < len(split.valid) / (len(split.valid) + len(split.train)) < 0.3
    )
    check_patient_disjoint(table, *split)


def test_a_chosen_split_seed_stays_and_moves_no_patient(lab):
    seed = lab.settings.data.split_seed
    more = lab.table[np.arange(0, len(lab.table), 2)]
    half, _ = choose_split(lab.settings, more)
    whole = {
        p: part
        for part, rows in lab.patients._asdict().items()
        for p in lab.table.frame['patient'].iloc[rows]
    }
    assert seed.isdecimal() and all(
        whole[p] == part
        for part, rows in half._asdict().items()
        for p in more.frame['patient'].iloc[rows]
    )


@pytest.mark.parametrize(
    'over',
    [
        dict(sampling='balanced'),
        dict(uncertain='smooth'),
        dict(uncertain='chexpert'),
        dict(blanks='unknown'),
        dict(negatives='others'),
    ],
    ids=str,
)
def test_every_policy_trains(here, over):
    lab = open_lab(tiny(here, run='policy', backbone='conv4', meta_episodes=2, **over))
    net = train_meta(lab, train_siamese(lab), 'anil')
    assert all(p.isfinite().all() for p in net.parameters())
    if 'sampling' in over:
        rows = np.concatenate(training_batches(lab, 0))
        share = lab.table.labels[rows][:, [lab.table.findings.index(f) for f in lab.findings.base]]
        plain = lab.table.labels[lab.train][
            :, [lab.table.findings.index(f) for f in lab.findings.base]
        ]
        assert np.nanmin((share == 1).mean(0)) > 1.5 * np.nanmin((plain == 1).mean(0))


def test_an_unknown_novel_finding_is_answered_with_the_nearest(here):
    sentence(lambda: open_lab(tiny(here, novel_findings=['Cardiomegalie'])), 'Cardiomegaly')


def test_no_shots_are_refused(here):
    sentence(lambda: tiny(here, shots=0), 'shots', '0')


def test_too_few_patients_are_counted(lab):
    text = sentence(
        lambda: EpisodeSampler(
            lab.table, lab.test, lab.findings.novel[0], 500, 15, match_on=['projection']
        ),
        lab.findings.novel[0],
        '500',
    )
    assert any(ch.isdigit() for ch in text)


def test_queries_shrink_to_the_patients_that_are_left(lab):
    f = lab.findings.novel[0]
    sampler = EpisodeSampler(lab.table, lab.test, f, 2, 500, match_on=['projection'])
    e = sampler.episode(0, f)
    assert 8 <= sampler.queries < 500 and len(e.query) == 2 * sampler.queries


def test_a_typo_is_answered_with_the_nearest_setting(here):
    sentence(lambda: tiny(here, shotts=7), 'shotts', 'shots')


def test_a_lab_of_copies_says_that_nothing_is_left(here, lab, tmp_path):
    shutil.copytree(here / 'phantoms', tmp_path / 'phantoms')
    files = sorted((tmp_path / 'phantoms').rglob('*.jpg'))
    for file in files[1:]: shutil.copyfile(files[0], file)
    with pytest.raises(SmlxrayError, match='leaves nothing to train on: no training X-ray'):
        open_lab(tiny(tmp_path))
