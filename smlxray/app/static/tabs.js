// A row of tabs. The arrow keys, Home and End move between them.

function makeTab(text) {
  const tab = document.createElement('button');
  tab.type = 'button';
  tab.textContent = text;
  tab.setAttribute('role', 'tab');
  return tab;
}

function render({ model, el }) {
  const list = document.createElement('div');
  list.className = 'sx-tabs';
  list.setAttribute('role', 'tablist');
  list.setAttribute('aria-label', 'Pages');
  el.classList.add('sx-nav');
  el.setAttribute('role', 'navigation');
  el.setAttribute('aria-label', 'Pages');
  el.dataset.lmSuppressShortcuts = 'true'; // JupyterLab leaves the keys to us
  const tabs = model.get('labels').map(makeTab);
  list.append(...tabs);
  el.append(list);

  const show = () => {
    tabs.forEach((tab, i) => {
      const open = i === model.get('value');
      tab.setAttribute('aria-selected', open);
      tab.tabIndex = open ? 0 : -1;
      if (open) list.scrollTo({ left: tab.offsetLeft - 40 });  // in sight on a narrow screen
    });
  };
  const go = i => {
    model.set('value', i);
    model.save_changes();
    show();
    tabs[i].focus();
  };

  tabs.forEach((tab, i) => { tab.onclick = () => go(i); });
  el.onkeydown = event => {
    const n = tabs.length, at = model.get('value');
    const to = { ArrowRight: (at + 1) % n, ArrowLeft: (at + n - 1) % n, Home: 0, End: n - 1 };
    if (!(event.key in to)) return;
    event.preventDefault();
    go(to[event.key]);
  };
  model.on('change:value', show);
  show();
}

export default { render };
