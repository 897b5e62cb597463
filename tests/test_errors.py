"""The exceptions: what they say, what a command returns for them, how they cross processes."""

from __future__ import annotations

import pickle

import pytest

import qvae_trt
from qvae_trt import errors

KINDS = [getattr(errors, name) for name in errors.__all__]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_is_a_qvae_error_and_public(kind):
    assert issubclass(kind, errors.QvaeError)
    assert getattr(qvae_trt, kind.__name__) is kind
    assert kind.__doc__


def test_no_error_is_missing_from_the_list():
    classes = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and value.__module__ == errors.__name__
    }
    assert classes == set(errors.__all__)


def test_text_is_what_then_fix():
    assert str(errors.EngineError("a.trt: no such file")) == "a.trt: no such file"
    error = errors.EngineError("a.trt: no such file", fix="build it: qvae build")
    assert str(error) == "a.trt: no such file\nbuild it: qvae build"
    assert (error.what, error.fix) == ("a.trt: no such file", "build it: qvae build")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_exit_codes(kind):
    wrong_usage = {"UsageError", "ResolutionError"}
    assert kind.exit_code == (2 if kind.__name__ in wrong_usage else 1)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_crosses_a_process_boundary_whole(kind):
    # Builds run in processes of their own, and multiprocessing pickles what they raise.
    copy = pickle.loads(pickle.dumps(kind("what", fix="fix")))
    assert type(copy) is kind
    assert (copy.what, copy.fix, str(copy)) == ("what", "fix", "what\nfix")


@pytest.mark.parametrize(
    ("kind", "parent"),
    [
        ("ResolutionError", "UsageError"),
        ("StaleEngineError", "EngineError"),
        ("ForeignEngineError", "EngineError"),
        ("ExecutionError", "EngineError"),
        ("DeviceMemoryError", "EngineError"),
    ],
)
def test_family(kind, parent):
    assert issubclass(getattr(errors, kind), getattr(errors, parent))


@pytest.mark.parametrize(
    ("text", "shown", "line"),
    [
        ("plain 漢字 é –", "plain 漢字 é –", "plain 漢字 é –"),
        ("\x1b[2J\x07", "\\x1b[2J\\x07", "\\x1b[2J\\x07"),
        ("\x9b31m\x7f", "\\x9b31m\\x7f", "\\x9b31m\\x7f"),
        ("right\u202eleft", "right\\u202eleft", "right\\u202eleft"),
        ("one\ntwo\tthree", "one\ntwo\tthree", "one\\ntwo\\tthree"),
        ("a\rb\u2028c\udcff", "a\\rb\\u2028c\\udcff", "a\\rb\\u2028c\\udcff"),
    ],
)
def test_what_is_not_seen_is_shown(text, shown, line):
    assert errors.printable(text) == shown
    assert errors.printable(text, lines=False) == line
    assert errors.printable(shown) == shown
    error = errors.EngineError(text, fix=text)
    assert (error.what, error.fix) == (shown, shown)


@pytest.mark.parametrize(
    ("error", "where"),
    [
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "on the host"),
        (MemoryError(), "on the host"),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory"), "on the GPU"),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), "on the GPU"),
    ],
)
def test_memory_that_ran_out_is_no_bug(error, where):
    found = errors.expected(error)
    assert f"out of memory {where}" in found.what
    assert "smaller size" in found.fix
    assert errors.expected(RuntimeError("shapes do not match")) is None
