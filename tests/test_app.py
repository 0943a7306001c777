"The pages without a browser: what they say is what the evaluation says, nothing is written, threads do not disturb each other."

import io, threading
import numpy as np, pytest, torch
from PIL import Image
from smlxray.app import (
    App,
    Session,
    Store,
    TeachPage,
    Xray,
    answer,
    export_finding,
    guarded,
    import_finding,
    look,
    make_library,
)
from smlxray.bundle import BundleError, make_bundle
from smlxray.config import load_settings
from smlxray.evaluate import AdaptedMethod, network_method
from smlxray.train import open_lab, train_siamese


@pytest.fixture(scope='module')
def lab(tmp_path_factory):
    home = tmp_path_factory.mktemp('app')
    return open_lab(
        load_settings(
            'tiny',
            patients=420,
            siamese_epochs=1,
            adapt_steps=3,
            shots=7,
            queries=4,
            **{f'{k}_path': str(home / k) for k in ('dataset', 'cache', 'runs')},
        )
    )


@pytest.fixture(scope='module')
def bundle(lab):
    return make_bundle(lab, train_siamese(lab))


def xrays(lab, bundle, rows):
    pixels = lab.pixels.gather(rows)
    seen = zip(rows, pixels, *look(bundle, pixels))
    return [
        Xray(f'library-row{r}', f'row {r}', x, f, z, float(u), row=int(r)) for r, x, f, z, u in seen
    ]


@pytest.mark.parametrize(
    'method, steps',
    [('all weights (maml)', 3), ('the last layer (anil)', 3), ('nothing: compare only', 0)],
)
def test_seven_and_seven_of_a_finding_never_trained_on_score_as_in_the_evaluation(
    lab, bundle, method, steps
):
    episode = lab.sampler(lab.test, lab.findings.novel[0]).episode(0)
    assert len(episode.support) == 14
    support, query = xrays(lab, bundle, episode.support), xrays(lab, bundle, episode.query)
    session = Session(bundle, [*support, *query])
    page = TeachPage(session)
    page.name.text = episode.finding
    page.method.choose(method)
    if steps:
        page.steps.choose(str(steps))
    for x, y in zip(support, episode.support_labels):
        page.mark(x.key, 'with' if y else 'without')
    for x in query:
        page.mark(x.key, 'asked')
    page.adapt(wait=True)
    assert page.notice.level == 'good', page.notice.lines
    judge = (
        AdaptedMethod('page', lab, bundle.net, 'anil' if 'anil' in method else 'maml', steps)
        if steps
        else network_method(lab, bundle.net, 'page')
    )
    np.testing.assert_allclose([a.score for a in page.ask()], judge.logits(episode), atol=1e-5)


def test_the_fields_of_two_sessions_are_their_own(lab, bundle):
    out = io.BytesIO()
    Image.new('L', (50, 60), 90).save(out, 'PNG')
    library = make_library(lab, bundle, 20)
    one, two = Session(bundle, library), Session(bundle, library)
    one.receive([('mine.png', out.getvalue())])
    assert [x.name for x in one.yours] == ['mine.png'] and two.yours == []


def test_a_page_answers_while_another_adapts(lab, bundle):
    app = App(Session(bundle, make_library(lab, bundle, 60), lab))
    teach, findings = app.teach, app.pages['Findings']
    for k, x in enumerate(app.session.library[:14]):
        teach.mark(x.key, 'with' if k < 7 else 'without')
    before = {n: a.score for n, f, a in findings.answers()}
    compare = app.pages['Compare']
    similarity = compare.pair.similarity
    teach.name.text = 'x'
    teach.adapt()
    rounds = 0
    while teach.job.is_alive():
        compare.update()
        assert compare.pair.similarity == similarity
        assert {n: a.score for n, f, a in findings.answers() if n in before} == before
        rounds += 1
    assert rounds > 2 and teach.notice.level == 'good', teach.notice.lines


def test_stop_stops_and_too_many_are_refused(lab, bundle):
    session = Session(bundle, make_library(lab, bundle, 60))
    page = TeachPage(session)
    page.name.text = 'x'
    for k, x in enumerate(session.library[:4]):
        page.mark(x.key, 'with' if k < 2 else 'without')
    page.steps.choose('20')
    page.adapt()
    page._stop.set()
    page.job.join()
    assert page.notice.lines == ['Stopped.'] and not page.start.disabled
    with pytest.raises(BundleError, match='30 X-rays marked'):
        for x in session.library:
            page.mark(x.key, 'with')


def test_a_finding_for_another_network_is_refused(lab, bundle, tmp_path):
    session = Session(bundle, make_library(lab, bundle, 20), store=Store(tmp_path, 'k'))
    page = TeachPage(session)
    f = next(iter(bundle.findings.values()))
    import dataclasses

    other = dataclasses.replace(f, network='0' * 16)
    guarded(page.notice, page.bring, [('f.zip', export_finding(other))])
    assert 'was taught to another network' in page.notice.lines[0] and page.finding is None
    with pytest.raises(BundleError, match='another network'):
        answer(bundle, other, session.library[:1])
    changed = bytearray(export_finding(f))
    at = changed.find(f.name.encode())
    changed[at] ^= 1
    with pytest.raises(BundleError):
        import_finding(bytes(changed), 'f.zip')


def test_names_cannot_become_html(lab, bundle):
    session = Session(bundle, make_library(lab, bundle, 20))
    page = TeachPage(session)
    page.name.text = '<img src=x onerror=alert(1)>'
    out = io.BytesIO()
    Image.new('L', (50, 60), 90).save(out, 'PNG')
    page.receive('asked', [('<script>alert(1)</script>.png', out.getvalue())])
    for k, x in enumerate(session.library[:4]):
        page.mark(x.key, 'with' if k < 2 else 'without')
    page.method.index = 2
    page.adapt(wait=True)
    assert (
        '<script' not in page.answers.value
        and 'onerror' in page.answers.value
        and '<img src=x' not in page.answers.value
    )
