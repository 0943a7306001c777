"""Take a tree of X-rays through the cheap part of every step; tell the most memory after each.

Run by `test_scale.py` as `python tests/on_many.py PLACE`: a process has a peak of its own.
"""

import json
import resource
import sys
from pathlib import Path

from smlxray.audit import check_data
from smlxray.bench import DeviceCase, _loops
from smlxray.bundle import make_bundle, predict_images
from smlxray.config import load_settings
from smlxray.evaluate import evaluate
from smlxray.lab import open_lab
from smlxray.methods import network_method, pixel_method
from smlxray.readers import read_xrays
from smlxray.train import one_round

SETTINGS = dict(
    dataset='chexpert', backbone='conv4', embedding_dim=16, shots=5, queries=10, episodes=20,
    novel_findings=['Pneumothorax', 'Consolidation'], workers=1,
)  # fmt: skip


def steps(place: Path):
    "Do one step after the other, and name it."
    data = place / 'CheXpert-v1.0-small'
    paths = dict(dataset_path=data, cache_path=place / 'cache', runs_path=place / 'runs')
    found = check_data(read_xrays(data, 'chexpert'), workers=1, progress=False)
    assert not (found['level'] == 'error').any(), found
    yield 'data check'
    lab = open_lab(load_settings('tiny', **SETTINGS, **paths))
    yield 'cache build'
    loops = _loops(DeviceCase(batch=32, steps=1), lab)
    for what, (loop, _, _) in loops.items():
        one_round(loop, 0)
        yield f'a step on {what}'
    net = loops['images'][0].model.net.eval()
    evaluate(lab, [pixel_method(lab), network_method(lab, net, 'siamese')])
    yield 'evaluate'
    told = predict_images(make_bundle(lab, net, most=500), lab.pixels.gather(lab.test[:200]))
    assert len(told) == 200
    yield 'predict'


def main():
    for step in steps(Path(sys.argv[1])):
        used = resource.getrusage(resource.RUSAGE_SELF)
        told = dict(step=step, megabytes=used.ru_maxrss / 1024, cpu=used.ru_utime + used.ru_stime)
        print(json.dumps(told), flush=True)


if __name__ == '__main__':
    main()
