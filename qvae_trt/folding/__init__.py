"""The exact single-frame 2D network of the VAE."""

from qvae_trt.folding.network import FoldedVae, fold

__all__ = ["FoldedVae", "fold"]
