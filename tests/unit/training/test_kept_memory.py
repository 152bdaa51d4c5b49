"""What glibc is told to keep for a training on a CPU; each in a process of its own, whose allocator it changes."""

import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")

CODE = """
import resource
from nemo_xtoken.training.cpu.kept_memory import Kept
import ctypes
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
SIZE = 200 * 2**20
def faults():
    "of a block that is larger than any that glibc keeps by itself, the second time that it is asked for"
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        block = libc.malloc(SIZE)
        ctypes.memset(block, 1, SIZE)
        libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
plain = faults()
with Kept() as whether:
    within = faults()
after = faults()
print(whether, within < plain / 10, after > plain / 2)
"""


def said(**environment):
    done = subprocess.run(
        [sys.executable, "-c", CODE], env=environment, check=True, capture_output=True, text=True, timeout=120
    )
    return done.stdout.split()


def test_a_large_block_is_kept_and_given_back_afterwards():
    assert said() == ["True"] * 3


@pytest.mark.parametrize("name", ["MALLOC_TOP_PAD_", "GLIBC_TUNABLES"])
def test_what_the_user_has_set_stays(name):
    value = "glibc.malloc.top_pad=131072" if name == "GLIBC_TUNABLES" else "131072"
    assert said(**{name: value}) == ["False", "False", "True"]
