// An X-ray to be read. It is zoomed with the wheel (Ctrl, or in the dark room), the buttons or + and -,
// moved by dragging or with the arrows, and its window and level are set by sliders or by dragging with
// Shift. Grey values are changed by a filter of the browser: the picture itself stays what it was.

const SVG = 'http://www.w3.org/2000/svg';
const KEYS = '+ and - zoom, arrow keys move, 0 fits, i inverts, d opens the dark room, Escape leaves it';

function make(tag, name = '', text = '') {
  const made = document.createElement(tag);
  if (name) made.className = name;
  made.textContent = text;
  return made;
}

function makeFilter(id) {
  const svg = document.createElementNS(SVG, 'svg');
  svg.setAttribute('class', 'sx-filter');
  svg.setAttribute('aria-hidden', 'true');
  svg.innerHTML = `<filter id="${id}" color-interpolation-filters="sRGB"><feComponentTransfer>` +
    ['R', 'G', 'B'].map(c => `<feFunc${c} type="linear" slope="1" intercept="0"/>`).join('') +
    '</feComponentTransfer></filter>';
  return svg;
}

function makeSlider(words, low, high, value) {
  const label = make('label', '', words);
  const input = make('input');
  Object.assign(input, { type: 'range', min: low, max: high, value });
  label.append(input);
  return [label, input];
}

