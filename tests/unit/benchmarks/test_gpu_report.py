"""The report of a GPU's first run, small and on a CPU: what it measures, what it calls wrong, what it leaves out."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gpu_report import container, nemo_steps
from gpu_report.__main__ import main
from gpu_report.kernel_tests import kernel_tests
from gpu_report.made_pair import made_pair
from gpu_report.page import page, verdict
from gpu_report.timing import OURS, kind_of
from gpu_report.values import values

from nemo_xtoken.kernels.reference import TORCH, TorchKernels
from nemo_xtoken.training.stopped import EXIT_STATUS

ROOT = Path(__file__).parents[3]
BESIDE = Path(sys.prefix) / "triton"  # where `make install` puts Triton beside a torch that brings none
PROGRAM = """
import sys
from gpu_report.__main__ import main
status = main(sys.argv[1:])
heavy = {"nemo", "megatron", "lightning", "nemo_run", "modelopt"} & set(sys.modules)
sys.exit(f"imported: {heavy}" if heavy else status)
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """One of all parts, by a process of its own; of the kernels' tests a few, of the timed losses two."""
    folder = tmp_path_factory.mktemp("report")
    path = os.pathsep.join(map(str, (ROOT, ROOT / "benchmarks", BESIDE)))
    arguments = ["--device", "cpu", "--rounds", "1", "--losses", "p_kl", "prefix_kl", "--tests", "not_a_number"]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments, "--out", str(folder)],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    found = json.loads((folder / "report.json").read_text())
    return done, found, (folder / "report.md").read_text()


def test_all_parts_without_any_of_nemo(report):
    done, found, text = report
    if found["kernel tests"]["status"] is None:
        pytest.skip(found["kernel tests"]["said"])
    assert (done.returncode, done.stderr[-1500:] if done.returncode else "") == (0, "")
    assert found["kernel tests"]["tests"] == 2
    assert found["left out"] == []
    assert text == page(found)


def test_values_of_every_loss_in_both_types(report):
    _, found, text = report
    rows = {(row["loss"], row["dtype"]) for row in found["values"]}
    losses = {"p_kl", "prefix_kl", "h_kl", "gold", "uld", "strict_1to1", "alm", "same_tokenizer"}
    assert {(loss, dtype) for loss in losses for dtype in ("float32", "bfloat16")} <= rows
    assert all(row["good"] for row in found["values"])
    assert text.count("| bfloat16 | torch |") == len(rows) / 2


def test_times_beside_plain_torch_and_the_products(report):
    _, found, text = report
    assert [row["loss"] for row in found["timings"]] == ["p_kl", "prefix_kl"]
    for row in [*found["timings"], *found["references"].values()]:
        assert row["seconds"] > 0
        assert row["on_device"]["products"] > 0
        assert row["launches"] > 2
    assert set(found["references"]) == {"products", "plain torch"}
    assert "| prefix_kl | torch |" in text


def test_a_wrong_value_is_seen():
    class Wrong(TorchKernels):
        def by_logits(self, *arguments):
            return super().by_logits(*arguments) * 1.01

    rows = values((303, 350), 12, (4, 6), "cpu", [TORCH, Wrong()])
    right, wrong = next(rows), next(rows)
    assert (right["good"], wrong["good"]) == (True, False)
    assert verdict({"values": [right, wrong]}) == ["WRONG: off from float64: p_kl (torch, float32)"]


def test_what_is_wrong_or_left_out_is_said():
    timings = [{"loss": "p_kl", "kernels": name, "seconds": s} for name, s in (("torch", 3.0), ("triton", 2.0))]
    found = verdict(
        {
            "about": {"cuda": "13.0"},
            "kernel tests": {"status": 1, "tests": 5, "failures": 1, "errors": 1},
            "references": {"products": {"seconds": 1.0}},
            "timings": timings,
            "left out": ["timings after p_kl"],
        }
    )
    assert found == [
        "WRONG: 5 tests of the kernels, 2 failed, status 1",
        "Triton is faster for 1 of 1 losses: p_kl",
        "p_kl takes 2.0 times as long as its products; the goal is 1.6",
        "left out for want of time: timings after p_kl",
    ]


