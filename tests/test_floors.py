"No dependency may be older than a security advisory that we know of: `floors.csv` lists them."

import configparser
import csv
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.light  # needs no torch

ROOT = Path(__file__).resolve().parents[1]
FLOORS = [*csv.DictReader((ROOT / 'tests' / 'floors.csv').read_text().splitlines())]
MARKERS = {'': '', '>=3.11': "python_version>='3.11'", '<3.11': "python_version<'3.11'"}


def number(version):
    "A version as a tuple that can be compared."
    return tuple(int(part) for part in re.findall(r'\d+', version))


def requirements():
    "All requirements of settings.ini: package -> list of (floor, marker)."
    ini = configparser.ConfigParser(delimiters=['='], interpolation=None)
    ini.read(ROOT / 'settings.ini', encoding='utf-8')
    found = {}
    for key, words in ini['DEFAULT'].items():
        if not key.endswith('requirements'): continue
        for word in words.split():
            wanted, _, marker = word.partition(';')
            package, floor = re.match(r'([\w-]+)(?:[=>]=([\d.]+))?', wanted).groups()
            found.setdefault(package, []).append((floor or '0', marker))
    return found


def tested():
    "The versions that constraints.txt pins: package -> version."
    lines = (ROOT / 'constraints.txt').read_text(encoding='utf-8').splitlines()
    pins = [re.match(r'([\w.-]+)==([\d.]+)', line) for line in lines]
    return {p[1].lower().replace('_', '-'): p[2] for p in pins if p}


@pytest.mark.parametrize('row', FLOORS, ids=lambda row: row['advisory'])
def test_no_version_with_a_known_hole_is_allowed(row):
    for floor, marker in requirements()[row['package']]:
        if marker and marker != MARKERS[row['python']]: continue
        assert number(floor) >= number(row['floor']), f"{row['package']}>={floor}: {row['why']}"


@pytest.mark.parametrize('row', FLOORS, ids=lambda row: row['advisory'])
def test_the_tested_version_is_above_the_hole(row):
    if row['python'] == '<3.11': return  # constraints.txt is for 3.11 and newer
    assert number(tested()[row['package']]) >= number(row['floor'])


def test_the_tested_versions_are_above_all_floors():
    pins = tested()
    for package, asked in requirements().items():
        for floor, marker in asked:
            if package not in pins or '<' in marker: continue
            assert number(pins[package]) >= number(floor), package
