"A served application and a real browser, for `test_pages.py` and `test_tours.py`."

import os, re, shutil, signal, socket, subprocess, sys, time
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

FLAGS = [
    '--no-sandbox',
    '--disable-background-networking',
    '--disable-component-update',
    '--disable-sync',
    '--disable-dev-shm-usage',
]


def lacking(why):
    "Skip with the reason; where CI=true, fail with it."
    (pytest.fail if os.environ.get('CI') == 'true' else pytest.skip)(
        f'{why}, so the pages are not tested in a browser'
    )


def need_browser() -> str:
    "The path of Debian's Chromium."
    for package in ('playwright', 'voila'):
        if not find_spec(package):
            lacking(f'the package {package} is missing')
    return shutil.which('chromium') or lacking(
        'there is no chromium here (apt-get install chromium)'
    )


def small_run(home: Path, **changes) -> Path:
    "Train a small network on phantoms; give its run folder."
    from smlxray.config import load_settings
    from smlxray.evaluate import evaluate, save_results
    from smlxray.lab import open_lab
    from smlxray.methods import AdaptedMethod, network_method, pixel_method
    from smlxray.train import ensure_meta, ensure_siamese

    given = dict(
        preset='tiny',
        backbone='conv4',
        run='small',
        patients=450,
        phantom_size=64,
        image_size=32,
        siamese_epochs=1,
        meta_episodes=2,
        episodes=2,
        bootstrap=200,
        adapt_steps=5,
        shots=2,
        queries=8,
        valid_fraction=0.2,
        test_fraction=0.4,
        progress=False,
        novel_findings=['Cardiomegaly', 'Pneumothorax', 'Consolidation'],
    )
    places = {f'{k}_path': str(home / k) for k in ('cache', 'runs')}
    places['dataset_path'] = str(home / 'data')
    lab = open_lab(load_settings(**{**given, **places, **changes}))
    siamese, maml = ensure_siamese(lab), ensure_meta(lab, 'maml')
    save_results(
        evaluate(
            lab,
            [
                pixel_method(lab),
                network_method(lab, siamese, 'siamese'),
                AdaptedMethod('maml, 0 steps', lab, maml, 'maml', 0),
                AdaptedMethod('maml', lab, maml, 'maml', lab.settings.meta.adapt_steps),
            ],
        )
    )
    return lab.folder


class Served:
    "A running `smlxray app`, its address, and the folder that it takes for its home."

    def __init__(self, home: Path, run: Path, *words: str):
        with socket.socket() as s:
            s.bind(('127.0.0.1', 0))
            self.port = s.getsockname()[1]
        self.home, self.scratch, self.log = home, home / 'scratch', home / 'server.log'
        self.scratch.mkdir(exist_ok=True)
        env = {k: v for k, v in os.environ.items() if k != 'SMLXRAY_APP'} | dict(
            HOME=str(self.scratch), TMPDIR=str(self.scratch), OMP_NUM_THREADS='1'
        )
        words = [
            sys.executable,
            '-m',
            'smlxray.cli',
            'app',
            '--run',
            str(run),
            '--port',
            str(self.port),
            '--store',
            str(home / 'store'),
            *words,
        ]
        self.process = subprocess.Popen(
            words, cwd=home, env=env, stdout=self.log.open('w'), stderr=subprocess.STDOUT
        )
        end = time.time() + 180
        while 'Ctrl-C ends it' not in self.log.read_text():
            assert self.process.poll() is None and time.time() < end, self.log.read_text()[-2000:]
            time.sleep(0.3)
        self.url = re.search(r'http://\S+', self.log.read_text())[0]  # the token is part of it

    def kernels(self) -> list[int]:
        "Process ids of what Voila holds for the visitors' kernels: each ends with its kernel."

        def words(pid):
            try:
                return Path(f'/proc/{pid}/cmdline').read_text()
            except OSError:
                return ''  # gone meanwhile

        return [
            int(p)
            for p in os.listdir('/proc')
            if p.isdigit() and 'kernel-' in words(p) and str(self.scratch) in words(p)
        ]

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()


