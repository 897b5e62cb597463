"""The folded graph is the same function as diffusers' VAE, however it is written."""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable, Iterable
from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKLQwenImage
from folding_cases import inputs, make_vae, make_vae_21, reference
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from qvae_trt.errors import ModelError, UsageError
from qvae_trt.folding import FoldedVae, fold
from qvae_trt.folding.attention import attend, attend_by_exp, with_ones
from qvae_trt.folding.norm import RmsNorm
from qvae_trt.folding.weights import linear
from qvae_trt.kinds import QWEN_IMAGE, QWEN_IMAGE_21
from qvae_trt.lowerings import PYTORCH, Halves, Lowering, Norm, choose_lowering, default_level
from qvae_trt.profiles import Part, Profile, Resolution

#: Largest difference in fp32 between two orders of the same sums.
TOLERANCE = 1e-5
LOWERINGS = [
    PYTORCH,
    Lowering(upsample="conv_transpose", norm="fp32", attention="softmax", attention_chunks=4),
    Lowering(upsample="depth_to_space", norm="conv_spread", attention="exp", attention_chunks=3),
    Lowering(norm="fp32", residual="subtract", attention="softmax", attention_chunks=2),
    choose_lowering("tensorrt", "8.6.1", "fp16"),
    Lowering(norm="conv_wide", attention="softmax", attention_chunks=2),
]


