"The report and the files behind it: every number follows from the saved answers."

import json, subprocess, sys
import numpy as np, pytest, torch
from smlxray.base import ConfigError, DataError, SmlxrayError
from smlxray.config import load_settings
from smlxray.evaluate import (
    FrozenMethod,
    evaluate_methods,
    read_answers,
    read_results,
    save_answers,
    save_results,
)
from smlxray.jackknife import patient_interval
from smlxray.metrics import auc
from smlxray.protocols import (
    add_controls,
    answer_ways,
    calibrate,
    evaluate_fold,
    fold_rows,
    way_rows,
    way_sampler,
)
from smlxray.report import (
    combine_runs,
    compare_runs,
    hardest_errors,
    render_report,
    shots_curve,
    write_comparison,
    write_report,
)
from smlxray.sides import fold_settings
from smlxray.train import open_lab


def tiny(here, **over):
    return load_settings(
        'tiny',
        **{
            **dict(
                dataset_path=str(here / 'phantoms'),
                cache_path=str(here / 'cache'),
                runs_path=str(here / 'runs'),
                progress=False,
                bootstrap=200,
            ),
            **over,
        },
    )


def method(lab, name, noise):
    "Vectors made of the labels and of noise: a method of a known quality without a network."
    rng = np.random.default_rng(0)
    y = np.nan_to_num(lab.table.labels[lab.test]).clip(0)
    return FrozenMethod(
        name,
        lab.test,
        torch.nn.functional.normalize(
            torch.from_numpy(y + noise * rng.normal(size=y.shape)).float(), dim=1
        ),
    )


@pytest.fixture(scope='module')
def here(tmp_path_factory):
    return tmp_path_factory.mktemp('report')


@pytest.fixture(scope='module')
def results(here):
    lab = open_lab(tiny(here))
    out = add_controls(
        evaluate_methods(
            lab, [method(lab, 'blurred', 2.0), method(lab, '<b>clear</b> & "quoted"', 0.5)]
        ),
        [method(lab, 'blurred', 2.0)],
    )
    out.default = '<b>clear</b> & "quoted"'
    out.tables['ways'] = way_rows(lab, [method(lab, 'blurred', 2.0)], 2)
    write_report(out)
    return out


def test_every_number_of_the_rows_follows_from_the_answers(results):
    saved, answers = read_results(results.lab.folder), read_answers(results.lab.folder).answers
    for r in saved['rows']:
        given = answers[r['method'], r['finding']]
        assert r['auc'] == pytest.approx(
            np.mean(
                [
                    np.mean([auc(a.scores, a.labels) for a in given if a.finding == f])
                    for f in {a.finding for a in given}
                ]
            ),
            abs=1e-9,
        )
        assert r['accuracy'] == pytest.approx(
            np.mean([((a.scores > 0) == a.labels).mean() for a in given]), abs=1e-9
        )
        if not r.get('control'):
            i = patient_interval(given)
            assert (i.low, i.high) == pytest.approx((r['auc_low'], r['auc_high']), abs=1e-9)
    for c in saved['tables']['comparisons']:
        mine, theirs = (answers[c[key], c['finding']] for key in ('method', 'over'))
        d = patient_interval(mine, theirs)
        assert (d.value, d.low, d.high) == pytest.approx(
            (c['difference'], c['low'], c['high']), abs=1e-9
        )


def test_answers_hold_no_names_and_no_objects(results):
    path = results.lab.folder / 'answers.npz'
    with np.load(path, allow_pickle=False) as z:
        assert all(z[k].dtype != object for k in z.files) and 'patients' in z.files
        assert z['patients'].dtype.kind == 'i'
    names = set(results.lab.table.frame['patient'])
    assert not any(n.encode() in path.read_bytes() for n in names) and not any(
        n in (results.lab.folder / 'report.html').read_text() for n in names
    )


