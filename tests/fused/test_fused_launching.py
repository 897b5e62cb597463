"""Kernels are compiled side by side, each once, and what fails is told."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from qvae_trt.fused.launching import compiling, launch


class Kernel:
    """Like one of Triton's: notes what it is asked to run and to compile."""

    def __init__(self, compiled=lambda: None):
        self.ran, self.warmed, self.compiled = [], [], compiled

    def __getitem__(self, grid):
        return lambda *args, **constants: self.ran.append((grid, constants))

    def warmup(self, *args, grid, **constants):
        self.compiled()
        self.warmed.append((grid, constants))
        return SimpleNamespace(run=None)


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())


def test_kernels_run_outside_and_are_compiled_inside():
    kernel, x = Kernel(), torch.zeros(3)
    with compiling(torch.device("cuda")):
        launch(kernel, (3,))(x, 3, C=1)
    assert (kernel.ran, kernel.warmed) == ([], [((3,), {"C": 1})])
    launch(kernel, (5,))(x, 5, C=1)
    assert kernel.ran == [((5,), {"C": 1})]


def test_each_is_compiled_once_for_its_dtypes_and_constants():
    kernel = Kernel()
    with compiling(torch.device("cuda")):
        for dtype in (torch.float16, torch.float32):
            for channels in (96, 192):
                for pixels in (10, 20):
                    launch(kernel, (pixels,))(torch.zeros(1, dtype=dtype), C=channels)
    assert len(kernel.warmed) == 4


def test_they_are_compiled_at_the_same_time(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 3)
    together = threading.Barrier(3, timeout=30)
    with compiling(torch.device("cuda")):
        for _ in range(3):
            launch(Kernel(together.wait), (1,))(torch.zeros(1))
    assert not together.broken


def test_an_error_of_the_compiler_is_raised_and_later_kernels_run():
    def fail():
        raise ValueError("no such instruction")

    with (
        pytest.raises(ValueError, match="no such instruction"),
        compiling(torch.device("cuda")),
    ):
        launch(Kernel(fail), (1,))(torch.zeros(1))
    kernel = Kernel()
    launch(kernel, (1,))(torch.zeros(1))
    assert kernel.ran


def test_other_threads_run_meanwhile():
    kernel = Kernel()
    with compiling(torch.device("cuda")):
        thread = threading.Thread(target=lambda: launch(kernel, (1,))(torch.zeros(1)))
        thread.start()
        thread.join()
    assert (len(kernel.ran), kernel.warmed) == (1, [])
