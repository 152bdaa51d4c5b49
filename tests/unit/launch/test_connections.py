"""What a job sets of ``CUDA_DEVICE_MAX_CONNECTIONS``: that of its files, and 8 where a teacher's pass would wait."""

import pytest
from test_preflight import _own_home, look, world  # noqa: F401 (fixtures)

from nemo_xtoken.commands.cli import main
from nemo_xtoken.run.unsupported import CONNECTIONS as VARIABLE

STRATEGY = "trainer.strategy"
RUN = [
    "recipe=xtoken_qwen3_llama1b", "slurm=venv", "executor.gpus_per_node=8", "data.micro_batch_size=1",
    "data.text.paths=['/d/*.parquet']", "resume.restore_config.path=/m/student", "teacher.path=/m/teacher",
]  # fmt: skip
AHEAD = "teacher.ahead=true"
#: Words -> the number, and what is said of it.
CASES = {
    "nothing ahead": ([], "1", ""),
    "ahead": ([AHEAD], "8", f"note: {VARIABLE}=8 in place of 1"),
    "one of two": (
        ["teachers.second.path=/m/second", "teachers.second.ahead=true", "teachers.second.loss=h_kl"], "8", "note: ",
    ),
    "tensor parallel": (
        [AHEAD, f"{STRATEGY}.tensor_model_parallel_size=2"], "1", "warning: .*tensor_model_parallel_size=2 only so",
    ),
    "context parallel": (
        [AHEAD, f"{STRATEGY}.context_parallel_size=2"], "1", "warning: .*context_parallel_size=2 only so",
    ),
    "named": ([AHEAD, f"executor.env_vars.{VARIABLE}=1"], "1", "warning: .*as the command line has it"),
    "another": ([AHEAD, f"executor.env_vars.{VARIABLE}=16"], "16", ""),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_script_has_what_its_run_needs(case, capsys):
    words, number, said = CASES[case]
    assert main(["sbatch", *RUN, *words]) == 0
    out, err = capsys.readouterr()
    assert f"export {VARIABLE}={number}\n" in out
    _said(err, said)


def _said(text, said):
    import re

    if said:
        assert re.search(said, text), text
    else:
        assert VARIABLE not in text


def test_a_layout_that_the_machine_chooses_may_need_one(capsys):
    words = ["recipe=xtoken", "slurm=venv", "student=/m/student", "teacher=/m/teacher", "data.text.paths=x", AHEAD]
    assert main(["sbatch", *words]) == 0
    out, err = capsys.readouterr()
    assert f"export {VARIABLE}=1\n" in out
    assert f"{STRATEGY}.tensor_model_parallel_size is left to the machine" in err
    assert main(["sbatch", *words, f"{STRATEGY}.tensor_model_parallel_size=1"]) == 0
    assert f"export {VARIABLE}=8\n" in capsys.readouterr().out


def test_a_sweep_has_8_where_every_task_may(tmp_path, capsys):
    for second, number in (("teacher.ahead=true", "8"), ("teacher.ahead=false", "1")):
        (tmp_path / "sweep.txt").write_text(f"teacher.ahead=true\n{second} optim.config.lr=1e-4\n")
        assert main(["sbatch", *RUN, f"sweep={tmp_path}/sweep.txt"]) == 0
        assert f"export {VARIABLE}={number}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ([], None),
        ([AHEAD], "green"),
        ([AHEAD, f"{STRATEGY}.tensor_model_parallel_size=2"], "yellow"),
        ([AHEAD, f"executor.env_vars.{VARIABLE}=1"], "yellow"),
    ],
)
def test_preflight_says_what_was_chosen(look, words, status):  # noqa: F811
    _, report = look("slurm=venv", "executor.gpus_per_node=8", *words)
    found = [check for check in report["checks"] if check["check"] == "ahead"]
    assert [check["status"] for check in found] == ([] if status is None else [status])
    assert all(VARIABLE in check["found"] for check in found)
