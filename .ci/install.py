"""Install smlxray for development into an environment: `python .ci/install.py .venv`.

Torch comes in two builds: for GPUs, with 5 GB of libraries, and for CPUs, a tenth of that. The
default index gives a Linux machine the first, GPU or not. So if no GPU is seen we ask PyTorch's
own index for the second. `TORCH_INDEX` chooses another index; empty, it means the default one.
`CONSTRAINTS` names a file of versions to keep to; empty, it means the newest that fit.
"""

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CPU_INDEX = 'https://download.pytorch.org/whl/cpu'


def sees_gpu() -> bool:
    "Tell whether NVIDIA's tool finds a GPU."
    try:
        return subprocess.run(['nvidia-smi', '-L'], capture_output=True).returncode == 0
    except OSError:
        return False


def torch_index(environ: Mapping[str, str], platform: str = sys.platform) -> str | None:
    "Choose the index that torch is taken from; None for the default one."
    if 'TORCH_INDEX' in environ: return environ['TORCH_INDEX'] or None
    if platform != 'linux' or sees_gpu(): return None  # elsewhere the default build is the CPU's
    return CPU_INDEX


def pinned(constraints: Path | None, package: str, build: str = '') -> str:
    "The requirement of a package: with the version of the constraints, if these hold here."
    text = constraints.read_text(encoding='utf-8') if constraints else ''
    found = re.search(rf'^{package}==([^\s;+]+)', text, flags=re.M)
    return f'{package}=={found[1]}{build}' if found and sys.version_info >= (3, 11) else package


def pip(python: Path, *words: str, silent: bool = False) -> bool:
    "Run pip's install in an environment; tell whether it went well."
    command = [str(python), '-m', 'pip', 'install', '--disable-pip-version-check', '--no-input']
    command += ['--quiet', *words]
    return subprocess.run(command, cwd=ROOT, capture_output=silent).returncode == 0


def install_torch(python: Path, index: str, constraints: Path | None) -> bool:
    "Take torch and torchvision, without what they need, from an index; wait briefly for PyTorch's."
    ours = index == CPU_INDEX  # our own choice, so a failure is no error
    names = [pinned(constraints, n, '+cpu' if ours else '') for n in ('torch', 'torchvision')]
    quick = ['--retries', '0', '--timeout', '10'] if ours else []
    return pip(python, '--no-deps', *quick, '--index-url', index, *names, silent=ours)


def main(venv: str, environ: Mapping[str, str] = os.environ) -> int:
    "Install everything; return 0 if all went well."
    python = Path(venv).absolute() / 'bin' / 'python'
    chosen = environ.get('CONSTRAINTS', 'constraints.txt')
    constraints = ROOT / chosen if chosen else None
    index = torch_index(environ)
    if index:
        print(f'Taking torch from {index} (another: make TORCH_INDEX=URL).', flush=True)
        if not install_torch(python, index, constraints):
            if index != CPU_INDEX: return 1
            version = '.'.join(map(str, sys.version_info[:2]))
            why = f'{CPU_INDEX} gave no CPU build of torch for Python {version}'
            print(f'{why}; taking the default build instead, which is larger.', flush=True)
    keep_to = ['-c', str(constraints)] if constraints else []
    if pip(python, *keep_to, '-e', '.[dev]'): return 0
    if constraints:
        how = 'make CONSTRAINTS= takes the newest versions that fit'
        print(f'The versions of {chosen} could not be installed here; {how}.', file=sys.stderr)
    return 1


if __name__ == '__main__':
    sys.exit(main(sys.argv[1]))
