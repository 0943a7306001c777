// A labelled control: a text, a choice from a list, a scale over a list, or a box to tick.

// For each kind: the element, how it shows what Python says, and how it tells Python.
const kinds = {
  text: {
    type: 'text',
    show(input, model) {
      if (input.value !== model.get('text')) input.value = model.get('text');
    },
    tell: (input, model) => model.set('text', input.value),
  },
  select: {
    show(input, model) {
      const wanted = model.get('options').map(String);
      const shown = [...input.options].map(option => option.textContent);
      if (shown.join('\n') !== wanted.join('\n'))
        input.replaceChildren(...wanted.map((text, i) => new Option(text, i)));
      input.value = model.get('index');
    },
    tell: (input, model) => model.set('index', +input.value),
  },
  range: {
    type: 'range',
    show(input, model, output) {
      const options = model.get('options').map(String), at = model.get('index');
      input.min = 0;
      input.max = options.length - 1;
      input.step = 1;
      input.value = at;
      output.textContent = options[at];
      input.setAttribute('aria-valuetext', options[at] ?? '');
    },
    tell: (input, model) => model.set('index', +input.value),
  },
  check: {
    type: 'checkbox',
    show(input, model) { input.checked = model.get('index') === 1; },
    tell: (input, model) => model.set('index', +input.checked),
  },
};

function add(tag, parent) {
  const made = document.createElement(tag);
  parent.append(made);
  return made;
}

function render({ model, el }) {
  const name = model.get('kind'), kind = kinds[name];
  el.classList.add('sx-field', `sx-${name}`);
  el.dataset.lmSuppressShortcuts = 'true';
  const label = add('label', el), words = add('span', label), output = add('output', label);
  const input = add(kind.type ? 'input' : 'select', el), hint = add('small', el);
  label.htmlFor = input.id = 'sx-' + Math.random().toString(36).slice(2);
  if (kind.type) input.type = kind.type;
  if (name === 'text') input.maxLength = model.get('most');

  const show = () => {
    words.textContent = model.get('label');
    hint.textContent = model.get('hint');
    hint.hidden = !model.get('hint');
    input.disabled = model.get('disabled');
    kind.show(input, model, output);
  };
  input.oninput = () => {
    kind.tell(input, model);
    model.save_changes();
    show();
  };
  for (const key of ['label', 'hint', 'text', 'options', 'index', 'disabled'])
    model.on(`change:${key}`, show);
  show();
}

export default { render };
