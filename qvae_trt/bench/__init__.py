"""Latency of the VAE as PyTorch runs it and as its engines do, measured so that the figures can be
compared.

`bench` measures, `load` and `merge` read results back, `compare` finds regressions;
`qvae_trt.report` writes tables.
"""
