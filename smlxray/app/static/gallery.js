// A grid of X-rays, each with its picture, its name and its findings. Each is a button, or it has
// buttons below it that mark it. A mark is said in words and signs as well as in colour.

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

function makeMarks(item, marking, send) {
  const row = make('div', 'sx-marks');
  for (const [mark, sign, words] of marking) {
    const button = make('button', `sx-mark sx-mark-${mark}`, sign);
    button.dataset.id = `${item.id} ${mark}`;
    button.title = words;
    button.setAttribute('aria-label', `${item.name}: ${words}`);
    button.setAttribute('aria-pressed', item.mark === mark);
    button.onclick = () => send({ id: item.id, mark });
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

function makeItem(item, marking, send) {
  const place = make('div', 'sx-item');
  if (marking.length) place.append(makeThumb(item, 'div'), makeMarks(item, marking, send));
  else place.append(makeChoice(item, send));
  if (item.own) place.append(makeRemove(item, send));
  return place;
}

function render({ model, el }) {
  el.classList.add('sx-gallery');
  el.setAttribute('role', 'group');
  el.dataset.lmSuppressShortcuts = 'true';
  const send = told => model.send(told);

  const draw = () => {
    const focused = document.activeElement?.dataset?.id;
    el.setAttribute('aria-label', model.get('label'));
    const marking = model.get('marking');
    el.replaceChildren(...model.get('items').map(item => makeItem(item, marking, send)));
    const buttons = [...el.querySelectorAll('button')];
    if (focused) buttons.find(button => button.dataset.id === focused)?.focus();
  };
  model.on('change:items', draw);
  draw();
}

export default { render };
