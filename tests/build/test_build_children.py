"""Building in another process: what comes back, and what is left when either process dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import fake_tensorrt
import pytest
import small_graphs

from qvae_trt import backends
from qvae_trt.backends import BuildSpec
from qvae_trt.build.children import build_child, build_there
from qvae_trt.cli import boundary
from qvae_trt.errors import BackendError, BuildError, DeviceMemoryError, QvaeError, StoreError
from qvae_trt.progress import ignore
from qvae_trt.tensors import ShapeRange
from qvae_trt.workers import Child

SPEC = BuildSpec(
    ranges=(ShapeRange((1, 4, 1, 4, 4), (1, 4, 1, 16, 16), (1, 4, 1, 32, 32)),),
    precision="fp16",
    level=2,
)
GPU = """
from qvae_trt.backends import devices
devices.gpu = lambda: devices.Device("NVIDIA H200", "9.0")
"""
HANG = """
import os, pathlib, time
def on_step(step):
    pathlib.Path({pid!r}).write_text(str(os.getpid()))
    time.sleep(120)
trt.fake.on_step = on_step
"""


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    return small_graphs.decoder(tmp_path / "d.onnx")


def install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, after: str, variant: str = "10.16"
) -> None:
    """The child gets the parent's search path, and with it this fake."""
    folder = fake_tensorrt.write_package(tmp_path / "site", variant, after=GPU + after)
    monkeypatch.syspath_prepend(str(folder))


def attempt(graph: Path, tmp_path: Path, progress: Any = ignore, **settings: Any) -> Any:
    with build_child() as child:
        return child.call(
            build_there, "tensorrt", graph, tmp_path / "e.trt", SPEC, progress=progress, **settings
        )


def wait_for(path: Path) -> int:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if path.is_file() and path.read_text():
            return int(path.read_text())
        time.sleep(0.02)
    raise AssertionError(f"{path} did not come")


def assert_gone(pid: int) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        status = Path(f"/proc/{pid}/status")
        if not status.is_file() or "State:\tZ" in status.read_text():
            return
        time.sleep(0.02)
    raise AssertionError(f"process {pid} is still there")


def test_same_outcome_as_in_process(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, tmp_path, "")
    seen: list[Any] = []
    outcome = attempt(graph, tmp_path, progress=lambda *s: seen.append(s))
    monkeypatch.setattr(backends.devices, "gpu", lambda: backends.Device("NVIDIA H200", "9.0"))
    with fake_tensorrt.installed("10.16"):
        wanted = backends.get("tensorrt").build(graph, tmp_path / "f.trt", SPEC)
        assert backends.get("tensorrt").open(tmp_path / "e.trt").ranges == SPEC.ranges
    assert (outcome.flags, outcome.input, outcome.output) == (
        wanted.flags,
        wanted.input,
        wanted.output,
    )
    assert seen[-1] == ("build", 1000, 1000)


def test_every_field_of_the_spec_arrives(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, tmp_path, "", variant="8.6")
    spec = BuildSpec(
        ranges=SPEC.ranges * 2,
        precision="fp16",
        level=1,
        timing_cache=tmp_path / "c.timing",
    )
    with build_child() as child:
        outcome = child.call(
            build_there, "tensorrt", graph, tmp_path / "e.trt", spec, progress=ignore
        )
    assert outcome.flags["level"] == "1"
    assert outcome.flags["profiles"] == "2"
    assert (tmp_path / "c-NVIDIA_H200-8.6.1-fp16.timing").is_file()


def test_the_child_is_another_process_without_torch(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = tmp_path / "report"
    install(
        monkeypatch,
        tmp_path,
        "import os, pathlib\n"
        f"trt.fake.on_step = lambda _: pathlib.Path({str(report)!r}).write_text("
        "f'{os.getpid()} {\"torch\" in sys.modules}')",
    )
    attempt(graph, tmp_path)
    pid, torch = report.read_text().split()
    assert int(pid) != os.getpid()
    assert torch == "False"
    assert_gone(int(pid))


@pytest.mark.parametrize(
    ("after", "kind", "words"),
    [
        (
            (
                "trt.fake.fail['Builder.build_serialized_network'] = True\n"
                "trt.fake.messages['Builder.build_serialized_network'] = 'no kernel for /up'"
            ),
            BuildError,
            "no kernel for /up",
        ),
        (
            (
                "trt.fake.fail['Builder.build_serialized_network'] = True\n"
                "trt.fake.messages['Builder.build_serialized_network'] = 'out of memory'"
            ),
            DeviceMemoryError,
            "out of memory",
        ),
        ("devices.gpu = lambda: None", BackendError, "building needs an NVIDIA GPU"),
    ],
)
def test_errors_keep_class_message_and_fix(
    graph: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    after: str,
    kind: type[Exception],
    words: str,
) -> None:
    install(monkeypatch, tmp_path, after)
    with pytest.raises(kind, match=words) as caught:
        attempt(graph, tmp_path)
    assert type(caught.value) is kind
    if kind is not BuildError:
        assert getattr(caught.value, "fix", None)


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", r"was killed by SIGSEGV: .*last words"),
        ("os.kill(os.getpid(), signal.SIGKILL)", r"was killed by SIGKILL \(out of host memory\?\)"),
        ("os.abort()", "was killed by SIGABRT"),
        ("os._exit(7)", "ended with exit code 7 and no engine"),
    ],
)
def test_a_crash_is_an_error_that_names_the_signal(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, words: str
) -> None:
    install(
        monkeypatch,
        tmp_path,
        "import os, signal, sys\n"
        "def on_step(step):\n"
        "    os.write(2, b'last words of the library\\n')\n"
        f"    {step}\n"
        "trt.fake.on_step = on_step",
    )
    with pytest.raises(BuildError, match=words):
        attempt(graph, tmp_path)


