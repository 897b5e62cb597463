"""A finite input never gives a result that is not finite without a word."""

from __future__ import annotations

import gc
import math
import subprocess
import sys
import warnings

import pytest
import torch
from doubles import Faulty
from ort_engines import STATIC, tiny
from verify_engines import fp16_engines

from qvae_trt import backends
from qvae_trt.kinds import QWEN_IMAGE
from qvae_trt.runtime.fallback import FallbackWarning, FiniteCheck, Notices
from qvae_trt.runtime.vae import load_vae

Z = torch.randn(
    (1, 16, 1, *QWEN_IMAGE.latents_of(STATIC)), generator=torch.Generator().manual_seed(0)
)
FINITE = torch.zeros(3)


def bad(value=math.nan):
    return torch.tensor([0.0, value, 1.0])


@pytest.fixture
def said():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield caught


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_result_that_is_not_finite_is_said_once(said, dtype, value):
    check = FiniteCheck(Notices("warn"))
    check.watch("decoder 8x8", FINITE.to(dtype))
    assert said == []
    for _ in range(3):
        check.watch("decoder 8x8", bad(value).to(dtype))
    (warning,) = said
    assert warning.category is RuntimeWarning
    assert "decoder 8x8: NaN or infinity in a result" in str(warning.message)
    assert "check_nan=True" in str(warning.message)
    assert warning.filename == __file__


def test_nothing_is_said_where_silence_is_asked_for(said):
    FiniteCheck(Notices("silent")).watch("decoder 8x8", bad())
    assert said == []


class Later(FiniteCheck):
    """On a device that comes to the copies when `arrive` is called."""

    def __init__(self, notices):
        super().__init__(notices)
        self.copies = []

    def _slot(self, device):
        slot = super()._slot(device)
        self.copies.append((slot, slot.clone()))
        return slot

    def watch(self, where, y):
        told, self.tell = self.tell, lambda: None
        super().watch(where, y)
        self.tell = told
        if self.copies:
            slot, unknown = self.copies[-1]
            self.copies[-1] = slot, slot.clone()
            slot.copy_(unknown)
        self.tell()

    def arrive(self):
        for slot, written in self.copies:
            slot.copy_(written)
        self.copies.clear()


def test_what_is_known_later_is_said_later(said):
    """A GPU is not waited for; what it has not come to is asked for again."""
    check = Later(Notices("warn"))
    check.watch("decoder 8x8", bad())
    check.watch("decoder 16x16", FINITE)
    check.watch("encoder 8x8", bad())
    assert said == []
    check.arrive()
    check.tell()
    assert [str(warning.message)[:13] for warning in said] == ["decoder 8x8: ", "encoder 8x8: "]


def test_results_that_are_never_known_cost_no_more_memory(said):
    check = Later(Notices("warn"))
    for _ in range(1000):
        check.watch("decoder 8x8", FINITE)
    assert len(check.copies) <= 64
    check.arrive()
    check.tell()
    check.watch("decoder 8x8", bad())
    check.arrive()
    check.tell()
    assert len(said) == 1, "and the places are used again"


def test_numbers_made_in_inference_mode_serve_outside(said):
    check = FiniteCheck(Notices("warn"))
    with torch.inference_mode():
        check.watch("decoder 8x8", FINITE.clone())
    check.watch("decoder 8x8", bad())
    with torch.inference_mode():
        check.watch("decoder 16x16", bad().clone())
    assert len(said) == 2


@pytest.mark.parametrize("fallback", ["warn", "raise"])
def test_an_engine_that_overflows_is_said(tmp_path_factory, said, fallback):
    """fp32 latents past what fp16 holds: PyTorch gives a finite picture."""
    vae = load_vae(
        fp16_engines(tmp_path_factory), model=tiny(), backend="onnxruntime", fallback=fallback
    )
    assert vae.decode(Z).sample.isfinite().all()
    assert said == []
    assert not vae.decode(Z * 1e6).sample.isfinite().all()
    (warning,) = said
    assert "decoder 96x64: NaN or infinity in a result" in str(warning.message)
    vae.decode(Z * 1e6)
    assert len(said) == 1


def test_what_comes_without_an_engine_is_looked_at_too(said):
    vae = load_vae(None, model=tiny(), backend="onnxruntime", fallback="warn")
    vae.decode(Z)
    vae.decode(Z * math.inf)
    assert [w.category for w in said if w.category is not FallbackWarning] == [RuntimeWarning]


def test_asked_for_pytorch_serves_where_an_engine_overflows(tmp_path_factory):
    vae = load_vae(
        fp16_engines(tmp_path_factory), model=tiny(), backend="onnxruntime", check_nan=True
    )
    with pytest.warns(FallbackWarning, match="PyTorch instead: .*NaN or infinity"):
        assert vae.decode(Z * 1e6).sample.isfinite().all()


def test_what_is_pending_is_said_when_the_vae_goes(engine_dir, said):
    backend = Faulty(backends.get("onnxruntime"))
    backend.fault = lambda what, _path: math.nan if what == "execute" else None
    vae = load_vae(engine_dir, model=tiny(), backend=backend)
    ladder = vae._ladder
    tell, ladder.finite.tell = ladder.finite.tell, lambda: None
    vae.decode(Z)
    assert said == []
    ladder.finite.tell = tell
    del vae, ladder
    gc.collect()
    assert len(said) == 1


AT_THE_END = """
import sys, torch
from qvae_trt.runtime.vae import load_vae
vae = load_vae(sys.argv[1], model="bundled:tiny", backend="onnxruntime", fallback="raise")
check = vae._ladder.finite
type(check).tell, tell = lambda self: None, type(check).tell
vae.decode(torch.full((1, 16, 1, 8, 12), 1e6))
type(check).tell = tell
check.__dict__["kept"] = vae
"""


def test_or_when_the_process_ends(tmp_path_factory):
    engines = fp16_engines(tmp_path_factory)
    ran = subprocess.run(
        [sys.executable, "-c", AT_THE_END, engines], capture_output=True, text=True, check=True
    )
    assert "decoder 96x64: NaN or infinity in a result" in ran.stderr
