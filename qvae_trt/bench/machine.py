"""What the figures were measured on. Nothing here needs a GPU; what cannot be learnt is left
out.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import torch

from qvae_trt.bench.results import Fact
from qvae_trt.version import __version__

_QUERY = (
    ("driver", "driver_version"),
    ("gpu_memory_mib", "memory.total"),
    ("clock_sm_mhz", "clocks.sm"),
    ("clock_memory_mhz", "clocks.mem"),
    ("clock_sm_max_mhz", "clocks.max.sm"),
    ("power_limit_w", "power.limit"),
    ("temperature_c", "temperature.gpu"),
)


def machine_facts(device: str) -> dict[str, Fact]:
    """Names, sizes and clocks of this machine. `device` is "cuda" or "cpu"."""
    facts: dict[str, Fact] = {
        "os": f"{platform.system()} {platform.release()}",
        "arch": platform.machine(),
        "cpu": cpu_name(),
        "cpu_count": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "torch_threads": torch.get_num_threads(),
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        facts["gpu"] = properties.name
        facts["gpu_memory_bytes"] = int(properties.total_memory)
        facts["compute_capability"] = f"{properties.major}.{properties.minor}"
        facts["multiprocessors"] = int(properties.multi_processor_count)
        facts |= nvidia_smi(gpu_id())
    return {name: value for name, value in facts.items() if value is not None}


def gpu_id() -> str | None:
    """The current GPU as `nvidia-smi --id` takes it; None where torch does not know."""
    uuid = getattr(torch.cuda.get_device_properties(torch.cuda.current_device()), "uuid", None)
    return None if uuid is None else f"GPU-{uuid}"


def nvidia_smi(gpu: str | None = None) -> dict[str, Fact]:
    """Driver, memory, clocks, power limit of one GPU; empty where `nvidia-smi` is missing or does
    not answer.
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    query = f"--query-gpu={','.join(name for _, name in _QUERY)}"
    command = [program, query, "--format=csv,noheader,nounits"]
    command += [] if gpu is None else [f"--id={gpu}"]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    lines = ran.stdout.strip().splitlines()
    return parse_nvidia_smi(lines[0]) if lines else {}


def parse_nvidia_smi(line: str) -> dict[str, Fact]:
    """One CSV line of the query above; "[N/A]" and the like are left out."""
    facts: dict[str, Fact] = {}
    for (name, _), text in zip(_QUERY, line.split(","), strict=False):
        value = text.strip()
        if name == "driver":
            facts[name] = value
            continue
        with suppress(ValueError):
            facts[name] = float(value) if "." in value else int(value)
    return facts


def cpu_name() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.lower().startswith(("model name", "hardware")):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def version_facts(device: str) -> dict[str, str]:
    """Versions of all that takes part, without importing an inference library."""
    versions = {
        "qvae": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
    }
    for name, packages in (
        ("diffusers", ("diffusers",)),
        ("triton", ("triton",)),
        ("onnxruntime", ("onnxruntime-gpu", "onnxruntime")),
        ("tensorrt", ("tensorrt", "tensorrt-bindings", "tensorrt-cu12", "tensorrt-cu13")),
        ("tensorrt_rtx", ("tensorrt-rtx", "tensorrt_rtx")),
    ):
        for package in reversed(packages):  # the first one that is there counts
            with suppress(metadata.PackageNotFoundError):
                versions[name] = metadata.version(package)
    if device == "cuda":
        versions["cuda"] = str(torch.version.cuda)
        cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
        if cudnn is not None:
            versions["cudnn"] = str(cudnn)
    return versions