function render({ model, el }) {
  const state = { zoom: 1, x: 0, y: 0, window: 100, level: 50, inverted: false, lines: true };
  const id = `sx-grey-${Math.random().toString(36).slice(2)}`;  // each viewer is a module of its own
  el.classList.add('sx-viewer');
  el.dataset.lmSuppressShortcuts = 'true';
  const figure = make('figure', 'sx-figure');
  const frame = make('div', 'sx-frame');
  const film = make('div', 'sx-film');
  const image = make('img');
  const lines = document.createElementNS(SVG, 'svg');
  const caption = make('figcaption');
  const tools = make('div', 'sx-tools');
  frame.tabIndex = 0;
  frame.setAttribute('role', 'group');
  image.style.filter = `url(#${id})`;
  image.draggable = false;
  lines.setAttribute('class', 'sx-contours');
  lines.setAttribute('viewBox', '0 0 1 1');
  lines.setAttribute('preserveAspectRatio', 'none');
  lines.setAttribute('aria-hidden', 'true');
  film.append(image, lines);
  frame.append(film);
  const filter = makeFilter(id);

  const tool = (text, name, act) => {
    const made = make('button', 'sx-tool', text);
    made.type = 'button';
    made.title = name;
    made.setAttribute('aria-label', name);
    made.onclick = () => { act(); draw(); };
    tools.append(made);
    return made;
  };
  const zoom = by => { state.zoom = Math.min(8, Math.max(1, state.zoom * by)); };
  const fit = () => Object.assign(state, { zoom: 1, x: 0, y: 0, window: 100, level: 50, inverted: false });
  const reading = make('dialog', 'sx-reading');  // what is modal lies above everything, wherever it stands
  reading.setAttribute('aria-label', 'The dark room');
  reading.onclose = () => { el.append(figure); room.focus(); };
  const dark = on => {
    if (!on) return reading.close();
    reading.append(figure);
    reading.showModal();
    frame.focus();
  };
  tool('+', 'Zoom in', () => zoom(1.5));
  tool('\u2212', 'Zoom out', () => zoom(1 / 1.5));
  tool('Fit', 'Fit, and undo all changes of grey', fit);
  const invert = tool('Invert', 'Invert the grey values', () => { state.inverted = !state.inverted; });
  const outline = tool('Contours', 'Show the contours', () => { state.lines = !state.lines; });
  const room = tool('Dark room', 'Read in the dark room', () => dark(!reading.open));
  const [windowLabel, windowSlider] = makeSlider('Window', 5, 200, 100);
  const [levelLabel, levelSlider] = makeSlider('Level', 0, 100, 50);
  windowSlider.oninput = () => { state.window = +windowSlider.value; draw(); };
  levelSlider.oninput = () => { state.level = +levelSlider.value; draw(); };
  tools.append(windowLabel, levelLabel);

  const draw = () => {
    const slack = (state.zoom - 1) / 2 * 100;
    state.x = Math.max(-slack, Math.min(slack, state.x));
    state.y = Math.max(-slack, Math.min(slack, state.y));
    film.style.transform = `translate(${state.x}%, ${state.y}%) scale(${state.zoom})`;
    const slope = 100 / state.window * (state.inverted ? -1 : 1);
    const shift = 0.5 - slope * state.level / 100;
    for (const f of filter.querySelectorAll('feComponentTransfer > *')) {
      f.setAttribute('slope', slope);
      f.setAttribute('intercept', shift);
    }
    invert.setAttribute('aria-pressed', state.inverted);
    outline.setAttribute('aria-pressed', state.lines);
    outline.hidden = !model.get('contours').length;
    lines.style.display = state.lines ? '' : 'none';
    windowSlider.value = state.window;
    levelSlider.value = state.level;
    frame.classList.toggle('sx-zoomed', state.zoom > 1);
  };

  const show = () => {
    const src = model.get('src');
    figure.className = src ? 'sx-figure' : 'sx-figure sx-none';
    frame.hidden = tools.hidden = !src;
    image.src = src || 'data:,';
    image.alt = model.get('alt');
    frame.setAttribute('aria-label', `${model.get('alt')}. ${KEYS}`);
    lines.replaceChildren(...model.get('contours').map(d => {
      const path = document.createElementNS(SVG, 'path');
      path.setAttribute('d', d);
      return path;
    }));
    caption.replaceChildren(...model.get('lines').map((text, k) => make(k ? 'span' : 'b', '', text)));
    if (caption.firstChild) caption.firstChild.title = model.get('lines')[0];  // a long name is cut
    draw();
  };

  let last = null;
  frame.onpointerdown = event => {
    last = [event.clientX, event.clientY];
    frame.setPointerCapture(event.pointerId);
  };
  frame.onpointerup = frame.onpointercancel = () => { last = null; };
  frame.onpointermove = event => {
    if (!last) return;
    const box = frame.getBoundingClientRect();
    const [dx, dy] = [event.clientX - last[0], event.clientY - last[1]];
    last = [event.clientX, event.clientY];
    if (event.shiftKey) {
      state.window = Math.min(200, Math.max(5, state.window + dx / 2));
      state.level = Math.min(100, Math.max(0, state.level + dy / 4));
    } else {
      state.x += 100 * dx / box.width;
      state.y += 100 * dy / box.height;
    }
    draw();
  };
  frame.addEventListener('wheel', event => {
    if (!event.ctrlKey && !reading.open) return;
    event.preventDefault();
    zoom(event.deltaY < 0 ? 1.2 : 1 / 1.2);
    draw();
  }, { passive: false });
  const moves = { ArrowLeft: [8, 0], ArrowRight: [-8, 0], ArrowUp: [0, 8], ArrowDown: [0, -8] };
  el.addEventListener('keydown', event => {
    if (event.target !== frame || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key in moves) {
      if (state.zoom === 1) return;
      state.x += moves[event.key][0];
      state.y += moves[event.key][1];
    } else if (event.key === '+' || event.key === '=') zoom(1.5);
    else if (event.key === '-') zoom(1 / 1.5);
    else if (event.key === '0') fit();
    else if (event.key === 'i') state.inverted = !state.inverted;
    else if (event.key === 'd') dark(!reading.open);
    else return;
    event.preventDefault();
    draw();
  });

  image.onload = () => figure.style.setProperty('--ratio', image.naturalWidth / image.naturalHeight);
  figure.append(frame, tools, caption);
  el.append(filter, reading, figure);
  for (const name of ['src', 'alt', 'lines', 'contours']) model.on(`change:${name}`, show);
  show();
}

export default { render };
