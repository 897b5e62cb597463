"""Fuzz the readers of files that people edit or copy: anything but a `QvaeError` is a finding.

    python tests/fuzz/fuzz_readers.py -max_total_time=600 [--out benchmarks/reliability/fuzz.json]

Options with one dash are libFuzzer's. The exit code is 1 if there is a finding; each is told with
its input, in base64. The first byte of an input names the reader, the rest is the file.

libFuzzer ends its process without returning to Python. So the fuzzing is done in a child, which
counts in a memory-mapped file, and this process reads the counts when it has ended.
"""

from __future__ import annotations

import argparse
import base64
import json
import mmap
import platform
import random
import re
import subprocess
import sys
import tempfile
import time
import traceback
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
READERS = ("static sizes", "profiles", "sidecar", "tune file", "LightX2V", "bench result")
JSON_READERS = (2, 3, 4, 5)
INSTRUMENTED = [
    "qvae_trt.profiles",
    "qvae_trt.files.values",
    "qvae_trt.files.values",
    "qvae_trt.files.values",
    "qvae_trt.json_rows",
    "qvae_trt.store.sidecar",
    "qvae_trt.tune.record",
    "qvae_trt.bench.results",
    "qvae_trt.bench.compare",
    "qvae_trt.runtime.lightx2v",
    "qvae_trt.runtime.arguments",
]
COUNTS = ("accepted", "refused", "findings")
WIDTH = 8  # bytes of a count
MOST_TOLD = 20
_WORD = re.compile(rb"[\w:]+|\"[^\"]*\"|\[+|\]+|=")


class Readers:
    """The readers, by their place in READERS. `file` is overwritten for those that take a path."""

    def __init__(self, file: Path) -> None:
        from qvae_trt import errors, profiles, report, store
        from qvae_trt.bench import compare, results
        from qvae_trt.model import load_model
        from qvae_trt.runtime import lightx2v
        from qvae_trt.store import sidecar
        from qvae_trt.tune import record

        self.file = file
        self.refusal = errors.QvaeError
        self.profiles, self.store, self.lightx2v = profiles, store, lightx2v
        self.sidecar, self.record = sidecar, record
        self.results, self.compare, self.report = results, compare, report
        # Configurations are read, weights are not: a hub id or a large model is a valid value.
        tiny = load_model("bundled:tiny")
        lightx2v.load_model = lambda _source: tiny
        self.all = (
            self.read_sizes,
            self.read_profiles,
            self.read_sidecar,
            self.read_tune_file,
            self.read_lightx2v,
            self.read_bench_result,
        )

    def read(self, reader: int, raw: bytes) -> bool:
        """Whether the file is taken. Raises what no user may see."""
        try:
            self.all[reader](raw)
        except self.refusal as error:
            f"{error} {error.what} {error.fix}".encode()  # as it is printed
            return False
        return True

    def read_sizes(self, raw: bytes) -> None:
        self.file.write_bytes(raw)
        for size in self.profiles.load_static_sizes(self.file).values():
            assert self.profiles.Resolution.parse(str(size)) == size, "no folder's name"

    def read_profiles(self, raw: bytes) -> None:
        self.file.write_bytes(raw)
        ranges = self.profiles.load_profiles(self.file)
        for size in (ranges[-1].opt, self.profiles.Resolution(928, 1664)):
            self.profiles.choose(
                size, static=self.profiles.Refusal("none"), profiles=ranges
            ).explain()

    def read_sidecar(self, raw: bytes) -> None:
        found = self.sidecar.parse_sidecar(raw, path=self.file)
        again = self.sidecar.parse_sidecar(found.to_json().encode(), path=self.file)
        assert again == found, "written and read again it is another"
        self.store.differences(found.key, {"gpu": "cpu", "profiles": found.key.profiles[:1]})

    def read_tune_file(self, raw: bytes) -> None:
        found = self.record.parse(raw, path=self.file)
        text = json.dumps(found.to_dict(), allow_nan=False)
        again = self.record.parse(text.encode(), path=self.file)
        assert again == found, "written and read again it is another"

    def read_lightx2v(self, raw: bytes) -> None:
        try:
            config = json.loads(raw)
        except (ValueError, RecursionError) as error:  # LightX2V's to refuse
            raise self.refusal("no JSON") from error
        self.lightx2v.from_lightx2v_config(
            config, backend="onnxruntime", device="cpu", fallback="silent"
        )

    def read_bench_result(self, raw: bytes) -> None:
        self.file.write_bytes(raw)
        found = self.results.load(self.file)
        self.file.write_text(json.dumps(found.to_dict(), allow_nan=False), "utf-8")
        assert self.results.load(self.file) == found, "written and read again it is another"
        self.report.csv_text(found)
        self.report.write_html([found], self.file)
        self.compare.merge([found, found])
        self.compare.compare(found, found)


