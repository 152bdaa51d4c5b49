"""The choice of kernels; Triton's against torch's, interpreted and, where there is a GPU, on it."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tokenizer_zoo import zoo

from nemo_xtoken.errors import InputError
from nemo_xtoken.kernels.choice import kernels_for
from nemo_xtoken.kernels.reference import TORCH, TorchKernels
from nemo_xtoken.losses.base import ModelOutput, TeacherSignal
from nemo_xtoken.losses.pair import VocabularyPair
from nemo_xtoken.losses.registry import LOSSES, make_divergence
from nemo_xtoken.objective.scale import ObjectiveConfig
from nemo_xtoken.objective.terms import cross_tokenizer_loss
from nemo_xtoken.parallel.head import FreeLogits
from nemo_xtoken.parallel.vocabulary_shard import VocabularyShard
from nemo_xtoken.projection.build import build_projection

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


def cases(*names, **environment):
    """Runs the tests of files, in one process."""
    files = [str(HERE / name) for name in names]
    out = run("-m", "pytest", *files, "-v", "-p", "no:cacheprovider", **environment)
    assert all(re.search(rf"{name}::.* PASSED", out) for name in names)
    return out


@with_triton
def test_triton_interpreted_equals_torch():
    names = "kernel_cases.py", "largest_cases.py", "slot_cases.py", "triton_on_texts.py"
    assert "SKIPPED" not in cases(*names, TRITON_INTERPRET="1")


@with_triton
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_triton_on_a_gpu_equals_torch():
    cases("kernel_cases.py")


@with_triton
def test_every_kernel_compiles_for_a_gpu(tmp_path):
    out = run(str(HERE / "compile_kernels.py"), TRITON_CACHE_DIR=str(tmp_path))
    assert len(set(out.split())) == 24


def test_torch_where_there_is_no_gpu():
    assert kernels_for("auto", cuda=False).name == kernels_for("torch", cuda=True).name == "torch"


def test_triton_is_refused_where_it_cannot_run():
    with pytest.raises(InputError, match="kernels=triton"):
        kernels_for("triton", cuda=False)


@pytest.mark.parametrize("name", ["torch", "auto", "triton"])
def test_a_pytorch_without_float32_products_is_refused_on_a_gpu(name, monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.7.1")
    with pytest.raises(InputError, match=r"PyTorch 2\.7\.1 on a GPU") as found:
        kernels_for(name, cuda=True)
    assert "2.8" in found.value.expected
    assert kernels_for("torch", cuda=False) is TORCH
    monkeypatch.setattr(torch, "__version__", "2.10.0a0+git")  # newer, of two digits
    assert kernels_for("torch", cuda=True) is TORCH


def test_an_unknown_name_is_refused_with_the_names_there_are():
    with pytest.raises(InputError, match="auto, torch, triton"):
        ObjectiveConfig(kernels="cuda")


class Counting(TorchKernels):
    """Torch's kernels that note what is asked of them."""

    def __init__(self):
        self.asked = set()

    def __getattribute__(self, name):
        if name in ("softmax", "gather", "compare", "through_softmax", "by_logits"):
            self.asked.add(name)
        return super().__getattribute__(name)


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "nrl_p_kl"])
def test_every_pass_over_a_tile_is_by_the_kernels_that_were_given(name, monkeypatch):
    """Of the divergence and of the pass; no other kernels are found somewhere."""
    for method in ("softmax", "gather", "compare", "through_softmax", "by_logits"):
        monkeypatch.setattr(TORCH, method, None, raising=False)
    kernels, vocabulary = Counting(), zoo()["llama"]
    pair = VocabularyPair(vocabulary, vocabulary, build_projection(vocabulary, vocabulary))
    shard = VocabularyShard(vocabulary.size, vocabulary.size)
    divergence = make_divergence(name, pair, shard, kernels=kernels)
    labels = torch.tensor([[int(pair.strict.student[5])]])
    order = divergence.ownership
    z = torch.randn(2, vocabulary.size, generator=torch.Generator().manual_seed(0))
    teacher = ModelOutput(
        torch.nn.functional.pad(z[:1, torch.from_numpy(order.order)], (0, order.shard.padded - order.shard.size)),
        FreeLogits(order.shard, torch.from_numpy(order.owned)),
    )
    signal = TeacherSignal(teacher, labels, torch.tensor([[0, 0, 1, 0, 1]]), divergence)
    student = ModelOutput(z[1:].clone().requires_grad_(), FreeLogits(shard))
    cross_tokenizer_loss(student, labels, [signal], kernels=kernels).objective.backward()
    wanted = {"softmax", "by_logits"} | ({"through_softmax"} if name != "alm" else set())  # alm has labels alone
    wanted |= {"gather", "compare"} if hasattr(divergence, "exchange") or hasattr(divergence, "common") else set()
    wanted -= {"compare"} if name == "strict_1to1" else set()
    wanted |= {"compare"} if name == "same_tokenizer" else set()
    assert kernels.asked == wanted
