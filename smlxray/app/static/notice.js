// A place where the page says something. It is a live region, so a screen reader says it too.

function makeLine(text) {
  const line = document.createElement('p');
  line.textContent = text;
  return line;
}

function render({ model, el }) {
  const bar = document.createElement('progress'), text = document.createElement('div');
  text.setAttribute('role', 'status');
  el.append(bar, text);
  let level = '';

  const show = () => {
    const lines = model.get('lines'), total = model.get('total');
    text.replaceChildren(...lines.map(makeLine));
    bar.hidden = !total;
    bar.max = total || 1;
    bar.value = model.get('done');
    bar.setAttribute('aria-label', model.get('label'));
    if (level) el.classList.remove(level);
    level = `sx-notice-${model.get('level') || 'plain'}`;
    el.classList.add('sx-notice', level);
    el.classList.toggle('sx-empty', !total && !lines.length);
  };
  for (const key of ['lines', 'level', 'done', 'total', 'label'])
    model.on(`change:${key}`, show);
  show();
}

export default { render };
