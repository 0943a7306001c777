// A file input, and a place to drop files. What is sent goes in pieces, for servers refuse long
// messages; of a file that is too large only name and size are sent.

const PIECE = 4e6; // bytes

async function sendFile(model, file, told) {
  if (file.size > model.get('limit')) {
    model.send({ ...told, refused: true, end: true });
    return;
  }
  let at = 0;
  do {
    const piece = await file.slice(at, at + PIECE).arrayBuffer();
    at += PIECE;
    model.send({ ...told, end: at >= file.size }, undefined, [piece]);
  } while (at < file.size);
}

async function sendAll(model, files) {
  const batch = Math.random().toString(36).slice(2);
  for (const [k, file] of files.entries()) {
    const last = k === files.length - 1;
    await sendFile(model, file, { batch, name: file.name, size: file.size, last });
  }
}

function render({ model, el }) {
  el.classList.add('sx-upload');
  const input = document.createElement('input'), label = document.createElement('label');
  label.htmlFor = input.id = 'sx-' + Math.random().toString(36).slice(2);
  label.textContent = model.get('label');
  input.type = 'file';
  input.multiple = model.get('multiple');
  input.accept = model.get('accept');
  el.append(input, label);

  input.onchange = async () => {
    await sendAll(model, [...input.files]);
    input.value = ''; // the same file may be chosen again
  };
  el.ondragover = event => {
    event.preventDefault();
    el.classList.add('sx-over');
  };
  el.ondragleave = () => el.classList.remove('sx-over');
  el.ondrop = event => {
    event.preventDefault();
    el.classList.remove('sx-over');
    sendAll(model, [...event.dataTransfer.files]);
  };
}

export default { render };
