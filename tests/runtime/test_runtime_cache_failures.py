"""What failed is tried again when that may help, costs nothing meanwhile, and leaves nothing."""

from __future__ import annotations

import copy
import errno
import gc
import json
import shutil
import weakref
from contextlib import contextmanager

import ort_engines
import pytest
import torch
from doubles import FakeSession, Faulty
from ort_engines import STATIC, tiny

from qvae_trt import backends, store
from qvae_trt.backends import Verdict
from qvae_trt.errors import (
    BackendError,
    DeviceMemoryError,
    EngineError,
    ExecutionError,
    ForeignEngineError,
    StaleEngineError,
)
from qvae_trt.kinds import QWEN_IMAGE
from qvae_trt.model import Model
from qvae_trt.opening import Wanted
from qvae_trt.profiles import Resolution
from qvae_trt.runtime import cache as failures_module
from qvae_trt.runtime.cache import PAUSE_S, STRIKES, Failures
from qvae_trt.runtime.engine import Engine
from qvae_trt.runtime.engines import Engines
from qvae_trt.runtime.vae import load_vae
from qvae_trt.store import signature
from qvae_trt.tensors import ShapeRange

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
SMALL, LARGE = Resolution(32, 32), Resolution(64, 96)
Z = torch.randn(
    (1, 16, 1, *QWEN_IMAGE.latents_of(STATIC)), generator=torch.Generator().manual_seed(0)
)
ENGINE = "static/96x64/vae_decoder.onnx"
PROFILES = "profiles/vae_decoder_multi_profile.onnx"


@pytest.fixture
def folder(engine_dir, tmp_path):
    shutil.copytree(engine_dir, tmp_path / "engines")
    return tmp_path / "engines"


@pytest.fixture
def backend():
    return Faulty(backends.get("onnxruntime"))


def load(folder, backend, **options):
    options = {"fallback": "silent", **options}
    return load_vae(folder, model=tiny(), backend=backend, **options)


# --- what is remembered
# -----------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "e.trt"
    path.write_bytes(b"x")
    return path


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(failures_module.time, "monotonic", lambda: now[0])
    return now


def note(failures, file, error, times=1, device=CPU, size=None):
    for _ in range(times):
        failures.note((file, device, size), error, signature(file))


@pytest.mark.parametrize("kind", [StaleEngineError, ForeignEngineError])
def test_what_the_files_show_holds_until_they_change(file, clock, kind):
    failures = Failures()
    note(failures, file, kind("built for something else", fix="qvae build"))
    clock[0] += 10 * PAUSE_S
    with pytest.raises(kind, match="something else\nqvae build"):
        failures.check((file, CPU, None))
    failures.check((file, GPU, None))
    file.chmod(0o600 if file.stat().st_mode & 0o040 else 0o640)
    failures.check((file, CPU, None))


@pytest.mark.parametrize("kind", [EngineError, BackendError, ExecutionError])
def test_what_may_pass_is_tried_again_and_after_a_few_times_in_a_row_later(file, clock, kind):
    failures = Failures()
    note(failures, file, kind("too many open files"), STRIKES - 1)
    failures.check((file, CPU, None))
    failures.clear((file, CPU, SMALL))
    note(failures, file, kind("too many open files"), STRIKES - 1)
    failures.check((file, CPU, None))
    note(failures, file, kind("too many open files"))
    failures.check((file, GPU, None))
    clock[0] += PAUSE_S - 1
    with pytest.raises(kind, match="too many open files"):
        failures.check((file, CPU, None))
    clock[0] += 1
    failures.check((file, CPU, None))
    note(failures, file, kind("still"))
    with pytest.raises(kind, match="still"):
        failures.check((file, CPU, None))
    failures.forget()
    failures.check((file, CPU, None))


def test_a_file_that_changed_begins_anew(file):
    failures = Failures()
    note(failures, file, EngineError("no"), STRIKES)
    file.write_bytes(b"built anew")
    note(failures, file, EngineError("too many open files"))
    failures.check((file, CPU, None))


def test_success_on_one_device_is_none_on_another(file):
    failures = Failures()
    note(failures, file, ExecutionError("no"), STRIKES - 1)
    failures.clear((file, GPU, SMALL))
    note(failures, file, ExecutionError("no"))
    with pytest.raises(ExecutionError):
        failures.check((file, CPU, None))


def test_a_size_that_fails_is_left_alone_and_no_other(file, clock):
    failures = Failures()
    for _ in range(STRIKES):
        note(failures, file, ExecutionError("in a Reshape"), size=SMALL)
        failures.clear((file, CPU, LARGE))
    failures.check((file, CPU, LARGE))
    failures.check((file, CPU, None))
    with pytest.raises(ExecutionError, match="Reshape"):
        failures.check((file, CPU, SMALL))
    clock[0] += PAUSE_S
    failures.check((file, CPU, SMALL))


