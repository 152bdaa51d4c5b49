"""The steps of the first hour in an image, each by the commands that users type."""

import importlib.util
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

__all__ = ["DEMO", "DEMO_OFF", "OFF", "Room", "missing"]

ROOT = Path(__file__).parents[2]
#: Of the README's table: the student with its teacher, whose second decimal differs between processors.
DEMO, DEMO_OFF = 4.492, 0.1
#: How far the losses of two layouts may lie apart, by the trainer's precision.
OFF = {"32": 1e-4, "bf16-mixed": 1e-2}
#: Name -> settings of two ranks; ``own`` is the teacher's own layout.
LAYOUTS = {
    "data": (),
    "tensor": ("trainer.strategy.tensor_model_parallel_size=2", "trainer.strategy.sequence_parallel=true"),
    "context": ("trainer.strategy.context_parallel_size=2",),
    "own": ("teacher.tensor_model_parallel_size=2",),
}
#: Of all: packed documents, micro-batches that two ranks can share.
SAME = ("data.text.pack=true", "data.micro_batch_size=4")
#: Exit status of a run that SIGTERM ended after a step.
STOPPED = 75


def missing(device: str) -> str | None:
    """What the steps cannot do without and is not here, and what to do; None: nothing."""
    absent = [name for name in ("nemo", "megatron", "torch") if importlib.util.find_spec(name) is None]
    if absent:
        return (
            f"{', '.join(absent)} not installed: run it in an image of the Dockerfile, or with .venv of `make install`"
        )
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            return f"--device cuda: PyTorch {torch.__version__} finds no GPU; --device cpu tries the steps themselves"
        if importlib.util.find_spec("transformer_engine") is None:
            return "Transformer Engine is not installed: run it in an image of the Dockerfile"
    return None


class Room:
    """Where the steps work, and how they start commands.

    Args:
        folder: of their runs and logs.
        short: few steps of training.
    """

    def __init__(self, folder: Path, device: str, short: bool) -> None:
        self.folder, self.cuda, self.short = folder, device == "cuda", short
        shutil.rmtree(folder, ignore_errors=True)  # runs would go on
        folder.mkdir(parents=True)
        self.gpus = 2
        if self.cuda:
            import torch

            self.gpus = torch.cuda.device_count()

    def environment(self, **more: str) -> dict[str, str]:
        """TF32 off, which NVIDIA's images switch on; what `more` says."""
        path = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")])
        fixed = {"NVIDIA_TF32_OVERRIDE": "0", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "0", "PYTHONPATH": path}
        return os.environ | fixed | ({} if self.cuda else {"CUDA_VISIBLE_DEVICES": ""}) | more

    def start(self, name: str, command: Sequence[str], **more: str) -> subprocess.Popen:
        """A command whose output goes into a log."""
        with open(self.folder / f"{name}.log", "w") as log:
            return subprocess.Popen(
                command, cwd=self.folder, env=self.environment(**more), stdout=log, stderr=subprocess.STDOUT
            )

    def do(self, name: str, command: Sequence[str], **more: str) -> None:
        """The same, to its end.

        Raises:
            RuntimeError: it fails; with the end of its log.
        """
        self.done(name, self.start(name, command, **more))

    def done(self, name: str, process: subprocess.Popen) -> None:
        """Waits for what `start` has started; raises as `do`."""
        if status := process.wait():
            raise RuntimeError(f"{name}: status {status}: {(self.folder / f'{name}.log').read_text()[-1500:]}")

    def distil(self, name: str, *settings: str, ranks: int = 1) -> list[str]:
        """The command of a run of xtoken_tiny."""
        nemo = shutil.which("nemo", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}") or "nemo"
        command = [nemo, "llm", "distill", "--recipe", "xtoken_tiny", f"log.log_dir={self.folder}", f"log.name={name}"]
        command += [*(["teacher_steps=20"] if self.short else []), f"trainer.devices={ranks}", *settings]
        if ranks == 1:
            return command
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        return [*torchrun, "--no-python", *command]

    def history(self, name: str) -> list[dict]:
        """The records of a run, so far."""
        file = self.folder / name / "history.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []

    def steps(self, name: str) -> dict[int, dict]:
        """Of these the steps of training."""
        return {record["step"]: record for record in self.history(name) if "kd" in record}


def imported(room: Room) -> tuple[str, bool]:
    """A Qwen3 of transformers, toy width: imported without a GPU, a teacher with one."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from nemo_xtoken.recipes.tiny_text import teacher_tokenizer
    from nemo_xtoken.vocab import load_vocabulary

    model, tokenizer = room.folder / "qwen3", Path(teacher_tokenizer())
    config = Qwen3Config(
        vocab_size=load_vocabulary(tokenizer).size, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, max_position_embeddings=512,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(model)
    for file in [tokenizer] if tokenizer.is_file() else tokenizer.iterdir():
        shutil.copy(file, model)
    nemo = room.folder / "qwen3-nemo"
    command = [sys.executable, "-m", "nemo_xtoken", "import", f"model={model}", f"out={nemo}"]
    room.do("import", command, CUDA_VISIBLE_DEVICES="")
    teacher = f"teacher.path={nemo}", f"teacher.tokenizer={model}"
    room.do("imported", room.distil("imported", *teacher, "trainer.max_steps=3"))
    found = [record["kd"] for record in room.steps("imported").values()]
    return f"distillation {', '.join(f'{kd:.3f}' for kd in found)}", len(found) == 3 and all(map(math.isfinite, found))


def demo(room: Room) -> tuple[str, bool]:
    """The recipe as the README has it."""
    room.do("demo", room.distil("demo", *(["trainer.max_steps=10"] if room.short else [])))
    found = [record["held_out_ce"] for record in room.history("demo") if "held_out_ce" in record][-1]
    return f"{found:.3f}", abs(found - DEMO) <= DEMO_OFF or (room.short and found < 8.1)


def tests(room: Room) -> tuple[str, bool]:
    """By pytest, in the image's own Python."""
    folders = ["tests/unit/kernels", "tests/unit/losses", "tests/unit/parallel"]
    where = [str(ROOT / folder) for folder in (folders[-1:] if room.short else folders)]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--rootdir={ROOT}", *where]
    room.do("tests", command)
    return (room.folder / "tests.log").read_text().splitlines()[-1], True


