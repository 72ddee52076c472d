"""Asks pip-audit about everything that is installed beside it; says what came of it in one line.

pip-audit exits 0 and says "no known vulnerabilities" for what it could not look up at all, so its words are
read here: a finding fails, and advisories that could not be reached are never called a pass.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import NamedTuple

# Advisory -> why it does no harm here. hug and falcon 2 get no releases any more: a finding in one of them
# has no fix to go to, so it is judged, defended against in front of them, and written down here.
ACCEPTED: dict[str, str] = {}

UNREACHED = "advisories could not be reached, dependencies not audited"
NETWORK = ("ConnectionError", "ConnectTimeout", "ReadTimeout", "ProxyError", "SSLError", "Could not connect")


class Verdict(NamedTuple):
    """Whether to go on, and what to say."""

    passed: bool
    said: str


def judge(code: int, output: str, errors: str) -> Verdict:  # noqa: PLR0911
    """What pip-audit's exit code and words mean."""
    try:
        found = json.loads(output)["dependencies"]
    except (ValueError, LookupError, TypeError):
        last = (errors.strip().splitlines() or ["it said nothing"])[-1]
        if code == 1 and any(word in errors for word in NETWORK):
            return Verdict(True, f"{UNREACHED} ({last[:100]})")
        return Verdict(False, f"pip-audit failed with exit code {code}: {last}")
    found = [each for each in found if each["name"] != "banditads"]
    skipped = sorted(each["name"] for each in found if "skip_reason" in each)
    flaws = {
        flaw[
            "id"
        ]: f"{each['name']} {each['version']}: {flaw['id']}, fixed in {flaw['fix_versions'] or 'none'}"
        for each in found
        for flaw in each.get("vulns", ())
    }
    bad = [said for id, said in flaws.items() if id not in ACCEPTED]
    if bad:
        return Verdict(False, f"{len(bad)} known vulnerabilities: {'; '.join(bad)}")
    if code not in (0, 1) or (code and not flaws):
        return Verdict(False, f"pip-audit failed with exit code {code}")
    if len(skipped) == len(found):
        return Verdict(True, UNREACHED)
    if stale := ACCEPTED.keys() - flaws.keys():
        return Verdict(False, f"accepted, but found no more: {', '.join(sorted(stale))}")
    accepted = "".join(f"; accepted {id}: {ACCEPTED[id]}" for id in flaws)
    rest = f"; NOT audited: {', '.join(skipped)}" if skipped else ""
    known = f"{len(found) - len(skipped)} of {len(found)} dependencies audited, nothing known against them"
    return Verdict(True, known + accepted + rest)


if __name__ == "__main__":
    command = [sys.executable, "-m", "pip_audit", "--skip-editable", "--format", "json"]
    done = subprocess.run(
        [*command, "--progress-spinner", "off"], capture_output=True, text=True, timeout=600, check=False
    )
    verdict = judge(done.returncode, done.stdout, done.stderr)
    print(verdict.said)
    sys.exit(not verdict.passed)
