"""Make a VAE folder that sends SGLang's loader to qvae.

python integrations/sglang/make_folder.py --model Qwen/Qwen-Image --engine-dir engines --out vae

sglang serve --model-path Qwen/Qwen-Image --component-paths.vae vae
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

from qvae_trt.errors import EngineError, QvaeError
from qvae_trt.files.writing import write_text
from qvae_trt.model import load_model

CLASS = Path(__file__).with_name("qvae_vae.py")


def make_folder(model: str, engine_dir: Path | None, out: Path) -> None:
    """Write weights, configuration and class into `out`.

    Args:
        model: whose weights, as `--model` of every command names them.
        engine_dir: where the engines are; None for the fused path alone.
        out: the folder to make.

    Raises:
        QvaeError: the weights cannot be had, or there is no such engine folder.
    """
    if engine_dir is not None and not engine_dir.is_dir():
        raise EngineError(f"{engine_dir}: no such folder", fix="qvae build --mode profiles")
    load_model(model).vae.save_pretrained(out)
    config = json.loads((out / "config.json").read_text("utf-8"))
    config["auto_map"] = {"AutoModel": f"{CLASS.stem}.QvaeVae"}
    config["qvae_engine_dir"] = None if engine_dir is None else str(engine_dir.resolve())
    shutil.copyfile(CLASS, out / CLASS.name)
    write_text(out / "config.json", json.dumps(config, indent=2) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description="Make a VAE folder that sends SGLang to qvae.")
    parser.add_argument("--model", default="Qwen/Qwen-Image")
    parser.add_argument("--engine-dir", type=Path, help="without it: the fused path alone")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    try:
        make_folder(given.model, given.engine_dir, given.out)
    except QvaeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
