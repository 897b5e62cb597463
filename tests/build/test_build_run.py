"""Building job by job: what is kept, what is rebuilt and why, and what a failure leaves."""

from __future__ import annotations

import errno
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import fake_tensorrt
import numpy as np
import pytest
import small_graphs

import qvae_trt.export
from qvae_trt import backends, store
from qvae_trt.backends import devices
from qvae_trt.backends.onnxruntime import OnnxRuntime
from qvae_trt.build import BuildSettings, Job, JobResult, build, plan_profiles, plan_static
from qvae_trt.build.children import Graphs
from qvae_trt.errors import BackendError, BuildError, StoreError, UsageError
from qvae_trt.files.writing import staged
from qvae_trt.lowerings import Lowering, choose_lowering
from qvae_trt.profiles import Profile, Resolution
from qvae_trt.progress import Event
from qvae_trt.tune.variants import Variant
from qvae_trt.workers import Child

if TYPE_CHECKING:
    from conftest import Exporter

SMALL, LARGE = Resolution(64, 96), Resolution(128, 160)
RANGES = (
    Profile(Resolution(64, 64), SMALL, LARGE),
    Profile(SMALL, LARGE, Resolution(256, 256)),
)
WIDE_RANGE = Profile(Resolution(256, 256), Resolution(256, 320), Resolution(320, 320))


def plan(folder: Path, *, suffix: str = ".onnx", parts: Any = ("encoder", "decoder")) -> list[Job]:
    return plan_static(folder, [SMALL], parts, suffix)


def run(jobs: list[Job], **settings: Any) -> list[JobResult]:
    settings.setdefault("backend", "onnxruntime")
    more = {name: settings.pop(name) for name in ("on_event", "child") if name in settings}
    return build(jobs, BuildSettings(model="small", **settings), **more)


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_builds_then_keeps(exporter: Exporter, tmp_path: Path) -> None:
    jobs = [*plan(tmp_path), *plan_profiles(tmp_path, RANGES, suffix=".onnx")]
    first = run(jobs, command="qvae build --mode static")
    assert [r.status for r in first] == ["built"] * 4
    assert [r.reason for r in first] == ["not built yet"] * 4
    assert [r.job for r in first] == jobs
    assert all(r.seconds and r.seconds > 0 for r in first)
    assert [r.engine_bytes for r in first] == [job.path.stat().st_size for job in jobs]
    exports = list(exporter.calls)
    before = {job.path: job.path.stat().st_mtime_ns for job in jobs}
    second = run(jobs)
    assert [(r.status, r.reason) for r in second] == [("kept", "up to date")] * 4
    assert exporter.calls == exports
    assert {job.path: job.path.stat().st_mtime_ns for job in jobs} == before


def test_what_a_kill_left_goes_although_the_engine_is_kept(
    exporter: Exporter, tmp_path: Path, own_temporary_folder: Path
) -> None:
    jobs = plan(tmp_path)[:1]
    path = jobs[0].path
    run(jobs)
    before = sorted(path.parent.iterdir())
    (own_temporary_folder / "qvae-build-x").mkdir()
    for name in (f".{path.name}.x.tmp", f".{path.name}.lock", f".{path.name}.next.json"):
        (path.parent / name).write_text("left")
    (result,) = run(jobs, dry_run=True)
    assert result.status == "kept"
    assert len(list(path.parent.iterdir())) == len(before) + 3, "a dry run changes nothing"
    with store.lock_engine(path), staged(path) as temporary:
        done = threading.Thread(target=run, args=(jobs,))
        done.start()
        done.join(60)
        assert temporary.is_file(), "another build is at work"
    (path.parent / f".{path.name}.y.tmp").write_text("left")
    (result,) = run(jobs)
    assert result.status == "kept"
    assert sorted(path.parent.iterdir()) == before
    assert list(own_temporary_folder.iterdir()) == []


def test_what_the_exporter_is_asked(exporter: Exporter, tmp_path: Path) -> None:
    large = Profile(Resolution(256, 256), Resolution(512, 512), Resolution(2048, 2048))
    for folder, ranges in (("a", RANGES), ("b", [large]), ("c", [*RANGES, large])):
        run(plan_profiles(tmp_path / folder, ranges, ["encoder"], ".onnx"))
    run(plan(tmp_path, parts=["decoder"]))
    lowering = choose_lowering("onnxruntime", "1", "fp16")
    whole, halved = lowering.canonical(), replace(lowering, halves="last").canonical()
    assert exporter.calls == [
        ("encoder", None, "fp16", whole),
        ("encoder", None, "fp16", halved),
        ("encoder", None, "fp16", whole),
        ("decoder", SMALL, "fp16", whole),
    ]


