"""The run-time on a real GPU: streams, graphs, memory, threads."""

from __future__ import annotations

import copy
import gc
import json
import shutil
import threading
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from qvae_trt import store
from qvae_trt.backends import Session, devices
from qvae_trt.backends.tensorrt import TensorRT
from qvae_trt.errors import DeviceMemoryError, EngineError, ExecutionError
from qvae_trt.files.reading import sha256_file
from qvae_trt.profiles import Resolution
from qvae_trt.runtime.engine import Engine
from qvae_trt.runtime.fallback import FallbackWarning, FiniteCheck, Notices
from qvae_trt.runtime.vae import TrtVae, load_vae

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("cuda")]

#: (height, width) in pixels, by what serves them (see gpu_engines.py): two static engines, profile
#: 0 and profile 1 of the third, the fused path.
STATIC, OTHER_STATIC, NARROW, WIDE = (256, 256), (384, 512), (192, 320), (320, 480)
LARGE, TOO_LARGE = (640, 640), (256, 800)
#: Some 50 ms of nothing, in clock cycles.
LONG = 100_000_000


@pytest.fixture(scope="module")
def original(model):
    return copy.deepcopy(model.vae).to("cuda")


@pytest.fixture
def vae(engine_dir, model):
    vae = load_vae(engine_dir, model=model, backend="tensorrt", fallback="raise")
    vae.decode(latents(STATIC))
    vae.release_memory()  # scratch is the device's: what a test before this one left in it goes
    yield vae
    torch.cuda.synchronize()
    vae.release_memory()


def picture(size: tuple[int, int], seed: int = 0) -> torch.Tensor:
    generator = torch.Generator("cuda").manual_seed(seed)
    return torch.rand((1, 3, 1, *size), generator=generator, device="cuda") * 2 - 1


