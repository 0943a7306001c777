// A grid of X-rays, each a button with its picture, its name and its findings. A mark is said in
// words and signs as well as in colour.

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
  return made;
}

function makeThumb(item, onclick) {
  const sign = SIGNS[item.mark];
  const thumb = make('button', item.mark ? `sx-thumb sx-mark-${item.mark}` : 'sx-thumb');
  thumb.type = 'button';
  thumb.dataset.id = item.id;
  thumb.title = [`${item.name}: ${item.said}`, item.warn].filter(Boolean).join('\n');
  thumb.setAttribute('aria-pressed', !!item.mark);
  thumb.setAttribute('aria-label', [item.name, item.said, sign, item.warn].filter(Boolean).join(', '));
  const picture = make('img', '');
  picture.src = item.src;
  picture.alt = '';
  thumb.append(picture, make('span', 'sx-name', item.name), make('span', 'sx-said', item.said));
  if (sign) thumb.append(make('span', 'sx-sign', sign));
  if (item.warn) thumb.append(make('span', 'sx-warn', '! doubtful'));
  thumb.onclick = onclick;
  return thumb;
}

function render({ model, el }) {
  el.classList.add('sx-gallery');
  el.setAttribute('role', 'group');
  el.dataset.lmSuppressShortcuts = 'true';

  const draw = () => {
    const focused = document.activeElement?.dataset?.id;
    el.setAttribute('aria-label', model.get('label'));
    const thumbs = model.get('items').map(
      item => makeThumb(item, () => model.send({ id: item.id })));
    el.replaceChildren(...thumbs);
    if (focused) thumbs.find(thumb => thumb.dataset.id === focused)?.focus();
  };
  model.on('change:items', draw);
  draw();
}

export default { render };
