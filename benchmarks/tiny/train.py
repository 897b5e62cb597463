"""Train `bundled:tiny`: AutoencoderKLQwenImage, `base_dim=16`, on single frames.

On one frame a causal Conv3d is the Conv2d of its last temporal slice, so training holds 2D weights
only; saving puts them back into the last slice and leaves the other slices and the `time_conv`
layers, which a single frame never reaches, at zero.

    python benchmarks/tiny/train.py --pack data.npz                   # photographs, once
    python benchmarks/tiny/train.py --data data.npz --seconds 170     # train, save, evaluate
    python benchmarks/tiny/train.py --data data.npz --evaluate        # figures of the saved model
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont

MODEL_DIR = Path(__file__).resolve().parents[2] / "qvae_trt" / "data" / "tiny"
WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
BASE_DIM = 16
# Only pictures whose source states a free licence (README.md has them).
# Never trained on; `--evaluate` measures them.
HELD_OUT = ("astronaut", "chelsea", "coffee")
COLOUR = ("rocket", "hubble_deep_field", "retina", "ihc")
GREY = (
    "camera",
    "brick",
    "grass",
    "gravel",
    "coins",
    "cell",
    "clock_motion",
    "text",
)
# From scikit-learn, where it is installed.
COLOUR_SKLEARN = ("china", "flower")
KL_WEIGHT = 1e-4
TARGET_DB = 24.0


# --- data ---------------------------------------------------------------------------------------


def read_photographs() -> dict[str, np.ndarray]:
    """Photographs inside the scikit-image (and scikit-learn) wheels: name → (H, W, 3) uint8."""
    import skimage

    folder = Path(skimage.__file__).parent / "data"
    photographs = {}
    for name in (*HELD_OUT, *COLOUR, *GREY):
        found = [path for path in (folder / f"{name}.png", folder / f"{name}.jpg") if path.exists()]
        if not found:
            raise SystemExit(f"{name} is not in {folder}: scikit-image 0.26 carries it")
        photographs[name] = np.asarray(Image.open(found[0]).convert("RGB"))
    spec = importlib.util.find_spec("sklearn")
    if spec is None or spec.origin is None:
        print("scikit-learn is not installed: china and flower are left out")
    else:
        folder = Path(spec.origin).parent / "datasets" / "images"
        for name in COLOUR_SKLEARN:
            photographs[name] = np.asarray(Image.open(folder / f"{name}.jpg").convert("RGB"))
    return photographs


def draw_synthetic(count: int, side: int, rng: np.random.Generator) -> np.ndarray:
    """Gradients, shapes, stripes and text: (count, side, side, 3) uint8."""
    pictures = np.empty((count, side, side, 3), np.uint8)
    y, x = np.mgrid[0:side, 0:side].astype(np.float32) / side
    glyphs = list("ABCDEFGHKMNPRSTWXYZabcdefghikmnorstuwxyz0123456789&%?!:;+=")

    def colour() -> tuple[int, int, int]:
        r, g, b = rng.integers(0, 256, 3)
        return int(r), int(g), int(b)

    for i in range(count):
        a, b = np.array(colour(), np.float32), np.array(colour(), np.float32)
        angle = rng.uniform(0, 2 * math.pi)
        ramp = x * math.cos(angle) + y * math.sin(angle)
        if rng.random() < 0.3:
            ramp = np.sin(ramp * rng.uniform(5, 60))
        ramp = (ramp - ramp.min()) / (np.ptp(ramp) + 1e-6)
        base = a + (b - a) * ramp[..., None]
        picture = Image.fromarray(base.astype(np.uint8))
        draw = ImageDraw.Draw(picture)
        for _ in range(int(rng.integers(2, 12))):
            cx, cy = rng.uniform(0, side, 2)
            w, h = rng.uniform(4, side / 2, 2)
            box = (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)
            kind = int(rng.integers(0, 5))
            if kind == 0:
                draw.rectangle(box, fill=colour(), outline=colour())
            elif kind == 1:
                draw.ellipse(box, fill=colour(), outline=colour())
            elif kind == 2:
                draw.polygon([tuple(p) for p in rng.uniform(0, side, (3, 2))], fill=colour())
            elif kind == 3:
                ends = rng.uniform(0, side, 4).tolist()
                draw.line(ends, fill=colour(), width=int(rng.integers(1, 9)))
            else:
                text = "".join(rng.choice(glyphs, int(rng.integers(3, 14))))
                font = ImageFont.load_default(float(rng.uniform(9, 60)))
                draw.text((cx - w / 2, cy), text, fill=colour(), font=font)
        pictures[i] = np.asarray(picture)
    return pictures


class Crops:
    """Random crops of photographs and synthetic pictures, augmented on the device."""

    def __init__(
        self, photographs: dict[str, np.ndarray], *, seed: int, device: torch.device
    ) -> None:
        rng = np.random.default_rng(seed)
        self.rng, self.device = rng, device
        pictures: list[np.ndarray] = []
        weights: list[float] = []
        for name, picture in photographs.items():
            if name in HELD_OUT:
                continue
            share = 0.35 if name in GREY else 2.0 if name in COLOUR_SKLEARN else 1.0
            half = Image.fromarray(picture).reduce(2)
            versions = [(picture, 0.5), (np.asarray(half), 0.5)]
            for version, part in versions:
                if min(version.shape[:2]) >= 96:
                    pictures.append(version)
                    weights.append(share * part)
        synthetic = draw_synthetic(192, 320, rng)
        total = sum(weights)
        pictures += list(synthetic)
        weights += [total * 0.25 / len(synthetic)] * len(synthetic)
        self.pictures = pictures
        self.weights = np.asarray(weights) / sum(weights)

    def batch(self, count: int, side: int) -> torch.Tensor:
        """(count, 3, side, side) in [-1, 1]; pictures smaller than `side` are mirrored outwards."""
        rng = self.rng
        out = np.empty((count, side, side, 3), np.uint8)
        for i in range(count):
            picture = self.pictures[int(rng.choice(len(self.pictures), p=self.weights))]
            short = [max(0, side - n) for n in picture.shape[:2]]
            if any(short):
                picture = np.pad(picture, ((0, short[0]), (0, short[1]), (0, 0)), mode="symmetric")
            top = int(rng.integers(0, picture.shape[0] - side + 1))
            left = int(rng.integers(0, picture.shape[1] - side + 1))
            crop = picture[top : top + side, left : left + side]
            crop = np.rot90(crop, int(rng.integers(0, 4)))
            if rng.random() < 0.5:
                crop = crop[:, ::-1]
            if rng.random() < 0.5:
                crop = crop[:, :, rng.permutation(3)]
            out[i] = crop
        x = torch.from_numpy(out).to(self.device, non_blocking=True)
        x = x.permute(0, 3, 1, 2).float() / 127.5 - 1
        # A random colour cast makes few colour photographs (and the grey ones) stand for many.
        gain = rng.uniform(0.6, 1.1, (count, 3, 1, 1))
        shift = rng.uniform(-0.25, 0.25, (count, 3, 1, 1))
        plain = rng.random((count, 1, 1, 1)) < 0.4
        gain, shift = np.where(plain, 1.0, gain), np.where(plain, 0.0, shift)
        invert = np.where(rng.random((count, 1, 1, 1)) < 0.1, -1.0, 1.0)
        scale = torch.from_numpy((gain * invert).astype(np.float32)).to(self.device)
        offset = torch.from_numpy(shift.astype(np.float32)).to(self.device)
        return (x * scale + offset).clamp(-1, 1)


# --- the network in two dimensions ---------------------------------------------------------------


class Tiny(torch.nn.Module):
    """The single-frame graph of AutoencoderKLQwenImage over 2D parameters named as in diffusers."""

    def __init__(self, vae: torch.nn.Module) -> None:
        super().__init__()
        self.names: list[str] = []
        self.values = torch.nn.ParameterList()
        self.down = [hasattr(block, "resample") for block in vae.encoder.down_blocks]  # type: ignore[union-attr, arg-type]
        self.up = [block.upsamplers is not None for block in vae.decoder.up_blocks]  # type: ignore[union-attr]
        self.resnets_up = len(vae.decoder.up_blocks[0].resnets)  # type: ignore[union-attr, index, arg-type]
        for name, value in vae.state_dict().items():
            if "time_conv" in name:
                continue
            value = value.clone()
            if name.endswith("gamma"):
                value = value.reshape(1, -1, 1, 1)
            elif name.endswith("weight"):
                value = value[:, :, -1] if value.ndim == 5 else value
                fan_in = value[0].numel()
                gain = 2.0 if ".conv1." in name or ".conv2." in name else 1.0
                if ".conv2." in name or ".proj." in name:
                    gain *= 0.1
                value = torch.randn(value.shape) * math.sqrt(gain / fan_in)
            else:
                value = torch.zeros_like(value)
                if name == "quant_conv.bias":
                    value[value.numel() // 2 :] = -4.0
            self.names.append(name)
            self.values.append(torch.nn.Parameter(value))
        self.at = {name: i for i, name in enumerate(self.names)}

    def weight(self, name: str) -> torch.Tensor:
        return self.values[self.at[name]]

    def conv(self, name: str, x: torch.Tensor, *, stride: int = 1) -> torch.Tensor:
        weight = self.weight(f"{name}.weight")
        padding = 0 if stride == 2 else weight.shape[-1] // 2
        return F.conv2d(x, weight, self.weight(f"{name}.bias"), stride=stride, padding=padding)

    def norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return F.normalize(x, dim=1) * (self.weight(f"{name}.gamma") * x.shape[1] ** 0.5)

    def resnet(self, name: str, x: torch.Tensor) -> torch.Tensor:
        shortcut = f"{name}.conv_shortcut"
        h = self.conv(shortcut, x) if f"{shortcut}.weight" in self.at else x
        x = self.conv(f"{name}.conv1", F.silu(self.norm(f"{name}.norm1", x)))
        return h + self.conv(f"{name}.conv2", F.silu(self.norm(f"{name}.norm2", x)))

    def attention(self, name: str, x: torch.Tensor) -> torch.Tensor:
        b, c, h, w = x.shape
        qkv = self.conv(f"{name}.to_qkv", self.norm(f"{name}.norm", x))
        q, k, v = qkv.reshape(b, 1, 3 * c, h * w).transpose(2, 3).contiguous().chunk(3, dim=-1)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return x + self.conv(f"{name}.proj", mixed[:, 0].transpose(1, 2).reshape(b, c, h, w))

    def middle(self, name: str, x: torch.Tensor) -> torch.Tensor:
        x = self.attention(f"{name}.attentions.0", self.resnet(f"{name}.resnets.0", x))
        return self.resnet(f"{name}.resnets.1", x)

    def head(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return self.conv(f"{name}.conv_out", F.silu(self.norm(f"{name}.norm_out", x)))

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv("encoder.conv_in", x)
        for i, down in enumerate(self.down):
            name = f"encoder.down_blocks.{i}"
            if down:
                x = self.conv(f"{name}.resample.1", F.pad(x, (0, 1, 0, 1)), stride=2)
            else:
                x = self.resnet(name, x)
        return self.conv("quant_conv", self.head("encoder", self.middle("encoder.mid_block", x)))

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        x = self.conv("decoder.conv_in", self.conv("post_quant_conv", z))
        x = self.middle("decoder.mid_block", x)
        for i, up in enumerate(self.up):
            for j in range(self.resnets_up):
                x = self.resnet(f"decoder.up_blocks.{i}.resnets.{j}", x)
            if up:
                x = F.interpolate(x, scale_factor=2.0, mode="nearest-exact")
                x = self.conv(f"decoder.up_blocks.{i}.upsamplers.0.resample.1", x)
        return self.head("decoder", x)

    def forward(self, x: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the reconstruction, unclamped, and the mean KL divergence per latent value."""
        mean, logvar = self.encode(x).chunk(2, dim=1)
        logvar = logvar.clamp(-30, 20)
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        return self.decode(mean + noise * (0.5 * logvar).exp()), kl


