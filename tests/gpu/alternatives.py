"""Other ways to load an engine, to switch sizes and to launch, timed beside the way taken."""

from __future__ import annotations

import hashlib
import mmap
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from qvae_trt.backends.trt_log import Log
from qvae_trt.backends.trt_session import TensorRTSession
from qvae_trt.runtime.engine import Engine
from qvae_trt.runtime.scratch import Scratch


def ms(call: Callable[[], object], runs: int = 1) -> float:
    """Median host milliseconds from an idle device to an idle device."""
    spent = []
    for _ in range(runs):
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        spent.append((time.perf_counter() - start) * 1e3)
    return round(statistics.median(spent), 3)


def alternatives(engine_dir: Path, trt: Any) -> dict[str, Any]:
    """For the largest static decoder, and for the engine with profiles."""
    found: dict[str, Any] = {}
    static = sorted(
        (engine_dir / "static").glob("*/vae_decoder.trt"), key=lambda path: path.stat().st_size
    )
    wide = engine_dir / "profiles" / "vae_decoder_multi_profile.trt"
    trials: dict[str, Callable[[], dict[str, Any]]] = {}
    if static:
        trials["file"] = lambda: of_a_file(static[-1], trt)
        trials["launch"] = lambda: of_a_launch(static[-1])
    if wide.is_file():
        trials["profiles"] = lambda: of_profiles(wide, trt)
    for name, trial in trials.items():
        try:
            found[name] = trial()
        except Exception as error:  # noqa: BLE001  one that TensorRT refuses leaves the others
            found[name] = {"failed": f"{type(error).__name__}: {error}"}
    return found


def of_a_file(path: Path, trt: Any) -> dict[str, Any]:
    """Reading, hashing, deserialising, contexts: each by itself, and again when warm."""
    need = _scratch_bytes(path)
    scratch_ms = []
    for _ in range(3):
        torch.cuda.empty_cache()
        scratch_ms.append(ms(lambda: torch.empty(need, dtype=torch.uint8, device="cuda")))
    log = Log(trt)
    data = path.read_bytes()
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    kept: list[Any] = []
    report: dict[str, Any] = {
        "bytes": len(data),
        "scratch_bytes": need,
        "scratch_ms": scratch_ms,
        "read_ms": ms(path.read_bytes, 5),
        "hash_ms": ms(lambda: hashlib.sha256(data).hexdigest(), 5),
        "runtime_ms": [ms(lambda: kept.append(trt.Runtime(log.sink))) for _ in range(3)],
    }
    runtime = kept[0]
    engines: list[Any] = []
    report["deserialize_ms"] = [
        ms(lambda: engines.append(runtime.deserialize_cuda_engine(data))) for _ in range(3)
    ]
    report["deserialize_mapped_ms"] = [
        ms(lambda: engines.append(runtime.deserialize_cuda_engine(mapped))) for _ in range(3)
    ]
    plan = engines[0]
    sessions: list[TensorRTSession] = []
    # The second context's first run finds the kernels loaded.
    report["contexts"] = []
    for engine in (plan, plan, engines[1]):
        made = ms(lambda engine=engine: sessions.append(TensorRTSession(trt, log, runtime, engine)))
        run = _runner(sessions[-1])
        report["contexts"].append({"make_ms": made, "run_ms": [ms(run) for _ in range(4)]})
    return report


def of_a_launch(path: Path) -> dict[str, Any]:
    """A steady run on the default stream and on another: the host's part and the whole."""
    engine = Engine.open(path, device=torch.device("cuda", 0))
    x = torch.zeros(engine.input.shape, device="cuda", dtype=torch.float16)
    report: dict[str, Any] = {}
    for name, stream in (("default", torch.cuda.default_stream()), ("other", torch.cuda.Stream())):
        with torch.cuda.stream(stream):
            engine.run(x)
            host = []
            for _ in range(9):
                torch.cuda.synchronize()
                start = time.perf_counter()
                engine.run(x)
                host.append((time.perf_counter() - start) * 1e3)
            whole = ms(lambda: engine.run(x), 9)
        report[name] = {"host_ms": round(statistics.median(host), 3), "whole_ms": whole}
    engine.close()
    graphed = Engine.open(path, device=torch.device("cuda", 0), cuda_graph=True)
    for _ in range(3):
        graphed.run(x)
    report["graph"] = {"whole_ms": ms(lambda: graphed.run(x), 9)}
    graphed.close()
    return report


def of_profiles(path: Path, trt: Any) -> dict[str, Any]:
    """Switching two profiles in one context, and with a context for each."""
    log = Log(trt)
    runtime = trt.Runtime(log.sink)
    plan = runtime.deserialize_cuda_engine(path.read_bytes())
    single = TensorRTSession(trt, log, runtime, plan)
    last = len(single.ranges) - 1
    runs = [_runner(single, profile) for profile in (0, last)]
    report: dict[str, Any] = {"one_context": _switches(runs)}
    single.close()  # a profile is one context's at a time
    own = [TensorRTSession(trt, log, runtime, plan) for _ in (0, last)]
    runs = [_runner(s, profile) for s, profile in zip(own, (0, last), strict=True)]
    report["a_context_each"] = _switches(runs)
    return report


def _switches(runs: list[Callable[[], None]]) -> dict[str, list[float]]:
    """Each run: the first, steady ones, and the ones right after the other."""
    first = [ms(run) for run in runs]
    steady = []
    for run in runs:
        run()
        steady.append(ms(run, 9))
    after = [[ms(run) for run in runs] for _ in range(9)]
    return {
        "first_ms": first,
        "steady_ms": steady,
        "after_the_other_ms": [
            round(statistics.median(turn[i] for turn in after), 3) for i in range(len(runs))
        ],
    }


def _runner(session: TensorRTSession, profile: int = 0) -> Callable[[], None]:
    """A run at a profile's opt, with memory of its own."""
    dtype = {"float16": torch.float16, "bfloat16": torch.bfloat16}.get(
        session.input.dtype, torch.float32
    )
    shape = session.ranges[profile].opt
    x = torch.zeros(shape, device="cuda", dtype=dtype)
    scratch = Scratch(torch.device("cuda", 0))

    def run() -> None:
        stream = torch.cuda.current_stream()
        needed = session.select(shape, profile, stream.cuda_stream)
        pointer = scratch.reserve(needed, stream)
        y = torch.empty(session.output_shape(), device="cuda", dtype=dtype)
        session.execute(
            input_ptr=x.data_ptr(),
            output_ptr=y.data_ptr(),
            scratch_ptr=pointer,
            scratch_bytes=needed,
            stream=stream.cuda_stream,
        )

    return run


def _scratch_bytes(path: Path) -> int:
    engine = Engine.open(path, device=torch.device("cuda", 0))
    needed = engine._session.select(engine.ranges[0].opt, 0)
    engine.close()
    return max(needed, 1)
