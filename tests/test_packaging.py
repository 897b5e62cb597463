"""What is shipped, and that it works where the repository is not."""

from __future__ import annotations

import email
import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import qvae_trt

BIN = Path(sys.executable).parent
# Everything in the wheel that is no module, but for the dist-info folder.
DATA = {
    "qvae_trt/py.typed",
    "qvae_trt/data/bounds.toml",
    "qvae_trt/data/builds.json",
    "qvae_trt/data/latency.schema.json",
    "qvae_trt/data/pictures/README.md",
    "qvae_trt/data/pictures/astronaut.jpg",
    "qvae_trt/data/profiles/kinds.toml",
    "qvae_trt/data/profiles/lightx2v.toml",
    "qvae_trt/data/profiles/nine-2.1.toml",
    "qvae_trt/data/profiles/nine.toml",
    "qvae_trt/data/profiles/static-2.1.toml",
    "qvae_trt/data/profiles/static.toml",
    "qvae_trt/data/templates/chart.svg.jinja",
    "qvae_trt/data/templates/colours.svg.jinja",
    "qvae_trt/data/templates/config.pbtxt.jinja",
    "qvae_trt/data/templates/latency.md.jinja",
    "qvae_trt/data/templates/page.css",
    "qvae_trt/data/templates/page.html.jinja",
    "qvae_trt/data/templates/parity.md.jinja",
    "qvae_trt/data/templates/words.txt.jinja",
    "qvae_trt/data/tiny/config.json",
    "qvae_trt/data/tiny/diffusion_pytorch_model.safetensors",
}


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=root, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def test_wheel_content(wheel: Path, root: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    modules = {str(path.relative_to(root)) for path in (root / "qvae_trt").rglob("*.py")}
    info = f"qvae_trt-{qvae_trt.__version__}.dist-info"
    metadata = {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE"}
    assert names == modules | DATA | {f"{info}/{name}" for name in metadata}


def test_wheel_is_small(wheel: Path) -> None:
    """The bundled model is at most 8 MB; nothing else weighs."""
    assert wheel.stat().st_size < 9_000_000


def test_wheel_metadata(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith("/METADATA"))
        found = email.message_from_bytes(archive.read(name))
    assert found["Name"] == "qvae-trt"
    assert found["Version"] == qvae_trt.__version__
    assert found["License-Expression"] == "Apache-2.0"
    assert found["Requires-Python"] == ">=3.11"
    requires = found.get_all("Requires-Dist") or []
    always = {re.split(r"[><=; ]", line)[0] for line in requires if "extra ==" not in line}
    assert always == set(
        "torch diffusers onnx onnxscript onnxruntime polygraphy typer rich numpy safetensors "
        "pillow jinja2 pyyaml".split()
    )
    extras = {extra: [] for extra in ("rtx", "gpu", "dev", "docs")}
    for line in requires:
        if "extra ==" in line:
            extras[line.rpartition("'")[0].rpartition("'")[2]].append(re.split(r"[><=; ]", line)[0])
    assert extras["rtx"] == ["tensorrt-rtx"]
    # Not onnxruntime-gpu, which would share the folder of the onnxruntime that is always there.
    assert extras["gpu"] == ["tensorrt"]


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with nothing but the wheel; what it depends on is this environment's."""
    folder = tmp_path_factory.mktemp("installed") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install"]
    install += ["--quiet", "--no-deps", "--no-index", "--disable-pip-version-check", str(wheel)]
    subprocess.run(install, check=True)
    site = next((folder / "lib").glob("python*/site-packages"))
    # A .pth is read in site-packages only, not in the folders that it names: the editable
    # install of this environment stays out.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


def elsewhere(*command: object, cwd: Path) -> str:
    env = {**os.environ, "PYTHONPATH": "", "HF_HUB_OFFLINE": "1"}
    ran = subprocess.run(
        list(map(str, command)), cwd=cwd, env=env, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_the_wheel_runs_from_another_folder(installed: Path, tmp_path: Path) -> None:
    code = "import qvae_trt; print(qvae_trt.__file__)"
    place = elsewhere(installed / "python", "-c", code, cwd=tmp_path)
    assert Path(place).is_relative_to(installed.parent)
    listed = json.loads(elsewhere(installed / "qvae", "profiles", "--json", cwd=tmp_path))
    assert len(listed["static"]) == 7
    assert len(listed["profiles"]) == 9


def test_the_wheel_has_a_model(installed: Path, tmp_path: Path) -> None:
    """The bundled model loads, offline."""
    code = "from qvae_trt.model import load_model; print(load_model('bundled:tiny').z_dim)"
    assert elsewhere(installed / "python", "-c", code, cwd=tmp_path) == "16\n"


# --- releases ------------------------------------------------------------------------------------


def test_the_changelog_dates_this_version(root: Path) -> None:
    headings = re.findall(r"^## \[(.+?)\](.*)$", (root / "CHANGELOG.md").read_text("utf-8"), re.M)
    released = [(name, day) for name, day in headings if name != "Unreleased"]
    assert released[0][0] == qvae_trt.__version__
    assert all(re.fullmatch(r" - \d{4}-\d\d-\d\d", day) for _, day in released)


def test_a_tag_is_published_without_a_token(root: Path) -> None:
    folder = root / ".github" / "workflows"
    workflow = yaml.safe_load((folder / "publish.yml").read_text("utf-8"))
    assert workflow[True] == {"push": {"tags": ["v*"]}}, "YAML reads the key `on` as true"
    assert workflow["permissions"] == {"contents": "read"}
    package = workflow["jobs"]["package"]
    assert package["permissions"] == {"id-token": "write"}
    assert package["environment"] == "release"
    assert [step.get("with") for step in package["steps"][1:]] == [None], "no user, no password"
    ran = [step.get("run", "") for step in workflow["jobs"]["build"]["steps"]]
    assert any("GITHUB_REF_NAME" in line for line in ran), "the tag is compared with the version"
    targets = (root / "Makefile").read_text("utf-8")
    for line in ran:
        for target in re.findall(r"^make ([a-z-]+)", line):
            assert re.search(rf"^{target}:", targets, re.M), target
    for path in folder.glob("*.yml"):
        assert "secrets." not in path.read_text("utf-8"), path.name


# --- the set-up ----------------------------------------------------------------------------------


def test_constraints_pin_what_is_needed(root: Path) -> None:
    lines = (root / "constraints.txt").read_text("utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", pin) for pin in pins), pins
    names = {normal(pin.split("==")[0]) for pin in pins}
    assert "torch==2.13.0" in pins
    with (root / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["dev"], *extras["rtx"], *extras["docs"]]
    assert {normal(re.split(r"[><=;\[ ]", line)[0]) for line in wanted} <= names


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def make_install(root: Path, folder: Path, python: Path) -> subprocess.CompletedProcess[str]:
    """`make install` in a folder that has what it reads, with this Python."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (folder / name).write_bytes((root / name).read_bytes())
    outer = {"MAKEFLAGS", "MAKELEVEL", "MFLAGS"}
    return subprocess.run(
        ["make", "install", f"PYTHON={python}"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={name: value for name, value in os.environ.items() if name not in outer},
    )


def test_an_old_python_is_refused_with_the_command_that_helps(root: Path, tmp_path: Path) -> None:
    old = tmp_path / "oldpython"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && { echo Python 3.9.2; exit 0; }\nexit 1\n')
    old.chmod(0o755)
    ran = make_install(root, tmp_path, old)
    assert ran.returncode != 0
    assert "found: Python 3.9.2" in ran.stderr
    assert "make PYTHON=" in ran.stderr
    assert not (tmp_path / ".venv").exists()


def test_the_secret_scan_finds_a_key(root: Path, tmp_path: Path) -> None:
    planted = tmp_path / "settings.py"
    planted.write_text('key = "AKIA' + 'QWERTYUIOPASDFGH"\n')
    scan = [str(root / ".ci" / "secrets"), str(BIN), str(planted)]
    found = subprocess.run(scan, cwd=root, capture_output=True, text=True, check=False)
    assert found.returncode == 1
    assert "AWS Access Key" in found.stdout
    planted.write_text('digest = "' + "0123456789abcdef" * 4 + '"\n')
    assert subprocess.run(scan, cwd=root, check=False).returncode == 0


_KNOWN = {"name": "a", "version": "1", "vulns": []}
_BAD = {"name": "b", "version": "2", "vulns": [{"id": "CVE-1", "fix_versions": ["3"]}]}
_SKIPPED = {"name": "c", "skip_reason": "not found"}


@pytest.mark.parametrize(
    ("packages", "code", "words"),
    [
        ([_KNOWN, _SKIPPED], 0, "1 packages looked up with osv, 0 known vulnerabilities, 1"),
        ([_KNOWN, _BAD], 1, "b 2: CVE-1, fixed in 3"),
        ([_SKIPPED], 2, "NOT AUDITED"),
        (None, 2, "NOT AUDITED"),
    ],
)
def test_the_audit_tells_no_answer_from_a_clean_one(
    root: Path, tmp_path: Path, packages: list[object] | None, code: int, words: str
) -> None:
    fake = tmp_path / "pip-audit"
    fake.write_text(
        f"#!{sys.executable}\nimport json, sys\npackages = {packages!r}\n"
        "if packages is None:\n    sys.exit('ConnectionError: no route')\n"
        "out = sys.argv[sys.argv.index('--output') + 1]\n"
        "json.dump({'dependencies': packages}, open(out, 'w'))\n"
    )
    fake.chmod(0o755)
    audit = [sys.executable, str(root / ".ci" / "audit.py"), str(fake)]
    ran = subprocess.run(audit, capture_output=True, text=True, check=False)
    assert ran.returncode == code
    assert words in ran.stdout + ran.stderr