@pytest.mark.parametrize(
    ("step", "kind", "words"),
    [
        ("raise MemoryError()", QvaeError, "out of memory on the host"),
        ("raise OSError(28, 'No space left on device', '/x')", StoreError, "^/x: No space left"),
        ("raise OutOfMemoryError('CUDA')", DeviceMemoryError, "out of memory on the GPU"),
    ],
)
def test_what_a_command_expects_is_expected_in_the_child(
    graph: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    kind: type[Exception],
    words: str,
) -> None:
    install(
        monkeypatch,
        tmp_path,
        "class OutOfMemoryError(RuntimeError): pass\n"
        f"def on_step(step):\n    {step}\n"
        "trt.fake.on_step = on_step",
    )
    with pytest.raises(kind, match=words):
        attempt(graph, tmp_path)


def test_a_bug_in_the_child_is_a_bug_with_its_traceback(
    graph: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    logs = tmp_path / "logs"
    monkeypatch.setenv("XDG_STATE_HOME", str(logs))
    install(
        monkeypatch,
        tmp_path,
        "def on_step(step):\n    raise ZeroDivisionError('boom')\ntrt.fake.on_step = on_step",
    )
    assert boundary.run(lambda: attempt(graph, tmp_path)) == 3
    assert capsys.readouterr().err.startswith("bug in qvae: ZeroDivisionError: boom\n")
    (log,) = (logs / "qvae").iterdir()
    assert "in on_step" in log.read_text(), "the traceback of the child"
    assert "in attempt" in log.read_text(), "and that of the parent"


TELL = """
import os, pathlib
def on_step(step):
    with pathlib.Path({pids!r}).open("a") as file:
        print(os.getpid(), file=file)
    if pathlib.Path({trap!r}).exists():
        os.abort()
trt.fake.on_step = on_step
"""


def pid_of_build(child: Child, graph: Path, out: Path, pids: Path) -> int:
    """Build, with `TELL` in that process; which one it was."""
    pids.unlink(missing_ok=True)
    child.call(build_there, "tensorrt", graph, out, SPEC, progress=ignore)
    assert out.is_file()
    (pid,) = set(pids.read_text().split())
    return int(pid)


def test_one_process_builds_one_engine_after_another(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one build compiled is there for the next; a death is told and costs one engine."""
    pids, trap = tmp_path / "pids", tmp_path / "trap"
    install(monkeypatch, tmp_path, TELL.format(pids=str(pids), trap=str(trap)))

    def one(child: Child, name: str) -> int:
        return pid_of_build(child, graph, tmp_path / name, pids)

    with build_child() as child:
        first = one(child, "1.trt")
        assert one(child, "2.trt") == first
        trap.touch()
        with pytest.raises(BuildError, match="was killed by SIGABRT"):
            one(child, "3.trt")
        assert_gone(first)
        trap.unlink()
        last = one(child, "4.trt")
        assert last != first
    assert_gone(last)


def test_after_a_refusal_the_next_process_is_new(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pids = tmp_path / "pids"
    install(monkeypatch, tmp_path, TELL.format(pids=str(pids), trap=str(tmp_path / "trap")))
    with build_child() as child:
        first = pid_of_build(child, graph, tmp_path / "1.trt", pids)
        with pytest.raises(BuildError, match=r"does not take no\.onnx"):
            child.call(
                build_there,
                "tensorrt",
                tmp_path / "no.onnx",
                tmp_path / "e.trt",
                SPEC,
                progress=ignore,
            )
        assert_gone(first)
        assert pid_of_build(child, graph, tmp_path / "2.trt", pids) != first


def test_a_death_between_two_builds_costs_no_engine(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the kernel's, while the parent exports the next graph and the host runs out of memory."""
    pids = tmp_path / "pids"
    install(monkeypatch, tmp_path, TELL.format(pids=str(pids), trap=str(tmp_path / "trap")))
    with build_child() as child:
        first = pid_of_build(child, graph, tmp_path / "1.trt", pids)
        os.kill(first, signal.SIGKILL)
        assert_gone(first)
        assert pid_of_build(child, graph, tmp_path / "2.trt", pids) != first


def test_the_last_output_is_of_the_build_that_failed(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    word = tmp_path / "word"
    install(
        monkeypatch,
        tmp_path,
        "import os, pathlib\n"
        "def on_step(step):\n"
        f"    word = pathlib.Path({str(word)!r}).read_bytes()\n"
        "    os.write(2, word + b'\\n')\n"
        "    if word == b'fatal':\n"
        "        os.abort()\n"
        "trt.fake.on_step = on_step",
    )
    with build_child() as child:
        word.write_text("harmless")
        child.call(build_there, "tensorrt", graph, tmp_path / "1.trt", SPEC, progress=ignore)
        word.write_text("fatal")
        with pytest.raises(BuildError, match="SIGABRT: fatal") as caught:
            child.call(build_there, "tensorrt", graph, tmp_path / "2.trt", SPEC, progress=ignore)
    assert "harmless" not in caught.value.what


def test_noise_on_stdout_and_stderr_is_harmless(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    install(
        monkeypatch,
        tmp_path,
        "import os\ntrt.fake.on_step = lambda _: [os.write(fd, b'{noise}\\n') for fd in (1, 2)]",
    )
    assert attempt(graph, tmp_path).flags["profiles"] == "1"
    assert capfd.readouterr() == ("", "")


def test_a_child_that_cannot_start(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho no such thing\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    with pytest.raises(BuildError, match="ended with exit code 1 and no engine: no such thing"):
        attempt(graph, tmp_path)


def test_no_process_at_all(graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    descriptors = set(Path("/proc/self/fd").iterdir())
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    with pytest.raises(BuildError, match="the build process cannot start: No such file"):
        attempt(graph, tmp_path)
    assert set(Path("/proc/self/fd").iterdir()) == descriptors


def test_progress_that_stops_ends_the_child(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = tmp_path / "pid"
    install(monkeypatch, tmp_path, HANG.format(pid=str(pid)))

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "build":
            wait_for(pid)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attempt(graph, tmp_path, progress=stop)
    assert_gone(wait_for(pid))


PARENT = """
import sys
from pathlib import Path
from qvae_trt.backends import BuildSpec
from qvae_trt.progress import ignore
from qvae_trt.tensors import ShapeRange
from qvae_trt.build.children import build_child, build_there
from qvae_trt.progress import ignore
sizes = (ShapeRange.fixed((1, 4, 1, 16, 16)),)
spec = BuildSpec(ranges=sizes, precision="fp16")
try:
    child = build_child()
    child.call(build_there, "tensorrt", *map(Path, sys.argv[1:]), spec, progress=ignore)
except KeyboardInterrupt:
    print("interrupted", flush=True)
    sys.exit(130)
"""


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_child_ends_with_its_parent(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: signal.Signals
) -> None:
    """Ctrl-C reaches the whole group, child included; the others reach the parent only."""
    pid = tmp_path / "pid"
    install(monkeypatch, tmp_path, HANG.format(pid=str(pid)))
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(graph), str(tmp_path / "e.trt")],
        env=env,
        start_new_session=True,
        stdout=subprocess.PIPE,
        text=True,
        # What runs in a shell's background has SIGINT ignored, and so have its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    child = wait_for(pid)
    if by == signal.SIGINT:
        os.killpg(parent.pid, by)
    else:
        parent.send_signal(by)
    out, _ = parent.communicate(timeout=60)
    assert (parent.returncode, out) == (
        (130, "interrupted\n") if by == signal.SIGINT else (-by, "")
    )
    assert_gone(child)


def test_the_real_rtx(graph: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    seen: list[Any] = []
    with build_child() as child:
        outcome = child.call(
            build_there,
            "tensorrt_rtx",
            graph,
            tmp_path / "e.trt",
            SPEC,
            progress=lambda *s: seen.append(s),
        )
    assert outcome.flags["typing"] == "strong"
    assert (tmp_path / "e.trt").stat().st_size > 10_000
    assert [s[1] for s in seen] == sorted(s[1] for s in seen)


def test_the_real_rtx_and_a_bad_graph(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    (tmp_path / "x.onnx").write_bytes(b"not onnx")
    with build_child() as child, pytest.raises(BuildError, match=r"TensorRT does not take x\.onnx"):
        child.call(
            build_there,
            "tensorrt_rtx",
            tmp_path / "x.onnx",
            tmp_path / "e.trt",
            SPEC,
            progress=ignore,
        )
