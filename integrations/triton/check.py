"""Run models of `qvae triton` in a real Triton server, on the CPU.

    pip install --target OUT/pytriton --no-deps nvidia-pytriton
    pip install --target OUT/of_backend 'numpy<2' 'onnxruntime<1.21'
    pip install 'tritonclient[http]'
    python integrations/triton/check.py OUT/pytriton OUT/of_backend \\
        > benchmarks/integrations/triton.json

The wheel of PyTriton holds NVIDIA's server and its Python backend, but no ONNX Runtime backend: a
Python backend of that name runs the engines with ONNX Runtime. So the server's own reading of the
configurations, its checks of names, types and shapes, and its protocol are real; the backend is
not. That Python backend needs NumPy 1. Prints what came out as JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qvae_trt.model import load_model

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples"))

MODEL = "bundled:tiny"
PROFILE = '[[profile]]\nmin = "128x128"\nopt = "256x192"\nmax = "512x512"\n'
PORT = 8123
LIMIT_S = 120
BACKEND = """
import json
import os
import sys

sys.path.insert(0, {packages!r})
import onnxruntime
import triton_python_backend_utils as triton


class TritonPythonModel:
    def initialize(self, args):
        self.config = json.loads(args["model_config"])
        folder = os.path.join(args["model_repository"], args["model_version"])
        self.session = onnxruntime.InferenceSession(
            os.path.join(folder, self.config["default_model_filename"])
        )

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        names = [one["name"] for one in self.config["input"]]
        given = {{n: triton.get_input_tensor_by_name(request, n).as_numpy() for n in names}}
        names = [one["name"] for one in self.config["output"]]
        results = self.session.run(names, given)
        return triton.InferenceResponse([triton.Tensor(*pair) for pair in zip(names, results)])
"""
#: A request to each model, and one that does not fit it.
SERVED = {
    "qwen_image_vae_decoder_256x192": [(1, 16, 1, 24, 32)],
    "qwen_image_vae_decoder_profiles": [(1, 16, 1, 24, 32), (2, 16, 1, 40, 18), (1, 16, 1, 64, 64)],
    "qwen_image_vae_encoder_256x192": [(1, 3, 1, 192, 256)],
    "qwen_image_vae_encoder_profiles": [(1, 3, 1, 320, 144)],
}
REFUSED = {
    "qwen_image_vae_decoder_256x192": (1, 16, 1, 24, 33),
    "qwen_image_vae_decoder_profiles": (2, 16, 1, 24, 32),
}


def qvae(*arguments: str) -> None:
    command = [sys.executable, "-m", "qvae_trt", *arguments, "--backend", "onnxruntime"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def make_models(work: Path) -> Path:
    """A static pair of 256x192 and a pair with one profile, as models of a repository."""
    engines, profiles = work / "engines", work / "profiles.toml"
    profiles.write_text(PROFILE)
    common = ["--model", MODEL, "--precision", "fp32", "--engine-dir", str(engines)]
    qvae("build", "--mode", "static", "--resolution", "256x192", *common)
    qvae("build", "--mode", "profiles", "--profiles", str(profiles), *common)
    qvae("triton", "--engine-dir", str(engines), "--out", str(work / "models"))
    return work / "models"


def start(server: Path, packages: Path, models: Path, work: Path) -> subprocess.Popen[bytes]:
    backends = work / "backends"
    shutil.copytree(server / "backends", backends)
    stub = f"{sys.version_info.major}.{sys.version_info.minor}/triton_python_backend_stub"
    shutil.copy(server / "python_backend_stubs" / stub, backends / "python")
    (backends / "onnxruntime").mkdir()
    (backends / "onnxruntime" / "model.py").write_text(BACKEND.format(packages=str(packages)))
    program = server / "bin" / "tritonserver"
    program.chmod(0o755)
    options = [f"--model-repository={models}", f"--backend-directory={backends}"]
    options += [f"--http-port={PORT}", "--allow-grpc=false", "--allow-metrics=false"]
    libraries = server.parents[1] / "nvidia_pytriton.libs"
    environment = {**os.environ, "LD_LIBRARY_PATH": str(libraries)}
    environment.pop("PYTHONPATH", None)  # the backend has packages of its own
    with (work / "log").open("wb") as log:
        return subprocess.Popen([program, *options], stdout=log, stderr=log, env=environment)


def wait_for(client: Any, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + LIMIT_S
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError):  # it does not listen yet
            if client.is_server_ready():
                return
        time.sleep(0.5)
    raise SystemExit(f"the server is not ready after {LIMIT_S} s:\n{log.read_text()[-4000:]}")


@torch.no_grad()
def compare(client: Any) -> list[dict[str, Any]]:
    """What the server gives against PyTorch: relative L2."""
    from triton_client import decode
    from tritonclient.http import InferInput

    vae = load_model(MODEL).vae.float()
    random = torch.Generator().manual_seed(0)
    rows = []
    for model, shapes in SERVED.items():
        for shape in shapes:
            if "decoder" in model:
                x = torch.randn(shape, generator=random)
                found, expected = decode(client, model, x), vae.decode(x).sample
            else:
                x = torch.rand(shape, generator=random) * 2 - 1
                tensor = InferInput("images", list(shape), "FP32")
                tensor.set_data_from_numpy(x.numpy())
                found = torch.from_numpy(client.infer(model, [tensor]).as_numpy("moments").copy())
                expected = vae.encode(x).latent_dist.parameters
            error = float((found - expected).norm() / expected.norm())
            rows.append({"model": model, "shape": shape, "relative_l2": float(f"{error:.1e}")})
    return rows


def refusals(client: Any) -> list[dict[str, Any]]:
    from tritonclient.http import InferInput
    from tritonclient.utils import InferenceServerException

    rows = []
    for model, shape in REFUSED.items():
        tensor = InferInput("latents", list(shape), "FP32")
        tensor.set_data_from_numpy(np.zeros(shape, "float32"))
        try:
            client.infer(model, [tensor])
            said = "served"
        except InferenceServerException as error:
            said = re.sub(r"^.*?(?=unexpected)", "", str(error)).strip()
        rows.append({"model": model, "shape": shape, "said": said})
    return rows


def main() -> int:
    from tritonclient.http import InferenceServerClient

    wheel, packages = (Path(one).resolve() for one in sys.argv[1:])
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        models = make_models(work)
        process = start(wheel / "pytriton" / "tritonserver", packages, models, work)
        try:
            client = InferenceServerClient(f"localhost:{PORT}", network_timeout=LIMIT_S)
            wait_for(client, process, work / "log")
            cases = compare(client)
            told = {
                "triton": client.get_server_metadata()["version"],
                "tritonclient": version("tritonclient"),
                "worst": max(case["relative_l2"] for case in cases),
                "cases": cases,
                "refused": refusals(client),
            }
        finally:
            process.terminate()
            process.wait()
    print(json.dumps(told, indent=1))
    refused = all("unexpected shape" in row["said"] for row in told["refused"])
    return 0 if told["worst"] < 1e-5 and refused else 1


if __name__ == "__main__":
    sys.exit(main())
