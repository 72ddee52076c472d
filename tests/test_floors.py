"""The table of floors in the README is true."""

import ast
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "banditads"


def building():
    """Modules from the ground up, as the README lists them."""
    rows = re.findall(r"^\| \d \| ([\w ]+) \|", (ROOT / "README.md").read_text(), re.M)
    return " ".join(rows).split()


def room(path):
    """The module or package of banditads that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path):
    """Modules of banditads that this file imports, wherever in it."""
    inside = path.relative_to(PACKAGE).parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            parts = list(inside[: len(inside) - node.level])
            parts += node.module.split(".") if node.module else []
            yield from [parts[0]] if parts else [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "banditads":
            yield from node.module.split(".")[1:2] or [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            yield from [a.name.split(".")[1] for a in node.names if a.name.startswith("banditads.")]


FILES = [path for path in PACKAGE.rglob("*.py") if room(path) != "__init__"]


def test_imports_only_go_down():
    order = building()
    seen = 0
    for path in FILES:
        for there in set(imports(path)) - {"__version__"}:
            here = room(path)
            assert order.index(there) <= order.index(here), f"{path}: {here} imports {there}"
            seen += there != here
    assert seen > 50


def test_every_module_stands_on_exactly_one_floor():
    assert sorted({room(path) for path in FILES}) == sorted(building())


def test_only_one_module_imports_hug_and_each_policy_its_own_library():
    for path in FILES:
        text = path.read_text()
        library = {"hug": "api", "vowpalwabbit": "policies", "pylibvw": "policies", "river": "policies"}
        for name, home in library.items():
            if re.search(rf"^\s*(import|from) {name}\b", text, re.M):
                assert room(path) == home, path


def test_a_start_does_not_import_setuptools_for_a_name_that_hug_asks_for():
    program = "import sys, banditads.server; print(*{'setuptools', 'distutils'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"
