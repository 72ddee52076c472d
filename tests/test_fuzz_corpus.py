"""What fuzzing once found stays found: every input that is kept, through its target, without the fuzzer."""

import importlib.util
from pathlib import Path

import pytest

FUZZ = Path(__file__).parent.parent / "fuzz"


def _targets():
    spec = importlib.util.spec_from_file_location("fuzz_targets", FUZZ / "targets.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def targets():
    return _targets().TARGETS


NAMES = sorted(folder.name for folder in (FUZZ / "corpus").iterdir())


def test_every_target_has_a_corpus(targets):
    assert sorted(targets) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_no_input_that_was_kept_breaks_a_promise(name, targets):
    inputs = sorted((FUZZ / "corpus" / name).iterdir())
    assert inputs
    for each in inputs:
        try:
            targets[name](each.read_bytes())
        except Exception as error:
            raise AssertionError(f"{name} {each.name}") from error


def test_the_corpus_is_small():
    files = [each for each in (FUZZ / "corpus").rglob("*") if each.is_file()]
    assert sum(each.stat().st_size for each in files) < 500_000
