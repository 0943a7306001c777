"The built site in a real browser: nothing is fetched from elsewhere, and every page is readable."

import functools
import http.server
import threading
from pathlib import Path

import pytest
from browser import browsing, need_browser

from smlxray.site import build_site

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    "The site, built once."
    need_browser()
    folder = tmp_path_factory.mktemp('site') / '_docs'
    build_site(ROOT, folder)
    return folder


@pytest.fixture(scope='module')
def address(built):
    "The site, served on this machine."

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *words):
            pass

    handler = functools.partial(Quiet, directory=str(built))
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown()


class Reader:
    "A browser on the site, and what it asked for, what failed, and what went wrong."

    def __init__(self, browser, address, width=1280, dark=False):
        self.address, self.asked, self.wrong = address, [], []
        self.page = browser.new_page(
            viewport=dict(width=width, height=900), color_scheme='dark' if dark else 'light'
        )
        self.page.on('request', lambda r: self.asked.append(r.url))
        self.page.on('response', self.note)
        self.page.on('requestfailed', lambda r: self.wrong.append(r.url))
        self.page.on('pageerror', lambda e: self.wrong.append(str(e)))

    def note(self, response):
        if response.status >= 400:
            self.wrong.append(f'{response.status} {response.url}')

    def open(self, name):
        self.page.goto(f'{self.address}/{name}', wait_until='load')

    def outside(self):
        inside = (self.address, 'data:', 'blob:')
        return [url for url in self.asked if not url.startswith(inside)]


def test_formulas_and_search_work_and_nothing_leaves_the_machine(address):
    with browsing() as browser:
        reader = Reader(browser, address)
        for name in ('index.html', 'tour.html', 'maml.html'):
            reader.open(name)
        reader.page.locator('.katex').first.wait_for()
        assert '\\(' not in reader.page.locator('main').inner_text()
        family = 'document.fonts.check("16px KaTeX_Main")'
        assert reader.page.evaluate(f'document.fonts.ready.then(() => {family})')
        box = reader.page.get_by_role('searchbox').first
        box.fill('prototypes')
        reader.page.locator('a:visible').filter(has_text='rototype').first.wait_for()
        assert reader.outside() == [] and reader.wrong == []


@pytest.mark.slow
def test_no_page_asks_for_anything_elsewhere(built, address):
    with browsing() as browser:
        reader = Reader(browser, address)
        for path in sorted(built.glob('*.html')):
            reader.open(path.name)
        assert reader.outside() == [] and reader.wrong == []