def losses(room: Room) -> tuple[str, bool]:
    """The report of `make gpu`."""
    device = ["--device", "cuda" if room.cuda else "cpu", "--out", str(room.folder.parent)]
    room.do("losses", [sys.executable, "-m", "gpu_report", *device, *(["--parts", "values"] if room.short else [])])
    return "see report.md", True


def layouts(room: Room) -> tuple[str, bool]:
    """Cross-entropy and distillation of some steps, over two ranks and one, all from one checkpoint of one rank."""
    found, good = [], True
    for precision in ["32"] if room.short else OFF:
        same = *SAME, f"trainer.plugins.precision={precision}"
        start = f"start-{precision}"
        room.do(start, room.distil(start, *same, "trainer.max_steps=1"))
        wanted: dict[int, dict] = {}
        for layout, settings in {"one": (), **LAYOUTS}.items():
            name = f"{layout}-{precision}"
            shutil.copytree(room.folder / start, room.folder / name)
            ranks = 2 if wanted else 1
            room.do(name, room.distil(name, *same, "trainer.max_steps=4", *settings, ranks=ranks))
            if wanted:
                off = _apart(room.steps(name), wanted)
                found.append(f"{layout} {precision}: {off:.1e}")
                good = good and off <= OFF[precision]
            wanted = wanted or room.steps(name)
    return "; ".join(found), good


def _apart(found: dict[int, dict], wanted: dict[int, dict]) -> float:
    """The largest relative distance; infinite where steps are missing."""
    if not wanted or found.keys() != wanted.keys():
        return math.inf
    return max(abs(found[s][x] - wanted[s][x]) / abs(wanted[s][x]) for s in wanted for x in ("ce", "kd"))


def memory(room: Room) -> tuple[str, bool]:
    """Communicators that NCCL names, and the memory of the first GPU at its largest, against a run's on one rank."""
    if not room.cuda:
        return "left out without a GPU", True
    used = {}
    for ranks in (1, 2):
        stop, most = threading.Event(), [0]

        def watch(stop: threading.Event = stop, most: list[int] = most) -> None:
            query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id=0"]
            while not stop.wait(0.5):
                most[0] = max(most[0], int(subprocess.run(query, capture_output=True, text=True, check=True).stdout))

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            name = f"memory-{ranks}"
            settings = ("trainer.max_steps=2", *(LAYOUTS["own"] if ranks == 2 else ()))
            room.do(name, room.distil(name, *settings, ranks=ranks), NCCL_DEBUG="INFO")
        finally:
            stop.set()
            thread.join()
        used[ranks] = most[0]
    logs = "".join(path.read_text(errors="replace") for path in room.folder.glob("memory-2*"))
    logs += "".join(path.read_text(errors="replace") for path in (room.folder / "memory-2").rglob("*.log"))
    made = logs.count("Init COMPLETE") // 2
    return f"{made} communicators a rank; {used[1]} MiB of a GPU with one rank, {used[2]} with two", made > 0


def cache(room: Room) -> tuple[str, bool]:
    """Two jobs that start together on an empty cache."""
    shared = room.folder / "empty-cache"
    limited = ["bash", "-c", 'ulimit -n 1024; exec "$@"', "limited"]
    runs = ["cache-1", "cache-2"]
    started = [
        room.start(
            name,
            [*limited, *room.distil(name, "trainer.max_steps=2", "teacher_steps=20")],
            NEMO_XTOKEN_CACHE=str(shared),
        )
        for name in runs
    ]
    for name, process in zip(runs, started, strict=True):
        room.done(name, process)
    names = [path.name.split("-")[1] for path in shared.rglob("shard-*.safetensors")]
    left = [path.name for path in shared.rglob(".*tmp*") if path.is_file()]
    ended = all(2 in room.steps(name) for name in runs)
    return f"{len(names)} shards, {len(left)} files left over; both at their end: {ended}", ended and not left


def stop(room: Room) -> tuple[str, bool]:
    """SIGTERM after some steps; then the same run on two ranks."""
    last = 30
    settings = (f"trainer.max_steps={last}", "trainer.val_check_interval=30")
    first = room.start("stop-1", room.distil("stop", *settings))
    while first.poll() is None and max(room.steps("stop"), default=0) < 5:
        time.sleep(0.2)
    first.send_signal(signal.SIGTERM)
    status, at = first.wait(), max(room.steps("stop"), default=0)
    tensor = "trainer.strategy.tensor_model_parallel_size=2"
    room.do("stop-2", room.distil("stop", *settings, tensor, ranks=2))
    steps = [record["step"] for record in room.history("stop") if "kd" in record]
    good = status == STOPPED and steps == list(range(1, last + 1))
    return f"stopped after step {at} with status {status}; then to {steps[-1]}", good