def test_successes_between_failures_count(file, clock):
    """Only failures in a row are strikes."""
    failures = Failures()
    for _ in range(3):
        note(failures, file, ExecutionError("now and then"), STRIKES - 1, size=SMALL)
        failures.check((file, CPU, SMALL))
        failures.clear((file, CPU, SMALL))


def test_an_engine_that_does_not_load_runs_no_size(file):
    failures = Failures()
    note(failures, file, EngineError("does not load"), STRIKES)
    with pytest.raises(EngineError, match="does not load"):
        failures.check((file, CPU, LARGE))


def test_a_lack_of_memory_is_not_remembered(file):
    failures = Failures()
    note(failures, file, DeviceMemoryError("none left"), 10)
    failures.check((file, CPU, None))


def test_an_engine_replaced_while_it_was_tried_is_tried(file):
    failures, before = Failures(), signature(file)
    file.write_bytes(b"mended")
    failures.note((file, CPU, None), StaleEngineError("no"), before)
    failures.check((file, CPU, None))


# --- what that does for pictures
# --------------------------------------------------------------------


def test_a_load_that_failed_for_a_passing_reason_is_tried_again(folder, backend):
    shutil.rmtree(folder / "profiles")
    refusals = [1]

    def fault(what, path):
        if what == "open" and refusals:
            refusals.clear()
            cause = OSError(errno.EMFILE, "Too many open files")
            raise EngineError(f"{path}: cannot be read: {cause.strerror}") from cause

    backend.fault = fault
    vae = load(folder, backend)
    for _ in range(2):
        vae.decode(Z)
    assert backend.live == 1


def test_an_engine_known_to_be_bad_evicts_nothing(folder, backend):
    side = store.sidecar_path(folder / ENGINE)
    data = json.loads(side.read_text())
    data["key"]["flavour_version"] = "0.1"
    side.write_text(json.dumps(data))
    vae = load(folder, backend, memory_budget_bytes=(folder / PROFILES).stat().st_size)
    for _ in range(5):
        vae.decode(Z)
    assert backend.opened == [folder / PROFILES]


def test_an_engine_that_always_fails_is_left_alone_while_others_hold_it(folder, backend):
    shutil.rmtree(folder / "profiles")
    runs = []

    def fault(what, path):
        if what == "execute":
            runs.append(path)
            raise ExecutionError("always")

    backend.fault = fault
    vae = load(folder, backend)
    cache, _ = vae._ladder.engines.place(CPU)
    with cache.lease(
        folder / ENGINE, lambda: Engine.open(folder / ENGINE, wanted=Wanted(backend=backend))
    ):
        for _ in range(10):
            vae.decode(Z)
    assert len(runs) == STRIKES
    assert backend.opened == [folder / ENGINE]


def test_a_size_that_always_fails_takes_the_engine_from_no_other(folder, backend):
    shutil.rmtree(folder / "static")
    z = {SMALL: torch.zeros(1, 16, 1, *QWEN_IMAGE.latents_of(SMALL)), LARGE: Z}
    running, runs = [SMALL], {SMALL: 0, LARGE: 0}

    def fault(what, path):
        if what == "execute":
            runs[running[0]] += 1
            if running[0] == SMALL:
                raise ExecutionError("in a Reshape of attention")

    backend.fault = fault
    vae = load(folder, backend, fallback="raise")
    for _ in range(STRIKES + 1):
        running[0] = SMALL
        with pytest.raises(ExecutionError, match="Reshape"):
            vae.decode(z[SMALL])
        running[0] = LARGE
        vae.decode(z[LARGE])
    assert runs == {SMALL: STRIKES, LARGE: STRIKES + 1}
    assert vae.choice("decoder", LARGE).engine == "profiles"
    left = vae.choice("decoder", SMALL)
    assert left.engine == "folded", "what is not tried is not named"
    assert "Reshape" in left.explain()


@pytest.mark.filterwarnings("ignore:.*no sidecar:UserWarning")
@pytest.mark.parametrize("error", [BackendError("does not start"), EngineError("does not load")])
def test_a_foreign_engine_that_does_not_load_is_left_alone_too(folder, backend, error):
    shutil.rmtree(folder / "static")
    for side in folder.rglob("*.json"):
        side.unlink()
    tries = []

    def fault(what, path):
        if what == "open":
            tries.append(path)
            raise error

    backend.fault = fault
    vae = load(folder, backend, allow_foreign=True)
    for _ in range(STRIKES + 3):
        vae.decode(Z)
    assert len(tries) == STRIKES
    assert error.what in vae.choice("decoder", STATIC).explain()


