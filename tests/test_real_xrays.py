"The run notebooks on real X-rays, where there are some; nothing of them is shown or kept."

import json, subprocess, sys
from pathlib import Path

import pytest
from real import REAL, needs_real

from smlxray.base import repo_root

pytestmark = pytest.mark.slow


def papermill(*args):
    command = [sys.executable, '-m', 'papermill', '--no-progress-bar', *map(str, args)]
    root = repo_root(Path(__file__).parent)
    return subprocess.run(command, cwd=root, capture_output=True, text=True)


@needs_real
def test_the_evaluation_runs_to_the_end_on_real_xrays(tmp_path):
    "With the smallest settings: all rows are there, and the numbers are numbers."
    given = dict(
        preset='tiny',
        dataset='realcxr',
        dataset_path=REAL,
        novel_findings='Cardiomegaly,Effusion',
        match_on='projection,origin',
        runs_path=tmp_path / 'runs',
        cache_path=tmp_path / 'cache',
        run='real',
        episodes=3,
        meta_episodes=2,
        siamese_epochs=1,
    )
    args = [a for k, v in given.items() for a in ('-p', k, str(v))]
    done = papermill('nbs/evaluate_meta.ipynb', tmp_path / 'out.ipynb', *args)
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads((tmp_path / 'runs' / 'real' / 'results.json').read_text())
    assert results['data']['novel'] == ['Cardiomegaly', 'Pleural Effusion']
    assert results['settings']['data']['match_on'] == ['projection', 'origin']
    wanted = {'pixels', 'untrained', 'siamese', 'maml', 'fomaml', 'anil'}
    assert wanted <= {r['method'] for r in results['rows']}
    assert all(0 <= r['auc_low'] <= r['auc'] <= r['auc_high'] <= 1 for r in results['rows'])
    for picture in ('overall_performance.png', 'confusion_matrix_Pleural_Effusion.png'):
        assert (tmp_path / 'runs' / 'real' / picture).exists()
