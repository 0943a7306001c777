"Full tours of the pages in a real browser: uploads, keyboard, two visitors, a lost kernel."

import io, json, os, signal
from pathlib import Path

import numpy as np, pandas as pd, pytest
from PIL import Image
from smlxray.phantom import write_phantoms

from browser import (
    TOO_WIDE, Served, Visitor, barriers, browsing, expect, need_browser, phantom, png, small_run,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def served(tmp_path_factory):
    need_browser()
    home = tmp_path_factory.mktemp('tours')
    server = Served(home, small_run(home, patients=600, image_size=64, shots=7, queries=4))
    yield server
    server.stop()


@pytest.fixture(scope='module')
def browser():
    with browsing() as b:
        yield b


@pytest.fixture
def visitor(browser, served):
    v = Visitor(browser, served)
    yield v
    assert v.outside() == [] and v.errors == []
    v.close()


def dicom_of_noise():
    return bytes(128) + b'DICM' + bytes(range(256)) * 4


def bomb():
    data = bytearray(png(phantom(1)))
    data[16:24] = (90_000).to_bytes(4, 'big') * 2
    return bytes(data)


def photo():
    out = io.BytesIO()
    y, x = np.mgrid[:300, :400]
    Image.fromarray(np.stack([x * 0.6, y * 0.8, 255 - x * 0.5], -1).astype(np.uint8)).save(
        out, 'JPEG'
    )
    return out.getvalue()


BAD = [
    ('note.txt', b'hello', 'note.txt is not an image'),
    ('bomb.png', bomb(), 'more than the cap'),
    ('scan.dcm', dicom_of_noise(), 'scan.dcm is a'),
    ('half.jpg', photo()[:500], 'half.jpg'),
    ('empty.png', b'', 'empty.png is empty'),
    ('photo.jpg', photo(), 'does not look like a chest X-ray'),
    ('large.png', bytes(60_000_000), 'large.png has 60 MB'),
]


def test_what_is_wrong_is_said_and_the_page_goes_on(visitor):
    v, p = visitor, visitor.page
    for name, data, words in BAD:
        v.upload('Upload X-ray A', (name, data)) if len(data) < 50_000_000 else large(p, name)
        v.says(words)
    v.upload('Upload X-ray B', ('fine.png', png(phantom(5))))
    p.locator('.sx-figure:visible').filter(has_text='fine.png').wait_for()
    v.open('Findings')
    v.upload('Upload an X-ray', BAD[2][:2])
    v.says('scan.dcm is a')
    v.upload('Upload an X-ray', ('ok.png', png(phantom(6))))
    p.locator('.sx-figure:visible').filter(has_text='ok.png').wait_for()


def large(page, name):
    "Give a file of 60 MB that the browser makes itself."
    page.locator('.sx-upload:visible input').first.evaluate(
        '''(el, name) => {
            const d = new DataTransfer();
            d.items.add(new File([new Uint8Array(60000000)], name));
            el.files = d.files;
            el.dispatchEvent(new Event("change"));
        }''',
        name,
    )


def test_compare_by_clicks(visitor):
    v, p = visitor, visitor.page
    for k in range(3):
        old = p.locator('.sx-figure:visible').first.inner_text()
        v.thumbs('X-rays to choose from').nth(4 + 2 * k).click()
        v.field('A click in the gallery becomes').select_option(label='X-ray A')
        v.changes('.sx-figure', old)
        v.field('A click in the gallery becomes').select_option(label='X-ray A')
    shown = p.locator('.sx-figure img').first.get_attribute('src')
    v.field('Show where they agree').select_option(label='contours')
    p.locator('.sx-contours path').first.wait_for(state='attached')
    assert p.locator('.sx-figure img').first.get_attribute('src') == shown
    v.field('Show where they agree').select_option(label='colours')
    p.wait_for_function('old => document.querySelector(".sx-figure img").src !== old', arg=shown)


def teach(v, name, method='all weights (maml)', steps=5, shots=7):
    "Teach from the gallery."
    p = v.page
    v.open('Teach')
    v.field('Name of the finding').fill(name)
    v.field('Adapt').select_option(label=method)
    v.field('Inner steps').fill(str(steps - 1))
    for k, mark in enumerate(('with the finding', 'without the finding', 'a query')):
        v.field('Show').select_option(
            label=('Pleural Effusion', 'no finding labelled', 'Atelectasis')[k]
        )
        p.wait_for_timeout(400)
        n = min(shots, v.thumbs('X-rays to choose from').count())
        for i in range(n):
            v.mark(i, mark)
    p.get_by_role('button', name='Teach', exact=True).click()


def save_export_and_import(v, file):
    p = v.page
    p.get_by_role('button', name='Save', exact=True).click()
    v.says('Saved as fluid')
    with p.expect_download() as got:
        p.get_by_role('button', name='Export', exact=True).click()
    got.value.save_as(file)
    assert got.value.suggested_filename == 'fluid.zip'
    upload = p.locator('.sx-upload:visible').filter(has_text='Import a finding')
    upload.locator('input').set_input_files(file)
    v.says('Imported: Fluid')
    v.upload('Import a finding', ('no.zip', b'PK no'))
    v.says('no.zip is not a finding')
    p.get_by_role('button', name='Load', exact=True).click()
    v.says('Loaded: Fluid')


def load_after_a_new_start(v):
    v.page.reload()
    v.page.wait_for_selector('.sx-thumb', timeout=120_000)
    v.open('Teach')
    v.field('Saved findings').locator('option', has_text='fluid').wait_for(state='attached')
    v.page.get_by_role('button', name='Load', exact=True).click()
    v.says('Loaded: Fluid')


def ask_it_about_an_xray(v):
    v.open('Findings')
    taught = v.page.locator('.sx-table:visible').filter(has_text='Fluid (taught here)')
    taught.wait_for(timeout=120_000)
    before = v.page.locator('.sx-table:visible').inner_text()
    v.field('Temperature').fill('8')
    changed = '''old => {
        const all = [...document.querySelectorAll(".sx-table")];
        const t = all.filter(e => e.offsetParent);
        return t.length && t.every(e => e.innerText !== old);
    }'''
    v.page.wait_for_function(changed, arg=before)
    v.field('Inner steps').fill('1')
    v.says('Adapted with 1 steps', 240_000)


def explore_with_its_weights(v):
    v.open('Explore')
    v.page.locator('.sx-dot:visible').first.wait_for()
    places = (
        '() => [...document.querySelectorAll(".sx-scatter .sx-dot")].map(e => e.outerHTML).join()'
    )
    before = v.page.evaluate(places)
    v.field('Weights').select_option(label='adapted to Fluid')
    v.page.wait_for_function(f'old => ({places})() !== old', arg=before, timeout=60_000)


def test_teach_save_load_export_import(visitor, served, tmp_path):
    v, p = visitor, visitor.page
    teach(v, 'Fluid')
    v.says('Adapted. Now each example', 120_000)
    v.says('Done: taught', 300_000)
    p.locator('.sx-notice:visible').filter(has_text='AUC of').wait_for()
    p.locator('.sx-curve:visible circle').nth(5).wait_for()
    at_ten = p.locator('.sx-table:visible tbody tr b').first.inner_text()
    v.field('Assumed prevalence').fill('9')
    v.changes('.sx-table tbody tr b', at_ten)
    save_export_and_import(v, tmp_path / 'fluid.zip')
    assert list((served.home / 'store').glob('*/fluid/manifest.json'))
    load_after_a_new_start(v)
    ask_it_about_an_xray(v)
    explore_with_its_weights(v)


def test_too_few_and_several_files(visitor):
    v, p = visitor, visitor.page
    v.open('Teach')
    p.get_by_role('button', name='Teach', exact=True).click()
    v.says('Name the finding')
    v.field('Name of the finding').fill('<b>Air</b>')
    p.get_by_role('button', name='Teach', exact=True).click()
    v.says('0 X-rays with the finding are marked')
    v.upload(
        'Upload X-rays with it',
        *[(f'with{k}.png', png(phantom(50 + k, ['Pneumothorax']))) for k in range(3)],
    )
    v.upload('Upload X-rays without it', *[(f'no{k}.png', png(phantom(60 + k))) for k in range(3)])
    v.upload('Upload query X-rays', ('ask.png', png(phantom(70))))
    p.locator('p:visible').filter(has_text='3 with, 3 without').wait_for()
    v.field('Adapt').select_option(label='the last layer (anil)')
    p.get_by_role('button', name='Teach', exact=True).click()
    v.says('Done: taught', 200_000)
    expect(p.locator('.sx-table:visible tbody tr')).to_have_count(1)
    expect(p.get_by_text('<b>Air</b>').first).to_be_visible()


def test_explore_by_mouse_and_keyboard(visitor):
    v, p = visitor, visitor.page
    v.open('Explore')
    svg = p.get_by_role('listbox', name='Map of X-rays')
    p.locator('.sx-dot').first.wait_for()
    p.locator('.sx-dot').nth(3).hover(force=True)
    p.locator('.sx-tip img').wait_for()
    box = svg.bounding_box()
    p.mouse.move(box['x'] + 5, box['y'] + 5)
    p.mouse.down()
    p.mouse.move(box['x'] + box['width'] * 0.6, box['y'] + box['height'] - 5, steps=5)
    p.mouse.up()
    chosen = p.locator('.sx-dot.sx-chosen').count()
    assert chosen > 3
    p.get_by_role('button', name='Choose none').click()
    p.wait_for_function('() => !document.querySelector(".sx-chosen")')
    svg.focus()
    p.keyboard.press('ArrowRight')
    p.keyboard.press('ArrowRight')
    p.keyboard.press('Enter')
    p.wait_for_function('() => document.querySelectorAll(".sx-dot.sx-chosen").length === 1')
    p.get_by_role('button', name='Use as examples with the finding').click()
    v.says('1 X-ray is marked')
    v.field('Layout').select_option(label='t-SNE')
    v.says('t-SNE is ready', 120_000)
    v.field('Colour by').select_option(label='Pleural Effusion')
    p.locator('.sx-legend').filter(has_text='without Pleural Effusion').wait_for()
    v.open('Teach')
    p.locator('p:visible').filter(has_text='1 with, 0 without').wait_for()


RING = '''() => {
    const s = getComputedStyle(document.activeElement);
    return s.outlineStyle + s.outlineWidth + ' of ' + document.activeElement.outerHTML;
}'''
NAMELESS = '''() => {
    const kinds = ".sx-app button, .sx-app input, .sx-app select";
    const shown = [...document.querySelectorAll(kinds)].filter(e => e.offsetParent);
    const label = e => e.labels?.length && e.labels[0].innerText;
    const named = e => e.getAttribute("aria-label") || e.innerText || label(e);
    return shown.filter(e => !named(e)).map(e => e.outerHTML);
}'''


def test_everything_has_a_name_and_the_keyboard_reaches_it(visitor):
    v, p = visitor, visitor.page
    p.get_by_role('tab', name='Compare').focus()
    for name in ('Teach', 'Explore', 'Findings', 'Results', 'Start', 'Compare'):
        p.keyboard.press('ArrowRight')
        p.wait_for_timeout(300)
        assert p.locator('[role=tab][aria-selected=true]').inner_text() == name
        assert p.evaluate('document.activeElement.innerText') == name
    for name in ('Compare', 'Teach', 'Explore', 'Findings', 'Results', 'Start'):
        v.open(name)
        assert p.evaluate(NAMELESS) == []
        assert p.evaluate('() => document.querySelectorAll(".sx-app img:not([alt])").length') == 0
        for width in (1280, 768):
            p.set_viewport_size(dict(width=width, height=900))
            p.wait_for_timeout(200)
            assert p.evaluate(TOO_WIDE) <= 1, (name, width)
        p.set_viewport_size(dict(width=1280, height=1000))
    v.open('Compare')
    for _ in range(12):
        p.keyboard.press('Tab')
        ring = p.evaluate(RING)
        assert ring.startswith('solid3px'), ring


PAGES = ('Compare', 'Teach', 'Explore', 'Findings', 'Results', 'Start')


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_nothing_stands_in_the_way_on_any_page(browser, served, scheme):
    v = Visitor(browser, served, scheme=scheme)
    for width in (1280, 768, 390):
        v.page.set_viewport_size(dict(width=width, height=900))
        for name in PAGES:
            v.open(name)
            v.page.wait_for_timeout(500)
            assert barriers(v.page) == [], (scheme, width, name)
            assert v.page.evaluate(TOO_WIDE) <= 1, (scheme, width, name)
    v.close()


def foreign_folder(folder):
    "X-rays with a table as somebody else would have made it."
    write_phantoms(folder, patients=450, size=64, progress=False)
    drawn = pd.read_csv(folder / 'train.csv')
    table = pd.DataFrame(dict(image_file=drawn['Path'].str.split('/', n=1).str[1]))
    table['case_no'] = drawn['Path'].str.extract(r'patient(\d+)')[0]
    for column, finding in dict(fluid='Pleural Effusion', big_heart='Cardiomegaly').items():
        table[column] = drawn[finding].eq(1).map({True: 'yes', False: 'no'})
    for file in folder.glob('*.csv'):
        file.unlink()
    table.to_csv(folder / 'list.csv', index=False)


def test_from_a_folder_to_a_report(visitor, served):
    v, p = visitor, visitor.page
    foreign_folder(served.home / 'ward')
    v.open('Start')
    v.field('Folder of X-rays').fill(str(served.home / 'ward'))
    p.get_by_role('button', name='Look', exact=True).click()
    v.says('This is what was understood', 120_000)
    assert 'case_no' in p.locator('.sx-line').filter(has_text='patients').first.inner_text()
    v.field('Change preset').fill('tiny')
    v.field('Change findings').fill('fluid=Pleural Effusion, big_heart')
    p.get_by_role('button', name='Use my changes').click()
    v.says('Changed.', 120_000)
    p.get_by_role('button', name='Train and evaluate').click()
    v.says('Step 1 of 3')
    v.says('Done. The report of the run ward', 900_000)
    report = p.frame_locator('.sx-report')
    assert 'chest X-rays' in report.locator('h1').first.inner_text()
    with p.expect_download() as got:
        p.get_by_role('button', name='Save the report').click()
    assert got.value.suggested_filename == 'ward.html'
    assert (served.home / 'runs/ward/report.html').is_file()


def test_two_visitors_see_their_own_and_the_disk_sees_nothing(browser, served):
    one, two = Visitor(browser, served), Visitor(browser, served)
    mine = png(phantom(333, ['Edema']))
    one.upload('Upload X-ray A', ('secret.png', mine))
    one.page.locator('.sx-figure:visible').filter(has_text='secret.png').wait_for()
    for name in ('Compare', 'Teach', 'Findings'):
        two.open(name)
        assert 'secret.png' not in two.page.content()
    assert len(set(served.kernels())) >= 2
    pixels = mine[33 : 33 + 64]
    held = [
        p
        for p in served.home.rglob('*')
        if p.is_file()
        and p.stat().st_size < 100_000_000
        and (pixels in p.read_bytes() or b'secret.png' in p.read_bytes())
    ]
    assert held == []
    one.close()
    two.close()


def test_no_message_runs_code(visitor, served):
    p = visitor.page
    kernel = json.loads(p.locator('#jupyter-config-data').text_content())['kernelId']
    mark = served.home / 'ran'
    p.evaluate(
        '''([kernel, code]) => new Promise(done => {
            const path = `/api/kernels/${kernel}/channels?session_id=evil`;
            const w = new WebSocket(`ws://${location.host}${path}`);
            const header = {
                msg_id: "1", msg_type: "execute_request", session: "evil", username: "",
                version: "5.3", date: new Date().toISOString(),
            };
            const content = {
                code, silent: false, store_history: false, user_expressions: {},
                allow_stdin: false,
            };
            const message = { header, parent_header: {}, metadata: {}, channel: "shell", content };
            w.onopen = () => { w.send(JSON.stringify(message)); setTimeout(done, 3000); };
            w.onerror = () => done();
        })''',
        [kernel, f'open({str(mark)!r}, "w")'],
    )
    assert not mark.exists()
    assert p.evaluate('() => fetch("/voila/files/../Makefile").then(r => r.status)') in (
        403,
        404,
    ) and p.evaluate('() => fetch("/api/contents").then(r => r.status)') in (403, 404)


def test_a_lost_kernel_is_said_and_saved_findings_survive(browser, served):
    v = Visitor(browser, served)
    p = v.page
    teach(v, 'Kept', 'nothing: compare only', shots=3)
    v.says('Done: taught', 120_000)
    p.get_by_role('button', name='Save', exact=True).click()
    v.says('Saved as kept')
    kernel = json.loads(p.locator('#jupyter-config-data').text_content())['kernelId']
    victims = [n for n in served.kernels() if kernel in Path(f'/proc/{n}/cmdline').read_text()]
    assert victims
    for n in victims:
        os.kill(n, signal.SIGKILL)
    p.get_by_text('The connection to the kernel was lost').wait_for(timeout=60_000)
    p.get_by_role('button', name='Reload').click()
    p.wait_for_selector('.sx-thumb', timeout=120_000)
    v.open('Teach')
    v.field('Saved findings').locator('option', has_text='kept').wait_for(state='attached')
    p.get_by_role('button', name='Load', exact=True).click()
    v.says('Loaded: Kept')
    v.close()