@pytest.mark.parametrize("lowering", LOWERINGS, ids=Lowering.canonical)
@pytest.mark.parametrize(("channels", "batch"), list(itertools.product((3, 4), (1, 3))))
def test_equals_diffusers(lowering: Lowering, channels: int, batch: int) -> None:
    vae = make_vae(input_channels=channels)
    # 5 x 9 latents: odd, not square, and 45 tokens are no multiple of 8.
    pixels, latents = inputs(channels, batch, 40, 72)
    moments, images = reference(vae, pixels, latents)
    folded = fold(vae, lowering=lowering)
    assert folded.encode(pixels).shape == moments.shape
    torch.testing.assert_close(folded.encode(pixels), moments, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(folded.decode(latents), images, rtol=0, atol=TOLERANCE)
    assert moments.std() > 0.05
    assert images.std() > 0.05


#: Of the released widths, whose shortcuts have zeros between their channels; with groups over two
#: rows, over several channels, and over one pixel; without shortcuts.
WIDTHS_21 = [
    {},
    {"dim_mult": [2, 1, 4, 4, 2], "temperal_downsample": [True, False, True, False]},
    {"is_residual": False, "dim_mult": [1, 2, 2, 4, 4]},
    {"in_channels": 3, "out_channels": 3, "decoder_base_dim": None},
]


@pytest.mark.parametrize("lowering", LOWERINGS, ids=Lowering.canonical)
@pytest.mark.parametrize("widths", WIDTHS_21, ids=str)
def test_equals_diffusers_of_2_1(lowering: Lowering, widths: dict[str, object]) -> None:
    vae = make_vae_21(**widths)
    folded = fold(vae, lowering=lowering)
    assert folded.scale == 16
    for batch, height, width in ((1, 48, 80), (3, 32, 16)):
        channels = vae.config.in_channels
        pixels, latents = inputs(channels, batch, height, width, scale=16)
        moments, images = reference(vae, pixels, latents)
        assert folded.encode(pixels).shape == moments.shape
        torch.testing.assert_close(folded.encode(pixels), moments, rtol=0, atol=TOLERANCE)
        torch.testing.assert_close(folded.decode(latents), images, rtol=0, atol=TOLERANCE)
        assert moments.std() > 0.05
        assert images.std() > 0.05


@pytest.mark.parametrize("lowering", LOWERINGS, ids=Lowering.canonical)
@pytest.mark.parametrize("widths", [None, *WIDTHS_21], ids=str)
@pytest.mark.parametrize("halves", ["last", "last_two"])
def test_halves_equal_the_whole(
    lowering: Lowering, widths: dict[str, object] | None, halves: Halves
) -> None:
    vae = make_vae() if widths is None else make_vae_21(**widths)
    whole = fold(vae, lowering=lowering)
    halved = fold(vae, lowering=replace(lowering, halves=halves))
    channels, scale = 3 if widths is None else vae.config.in_channels, halved.scale
    for batch, height in ((1, 256), (2, 256 + 3 * scale)):
        pixels, latents = inputs(channels, batch, height, 2 * scale, scale=scale)
        moments, images = whole.encode(pixels), whole.decode(latents)
        torch.testing.assert_close(halved.encode(pixels), moments, rtol=0, atol=TOLERANCE)
        torch.testing.assert_close(halved.decode(latents), images, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("part", ["encoder", "decoder"])
@pytest.mark.parametrize("make", [make_vae, make_vae_21])
def test_halves_hold_half(make: Callable[[], AutoencoderKLQwenImage], part: Part) -> None:
    whole, halved = fold(make()), fold(make(), lowering=Lowering(halves="last"))
    assert largest_activation(halved, part) < 0.6 * largest_activation(whole, part)


def largest_activation(folded: FoldedVae, part: Part) -> int:
    sizes: list[int] = []
    for layer in folded.modules():
        layer.register_forward_hook(lambda *called: sizes.append(called[2].numel()))
    pixels, latents = inputs(4 if folded.scale == 16 else 3, 1, 512, 32, scale=folded.scale)
    _ = folded.encode(pixels) if part == "encoder" else folded.decode(latents)
    return max(sizes)


@pytest.mark.parametrize("scale", [0.01, 30.0])
@pytest.mark.parametrize("norm", ["conv_spread", "conv_wide"])
def test_2_1_survives_fp16_at_any_scale(norm: Norm, scale: float) -> None:
    """Shortcuts around a resampling take part in the powers of two."""
    vae = make_vae_21()
    with torch.no_grad():
        for name, parameter in vae.named_parameters():
            if norm == "conv_wide" and name.endswith("gamma"):
                parameter.abs_().clamp_(0.6)
            if ".conv_in." in f".{name}" or "resample.1" in name:
                parameter.mul_(scale)
    pixels, latents = inputs(4, 1, 64, 64, scale=16)
    moments, images = reference(vae, pixels, latents)
    half = torch.nn.Module.to(copy.deepcopy(vae), torch.bfloat16)
    bf16 = reference(half, pixels.bfloat16(), latents.bfloat16())
    folded = fold(vae, lowering=replace(choose_lowering("tensorrt", "8.6.1", "fp16"), norm=norm))
    if scale > 1:  # what norms add to squares in fp16 is seen beside small ones
        torch.testing.assert_close(folded.encode(pixels), moments, rtol=0, atol=TOLERANCE)
        torch.testing.assert_close(folded.decode(latents), images, rtol=0, atol=TOLERANCE)
    folded = folded.half()
    assert relative_error(folded.encode(pixels.half()), moments) <= relative_error(bf16[0], moments)
    assert relative_error(folded.decode(latents.half()), images) <= relative_error(bf16[1], images)


def test_gains_move_into_the_convolution_before() -> None:
    vae = make_vae(mild=True)
    pixels, latents = inputs(3, 1, 40, 72)
    moments, images = reference(vae, pixels, latents)
    folded = fold(vae, lowering=Lowering(norm="conv_spread"))
    moved = [m.gain_is_before for m in folded.modules() if isinstance(m, RmsNorm)]
    assert sum(moved) == 10 + 14  # the second norm of each block
    torch.testing.assert_close(folded.encode(pixels), moments, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(folded.decode(latents), images, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("gamma", [[1.0, 1e-3], [3.7, 2.0**-4.7], [1.0, 8.0]])
def test_a_gain_that_is_too_small_or_large_stays(gamma: list[float]) -> None:
    norm = RmsNorm(torch.tensor(gamma), form="conv_spread", silu=False)
    conv = nn.Conv2d(2, 2, 1).requires_grad_(False)
    before = conv.weight.clone()
    assert not norm.move_gain_into(conv)
    assert torch.equal(conv.weight, before)
    x = torch.randn(1, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    expected = RmsNorm(torch.tensor(gamma), form="native", silu=False)(x)
    torch.testing.assert_close(norm(x), expected)


@pytest.mark.parametrize("rms", [2.0**-6, 2.0**-4, 1.0, 4.0])
@pytest.mark.parametrize("gains", ["even", "high and low"])
@pytest.mark.parametrize("channels", [96, 384])
def test_moved_gains_of_any_size_survive_fp16(channels: int, gains: str, rms: float) -> None:
    """From the least to the largest gain that moves, and from a quarter of the least root mean
    square that `scaling` leaves alone to the highest.
    """
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (channels,), generator=generator) * 2.0 - 1.0
    exponents = {
        "even": torch.linspace(-4.3, 1.9, channels),
        "high and low": torch.tensor([-3.4, 1.9]).repeat(channels // 2),
    }[gains]
    gamma = 2.0**exponents * signs
    spread = torch.exp(0.7 * torch.randn(1, channels, 1, 1, generator=generator))
    x = torch.randn(1, channels, 24, 24, generator=generator) * spread
    norm = RmsNorm(gamma, form="conv_spread", silu=True)
    x *= rms / (x * norm.gain.reshape(1, -1, 1, 1)).square().mean().sqrt()
    before = nn.Conv2d(channels, channels, 1).requires_grad_(False)
    before.weight.copy_(torch.eye(channels)[:, :, None, None])
    nn.init.zeros_(before.bias)
    assert norm.move_gain_into(before)
    expected = RmsNorm(gamma, form="native", silu=True)(x)
    bf16 = RmsNorm(gamma, form="native", silu=True).bfloat16()(x.bfloat16())
    fp16 = norm.half()(before.half()(x.half()))
    assert relative_error(fp16, expected) <= relative_error(bf16, expected)


def test_sums_in_every_channel() -> None:
    """Of norms that have a gain to spread, where none of theirs is negative or far from 1."""
    vae = make_vae(mild=True)
    with torch.no_grad():
        for name, parameter in vae.named_parameters():
            if name.endswith("gamma"):
                parameter.abs_().clamp_(0.6)
        vae.decoder.norm_out.gamma[0] = -1.0
    pixels, latents = inputs(3, 1, 40, 72)
    moments, images = reference(vae, pixels, latents)
    folded = fold(vae, lowering=Lowering(norm="conv_wide"))
    norms = [m for m in folded.modules() if isinstance(m, RmsNorm)]
    wide = [norm for norm in norms if norm.form == "conv_wide"]
    assert [norm for norm in norms if norm not in wide] == [folded.decoder.layers[-2]]
    assert sum(norm.gain_is_before for norm in wide) == 10 + 14, "the second norm of each block"
    torch.testing.assert_close(folded.encode(pixels), moments, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(folded.decode(latents), images, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("channels", [96, 384])
def test_sums_of_norms_without_a_gain(channels: int) -> None:
    """Their gain is in the convolution before, whatever it is."""
    gamma = torch.linspace(-3.0, -0.2, channels)
    norm = RmsNorm(gamma, form="conv_wide", silu=True)
    before = nn.Conv2d(channels, channels, 1).requires_grad_(False)
    assert norm.move_gain_into(before)
    norm.widen()
    assert norm.form == "conv_wide"
    x = torch.randn(1, channels, 3, 5, generator=torch.Generator().manual_seed(0))
    expected = RmsNorm(gamma, form="native", silu=True)(x)
    torch.testing.assert_close(norm(x * norm.gain[:, 0]), expected)


@pytest.mark.parametrize("gamma", [[1.0, 0.4], [1.0, -1.0], [1.0, 2.5]])
def test_a_gain_that_sums_cannot_be_divided_by_is_spread(gamma: list[float]) -> None:
    norm = RmsNorm(torch.tensor(gamma), form="conv_wide", silu=False)
    norm.widen()
    assert norm.form == "conv_spread"
    x = torch.randn(1, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    expected = RmsNorm(torch.tensor(gamma), form="native", silu=False)(x)
    torch.testing.assert_close(norm(x), expected)


@pytest.mark.parametrize("rms", [2.0**-6, 2.0**-4, 1.0, 4.0])
@pytest.mark.parametrize("channels", [96, 384])
def test_sums_in_every_channel_survive_fp16(channels: int, rms: float) -> None:
    """With the least and the largest gain, from a quarter of the least root mean square that
    `scaling` leaves alone; and pixels that are 32 times as large as the highest.
    """
    generator = torch.Generator().manual_seed(0)
    gamma = torch.linspace(0.58, 2.3, channels)
    x = torch.randn(1, channels, 24, 24, generator=generator)
    x *= torch.exp(0.7 * torch.randn(1, channels, 1, 1, generator=generator))
    x *= rms / x.square().mean().sqrt()
    x[..., 0] = 32.0 * 4.0
    norm = RmsNorm(gamma, form="conv_wide", silu=True)
    norm.widen()
    assert norm.form == "conv_wide"
    expected = RmsNorm(gamma, form="native", silu=True)(x)
    bf16 = RmsNorm(gamma, form="native", silu=True).bfloat16()(x.bfloat16())
    fp16 = norm.half()(x.half())
    assert relative_error(fp16, expected) <= relative_error(bf16, expected)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("channels", [3, 4])
def test_equals_diffusers_at_full_width(channels: int, batch: int) -> None:
    torch.manual_seed(0)
    vae = AutoencoderKLQwenImage(input_channels=channels).eval().requires_grad_(False)
    pixels, latents = inputs(channels, batch, 32, 56)
    moments, images = reference(vae, pixels, latents)
    folded = fold(vae)
    torch.testing.assert_close(folded.encode(pixels), moments, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(folded.decode(latents), images, rtol=0, atol=TOLERANCE)


def test_folded_parameters_are_those_of_one_frame() -> None:
    with torch.device("meta"):
        vae = AutoencoderKLQwenImage()
        folded = fold(vae)
    count = {
        part: sum(p.numel() for p in getattr(folded, part).parameters())
        for part in ("encoder", "decoder")
    }
    assert count["decoder"] == pytest.approx(25.3e6, rel=0.01)
    assert count["encoder"] == pytest.approx(19.3e6, rel=0.01)


def test_a_changed_weight_changes_the_result() -> None:
    vae = make_vae()
    pixels, latents = inputs(3, 1, 32, 32)
    before = fold(vae)
    with torch.no_grad():
        vae.decoder.conv_in.weight[:, :, -1] += 0.01
        vae.encoder.conv_in.weight[:, :, 0] += 1.0
    after = fold(vae)
    assert (before.decode(latents) - after.decode(latents)).abs().max() > 1e-3
    # A temporal slice that meets only the zero frames before the first.
    assert torch.equal(before.encode(pixels), after.encode(pixels))


def test_refuses_what_it_does_not_know() -> None:
    vae = make_vae()
    vae.decoder.mid_block.resnets[0] = nn.Linear(2, 2)
    with pytest.raises(ModelError, match="Linear"):
        fold(vae)


@pytest.mark.parametrize("chunks", [1, 3, 7])
@pytest.mark.parametrize("tokens", [1, 4, 7, 16, 45])
def test_attention_in_chunks(chunks: int, tokens: int) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, x = (torch.randn(2, tokens, 24, generator=generator) for _ in range(3))
    weight, bias = (torch.randn(shape, generator=generator) for shape in ((24, 24), (24,)))
    value = x @ weight.T + bias
    expected = torch.softmax(query @ key.transpose(1, 2), -1) @ value
    torch.testing.assert_close(attend(query, key, value, chunks), expected)
    by_exp = attend_by_exp(query, key, with_ones(weight, bias)(x), chunks)
    torch.testing.assert_close(by_exp, expected)


def test_attention_by_exp_survives_fp16() -> None:
    """Uniform attention over many tokens: without the scale the sums pass 65,504."""
    tokens, channels = 8192, 8
    query = torch.zeros(1, tokens, channels, dtype=torch.float16)
    to_value = with_ones(torch.zeros(channels, channels), torch.full((channels,), 20.0)).half()
    mixed = attend_by_exp(query[:, :16], query, to_value(query), 2)
    torch.testing.assert_close(mixed, torch.full_like(mixed, 20.0), rtol=2e-3, atol=0)


class Fp16Accumulators(TorchFunctionMode):
    """Products and means of fp16 as kernels do them that add up in fp16: rounded after each 16
    terms.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        half = args and isinstance(args[0], Tensor) and args[0].dtype == torch.float16
        if half and function in (Tensor.matmul, Tensor.__matmul__, torch.matmul):
            left, right = (one.float() for one in args)
            terms = range(0, right.shape[-2], 16)
            return _summed(left[..., i : i + 16] @ right[..., i : i + 16, :] for i in terms)
        if half and function is Tensor.mean:
            parts = args[0].float().split(16, dim=1)
            return _summed(part.sum(1, keepdim=True) for part in parts) / args[0].shape[1]
        return function(*args, **(kwargs or {}))


def _summed(parts: Iterable[Tensor]) -> Tensor:
    return functools.reduce(lambda sums, part: (sums + part).half(), parts).half()


@pytest.mark.parametrize("form", ["softmax", "exp"])
@pytest.mark.parametrize("sharpness", [0.1, 1.0], ids=["near uniform", "mixed"])
@pytest.mark.parametrize("tokens", [25_392, 57_600])
def test_attention_survives_sums_in_fp16(form: str, sharpness: float, tokens: int) -> None:
    """Over the tokens of 1472x1104 and 1920x1920, with values of a mean far from 0: beside a large
    sum in fp16 small terms are lost.
    """
    channels = 8
    generator = torch.Generator().manual_seed(0)
    key = torch.randn(1, tokens, channels, generator=generator)
    query = torch.randn(1, 16, channels, generator=generator) * sharpness
    to_value = torch.eye(channels), torch.linspace(1.1, 4.7, channels)
    x = torch.randn(1, tokens, channels, generator=generator)
    value = linear(*to_value)(x)
    expected = attend(query, key, value, 1)
    query, key, value, x = (one.half() for one in (query, key, value, x))
    ones = with_ones(*to_value).half()(x)
    with Fp16Accumulators():
        lost = torch.softmax(query @ key.transpose(1, 2), -1) @ value
        if form == "softmax":
            mixed = attend(query, key, value, 2)
        else:
            mixed = attend_by_exp(query, key, ones, 2)
    assert relative_error(lost, expected) > 0.03
    assert relative_error(mixed, expected) < 5e-3


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


SCALES = [0.01, 1.0, 30.0, 1000.0]


@pytest.mark.parametrize("scale", SCALES)
def test_norm_survives_fp16(scale: float) -> None:
    """Activations of any size, in fp16, with an error no larger than PyTorch's in bf16."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 96, 24, 24, generator=generator) * scale
    gamma = torch.randn(96, generator=generator)
    expected = RmsNorm(gamma, form="native", silu=True)(x)
    bf16 = RmsNorm(gamma, form="native", silu=True).bfloat16()(x.bfloat16())
    fp16 = RmsNorm(gamma, form="fp32", silu=True).half()(x.half())
    error = relative_error(fp16, expected)
    assert error <= relative_error(bf16, expected)


@pytest.mark.parametrize("mild", [True, False], ids=["gains moved", "gains spread"])
@pytest.mark.parametrize("inner", SCALES)
@pytest.mark.parametrize("stream", SCALES)
def test_decoder_survives_fp16_at_any_scale(stream: float, inner: float, mild: bool) -> None:
    """The stream of residual sums and the inside of its blocks scaled, as TensorRT 8.6 gets it."""
    vae = make_vae(base_dim=16, mild=mild)
    with torch.no_grad():
        for name, parameter in vae.decoder.named_parameters():
            if name.startswith("conv_in"):
                parameter.mul_(stream)
            if ".conv1." in name:
                parameter.mul_(inner)
            if name.endswith("norm2.gamma") and not mild:
                parameter[0] = 1e-3
    latents = inputs(3, 1, 64, 64)[1]
    expected = vae.decode(latents, return_dict=False)[0]
    bf16 = vae.bfloat16().decode(latents.bfloat16(), return_dict=False)[0]
    vae.float()
    folded = fold(vae, lowering=choose_lowering("tensorrt", "8.6.1", "fp16")).half()
    second = [m for name, m in folded.decoder.named_modules() if name.endswith("norm2")]
    assert {norm.gain_is_before for norm in second} == {mild}
    error = relative_error(folded.decode(latents.half()), expected)
    assert error <= relative_error(bf16, expected)


@pytest.mark.parametrize("scale", SCALES)
def test_encoder_survives_fp16_at_any_scale(scale: float) -> None:
    vae = make_vae(base_dim=16)
    with torch.no_grad():
        for parameter in vae.encoder.conv_in.parameters():
            parameter.mul_(scale)
    pixels = inputs(3, 1, 64, 64)[0]
    expected = vae.encode(pixels, return_dict=False)[0].parameters
    bf16 = vae.bfloat16().encode(pixels.bfloat16(), return_dict=False)[0].parameters
    vae.float()
    folded = fold(vae, lowering=choose_lowering("tensorrt", "8.6.1", "fp16")).half()
    error = relative_error(folded.encode(pixels.half()), expected)
    assert error <= relative_error(bf16, expected)


@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_scales_in_weights_are_exact(scale: float) -> None:
    """Powers of two change no bit of a float32 result but through the order of sums."""
    vae = make_vae()
    with torch.no_grad():
        for parameter in (*vae.decoder.conv_in.parameters(), *vae.encoder.conv_in.parameters()):
            parameter.mul_(scale)
    pixels, latents = inputs(3, 1, 40, 72)
    moments, images = reference(vae, pixels, latents)
    folded = fold(vae, lowering=Lowering(norm="conv_spread"))
    torch.testing.assert_close(folded.encode(pixels), moments, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(folded.decode(latents), images, rtol=0, atol=TOLERANCE)


def test_norm_of_nothing_is_nothing() -> None:
    for form in ("native", "fp32", "conv_spread", "conv_wide"):
        norm = RmsNorm(torch.ones(16), form=form, silu=False)  # type: ignore[arg-type]
        if form == "conv_wide":
            norm.widen()
        assert norm.form == form
        assert torch.equal(norm(torch.zeros(1, 16, 2, 2)), torch.zeros(1, 16, 2, 2))


def test_lowering_text_round_trip() -> None:
    for lowering in LOWERINGS:
        assert Lowering.parse(lowering.canonical()) == lowering
    assert Lowering.parse("") == PYTORCH


@pytest.mark.parametrize(
    "text",
    [
        "upsample=cubic",
        "norm=",
        "colour=red",
        "attention_chunks=0",
        "attention_chunks=9999999",
        "attention_chunks=two",
        "norm=fp32,norm=conv_spread",
        "upsample",
    ],
)
def test_lowering_text_refused(text: str) -> None:
    with pytest.raises(UsageError):
        Lowering.parse(text)


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
@pytest.mark.parametrize(
    ("flavour", "version"),
    [("tensorrt", "8.6.1"), ("tensorrt", "10.0"), ("tensorrt_rtx", "1.7"), ("onnxruntime", "1")],
)
def test_the_lowering_for_sizes(flavour: str, version: str, precision: str) -> None:
    """Large graphs are written in halves; with ranges TensorRT 8.6 needs more than that."""
    lowering = choose_lowering(flavour, version, precision)
    old = version == "8.6.1"

    def fitted(*profiles: Profile, of: Lowering = lowering) -> tuple[str, int, int | None]:
        found = of.for_sizes(profiles, flavour, version)
        assert found.for_sizes(profiles, flavour, version) == found
        level = default_level(profiles, flavour, version)
        widened = level is not None and of.norm == "conv_spread"
        assert found.norm == ("conv_wide" if widened else of.norm)
        return found.halves, found.attention_chunks, level

    left = ("none", lowering.attention_chunks, None)
    ranges = ("last_two", 8, 2) if old else ("last", lowering.attention_chunks, None)
    assert fitted(*QWEN_IMAGE.profiles) == (ranges if old else left)
    assert fitted(*QWEN_IMAGE_21.profiles) == ranges
    for size in [*QWEN_IMAGE.static_sizes.values(), Resolution(1792, 1792)]:
        assert fitted(Profile.fixed(size)) == left, size
    for size in QWEN_IMAGE_21.static_sizes.values():
        assert fitted(Profile.fixed(size)) == ("last", *left[1:]), size
    # Halves need rows on both sides of the middle.
    low = Resolution(128, 4096)
    low_profile = Profile(low, low, Resolution(256, 4096))
    tuned = replace(lowering, halves="last", attention="exp", attention_chunks=16)
    for one in (lowering, tuned):
        found = fitted(*QWEN_IMAGE_21.profiles, low_profile, of=one)
        assert found == ("none", max(one.attention_chunks, ranges[1]), ranges[2])
    assert fitted(Profile.fixed(low), of=tuned) == ("none", 16, None)
    assert fitted(Profile.fixed(Resolution(1024, 1024)), of=tuned) == ("last", 16, None)
    assert fitted(*QWEN_IMAGE.profiles, of=tuned) == ("last_two" if old else "last", 16, ranges[2])


def test_halves_of_the_lowest_pictures() -> None:
    """Also where a VAE has so many convolutions that a margin would not fit."""
    vae = make_vae_21(num_res_blocks=16, base_dim=4, decoder_base_dim=4)
    whole, halved = fold(vae), fold(vae, lowering=Lowering(halves="last_two"))
    pixels, latents = inputs(vae.config.in_channels, 1, 256, 32, scale=16)
    moments, images = whole.encode(pixels), whole.decode(latents)
    torch.testing.assert_close(halved.encode(pixels), moments, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(halved.decode(latents), images, rtol=0, atol=TOLERANCE)


def test_convolutions_of_both_parts_in_halves_have_the_same_shapes() -> None:
    """TensorRT times a shape once."""
    vae = make_vae()
    halved = fold(vae, lowering=Lowering(halves="last_two"))
    first, last = halved.encoder.layers[0], halved.decoder.layers[-1]
    assert first.margin == last.margin == 5
