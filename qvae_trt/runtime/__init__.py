"""Engines inside a pipeline: which one serves a size, its memory, its streams, and what happens
when it fails.

Nothing is imported here: `qvae_trt.load_vae` finds `runtime.vae` at first use.
"""
