"The pages without a browser: they say what the evaluation says, and threads do not disturb it."

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from smlxray.app.pages import App, TeachPage
from smlxray.app.session import Session, Xray, look_at, make_library
from smlxray.app.teach import Store, answer_queries, export_finding, import_finding
from smlxray.app.widgets import guarded
from smlxray.base import SmlxrayError
from smlxray.bundle import BundleError, make_bundle
from smlxray.config import load_settings
from smlxray.episodes import EpisodeBlock
from smlxray.lab import open_lab
from smlxray.methods import AdaptedMethod, network_method
from smlxray.train import train_siamese


@pytest.fixture(scope='module')
def lab(tmp_path_factory):
    home = tmp_path_factory.mktemp('app')
    return open_lab(
        load_settings(
            'tiny',
            patients=450,  # as in browser.py, so that they are drawn once
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
    seen = zip(rows, look_at(bundle, pixels))
    return [Xray(f'library-row{r}', f'row {r}', row=int(r), **x) for r, x in seen]


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
    page.setup.name.text = episode.finding
    page.setup.method.choose(method)
    if steps:
        page.setup.steps.choose(str(steps))
    for x, y in zip(support, episode.support_labels):
        session.marks.set(x.key, 'with' if y else 'without')
    for x in query:
        session.marks.set(x.key, 'query')
    page.teaching.teach(wait=True)
    assert page.notice.level == 'good', page.notice.lines
    judge = network_method(lab, bundle.net, 'page')
    if steps:
        algorithm = 'anil' if 'anil' in method else 'maml'
        judge = AdaptedMethod('page', lab, bundle.net, algorithm, steps)
    [scores] = judge.logits(EpisodeBlock.of(episode))
    answered = [answer.score for answer in page.queries.answers()]
    np.testing.assert_allclose(answered, scores, atol=1e-5)


def test_the_fields_of_two_sessions_are_their_own(lab, bundle):
    out = io.BytesIO()
    Image.new('L', (50, 60), 90).save(out, 'PNG')
    library = make_library(lab, bundle, 20)
    one, two = Session(bundle, library), Session(bundle, library)
    one.receive([('mine.png', out.getvalue())])
    assert [x.name for x in one.yours] == ['mine.png'] and two.yours == []


def test_a_page_answers_while_another_adapts(lab, bundle):
    app = App(Session(bundle, make_library(lab, bundle, 60), lab))
    teach, findings = app.pages['Teach'], app.pages['Findings'].table
    for k, x in enumerate(app.session.library[:14]):
        app.session.marks.set(x.key, 'with' if k < 7 else 'without')
    before = {n: a.score for n, f, a in findings.answers()}
    compare = app.pages['Compare']
    similarity = compare.pair.similarity
    teach.setup.name.text = 'x'
    teach.teaching.teach()
    rounds = 0
    while teach.teaching.job.is_alive():
        compare.update()
        assert compare.pair.similarity == similarity
        assert {n: a.score for n, f, a in findings.answers() if n in before} == before
        rounds += 1
    assert rounds > 2 and teach.notice.level == 'good', teach.notice.lines


def test_stop_stops_and_too_many_are_refused(lab, bundle):
    session = Session(bundle, make_library(lab, bundle, 60))
    page = TeachPage(session)
    page.setup.name.text = 'x'
    for k, x in enumerate(session.library[:4]):
        session.marks.set(x.key, 'with' if k < 2 else 'without')
    page.setup.steps.choose('20')
    page.teaching.teach()
    page.teaching.stopping.set()
    page.teaching.job.join()
    assert page.notice.lines == ['Stopped.'] and not page.teaching.start.disabled
    with pytest.raises(SmlxrayError, match='30 X-rays marked'):
        for x in session.library:
            session.marks.set(x.key, 'with')


def test_a_finding_for_another_network_is_refused(lab, bundle, tmp_path):
    session = Session(bundle, make_library(lab, bundle, 20))
    session.store = Store(tmp_path, 'k')
    page = TeachPage(session)
    f = next(iter(bundle.findings.values()))
    other = dataclasses.replace(f, network='0' * 16)
    guarded(page.notice, page.saved.receive, [('f.zip', export_finding(other))])
    assert 'was taught to another network' in page.notice.lines[0] and page.current.finding is None
    with pytest.raises(BundleError, match='another network'):
        answer_queries(bundle, other, session.library[:1])
    changed = bytearray(export_finding(f))
    at = changed.find(f.name.encode())
    changed[at] ^= 1
    with pytest.raises(BundleError):
        import_finding(bytes(changed), 'f.zip')


def test_names_cannot_become_html(lab, bundle):
    session = Session(bundle, make_library(lab, bundle, 20))
    page = TeachPage(session)
    page.setup.name.text = '<img src=x onerror=alert(1)>'
    out = io.BytesIO()
    Image.new('L', (50, 60), 90).save(out, 'PNG')
    page.queries.tray.receive([('<script>alert(1)</script>.png', out.getvalue())])
    for k, x in enumerate(session.library[:4]):
        session.marks.set(x.key, 'with' if k < 2 else 'without')
    page.setup.method.index = 2
    page.teaching.teach(wait=True)
    shown = page.queries.table.value
    assert '<script' not in shown and 'onerror' in shown and '<img src=x' not in shown
