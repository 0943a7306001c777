// A map of X-rays. Hovering shows an X-ray, a click chooses it, a drag chooses a rectangle; from
// the keyboard the arrow keys walk from point to point and Enter chooses. Groups differ in shape
// as well as in colour.

const WIDTH = 720, HEIGHT = 500, EDGE = 20;
const NAMESPACE = 'http://www.w3.org/2000/svg';
const WORDS = 'Map of X-rays. Arrow keys walk from point to point, Enter chooses.';
const SHAPES = [
  'M-5,0a5,5 0 1,0 10,0a5,5 0 1,0 -10,0Z',                // disc
  'M0,-6L5.6,4.5L-5.6,4.5Z',                              // triangle
  'M-4.6,-4.6h9.2v9.2h-9.2Z',                             // square
  'M0,-6.5L6,0L0,6.5L-6,0Z',                              // diamond
  'M-6,-2h4v-4h4v4h4v4h-4v4h-4v-4h-4Z',                   // cross
];
const OTHER = { name: '', colour: '#777', shape: 0 };

function makeSvg(tag, attributes, parent) {
  const made = document.createElementNS(NAMESPACE, tag);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  parent?.append(made);
  return made;
}

function makeDiv(name, parent) {
  const made = document.createElement('div');
  made.className = name;
  parent.append(made);
  return made;
}

// Where a point of the unit square lies in the picture.
const place = ([x, y]) => [EDGE + x * (WIDTH - 2 * EDGE), HEIGHT - EDGE - y * (HEIGHT - 2 * EDGE)];

// Where the mouse is, in the coordinates of the picture.
function spot(svg, event) {
  const point = new DOMPoint(event.clientX, event.clientY);
  const { x, y } = point.matrixTransform(svg.getScreenCTM().inverse());
  return [x, y];
}

class XrayMap {
  constructor(model, el) {
    this.model = model;
    this.el = el;
    this.legend = makeDiv('sx-legend', el);
    this.svg = makeSvg('svg', {
      viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: 'listbox', tabindex: 0,
      'aria-label': WORDS, 'aria-multiselectable': 'true',
    }, el);
    this.tip = makeDiv('sx-tip', el);
    this.tip.setAttribute('role', 'status');
    this.dots = [];
    this.at = -1;      // the point that is shown
    this.from = null;  // where a drag began
    this.box = null;   // the rectangle of a drag
    this.draw();
  }

  draw() {
    const groups = this.model.get('groups'), tips = this.model.get('tips');
    const prefix = 'sx' + Math.random().toString(36).slice(2);
    this.svg.replaceChildren();
    this.leave();
    this.dots = this.model.get('points').map((point, i) => {
      const group = groups[point[2]] ?? OTHER, [x, y] = place(point);
      const dot = makeSvg('path', {
        d: SHAPES[group.shape % SHAPES.length], transform: `translate(${x} ${y})`,
        fill: group.colour, class: 'sx-dot', role: 'option', id: prefix + i,
        'aria-label': tips[i] ?? '',
      }, this.svg);
      dot.onmouseenter = () => this.point(i);
      dot.onmouseleave = () => this.leave();
      return dot;
    });
    this.drawLegend(groups);
    this.paint();
  }

  drawLegend(groups) {
    const points = this.model.get('points');
    this.legend.replaceChildren(...groups.map((group, k) => {
      const entry = document.createElement('span');
      const sign = makeSvg('svg', { viewBox: '-8 -8 16 16', 'aria-hidden': 'true' }, entry);
      makeSvg('path', { d: SHAPES[group.shape % SHAPES.length], fill: group.colour }, sign);
      entry.append(`${group.name} (${points.filter(point => point[2] === k).length})`);
      return entry;
    }));
  }

  paint() {
    const chosen = new Set(this.model.get('chosen'));
    this.dots.forEach((dot, i) => {
      dot.classList.toggle('sx-chosen', chosen.has(i));
      dot.setAttribute('aria-selected', chosen.has(i));
    });
  }

