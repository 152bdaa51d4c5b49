"""`nemo llm distill --recipe NAME` and `nemo xtoken VERB`, through nemo_run's own application."""

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from forked_commands import run_forked
from nemo_driver import drive

from nemo_xtoken.environment import find_stack

SUPPORT = Path(__file__).parents[1] / "support"


def _environment(third_party):
    return {
        "PYTHONPATH": os.pathsep.join([str(third_party), str(SUPPORT)]),
        "COLUMNS": "200",
        "NEMO_XTOKEN_VERBOSE": "1",
    }


def _drive_without_nemo(folder, third_party, *groups):
    """The results of each group, and which frameworks it has loaded."""
    lines = [[_words(words) for words in group.values()] for group in groups]
    (folder / "groups.json").write_text(json.dumps(lines))
    environment = _environment(third_party)
    environment["PYTHONPATH"] += f"{os.pathsep}{folder}"
    subprocess.run(
        [sys.executable, SUPPORT / "nemo_driver.py", "groups.json", "results.json"],
        env={**os.environ, **environment},
        cwd=folder,
        stdin=subprocess.DEVNULL,
        check=True,
        timeout=300,
    )
    found = json.loads((folder / "results.json").read_text())
    return [
        (dict(zip(group, part["done"], strict=True)), part["loaded"]) for group, part in zip(groups, found, strict=True)
    ]


def _words(words):
    return [words[0], "llm", *words[1:]] if isinstance(words[0], dict) else ["llm", *words]


