"""Facts of the machine: from nvidia-smi where it is there, and of versions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from qvae_trt.bench.machine import machine_facts, nvidia_smi, parse_nvidia_smi, version_facts

if TYPE_CHECKING:
    from pathlib import Path


def test_nvidia_smi_is_read_and_gaps_left_out() -> None:
    facts = parse_nvidia_smi("580.65.06, 143771, 1980, 3201, 1980, 700.00, 31")
    assert facts["driver"] == "580.65.06"
    assert facts["gpu_memory_mib"] == 143771
    assert facts["power_limit_w"] == 700.0
    assert parse_nvidia_smi("580.1, [N/A], 210") == {"driver": "580.1", "clock_sm_mhz": 210}


@pytest.mark.parametrize("script", ["exit 9", "echo", "echo 580.1, 80000"])
def test_nvidia_smi_that_fails_or_says_little(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    facts = nvidia_smi("GPU-0")
    assert facts.get("gpu_memory_mib") == (80000 if "580" in script else None)


def test_without_nvidia_smi(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert nvidia_smi() == {}


def test_facts_of_this_machine() -> None:
    import torch

    facts = machine_facts("cpu")
    assert facts["cpu"]
    assert isinstance(facts["cpu_count"], int)
    assert facts["cpu_count"] >= 1
    assert "gpu" not in facts
    versions = version_facts("cpu")
    assert versions["torch"] == torch.__version__
    assert {"python", "diffusers", "onnxruntime"} <= set(versions)
