"""The names that the adapter uses exist: in the lists of each release, and in the fake of each."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import fake_tensorrt
import pytest

from qvae_trt.backends import tensorrt, trt_build, trt_session

MODULES = (tensorrt, trt_build, trt_session)
# Looked up with getattr or hasattr, as the older releases lack them.
LATER = {"ComputeCapability", "ExecutionContextAllocationStrategy", "IProgressMonitor"}


def used_classes() -> set[str]:
    """`X` of every `trt.X` and `self._trt.X`, and of every `getattr(trt, "X")`."""
    found: set[str] = set()
    for module in MODULES:
        text = Path(str(module.__file__)).read_text()
        found |= set(re.findall(r"(?:\b|_)trt\.([A-Z]\w+)", text))
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr"):
                owner, name = ast.unparse(node.args[0]), node.args[1]
                if owner in ("trt", "self._trt") and isinstance(name, ast.Constant):
                    found.add(str(name.value))
    return found


def test_the_search_finds_something() -> None:
    assert {"Builder", "OnnxParser", "Runtime", "NetworkDefinitionCreationFlag"} <= used_classes()


@pytest.mark.parametrize("variant", fake_tensorrt.VARIANTS)
def test_classes_exist_in_each_release(variant: str) -> None:
    missing = used_classes() - set(fake_tensorrt.api_of(variant))
    assert missing <= LATER, f"{variant} has no {missing - LATER}"


@pytest.mark.parametrize("variant", fake_tensorrt.VARIANTS)
def test_the_fake_has_no_name_of_its_own(variant: str) -> None:
    trt, api = fake_tensorrt.make(variant), fake_tensorrt.api_of(variant)
    for name, cls in vars(trt).items():
        if isinstance(cls, type):
            public = {n for n in vars(cls) if not n.startswith("_")}
            assert public <= api[name], f"{name}: {public - api[name]}"


@pytest.mark.parametrize("variant", fake_tensorrt.VARIANTS)
def test_the_fake_refuses_unknown_attributes(variant: str) -> None:
    trt = fake_tensorrt.make(variant)
    config = trt.Builder(trt.Logger()).create_builder_config()
    with pytest.raises(AttributeError):
        config.max_workspace_sise = 1


def test_the_list_of_the_installed_rtx_is_true() -> None:
    rtx = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    if rtx.__version__ != fake_tensorrt.VARIANTS["rtx"][0]:
        pytest.skip(f"installed is {rtx.__version__}, listed {fake_tensorrt.VARIANTS['rtx'][0]}")
    listed = fake_tensorrt.api_of("rtx")
    for name in ("Builder", "IBuilderConfig", "ICudaEngine", "IExecutionContext", "Runtime"):
        real = {m for m in dir(getattr(rtx, name)) if not m.startswith("_")}
        assert listed[name] == real, name


@pytest.mark.parametrize("variant", ["8.6", "10.0", "10.16", "11.4", "rtx"])
def test_network_flags_have_their_release_s_bits(variant: str) -> None:
    flag = fake_tensorrt.make(variant).NetworkDefinitionCreationFlag
    wanted = {
        "8.6": {"EXPLICIT_BATCH": 0},
        "10.0": {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1},
        "10.16": {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1},
        "11.4": {"STRONGLY_TYPED": 0},
        "rtx": {"STRONGLY_TYPED": 0},
    }[variant]
    for name, bit in wanted.items():
        assert int(getattr(flag, name)) == bit