RECIPE = ["distill", "--recipe", "fake_recipe"]
QUIET = {"NEMO_XTOKEN_VERBOSE": ""}
NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}
COMMANDS = {
    # First, while nothing has been confirmed in the process: it must not ask.
    "run": [*RECIPE, "trainer.max_steps=20"],
    "equals": ["distill", "--recipe=fake_recipe(layers=7)", "scale=0.5"],
    "factory": ["distill", "--factory", "fake_recipe", "--dryrun", "log=here"],
    "wrong recipe": ["distill", "--recipe", "fake_recip"],
    "recipe without name": ["distill", "--recipe"],
    "nothing": ["distill"],
    "list": ["distill", "--list-recipes"],
    "help": ["distill", "--help"],
    "wrong option": [*RECIPE, "--dry-run"],
    "no override": [*RECIPE, "max_steps"],
    "wrong argument": [*RECIPE, "trainer.max_step=20"],
    "wrong deep argument": [*RECIPE, "trainer.foo.bar=20"],
    "quiet": [QUIET, *RECIPE, "trainer.max_steps=20"],
    "quiet failure": [QUIET, *RECIPE, "scale=0"],
    "quiet input error": [QUIET, *RECIPE, "scale=-1"],
    "quiet dryrun": [QUIET, *RECIPE, "--dryrun"],
    "quiet verbose": [QUIET, *RECIPE, "--verbose"],
    "more teachers": [*RECIPE, "teachers.second.layers=8", "teachers.third.layers=3", "--yaml", "teachers.yaml"],
    "wrong argument of a teacher": [*RECIPE, "teachers.second.layer=8"],
    "wrong value": [*RECIPE, "trainer.max_steps=many"],
    "input error in run": [*RECIPE, "scale=-1"],
    "input error in recipe": ["distill", "--recipe", "fake_recipe(layers=0)"],
    "failure": [*RECIPE, "scale=0"],
    "no gpu": [NO_GPU, *RECIPE, "trainer.accelerator=gpu"],
    "no gpu dryrun": [NO_GPU, *RECIPE, "--dryrun", "trainer.accelerator=gpu"],
    "to yaml": [*RECIPE, "--to-yaml", "run.yaml", "trainer.max_steps=33", "log=a b: c"],
    "from yaml": ["distill", "--yaml", "run.yaml", "scale=0.25", "trust=true"],
    "to json": [*RECIPE, "--to-json", "run.json", "trainer.max_steps=33", "log=a b: c"],
    "from json": ["distill", "--yaml", "run.json", "scale=0.25", "trust=true"],
    "yaml and recipe": [*RECIPE, "--yaml", "run.yaml"],
    "values from yaml": [*RECIPE, "--yaml", "values.yaml"],
    "typo in values": [*RECIPE, "--yaml", "typo.yaml"],
    "twice in json": [*RECIPE, "--yaml", "twice.json"],
    "wrong value in values": [*RECIPE, "--yaml", "many.yaml"],
    "values that are a list": [*RECIPE, "--yaml", "list.yaml"],
    "values that are a word": [*RECIPE, "--yaml", "word.yaml"],
    "no values": [*RECIPE, "--yaml", "empty.yaml"],
    "wrong argument of a recipe": ["distill", "--recipe", "fake_recipe(layer=3)"],
    "yaml into a folder": [*RECIPE, "--to-yaml", "."],
    "no yaml": ["distill", "--yaml", "absent.yaml"],
    "foreign yaml": ["distill", "--yaml", "foreign.yaml", "trust=true"],
    "yaml of another": ["distill", "--yaml", "run.yaml", "scale=0.25"],
    "yaml that trusts itself": ["distill", "--yaml", "trusting.yaml"],
    "yaml with code": ["distill", "--yaml", "code.yaml", "trust=false"],
    "values with code": [*RECIPE, "--yaml", "values_with_code.yaml"],
    "wrong argument after yaml": ["distill", "--yaml", "run.yaml", "scal=1", "trust=true"],
    "slurm": [*RECIPE, "--executor", "slurm", "slurm=venv", "executor.nodes=2", "log=it's", "--dryrun"],
    "slurm teacher": [
        "distill",
        "--recipe",
        "xtoken_tiny",
        "--executor",
        "slurm",
        "slurm=venv",
        "executor.gpus_per_node=1",
        "teacher.path=/m/teacher",
        "teacher.nodes=2",
        "--dryrun",
    ],
    "slurm sweep": [*RECIPE, "--executor=slurm", "slurm=venv", "sweep=sweep.txt", "--dryrun"],
    "slurm wrong sweep": [*RECIPE, "--executor=slurm", "slurm=venv", "sweep=wrong.txt", "--dryrun"],
    "slurm wrong run": [*RECIPE, "--executor", "slurm", "slurm=venv", "trainer.max_step=20", "--dryrun"],
    "slurm wrong job": [*RECIPE, "--executor", "slurm", "slurm=venv", "executor.node=2", "--dryrun"],
    "wrong executor": [*RECIPE, "--executor", "slrum", "executor.nodes=2"],
    "slurm without executor": [*RECIPE, "executor.nodes=2"],
    "group": ["--help"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """In which the commands run."""
    return tmp_path_factory.mktemp("commands")


@pytest.fixture(scope="module")
def with_nemo(command_line, folder, third_party):
    (folder / "twice.json").write_text('{"trainer": {"max_steps": 1, "max_steps": 2}}\n')
    (folder / "values.yaml").write_text("trainer:\n  max_steps: 44\n")
    wrong = {"typo": "trainer:\n  max_step: 44\n", "many": "trainer:\n  max_steps: many\n", "list": "[1, 2]\n"}
    for name, content in {**wrong, "word": "word\n", "empty": ""}.items():
        (folder / f"{name}.yaml").write_text(content)
    (folder / "sweep.txt").write_text("scale=0.5\nscale=0.25\n")
    (folder / "wrong.txt").write_text("scale=0.5\nscal=0.25\n")
    (folder / "trusting.yaml").write_text("_target_: nemo_xtoken.recipes.tiny_text.text_file\ntrust: true\n")
    (folder / "code.yaml").write_text("_target_: os.system\ncommand: touch code_ran\n")
    (folder / "values_with_code.yaml").write_text("model:\n  _target_: os.system\n  command: touch code_ran\n")
    (folder / "foreign.yaml").write_text("_target_: nowhere_at_all.distill\n_partial_: true\n")
    (folder / "teachers.yaml").write_text("teachers:\n  fourth:\n    layers: 9\n")
    ended = run_forked(folder, _drive, third_party, list(map(_words, COMMANDS.values())), env=_environment(third_party))
    assert ended.status == 0, ended.log
    return dict(zip(COMMANDS, ended.result, strict=True))


def _drive(third_party, commands):
    sys.path.insert(0, str(third_party))
    return drive(commands)


def _ran(layers, steps, log, scale):
    return (
        f"RAN Student(layers={layers}) Teacher(layers=4, like=Student(layers={layers})) "
        f"Trainer(max_steps={steps}, devices=1, callbacks=[Callback(every=3)]) {log!r} {scale}"
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("run", _ran(2, 20, "", 1.0)),
        ("equals", _ran(7, 500, "", 0.5)),
        ("from yaml", _ran(2, 33, "a b: c", 0.25)),
        ("from json", _ran(2, 33, "a b: c", 0.25)),
        ("values from yaml", _ran(2, 44, "", 1.0)),
    ],
)
def test_recipe_runs_with_overrides_and_without_a_question(with_nemo, name, expected):
    result = with_nemo[name]
    assert result["status"] == 0, result
    assert expected in result["out"]


def test_what_a_run_prints_goes_to_its_log(with_nemo):
    quiet, verbose = with_nemo["quiet"], with_nemo["quiet verbose"]
    assert quiet["status"] == verbose["status"] == 0, quiet
    assert quiet["out"] == ""
    assert re.match(r"fake_recipe: nemo_xtoken \S+, NeMo 2\.\S+, Megatron-core \S+, PyTorch", quiet["err"])
    assert "\n  training  20 steps\n" in quiet["err"]
    assert "Resolved Arguments" in verbose["out"]
    assert "RAN" in verbose["out"]
    assert "max_steps=500" in with_nemo["quiet dryrun"]["out"]  # asked for, it is shown
    assert "Configuring global options" not in with_nemo["quiet dryrun"]["out"]


def test_errors_come_to_the_terminal_of_a_quiet_run(with_nemo):
    failure, wrong = with_nemo["quiet failure"], with_nemo["quiet input error"]
    assert failure["status"] == 1
    assert "Traceback (most recent call last)" in failure["err"]
    assert "RuntimeError: broken on purpose" in failure["err"]
    assert re.search(r"the log: \S+\.log\n", failure["err"])
    assert wrong["status"] == 2
    assert "error: scale=-1.0\n  expected: 0 or more" in wrong["err"]
    assert "the log" not in wrong["err"]


def test_more_teachers_by_name(with_nemo):
    out = with_nemo["more teachers"]["out"]
    for part in ("'second': Teacher(layers=8,", "'third': Teacher(layers=3,", "'fourth': Teacher(layers=9,"):
        assert part in out, with_nemo["more teachers"]


@pytest.mark.parametrize("name", ["factory", "to yaml", "to json", "no gpu dryrun"])
def test_dryrun_and_export_do_not_run(with_nemo, name):
    result = with_nemo[name]
    assert result["status"] == 0, result
    assert "RAN" not in result["out"]


def test_dryrun_shows_the_overridden_run(with_nemo):
    assert "'here'" in with_nemo["factory"]["out"]
    assert "max_steps=500" in with_nemo["factory"]["out"]


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("wrong recipe", ["no recipe 'fake_recip'; did you mean 'fake_recipe'?", "A recipe that trains nothing."]),
        ("recipe without name", ["--recipe needs a name", "A recipe that trains nothing."]),
        ("nothing", ["nemo llm distill --recipe NAME", "A recipe that trains nothing."]),
        ("wrong option", ["no option '--dry-run'; did you mean '--dryrun'?", "--recipe", "--to-yaml"]),
        ("no override", ["'max_steps' is no override", "trainer.max_steps=20"]),
        ("wrong argument", ["no argument 'max_step' in trainer; did you mean 'max_steps'?", "devices"]),
        ("wrong deep argument", ["no argument 'foo' in trainer", "in: trainer.foo.bar=20"]),
        ("wrong argument of a teacher", ["no argument 'layer' in teachers.second; did you mean 'layers'?"]),
        ("wrong value", ["trainer.max_steps=many", "expected: a whole number"]),
        ("input error in run", ["error: scale=-1.0", "expected: 0 or more"]),
        ("no gpu", ["error: trainer.accelerator=gpu, and no GPU here", "set trainer.accelerator=auto"]),
        ("input error in recipe", ["error: layers=0", "expected: 1 or more"]),
        ("yaml and recipe", ["run.yaml holds a whole run", "leave --recipe out"]),
        ("no yaml", ["no file absent.yaml"]),
        ("foreign yaml", ["'nowhere_at_all.distill'", "cannot be imported"]),
        ("yaml of another", ["run.yaml names", "fake_recipe.", "trust=true"]),
        ("yaml that trusts itself", ["trusting.yaml names trust=True", "trust=true"]),
        ("yaml with code", ["code.yaml names _target_=os.system", "trust=true"]),
        ("values with code", ["values_with_code.yaml names model._target_=os.system", "trust=true"]),
        ("typo in values", ["no argument 'max_step' in trainer; did you mean 'max_steps'?"]),
        ("twice in json", ["max_steps", "twice"]),
        ("wrong value in values", ["trainer.max_steps='many'", "expected: a whole number"]),
        ("values that are a list", ["list.yaml"]),
        ("values that are a word", ["word.yaml"]),
        ("no values", ["empty.yaml"]),
        ("wrong argument of a recipe", ["'layer'"]),
        ("yaml into a folder", ["--to-yaml=. is a folder"]),
        ("slurm wrong sweep", ["no argument 'scal' in the run; did you mean 'scale'?"]),
        ("slurm wrong run", ["no argument 'max_step' in trainer"]),
        ("slurm wrong job", ["there is no executor.node"]),
        ("wrong executor", ["there is no executor 'slrum'; did you mean 'slurm'?"]),
        ("slurm without executor", ["executor.nodes=2 without an executor: add --executor slurm"]),
        ("wrong argument after yaml", ["no argument 'scal' in the run; did you mean 'scale'?"]),
    ],
)
def test_wrong_input_is_one_message_and_status_2(with_nemo, name, parts):
    result = with_nemo[name]
    assert result["status"] == 2
    for part in parts:
        assert part in result["err"]
    assert "Traceback" not in result["err"]
    assert "RAN" not in result["out"]


