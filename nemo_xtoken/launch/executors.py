"""``nemo llm distill --executor slurm``: the job goes through nemo_run's ``SlurmExecutor``.

nemo_run keeps the experiment (``nemo experiment list``); the command on the ranks, and what happens at the end of a
job, are those of the plain script that ``sbatch`` takes.
"""

import contextlib
import shutil
from dataclasses import dataclass
from pathlib import Path

import nemo_run as run
from nemo_run.core.execution.slurm import SlurmJobDetails

from nemo_xtoken.errors import InputError
from nemo_xtoken.launch.job import Job, quote
from nemo_xtoken.launch.sbatch import (
    KILL,
    array_of,
    beside_teacher,
    container_names,
    options,
    preamble,
    srun_options,
    teacher_lines,
)
from nemo_xtoken.launch.slurm_config import SlurmConfig
from nemo_xtoken.launch.teacher_steps import TeacherSteps

__all__ = ["Logs", "slurm_executor", "submit"]

# Options that nemo_run's executor has fields for, or sets by itself.
OWN = {
    "job-name", "account", "partition", "qos", "constraint", "comment", "nodes", "ntasks-per-node", "gpus-per-node",
    "gres", "cpus-per-task", "mem", "exclusive", "time", "signal", "array", "output", "open-mode", "requeue",
}  # fmt: skip


@dataclass(kw_only=True)
class Logs(SlurmJobDetails):
    """Where nemo_run puts the logs: the run's in ``NAME-JOB.log``, those of the script around it beside them.

    Attributes:
        array: whether the job is one.
    """

    array: bool = False

    @property
    def srun_stdout(self) -> Path:
        """As ``srun`` names it."""
        return Path(str(self.folder)) / f"{self.job_name}-{'%A_%a' if self.array else '%j'}.log"

    @property
    def stdout(self) -> Path:
        """As ``sbatch`` names it."""
        return self.srun_stdout.with_suffix(".script.log")

    @property
    def ls_term(self) -> str:
        """The pattern by which ``nemo experiment logs`` finds them."""
        return str(Path(str(self.folder)) / f"{self.job_name}-*.log")


def slurm_executor(config: SlurmConfig, job: Job, teacher: TeacherSteps | None = None) -> run.SlurmExecutor:
    """nemo_run's executor for a job.

    Args:
        teacher: in the same job, on nodes of its own.

    Raises:
        InputError: a value that nemo_run cannot quote, or a teacher's nodes of another kind.
    """
    if teacher is not None and teacher.separate:
        raise InputError(
            "nodes of another kind for the teacher (executor.teacher.*) with --executor slurm",
            "a job of one kind of nodes, which nemo_run can submit with steps of its own",
            "`xtoken sbatch` writes the heterogeneous job, with the same settings",
        )
    for name in ("log_folder", "folder"):
        if " " in str(getattr(config, name)):
            raise InputError(
                f"a folder {getattr(config, name)}",
                "one without spaces, which nemo_run cannot quote",
                "xtoken sbatch can",
            )
    others = {name: value or True for name, value in options(config, job).items() if name not in OWN}
    gpus = config.gpus_per_node or None
    return run.SlurmExecutor(
        account=config.account,
        partition=config.partition,
        qos=config.qos,
        constraint=config.constraint,
        comment=config.comment,
        time=config.time,
        nodes=config.nodes + (teacher.config.nodes if teacher is not None else 0),
        ntasks_per_node=config.tasks,
        gpus_per_node=gpus if config.gpu_request == "gpus-per-node" else None,
        gres=f"gpu:{gpus}" if gpus and config.gpu_request == "gres" else None,
        cpus_per_task=config.cpus_per_task,
        mem=config.mem,
        exclusive=True if config.exclusive else None,
        signal=f"TERM@{config.stop_seconds}" if config.stop_seconds else None,
        array=array_of(config, job),
        job_name_prefix="xtoken-",  # not used: the details below name the job; but without it an account is needed
        job_details=Logs(job_name=job.name, folder=str(config.log_folder), array=array_of(config, job) is not None),
        container_image=config.container_image,
        container_mounts=list(config.mounts),
        container_env=container_names(config) or None,
        srun_args=[
            *(option for option in srun_options(config) if option != KILL),  # which nemo_run sets
            "--open-mode=append",
            *(beside_teacher(config) if teacher is not None else []),
            *(["--no-container-mount-home"] if config.container_image and not config.container_mount_home else []),
        ],
        additional_parameters=others,
        setup_lines="\n".join([*preamble(config), *(teacher_lines(config, job, teacher) if teacher else [])]),
        dependency_type="afternotok",
        packager=run.Packager(),  # the code is what is installed, here or in the image
        tunnel=run.LocalTunnel(job_dir=""),
        poll_estimated_start_time=False,
    )


def submit(
    config: SlurmConfig, job: Job, dryrun: bool, tail_logs: bool = False, teacher: TeacherSteps | None = None
) -> None:
    """Submits the job, or the chain of jobs; or prints what would be submitted.

    Args:
        teacher: in the same job, on nodes of its own.
        dryrun: print the scripts and the commands, submit nothing and leave nothing behind.
        tail_logs: stay and show the logs; otherwise it returns once the jobs are in the queue.
    """
    executor = slurm_executor(config, job, teacher)
    script = run.Script(
        inline="\n".join([f"cd {quote([str(config.folder)])}", *job.choice(), f"exec {job.line()}"]) + "\n"
    )
    names = [job.name if i == 0 else f"{job.name}-{i + 1}" for i in range(config.chain)]
    with run.Experiment(job.name, executor=executor, skip_status_at_exit=True, clean_mode=dryrun) as experiment:
        for i, name in enumerate(names):
            experiment.add(script, name=name, dependencies=names[i - 1 : i] if i else None, tail_logs=tail_logs)
        if not dryrun:
            config.log_folder.mkdir(parents=True, exist_ok=True)
            experiment.run(detach=not tail_logs)
            return
        experiment.dryrun(log=False, delete_exp_dir=False)
    folder = Path(experiment.jobs[0].executor.experiment_dir)
    try:
        for i, name in enumerate(names):
            print(f"# sbatch --requeue --parsable{' --dependency=afternotok:JOB' * bool(i)} {folder}/{name}_sbatch.sh")
            print((folder / f"{name}_sbatch.sh").read_text())
            for path in sorted((folder / name / "scripts").glob("*.sh")):
                print(f"# {path}, which srun starts on every rank:\n{path.read_text()}")
    finally:
        shutil.rmtree(folder)
        with contextlib.suppress(OSError):  # other experiments of that name
            folder.parent.rmdir()
