"""What CI concludes from what pip-audit prints."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

FILE = Path(__file__).resolve().parents[1] / ".ci" / "audit.py"


def judge(output: str, errors: str = "") -> int:
    spec = importlib.util.spec_from_file_location("audit", FILE)
    assert spec is not None
    assert spec.loader is not None
    audit = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(audit)
    return int(audit.judge(output, errors))


GOOD = {"name": "good", "version": "1.0", "vulns": []}
BAD = {"name": "bad", "version": "1.0", "vulns": [{"id": "CVE-1", "fix_versions": ["1.1"]}]}
SKIPPED = {"name": "odd", "skip_reason": "Dependency not found on PyPI"}


@pytest.mark.parametrize(
    ("dependencies", "status", "said"),
    [
        ([GOOD, GOOD], 0, "audited: 2 packages, no known vulnerabilities"),
        ([GOOD, BAD], 1, "bad 1.0: CVE-1, fixed in 1.1"),
        ([SKIPPED, BAD], 1, "1 known vulnerabilities in 1 audited packages"),
        ([SKIPPED, SKIPPED], 0, "not audited: 2 of 2 packages: Dependency not found on PyPI"),
        ([SKIPPED, GOOD], 0, "not audited: 1 of 2 packages"),
    ],
)
def test_what_is_concluded(
    dependencies: list[dict[str, Any]], status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert judge(json.dumps({"dependencies": dependencies})) == status
    printed = capsys.readouterr().out
    assert said in printed
    if SKIPPED in dependencies and GOOD not in dependencies and BAD not in dependencies:
        assert "no known" not in printed


def test_without_the_service_it_says_so_and_passes(capsys: pytest.CaptureFixture[str]) -> None:
    assert judge("", "Traceback\nConnectionError: pypi.org cannot be reached\n") == 0
    assert capsys.readouterr().out == "not audited: ConnectionError: pypi.org cannot be reached\n"