def test_the_sidecar_holds_all_facts_of_the_build(exporter: Exporter, tmp_path: Path) -> None:
    (job,) = plan_profiles(tmp_path, RANGES, ["decoder"], ".onnx")
    run([job], command="qvae build --mode profiles")
    sidecar = store.check_engine(job.path)
    key = sidecar.key
    assert (key.flavour, key.gpu, key.compute_capability) == ("onnxruntime", "cpu", None)
    assert (key.part, key.mode, key.precision) == ("decoder", "profiles", "fp16")
    assert key.profiles == RANGES
    assert (key.weights_sha256, key.recipe_sha256) == ("a" * 64, "c" * 64)
    assert len(key.onnx_sha256) == 64
    assert sidecar.command == "qvae build --mode profiles"
    assert sidecar.input.shape == (1, 4, 1, -1, -1)
    assert sidecar.build_flags["graph_optimization"] == "extended"
    assert sidecar.build_seconds > 0


def test_the_engine_runs(exporter: Exporter, tmp_path: Path) -> None:
    (job,) = plan(tmp_path, parts=["decoder"])
    run([job])
    session = backends.get("onnxruntime").open(job.path)
    x = np.random.default_rng(0).standard_normal((1, 4, 1, 8, 12)).astype(np.float16)
    session.select(x.shape, 0)
    y = np.zeros(session.output_shape(), np.float16)
    pointers = {"input_ptr": x.ctypes.data, "output_ptr": y.ctypes.data}
    session.execute(**pointers, scratch_ptr=0, scratch_bytes=0, stream=0)
    assert np.abs(y - small_graphs.run_decoder(x)).max() < 2e-3


def test_events(exporter: Exporter, tmp_path: Path) -> None:
    jobs = plan(tmp_path)
    run(jobs[:1])
    events: list[Event] = []
    results = run(jobs, on_event=events.append)
    assert [(e.index, e.count, e.item) for e in events] == [
        (0, 2, jobs[0].title),
        *[(1, 2, jobs[1].title)] * (len(events) - 1),
    ]
    assert [e.kind for e in events] == ["end", "start", *["progress"] * 3, "end"]
    assert events[1].text == "building, not built yet"
    assert [e.text for e in events if e.kind == "progress"] == [
        "trace decoder",
        "optimize",
        "optimize",
    ]
    assert [e.text for e in events if e.kind == "end"] == [r.outcome for r in results]
    assert events[0].text == "kept"


# --- why an engine is built again ---------------------------------------------------------------


def test_every_stale_field_is_named(
    exporter: Exporter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = plan(tmp_path, parts=["decoder"])
    run(jobs)
    exporter.model = replace(exporter.model, weights_sha256="b" * 64)
    exporter.recipe = "d" * 64
    monkeypatch.setattr(OnnxRuntime, "version", lambda _self: "9.9")
    (result,) = run(jobs)
    assert result.status == "built"
    for words in (
        "another version of its backend: found 1.",
        "expected 9.9",
        "other weights: found aaaaaaaaaaaa, expected bbbbbbbbbbbb",
        "found cccccccccccc, expected dddddddddddd",
    ):
        assert words in result.reason
    assert run(jobs)[0].status == "kept"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"precision": "fp32"}, "found fp16, expected fp32"),
        (
            {"variants": {"decoder": Variant(Lowering(norm="conv_spread", attention_chunks=2))}},
            f"expected {Lowering(norm='conv_spread', attention_chunks=2).canonical()}",
        ),
    ],
)
def test_other_settings(
    exporter: Exporter, tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    jobs = plan(tmp_path, parts=["decoder"])
    run(jobs)
    (result,) = run(jobs, **settings)
    assert (result.status, words in result.reason) == ("built", True)
    assert run(jobs, **settings)[0].status == "kept"


def test_other_profiles(exporter: Exporter, tmp_path: Path) -> None:
    run(plan_profiles(tmp_path, RANGES, ["decoder"], ".onnx"))
    (result,) = run(plan_profiles(tmp_path, RANGES[:1], ["decoder"], ".onnx"))
    assert "other sizes: found 96x64 (64x64 to 160x128), 160x128" in result.reason


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:100]), "found 100 bytes, expected"),
        (
            lambda path: path.write_bytes(path.read_bytes()[:-1] + b"!"),
            "changed since it was built",
        ),
        (lambda path: store.sidecar_path(path).unlink(), "without a sidecar"),
        (lambda path: store.sidecar_path(path).write_text("{"), "sidecar"),
        (lambda path: path.unlink(), "not built yet"),
    ],
)
def test_damage_is_mended(exporter: Exporter, tmp_path: Path, damage: Any, words: str) -> None:
    jobs = plan(tmp_path, parts=["decoder"])
    run(jobs)
    damage(jobs[0].path)
    (result,) = run(jobs)
    assert result.status == "built"
    assert words in result.reason
    store.check_engine(jobs[0].path)


