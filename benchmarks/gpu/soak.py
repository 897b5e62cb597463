"""Many calls over many sizes from several threads, with evictions: results and memory must stay.

    python benchmarks/gpu/soak.py --engine-dir engines --calls 2000 --out soak.json

Serves the sizes that the engines there serve, and says which those are. Memory is the whole
device's, so that nothing else may run on it. The JSON is written whatever happens.

Exit 1 where a result differs from the single-threaded one, a call fails, memory grows after the
first round, no engine was ever evicted, or the time was up before the last call.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from qvae_trt.profiles import PARTS, Part, Resolution, load_profiles, load_static_sizes
from qvae_trt.runtime.engine import Engine
from qvae_trt.runtime.vae import TrtVae, load_vae

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ROUNDS = 6
#: What allocators and the driver may keep between rounds without it being growth.
DEVICE_SLACK_BYTES = 64 << 20
HOST_SLACK_BYTES = 64 << 20

Key = tuple[Part, Resolution]


@dataclass(slots=True)
class Soak:
    """What a soak has found so far. Memory is taken after each round, with everything released.

    Attributes:
        served: by what, for each part and size that is called.
        not_served: parts and sizes left out, since no engine serves them.
    """

    calls_asked: int
    threads: int
    served: dict[str, str]
    not_served: list[str]
    calls: int = 0
    wrong: int = 0
    loads: int = 0
    evictions: int = 0
    seconds: float = 0.0
    errors: list[str] = field(default_factory=list)
    device_bytes: list[int] = field(default_factory=list)
    host_bytes: list[int] = field(default_factory=list)

    @property
    def failures(self) -> list[str]:
        found = list(self.errors)
        if not self.served:
            found.append("no engine serves any of the sizes")
        if self.wrong:
            found.append(f"{self.wrong} of {self.calls} results differ")
        if self.calls < self.calls_asked:
            found.append(f"{self.calls} of {self.calls_asked} calls were made")
        if not self.evictions:
            found.append("no engine was evicted")
        for name, held, slack in (
            ("device", self.device_bytes, DEVICE_SLACK_BYTES),
            ("host", self.host_bytes, HOST_SLACK_BYTES),
        ):
            if len(held) < 2:
                found.append(f"{name} memory was not measured twice")
            # The least of the later rounds: a leak is in all of them, an allocator's whim is not.
            elif min(held[len(held) // 2 :]) > held[0] + slack:
                found.append(f"{name} memory grew: {held}")
        return found


class Watch:
    """Counts the engines that are opened and closed."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def __enter__(self) -> Watch:
        self._kept = (Engine.__init__, Engine.close)
        init, close = self._kept

        def counted_init(engine: Engine, *args: object, **options: object) -> None:
            init(engine, *args, **options)  # type: ignore[arg-type]
            self._count("opened")

        def counted_close(engine: Engine) -> None:
            if not engine._closed:
                self._count("closed")
            close(engine)

        Engine.__init__, Engine.close = counted_init, counted_close  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        Engine.__init__, Engine.close = self._kept  # type: ignore[method-assign]

    def _count(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1


def plan(vae: TrtVae, sizes: Sequence[Resolution]) -> tuple[dict[Key, str], list[str]]:
    """What serves each part and size; and what no engine serves."""
    served, missing = {}, []
    for part in PARTS:
        for size in sizes:
            choice = vae.choice(part, size)
            if choice.engine == "folded":
                missing.append(f"{part} {size}")
            else:
                index = choice.profile_index
                served[part, size] = "static" if index is None else f"profile {index}"
    return served, missing


def soak(
    vae: TrtVae,
    sizes: Sequence[Resolution],
    *,
    calls: int,
    threads: int,
    seed: int = 0,
    seconds: float = float("inf"),
    rounds: int = ROUNDS,
    found: Soak | None = None,
    say: Callable[[str], None] = print,
) -> Soak:
    """Encode and decode at random sizes, each result compared with the single-threaded one.

    Args:
        seconds: no call starts later than this.
        found: filled as it goes, so that a caller has what there was before an exception.
    """
    served, missing = plan(vae, sizes)
    names = {f"{part} {size}": by for (part, size), by in served.items()}
    found = found or Soak(calls, threads, names, missing)
    found.served, found.not_served = names, missing
    if not served:
        return found
    say(f"{len(served)} parts and sizes served, {len(missing)} not: {', '.join(missing) or '–'}")
    started = time.perf_counter()
    deadline = started + seconds
    inputs = {key: _input(vae, *key) for key in served}
    expected = {key: _run(vae, key[0], x) for key, x in inputs.items()}
    torch.cuda.synchronize()
    say(f"{time.perf_counter() - started:6.1f} s  results of one thread are there")
    streams = [torch.cuda.Stream() for _ in range(threads)]
    lock = threading.Lock()

    def work(number: int, count: int, rng: random.Random) -> None:
        keys = list(inputs)
        try:
            with torch.cuda.stream(streams[number]):
                for _ in range(count):
                    if time.perf_counter() > deadline:
                        return
                    key = rng.choice(keys)
                    y = _run(vae, key[0], inputs[key])
                    same = torch.equal(y, expected[key])
                    with lock:
                        found.calls += 1
                        found.wrong += not same
        except BaseException as error:  # noqa: BLE001  told in the report
            with lock:
                found.errors.append(f"thread {number}: {type(error).__name__}: {error}")

    with Watch() as watch:
        done = 0
        for index in range(rounds):
            until = calls * (index + 1) // rounds
            shares = [(until - done) * (i + 1) // threads for i in range(threads)]
            counts = [b - a for a, b in zip([0, *shares], shares, strict=False)]
            done = until
            # Closed by the release between two rounds, and by that alone, is no eviction.
            before = watch.counts["closed"]
            workers = [
                threading.Thread(
                    target=work, args=(i, count, random.Random(f"{seed} {index} {i}")), daemon=True
                )
                for i, count in enumerate(counts)
            ]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
            found.evictions += watch.counts["closed"] - before
            found.loads = watch.counts["opened"]
            device, host = _memory(vae)
            found.device_bytes.append(device)
            found.host_bytes.append(host)
            found.seconds = round(time.perf_counter() - started, 1)
            say(
                f"{found.seconds:6.1f} s  {found.calls} calls, {found.wrong} wrong,"
                f" {found.loads} loads, {found.evictions} evictions, after release"
                f" {device >> 20} MiB on the device, {host >> 20} MiB on the host"
            )
            if found.errors or time.perf_counter() > deadline:
                break
    return found


def _input(vae: TrtVae, part: Part, size: Resolution) -> torch.Tensor:
    generator = torch.Generator("cuda").manual_seed(size.height * 7 + size.width)
    if part == "encoder":
        shape = (1, vae.input_channels, 1, size.height, size.width)
        return torch.rand(shape, generator=generator, device="cuda").mul_(2).sub_(1).half()
    shape = (1, vae.z_dim, 1, *vae.kind.latents_of(size))
    return torch.randn(shape, generator=generator, device="cuda").half()


def _run(vae: TrtVae, part: Part, x: torch.Tensor) -> torch.Tensor:
    if part == "encoder":
        return vae.encode(x, return_dict=False)[0].parameters
    return vae.decode(x, return_dict=False)[0]


def _memory(vae: TrtVae) -> tuple[int, int]:
    """Bytes in use on the device and resident on the host, with all engines released."""
    torch.cuda.synchronize()
    vae.release_memory()
    gc.collect()
    torch.cuda.empty_cache()
    # What glibc keeps for the next malloc is no growth.
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    free, total = torch.cuda.mem_get_info()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return total - free, pages * os.sysconf("SC_PAGE_SIZE")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine-dir", type=Path, default=Path("engines"))
    parser.add_argument("--model", default="random:full")
    parser.add_argument("--size", action="append", help="WxH; without it, those of the engines")
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no call later")
    parser.add_argument(
        "--budget",
        type=float,
        default=0.8,
        help="of the engines' bytes; under 1 there are evictions",
    )
    parser.add_argument("--cuda-graphs", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    # A time limit from outside ends in the report, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    found = Soak(options.calls, options.threads, {}, [])
    facts: dict[str, object] = {"model": options.model, "cuda_graphs": options.cuda_graphs}
    try:
        vae = load_vae(
            options.engine_dir,
            model=options.model,
            backend="tensorrt",
            fallback="raise",
            memory_budget_bytes=_budget(options, facts),
            cuda_graphs=options.cuda_graphs,
        )
        facts |= {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__}
        sizes = [Resolution.parse(text) for text in options.size or ()]
        soak(
            vae,
            sizes or [*load_static_sizes().values(), *(p.opt for p in load_profiles())],
            calls=options.calls,
            threads=options.threads,
            seconds=options.seconds,
            found=found,
            say=lambda text: print(text, flush=True),
        )
    except BaseException as error:
        found.errors.append(f"{type(error).__name__}: {error}")
        raise
    finally:
        report = {**facts, **asdict(found), "failures": found.failures}
        text = json.dumps(report, indent=2)
        print(text, flush=True)
        if options.out is not None:
            options.out.write_text(text + "\n")
    return 1 if found.failures else 0


def _budget(options: argparse.Namespace, facts: dict[str, object]) -> int:
    sizes = [path.stat().st_size for path in options.engine_dir.rglob("*.trt")]
    budget = int(sum(sizes) * options.budget)
    facts |= {"engines": len(sizes), "engine_bytes": sum(sizes), "budget_bytes": budget}
    return budget


if __name__ == "__main__":
    sys.exit(main())
