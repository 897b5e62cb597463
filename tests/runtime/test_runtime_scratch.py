"""One buffer a device, one turn at a time, in the order of the streams."""

from __future__ import annotations

import threading

import pytest
import torch
from doubles import FakeStream

from qvae_trt.errors import DeviceMemoryError
from qvae_trt.runtime import memory as scratch_module
from qvae_trt.runtime.memory import Scratch, aligned, shared_scratch

CPU = torch.device("cpu")


def test_it_grows_to_the_largest_need_and_not_beyond():
    scratch = Scratch(CPU)
    with scratch.turn(None):
        first = scratch.reserve(1000, None)
        assert scratch.bytes == 1000
        assert scratch.reserve(10, None) == first, "a smaller need keeps the buffer"
        scratch.reserve(5000, None)
    assert scratch.bytes == 5000
    assert scratch.generation == 2


def test_addresses_are_aligned_as_tensorrt_asks():
    scratch = Scratch(CPU)
    for size in (1, 511, 512, 4097):
        assert scratch.reserve(size, None) % 512 == 0
    buffer = scratch.private(777)
    assert aligned(buffer) % 512 == 0
    assert buffer.data_ptr() <= aligned(buffer) <= buffer.data_ptr() + buffer.numel() - 777


def test_no_need_takes_no_memory():
    scratch = Scratch(CPU)
    assert scratch.reserve(0, None) == 0
    assert scratch.bytes == 0


def test_release_gives_back_and_makes_old_addresses_void():
    scratch = Scratch(CPU)
    scratch.reserve(100, None)
    before = scratch.generation
    scratch.release()
    assert scratch.bytes == 0
    assert scratch.generation > before
    scratch.release()
    assert scratch.generation == before + 1, "nothing was held: nothing changed"


def test_every_turn_waits_for_the_last_one_on_whichever_stream():
    """Also on the stream of the last turn: a handle is given again to a new stream."""
    scratch = Scratch(CPU)
    one, other = FakeStream(1), FakeStream(2)
    for stream in (one, one, other, one):
        with scratch.turn(stream):
            pass
    assert [what for what, _ in one.log] == ["record", "wait", "record", "wait", "record"]
    assert [what for what, _ in other.log] == ["wait", "record"]


def test_a_failed_turn_is_waited_for_too():
    scratch = Scratch(CPU)
    one, other = FakeStream(1), FakeStream(2)
    with pytest.raises(RuntimeError), scratch.turn(one):
        raise RuntimeError("half of it was enqueued")
    with scratch.turn(other):
        pass
    assert [what for what, _ in other.log] == ["wait", "record"]


def test_growing_waits_until_the_old_buffer_is_idle():
    scratch = Scratch(CPU)
    stream = FakeStream(1)
    with scratch.turn(stream):
        scratch.reserve(10, stream)
    event = stream.log[-1][1]
    with scratch.turn(stream):
        scratch.reserve(10, stream)
        assert event.waits == 0
        scratch.reserve(20, stream)
        assert event.waits == 1


def test_turns_of_threads_do_not_overlap():
    scratch, inside = Scratch(CPU), threading.Event()

    def other() -> None:
        with scratch.turn(None):
            inside.set()

    thread = threading.Thread(target=other, daemon=True)
    with scratch.turn(None):
        thread.start()
        assert not inside.wait(0.3)
        with scratch.turn(None):  # a turn may drain, which takes one
            scratch.drain()
    assert inside.wait(10)


def test_out_of_memory_is_said_with_the_size_and_leaves_it_usable(monkeypatch):
    scratch = Scratch(CPU)
    scratch.reserve(10, None)

    def refuse(*_args, **_kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(scratch_module.torch, "empty", refuse)
        with pytest.raises(DeviceMemoryError, match=r"4\.00 GiB"):
            scratch.reserve(4 * 2**30, None)
    assert scratch.bytes == 0, "the old buffer went first"
    assert scratch.reserve(10, None) % 512 == 0


def test_one_scratch_a_cuda_device_for_as_long_as_somebody_holds_it():
    cuda = torch.device("cuda", 0)
    first = shared_scratch(cuda)
    assert shared_scratch(cuda) is first
    assert shared_scratch(torch.device("cuda", 1)) is not first
    assert shared_scratch(CPU) is not shared_scratch(CPU)
    marker = id(first)
    del first
    fresh = shared_scratch(cuda)
    assert fresh.generation == 0, marker