def new_vae(config: dict[str, object] | None = None) -> torch.nn.Module:
    from diffusers import AutoencoderKLQwenImage

    return AutoencoderKLQwenImage(**(config or {"base_dim": BASE_DIM}))


# --- training -----------------------------------------------------------------------------------


class Orthogonalised(torch.optim.Optimizer):
    """Momentum with orthogonalised updates (Muon, K. Jordan 2024), convolutions taken as matrices.

    In 150 s on one CPU thread it reached 21.5 dB on the astronaut where AdamW reached 19.8.
    """

    def __init__(self, params: list[torch.nn.Parameter]) -> None:
        super().__init__(params, {"lr": 0.0, "momentum": 0.95, "decay": 0.05})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            shapes: dict[tuple[int, int], list[torch.nn.Parameter]] = {}
            for value in group["params"]:
                shapes.setdefault((value.shape[0], value[0].numel()), []).append(value)
            for (rows, columns), values in shapes.items():
                updates = []
                for value in values:
                    state = self.state[value]
                    if not state:
                        state["momentum"] = torch.zeros_like(value)
                    momentum = state["momentum"].mul_(group["momentum"]).add_(value.grad)
                    update = value.grad + group["momentum"] * momentum
                    updates.append(update.reshape(rows, columns))
                update = orthogonalise(torch.stack(updates)) * (0.2 * max(rows, columns) ** 0.5)
                for value, change in zip(values, update, strict=True):
                    value.mul_(1 - group["lr"] * group["decay"])
                    value.add_(change.reshape(value.shape), alpha=-group["lr"])


