// A grid of X-rays, each with its picture, its name and its findings. Each is a button, or it has
// buttons below it that mark it. A mark is said in words and signs as well as in colour. Several are
// marked at once by Shift and a click (or Shift and Enter), which marks all from the last one that was
// marked to this one, or by dragging from a button over other X-rays; Escape ends that.

const SIGNS = {
  with: '+ with',
  without: '\u2212 without',
  query: '? query',
  a: 'A',
  b: 'B',
  chosen: '\u2713',
};

function make(tag, name, text = '') {
  const made = document.createElement(tag);
  made.className = name;
  made.textContent = text;
  if (tag === 'button') made.type = 'button';
  return made;
}

function makeThumb(item, tag) {
  const sign = SIGNS[item.mark];
  const thumb = make(tag, item.mark ? `sx-thumb sx-mark-${item.mark}` : 'sx-thumb');
  thumb.title = [`${item.name}: ${item.said}`, item.warn].filter(Boolean).join('\n');
  const picture = make('img', '');
  picture.src = item.src;
  picture.alt = '';
  thumb.append(picture, make('span', 'sx-name', item.name), make('span', 'sx-said', item.said));
  if (sign) thumb.append(make('span', 'sx-sign', sign));
  if (item.warn) thumb.append(make('span', 'sx-warn', '! doubtful'));
  return thumb;
}

function makeChoice(item, send) {
  const thumb = makeThumb(item, 'button'), sign = SIGNS[item.mark];
  thumb.dataset.id = item.id;
  thumb.setAttribute('aria-pressed', !!item.mark);
  thumb.setAttribute('aria-label', [item.name, item.said, sign, item.warn].filter(Boolean).join(', '));
  thumb.onclick = () => send({ id: item.id });
  return thumb;
}

function makeMarks(item, marking, press) {
  const row = make('div', 'sx-marks');
  for (const [mark, sign, words] of marking) {
    const button = make('button', `sx-mark sx-mark-${mark}`, sign);
    button.dataset.id = `${item.id} ${mark}`;
    button.dataset.mark = mark;
    button.title = words;
    button.setAttribute('aria-label', `${item.name}: ${words}`);
    button.setAttribute('aria-pressed', item.mark === mark);
    button.onclick = event => press(item.id, mark, event.shiftKey);
    row.append(button);
  }
  return row;
}

function makeRemove(item, send) {
  const button = make('button', 'sx-remove', 'Remove');
  button.setAttribute('aria-label', `Remove ${item.name} from your uploads`);
  button.onclick = () => send({ id: item.id, remove: true });
  return button;
}

function makeItem(item, marking, send, press) {
  const place = make('div', 'sx-item');
  place.dataset.key = item.id;
  if (marking.length) place.append(makeThumb(item, 'div'), makeMarks(item, marking, press));
  else place.append(makeChoice(item, send));
  if (item.own) place.append(makeRemove(item, send));
  return place;
}

// The X-rays from one to another, both included, as they are shown; the other alone if one is gone.
function between(items, from, to) {
  const keys = items.map(item => item.id), a = keys.indexOf(from), b = keys.indexOf(to);
  return a < 0 ? [to] : keys.slice(Math.min(a, b), Math.max(a, b) + 1);
}

// Marking of several X-rays at once: what a click does, and a drag that begins on a button.
class Painter {
  constructor(model, el) {
    this.model = model;
    this.el = el;
    this.last = '';    // the X-ray that was marked last, where a range begins
    this.drag = null;  // while a button is held: where it began, its mark, and what it covers
    el.addEventListener('pointerdown', event => this.begin(event));
    el.addEventListener('pointermove', event => this.move(event));
    el.addEventListener('pointerup', () => this.end());
    el.addEventListener('pointercancel', () => this.forget());
    el.addEventListener('keydown', event => { if (event.key === 'Escape') this.forget(); });
  }

  press(id, mark, range) {
    this.send(range ? between(this.model.get('items'), this.last, id) : [id], mark);
    this.last = id;
  }

  send(ids, mark) { this.model.send({ ids, mark }); }

  begin(event) {
    const button = event.target.closest('.sx-mark');
    if (!button || event.button || event.shiftKey) return;
    const from = button.closest('.sx-item').dataset.key;
    const colour = getComputedStyle(button).getPropertyValue('--mark');
    this.drag = { from, to: from, mark: button.dataset.mark, colour, ids: [], moved: false };
  }

  move(event) {
    const over = document.elementFromPoint(event.clientX, event.clientY)?.closest('.sx-item');
    if (!this.drag || !over || !this.el.contains(over)) return;
    const to = over.dataset.key;
    if (to === this.drag.to) return;
    if (!this.drag.moved) this.el.setPointerCapture(event.pointerId);  // so it is no click
    Object.assign(this.drag, { to, moved: true });
    this.drag.ids = between(this.model.get('items'), this.drag.from, to);
    this.show();
  }

  end() {
    const drag = this.drag;
    this.forget();
    if (!drag?.moved || drag.to === drag.from) return;
    this.send(drag.ids, drag.mark);
    this.last = drag.to;
  }

  forget() {
    this.drag = null;
    this.show();
  }

  show() {
    const ids = new Set(this.drag?.ids);
    this.el.style.setProperty('--cover', this.drag?.colour ?? '');
    for (const place of this.el.children)
      place.classList.toggle('sx-covered', ids.has(place.dataset.key));
  }
}

function render({ model, el }) {
  el.classList.add('sx-gallery');
  el.setAttribute('role', 'group');
  el.dataset.lmSuppressShortcuts = 'true';
  const send = told => model.send(told);
  const painter = new Painter(model, el);
  const press = (id, mark, range) => painter.press(id, mark, range);

  const draw = () => {
    const focused = document.activeElement?.dataset?.id;
    el.setAttribute('aria-label', model.get('label'));
    const marking = model.get('marking');
    el.replaceChildren(...model.get('items').map(item => makeItem(item, marking, send, press)));
    const buttons = [...el.querySelectorAll('button')];
    if (focused) buttons.find(button => button.dataset.id === focused)?.focus();
  };
  model.on('change:items', draw);
  draw();
}

export default { render };