def test_a_failed_engine_is_free_before_pytorch_runs(folder, backend):
    shutil.rmtree(folder / "profiles")
    opened: list[weakref.ref] = []
    alive: list[bool] = []
    open_engine = backend.open

    def watched(path):
        session = open_engine(path)
        opened.append(weakref.ref(session))
        return session

    def fault(what, _path):
        if what == "execute":
            raise ExecutionError("no")

    backend.open, backend.fault = watched, fault
    vae = load(folder, backend)
    folded = vae._ladder.pytorch.folded

    def watched_folded(*given):
        alive.append(opened[0]() is not None)
        return folded(*given)

    vae._ladder.pytorch.folded = watched_folded
    gc.collect()
    gc.disable()
    try:
        vae.decode(Z)
        assert alive == [False], "closed, and yet alive: TensorRT's context is not freed"
        assert opened[0]() is None
    finally:
        gc.enable()


def test_an_engine_is_checked_against_the_gpu_that_it_is_loaded_on(folder, backend, monkeypatch):
    """Not against the current one: the GPUs of one machine may differ."""
    entered, seen = [None], []
    identity = backend.identity

    @contextmanager
    def on(device):
        entered.append(device)
        yield
        entered.pop()

    def asked():
        seen.append(entered[-1])
        return identity()

    monkeypatch.setattr("qvae_trt.runtime.engine.on", on)
    monkeypatch.setattr(backend, "identity", asked)
    load(folder, backend, fallback="raise").decode(Z)
    assert seen == [None, CPU], "once to know where engines run, once for the engine"


# --- engines that are replaced
# ----------------------------------------------------------------------


def test_an_engine_replaced_between_check_and_load_does_not_serve(folder, tmp_path, backend):
    other = copy.deepcopy(tiny().vae)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
    theirs = ort_engines.build(tmp_path / "theirs", Model(other, "", "f" * 64), modes=("static",))
    shutil.rmtree(folder / "profiles")

    def fault(what, path):
        if what == "open":  # `qvae build --model OTHER`, finishing just now
            for file in (path, store.sidecar_path(path)):
                shutil.copy(theirs / file.relative_to(folder), tmp_path / "new")
                (tmp_path / "new").replace(file)

    backend.fault = fault
    y = load(folder, backend).decode(Z).sample
    torch.testing.assert_close(y, tiny().vae.decode(Z).sample, atol=1e-3, rtol=0)
    assert backend.live == 0


def test_an_engine_that_is_replaced_again_and_again_is_given_up_in_words(folder, backend):
    def fault(what, path):
        if what == "open":
            shutil.copy(path, path.with_suffix(".new"))
            path.with_suffix(".new").replace(path)

    backend.fault = fault
    with pytest.raises(EngineError, match="replaced 5 times while it was loaded"):
        Engine.open(folder / ENGINE, wanted=Wanted(backend=backend))
    assert len(backend.opened) == 5
    assert backend.live == 0


class Shelf:
    """A backend whose engines have the ranges that it has when they are opened."""

    name, suffix = "onnxruntime", ".onnx"

    def __init__(self, *ranges: ShapeRange) -> None:
        self.ranges = ranges
        self.factor = 1.0
        self.sessions: list[FakeSession] = []

    def identity(self) -> dict[str, str]:
        return {"gpu": "cpu"}

    def can_run(self) -> Verdict:
        return Verdict(True, "here")

    def open(self, _path) -> FakeSession:
        self.sessions.append(FakeSession(self.ranges, factor=self.factor))
        return self.sessions[-1]

    @property
    def profiles_run(self) -> list[int]:
        """Of all engines, in order."""
        calls = [call for session in self.sessions for call in session.calls]
        return [call[2] for call in calls if call[0] == "select"]


def sizes(*sides: int) -> ShapeRange:
    return ShapeRange(*((1, 3, 1, side, side) for side in sides))


def loaded(engines):
    return engines.loaded()[CPU][0]


def foreign(folder, backend, **options) -> Engines:
    modes = {"static": folder / "static", "profiles": folder}
    return Engines(modes, backend=backend, weights_sha256="", allow_foreign=True, **options)


@pytest.mark.filterwarnings("ignore:.*no sidecar")
def test_the_profile_is_one_of_the_engine_that_runs(tmp_path):
    """What was chosen may be older than its file: then nothing runs, and it is chosen again."""
    near, far = sizes(4, 8, 8), sizes(4, 16, 16)
    backend, x, size = Shelf(near, far), torch.ones(1, 3, 1, 8, 8), Resolution(64, 64)
    file = tmp_path / "vae_decoder_multi_profile.onnx"
    file.write_bytes(b"first")
    engines = foreign(tmp_path, backend)
    old = engines.choose("decoder", size)
    engines.serve("decoder", old, x)
    assert (old.choice.profile_index, backend.profiles_run) == (0, [0])

    file.write_bytes(b"built anew")
    backend.ranges = (far, near)
    assert engines.serve("decoder", old, x) is None
    assert backend.profiles_run == [0]
    new = engines.choose("decoder", size)
    assert engines.serve("decoder", new, x) is not None
    assert (new.choice.profile_index, backend.profiles_run) == (1, [0, 1])

    file.write_bytes(b"and again")
    backend.ranges = (sizes(12, 16, 16),)
    assert engines.serve("decoder", new, x) is None
    found = engines.choose("decoder", size).choice
    assert found.engine == "folded"
    assert "width 64 is not in 96..128" in found.explain()


