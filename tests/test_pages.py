"The pages in a real browser: a short tour. The full tours are in `test_tours.py`, which is slow."

import http.client
import os
import re
import signal
import time
from pathlib import Path

import pytest
from browser import (
    Served, Visitor, barriers, browsing, expect, need_browser, phantom, png, small_run,
)
from processes import children, lives


@pytest.fixture(scope='module')
def served(tmp_path_factory):
    need_browser()
    home = tmp_path_factory.mktemp('pages')
    server = Served(home, small_run(home), '--visitors', '2', '--host', 'xray.ward.example')
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
        for k in range(first, first + 2):
            v.mark(k, mark)
    both = p.locator('.sx-table:visible, p:visible').filter(has_text='2 with, 2 without')
    both.first.wait_for()
    p.get_by_role('button', name='Teach', exact=True).click()
    v.says('Done: taught')
    p.locator('.sx-curve:visible').wait_for()
    expect(p.locator('.sx-table:visible tbody tr')).to_have_count(2)


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
        mark_several(v)
        sights = dict(Explore='.sx-dot', Findings='.sx-bar', Results='.sx-chart')
        for page, sight in sights.items():
            v.open(page)
            p.locator(f'{sight}:visible').first.wait_for()
        read_an_xray(v)
        remove_an_upload(v)
        find_no_barrier(v)
        assert v.outside() == [] and v.errors == []
        v.close()


def mark_several(v):
    "Mark many X-rays at once: by a drag, by Shift and a click, by Shift and Enter."
    p = v.page
    v.drag(8, 11, 'with the finding')
    expect(p.locator('.sx-covered')).to_have_count(4)
    p.keyboard.press('Escape')
    p.mouse.up()
    expect(p.locator('.sx-covered')).to_have_count(0)
    v.drag(8, 10, 'with the finding')
    p.mouse.up()
    v.says("3 X-rays are marked 'with'")
    v.marker(12, 'without the finding').click(modifiers=['Shift'])
    v.says("3 X-rays are marked 'without'")  # from 10, where the drag ended
    v.marker(9, 'a query').focus()
    p.keyboard.press('Shift+Enter')
    v.says("4 X-rays are marked 'query'")  # backwards, from 12
    marks = [('with', 8), *(('query', k) for k in range(9, 13))]
    words = dict(with_='with the finding', query='a query')
    for mark, k in marks:
        button = v.marker(k, words.get(mark, words['with_']))
        assert button.get_attribute('aria-pressed') == 'true', (mark, k)


def read_an_xray(v):
    "Invert one X-ray, show contours, read on a wide and on a narrow screen, try an example."
    p = v.page
    v.open('Compare')
    filters = p.locator('.sx-filter feFuncR')
    assert p.locator('.sx-contours path').count() == 0  # nothing hides the X-ray at first
    p.get_by_role('button', name='Invert the grey values').first.click()
    slopes = [float(filters.nth(k).get_attribute('slope')) for k in range(2)]
    assert slopes[0] < 0 < slopes[1], 'another X-ray was inverted'
    v.field('Show where they agree').select_option(label='contours')
    p.locator('.sx-contours path').first.wait_for(state='attached')
    for width in (1280, 390):
        p.set_viewport_size(dict(width=width, height=844))
        read_in_the_dark(p, width)
    assert 'pairs' in p.locator('.sx-lead').inner_text() and p.locator('.sx-scale').count() == 1
    v.open('Teach')
    p.get_by_role('button', name='Try an example').click()
    v.says('An example:')
    assert '(example)' in v.field('Name of the finding').input_value()
    p.locator('p:visible').filter(has_text='7 with, 7 without').first.wait_for()
    assert p.evaluate('document.documentElement.scrollWidth') <= 390


def read_in_the_dark(p, width):
    "Zoom by keys, go into the dark room, and come out again."
    p.locator('.sx-frame').first.focus()
    for key in ('0', '+', '+', 'ArrowLeft', 'd'):
        p.keyboard.press(key)
    assert 'scale(2.25)' in p.locator('.sx-film').first.get_attribute('style')
    box = p.locator('dialog[open] .sx-frame').bounding_box()
    assert box['x'] >= 0 and box['x'] + box['width'] <= width
    p.keyboard.press('Escape')
    p.wait_for_function('!document.querySelector("dialog[open]")')
    expect(p.locator('.sx-figure figcaption').first).to_be_visible()