# --- inputs -------------------------------------------------------------------------------------


def seeds(folder: Path) -> list[tuple[int, bytes]]:
    """A reader and a file that it takes: those of the project, and some that its code writes."""
    from qvae_trt import backends, store
    from qvae_trt.bench.results import Timing
    from qvae_trt.files.writing import staged
    from qvae_trt.profiles import Profile, Resolution, load_profiles
    from qvae_trt.tensors import TensorSpec
    from qvae_trt.tune import record
    from qvae_trt.tune.variants import default_variant

    found = [(0, (ROOT / "profiles" / "static.toml").read_bytes())]
    found += [(0, b'[sizes]\n"1:1" = "64x64"\n')]
    nine = (ROOT / "profiles" / "nine.toml").read_bytes()
    one = b'[[profile]]\nmin = "64x64"\nopt = "128x96"\nmax = "320x320"\n'
    found += [(1, nine), (1, one)]
    size = Resolution(64, 96)
    for ranges in ((Profile.fixed(size),), load_profiles()):
        key = store.EngineKey(
            flavour="onnxruntime",
            flavour_version=backends.get("onnxruntime").version(),
            gpu="cpu",
            compute_capability=None if len(ranges) == 1 else "9.0",
            part="decoder",
            mode="static" if len(ranges) == 1 else "profiles",
            precision="fp16",
            lowering=default_variant("onnxruntime", "1", "fp16").lowering.canonical(),
            profiles=ranges,
            onnx_sha256="a" * 64,
            weights_sha256="b" * 64,
            recipe_sha256="c" * 64,
        )
        sidecar = store.Sidecar(
            key=key,
            input=TensorSpec("latents", "float16", (1, 16, 1, -1, -1)),
            output=TensorSpec("images", "float16", (1, 3, 1, -1, -1)),
            build_flags={"fp16": "true"},
            build_seconds=1.5,
            command="qvae build --mode profiles",
        )
        engine = folder / f"{len(ranges)}.onnx"
        with store.lock_engine(engine), staged(engine) as temporary:
            temporary.write_bytes(b"an engine")
            store.write_engine(engine, sidecar, temporary)
        found.append((2, store.sidecar_path(engine).read_bytes()))
    subject = record.Subject(
        part="decoder", resolution=size, weights_sha256="a" * 64, recipe_sha256="c" * 64
    )
    variant = default_variant("onnxruntime", "1", "fp16")
    ok = record.Measurement(
        subject=subject,
        variant=variant,
        model="bundled:tiny",
        status="ok",
        timing=Timing(median_ms=2.0, p10_ms=1.5, p90_ms=3.0, min_ms=1.0, runs=3),
        parity=record.Parity(psnr_db=70.0, relative_l2=1e-3),
        build_seconds=12.5,
        engine_bytes=2_900_000,
    )
    failed = record.Measurement(
        subject=subject,
        variant=variant.changed("attention_chunks=1"),
        model="bundled:tiny",
        status="failed",
        reason="no kernel",
    )
    choice = record.TunedVariant(subject=subject, variant=variant, default_ms=2.0, complete=True)
    file = record.TuneFile(
        key=record.TuneKey.here(backends.get("onnxruntime"), "fp16"),
        measurements=(ok, failed),
        choices={"decoder": choice},
        command="qvae tune",
    )
    record.save(file, folder / "tune.json")
    found.append((3, (folder / "tune.json").read_bytes()))
    for config in (
        {
            "vae_type": "tensorrt",
            "model_path": "Qwen/Qwen-Image",
            "trt_vae_config": {"trt_engine_path": "engines", "multi_profile": True},
            "use_tiling_vae": True,
            "cpu_offload": False,
        },
        {
            "vae_path": "weights",
            "trt_vae_config": {"trt_engine_path": "~/engines", "multi_profile": False},
            "layered": True,
            "layers": 4,
            "in_channels": 64,
            "vae_cpu_offload": True,
        },
    ):
        found.append((4, json.dumps(config).encode()))
    found.append((5, json.dumps(_bench_result(size).to_dict()).encode()))
    return found


