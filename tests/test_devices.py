"""Devices, threads and bytes from what the user wrote."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hopmem.devices import DEFAULT_BUDGET, budget, memory_errors, resolve, set_threads, size
from hopmem.pages import OWN
from tests.refusal import raises_refusal

MIB = 1 << 20


def test_the_cpu_is_always_there():
    assert resolve("cpu") == torch.device("cpu")


def test_auto_takes_an_accelerator_where_there_is_one():
    there = torch.cuda.is_available() or torch.backends.mps.is_available()
    assert (resolve("auto").type != "cpu") == there


@pytest.mark.parametrize("name", ["", "gpu", "cuda:", "cuda:-1", "cpu:0", "CPU", "cuda:a", "auto ", "meta"])
def test_an_unknown_kind_of_device_is_a_usage_error(name):
    with raises_refusal(2, "--device", repr(name)):
        resolve(name)


@pytest.mark.parametrize("name", ["cuda:99", "cuda:127", "cuda:128", "cuda:257", "cuda:9999999999999999999999"])
def test_a_device_that_is_not_there_is_a_device_error(name):
    with raises_refusal(5, name):
        resolve(name)


def test_cuda_without_a_gpu_is_a_device_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for name in ("cuda", "cuda:0", "mps"):
        with raises_refusal(5, name):
            resolve(name)


@pytest.mark.parametrize(
    ("text", "bytes_"),
    [
        ("2G", 2 << 30),
        ("2g", 2 << 30),
        ("512M", 512 * MIB),
        ("1.5GiB", 3 << 29),
        ("1TB", 1 << 40),
        ("2048KB", 2 * MIB),
        ("3000000", 3_000_000),
        (" 4 M ", 4 * MIB),
        ("1", MIB),
        ("0", MIB),
    ],
)
def test_a_size_is_a_number_of_bytes_and_at_least_a_mebibyte(text, bytes_):
    assert size(text) == bytes_


@given(st.integers(0, 2**40), st.sampled_from(["", "K", "M", "G", "T"]))
def test_sizes_are_powers_of_1024(number, unit):
    assert size(f"{number}{unit}") == max(MIB, number * 1024 ** ("", "K", "M", "G", "T").index(unit))


@pytest.mark.parametrize("text", ["", "G", "-1G", "2X", "1e9", "two", "1,5G", "2GG", "nan", "1.G"])
def test_what_is_no_size_is_a_usage_error(text):
    with raises_refusal(2, "--memory-limit", repr(text)):
        size(text)


def test_a_block_takes_part_of_the_memory_limit_and_never_more_than_the_default():
    assert budget(None) == DEFAULT_BUDGET
    assert budget("64G") == ((64 << 30) - OWN) // 4
    assert 0 < budget("400M") < 400 * MIB


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
    ],
)
def test_running_out_of_memory_says_what_to_do(error):
    with raises_refusal(5, "--memory-limit"), memory_errors():
        raise error


def test_the_real_allocator_runs_out_of_memory_in_the_same_words():
    with raises_refusal(5, "--memory-limit"), memory_errors():
        torch.empty(1 << 60, dtype=torch.uint8)


def test_other_mistakes_pass_unchanged():
    with pytest.raises(ZeroDivisionError), memory_errors():
        1 / 0  # noqa: B018 # the mistake is the test


def test_threads_follow_the_option_and_none_leaves_them():
    before = torch.get_num_threads()
    try:
        set_threads(2)
        assert torch.get_num_threads() == 2
        set_threads(None)
        assert torch.get_num_threads() == 2
    finally:
        set_threads(before)
