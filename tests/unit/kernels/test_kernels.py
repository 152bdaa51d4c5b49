"""The choice of kernels; Triton's against torch's, interpreted and, where there is a GPU, on it."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nemo_xtoken.errors import InputError
from nemo_xtoken.kernels.choice import active, kernels_for, using
from nemo_xtoken.kernels.reference import TorchKernels
from nemo_xtoken.objective.scale import ObjectiveConfig

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
#: Where `make install` puts Triton beside a torch that brings none.
BESIDE = Path(sys.prefix) / "triton"
INSTALLED = importlib.util.find_spec("triton") is not None
with_triton = pytest.mark.skipif(
    not INSTALLED and not BESIDE.is_dir(), reason=f"Triton is neither installed nor in {BESIDE}: make install"
)


def run(*arguments, **environment):
    """What a process of its own printed."""
    variables = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    path = [str(ROOT), *([] if INSTALLED else [str(BESIDE)])]
    variables |= {"PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=variables, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return done.stdout


def cases(**environment):
    """Runs kernel_cases.py."""
    out = run("-m", "pytest", str(HERE / "kernel_cases.py"), "-q", "-p", "no:cacheprovider", **environment)
    assert " passed" in out
    return out


@with_triton
@pytest.mark.slow
def test_triton_interpreted_equals_torch():
    assert "skipped" not in cases(TRITON_INTERPRET="1")


@with_triton
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_triton_on_a_gpu_equals_torch():
    cases()


@with_triton
def test_every_kernel_compiles_for_a_gpu(tmp_path):
    out = run(str(HERE / "compile_kernels.py"), TRITON_CACHE_DIR=str(tmp_path))
    assert len(set(out.split())) == 6


def test_torch_where_there_is_no_gpu():
    assert kernels_for("auto", cuda=False).name == kernels_for("torch", cuda=True).name == "torch"


def test_triton_is_refused_where_it_cannot_run():
    with pytest.raises(InputError, match="kernels=triton"):
        kernels_for("triton", cuda=False)


def test_an_unknown_name_is_refused_with_the_names_there_are():
    with pytest.raises(InputError, match="auto, torch, triton"):
        ObjectiveConfig(kernels="cuda")


def test_kernels_are_in_force_within_a_with_alone():
    before, mine = active(), TorchKernels()

    def fails():
        with using(mine):
            assert active() is mine
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert active() is before
