"""Take CheXpert's own number of X-rays from a folder to predictions; note what each step needs.

    python tests/scale.py --rows 2000 20000 223414 --out nbs/scale.json

The labels are CheXpert's, from the package torchxrayvision. The images are a few phantoms, each
time under another shade: names for the same image (hard links) would be taken for the copies that
they are, and left out. Each step is a command of its own, so its memory is that of a process; its
time is that of the processor, since other programs run as well. This program itself imports
nothing large: a process begins with the memory of the one that started it."""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

PHANTOMS, SIDE = 16, 96
CONV4 = dict(image_size=64, backbone='conv4', embedding_dim=64)
RESNET50 = dict(
    image_size=224, backbone='resnet50', embedding_dim=256,
    batch_size=16, meta_episodes=4, shots=2, queries=4, engine='reverse',
)  # fmt: skip
COMMON = dict(
    preset='tiny', dataset='chexpert', batch_size=64, siamese_epochs=1, meta_episodes=8, shots=5,
    queries=10, episodes=20, patients=200, novel_findings='["Pneumothorax", "Consolidation"]',
)  # fmt: skip
STEPS = {
    'data check': ['data', 'check', '{data}', '--list', '{place}/problems.csv'],
    'cache build': ['cache', 'build', '{data}', '--views', 'frontal', '--cache-path',
                    '{place}/cache', '--size', '{size}'],
    'train siamese': ['train', 'siamese'],
    'train meta': ['train', 'meta'],
    'evaluate': ['evaluate'],
    'report': ['report', 'scale', '--no-browser', '--runs-path', '{place}/runs'],
    'predict': ['predict', '{data}', '--model', 'scale', '--output', '{place}/out.csv'],
}


def shades(rng, side: int) -> Iterator:
    "Smooth patterns of grey levels, (side, side) float."
    import torch
    from torch.nn.functional import interpolate
    while True:
        coarse = torch.from_numpy(rng.normal(scale=25, size=(64, 1, 6, 6)))
        yield from interpolate(coarse, (side, side), mode='bilinear')[:, 0].numpy()


def tree(place: Path, rows: int, side: int = SIDE) -> None:
    "Lay out the first rows of CheXpert's table, with shaded phantoms in place of its X-rays."
    import numpy as np
    import pandas as pd
    from simplejpeg import encode_jpeg

    from smlxray.images import read_image
    from smlxray.phantom import write_phantoms

    drawn, data, rng = place / 'drawn', place / 'CheXpert-v1.0-small', np.random.default_rng(0)
    write_phantoms(drawn, patients=PHANTOMS, size=side, seed=0, workers=1, progress=False)
    images = [read_image(file) for file in sorted(drawn.rglob('*.jpg'))[:PHANTOMS]]
    package = Path(find_spec('torchxrayvision').origin).parent
    table = pd.read_csv(package / 'data' / 'chexpert_train.csv.gz', dtype=str).head(rows)
    for k, (path, shade) in enumerate(zip(table['Path'], shades(rng, side))):
        levels = np.clip(images[k % PHANTOMS] + shade, 0, 255).astype(np.uint8)
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        (place / path).write_bytes(encode_jpeg(levels[..., None], 80, 'gray', 'gray'))
    table.to_csv(data / 'train.csv', index=False)


def measured(words: list[str]) -> dict:
    "Run a command of ours; seconds of the processor, of the clock, and megabytes at most."
    began = time.monotonic()
    line = [sys.executable, '-m', 'smlxray.cli', *words]
    with tempfile.TemporaryFile() as said:
        child = subprocess.Popen(line, stdout=said, stderr=said)
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        last = said.read().decode()[-2000:]
    if child.returncode: raise SystemExit(f'{" ".join(words)}: {last}')
    return dict(
        cpu=round(used.ru_utime + used.ru_stime, 1),
        seconds=round(time.monotonic() - began, 1),
        megabytes=round(used.ru_maxrss / 1024),
    )


def walk(place: Path, rows: int, network: dict) -> Iterator[dict]:
    "All steps on so many rows, one after the other."
    data = place / 'CheXpert-v1.0-small'
    subprocess.run([sys.executable, __file__, '--tree', str(place), str(rows)], check=True)
    paths = dict(dataset_path=data, cache_path=place / 'cache', runs_path=place / 'runs')
    settings = COMMON | network | paths | dict(run='scale')
    given = [word for key, value in settings.items() for word in ('-p', key, str(value))]
    for step, words in STEPS.items():
        words = [word.format(data=data, place=place, size=network['image_size']) for word in words]
        if words[0] in ('train', 'evaluate', 'predict'): words = words + given
        yield dict(rows=rows, network=network['backbone'], step=step, **measured(words))


def kept(out: Path | None, plans: list[tuple[int, dict]]) -> list[dict]:
    "What was measured before, but for what is measured again."
    from smlxray.base import check_seal
    if out is None or not out.exists(): return []
    again = {(rows, network['backbone']) for rows, network in plans}
    told = check_seal(json.loads(out.read_text()))['rows']
    return [row for row in told if (row['rows'], row['network']) not in again]


def save(out: Path, told: list[dict]) -> None:
    "Write what was measured, with a digest."
    from smlxray.base import sealed, write_atomic
    write_atomic(out, json.dumps(sealed(dict(rows=told)), indent=1) + '\n')


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--rows', type=int, nargs='*', default=[2000, 20_000, 223_414])
    parser.add_argument('--resnet50', type=int, default=0, help='so many rows at 224 px as well')
    parser.add_argument('--out', type=Path)
    parser.add_argument('--place', type=Path, help='folder for the trees')
    parser.add_argument('--tree', nargs='+', help='lay out a tree: folder, rows, pixels per side')
    asked = parser.parse_args()
    if asked.tree: return tree(Path(asked.tree[0]), *map(int, asked.tree[1:]))
    plans = [(rows, CONV4) for rows in asked.rows]
    if asked.resnet50: plans.append((asked.resnet50, RESNET50))
    told = kept(asked.out, plans)
    for rows, network in plans:
        with tempfile.TemporaryDirectory(dir=asked.place) as place:
            for row in walk(Path(place), rows, network):
                told.append(row)
                print(row, flush=True)
                if asked.out: save(asked.out, told)  # a long walk may be cut short


if __name__ == '__main__':
    main()
