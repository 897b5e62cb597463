"""Engines from a model: what to build, what to keep, and the building, one engine at a time.

Another process builds TensorRT engines, one after the other, and is replaced after a failure: a
crash costs one engine, and what TensorRT holds on to between builds goes with that process. A job
that fails does not stop the rest.
"""

from __future__ import annotations

from qvae_trt.build.jobs import Job, JobResult, plan_profiles, plan_static
from qvae_trt.build.run import BuildSettings, build

__all__ = ["BuildSettings", "Job", "JobResult", "build", "plan_profiles", "plan_static"]