def test_only_what_is_stale_is_built(exporter: Exporter, tmp_path: Path) -> None:
    jobs = plan(tmp_path)
    run(jobs)
    jobs[1].path.unlink()
    assert [r.status for r in run(jobs)] == ["kept", "built"]


def test_force(exporter: Exporter, tmp_path: Path) -> None:
    jobs = plan(tmp_path, parts=["decoder"])
    run(jobs)
    (result,) = run(jobs, force=True)
    assert result.status == "built"
    assert result.reason == "up to date; built again because it was asked for"


# --- dry run ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dry_run", [True, False])
def test_a_range_that_the_graph_cannot_run_is_refused(
    exporter: Exporter, tmp_path: Path, dry_run: bool
) -> None:
    """Attention runs in 8 parts, and fills them up with what there is, each once."""
    ranges = (RANGES[0], Profile(Resolution(8, 24), SMALL, LARGE))
    results = run(plan_profiles(tmp_path, ranges, suffix=".onnx"), dry_run=dry_run)
    for result in results:
        assert result.status == "failed"
        assert "profile 1 begins at 24x8, which is 3 latents, expected at least 4" in result.reason
        assert result.error is not None
        assert "16x16" in str(result.error.fix)
    assert exporter.calls == []
    (least,) = run(
        plan_profiles(tmp_path, [replace(ranges[1], min=Resolution(8, 32))], ["decoder"], ".onnx")
    )
    assert least.status == "built"
    (fixed,) = run(plan_static(tmp_path, [Resolution(8, 8)], ["decoder"], ".onnx"))
    assert fixed.status == "built"


@pytest.mark.parametrize("wrong", [Profile(SMALL, LARGE, SMALL), Profile(LARGE, SMALL, LARGE)])
def test_a_range_that_does_not_hold_its_opt_is_refused(
    exporter: Exporter, tmp_path: Path, wrong: Profile
) -> None:
    """TensorRT-RTX builds it, and then no reader takes its sidecar."""
    for result in run(plan_profiles(tmp_path, [wrong], suffix=".onnx")):
        assert isinstance(result.error, UsageError)
        assert "expected min <= opt <= max" in result.reason
    assert exporter.calls == []


def test_a_level_that_no_builder_has(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="level 9"):
        run(plan(tmp_path), level=9)


def test_dry_run(exporter: Exporter, tmp_path: Path) -> None:
    jobs = plan(tmp_path)
    planned = run(jobs, dry_run=True)
    assert [(r.status, r.reason) for r in planned] == [("planned", "not built yet")] * 2
    assert [(r.seconds, r.engine_bytes) for r in planned] == [(None, None)] * 2  # unknown
    assert files(tmp_path) == []
    assert exporter.calls == []


def test_dry_run_tells_what_the_old_one_took(exporter: Exporter, tmp_path: Path) -> None:
    jobs = plan(tmp_path)
    built = run(jobs)
    exporter.recipe = "d" * 64
    exporter.calls.clear()
    before = files(tmp_path)
    planned = run(jobs, dry_run=True)
    assert [r.status for r in planned] == ["planned"] * 2
    for old, new in zip(built, planned, strict=True):
        assert new.engine_bytes == old.engine_bytes
        assert new.seconds == pytest.approx(old.seconds, abs=1e-3)
    assert exporter.calls == []
    assert files(tmp_path) == before


# --- failures -----------------------------------------------------------------------------------


