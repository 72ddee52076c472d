"""What the documentation says is so."""

import json
import os
import re
from pathlib import Path

import pytest
from conftest import ids

from banditads import api, policies, recommenders, settings
from banditads.engine import Engine
from banditads.journal import connect
from banditads.state import State

ROOT = Path(__file__).parent.parent
PAGES = [
    *ROOT.glob("*.md"),
    *ROOT.glob("docs/*.md"),
    *ROOT.glob("deploy/*.md"),
    *ROOT.glob("benchmarks/*.md"),
]


def test_the_first_two_shell_blocks_of_the_readme_are_one_line_each():
    blocks = re.findall(r"^```sh\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    serve, test = (block.strip().splitlines() for block in blocks[:2])

    assert len(serve) == len(test) == 1
    assert serve[0].endswith("banditads serve --catalog demo")
    assert test[0].endswith("pytest")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_settings_table_is_the_settings():
    assert (ROOT / "docs/settings.md").read_text() == settings.page(), (
        "run: python -c 'from banditads import settings; print(settings.page(), end=\"\")' > docs/settings.md"
    )


def test_the_routes_table_has_every_route():
    app = api.build(Engine(State("uniform"), connect("memory:"), ids=ids()))
    told = set(re.findall(r"`([A-Z]+ /[^`?]*)`", (ROOT / "docs/http.md").read_text()))

    assert told >= {f"{route.method} {route.path}" for route in app.application.routes.all}


def test_the_policies_table_has_every_policy():
    page = (ROOT / "docs/policies.md").read_text().partition("## Options")[0]
    told = re.findall(r"^\| `(\w+)` \|", page, re.M)

    assert sorted(told) == policies.names()


def test_the_recommenders_table_has_every_recommender():
    page = (ROOT / "docs/catalogs.md").read_text().partition("## Options")[0]
    told = re.findall(r"^\| `(\w+)` \|", page, re.M)

    assert sorted(told) == recommenders.names()


def table_of_options(kind):
    """What follows the heading "Options" on the page of a plug-board."""
    lines = []
    for name in kind.names():
        if options := kind.options(name):
            lines += [f"### {name}", "", "| option | default | |", "|---|---|---|"]
            lines += [f"| `{each.name}` | {json.dumps(each.default)} | {each.help} |" for each in options]
            lines.append("")
    return "\n".join(lines)


@pytest.mark.parametrize(("file", "kind"), [("policies", policies), ("catalogs", recommenders)])
def test_the_tables_of_options_are_the_options(file, kind):
    path = ROOT / f"docs/{file}.md"
    page = path.read_text()
    if os.environ.get("WRITE_DOCS"):
        page = page.partition("## Options\n\n")[0] + "## Options\n\n" + table_of_options(kind)
        path.write_text(page)

    assert page.partition("## Options\n\n")[2] == table_of_options(kind), "run this test with WRITE_DOCS=1"


def test_every_test_that_the_guarantees_name_exists():
    page = (ROOT / "docs/guarantees.md").read_text()
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", page)

    assert len(named) > 25
    for file, test in named:
        text = (ROOT / file).read_text()
        assert f"def {test}(" in text or not test, f"{file}::{test}"
    assert "@" not in page  # a figure that was to be filled in