def orthogonalise(matrices: torch.Tensor) -> torch.Tensor:
    """(N, rows, columns) with all singular values near 1, by a quintic Newton-Schulz iteration."""
    wide = matrices.shape[1] <= matrices.shape[2]
    x = matrices if wide else matrices.transpose(1, 2)
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.transpose(1, 2)
        x = 3.4445 * x + (2.0315 * gram @ gram - 4.7750 * gram) @ x
    return x if wide else x.transpose(1, 2)


@dataclass(frozen=True, slots=True)
class Plan:
    """(crop side, batch) pairs, taken at random; several sides teach the attention sizes."""

    crops: tuple[tuple[int, int], ...]
    rate: float


CPU_PLAN = Plan(crops=((64, 8), (64, 8), (64, 8), (128, 2)), rate=1.5e-3)
CUDA_PLAN = Plan(crops=((64, 192), (128, 48), (128, 48), (256, 12)), rate=1.5e-3)


def train(args: argparse.Namespace, photographs: dict[str, np.ndarray]) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    plan = CUDA_PLAN if device.type == "cuda" else CPU_PLAN
    torch.manual_seed(args.seed)
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    net = Tiny(new_vae()).to(device)
    if device.type == "cuda":
        net = net.to(memory_format=torch.channels_last)
    average = [value.detach().clone() for value in net.values]
    # First and last layers, biases and gains are no hidden matrices: Adam's.
    ends = ("conv_in.weight", "decoder.conv_out.weight")
    named = list(zip(net.names, net.values, strict=True))
    hidden = [v for n, v in named if n.endswith(".weight") and not n.endswith(ends)]
    others = [v for n, v in named if not n.endswith(".weight") or n.endswith(ends)]
    optimizers = (Orthogonalised(hidden), torch.optim.Adam(others, betas=(0.9, 0.99)))
    step, spent = 0, 0.0
    if args.checkpoint.exists() and not args.fresh:
        state = torch.load(args.checkpoint, map_location=device, weights_only=True)
        net.load_state_dict(state["net"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        average = state["average"]
        # A resumed run gets a budget of its own: the learning rate starts over.
        step = state["step"]
        print(f"resumed from {args.checkpoint} at step {step}")
    crops = Crops(photographs, seed=args.seed + step, device=device)
    first_step = step
    began = last_saved = time.monotonic()
    running = torch.zeros(2, device=device)
    while True:
        spent = time.monotonic() - began
        done = spent / args.seconds
        if done >= 1:
            break
        warm = min(1.0, (step - first_step + 1) / 50)
        rate = plan.rate * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = rate
        side, count = plan.crops[int(crops.rng.integers(len(plan.crops)))]
        x = crops.batch(count, side)
        noise = torch.randn(count, 16, side // 8, side // 8, device=device)
        y, kl = net(x, noise)
        squared = F.mse_loss(y, x)
        loss = squared + 0.25 * F.l1_loss(y, x) + KL_WEIGHT * kl
        net.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        step += 1
        decay = min(0.998, (step - first_step + 1) / (step - first_step + 10))
        torch._foreach_lerp_(average, [v.detach() for v in net.values], 1 - decay)
        running += torch.stack((squared.detach(), kl.detach()))
        if step % args.log_every == 0:
            mse, kl_mean = (running / args.log_every).tolist()
            running.zero_()
            db = 10 * math.log10(4 / mse)
            print(
                f"step {step} {spent:.0f} s train {db:.2f} dB kl {kl_mean:.2f} lr {rate:.1e}",
                flush=True,
            )
        if time.monotonic() - last_saved > args.save_every:
            save_checkpoint(args.checkpoint, net, optimizers, average, step)
            last_saved = time.monotonic()
    save_checkpoint(args.checkpoint, net, optimizers, average, step)
    export(args.checkpoint, args.out, photographs)
    where = f"{device_name(device)}, torch {torch.__version__}"
    print(f"{step - first_step} steps in {spent:.0f} s on {where}")


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name() if device.type == "cuda" else "cpu"


def save_checkpoint(
    path: Path,
    net: Tiny,
    optimizers: tuple[torch.optim.Optimizer, ...],
    average: list[torch.Tensor],
    step: int,
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(
        {
            "net": net.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
            "average": average,
            "step": step,
        },
        partial,
    )
    partial.replace(path)


# --- saving and measuring -----------------------------------------------------------------------


@torch.no_grad()
def export(checkpoint: Path, out: Path, photographs: dict[str, np.ndarray]) -> None:
    """Write config.json and fp16 weights, with the latents' mean and deviation as measured."""
    from safetensors.torch import save_file

    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    vae = new_vae()
    net = Tiny(vae)
    tensors = {name: torch.zeros_like(value) for name, value in vae.state_dict().items()}
    for name, value in zip(net.names, state["average"], strict=True):
        value = value.half().float()
        net.values[net.at[name]].copy_(value)
        if tensors[name].ndim == 5:
            tensors[name][:, :, -1] = value
        else:
            tensors[name] = value.reshape(tensors[name].shape)
    crops = Crops(photographs, seed=1, device=torch.device("cpu"))
    latents = torch.cat([net.encode(crops.batch(8, 128)).chunk(2, dim=1)[0] for _ in range(16)])
    config = dict(vae.config)
    config = {key: value for key, value in config.items() if not key.startswith("_")}
    config["latents_mean"] = [round(v, 4) for v in latents.mean((0, 2, 3)).tolist()]
    config["latents_std"] = [round(v, 4) for v in latents.std((0, 2, 3)).tolist()]
    out.mkdir(parents=True, exist_ok=True)
    partial = out / (WEIGHTS_NAME + ".partial")
    save_file({name: value.half().contiguous() for name, value in tensors.items()}, partial)
    partial.chmod(0o644)  # safetensors writes for the owner alone
    partial.replace(out / WEIGHTS_NAME)
    text = json.dumps({"_class_name": "AutoencoderKLQwenImage", **config}, indent=2)
    (out / "config.json").write_text(text + "\n")


@torch.no_grad()
def measure(model_dir: Path, photographs: dict[str, np.ndarray]) -> dict[str, float]:
    """PSNR in dB of encode → mode → decode by diffusers' own class, fp32, over 8-bit range."""
    from safetensors.torch import load_file

    config = json.loads((model_dir / "config.json").read_text())
    vae = new_vae({key: value for key, value in config.items() if not key.startswith("_")}).eval()
    weights = load_file(model_dir / WEIGHTS_NAME)
    vae.load_state_dict({name: value.float() for name, value in weights.items()})
    figures = {}
    for name in HELD_OUT:
        picture = photographs[name][:512, :512]
        height, width = (n // 16 * 16 for n in picture.shape[:2])
        x = torch.from_numpy(picture[:height, :width].copy()).permute(2, 0, 1)[None, :, None]
        x = x.float() / 127.5 - 1
        y = vae.decode(vae.encode(x).latent_dist.mode()).sample.clamp(-1, 1)
        figures[name] = 10 * math.log10(4 / F.mse_loss(y, x).item())
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=1500, help="training budget")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, help="photographs packed by --pack")
    parser.add_argument("--pack", type=Path, help="write the photographs to this .npz and stop")
    parser.add_argument("--checkpoint", type=Path, default=Path("out/tiny/checkpoint.pt"))
    parser.add_argument("--fresh", action="store_true", help="do not resume from --checkpoint")
    parser.add_argument("--out", type=Path, default=MODEL_DIR, help="folder of the saved model")
    parser.add_argument("--export", action="store_true", help="save the checkpoint and stop")
    parser.add_argument("--evaluate", action="store_true", help="measure the saved model and stop")
    parser.add_argument("--log-every", type=int, default=100)
    parser.add_argument("--save-every", type=float, default=60, help="seconds between checkpoints")
    args = parser.parse_args()
    if args.data is None:
        photographs = read_photographs()
    else:
        with np.load(args.data) as packed:
            photographs = {name: packed[name] for name in packed.files}
    if args.pack is not None:
        np.savez_compressed(args.pack, **photographs)
        print(f"{len(photographs)} photographs, {args.pack.stat().st_size} bytes: {args.pack}")
        return
    if args.export:
        export(args.checkpoint, args.out, photographs)
    elif not args.evaluate:
        train(args, photographs)
    figures = measure(args.out, photographs)
    for name, db in figures.items():
        print(f"{name} {db:.2f} dB")
    if min(figures.values()) < TARGET_DB:
        raise SystemExit(f"below the target of {TARGET_DB} dB")


if __name__ == "__main__":
    main()