def test_a_failed_job_does_not_stop_the_rest(
    exporter: Exporter, tmp_path: Path, own_temporary_folder: Path
) -> None:
    def fail(part: str) -> None:
        if part == "encoder":
            raise BuildError("no kernel for the encoder", fix="--level 2")

    exporter.before = fail
    events: list[Event] = []
    failed, built = run(plan(tmp_path), on_event=events.append)
    assert (failed.status, failed.reason) == ("failed", "no kernel for the encoder")
    assert failed.error is not None
    assert failed.error.fix == "--level 2"
    assert built.status == "built"
    assert files(tmp_path) == [
        "static/96x64/vae_decoder.onnx",
        "static/96x64/vae_decoder.onnx.json",
    ]
    assert [e.text.split()[0] for e in events if e.kind == "end"] == ["failed:", "built"]
    assert list(own_temporary_folder.iterdir()) == []


class NoneAhead(Graphs):
    """Remembers what it was asked to start."""

    started: ClassVar[list[Any]] = []

    def start(self, wanted: Any) -> None:
        self.started.append(wanted)


class InProcess(Child):
    def __init__(self) -> None:
        super().__init__("build", makes="engine", fix="")

    def call(self, task: Any, *given: Any, progress: Any) -> Any:
        return task(*given, progress=progress)