@pytest.mark.skipif(not BESIDE.is_dir(), reason="no Triton")
def test_tests_that_do_not_end_are_no_success(monkeypatch):
    monkeypatch.syspath_prepend(BESIDE)
    found = kernel_tests(False, 0.1)
    assert found["status"] is None
    assert "stopped after" in found["said"]
    assert verdict({"kernel tests": found}) == ["WRONG: 0 tests of the kernels, 0 failed, status None"]


def test_missing_packages_are_named_with_what_installs_them(tmp_path):
    path = os.pathsep.join(map(str, (ROOT, ROOT / "benchmarks")))
    bare = [sys.executable, "-S", "-m", "gpu_report"]  # no site-packages
    done = subprocess.run(bare, env={"PYTHONPATH": path}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "missing: torch, numpy" in done.stderr
    assert "pip install numpy" in done.stderr


def test_what_there_is_no_time_for_is_left_out(tmp_path, capsys):
    assert main(["--device", "cpu", "--minutes", "0", "--out", str(tmp_path)]) == 1
    assert "left out for want of time: tests" in capsys.readouterr().out
    assert json.loads((tmp_path / "report.json").read_text())["left out"] == ["tests", "values", "times"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys):
    with pytest.raises(SystemExit) as stopped:
        main([])
    assert stopped.value.code == 2
    assert "finds no GPU" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("nvjet_hsh_128x256_64x4_1x2_h_bz_coopA_TNT", "products"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64", "products"),
        ("softmax_statistics", "triton"),
        ("Memcpy DtoH (Device -> Pageable)", "copies"),
        ("void at::native::vectorized_elementwise_kernel<4, exp>", "other"),
    ],
)
def test_kinds_of_kernels(kernel, kind):
    assert kind_of(kernel) == kind
    assert len(OURS) >= 6


def test_the_made_tokenizers_differ_as_real_ones_do():
    student, teacher = made_pair(1403, 1501)
    assert (student.size, teacher.size) == (1403, 1501)
    assert b"417" in student.id_of_bytes
    assert b"417" not in teacher.id_of_bytes
    common = set(student.id_of_bytes) & set(teacher.id_of_bytes)
    assert 0.3 < len(common) / student.size < 0.95


def broken(room):
    raise RuntimeError("status 1")


def test_the_steps_in_a_container_are_each_judged_and_none_ends_the_others(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(nemo_steps, "missing", lambda device: None)
    runs = {"good": lambda room: ("all", True), "bad": lambda room: ("nothing", False), "broken": broken}
    steps = {name: container.Step("all", run) for name, run in runs.items()}
    steps["large"] = container.Step("all", runs["good"], gpus=3)
    monkeypatch.setattr(container, "STEPS", steps)
    assert container.main(["--device", "cpu", "--out", str(tmp_path)]) == 1
    found = json.loads((tmp_path / "container.json").read_text())["steps"]
    assert [row["verdict"] for row in found] == ["as expected", "WRONG", "WRONG", ""]
    assert found[2]["found"] == "RuntimeError: status 1"
    assert "| large | all | left out: 2 GPU here, it needs 3 |" in (tmp_path / "container.md").read_text()
    assert container.main(["--device", "cpu", "--steps", "good", "large", "--out", str(tmp_path)]) == 0


def test_steps_in_a_container_need_what_it_has(monkeypatch, capsys):
    monkeypatch.setattr(nemo_steps, "missing", lambda device: "nemo not installed: run it in an image")
    with pytest.raises(SystemExit):
        container.main(["--device", "cpu"])
    assert "nemo not installed" in capsys.readouterr().err


def test_steps_expect_what_the_documents_and_the_code_say(tmp_path):
    room = nemo_steps.Room(tmp_path / "room", "cpu", short=True)
    command = room.distil("x", *nemo_steps.LAYOUTS["own"], ranks=2)
    assert command[1:5] == ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    assert {"trainer.devices=2", "teacher.tensor_model_parallel_size=2", "teacher_steps=20"} <= set(command)
    assert f"**{nemo_steps.DEMO:.3f}**" in (ROOT / "README.md").read_text()
    assert nemo_steps.STOPPED == EXIT_STATUS