def _bench_result(size: Any) -> Any:
    from qvae_trt.bench.results import BenchResult, Cell, Floor, Run, ServiceRow, Timing

    run = Run(
        created="2026-01-02T03:04:05+00:00",
        command="qvae bench",
        device="cuda",
        model="random:full",
        weights_sha256="b" * 64,
        precision="bf16",
        machine={"gpu": "NVIDIA H200", "clock_sm_mhz": 1980},
        versions={"torch": "2.11.0"},
        matmul={"tflops": 800.0},
        settings={"inputs": 3},
    )
    timing = Timing(median_ms=2.0, p10_ms=1.5, p90_ms=3.0, min_ms=1.0, runs=3)
    row = {"part": "decoder", "resolution": size}
    return BenchResult(
        runs=(run,),
        cells=(
            Cell(**row, path="pytorch", timing=timing, peak_bytes=1 << 30),
            Cell(**row, path="static", timing=timing, detail={"first_ms": 1.5}),
            Cell(**row, path="compiled", notes=("no Triton",)),
        ),
        floors=(Floor(**row, flops=10**12, floor_ms=1.0),),
        service=(ServiceRow(kind="first_use", path="static", resolution=size, timing=timing),),
    )


#: Values that have broken readers of other programs.
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 8, 1 << 31, 1 << 63, 1 << 64, 10**400, 1e308, 1e-320, -0.5,
    "", " ", "0", "~", "~no-such-user", "../..", "/dev/null", "\0", "\ud800", "\udc80", "é" * 300,
    "64x64", "65x64", "0x0", "16384x16384", "99999999999999999999x8", "1:1", "16:9", "profiles",
    "a" * 64, "fp16", "float16", "9" * 5000, [], {}, [[]], [{}], {"": {}},
)  # fmt: skip


def mutated(raw: bytes, chance: random.Random) -> bytes | None:
    """The same JSON with one value, name or member changed; None if it is no JSON."""
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    places: list[tuple[Any, Any]] = []
    pending = [data]
    while pending:
        node = pending.pop()
        if isinstance(node, dict | list):
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            places += [(node, key) for key in keys]
            pending += [node[key] for key in keys]
    if not places:
        return None
    node, key = chance.choice(places)
    what = chance.randrange(8)
    if what == 0:
        del node[key]
    elif what == 1 and isinstance(node, dict):
        node[chance.choice([n for n in ODD if isinstance(n, str)])] = node.pop(key)
    elif what == 2:  # a value from elsewhere in the file
        other, name = chance.choice(places)
        node[key] = json.loads(json.dumps(other[name])) if name in _keys(other) else None
    elif what == 3 and isinstance(node, list):
        node.append(node[key])
    else:  # mostly of the same type, to get past the first check
        alike = [value for value in ODD if type(value) is type(node[key])]
        node[key] = chance.choice(alike if alike and chance.random() < 0.8 else ODD)
    try:
        return json.dumps(data).encode()
    except (ValueError, RecursionError):
        return None


def mutated_text(raw: bytes, chance: random.Random) -> bytes | None:
    """The same TOML with one word changed; None if there is none."""
    words = list(_WORD.finditer(raw))
    if not words:
        return None
    old = chance.choice(words)
    if chance.randrange(2):
        new = chance.choice(words)[0]
    else:
        new = json.dumps(chance.choice(ODD)).encode()
        new = new.strip(b'"') if chance.randrange(2) else new
    return raw[: old.start()] + new + raw[old.end() :]


def _keys(node: Any) -> Any:
    return node if isinstance(node, dict) else range(len(node))


# --- the child ----------------------------------------------------------------------------------