def test_a_method_that_answered_fewer_episodes_is_kept_so(results, tmp_path):
    lab, f = results.lab, results.lab.findings.novel[0]
    short = {**results.answers, ('short', f): results.answers['blurred', f][:2]}
    again = read_answers(
        save_answers(tmp_path / 'answers.npz', short, results.episodes, lab.table.patients).parent
    )
    assert len(again.answers['short', f]) == 2 and len(again.answers['blurred', f]) == len(
        results.episodes[f]
    )
    assert all(
        np.array_equal(a.scores, b.scores)
        for a, b in zip(again.answers['short', f], results.answers['blurred', f])
    )


def test_the_page_is_the_same_in_another_process_and_needs_no_network(results):
    folder = results.lab.folder
    page = (folder / 'report.html').read_text()
    code = 'import sys; from smlxray.report import render_report; render_report(sys.argv[1])'
    subprocess.run([sys.executable, '-c', code, str(folder)], check=True, capture_output=True)
    assert (folder / 'report.html').read_text() == page
    for word in ('http:', 'https:', '<script', '@import', 'url('):
        assert word not in page, word
    assert (
        '<b>clear</b>' not in page and '&lt;b&gt;clear&lt;/b&gt; &amp; &quot;quoted&quot;' in page
    )


def test_a_report_without_the_extra_tables_is_a_report(results, tmp_path):
    for name in ('results.json', 'answers.npz'):
        (tmp_path / name).write_bytes((results.lab.folder / name).read_bytes())
    saved = json.loads((tmp_path / 'results.json').read_text())
    saved['tables'] = {}
    saved['default'] = ''
    del saved['digest']  # as in a file of 0.1
    (tmp_path / 'results.json').write_text(json.dumps(saved))
    page = render_report(tmp_path).read_text()
    assert 'All methods' in page and 'How to repeat it' in page and 'Calibration' not in page


def test_the_run_says_how_to_repeat_it(results):
    saved = read_results(results.lab.folder)
    assert (
        saved['data']['digest']
        and saved['settings']['data']['split_seed'].isdecimal()
        and {'python', 'torch', 'numpy'} <= set(saved['versions'])
    )
    assert saved['commit'] == '' or len(saved['commit']) == 40
    again = evaluate_methods(
        open_lab(load_settings('tiny', config=results.lab.folder / 'config.yaml', run='again')),
        [method(results.lab, 'blurred', 2.0)],
    )
    assert [r['auc'] for r in again.rows] == pytest.approx(
        [r['auc'] for r in saved['rows'] if r['method'] == 'blurred'], abs=1e-9
    )


def test_runs_are_compared_on_what_they_share(here, results):
    longer = open_lab(tiny(here, run='longer', episodes=6))
    other = evaluate_methods(longer, [method(longer, 'blurred', 1.0)])
    other.default = 'blurred'
    save_results(other)
    rows = {
        (r['method'], r['over']): r for r in compare_runs(longer.folder, results.lab.folder, 200)
    }
    r = rows['blurred', 'blurred']
    assert r['episodes'] == sum(map(len, results.episodes.values())) and r['auc'] > r['auc_over']
    back = {
        (r['method'], r['over']): r for r in compare_runs(results.lab.folder, longer.folder, 200)
    }['blurred', 'blurred']
    assert back['difference'] == pytest.approx(-r['difference']) and back['low'] == pytest.approx(
        -r['high']
    )
    assert (
        'evaluation.episodes'
        in write_comparison(longer.folder, results.lab.folder, 200).read_text()
    )


def test_runs_with_other_shots_share_nothing(here, results):
    lab = open_lab(tiny(here, run='shots', shots=3))
    other = evaluate_methods(lab, [method(lab, 'blurred', 1.0)])
    other.default = 'blurred'
    save_results(other)
    with pytest.raises(DataError, match='share no episode'):
        compare_runs(lab.folder, results.lab.folder)


