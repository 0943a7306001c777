"The command, in processes of its own: exit codes, sentences, and nothing half-written."
import json, os, resource, subprocess, sys
import numpy as np, pytest
from PIL import Image
from smlxray.phantom import write_phantoms


def smlxray(*words, cwd, limit=None):
    "Run the command; give its exit code, output and error stream."
    low = (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))) if limit else None
    done = subprocess.run([sys.executable, '-m', 'smlxray.cli', *map(str, words)], capture_output=True, text=True, cwd=cwd, preexec_fn=low, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert 'Traceback' not in done.stdout + done.stderr, done.stderr
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope='module')
def xrays(tmp_path_factory): return write_phantoms(tmp_path_factory.mktemp('cli')/'xrays', patients=60, size=96, progress=False)


def test_a_build_that_hits_the_file_size_limit_goes_on_afterwards(xrays, tmp_path):
    build = 'cache', 'build', xrays, '--size', '128', '--cache-path', 'cache'
    code, out, said = smlxray(*build, cwd=tmp_path, limit=500_000)
    assert code == 1 and said.startswith('smlxray: ') and len(said.splitlines()) == 1, said
    assert smlxray('cache', 'info', '--cache-path', 'cache', cwd=tmp_path)[1].count('complete') == 0
    assert smlxray(*build, cwd=tmp_path)[0] == 0
    code, out, _ = smlxray('cache', 'verify', '--cache-path', 'cache', cwd=tmp_path)
    assert code == 0 and 'sound' in out


def test_a_disk_that_may_not_be_written_is_one_sentence(xrays, tmp_path):
    (tmp_path/'file').write_text('no folder')
    code, _, said = smlxray('cache', 'build', xrays, '--size', '32', '--cache-path', 'file/cache', cwd=tmp_path)
    assert code == 1 and 'file' in said and len(said.splitlines()) == 1


def test_a_hospital_folder_is_checked_like_any_other(tmp_path):
    "A folder with a CSV: one image missing, one a bomb, one patient on two sides, one label contradicting."
    (tmp_path/'h').mkdir()
    for i in range(6): Image.fromarray(np.random.default_rng(i).integers(0, 256, (40, 40), dtype=np.uint8)).save(tmp_path/f'h/{i}.png')
    (tmp_path/'h/3.png').unlink()
    Image.new('L', (30_000, 30_000)).save(tmp_path/'h/4.png')
    rows = ['path,patient,split,No Finding,Edema', '0.png,a,train,1,1', '1.png,a,test,,1', '2.png,b,train,1,', '3.png,c,train,,1', '4.png,d,train,,1', '5.png,e,train,,0']
    (tmp_path/'h/labels.csv').write_text('\n'.join(rows) + '\n')
    code, out, err = smlxray('data', 'check', 'h', cwd=tmp_path)
    assert code == 1 and not err
    for word in ('missing image', 'unreadable image', 'pixels', 'patient in two parts', 'No Finding beside a finding'): assert word in out, (word, out)
    assert smlxray('data', 'check', 'h', '--no-images', cwd=tmp_path)[0] == 1


def test_a_path_that_climbs_out_is_refused(tmp_path):
    (tmp_path/'h').mkdir(); (tmp_path/'h/labels.csv').write_text('path,patient,Edema\n../secret.png,a,1\n')
    code, _, said = smlxray('data', 'check', 'h', cwd=tmp_path)
    assert code == 1 and 'secret.png' in said and len(said.splitlines()) == 1


def test_bench_writes_json(tmp_path):
    code, out, err = smlxray('bench', 'metrics', '--json', 'b.json', cwd=tmp_path)
    assert code == 0, err
    saved = json.loads((tmp_path/'b.json').read_text())
    assert {'case', 'method', 'baseline', 'ratio'} <= set(saved['rows'][0]) and 'auc_bootstrap' in out and str(tmp_path) not in str(saved)


@pytest.mark.parametrize('words, code, say', [
    (('data', 'check', 'nowhere'), 1, 'nowhere'), (('cache', 'build', '.', '--size', '0'), 1, '--size'), (('cache', 'build', '.', '--dataset', 'nihh'), 1, "dataset='nihh'"),
    (('cache', 'build', '.', '--dataset', 'no.yaml'), 1, 'no.yaml'), (('convert', 'nowhere', '--data', '.'), 1, ''), (('bench', 'nothing'), 2, 'nothing'), (('cache', 'build'), 2, 'path'),
    (('data', 'check', '.', '--views', 'side'), 2, 'side'), (('cache', 'info', '--cache-path', 'none'), 0, '')], ids=str)
def test_mistakes_get_a_sentence(words, code, say, tmp_path):
    got, out, said = smlxray(*words, cwd=tmp_path)
    assert got == code and say in said.lower() + said, (got, out, said)
    if code == 1: assert len(said.splitlines()) == 1 and said.startswith('smlxray: ')
    assert not list(tmp_path.iterdir()), 'a mistake left something behind'
