"""Results for tests: figures that are made up, in the shape of real ones."""

from __future__ import annotations

from qvae_trt.bench.results import BenchResult, Cell, Floor, Run, ServiceRow, Timing
from qvae_trt.profiles import PARTS, Resolution

WIDE = Resolution(928, 1664)
SQUARE = Resolution(1328, 1328)
FACTORS = {"pytorch": 1.0, "folded": 2.0, "compiled": 4.0, "static": 5.0, "profiles": 4.5}
ENGINE = {"first_ms": 1234.5, "flavour": "tensorrt 8.6.1", "engine_precision": "fp16"}
NO_TRITON = "this Python has no Triton"


def timing(median_ms: float) -> Timing:
    return Timing(
        median_ms=median_ms,
        p10_ms=median_ms * 0.95,
        p90_ms=median_ms * 1.1,
        min_ms=median_ms * 0.9,
        runs=20,
        wall_ms=median_ms + 0.1,
    )


def run(**changes: object) -> Run:
    facts: dict[str, object] = {
        "created": "2026-01-02T03:04:05+00:00",
        "command": "qvae bench --resolution 1328x1328",
        "device": "cuda",
        "model": "random:full",
        "weights_sha256": "ab" * 32,
        "precision": "bf16",
        "machine": {
            "gpu": "NVIDIA H200",
            "driver": "580.1",
            "cpu": "Some CPU",
            "clock_sm_mhz": 1980,
        },
        "versions": {"torch": "2.11.0", "tensorrt": "8.6.1"},
        "matmul": {"tflops": 800.0, "side": 8192, "dtype": "bfloat16"},
        "settings": {"inputs": 3},
    }
    return Run(**{**facts, **changes})  # type: ignore[arg-type]


def result(
    *,
    scale: float = 1.0,
    paths: tuple[str, ...] = tuple(FACTORS),
    absent: tuple[str, ...] = (),
    sizes: tuple[Resolution, ...] = (WIDE, SQUARE),
    service: bool = False,
    **changes: object,
) -> BenchResult:
    """`pytorch` takes 100 ms to decode, 60 ms to encode, times `scale`; the others less."""
    cells = []
    floors = []
    for part in PARTS:
        base = scale * (60.0 if part == "encoder" else 100.0)
        for size in sizes:
            floors.append(Floor(part=part, resolution=size, flops=8 * 10**12, floor_ms=10.0))
            cells += [
                Cell(
                    part=part,
                    resolution=size,
                    path=path,
                    timing=timing(base / FACTORS[path]),
                    peak_bytes=int(8 * 2**30 / FACTORS[path]),
                    weights_bytes=10**8,
                    detail=ENGINE if path in ("static", "profiles") else {"first_ms": 200.0},
                )
                for path in paths
            ]
            cells += [
                Cell(part=part, resolution=size, path=path, notes=(NO_TRITON,)) for path in absent
            ]
    return BenchResult(
        runs=(run(**changes),),
        cells=tuple(cells),
        floors=tuple(floors),
        service=_service(sizes) if service else (),
    )


def _service(sizes: tuple[Resolution, ...]) -> tuple[ServiceRow, ...]:
    first, last = sizes[0], sizes[-1]
    return (
        ServiceRow(
            kind="latents_to_pil",
            path="pytorch",
            resolution=first,
            processor="stock",
            timing=timing(190.0),
            steps={"decode_ms": 100.0, "postprocess_ms": 90.0},
        ),
        ServiceRow(
            kind="latents_to_pil",
            path="static",
            resolution=first,
            processor="qvae",
            timing=timing(24.0),
            steps={"decode_ms": 20.0, "postprocess_ms": 4.0},
        ),
        ServiceRow(
            kind="first_use",
            path="static",
            resolution=first,
            processor="stock",
            timing=timing(300.0),
            steps={"load_ms": 200.0, "first_run_ms": 100.0},
        ),
        ServiceRow(kind="first_use", path="static", resolution=last, notes=("no engine there",)),
        ServiceRow(
            kind="switch",
            path="static",
            resolution=last,
            previous=first,
            timing=timing(30.0),
            steps={"after_switch_ms": 30.0, "steady_ms": 20.0},
        ),
    )
