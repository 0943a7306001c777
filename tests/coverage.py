"""Ask the interval of the standard table about worlds whose truth is known.

    python tests/coverage.py --worlds 2000 --out nbs/coverage.json

A world is one draw of patients. Its interval should hold what the method would reach on other
patients: in 93 to 97 of 100 worlds, in 91 to 98 with 25 positive patients."""
import argparse
import json
import os
import time
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed

from smlxray.base import sealed, write_atomic
from smlxray.jackknife import block_auc, patient_interval
from smlxray.metrics import EpisodeScores, Support

USUAL = dict(positives=60, negatives=200, dims=12, shift=1.2, images=4, tails=0, shots=7)
CELLS = {
    '25 positives': dict(positives=25, negatives=120),
    '40 positives': dict(positives=40, negatives=120),
    '60 positives': {},
    '200 positives': dict(positives=200, negatives=600),
    'one shot': dict(shots=1),
    '64 dimensions': dict(dims=64),
    'easier': dict(shift=2.5),
    'up to 30 images per patient': dict(images=30),
    'heavy tails': dict(tails=3),
    'three shots, 35 positives, 8 images, tails': dict(
        shots=3, positives=35, negatives=300, images=8, tails=5
    ),
}
QUERIES, EPISODES, WITHIN = 15, 100, 0.5


def noise(rng, tails, *shape):
    "Numbers of variance one: normal, or Student's t with so many degrees of freedom."
    if not tails: return rng.normal(size=shape)
    return rng.standard_t(tails, size=shape) / np.sqrt(tails / (tails - 2))


def prior(x, shots):
    "Look at no example: (E, 2K + 2Q, D) -> (E, 2Q)."
    return x[:, 2 * shots:, 0]


def prototypes(x, shots, dims=None):
    "Similarity to the positives minus that to the negatives; `dims` are looked at."
    x = x[..., :dims]
    x = x / np.linalg.norm(x, axis=2, keepdims=True)
    way = x[:, :shots].mean(1) - x[:, shots:2 * shots].mean(1)
    return np.einsum('eqd,ed->eq', x[:, 2 * shots:], way)


def answers(x, shots):
    "What three methods answer; the last is worse than the second, for a paired gain."
    return prior(x, shots), prototypes(x, shots), prototypes(x, shots, x.shape[2] // 2)


def truth(cell, episodes=100_000):
    "Mean AUCs of the methods when everybody in each episode is new."
    rng, k, sums = np.random.default_rng(1), cell['shots'], np.zeros(3)
    for _ in range(episodes // 5000):
        shape = 5000, 2 * (k + QUERIES), cell['dims']
        x = noise(rng, cell['tails'], *shape) + WITHIN * noise(rng, cell['tails'], *shape)
        x[:, :k, 0] += cell['shift']
        x[:, 2 * k:2 * k + QUERIES, 0] += cell['shift']
        sums += [block_auc(scores).mean() for scores in answers(x, k)]
    return sums / (episodes // 5000)


def drawn(rng, cell):
    "The images (I, D) of a world's patients, and the first and the number of each (P,)."
    yes, no = cell['positives'], cell['negatives']
    count = 1 + ((cell['images'] - 1) * rng.random(yes + no) ** 2).astype(int)
    centre = noise(rng, cell['tails'], yes + no, cell['dims'])
    centre[:yes, 0] += cell['shift']
    images = centre.repeat(count, 0)
    images += WITHIN * noise(rng, cell['tails'], *images.shape)
    return images, count.cumsum() - count, count


def seats(rng, cell):
    "Who takes part in each episode (E, 2K + 2Q): support, then queries, positives first."
    yes, k = cell['positives'], cell['shots']
    sides = np.arange(yes), np.arange(yes, yes + cell['negatives'])
    rows = [rng.permuted(np.tile(side, (EPISODES, 1)), axis=1) for side in sides]
    parts = [row[:, a:b] for a, b in ((0, k), (k, k + QUERIES)) for row in rows]
    return np.concatenate(parts, 1)


def one_world(seed, cell):
    "Intervals (3, 2) and values (3,): prior, level and gain."
    rng, k = np.random.default_rng([7, seed]), cell['shots']
    images, first, count = drawn(rng, cell)
    who = seats(rng, cell)
    x = images[first[who] + rng.integers(0, count[who])]
    y, shown = np.repeat([1, 0], QUERIES), np.repeat([1, 0], k)
    told = [
        [EpisodeScores(s, y, w[2 * k:], 'Edema', Support(w[:2 * k], shown))
         for s, w in zip(scores, who)]
        for scores in answers(x, k)
    ]
    found = [patient_interval(told[0]), patient_interval(told[1]), patient_interval(*told[1:])]
    return [(i.low, i.high) for i in found], [i.value for i in found]


def cell_row(name, worlds, jobs):
    "Coverage and relative width of the three intervals in one cell."
    cell = USUAL | CELLS[name]
    true = truth(cell)
    true = np.array([true[0], true[1], true[1] - true[2]])
    done = Parallel(n_jobs=jobs, batch_size=20)(
        delayed(one_world)(seed, cell) for seed in range(worlds)
    )
    ends, values = (np.array(part) for part in zip(*done))
    held = (ends[..., 0] <= true) & (true <= ends[..., 1])
    width = (ends[..., 1] - ends[..., 0]).mean(0) / (3.92 * values.std(0))
    row = dict(cell=name, **cell, worlds=worlds, truth=true.round(4).tolist())
    return row | dict(covers=held.mean(0).round(4).tolist(), width=width.round(3).tolist())


def main():
    "Draw the worlds of all cells, print a table and write it."
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--worlds', type=int, default=2000)
    parser.add_argument('--jobs', type=int, default=2)
    parser.add_argument('--out', type=Path)
    parser.add_argument('--cells', nargs='*', default=list(CELLS))
    asked, rows = parser.parse_args(), []
    for name in asked.cells:
        start = time.monotonic()
        rows.append(cell_row(name, asked.worlds, asked.jobs))
        pairs = zip(rows[-1]['covers'], rows[-1]['width'])
        held = '  '.join(f'{share:.1%} ({wide:.2f})' for share, wide in pairs)
        print(f'{name:44s} {held}  {time.monotonic() - start:.0f} s', flush=True)
        if not asked.out: continue
        write_atomic(asked.out, json.dumps(sealed(dict(rows=rows)), indent=1) + '\n')


if __name__ == '__main__':
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    main()