class Visitor:
    "A browser window of somebody's own."

    def __init__(self, browser, served, width=1280, height=1000, scheme='light'):
        self.context = browser.new_context(
            viewport=dict(width=width, height=height), accept_downloads=True, color_scheme=scheme
        )
        self.page, self.asked, self.errors = self.context.new_page(), [], []
        self.page.on('request', lambda r: self.asked.append(r.url))
        self.page.on('websocket', lambda w: self.asked.append(w.url))
        self.page.on('pageerror', lambda e: self.errors.append(str(e)))
        start = time.time()
        self.page.goto(served.url, timeout=120_000)
        self.page.wait_for_selector('.sx-thumb', timeout=120_000)
        self.first_view = time.time() - start

    def outside(self) -> list[str]:
        return [
            u
            for u in self.asked
            if not u.startswith(('http://127.0.0.1', 'ws://127.0.0.1', 'data:', 'blob:'))
        ]

    def open(self, name):
        self.page.get_by_role('tab', name=name).click()
        self.page.wait_for_timeout(300)

    def upload(self, label, *files):
        "Give files, as (name, bytes), to the control of that label on the open page."
        self.page.locator('.sx-upload:visible').filter(has_text=label).locator(
            'input'
        ).set_input_files(
            [dict(name=n, mimeType='application/octet-stream', buffer=d) for n, d in files]
        )

    def field(self, label):
        "The control of that label on the open page."
        return (
            self.page.locator('.sx-field:visible')
            .filter(has=self.page.locator('label span').get_by_text(label, exact=True))
            .locator('input, select')
        )

    def says(self, words, timeout=60_000):
        "Wait until the open page says something."
        self.page.locator('.sx-notice:visible').filter(has_text=words).first.wait_for(
            timeout=timeout
        )

    def changes(self, selector, before, timeout=60_000):
        "Wait until the first such element says something else."
        self.page.wait_for_function(
            '([s, b]) => document.querySelector(s).innerText !== b',
            arg=[selector, before],
            timeout=timeout,
        )

    def thumbs(self, label):
        return (
            self.page.locator('.sx-gallery:visible')
            .and_(self.page.get_by_label(label))
            .locator('.sx-thumb')
        )

    def marker(self, k, words):
        "A button below the X-ray with that number in the gallery."
        gallery = self.page.locator('.sx-gallery:visible').and_(
            self.page.get_by_label('X-rays to choose from')
        )
        return gallery.locator('.sx-item').nth(k).locator(f'button[title="{words}"]')

    def mark(self, k, words):
        "Press that button."
        self.marker(k, words).click()

    def drag(self, k, to, words):
        "Hold that button, and go with the mouse to another X-ray."
        self.marker(k, words).scroll_into_view_if_needed()
        boxes = [self.marker(n, words).bounding_box() for n in (k, to)]
        places = [(box['x'] + box['width'] / 2, box['y'] + box['height'] / 2) for box in boxes]
        self.page.mouse.move(*places[0])
        self.page.mouse.down()
        self.page.mouse.move(*places[1], steps=8)

    def close(self):
        self.context.close()


TOO_WIDE = """() => {
    const page = document.documentElement;
    return page.scrollWidth - page.clientWidth;
}"""


def barriers(page) -> list[str]:
    "What axe-core finds on a page that somebody could not read, hear or reach."
    if not find_spec('axe_playwright_python'):
        lacking('the package axe-playwright-python is missing')
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response['violations']
    return [f'{v["id"]}: {v["help"]}, {[n["target"] for n in v["nodes"][:3]]}' for v in found]


@contextmanager
def browsing():
    "A Chromium."
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=need_browser(), args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


def expect(found):
    "Playwright's assertions on a locator; they wait as long as a busy machine needs."
    from playwright.sync_api import expect as assertions

    assertions.set_options(timeout=60_000)
    return assertions(found)


def png(grey) -> bytes:
    "An image as PNG."
    import io
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(grey).save(out, 'PNG')
    return out.getvalue()


def phantom(patient, findings=(), size=96):
    "A phantom as uint8."
    import numpy as np
    from smlxray.phantom import draw_phantom

    image = draw_phantom(patient, list(findings), size=size).image
    return image if image.dtype == np.uint8 else (image * 255).astype(np.uint8)
