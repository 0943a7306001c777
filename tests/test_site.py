"The built site in a real browser: nothing is fetched from elsewhere, and every page is readable."

import functools
import html
import http.server
import importlib
import pkgutil
import re
import threading
from pathlib import Path

import pytest
import typer.main
from browser import TOO_WIDE, barriers, browsing, need_browser

import smlxray
from smlxray.cli import app
from smlxray.config import Settings
from smlxray.site import build_site

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    "The site, built once; with it, every link was followed."
    folder = tmp_path_factory.mktemp('site') / '_docs'
    build_site(ROOT, folder)
    return folder


@pytest.fixture(scope='module')
def address(built):
    "The site, served on this machine."
    need_browser()

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


def commands(group, path='smlxray'):
    "All commands that are not hidden."
    for name, command in group.commands.items():
        if command.hidden:
            continue
        if hasattr(command, 'commands'):
            yield from commands(command, f'{path} {name}')
        else:
            yield f'{path} {name}', command


def test_the_reference_holds_every_name_setting_and_command(built):
    index = (built / 'names.html').read_text(encoding='utf-8')
    for module in pkgutil.walk_packages(smlxray.__path__, 'smlxray.'):
        if module.ispkg or '._' in module.name:
            continue
        page = f'api_{module.name.removeprefix("smlxray.").replace(".", "_")}.html'
        text = (built / page).read_text(encoding='utf-8')
        for name in importlib.import_module(module.name).__all__:
            assert f'id="{name.lower()}"' in text, (module.name, name)
            assert f'{page}#{name.lower()}' in index, (module.name, name)
    settings = (built / 'settings.html').read_text(encoding='utf-8')
    for section in Settings.model_fields.values():
        for key in section.annotation.model_fields:
            assert f'id="{key}"' in settings, key
    text = ''.join(p.read_text(encoding='utf-8') for p in built.glob('commands_*.html'))
    for path, command in commands(typer.main.get_command(app)):
        assert f'id="{path.replace(" ", "-")}"' in text, path
        for option in command.params:
            said = getattr(option, 'help', None) or ''
            first = html.escape(' '.join(said.split()), quote=False).partition('`')[0]
            assert first in ' '.join(text.split()), (path, option.name)


def test_the_reference_says_what_the_source_says(built):
    "One function by hand: types, defaults, comments, result, and the line of the source."
    page = (built / 'api_metrics.html').read_text(encoding='utf-8')
    part = page[page.index('id="auc"') : page.index('id="roc_curve"')]
    source = (ROOT / 'smlxray/metrics.py').read_text(encoding='utf-8').splitlines()
    row = next(k for k, line in enumerate(source, 1) if line.startswith('def auc('))
    assert f'smlxray/metrics.py#L{row}"' in part
    said = re.search(r'scores,\s*# (.*)', '\n'.join(source[row:]))[1]
    assert f'<td>{html.escape(said, quote=False)}</td>' in part
    assert '<code>None</code>' in part and '<code>float</code>' in part


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


@pytest.mark.parametrize('words, page', [
    ('install', 'index.html#install-and-start'),
    ('own data', 'how_to_start_from_your_own_data.html'),
    ('uncertain', 'how_to_treat_uncertain_labels.html'),
])  # fmt: skip
def test_the_search_leads_to_the_right_page_and_is_not_cut_off(address, words, page):
    with browsing() as browser:
        reader = Reader(browser, address)
        reader.open('maml.html')
        reader.page.get_by_role('searchbox').first.fill(words)
        first = reader.page.locator('a.search-result').first
        first.wait_for()
        assert first.get_attribute('href').endswith(page)
        box = first.bounding_box()
        at = box['x'] + box['width'] - 4, box['y'] + 4
        seen = 'at => document.elementFromPoint(...at).closest("a.search-result") !== null'
        assert reader.page.evaluate(seen, at), 'the right end of the result is hidden'


@pytest.mark.parametrize('width, dark', [(1280, False), (390, True)])
def test_nothing_stands_in_the_way(address, width, dark):
    with browsing() as browser:
        reader = Reader(browser, address, width, dark)
        for name in ('index.html', 'maml.html', 'api_metrics.html', 'settings.html'):
            reader.open(name)
            assert barriers(reader.page) == [], name
            assert reader.page.evaluate(TOO_WIDE) <= 1, name


@pytest.mark.slow
def test_no_page_is_endless_or_too_wide(built, address):
    with browsing() as browser:
        reader = Reader(browser, address)
        for path in sorted(built.glob('*.html')):
            for width, most in {1280: 21_000, 390: 29_000}.items():
                reader.page.set_viewport_size(dict(width=width, height=900))
                reader.open(path.name)
                height = reader.page.evaluate('document.documentElement.scrollHeight')
                assert height < most, (path.name, width, height)
                assert reader.page.evaluate(TOO_WIDE) <= 1, (path.name, width)


@pytest.mark.slow
def test_no_page_asks_for_anything_elsewhere(built, address):
    with browsing() as browser:
        reader = Reader(browser, address)
        for path in sorted(built.glob('*.html')):
            reader.open(path.name)
        assert reader.outside() == [] and reader.wrong == []
