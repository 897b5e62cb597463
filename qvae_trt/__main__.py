"""`python -m qvae_trt` is `qvae`."""

from __future__ import annotations

import sys

from qvae_trt.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
