"""Whatever tensor comes in: the result that diffusers gives, or a `UsageError` that says why."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ort_engines import tiny
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

from qvae_trt.errors import QvaeError, UsageError
from qvae_trt.runtime.vae import TrtVae, load_vae

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
OTHERS = (torch.int64, torch.uint8, torch.bool, torch.complex64)
# Sides that a static engine, the profiles engine, PyTorch alone, or nothing takes.
SIDES = st.sampled_from((8, 16, 32, 60, 64, 75, 96, 128))
LOOSE = settings(
    deadline=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="module")
def vae(engine_dir) -> TrtVae:
    return load_vae(engine_dir, model=tiny(), fallback="silent", backend="onnxruntime")


def strided(x: torch.Tensor, layout: str) -> torch.Tensor:
    """The same values in another layout."""
    if layout == "channels last":
        return x.to(memory_format=torch.channels_last_3d)
    if layout == "transposed":
        return x.transpose(3, 4).contiguous().transpose(3, 4)
    if layout == "a view of something larger":
        larger = torch.zeros(
            x.shape[0], x.shape[1], 3, x.shape[3] + 2, x.shape[4] * 2, dtype=x.dtype
        )
        view = larger[:, :, 1:2, 1:-1, ::2]
        view.copy_(x)
        return view
    if layout == "expanded":
        return x[:1].expand(x.shape[0], -1, -1, -1, -1)
    return x


LAYOUTS = ("contiguous", "channels last", "transposed", "a view of something larger", "expanded")


@LOOSE
@given(
    batch=st.integers(1, 2),
    height=SIDES,
    width=SIDES,
    dtype=st.sampled_from(FLOATS),
    layout=st.sampled_from(LAYOUTS),
    seed=st.integers(0, 99),
)
def test_any_picture_is_encoded_as_diffusers_does(vae, batch, height, width, dtype, layout, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand((batch, 3, 1, height, width), generator=generator) * 2 - 1
    x = strided(x.to(dtype), layout)
    before = x.clone()
    found = vae.encode(x).latent_dist.parameters
    expected = tiny().vae.encode(x.float()).latent_dist.parameters
    assert found.dtype == dtype
    assert found.shape == expected.shape
    tolerance = {torch.bfloat16: 2e-2, torch.float16: 2e-3}.get(dtype, 1e-3)
    torch.testing.assert_close(found.float(), expected, atol=tolerance * 10, rtol=tolerance)
    torch.testing.assert_close(x, before, rtol=0, atol=0)


@LOOSE
@given(
    batch=st.integers(1, 2),
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    dtype=st.sampled_from(FLOATS),
    layout=st.sampled_from(LAYOUTS),
    seed=st.integers(0, 99),
)
def test_any_latents_are_decoded_as_diffusers_does(vae, batch, height, width, dtype, layout, seed):
    generator = torch.Generator().manual_seed(seed)
    z = strided(torch.randn((batch, 16, 1, height, width), generator=generator).to(dtype), layout)
    before = z.clone()
    found = vae.decode(z).sample
    expected = tiny().vae.decode(z.float()).sample
    assert found.dtype == dtype
    tolerance = {torch.bfloat16: 1e-2, torch.float16: 1e-3}.get(dtype, 1e-3)
    torch.testing.assert_close(found.float(), expected, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(z, before, rtol=0, atol=0)


@LOOSE
@given(
    part=st.sampled_from(("encode", "decode")),
    shape=st.lists(st.integers(0, 17), min_size=0, max_size=6),
    dtype=st.sampled_from((*FLOATS, *OTHERS)),
)
def test_anything_else_is_refused_in_words(vae, part, shape, dtype):
    channels, least = (3, 8) if part == "encode" else (16, 1)
    fits = (
        len(shape) == 5
        and shape[1] == channels
        and min(shape) > 0
        and min(shape[3:]) >= least
        and dtype in FLOATS
    )
    if fits:
        return
    with pytest.raises(UsageError, match=r"expected floating point \(B, "):
        getattr(vae, part)(torch.zeros(shape, dtype=dtype))


WRONG = {
    "one dimension less": lambda s: s[:-1],
    "one dimension more": lambda s: (*s, 1),
    "another number of channels": lambda s: (s[0], s[1] + 1, *s[2:]),
    "no channel": lambda s: (s[0], 0, *s[2:]),
    "no picture": lambda s: (0, *s[1:]),
    "no frame": lambda s: (*s[:2], 0, *s[3:]),
    "no height": lambda s: (*s[:3], 0, s[4]),
    "no width": lambda s: (*s[:4], 0),
}


@LOOSE
@given(
    part=st.sampled_from(("encode", "decode")),
    batch=st.integers(1, 3),
    side=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    wrong=st.sampled_from((*WRONG, "dtype", "device")),
    dtype=st.sampled_from(FLOATS),
    other=st.sampled_from(OTHERS),
)
def test_one_thing_that_is_wrong_is_enough(vae, part, batch, side, wrong, dtype, other):
    """All else is as it should be: no check hides behind another."""
    channels, scale = (3, 8) if part == "encode" else (16, 1)
    shape = (batch, channels, 1, side[0] * scale, side[1] * scale)
    shape = WRONG[wrong](shape) if wrong in WRONG else shape
    x = torch.zeros(
        shape,
        dtype=other if wrong == "dtype" else dtype,
        device="meta" if wrong == "device" else "cpu",
    )
    with pytest.raises(UsageError, match="meta" if wrong == "device" else r"expected floating"):
        getattr(vae, part)(x)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("size", [(64, 96), (16, 192)])
def test_pixels_that_are_not_finite_stay_visible(vae, value, size):
    """By a static engine, and by PyTorch: the mean is as not finite as PyTorch's."""
    x = torch.rand((1, 3, 1, *size), generator=torch.Generator().manual_seed(0)) * 2 - 1
    clean = vae.encode(x).latent_dist.mean
    bad = x.clone()
    bad[0, 0, 0, 0, 0] = value
    found = vae.encode(bad).latent_dist.mean
    expected = tiny().vae.encode(bad).latent_dist.mean
    assert not expected.isfinite().all()
    assert torch.equal(found.isfinite(), expected.isfinite())
    torch.testing.assert_close(vae.encode(x).latent_dist.mean, clean, rtol=0, atol=0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("size", [(8, 12), (2, 24)])
def test_what_is_not_finite_stays_visible(vae, value, size):
    """It comes out as PyTorch would have it, and poisons nothing that comes after."""
    z = torch.randn(1, 16, 1, *size, generator=torch.Generator().manual_seed(0))
    clean = vae.decode(z).sample
    bad = z.clone()
    bad[0, 0, 0, 0, 0] = value
    found = vae.decode(bad).sample
    expected = tiny().vae.decode(bad).sample
    assert torch.equal(found.isnan(), expected.isnan())
    torch.testing.assert_close(vae.decode(z).sample, clean, rtol=0, atol=0)


def test_a_device_without_memory_is_no_place(vae):
    with pytest.raises(UsageError, match="meta"):
        vae.decode(torch.zeros(1, 16, 1, 8, 12, device="meta"))


# --- tensors at the edges
# ---------------------------------------------------------------------------

Z = torch.randn((1, 16, 1, 8, 12), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("size", [(8, 12), (2, 24)])
def test_a_negative_view_is_what_it_says(vae, size):
    """By an engine, and by PyTorch: what lies in its memory has the other sign."""
    z = torch.randn(1, 16, 1, *size, generator=torch.Generator().manual_seed(0))
    view = torch._neg_view(-z)
    assert view.is_neg()
    torch.testing.assert_close(vae.decode(view).sample, vae.decode(z).sample, rtol=0, atol=0)


def batched(vae):
    return torch.func.vmap(lambda z: vae.decode(z).sample)(Z[None])


def fake(vae):
    with FakeTensorMode() as mode:
        vae.decode(mode.from_tensor(Z))


NO_TENSORS = {
    "nothing": (lambda vae: vae.decode(None), "got a NoneType and no torch.Tensor"),
    "an array": (lambda vae: vae.encode(np.zeros((1, 3, 1, 64, 96))), "got a ndarray"),
    "sparse": (lambda vae: vae.decode(Z.to_sparse()), "sparse_coo.* without memory of its own"),
    "nested": (lambda vae: vae.decode(torch.nested.nested_tensor([Z])), "got a nested tensor"),
    "zeros without memory": (
        lambda vae: vae.decode(torch._efficientzerotensor(Z.shape)),
        "without memory",
    ),
    "in vmap": (batched, "without memory of its own"),
    "a fake one": (fake, "FakeTensor .* without memory of its own"),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors", "ignore:Accessing the data")
@pytest.mark.parametrize("name", NO_TENSORS)
def test_what_no_engine_can_read_is_refused(vae, name):
    call, said = NO_TENSORS[name]
    with pytest.raises(UsageError, match=said):
        call(vae)


def test_a_subclass_with_memory_of_its_own_is_taken(vae):
    class Marked(torch.Tensor):
        pass

    found = vae.decode(Z.as_subclass(Marked)).sample
    torch.testing.assert_close(found.as_subclass(torch.Tensor), vae.decode(Z).sample)


class Decoder(torch.nn.Module):
    def __init__(self, vae):
        super().__init__()
        self.call = lambda z: vae.decode(z).sample

    def forward(self, z):
        return self.call(z)


@pytest.mark.parametrize(
    "trace",
    [
        lambda module: torch.jit.trace(module, Z, check_trace=False),
        lambda module: torch.export.export(module, (Z,)),
        lambda module: make_fx(module)(Z),
    ],
    ids=["jit", "export", "make_fx"],
)
def test_a_trace_would_hold_one_result(vae, trace):
    with pytest.raises(UsageError, match="engines cannot be traced"):
        trace(Decoder(vae))


def test_compiled_code_calls_the_engine(vae):
    compiled = torch.compile(lambda z: vae.decode(z).sample, backend="eager")
    for z in (Z, Z + 1):
        torch.testing.assert_close(compiled(z), vae.decode(z).sample, rtol=0, atol=0)


def test_a_forward_derivative_is_not_lost(engine_dir):
    vae = load_vae(engine_dir, model=tiny(), fallback="raise", backend="onnxruntime")
    with forward_ad.dual_level(), pytest.raises(QvaeError, match="engines have none"):
        vae.decode(forward_ad.make_dual(Z, Z))
