// The link to the kernel: watches that it is there, brings the visitor's key, and hands over files.

const LOST = 'The connection to the kernel was lost, so this page can compute no more. '
  + 'Saved findings are kept; uploads and unsaved work are gone. ';
const PATIENCE = 4; // questions without an answer

// The key that this browser keeps for its visitor.
function visitorKey() {
  const kept = localStorage.getItem('smlxray-visitor');
  if (/^[0-9a-f]{32}$/.test(kept ?? '')) return kept;
  const bytes = [...crypto.getRandomValues(new Uint8Array(16))];
  const key = bytes.map(byte => byte.toString(16).padStart(2, '0')).join('');
  localStorage.setItem('smlxray-visitor', key);
  return key;
}

function download(name, buffers) {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob(buffers));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 5000);
}

function makeAlarm(el) {
  const alarm = document.createElement('div'), again = document.createElement('button');
  alarm.className = 'sx-lost';
  alarm.setAttribute('role', 'alert');
  alarm.hidden = true;
  again.type = 'button';
  again.textContent = 'Reload';
  again.onclick = () => location.reload();
  el.append(alarm);
  return {
    ring() {
      if (!alarm.hidden) return;
      alarm.replaceChildren(LOST, again);
      alarm.hidden = false;
    },
    hush() { alarm.hidden = true; },
  };
}

function render({ model, el }) {
  el.classList.add('sx-link');
  const alarm = makeAlarm(el);
  let waiting = 0;

  const ask = () => {
    waiting++;
    try {
      Promise.resolve(model.send({ kind: 'ping' })).catch(() => {});
    } catch { /* a kernel that is gone does not answer either */ }
    if (waiting > PATIENCE) alarm.ring();
  };
  model.on('msg:custom', (told, buffers) => {
    if (told.kind === 'file') download(told.name, buffers);
    if (told.kind !== 'pong') return;
    waiting = 0;
    alarm.hush();
  });
  try {
    model.send({ kind: 'visitor', key: visitorKey() });
  } catch { /* a browser that keeps nothing has no key */ }
  const timer = setInterval(ask, 1000 * model.get('seconds'));
  return () => clearInterval(timer);
}

export default { render };