def latents(size: tuple[int, int], seed: int = 0) -> torch.Tensor:
    generator = torch.Generator("cuda").manual_seed(seed)
    shape = (1, 16, 1, size[0] // 8, size[1] // 8)
    return torch.randn(shape, generator=generator, device="cuda")


def psnr_db(y: torch.Tensor, expected: torch.Tensor) -> float:
    return float(10 * torch.log10(4 / (y.float() - expected.float()).square().mean()))


def equal(y: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(y, expected, rtol=0, atol=0)


def test_it_is_on_the_gpu_in_bf16_by_default(engine_dir, model):
    vae = load_vae(engine_dir, model=model)
    assert (vae.device.type, vae.dtype) == ("cuda", torch.bfloat16)


@pytest.mark.parametrize("size", [STATIC, OTHER_STATIC, NARROW, WIDE])
def test_results_are_those_of_diffusers_in_fp32(vae, original, size):
    x = picture(size)
    found = vae.encode(x).latent_dist.mode()
    expected = original.encode(x).latent_dist.mode()
    assert float((found - expected).norm() / expected.norm()) < 1e-2
    y = vae.decode(expected).sample
    assert psnr_db(y, original.decode(expected).sample) > 45
    assert vae.memory()["engines"] == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_fused_path_serves_what_no_engine_does(engine_dir, model, original, dtype):
    vae = load_vae(engine_dir, model=model, backend="tensorrt", dtype=dtype)
    z = latents(TOO_LARGE)
    assert vae.choice("decoder", Resolution(*TOO_LARGE)).engine == "fused"
    with warnings.catch_warnings():
        warnings.simplefilter("error", FallbackWarning)
        y = vae.decode(z).sample
    assert y.dtype == z.dtype
    floor = 40 if dtype is torch.bfloat16 else 50
    assert psnr_db(y, original.decode(z).sample) > floor


# --- streams
# ----------------------------------------------------------------------------------------


def test_the_run_waits_for_its_input(vae):
    """The value arrives late on the caller's stream; a private stream would read the zeros."""
    z = latents(STATIC)
    expected = vae.decode(z).sample.clone()
    late = torch.zeros_like(z)
    torch.cuda.synchronize()
    torch.cuda._sleep(LONG)
    late.copy_(z)
    equal(vae.decode(late).sample, expected)


def test_an_input_from_another_stream(vae):
    z = latents(STATIC)
    expected = vae.decode(z).sample.clone()
    torch.cuda.synchronize()
    producer, consumer = torch.cuda.Stream(), torch.cuda.Stream()
    with torch.cuda.stream(producer):
        torch.cuda._sleep(LONG)
        made = z * 1.0
    with torch.cuda.stream(consumer):
        consumer.wait_stream(producer)
        y = vae.decode(made).sample
        del made  # its memory must not be reused while the run reads it
    with torch.cuda.stream(producer):
        for _ in range(8):
            torch.full_like(z, 1e4)
    consumer.synchronize()
    equal(y, expected)


def test_two_streams_share_scratch_without_meeting_on_it(vae):
    z, x = latents(OTHER_STATIC), picture(OTHER_STATIC)
    decoded, encoded = vae.decode(z).sample, vae.encode(x).latent_dist.parameters
    torch.cuda.synchronize()
    one, two = torch.cuda.Stream(), torch.cuda.Stream()
    results = []
    for _ in range(20):
        with torch.cuda.stream(one):
            y = vae.decode(z).sample
        with torch.cuda.stream(two):
            m = vae.encode(x).latent_dist.parameters
        results.append((y, m))
    torch.cuda.synchronize()
    for y, m in results:
        equal(y, decoded)
        equal(m, encoded)


def test_a_result_survives_the_next_calls(vae):
    first = vae.decode(latents(STATIC)).sample
    kept = first.clone()
    for seed in range(1, 5):
        vae.decode(latents(STATIC, seed))
        vae.encode(picture(OTHER_STATIC, seed))
    equal(first, kept)


def test_profiles_take_turns_in_one_engine(vae):
    expected = {size: vae.decode(latents(size)).sample for size in (NARROW, WIDE)}
    assert vae.memory()["engines"] == 1
    for seed, size in enumerate([WIDE, NARROW, NARROW, WIDE, NARROW, WIDE, WIDE]):
        vae.decode(latents((256 + 64 * (seed % 3), 400), seed))  # other shapes of profile 1
        equal(vae.decode(latents(size)).sample, expected[size])


def test_threads_get_what_one_thread_gets(vae):
    sizes = (STATIC, OTHER_STATIC, NARROW, WIDE)
    expected = [vae.decode(latents(size)).sample for size in sizes]
    torch.cuda.synchronize()
    wrong: list[BaseException] = []

    def work(start: int) -> None:
        try:
            stream = torch.cuda.Stream()
            with torch.cuda.stream(stream):
                for i in range(30):
                    index = (start + i) % len(sizes)
                    equal(vae.decode(latents(sizes[index])).sample, expected[index])
        except BaseException as error:  # noqa: BLE001  reported below, in the test's thread
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# --- CUDA graphs
# ------------------------------------------------------------------------------------


def loaded(vae: TrtVae) -> list[Engine]:
    """Its engines on the first GPU."""
    cache, _ = vae._ladder.engines.place(torch.device("cuda", 0))
    engines = []
    for path, _ in cache.loaded:
        with cache.lease(path, None) as engine:
            engines.append(engine)
    return engines


def test_the_graph_option_changes_nothing_but_speed(engine_dir, model, vae):
    fast = load_vae(engine_dir, model=model, backend="tensorrt", fallback="raise", cuda_graphs=True)
    for seed in range(4):
        for size in (STATIC, OTHER_STATIC, WIDE):
            z = latents(size, seed)
            equal(fast.decode(z).sample, vae.decode(z).sample)
    captured = [engine for engine in loaded(fast) if engine.held.graph is not None]
    assert len(captured) == 3, "one for each engine"
    fast.release_memory(engines=False)  # scratch moves: the graphs must not be replayed on it
    for seed in range(4):
        z = latents(OTHER_STATIC, seed)
        equal(fast.decode(z).sample, vae.decode(z).sample)
    held = torch.cuda.Stream()
    with torch.cuda.stream(held):
        held.wait_stream(torch.cuda.default_stream())
        y = fast.decode(latents(STATIC)).sample
    held.synchronize()
    equal(y, vae.decode(latents(STATIC)).sample)


def test_a_graph_of_an_engine_with_ranges_is_that_of_the_size(engine_dir, model, vae):
    fast = load_vae(engine_dir, model=model, backend="tensorrt", fallback="raise", cuda_graphs=True)
    between = (NARROW[0] + 16, NARROW[1])
    kept = []
    for seed, size in enumerate([NARROW] * 4 + [between] * 4 + [NARROW, WIDE] * 2 + [NARROW] * 4):
        z = latents(size, seed)
        equal(fast.decode(z).sample, vae.decode(z).sample)
        (engine,) = loaded(fast)
        kept.append(engine.held.graph)
    assert kept[:2] == [None] * 2
    assert kept[2] is kept[3] is kept[5] is not None, "until another size is captured"
    assert kept[6] is kept[7] is not kept[5]
    assert kept[11] is kept[7], "sizes in turns are not captured"
    assert kept[14] is kept[15]
    assert kept[15] not in (None, kept[7])


def test_a_callers_capture_of_an_engine_that_has_captured_itself(engine_dir, model, vae):
    fast = load_vae(engine_dir, model=model, backend="tensorrt", fallback="raise", cuda_graphs=True)
    z = latents(STATIC)
    expected = [vae.decode(latents(STATIC, seed)).sample.clone() for seed in range(4)]
    for _ in range(3):
        fast.decode(z)
    graph, y = _capture(fast, z)
    for seed in range(4):
        equal(fast.decode(latents(STATIC, seed)).sample, expected[seed])
        z.copy_(latents(STATIC, seed))
        graph.replay()
        torch.cuda.synchronize()
        equal(y, expected[seed])


def test_a_failed_capture_leaves_pytorch_whole(engine_dir, model, vae, monkeypatch):
    """Its generators draw, its allocator frees, and the engine serves without a graph."""
    expected = [vae.decode(latents(STATIC, seed)).sample.clone() for seed in range(4)]
    capture = devices.capture

    def failing(stream: int, enqueue: Callable[[], object]) -> int:
        def half() -> None:
            enqueue()
            raise RuntimeError("refused in the middle")

        return capture(stream, half)

    monkeypatch.setattr(devices, "capture", failing)
    fast = load_vae(engine_dir, model=model, backend="tensorrt", fallback="raise", cuda_graphs=True)
    for seed in range(4):
        equal(fast.decode(latents(STATIC, seed)).sample, expected[seed])
    (engine,) = loaded(fast)
    assert engine.held.graph is None
    assert not engine.wants_graph
    torch.randn(8, device="cuda")
    before = torch.cuda.memory_reserved()
    del engine
    held = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
    del held
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= before, "what is freed goes back"
    monkeypatch.undo()
    fast.release_memory()
    for seed in range(4):
        equal(fast.decode(latents(STATIC, seed)).sample, expected[seed])
    assert all(engine.held.graph is not None for engine in loaded(fast)), (
        "the stream is not left capturing"
    )


def test_random_numbers_are_drawn_while_engines_are_captured(engine_dir, model):
    stop, wrong, drawn = threading.Event(), [], []

    def draw() -> None:
        try:
            while not stop.is_set():
                drawn.append(torch.randn(1 << 12, device="cuda"))
                del drawn[:-2]
        except BaseException as error:  # noqa: BLE001  reported below, in the test's thread
            wrong.append(error)

    threads = [threading.Thread(target=draw) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(3):
            fast = load_vae(
                engine_dir, model=model, backend="tensorrt", fallback="raise", cuda_graphs=True
            )
            fast.warm_up(STATIC, OTHER_STATIC)
            graphs = [engine.held.graph for engine in loaded(fast)]
            assert len(graphs) == 4
            assert None not in graphs, "after a warm-up nothing is left to capture"
            del graphs
            fast.release_memory()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert drawn != []


def test_a_fresh_thread_captures_and_frees(engine_dir, model, vae):
    """It has no CUDA context of its own until it uses CUDA."""
    fast = load_vae(engine_dir, model=model, backend="tensorrt", fallback="raise", cuda_graphs=True)
    z = latents(STATIC)
    expected, found = vae.decode(z).sample, []
    torch.cuda.synchronize()

    def serve() -> None:
        found.extend(fast.decode(z).sample for _ in range(3))
        torch.cuda.synchronize()

    for work in (serve, fast.release_memory):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert len(found) == 3
    for y in found:
        equal(y, expected)
    assert fast.memory()["engines"] == 0


def test_a_dropped_engine_is_freed_by_the_next_call(engine_dir, model, vae, monkeypatch):
    z = latents(OTHER_STATIC)
    expected = vae.decode(z).sample
    sessions: list[weakref.ref[Session]] = []
    open_engine = TensorRT.open

    def noted(backend: TensorRT, engine: Path) -> Session:
        session = open_engine(backend, engine)
        sessions.append(weakref.ref(session))
        return session

    monkeypatch.setattr(TensorRT, "open", noted)
    other = load_vae(engine_dir, model=model, backend="tensorrt", fallback="raise")
    y = other.decode(z).sample
    torch.cuda._sleep(LONG)
    late = other.decode(z).sample
    del other
    gc.collect()
    vae.decode(z)
    gc.collect()
    assert [session() for session in sessions] == [None]
    equal(y, expected)
    equal(late, expected)


def test_a_callers_capture(vae):
    z = latents(STATIC)
    with pytest.raises(ExecutionError, match="cannot be loaded while a CUDA graph is captured"):
        _capture(vae, z)
    expected = [vae.decode(latents(STATIC, seed)).sample.clone() for seed in range(3)]
    graph, y = _capture(vae, z)
    vae.decode(latents(OTHER_STATIC))  # grows the shared scratch, which the graph must not need
    vae.release_memory()
    assert vae.memory()["engines"] == 1, "the captured engine stays"
    for seed in range(3):
        z.copy_(latents(STATIC, seed))
        graph.replay()
        torch.cuda.synchronize()
        equal(y, expected[seed])
    vae.decode(latents(WIDE))
    with pytest.raises(ExecutionError, match="not a static engine"):
        _capture(vae, latents(WIDE))
    loaded = vae.memory()["engines"]
    vae.decode(latents(WIDE))
    assert vae.memory()["engines"] == loaded == 2, "the refusal closed nothing"


def _capture(vae: TrtVae, z: torch.Tensor) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        y = vae.decode(z, return_dict=False)[0]
    return graph, y


def test_pytorchs_weights_outlive_the_run_that_reads_them(engine_dir, model):
    """Dropped on one stream while another reads them: their memory is not given again meanwhile."""
    slow = load_vae(engine_dir, model=model, backend="tensorrt", fallback="silent")
    z = latents(TOO_LARGE)
    expected = slow.decode(z).sample.clone()
    for _ in range(4):
        slow.decode(z)
        torch.cuda.synchronize()
        reader = torch.cuda.Stream()
        with torch.cuda.stream(reader):
            torch.cuda._sleep(LONG)
            y = slow.decode(z).sample
        slow.release_memory(engines=False)
        # The weights were made on this stream: without a record of the reader, theirs is the first
        # memory that fits.
        sides = [1 << shift for shift in range(8, 22)] * 4
        taken = [torch.full((side,), 1e4, device="cuda") for side in sides]
        reader.synchronize()
        assert psnr_db(y, expected) > 60
        del taken, y


# --- memory
# -----------------------------------------------------------------------------------------


def test_scratch_is_one_buffer_and_comes_back(vae):
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    vae.decode(latents(STATIC))
    small = vae.memory()["scratch_bytes"]
    vae.decode(latents(OTHER_STATIC))
    vae.encode(picture(OTHER_STATIC))
    large = vae.memory()["scratch_bytes"]
    assert 0 < small < large
    torch.cuda.synchronize()
    # The allocator may leave up to 1 MiB more in a block.
    assert torch.cuda.memory_allocated() - before < large + (2 << 20)
    vae.release_memory()
    assert vae.memory() == {"engines": 0, "engine_bytes": 0, "scratch_bytes": 0}
    assert torch.cuda.memory_allocated() - before < 1 << 20
    vae.decode(latents(STATIC))


def test_vaes_of_one_device_share_scratch(engine_dir, model, vae):
    other = load_vae(engine_dir, model=model, backend="tensorrt", fallback="raise")
    vae.decode(latents(OTHER_STATIC))
    other.decode(latents(STATIC))
    assert other.memory()["scratch_bytes"] == vae.memory()["scratch_bytes"]


def test_no_memory_for_scratch_is_said_and_passes(vae):
    # Of a size whose scratch fits into no segment that the allocator holds for something else.
    expected = vae.decode(latents(LARGE)).sample.clone()
    assert vae.memory()["scratch_bytes"] > 32 << 20
    vae.release_memory()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + (4 << 20)) / total)
    try:
        with pytest.raises(DeviceMemoryError, match="scratch"):
            vae.decode(latents(LARGE))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    equal(vae.decode(latents(LARGE)).sample, expected)


def test_moving_off_the_gpu_frees_it(engine_dir, model):
    vae = load_vae(engine_dir, model=model, backend="tensorrt")
    y = vae.decode(latents(STATIC)).sample
    vae.to("cpu")
    assert vae.memory()["scratch_bytes"] == 0
    with pytest.warns(FallbackWarning, match="engines run on cuda here"):
        slow = vae.to(torch.float32).decode(latents(STATIC).cpu()).sample
    assert psnr_db(slow.cuda(), y) > 40
    vae.to("cuda")
    equal(vae.decode(latents(STATIC)).sample, y)


def test_each_gpu_has_its_own_engines_and_scratch(vae):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    expected = vae.decode(latents(STATIC)).sample
    there = vae.decode(latents(STATIC).to("cuda:1")).sample
    assert there.device == torch.device("cuda", 1)
    assert vae.memory()["engines"] == 2
    equal(there.to("cuda:0"), expected)
    with torch.cuda.device(1):
        vae.release_memory()
    assert vae.memory() == {"engines": 0, "engine_bytes": 0, "scratch_bytes": 0}
    equal(vae.decode(latents(STATIC)).sample, expected)


def test_a_vae_on_another_gpu_is_there_with_all_that_it_holds(engine_dir, model, vae):
    """The thread's current device is the first one all along."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    options = {"model": model, "backend": "tensorrt", "fallback": "raise", "cuda_graphs": True}
    there = load_vae(engine_dir, device="cuda:1", **options)
    assert there.device == torch.device("cuda", 1)
    there.warm_up(STATIC, WIDE)
    z = latents(STATIC).cpu()
    y = there.decode(z).sample
    assert y.device == torch.device("cuda", 1), "what is on the CPU goes where the VAE is"
    assert {engine["device"] for engine in there.status()["engines"]} == {"cuda:1"}
    assert torch.cuda.current_device() == 0
    equal(y.to("cuda:0"), vae.decode(latents(STATIC)).sample)


def test_vaes_on_two_gpus_serve_at_once(engine_dir, model, vae):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    options = {"model": model, "backend": "tensorrt", "fallback": "raise"}
    there = load_vae(engine_dir, device="cuda:1", **options)
    expected = [vae.decode(latents(STATIC, seed)).sample.cpu() for seed in range(4)]
    wrong: list[BaseException] = []

    def work(one: TrtVae) -> None:
        try:
            for seed in (0, 1, 2, 3) * 5:
                equal(one.decode(latents(STATIC, seed).to(one.device)).sample.cpu(), expected[seed])
        except BaseException as error:  # noqa: BLE001  reported below, in the test's thread
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(one,)) for one in (vae, there, vae, there)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_after_a_warm_up_nothing_is_loaded(vae):
    vae.warm_up(STATIC, WIDE)
    held = vae.memory()
    assert held["engines"] == 4
    vae.decode(latents(STATIC))
    vae.encode(picture(WIDE))
    assert vae.memory() == held


# --- faults and pipelines
# ---------------------------------------------------------------------------


def test_an_engine_of_another_machine_is_refused(engine_dir, model, tmp_path):
    shutil.copytree(engine_dir / "static", tmp_path / "static")
    file = tmp_path / "static/256x256/vae_decoder.trt.json"
    data = json.loads(file.read_text())
    data["key"]["compute_capability"] = "8.9"
    file.write_text(json.dumps(data))
    vae = load_vae(tmp_path, model=model, backend="tensorrt", fallback="raise")
    with pytest.raises(EngineError, match="another compute capability"):
        vae.decode(latents(STATIC))


def test_model_offload(engine_dir, model):
    """`enable_model_cpu_offload` brings it in and out; the picture stays the same."""
    pytest.importorskip("accelerate", reason="needs accelerate, which does the offloading")
    pytest.importorskip("transformers", reason="needs transformers, which the pipelines import")
    import diffusers
    import tiny_pipelines

    def draw(pipe) -> torch.Tensor:
        pipe.set_progress_bar_config(disable=True)
        return pipe(
            **{name: value.cuda() for name, value in tiny_pipelines.prompt().items()},
            height=STATIC[0],
            width=STATIC[1],
            num_inference_steps=2,
            generator=torch.Generator().manual_seed(0),
            output_type="pt",
        ).images

    def make(vae) -> diffusers.QwenImagePipeline:
        return diffusers.QwenImagePipeline(
            scheduler=tiny_pipelines.scheduler(),
            vae=vae,
            text_encoder=None,
            tokenizer=None,
            transformer=copy.deepcopy(tiny_pipelines.transformer()),
        )

    vae = load_vae(
        engine_dir, model=model, backend="tensorrt", fallback="raise", dtype=torch.float32
    )
    expected = draw(make(vae).to("cuda")).clone()
    pipe = make(vae)
    pipe.enable_model_cpu_offload()
    with warnings.catch_warnings():
        warnings.simplefilter("error", FallbackWarning)
        found = draw(pipe)
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)
    assert vae.device.type == "cpu", "back out after the picture"
    assert vae.memory()["scratch_bytes"] == 0


def test_the_choice_is_explained(vae):
    text = vae.choice("decoder", Resolution(*WIDE)).explain()
    assert "+ profile 1" in text
    assert Path(str(vae.choice("decoder", Resolution(*STATIC)).path)).name == "vae_decoder.trt"


def test_a_damaged_plan_is_reported_by_tensorrt_and_served_by_pytorch(engine_dir, model, tmp_path):
    shutil.copytree(engine_dir / "static", tmp_path / "static")
    plan = tmp_path / "static/256x256/vae_decoder.trt"
    plan.write_bytes(plan.read_bytes()[: -(1 << 16)])
    side = store.sidecar_path(plan)
    data = json.loads(side.read_text())
    data["engine"] = {"sha256": sha256_file(plan), "bytes": plan.stat().st_size}
    side.write_text(json.dumps(data))
    vae = load_vae(tmp_path, model=model, backend="tensorrt", dtype=torch.float32)
    with pytest.warns(FallbackWarning, match="does not load it"):
        y = vae.decode(latents(STATIC)).sample
    good = load_vae(engine_dir, model=model, backend="tensorrt", fallback="raise")
    assert psnr_db(y, good.decode(latents(STATIC)).sample) > 45


def test_a_result_that_is_not_finite_is_said_later_and_not_waited_for():
    check = FiniteCheck(Notices("warn"))
    y = torch.zeros(1, 3, 1, 64, 64, device="cuda", dtype=torch.float16)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        check.watch("decoder 64x64", y)
        torch.cuda._sleep(LONG)
        check.watch("decoder 64x64", y * float("nan"))
        done = torch.cuda.current_stream().record_event()
        assert not done.query(), "nothing is waited for"
        assert said == []
        torch.cuda.synchronize()
        check.tell()
    assert [warning.category for warning in said] == [RuntimeWarning]
