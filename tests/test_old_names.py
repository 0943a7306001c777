"What release 0.1 called by name still answers in 0.2, or says what to use instead."

import importlib
import warnings
from pathlib import Path

import pytest
import yaml

LISTED = yaml.safe_load(Path(__file__).with_name('names_of_0_1.yaml').read_text(encoding='utf-8'))
NAMES = {module: names.replace(',', '').split() for module, names in LISTED.items()}


def asked(module, name):
    "Ask a module for a name as a user does, and tell how the module sees it."
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter('always')
        found = hasattr(module, name)
    sentences = [str(w.message) for w in told if w.category is DeprecationWarning]
    if found and name in vars(module): return 'at home'
    if any(f'{module.__name__}.{name} is now ' in sentence for sentence in sentences):
        return 'moved' if found else 'moved to nowhere'
    if any(f'{module.__name__}.{name} ended with 0.1: ' in sentence for sentence in sentences):
        return 'gone'
    return 'silent'


@pytest.mark.parametrize('name', NAMES)
def test_old_names_answer_or_say_what_to_use(name):
    module = importlib.import_module(f'smlxray.{name}')
    seen = {old: asked(module, old) for old in NAMES[name]}
    lost = {old: how for old, how in seen.items() if how not in ('at home', 'moved', 'gone')}
    assert not lost, f'smlxray.{name}: {lost}'


def test_a_name_that_never_was_is_an_ordinary_error():
    module = importlib.import_module('smlxray.study')
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        module.nonsense  # noqa: B018


def test_import_of_a_name_that_is_gone_says_what_to_use():
    with pytest.warns(DeprecationWarning, match='smlxray.study.ask ended with 0.1: '):
        with pytest.raises(ImportError):
            from smlxray.study import ask  # noqa: F401