def test_code_in_a_file_does_not_run(with_nemo, folder):
    """Refused before, and not after, it is called."""
    assert "touch code_ran" in (folder / "code.yaml").read_text()
    assert not (folder / "code_ran").exists()


def test_a_typo_is_not_answered_with_the_whole_run(with_nemo):
    for name in ("wrong argument", "typo in values", "wrong value", "wrong value in values"):
        assert len(with_nemo[name]["err"].splitlines()) < 10


def test_slurm_submits_the_same_command_without_what_configures_the_job(with_nemo):
    assert with_nemo["slurm"]["status"] == 0, with_nemo["slurm"]
    out = with_nemo["slurm"]["out"]
    assert "#SBATCH --nodes=2\n" in out
    assert """exec nemo llm distill --recipe fake_recipe 'log=it'"'"'s'\n""" in out
    assert "RAN" not in out
    assert with_nemo["slurm teacher"]["status"] == 0, with_nemo["slurm teacher"]
    out = with_nemo["slurm teacher"]["out"]
    assert "#SBATCH --nodes=3\n" in out
    assert "xtoken serve teacher=/m/teacher dtype=fp32 " in out
    assert "teacher_folder=runs/xtoken_tiny/service\n" in out
    assert "teacher.path=/m/teacher teacher.source=remote teacher.service.folder=runs/xtoken_tiny/service\n" in out
    out = with_nemo["slurm sweep"]["out"]
    assert "#SBATCH --array=0-1\n" in out
    assert "    1) words=(log.name=fake_recipe-1 scale=0.25) ;;" in out