def test_shots_that_the_patients_do_not_allow_are_refused_with_numbers(results):
    rows = shots_curve(results.lab, method(results.lab, 'm', 1.0), (2, 15, 30, 400), 2)
    assert (
        rows[-1]['findings'] == 0
        and 'auc' not in rows[-1]
        and all('400 shots' in s and any(ch.isdigit() for ch in s) for s in rows[-1]['refused'])
    )
    assert rows[0]['findings'] == len(results.lab.findings.novel) and not rows[0]['refused']


def test_the_hardest_error_is_the_one_that_was_planted(results):
    f = results.lab.findings.novel[0]
    e = results.episodes[f][0]
    scores = e.query_labels.astype(float)
    scores[0] = -1
    one = type(results.answers['blurred', f][0])(
        scores, e.query_labels, results.lab.table.patients[e.query], f
    )
    worst = hardest_errors({('m', f): [one]}, {f: [e]}, 'm', 1)
    assert worst[0]['row'] == e.query[0] and worst[0]['displacement'] == 1


def test_one_logit_a_finding_and_folds_that_are_runs(here):
    lab = open_lab(tiny(here))
    m = method(lab, 'm', 0.5)
    for i in range(5):
        e = way_sampler(lab).episode(i)
        got = answer_ways(m, e, lab)
        assert (
            got.scores.shape == got.labels.shape == (len(e.query), 3)
            and not np.isnan(got.scores).any()
        )
        for f, x in zip(e.findings, got.by_finding()):
            assert np.allclose(x.scores, m.logits(e.task(f)), atol=1e-6)
    for s in fold_settings(tiny(here, folds=['Cardiomegaly + Edema', 'Pneumothorax'])):
        fold = open_lab(s)
        assert (
            set(fold.findings.novel) == set(s.data.novel_findings)
            and not set(fold.findings.novel) & set(fold.findings.base)
            and fold.folder.name == s.evaluation.run
        )


def test_folds_are_trained_one_by_one_and_resampled_together(here):
    s = tiny(here, folds=['Cardiomegaly + Edema', 'Pneumothorax'], run='folds', backbone='conv4')
    with pytest.raises(ConfigError, match='several runs of one'):
        open_lab(s)
    folds = [evaluate_fold(fold, ['anil']) for fold in fold_settings(s)]
    assert [read_results(r.lab.folder)['data']['novel'] for r in folds] == [
        ['Cardiomegaly', 'Edema'],
        ['Pneumothorax'],
    ] and [r.default for r in folds] == ['anil'] * 2
    assert (
        len({(r.lab.folder / 'checkpoints' / 'siamese.safetensors').read_bytes() for r in folds})
        == 2
    )
    rows = {(r['method'], r['fold']): r for r in fold_rows(folds)}
    for m in ('pixels', 'siamese', 'anil'):
        one, two, both = (rows[m, f] for f in ('Cardiomegaly + Edema', 'Pneumothorax', 'all'))
        assert (
            both['auc'] == pytest.approx((2 * one['auc'] + two['auc']) / 3)
            and both['episodes'] == one['episodes'] + two['episodes']
            and both['auc_low'] < both['auc'] < both['auc_high']
        )
        assert both['patients'] < one['patients'] + two['patients'], (
            'the folds share patients, and this is why one interval looks at all of them'
        )
    combined = combine_runs([r.lab.folder for r in folds])
    assert {(r['method'], r['fold']): pytest.approx(r['auc']) for r in combined} == {
        place: row['auc'] for place, row in rows.items()
    }


def test_one_shot_is_refused_for_calibration(here):
    lab = open_lab(tiny(here, shots=1))
    m = method(lab, 'm', 1.0)
    results = evaluate_methods(lab, [m])
    with pytest.raises(DataError, match='two shots'):
        calibrate(lab, m, results.episodes)


def test_missing_files_are_named(tmp_path):
    for f in (render_report, read_answers):
        with pytest.raises(SmlxrayError, match='evaluate_meta'):
            f(tmp_path / 'nowhere')