@pytest.mark.filterwarnings("ignore:.*no sidecar")
def test_an_engine_replaced_between_choice_and_load_runs_the_profile_of_the_new_one(
    tmp_path, monkeypatch
):
    latents = [((1, 16, 1, side, side) for side in sides) for sides in ((4, 8, 8), (4, 16, 16))]
    backend = Shelf(*(ShapeRange(*shapes) for shapes in latents))
    file = tmp_path / "profiles" / "vae_decoder_multi_profile.onnx"
    file.parent.mkdir()
    file.write_bytes(b"first")
    vae = load_vae(tmp_path, model=tiny(), backend=backend, fallback="raise", allow_foreign=True)
    engines = vae._ladder.engines
    choose, chosen = engines.choose, []

    def replaced_after(*given):
        chosen.append(choose(*given))
        if len(chosen) == 1:  # `qvae build` is done just now
            backend.ranges = backend.ranges[::-1]
            file.write_bytes(b"built anew")
        return chosen[-1]

    monkeypatch.setattr(engines, "choose", replaced_after)
    assert vae.decode(torch.ones(1, 16, 1, 8, 8)).sample.mean() == 1.0
    assert [one.choice.profile_index for one in chosen] == [0, 1]
    assert backend.profiles_run == [1]


@pytest.mark.filterwarnings("ignore:.*no sidecar")
@pytest.mark.parametrize("mode", ["static", "profiles"])
def test_an_engine_that_is_replaced_while_it_is_loaded_serves_from_the_next_call(tmp_path, mode):
    backend, x, size = Shelf(sizes(8, 8, 8)), torch.ones(1, 3, 1, 8, 8), Resolution(64, 64)
    engines = foreign(tmp_path, backend)
    file = engines.path("decoder", mode, size)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"first")

    def run(factor):
        backend.factor = factor
        return float(engines.serve("decoder", engines.choose("decoder", size), x).mean())

    assert [run(0.25), run(0.5)] == [0.25, 0.25]
    file.write_bytes(b"built anew")
    assert [run(0.5), run(0.75)] == [0.5, 0.5]
    opened = [session for session in backend.sessions if session.calls]
    assert [session.closed for session in opened] == [True, False]
    assert len(loaded(engines)) == 1


@pytest.mark.filterwarnings("ignore:.*no sidecar")
def test_what_is_chosen_serves_also_after_a_wider_engine_came(tmp_path):
    backend, size = Shelf(sizes(4, 8, 8)), Resolution(128, 128)
    file = tmp_path / "vae_decoder_multi_profile.onnx"
    file.write_bytes(b"first")
    engines = foreign(tmp_path, backend)
    small = engines.choose("decoder", Resolution(64, 64))
    engines.serve("decoder", small, torch.ones(1, 3, 1, 8, 8))
    assert engines.choose("decoder", size).choice.engine == "folded"
    file.write_bytes(b"built anew")
    backend.ranges = (sizes(4, 8, 16),)
    chosen = engines.choose("decoder", size)
    assert chosen.choice.engine == "profiles"
    engines.serve("decoder", chosen, torch.ones(1, 3, 1, 16, 16))


@pytest.mark.filterwarnings("ignore:.*no sidecar")
def test_a_replaced_engine_is_closed_once_nobody_uses_it(tmp_path):
    backend, x, size = Shelf(sizes(8, 8, 8)), torch.ones(1, 3, 1, 8, 8), Resolution(64, 64)
    engines = foreign(tmp_path, backend)
    file = tmp_path / "vae_decoder_multi_profile.onnx"

    def replace_and_run(data):
        file.write_bytes(data)
        engines.serve("decoder", engines.choose("decoder", size), x)
        return backend.sessions[-1]

    first = replace_and_run(b"first")
    cache, _ = engines.place(CPU)
    with cache.lease(file, lambda: pytest.fail("it is loaded")) as engine:
        second = replace_and_run(b"the second")
        assert not first.closed
        assert sum(size for _, size in loaded(engines)) == 15
        engine.run(x)
    assert (first.closed, second.closed) == (True, False)
    with cache.lease(file, lambda: pytest.fail("it is loaded")) as engine:
        engine.captured = True
    replace_and_run(b"a third one")
    engines.make_room(CPU)
    assert not second.closed, "a graph of the caller's holds its addresses"
