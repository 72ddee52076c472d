"""What .ci/audit.py makes of pip-audit's words. They were taken from pip-audit 2.10."""

import importlib.util
import json
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def audit():
    path = ROOT / ".ci" / "audit.py"
    spec = importlib.util.spec_from_file_location("audit", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def said(*dependencies):
    return json.dumps({"dependencies": dependencies, "fixes": []})


FINE = {"name": "click", "version": "8.2.0", "vulns": []}
OURS = {"name": "banditads", "skip_reason": "distribution marked as editable"}
SKIPPED = {
    "name": "rich",
    "skip_reason": "Dependency not found on PyPI and could not be audited: rich (14.0)",
}
FLAW = {"id": "PYSEC-2099-1", "fix_versions": [], "aliases": ["CVE-2099-1"], "description": "..."}
BAD = {"name": "falcon", "version": "2.0.0", "vulns": [FLAW]}
NO_NAME = "Traceback (most recent call last):\n...\nrequests.exceptions.ConnectionError: Max retries exceeded"


def test_a_finding_fails(audit):
    verdict = audit.judge(1, said(FINE, BAD, SKIPPED, OURS), "Found 1 known vulnerability in 1 package")
    assert not verdict.passed
    assert "falcon 2.0.0: PYSEC-2099-1, fixed in none" in verdict.said


def test_a_finding_that_was_judged_is_said_with_its_reason_and_passes(audit):
    audit.ACCEPTED["PYSEC-2099-1"] = "the guard in front refuses such requests"
    verdict = audit.judge(1, said(FINE, BAD), "")
    assert verdict.passed
    assert "accepted PYSEC-2099-1: the guard" in verdict.said
    assert not audit.judge(0, said(FINE), "").passed  # and is taken off the list when it is gone
    assert audit.judge(0, said(SKIPPED), "").passed  # but not when nobody could look


@pytest.mark.parametrize(
    ("code", "output", "errors"),
    [(0, said(SKIPPED, OURS), "No known vulnerabilities found"), (1, "", NO_NAME), (0, said(OURS), "")],
)
def test_what_could_not_be_looked_up_is_never_called_a_pass(audit, code, output, errors):
    verdict = audit.judge(code, output, errors)
    assert verdict.passed  # it stops nobody
    assert verdict.said.startswith("advisories could not be reached, dependencies not audited")
    assert "nothing known" not in verdict.said


def test_what_was_looked_up_in_part_says_which_part_was_not(audit):
    verdict = audit.judge(0, said(FINE, SKIPPED, OURS), "")
    assert verdict == (True, "1 of 2 dependencies audited, nothing known against them; NOT audited: rich")
    assert audit.judge(0, said(FINE, OURS), "").said.endswith("nothing known against them")


@pytest.mark.parametrize(
    ("code", "output", "errors"),
    [
        (2, "", "pip-audit: error: unrecognized arguments: --no-such"),
        (1, "", "No module named pip_audit"),
        (1, "rubbish", ""),
        (0, "", ""),
        (1, said(FINE), ""),
        (0, "[]", ""),
    ],
)
def test_an_audit_that_did_not_run_fails(audit, code, output, errors):
    assert not audit.judge(code, output, errors).passed


def test_every_exception_from_the_security_linter_has_its_code_and_its_reason():
    lines = [line for path in (ROOT / "banditads").rglob("*.py") for line in path.read_text().splitlines()]
    exceptions = [line for line in lines if "# nosec" in line]
    assert exceptions
    for line in exceptions:
        assert re.search(r"# nosec B\d{3} # \w+", line), line
    text = (ROOT / "pyproject.toml").read_text()
    for code in tomllib.loads(text)["tool"]["bandit"]["skips"]:
        assert re.search(rf"^# {code}: \w+", text, re.M)