def remove_an_upload(v):
    "What was uploaded can be taken back; the same file is no second upload."
    p = v.page
    p.set_viewport_size(dict(width=1280, height=1000))
    v.open('Compare')
    v.upload('Upload X-ray B', ('again.png', png(phantom(901))))
    v.says('again.png is among your uploads already, as two.png')
    p.get_by_role('button', name='Remove two.png from your uploads').first.click()
    p.locator('.sx-figure:visible').filter(has_text='nothing yet').first.wait_for()
    expect(p.get_by_role('button', name='Remove two.png from your uploads')).to_have_count(0)


def find_no_barrier(v):
    "A few pages in both schemes; a page that others can reach looks into no folder."
    p = v.page
    v.open('Start')
    v.field('Folder of X-rays').fill('/etc')
    p.get_by_role('button', name='Look', exact=True).click()
    v.says('open to other machines')
    for scheme, name in dict(dark='Start', light='Compare').items():
        p.emulate_media(color_scheme=scheme)
        v.open(name)
        assert barriers(p) == [], (scheme, name)


def ask(served, path, host=None, **headers):
    "Ask the server as a program does; return status and text."
    link = http.client.HTTPConnection('127.0.0.1', served.port, timeout=60)
    link.putrequest('GET', path, skip_host=True)
    link.putheader('Host', host or f'127.0.0.1:{served.port}')
    for name, value in headers.items():
        link.putheader(name.replace('_', '-'), value)
    link.endheaders()
    answer = link.getresponse()
    text = '' if answer.status == 101 else answer.read().decode()
    link.close()
    return answer.status, text


def held_kernel(served):
    "The id of a kernel that runs."
    files = [Path(f'/proc/{pid}/cmdline').read_text() for pid in served.kernels()]
    return re.search(r'kernel-([0-9a-f-]{36})', files[0])[1]


def socket_words(host):
    "What a browser sends to open a web socket, from a page of that host."
    key = dict(Sec_WebSocket_Version='13', Sec_WebSocket_Key='x3JJHMbDL1EzLkh9GBhXDw==')
    return dict(Upgrade='websocket', Connection='Upgrade', Origin=f'http://{host}', **key)


def test_a_name_that_was_pointed_at_us_gets_nothing(served):
    token = served.url.partition('?')[2]
    kernel = held_kernel(served)
    paths = [f'/?{token}', '/', f'/voila/static/voila.js?{token}', f'/api/kernels/{kernel}?{token}']
    for host in ('evil.example', f'evil.example:{served.port}', '192.168.0.7', 'localhost.evil'):
        for path in paths:
            status, text = ask(served, path, host)
            assert status == 403 and 'own machine' in text and kernel not in text, (host, path)
        channel = f'/api/kernels/{kernel}/channels?{token}'
        assert ask(served, channel, host, **socket_words(host))[0] == 403


def test_without_the_token_there_is_no_page_no_socket_and_no_kernel(served):
    before = {*served.kernels()}
    kernel = held_kernel(served)
    here = f'127.0.0.1:{served.port}'
    asked = (f'/api/kernels/{kernel}', f'/voila/query/{kernel}', '/voila/files/README.md')
    for path in ('/', '/?token=', '/?token=0123', *asked):
        status, text = ask(served, path)
        assert status in (403, 404) and 'kernelId' not in text, path
    channel = f'/api/kernels/{kernel}/channels'
    assert ask(served, channel, **socket_words(here))[0] == 403
    assert ask(served, f'{channel}?{served.url.partition("?")[2]}', **socket_words(here))[0] == 101
    time.sleep(1)
    assert {*served.kernels()} == before


def test_a_visitor_too_many_is_told_so(served):
    path = '/?' + served.url.partition('?')[2]
    answers = [ask(served, path, 'xray.ward.example') for _ in range(4)]
    assert [status for status, _ in answers] in ([200, 200, 503, 503], [200, 503, 503, 503])
    assert 'All 2 places for visitors are taken' in answers[-1][1]
    assert len(served.kernels()) <= 3  # and one that is ready for the next


def test_nothing_outlives_a_killed_server(served):
    all_of_it = children(served.process.pid)
    assert len(all_of_it) >= 4  # the nursery, the server, a kernel and what asked for it
    os.kill(served.process.pid, signal.SIGKILL)
    end = time.time() + 10
    while any(map(lives, all_of_it)) and time.time() < end:
        time.sleep(0.1)
    assert not any(map(lives, all_of_it))
