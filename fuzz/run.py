"""Fuzz one target: `python fuzz/run.py TARGET [libFuzzer's options and corpus folders]`."""

import sys

import atheris

with atheris.instrument_imports(include=["banditads"]):
    import targets

if __name__ == "__main__":
    name = sys.argv.pop(1)
    atheris.Setup(sys.argv, targets.TARGETS[name])
    atheris.Fuzz()