def fuzz(folder: Path, options: list[str]) -> None:
    """Fuzz until libFuzzer ends this process."""
    import atheris

    with atheris.instrument_imports(include=INSTRUMENTED):
        readers = Readers(folder / "file")
    with (folder / "counts").open("r+b") as file:
        counts = mmap.mmap(file.fileno(), 0)
    whole = [path.read_bytes() for path in sorted((folder / "corpus").glob("seed-*"))]
    told: set[str] = set()

    def count(reader: int, what: str) -> None:
        start = (reader * len(COUNTS) + COUNTS.index(what)) * WIDTH
        number = int.from_bytes(counts[start : start + WIDTH], "little") + 1
        counts[start : start + WIDTH] = number.to_bytes(WIDTH, "little")

    def one(data: bytes) -> None:
        if not data:
            return
        reader, raw = data[0] % len(READERS), data[1:]
        try:
            taken = readers.read(reader, raw)
        except Exception as error:  # noqa: BLE001 - what is looked for
            count(reader, "findings")
            last = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{READERS[reader]}: {type(error).__name__} at {last.filename}:{last.lineno}"
            if place not in told and len(told) < MOST_TOLD:
                told.add(place)
                with (folder / "findings.jsonl").open("a", encoding="utf-8") as findings:
                    found = {
                        "reader": READERS[reader],
                        "input": base64.b64encode(raw).decode(),
                        "trace": "".join(traceback.format_exception(error)),
                    }
                    findings.write(json.dumps(found) + "\n")
            return
        count(reader, "accepted" if taken else "refused")

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        chance = random.Random(seed)
        if chance.random() < 0.3:  # whole files: what libFuzzer keeps is soon all refused early
            data = chance.choice(whole)
        if data and chance.random() < 0.7:
            change = mutated if data[0] % len(READERS) in JSON_READERS else mutated_text
            changed = change(data[1:], chance)
            if changed is not None and len(changed) < max_size:
                return data[:1] + changed
        return atheris.Mutate(data, max_size)

    atheris.Setup([sys.argv[0], *options], one, custom_mutator=mutate)
    atheris.Fuzz()


# --- the parent ---------------------------------------------------------------------------------


def run(options: list[str]) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """Fuzz in a child. What was counted, and the findings."""
    with tempfile.TemporaryDirectory(prefix="qvae-fuzz-") as name:
        folder = Path(name)
        corpus, made = folder / "corpus", folder / "made"
        corpus.mkdir()
        made.mkdir()
        for index, (reader, raw) in enumerate(seeds(made)):
            (corpus / f"seed-{index}").write_bytes(bytes([reader]) + raw)
        (folder / "counts").write_bytes(bytes(len(READERS) * len(COUNTS) * WIDTH))
        began = time.monotonic()
        command = [
            sys.executable,
            __file__,
            "--child",
            name,
            "-max_len=16384",
            "-timeout=60",
            "-mutate_depth=2",
            "-reduce_inputs=0",
        ]
        command += ["-rss_limit_mb=4096", f"-artifact_prefix={name}/died-", *options, str(corpus)]
        code = subprocess.run(command, check=False).returncode
        seconds = time.monotonic() - began
        counts = (folder / "counts").read_bytes()
        numbers = [
            int.from_bytes(counts[i : i + WIDTH], "little") for i in range(0, len(counts), WIDTH)
        ]
        told = folder / "findings.jsonl"
        lines = told.read_text("utf-8").splitlines() if told.exists() else []
        findings = [json.loads(line) for line in lines]
        if code != 0:  # a hang, memory, a fault in native code
            died = next(iter(folder.glob("died-*")), None)
            raw = died.read_bytes() if died is not None else b""
            findings.append(
                {
                    "reader": READERS[raw[0] % len(READERS)] if raw else "any",
                    "input": base64.b64encode(raw[1:]).decode(),
                    "trace": f"the fuzzer ended with exit code {code}",
                }
            )
    rows = [
        dict(zip(COUNTS, numbers[i : i + len(COUNTS)], strict=True))
        for i in range(0, len(numbers), len(COUNTS))
    ]
    return {
        "version": 1,
        "atheris": version("atheris"),
        "python": platform.python_version(),
        "seconds": round(seconds, 1),
        "inputs": sum(numbers),
        "findings": len(findings),
        "readers": {
            name: {"inputs": sum(row.values()), **row}
            for name, row in zip(READERS, rows, strict=True)
        },
    }, findings


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False, add_help=False)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", type=Path)
    given, options = parser.parse_known_args()
    if given.child is not None:
        fuzz(given.child, options)
    result, findings = run(options)
    for finding in findings:
        print(f"\n{finding['reader']}: {finding['input']}\n{finding['trace']}")
    print(json.dumps(result, indent=1))
    if given.out is not None:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 1 if findings or not result["inputs"] else 0


if __name__ == "__main__":
    sys.exit(main())