  choose(list) {
    this.model.set('chosen', list);
    this.model.save_changes();
    this.paint();
  }

  toggle(i) {
    const chosen = new Set(this.model.get('chosen'));
    if (!chosen.delete(i)) chosen.add(i);
    this.choose([...chosen]);
  }

  point(i) {
    this.leave();
    this.at = i;
    this.dots[i].classList.add('sx-at');
    this.svg.setAttribute('aria-activedescendant', this.dots[i].id);
    const picture = new Image(96, 96), words = document.createElement('span');
    picture.src = this.model.get('images')[i] ?? '';
    picture.alt = '';
    words.textContent = this.model.get('tips')[i];
    this.tip.replaceChildren(picture, words);
    this.tip.hidden = false;
    this.moveTip(place(this.model.get('points')[i]));
  }

  moveTip([x, y]) {
    const frame = this.el.getBoundingClientRect();
    const screen = new DOMPoint(x, y).matrixTransform(this.svg.getScreenCTM());
    const left = screen.x - frame.left, top = screen.y - frame.top;
    this.tip.style.left = `${Math.max(0, Math.min(left + 12, frame.width - 240))}px`;
    this.tip.style.top = `${top > frame.height - 130 ? top - 124 : top + 12}px`;
  }

  leave() {
    this.dots[this.at]?.classList.remove('sx-at');
    this.at = -1;
    this.tip.hidden = true;
  }

  drag(event) {
    if (!this.from) return;
    const [x, y] = spot(this.svg, event), [a, b] = this.from;
    if (Math.abs(x - a) + Math.abs(y - b) < 6) return;
    this.box ??= makeSvg('rect', { class: 'sx-box' }, this.svg);
    this.box.setAttribute('x', Math.min(x, a));
    this.box.setAttribute('y', Math.min(y, b));
    this.box.setAttribute('width', Math.abs(x - a));
    this.box.setAttribute('height', Math.abs(y - b));
  }

  drop(event) {
    const [x, y] = spot(this.svg, event), [a, b] = this.from ?? [x, y];
    this.from = null;
    if (!this.box) {
      const hit = this.dots.indexOf(event.target);
      if (hit >= 0) this.toggle(hit);
      return;
    }
    this.box.remove();
    this.box = null;
    const between = (v, p, q) => v >= Math.min(p, q) && v <= Math.max(p, q);
    const inside = ([u, v]) => between(u, x, a) && between(v, y, b);
    const points = this.model.get('points').map(place);
    this.choose([...points.keys()].filter(i => inside(points[i])));
  }

  // From left to right, as the arrow keys go.
  order() {
    const points = this.model.get('points');
    return [...points.keys()].sort((i, j) => points[i][0] - points[j][0]);
  }

  walk(step) {
    const order = this.order(), n = order.length, k = order.indexOf(this.at);
    if (!n) return;
    const start = step > 0 ? 0 : n - 1;
    this.point(order[k < 0 ? start : (k + step + n) % n]);
  }

  key(event) {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const enter = event.key === 'Enter' || event.key === ' ';
    if (step || enter) event.preventDefault();
    if (step) this.walk(step);
    if (enter && this.at >= 0) this.toggle(this.at);
    if (event.key === 'Escape') this.leave();
  }
}

function render({ model, el }) {
  el.classList.add('sx-scatter');
  el.dataset.lmSuppressShortcuts = 'true';
  const map = new XrayMap(model, el);
  map.svg.onpointerdown = event => { map.from = spot(map.svg, event); };
  map.svg.onpointermove = event => map.drag(event);
  map.svg.onpointerup = event => map.drop(event);
  map.svg.onkeydown = event => map.key(event);
  map.svg.onblur = () => map.leave();
  for (const key of ['points', 'groups']) model.on(`change:${key}`, () => map.draw());
  model.on('change:chosen', () => map.paint());
}

export default { render };