def test_an_engine_that_cannot_be_looked_at_does_not_stop_the_others(
    exporter: Exporter, tmp_path: Path, gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor the one before it, while the next graph is sought."""
    look = store.check_engine

    def refuse(path: Path, **settings: Any) -> store.Sidecar:
        if "decoder" in path.name:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return look(path, **settings)

    monkeypatch.setattr(store, "check_engine", refuse)
    monkeypatch.setattr("qvae_trt.build.run.Graphs", NoneAhead)
    monkeypatch.setattr("qvae_trt.build.run.build_child", InProcess)
    with fake_tensorrt.installed("8.6"):
        jobs = plan(tmp_path, suffix=".trt")
        built, failed = run(jobs, backend="tensorrt")
    assert (built.status, failed.status) == ("built", "failed")
    assert failed.reason == f"{jobs[1].path}: Permission denied"
    assert failed.error is not None
    assert str(failed.error.fix).startswith(
        f"let this user read and write {jobs[1].path.parent}, or "
    )
    assert NoneAhead.started == []


def test_a_failure_leaves_the_old_engine(exporter: Exporter, tmp_path: Path) -> None:
    jobs = plan(tmp_path, parts=["decoder"])
    run(jobs)
    before = jobs[0].path.read_bytes()
    exporter.before = lambda part: (_ for _ in ()).throw(BuildError("no"))
    assert run(jobs, force=True)[0].status == "failed"
    assert jobs[0].path.read_bytes() == before
    store.check_engine(jobs[0].path)


@pytest.mark.parametrize("left", [0, 100, 0.5, -1])
def test_a_graph_cut_short_leaves_the_old_engine(
    exporter: Exporter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: float
) -> None:
    """As a disk leaves it that filled up without a word."""
    jobs = plan(tmp_path, parts=["decoder"])
    run(jobs)
    before = {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}
    write = qvae_trt.export.export_onnx

    def cut(model: Any, part: str, out: Path, **settings: Any) -> Any:
        written = write(model, part, out, **settings)  # type: ignore[arg-type]
        data = out.read_bytes()
        out.write_bytes(data[: int(len(data) * left) if 0 < left < 1 else int(left)])
        return written

    monkeypatch.setattr(qvae_trt.export, "export_onnx", cut)
    (result,) = run(jobs, force=True)
    assert result.status == "failed"
    assert isinstance(result.error, BuildError)
    assert {name: (tmp_path / name).read_bytes() for name in files(tmp_path)} == before


def test_host_memory(exporter: Exporter, tmp_path: Path) -> None:
    exporter.before = lambda part: (_ for _ in ()).throw(MemoryError())
    (result,) = run(plan(tmp_path, parts=["decoder"]))
    assert result.status == "failed"
    assert "out of memory on the host" in result.reason


def test_a_bug_is_not_a_failed_job(exporter: Exporter, tmp_path: Path) -> None:
    exporter.before = lambda part: (_ for _ in ()).throw(AssertionError("ours"))
    with pytest.raises(AssertionError, match="ours"):
        run(plan(tmp_path))
    assert files(tmp_path) == []


def test_a_folder_that_cannot_be(exporter: Exporter, tmp_path: Path) -> None:
    (tmp_path / "static").write_text("in the way")
    results = run(plan(tmp_path))
    assert [r.status for r in results] == ["failed"] * 2
    assert all(isinstance(r.error, StoreError) for r in results)


@pytest.mark.parametrize("at", ["start", "trace decoder", "optimize"])
def test_ctrl_c_leaves_nothing(
    exporter: Exporter, tmp_path: Path, own_temporary_folder: Path, at: str
) -> None:
    def stop(event: Event) -> None:
        if at in (event.kind, event.text):
            raise KeyboardInterrupt

    jobs = plan(tmp_path, parts=["decoder"])
    with pytest.raises(KeyboardInterrupt):
        run(jobs, on_event=stop)
    assert files(tmp_path) == []
    assert list(own_temporary_folder.iterdir()) == []
    assert run(jobs)[0].status == "built"


@pytest.mark.parametrize("done", [0, 1])
def test_ctrl_c_leaves_the_old_engine(exporter: Exporter, tmp_path: Path, done: int) -> None:
    def stop(event: Event) -> None:
        if (event.text, event.done) == ("optimize", done):
            raise KeyboardInterrupt

    jobs = plan(tmp_path, parts=["decoder"])
    run(jobs)
    before = {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}
    exporter.scale = 2.0
    with pytest.raises(KeyboardInterrupt):
        run(jobs, force=True, on_event=stop)
    assert {name: (tmp_path / name).read_bytes() for name in files(tmp_path)} == before


def test_two_builds_of_one_folder_do_the_work_once(exporter: Exporter, tmp_path: Path) -> None:
    exporter.before = lambda part: time.sleep(0.2)
    found: list[JobResult] = []

    def work() -> None:
        found.extend(run(plan(tmp_path)))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(exporter.calls) == 2
    assert sorted(r.status for r in found) == ["built", "built", "kept", "kept"]
    waited = [r.reason for r in found if r.status == "kept"]
    assert any("built it meanwhile" in reason for reason in waited)


def test_waiting_for_the_lock_is_reported(exporter: Exporter, tmp_path: Path) -> None:
    (job,) = plan(tmp_path, parts=["decoder"])
    events: list[Event] = []
    ready, go = threading.Event(), threading.Event()

    def hold() -> None:
        with store.lock_engine(job.path):
            ready.set()
            go.wait(20)

    holder = threading.Thread(target=hold)
    holder.start()
    ready.wait(20)
    builder = threading.Thread(target=lambda: run([job], on_event=events.append))
    builder.start()
    deadline = time.monotonic() + 20
    while not events and time.monotonic() < deadline:
        time.sleep(0.01)
    assert "waiting for process" in events[0].text
    assert not job.path.exists()
    go.set()
    holder.join()
    builder.join()
    assert events[-1].text.startswith("built in ")


# --- before anything is done --------------------------------------------------------------------


def test_what_the_backend_cannot_do_is_said_first(
    exporter: Exporter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BackendError, match="no bf16"):
        run(plan(tmp_path), precision="bf16")
    monkeypatch.setattr(devices, "gpu", lambda: None)
    with fake_tensorrt.installed("8.6"):
        with pytest.raises(BackendError, match="building needs an NVIDIA GPU"):
            run(plan(tmp_path, suffix=".trt"), backend="tensorrt")
        planned = run(plan(tmp_path, suffix=".trt"), backend="tensorrt", dry_run=True)
    assert [r.status for r in planned] == ["planned", "planned"]
    assert exporter.calls == []
    assert files(tmp_path) == []


# --- TensorRT -----------------------------------------------------------------------------------


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    device = devices.Device("NVIDIA H200", "9.0")
    monkeypatch.setattr(devices, "gpu", lambda: device)


def test_tensorrt_in_process(exporter: Exporter, tmp_path: Path, gpu: None) -> None:
    jobs = plan_profiles(tmp_path, RANGES, suffix=".trt")
    settings = {"backend": "tensorrt", "child": InProcess(), "timing_cache": tmp_path / "c.timing"}
    with fake_tensorrt.installed("8.6"):
        assert [r.status for r in run(jobs, **settings)] == ["built"] * 2
        key = store.read_sidecar(jobs[0].path).key
        assert (key.gpu, key.compute_capability) == ("NVIDIA H200", "9.0")
        assert (tmp_path / "c-NVIDIA_H200-8.6.1-fp16.timing").is_file()
        assert [r.status for r in run(jobs, **settings)] == ["kept"] * 2
    with fake_tensorrt.installed("10.16"):
        (result, _) = run(jobs, **settings)
    assert "found 8.6.1, expected 10.16.1.11" in result.reason


@pytest.mark.parametrize("version", ["8.6", "10.16"])
def test_engines_of_one_process_share_timings(
    exporter: Exporter, tmp_path: Path, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A GPU that no other test has: its timings are kept as long as this process lives.
    monkeypatch.setattr(devices, "gpu", lambda: devices.Device("NVIDIA H20", "9.0"))
    jobs = plan_profiles(tmp_path, RANGES, suffix=".trt")
    with fake_tensorrt.installed(version):
        run(jobs, backend="tensorrt", child=InProcess())
    first, second = (store.read_sidecar(job.path).build_flags for job in jobs)
    assert first["timing_cache"] == "0 bytes read"
    assert int(second["timing_cache"].split()[0]) > 0
    # 8.6 takes too long for ranges at its own level.
    assert first["level"] == second["level"] == ("2" if version == "8.6" else "default")


@pytest.mark.parametrize("level", [0, 3])
def test_a_level_that_is_asked_for_is_taken(
    exporter: Exporter, tmp_path: Path, gpu: None, level: int
) -> None:
    (job,) = plan_profiles(tmp_path, RANGES, ["encoder"], ".trt")
    settings: dict[str, Any] = {"backend": "tensorrt", "child": InProcess()}
    with fake_tensorrt.installed("8.6"):
        run([job], level=level, **settings)
        assert store.read_sidecar(job.path).build_flags["level"] == str(level)
        assert run([job], **settings)[0].status == "kept"


def test_ranges_of_a_tuned_lowering(exporter: Exporter, tmp_path: Path, gpu: None) -> None:
    """`build` fits it to the sizes, as it does its own."""
    (job,) = plan_profiles(tmp_path, [WIDE_RANGE], ["encoder"], ".trt")
    variant = Variant(choose_lowering("tensorrt", "8.6.1", "fp16"))
    with fake_tensorrt.installed("8.6"):
        run([job], backend="tensorrt", child=InProcess(), variants={"encoder": variant})
    sidecar = store.read_sidecar(job.path)
    assert sidecar.build_flags["level"] == "2"
    assert (
        sidecar.key.lowering
        == replace(
            variant.lowering, halves="last_two", attention_chunks=8, norm="conv_wide"
        ).canonical()
    )


def test_another_gpu_is_stale(
    exporter: Exporter, tmp_path: Path, gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = plan(tmp_path, suffix=".trt", parts=["decoder"])
    with fake_tensorrt.installed("10.16"):
        run(jobs, backend="tensorrt", child=InProcess())
        monkeypatch.setattr(devices, "gpu", lambda: devices.Device("NVIDIA L40S", "8.9"))
        (result,) = run(jobs, backend="tensorrt", child=InProcess())
    assert "another GPU: found NVIDIA H200, expected NVIDIA L40S" in result.reason
    assert "compute capability: found 9.0, expected 8.9" in result.reason


def test_another_level_is_stale(exporter: Exporter, tmp_path: Path, gpu: None) -> None:
    jobs = plan(tmp_path, suffix=".trt", parts=["decoder"])
    settings: dict[str, Any] = {"backend": "tensorrt", "child": InProcess()}
    with fake_tensorrt.installed("10.16"):
        run(jobs, **settings)
        (result,) = run(jobs, level=4, **settings)
        assert "level: found default, expected 4" in result.reason
        assert run(jobs, level=4, **settings)[0].status == "kept"
        assert run(jobs, **settings)[0].status == "kept"  # no level asked for: any will do


def test_warnings_reach_the_caller(exporter: Exporter, tmp_path: Path, gpu: None) -> None:
    events: list[Event] = []
    with fake_tensorrt.installed("8.6") as trt:
        trt.fake.fail["IBuilderConfig.set_timing_cache"] = True
        (result,) = run(
            plan(tmp_path, suffix=".trt", parts=["decoder"]),
            backend="tensorrt",
            child=InProcess(),
            timing_cache=tmp_path / "c.timing",
            on_event=events.append,
        )
    assert result.warnings == ("TensorRT took no timing cache, built without one",)
    assert [e.text for e in events if e.kind == "warning"] == list(result.warnings)
