"The pages in a real browser: a short tour. The full tours are in `test_tours.py`, which is slow."

import pytest
from browser import Served, Visitor, browsing, need_browser, phantom, png, small_run


@pytest.fixture(scope='module')
def served(tmp_path_factory):
    need_browser()
    home = tmp_path_factory.mktemp('pages')
    server = Served(home, small_run(home))
    yield server
    server.stop()


def teach_fluid(v):
    p = v.page
    v.open('Teach')
    p.get_by_role('button', name='Teach', exact=True).click()
    v.says('Name the finding first')
    v.field('Name of the finding').fill('Fluid')
    v.field('Adapt').select_option(label='the last layer (anil)')
    v.field('Inner steps').fill('1')
    marks = {'with the finding': 0, 'without the finding': 3, 'a query': 6}
    for mark, first in marks.items():
        v.field('A click in the gallery marks an X-ray as').select_option(label=mark)
        for k in range(first, first + 2):
            v.thumbs('X-rays to choose from').nth(k).click()
    both = p.locator('.sx-table:visible, p:visible').filter(has_text='2 with, 2 without')
    both.first.wait_for()
    p.get_by_role('button', name='Teach', exact=True).click()
    v.says('Done: taught')
    p.locator('.sx-curve:visible').wait_for()
    assert p.locator('.sx-table:visible tbody tr').count() == 2


def test_a_visitor_compares_teaches_and_looks_around(served):
    with browsing() as browser:
        v = Visitor(browser, served)
        p = v.page
        assert p.locator('.sx-research').inner_text() == 'Research use, not for diagnosis.'
        before = p.locator('.sx-big').inner_text()
        v.upload(
            'Upload X-ray A',
            ('one.png', png(phantom(900, ['Pleural Effusion']))),
            ('bad.png', b'no image'),
            ('two.png', png(phantom(901))),
        )
        v.says('bad.png is not an image')
        p.locator('.sx-figure:visible').first.filter(has_text='one.png').wait_for()
        v.changes('.sx-big', before)

        teach_fluid(v)
        sights = dict(Explore='.sx-dot', Findings='.sx-bar', Results='.sx-chart')
        for page, sight in sights.items():
            v.open(page)
            p.locator(f'{sight}:visible').first.wait_for()
        assert v.outside() == [] and v.errors == []
        v.close()
