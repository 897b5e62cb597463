"""Engines that load, run, and are wrong: parity must see each of them.

Each engine is changed inside its graph and gets a sidecar that fits it, so that nothing but its
picture tells.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper
from ort_engines import shared, tiny, write
from safetensors.torch import load_file, save_file
from verify_engines import SIZES, after_output, change, fp16_engines, gains, kernels, only, replace

import qvae_trt
from qvae_trt.errors import ParityError
from qvae_trt.export import export_onnx
from qvae_trt.lowerings import choose_lowering
from qvae_trt.model import BUNDLED_TINY, load_model
from qvae_trt.profiles import PARTS, Profile, Resolution, engine_path
from qvae_trt.verify import BOUNDS, verify
from qvae_trt.verify.bounds import compare
from qvae_trt.verify.reference import Reference, split_outputs

SIZE = Resolution(48, 64)
TINY_FOLDER = Path(qvae_trt.__file__).parent / "data" / "tiny"


@pytest.fixture(scope="module")
def engines(tmp_path_factory):
    return {"fp16": fp16_engines(tmp_path_factory), "fp32": shared(tmp_path_factory)}


@pytest.fixture(scope="module")
def torch_results():
    """part -> the input, PyTorch fp32's outputs on it, and PyTorch bf16's."""
    reference = Reference(tiny(), device=torch.device("cpu"))
    found = {}
    for part, name in (("encoder", "edges"), ("decoder", "encoded")):
        x = reference.input(part, name, SIZE)
        found[part] = (x, *(reference.run(part, x, dtype) for dtype in ("fp32", "bf16")))
    return found


def passes(proto, part, precision, torch_results):
    """Whether a graph keeps every bound on one input."""
    x, fp32, bf16 = torch_results[part]
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    dtype = np.float16 if precision == "fp16" else np.float32
    (y,) = session.run(None, {session.get_inputs()[0].name: x.astype(dtype)})
    outputs = split_outputs(part, y.astype(np.float32))
    return all(c.passed for c in compare(fp32, bf16, outputs, BOUNDS[precision]).values())


def survivors(engines, torch_results, part, precision, fault, *, choose=kernels, skip=()):
    """The tensors whose fault is let pass, out of all of a kind, one at a time."""
    path = engine_path(engines[precision], part, "profiles", ".onnx")
    whole = onnx.load(path)
    assert passes(whole, part, precision, torch_results)
    tried, left = 0, []
    for tensor in choose(whole):
        if any(word in tensor.name for word in skip):
            continue
        good = numpy_helper.to_array(tensor)
        replace(tensor, fault(good.astype(np.float32)))
        tried += 1
        if passes(whole, part, precision, torch_results):
            left.append(tensor.name)
        replace(tensor, good)
    assert tried >= 10
    return left


def noisy(share):
    def fault(values):
        rng = np.random.default_rng(5)
        return values + share * values.std() * rng.standard_normal(values.shape)

    return fault


@pytest.mark.parametrize("part", PARTS)
def test_any_kernel_of_zeros_is_rejected(engines, torch_results, part):
    assert survivors(engines, torch_results, part, "fp16", np.zeros_like) == []


@pytest.mark.parametrize("part", PARTS)
def test_any_gain_of_zeros_is_rejected(engines, torch_results, part):
    assert survivors(engines, torch_results, part, "fp16", np.zeros_like, choose=gains) == []


@pytest.mark.parametrize("part", PARTS)
def test_any_kernel_lost_in_noise_is_rejected(engines, torch_results, part):
    assert survivors(engines, torch_results, part, "fp16", noisy(1.0)) == []


@pytest.mark.parametrize("part", PARTS)
def test_any_kernel_of_twice_its_size_is_rejected(engines, torch_results, part):
    # After conv1 comes a norm, which divides the scale out again: the picture stays right.
    skip = ("conv1",)
    assert survivors(engines, torch_results, part, "fp16", lambda w: 2 * w, skip=skip) == []


@pytest.mark.parametrize("part", PARTS)
def test_in_fp32_any_kernel_a_hundredth_off_is_rejected(engines, torch_results, part):
    assert survivors(engines, torch_results, part, "fp32", noisy(0.01)) == []


# --- whole runs -----------------------------------------------------------------------------------


def _zero_the_first_kernel(proto):
    tensor = kernels(proto)[0]
    replace(tensor, np.zeros_like(numpy_helper.to_array(tensor)))


def _double_the_last_kernel(proto):
    tensor = kernels(proto)[-1]
    replace(tensor, 2 * numpy_helper.to_array(tensor))


def _noise_in_a_kernel(proto):
    tensor = kernels(proto)[3]
    replace(tensor, noisy(0.5)(numpy_helper.to_array(tensor).astype(np.float32)))


def _nan_in_a_kernel(proto):
    tensor = kernels(proto)[2]
    values = numpy_helper.to_array(tensor).copy()
    values.flat[0] = np.nan
    replace(tensor, values)


def _swap_two_channels(proto):
    channels = proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    after_output(proto, axis=1, order=[1, 0, *range(2, channels)])


def _shift_by_one_pixel(proto):
    width = SIZES[0].width
    if proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value > 4:
        width //= 8
    after_output(proto, axis=4, order=[width - 1, *range(width - 1)])


FAULTS = {
    "a kernel of zeros": _zero_the_first_kernel,
    "a kernel doubled": _double_the_last_kernel,
    "noise in a kernel": _noise_in_a_kernel,
    "a NaN in a kernel": _nan_in_a_kernel,
    "two channels swapped": _swap_two_channels,
    "a shift by one pixel": _shift_by_one_pixel,
}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_engine_fails_the_run(engines, tmp_path, part, fault):
    folder = only(engines["fp16"], tmp_path, "static")
    for other in PARTS:
        if other != part:
            engine_path(folder, other, "static", ".onnx", SIZES[0]).unlink()
    change(engine_path(folder, part, "static", ".onnx", SIZES[0]), FAULTS[fault])
    report = verify(folder, model=BUNDLED_TINY)
    assert report.rows
    assert not report.ok
    statuses = [row.status for row in report.rows]
    if fault == "two channels swapped" and part == "encoder":
        # Channels 0 and 1 are of the mean: the log-variances are right, and pass.
        assert set(statuses) == {"broken", "passed"}
        assert {row.output for row in report.rows if row.status == "broken"} == {"mean"}
    else:
        assert set(statuses) == {"broken"}
    if fault == "a NaN in a kernel":
        assert all("finite" in row.reason for row in report.rows)
    assert all(row.reason for row in report.rows if row.status == "broken")
    # Its file is what was built: without --force it would be kept.
    assert all(row.fix.endswith(" --force") for row in report.rows if row.status == "broken")


# --- weights that ignore what goes in -------------------------------------------------------------


def deaf(tmp_path):
    """The bundled VAE with nothing but zeros where its latents go in and out."""
    folder = Path(shutil.copytree(TINY_FOLDER, tmp_path / "deaf"))
    path = folder / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    for name in ("quant_conv.weight", "post_quant_conv.weight"):
        tensors[name].zero_()
    save_file(tensors, path)
    with pytest.warns(UserWarning, match="only zeros"):
        return load_model(str(folder))


def test_a_decoder_that_ignores_its_latents_does_not_pass(tmp_path):
    model, size, engines = deaf(tmp_path), SIZES[0], tmp_path / "engines"
    graph = export_onnx(
        model,
        "decoder",
        tmp_path / "decoder.onnx",
        precision="fp32",
        resolution=size,
        lowering=choose_lowering("onnxruntime", "1", "fp32"),
    )
    write(
        engines,
        "decoder",
        "static",
        Profile.fixed(size),
        onnx=graph.path,
        onnx_sha256=graph.sha256,
        precision="fp32",
        model=model,
    )
    with pytest.warns(UserWarning, match="only zeros"):
        report = verify(engines, model=model.source)
    assert not report.ok
    (row,) = (row for row in report.rows if row.comparison is None)
    assert (row.status, row.part) == ("broken", "decoder")
    assert row.reason.startswith("images: the same for any input")
    with pytest.raises(ParityError, match="same for any input") as caught:
        report.require()
    assert "No build mends" in caught.value.fix


def test_every_output_of_useful_weights_changes_with_the_input(tmp_path):
    cpu = torch.device("cpu")
    hears, ignores = Reference(tiny(), device=cpu), Reference(deaf(tmp_path), device=cpu)
    for part in PARTS:
        assert min(hears.response(part).values()) > 2 * BOUNDS["bf16"]["logvar"].relative_l2
        assert max(ignores.response(part).values()) == 0
