"The promises about speed and size, measured at full size; run alone on the machine."

import importlib.util, statistics
from collections import defaultdict
import pytest
from smlxray.base import BENCHES

real_table = pytest.mark.skipif(
    not importlib.util.find_spec('torchxrayvision'),
    reason='needs the label table of torchxrayvision (extra dev)',
)


def median(what, tries=3):
    "The median ratio of each case over a few runs."
    seen = defaultdict(list)
    for _ in range(tries):
        for row in BENCHES[what]():
            seen[row['case'], row['note'][:12]].append(row['ratio'])
    return {case: statistics.median(ratios) for case, ratios in seen.items()}


@real_table
def test_index_episodes_and_memory():
    ratios = {case: ratio for (case, _), ratio in median('episodes').items()}
    assert ratios['index'] >= 8 and ratios['episodes'] >= 40 and ratios['memory'] > 1, ratios


def test_pixels():
    ratios = {case: ratio for (case, _), ratio in median('cache').items()}
    wanted = dict(gather=100, gather_contiguous=0.9, deliver=10, build=2.5, bytes=12)
    assert all(ratios[case] >= least for case, least in wanted.items()), ratios


def test_intervals():
    assert all(ratio >= 15 for ratio in median('metrics', 1).values())
