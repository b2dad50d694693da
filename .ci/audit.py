"""Looks every pinned version up among the known vulnerabilities; `make audit`.

Exit status 1 where something is known. Where the advisory service cannot be reached, it says so and
passes: a build must not depend on somebody else's server, nor claim what it has not looked at.
"""

import json
import subprocess
import sys
from pathlib import Path

CONSTRAINTS = Path(__file__).resolve().parents[1] / "constraints.txt"
COMMAND = ("--no-deps", "--disable-pip", "--format", "json", "--progress-spinner", "off")


def main() -> int:
    """Audits, prints what was found, and returns the exit status."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pip_audit", "--requirement", str(CONSTRAINTS), *COMMAND],
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
    except subprocess.TimeoutExpired:
        return not_audited("the advisory service did not answer within 300 s")
    return judge(done.stdout, done.stderr)


def judge(output: str, errors: str) -> int:
    """Reads what pip-audit printed, and returns the exit status."""
    try:
        dependencies = json.loads(output)["dependencies"]
    except (ValueError, KeyError, TypeError):
        last = (errors.strip().splitlines() or ["pip-audit said nothing"])[-1]
        return not_audited(last)
    found = [(one, fault) for one in dependencies for fault in one.get("vulns", ())]
    skipped = [one for one in dependencies if "skip_reason" in one]
    for one, fault in found:
        fixed = ", ".join(fault.get("fix_versions", ())) or "no version yet"
        print(f"{one['name']} {one['version']}: {fault['id']}, fixed in {fixed}")
    audited = len(dependencies) - len(skipped)
    if found:
        print(f"{len(found)} known vulnerabilities in {audited} audited packages")
        return 1
    if skipped:
        reason = f"{len(skipped)} of {len(dependencies)} packages: {skipped[0]['skip_reason']}"
        if not audited:
            return not_audited(reason)
        print(f"not audited: {reason}")
    print(f"audited: {audited} packages, no known vulnerabilities")
    return 0


def not_audited(reason: str) -> int:
    """Says that nothing is known, which is no failure."""
    print(f"not audited: {reason}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
