"""Known vulnerabilities in the installed packages, by pip-audit. No answer is not a clean bill.

Exit codes: 0 asked, none known; 1 asked, some known; 2 no advisory service answered.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

SERVICES = ("osv", "pypi")


def main(pip_audit: str) -> int:
    for service in SERVICES:
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder) / "report.json"
            command = [pip_audit, "--local", "--skip-editable", "--progress-spinner", "off"]
            command += ["--timeout", "20", "--vulnerability-service", service]
            command += ["--format", "json", "--output", str(report)]
            ran = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
            # The report is written only after every package was looked up.
            answered = report.is_file() and report.stat().st_size > 0
            packages = json.loads(report.read_text("utf-8"))["dependencies"] if answered else []
        asked = [package for package in packages if "vulns" in package]
        if asked:
            return tell(asked, len(packages) - len(asked), service)
        words = ran.stderr.strip().splitlines() or ["it knows none of the packages"]
        print(f"audit: advisory service {service!r} did not answer: {words[-1]}", file=sys.stderr)
    print(
        "audit: NOT AUDITED: no advisory service answers from here; "
        "run `make audit` where the network reaches one",
        file=sys.stderr,
    )
    return 2


def tell(asked: list[dict[str, object]], unknown: int, service: str) -> int:
    found = 0
    for package in asked:
        vulnerabilities = package["vulns"]
        assert isinstance(vulnerabilities, list)
        for entry in vulnerabilities:
            found += 1
            fixed = ", ".join(entry["fix_versions"]) or "no release yet"
            print(f"{package['name']} {package['version']}: {entry['id']}, fixed in {fixed}")
    print(
        f"audit: {len(asked)} packages looked up with {service}, {found} known vulnerabilities, "
        f"{unknown} packages that the service does not know"
    )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