UNDER_SRUN = {"SLURM_JOB_ID": "9", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NUM_NODES": "2",
              "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_NODEID": "1", "SLURM_LOCALID": "1"}  # fmt: skip


@pytest.fixture(scope="module")
def without_nemo(tmp_path_factory, third_party):
    """What the two ranks of a job say, and a process that is in none."""
    alone = {"list": ["distill", "--list-recipes"], "run": [*RECIPE, "trainer.max_steps=20"], "no": ["distill"]}
    alone["neither"] = ["distill", "--recipe", "xtoken_qwen3_llama1b"]
    folder = tmp_path_factory.mktemp("without")
    for name, package in (("missing", "absent_package"), ("of_our_own", "nemo_xtoken.absent")):
        (folder / f"run_of_{name}.py").write_text(f"def distill(scale: float = 1.0):\n    import {package}\n")
        (folder / f"{name}.yaml").write_text(f"_target_: run_of_{name}.distill\nscale: 1.0\n")
        alone[name] = ["distill", "--yaml", f"{name}.yaml", "trust=true"]
    home = {"HOME": str(folder / "home")}
    alone["home"] = [home, *RECIPE, "log=~/runs/mine"]
    alone["home in yaml"] = [home, *RECIPE, "--to-yaml", "home.yaml", "log=~/runs/mine"]
    alone["home on slurm"] = [home, *RECIPE, "--executor", "slurm", "slurm=venv", "log=~/runs/mine", "--dryrun"]
    ranks = []
    for rank in ("0", "5"):
        step = {**UNDER_SRUN, "SLURM_PROCID": rank}
        commands = {"run": [step, *RECIPE, "trainer.max_steps=20"], "conflict": [step, *RECIPE, "trainer.devices=8"]}
        ranks.append(commands)
    found = _drive_without_nemo(folder, third_party, alone, *ranks)
    found[0][0]["yaml of home"] = (folder / "home.yaml").read_text()
    found[0][0]["folder"] = folder
    return found


