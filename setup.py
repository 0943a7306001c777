"Packaging for smlxray: names, versions and requirements are read from settings.ini, the file that nbdev reads too."

import configparser
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

ROOT = Path(__file__).resolve().parent
RUNS = (
    'train_siamese',
    'train_meta',
    'evaluate_meta',
    'real_xrays',
    'compare',
)  # run notebooks: shipped where they exist
EXTRA = {
    '_presets': sorted((ROOT / 'config').glob('*.yaml')),
    '_presets/tables': sorted((ROOT / 'config' / 'tables').glob('*.yaml')),
    '_notebooks': [p for n in RUNS if (p := ROOT / 'nbs' / f'{n}.ipynb').exists()],
}

cfg = configparser.ConfigParser(delimiters=['='], interpolation=None)
cfg.read(ROOT / 'settings.ini', encoding='utf-8')
cfg = cfg['DEFAULT']
OPTIONAL = ('dicom', 'onnx', 'pretrained', 'app')


class BuildWithExtras(build_py):
    "Copy the presets and the run notebooks into the wheel; a checkout keeps one copy of each, in config/ and nbs/."

    def run(self):
        super().run()
        if getattr(self, 'editable_mode', False):
            return  # an editable install reads config/ and nbs/ themselves
        for folder, files in EXTRA.items():
            dest = Path(self.build_lib) / cfg['lib_path'] / folder
            shutil.rmtree(
                dest, ignore_errors=True
            )  # a preset that was removed must not survive in build/
            dest.mkdir(parents=True)
            for f in files:
                shutil.copyfile(f, dest / f.name)


class SdistWithExtras(sdist):
    "Put what setup.py reads, and what it copies, into the source archive."

    def make_distribution(self):
        files = [ROOT / 'settings.ini', ROOT / 'LICENSE', *(f for fs in EXTRA.values() for f in fs)]
        self.filelist.extend(str(f.relative_to(ROOT)) for f in files if f.exists())
        self.filelist.remove_duplicates()
        super().make_distribution()


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
    ],
    packages=find_packages(include=['smlxray', 'smlxray.*']),
    python_requires='>=' + cfg['min_python'],
    install_requires=cfg['requirements'].split(),
    extras_require={
        **{extra: cfg[f'{extra}_requirements'].split() for extra in OPTIONAL},
        'dev': ' '.join(cfg[f'{extra}_requirements'] for extra in (*OPTIONAL, 'dev')).split(),
    },
    entry_points={
        'console_scripts': ['smlxray=smlxray.cli:main'],
        'nbdev': [f"{cfg['lib_name']}={cfg['lib_path']}._modidx:d"],
    },  # lets nbdev link `names` in prose to their page
    cmdclass={'build_py': BuildWithExtras, 'sdist': SdistWithExtras},
    zip_safe=False,
)
