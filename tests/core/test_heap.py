import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from pellucid.core import heap

CPU = torch.device("cpu")
on_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library has no such settings")


def recorder(monkeypatch, free: int = 0) -> list:
    calls = []
    libc = SimpleNamespace(
        mallopt=lambda option, value: calls.append((option, value)), malloc_trim=lambda pad: calls.append(("trim", pad))
    )
    monkeypatch.setattr(heap, "_glibc", lambda: libc)
    monkeypatch.setattr(heap, "_free_bytes", lambda libc: free)
    return calls


def test_blocks_stay_in_the_heap_within_and_are_mapped_again_after(monkeypatch):
    calls = recorder(monkeypatch)
    with heap.kept_heap(CPU):
        assert (heap._MMAP_MAX, 0) in calls
        assert (heap._MMAP_MAX, 65536) not in calls
    assert calls.index((heap._MMAP_MAX, 65536)) > calls.index((heap._MMAP_MAX, 0))
    assert (heap._MMAP_THRESHOLD, 32 * 2**20) in calls


def test_only_the_outermost_call_changes_anything(monkeypatch):
    calls = recorder(monkeypatch)
    with heap.kept_heap(CPU):
        before = list(calls)
        with heap.kept_heap(CPU):
            pass
        assert calls == before


def test_the_settings_go_back_after_an_error(monkeypatch):
    calls = recorder(monkeypatch)
    with pytest.raises(ValueError, match="broke"), heap.kept_heap(CPU):
        raise ValueError("broke")
    assert (heap._MMAP_MAX, 65536) in calls
    assert heap._depth == [0]


@pytest.mark.parametrize(("free", "trimmed"), [(2**20, False), (2**31, True)])
def test_much_free_memory_goes_back_and_little_stays(monkeypatch, free, trimmed):
    calls = recorder(monkeypatch, free)
    with heap.kept_heap(CPU):
        pass
    assert (("trim", 0) in calls) is trimmed


def test_a_gpu_has_its_own_heap(monkeypatch):
    calls = recorder(monkeypatch)
    with heap.kept_heap(torch.device("cuda")):
        pass
    assert calls == []


def test_what_the_user_has_set_is_left_alone(monkeypatch):
    heap._glibc.cache_clear()
    monkeypatch.setenv("MALLOC_TOP_PAD_", "100000")
    assert heap._glibc() is None
    heap._glibc.cache_clear()


@on_glibc
def test_memory_is_not_cleared_anew_for_each_block_and_goes_back_at_the_end():
    """Counted in page faults: 50 blocks of 40 MB are 500 000 pages where each is mapped, 10 000 where one is kept."""
    code = """
import resource, torch
from pellucid.core.heap import kept_heap
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def resident():
    return int(open('/proc/self/statm').read().split()[1]) * 4096
def work():
    for _ in range(50):
        torch.ones(10_000_000)
torch.set_num_threads(1)
start = faults(); work(); mapped = faults() - start
with kept_heap(torch.device("cpu")):
    start = faults(); work(); kept = faults() - start
    big = [torch.ones(50_000_000) for _ in range(4)]
    del big
print(mapped, kept, resident())
"""
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    mapped, kept, resident = map(int, output.split())
    assert kept < mapped / 5
    assert resident < 600 * 2**20


@on_glibc
def test_what_little_stays_serves_the_next_call():
    """Counted in page faults: ten blocks of 16 MB are 40 000 pages, cleared at the first calls or at each."""
    code = """
import resource, torch
from pellucid.core.heap import kept_heap
def call():
    start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    with kept_heap(torch.device("cpu")):
        blocks = [torch.ones(4_000_000) for _ in range(10)]
        del blocks
    torch.ones(5_000_000)  # what is freed in between may lead glibc to trim
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - start
torch.set_num_threads(1)
print(*(call() for _ in range(5)))
"""
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    first, _, *later = map(int, output.split())
    assert max(later) < first / 5