@pytest.mark.parametrize("rank", [0, 5])
def test_under_srun_the_trainer_has_the_jobs_devices(without_nemo, rank):
    results, _ = without_nemo[{0: 1, 5: 2}[rank]]
    assert results["run"]["status"] == 0, results["run"]
    assert "Trainer(max_steps=20, devices=4, " in results["run"]["out"]
    assert ("Resolved Arguments" in results["run"]["out"]) == (rank == 0)  # shown once, not by every rank
    assert results["conflict"]["status"] == 2
    assert "trainer.devices=8 in a job of 2 x 4 processes" in results["conflict"]["err"]


def _at_a_terminal(folder, third_party, *words):
    """A command whose standard input is a terminal at which nobody is: who reads it finds its end."""
    program = (
        "import sys; from nemo_driver import _Blocker; sys.meta_path.insert(0, _Blocker());"
        "sys.argv[0] = 'nemo'; from nemo_run.__main__ import app; app()"
    )
    master, slave = pty.openpty()
    os.write(master, b"\x04")
    try:
        return subprocess.run(
            [sys.executable, "-c", program, "llm", *words],
            env={**os.environ, **_environment(third_party)},
            cwd=folder, stdin=slave, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
    finally:
        os.close(master)
        os.close(slave)


def test_a_run_right_here_asks_nothing_and_one_to_be_submitted_does(tmp_path, third_party):
    here = _at_a_terminal(tmp_path, third_party, *RECIPE, "trainer.max_steps=20")
    assert here.returncode == 0, here
    assert _ran(2, 20, "", 1.0) in here.stdout
    assert "Continue?" not in here.stdout + here.stderr
    there = _at_a_terminal(tmp_path, third_party, *RECIPE, "--executor", "slurm", "slurm=venv")
    assert there.returncode == 1, there
    assert "Continue?" in there.stdout + there.stderr


def test_a_failing_run_shows_its_traceback(with_nemo):
    assert with_nemo["failure"]["status"] == 1
    assert "RuntimeError: broken on purpose" in with_nemo["failure"]["err"]
    assert "fake_recipe.py" in with_nemo["failure"]["err"]


def test_help_teaches(with_nemo):
    out = with_nemo["help"]["out"]
    assert with_nemo["help"]["status"] == 0
    assert "nemo llm distill --recipe NAME trainer.max_steps=20" in out
    assert re.search(r"fake_recipe +A recipe that trains nothing\.", out)
    for setting in (
        "student=",
        "teacher.path=",
        "teacher.loss=prefix_kl",
        "data.text.paths=",
        "objective.scale=dynamic",
    ):
        assert f"\n{setting}" in out
    assert "student_model_path" not in out  # what NeMo's own function takes, and no run of ours
    assert with_nemo["list"]["status"] == 0
    assert re.search(r"fake_recipe +A recipe that trains nothing\.", with_nemo["list"]["out"])


def test_nemo_keeps_its_own_commands(with_nemo):
    out = with_nemo["group"]["out"]
    for command in ("pretrain", "finetune", "import", "export", "generate", "distill"):
        assert f" {command} " in out
    assert out.count(" distill ") == 1


def test_without_nemo_the_command_is_ours(without_nemo):
    results, loaded = without_nemo[0]
    assert "nemo" not in loaded
    assert results["run"]["status"] == 0, results["run"]
    assert _ran(2, 20, "", 1.0) in results["run"]["out"]
    assert re.search(r"fake_recipe +A recipe that trains nothing\.", results["list"]["out"])
    assert results["no"]["status"] == 2
    if find_stack()["Megatron-Bridge"].version is None:
        assert results["neither"]["status"] == 2
        for part in ("error: nothing to train with", "Megatron-Bridge is absent", "expected: NeMo 2", "pip install"):
            assert part in results["neither"]["err"], results["neither"]
        assert "Traceback" not in results["neither"]["err"]


def test_a_package_that_is_missing_is_one_message(without_nemo):
    """A module of ours that is missing is a fault of this package, and keeps its traceback."""
    results, _ = without_nemo[0]
    assert results["missing"]["status"] == 2, results["missing"]
    error = results["missing"]["err"]
    assert "this run needs the package absent_package, which is not installed here" in error
    assert error.count("error: ") == error.count("expected: ") == error.count("to fix: ") == 1
    assert "Traceback" not in results["missing"]["out"] + error
    assert results["of_our_own"]["status"] == 1
    assert "Traceback" in results["of_our_own"]["out"] + results["of_our_own"]["err"]


def test_the_home_folder_is_meant_by_a_tilde(without_nemo):
    """Where the run is; a file and a job that are written here may be of another's."""
    results, _ = without_nemo[0]
    assert _ran(2, 500, f"{results['folder'] / 'home'}/runs/mine", 1.0) in results["home"]["out"], results["home"]
    assert "log: ~/runs/mine" in results["yaml of home"]
    assert "'log=~/runs/mine'" in results["home on slurm"]["out"], results["home on slurm"]


def test_nemo_xtoken_is_the_console_script(third_party):
    program = (
        "import sys\n"
        "sys.argv = ['nemo', 'xtoken', *sys.argv[1:]]\n"
        "try:\n    import nemo_run.__main__\n"
        "except SystemExit as end:\n    print('STATUS', end.code)\n"
        "from importlib_metadata import entry_points\n"
        "first = next(iter(entry_points(group='nemo_run.cli'))).value\n"
        "print('LATE', 'nemo.collections.llm' in sys.modules and first.startswith('nemo_xtoken'))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, "align", "--help"],
        env={**os.environ, **_environment(third_party)},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert "usage: nemo xtoken align student=" in run.stdout
    assert "STATUS 0" in run.stdout
    assert "LATE False" in run.stdout


def test_a_nemo_that_cannot_be_loaded_is_one_message(tmp_path):
    """Also where it loads when nemo_run imports it once more, with the modules left from the first time."""
    llm = tmp_path / "nemo" / "collections" / "llm"
    llm.mkdir(parents=True)
    for folder in (llm.parent, llm.parent.parent):
        (folder / "__init__.py").write_text("")
    (llm / "__init__.py").write_text(
        "import sys\nif not hasattr(sys, 'tried'):\n    sys.tried = True\n    raise IndexError('out of range')\n"
    )
    run = subprocess.run(
        [Path(sys.executable).with_name("nemo"), "llm", "distill", "--recipe", "xtoken_tiny", "trainer.max_steps=3"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 2, run
    error = run.stderr[run.stderr.index("error:") :]
    assert error.startswith("error: NeMo 2 is installed and cannot be loaded (IndexError: out of range, at ")
    assert f"{llm / '__init__.py'}:4)" in error
    for part in ("\n  expected: ", "\n  to fix:   ", "import nemo_xtoken, nemo.collections.llm", "xtoken env"):
        assert part in error
    assert "overwrite" not in run.stdout + run.stderr
    assert "Traceback" not in run.stderr
