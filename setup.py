"Packaging for smlxray: names, versions and requirements are read from settings.ini, as nbdev does."

import configparser
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

ROOT = Path(__file__).resolve().parent
RUNS = ('train_siamese', 'train_meta', 'evaluate_meta', 'real_xrays', 'compare')
RUN_NOTEBOOKS = [ROOT / 'nbs' / f'{name}.ipynb' for name in RUNS]
EXTRA = {  # folder in the package -> files of the checkout that go there
    '_presets': sorted((ROOT / 'config').glob('*.*')),
    '_presets/benchmark': sorted((ROOT / 'config' / 'benchmark').glob('*.yaml')),
    '_presets/tables': sorted((ROOT / 'config' / 'tables').glob('*.*')),
    '_notebooks': [path for path in RUN_NOTEBOOKS if path.exists()],
}
for folder in [ROOT / 'config' / 'example', *(ROOT / 'config' / 'example').rglob('*')]:
    if folder.is_dir():  # the small run that ships with the pages
        name = folder.relative_to(ROOT / 'config').as_posix()
        EXTRA[f'_presets/{name}'] = sorted(file for file in folder.iterdir() if file.is_file())

ini = configparser.ConfigParser(delimiters=['='], interpolation=None)
ini.read(ROOT / 'settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']
OPTIONAL = ('dicom', 'onnx', 'pretrained', 'app', 'cluster', 'remote')


class BuildWithExtras(build_py):
    "Copy presets and run notebooks into the wheel; a checkout keeps them in config/ and nbs/ only."

    def run(self):
        super().run()
        if getattr(self, 'editable_mode', False):
            return  # an editable install reads config/ and nbs/ themselves
        for folder, files in EXTRA.items():
            dest = Path(self.build_lib) / cfg['lib_path'] / folder
            shutil.rmtree(dest, ignore_errors=True)  # a removed preset must not survive in build/
            dest.mkdir(parents=True)
            for file in files:
                shutil.copyfile(file, dest / file.name)


class SdistWithExtras(sdist):
    "Put what setup.py reads, and what it copies, into the source archive."

    def make_distribution(self):
        files = [ROOT / 'settings.ini', ROOT / 'LICENSE']
        for extra in EXTRA.values():
            files += extra
        self.filelist.extend(str(file.relative_to(ROOT)) for file in files if file.exists())
        self.filelist.remove_duplicates()
        super().make_distribution()


def requirements(*extras: str) -> list[str]:
    "The requirements of some extras, as settings.ini lists them."
    return ' '.join(cfg[f'{extra}_requirements'] for extra in extras).split()


readme = ROOT / 'README.md'
setup(
    name=cfg['lib_name'],
    version=cfg['version'],
    description=cfg['description'],
    long_description=readme.read_text(encoding='utf-8') if readme.exists() else cfg['description'],
    long_description_content_type='text/markdown',
    license='MIT',
    author=cfg['author'],
    author_email=cfg['author_email'],
    url=cfg['git_url'],
    keywords=cfg['keywords'],
    classifiers=[
        'Development Status :: 3 - Alpha',
        'Intended Audience :: Science/Research',
        'Programming Language :: Python :: 3',
        'Typing :: Typed',
    ],
    packages=find_packages(include=['smlxray', 'smlxray.*']),
    package_data={'smlxray': ['py.typed'], 'smlxray.app': ['static/*']},
    python_requires='>=' + cfg['min_python'],
    install_requires=cfg['requirements'].split(),
    extras_require={
        **{extra: requirements(extra) for extra in OPTIONAL},
        'dev': requirements(*OPTIONAL, 'dev'),
    },
    entry_points={
        'console_scripts': ['smlxray=smlxray.cli:main'],
        # lets nbdev link `names` in prose to their page
        'nbdev': [f"{cfg['lib_name']}={cfg['lib_path']}._modidx:d"],
    },
    cmdclass={'build_py': BuildWithExtras, 'sdist': SdistWithExtras},
    zip_safe=False,
)
