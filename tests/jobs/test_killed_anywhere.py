"""Work that is killed at any moment ends, started again, as if it had not been, and leaves nothing behind.

A few kills of each kind here; a campaign with ``NEMO_XTOKEN_KILLS=50 pytest -s tests/jobs/test_killed_anywhere.py``
(50 of each kind; other moments with ``NEMO_XTOKEN_KILL_SEED=2``).  With ``NEMO_XTOKEN_KILL_JSON=benchmarks/kills.json``
each kind's counts go to that file, from which ``python benchmarks/kills_page.py`` fills the documents.
"""

import contextlib
import hashlib
import json
import os

import pytest
from kill_campaign import Work, campaign, written

KILLS = int(os.environ.get("NEMO_XTOKEN_KILLS", "1"))
SEED = int(os.environ.get("NEMO_XTOKEN_KILL_SEED", "1"))
RESULTS = os.environ.get("NEMO_XTOKEN_KILL_JSON")
STEPS = 3


def command(folder, *words):
    """``xtoken WORDS`` in a folder, with a cache of its own."""
    from nemo_xtoken.commands.cli import main
    from nemo_xtoken.environment import without_launcher

    kept = without_launcher(os.environ)
    os.environ.clear()
    os.environ.update(kept, NEMO_XTOKEN_CACHE=str(folder / "cache"))
    os.chdir(folder)
    status = main([str(word) for word in words])
    if status:
        raise SystemExit(status)


def files(folder):
    """The digest of every file below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(ordered(path)).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def ordered(path):
    """A file's bytes; with the keys of the header in order, which safetensors' own writer gives none.

    A shard is of another writer, and has one.
    """
    content = path.read_bytes()
    if path.suffix != ".safetensors" or path.name.startswith("shard-"):
        return content
    end = 8 + int.from_bytes(content[:8], "little")
    return json.dumps(json.loads(content[8:end]), sort_keys=True).encode() + content[end:]


def trained(folder):
    """The history without seconds, and the model in the newest checkpoint."""
    import torch
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    from nemo_xtoken.weights.checkpoint_names import finished_checkpoints

    [run] = (folder / "runs").iterdir()
    history = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    reader = dcp.FileSystemReader(finished_checkpoints(run)[0] / "weights")
    entries = reader.read_metadata().state_dict_metadata.items()
    state = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in entries
        if isinstance(entry, TensorStorageMetadata) and not name.startswith("optimizer")  # which has padding
    }
    assert state
    dcp.load(state, storage_reader=reader, no_dist=True)
    digests = {name: hashlib.sha256(tensor.numpy().tobytes()).hexdigest() for name, tensor in state.items()}
    return [{k: v for k, v in record.items() if k != "seconds"} for record in history], digests


def training(world, name, ranks=1):
    """Training with everything that must survive; its cache is in the folder too."""

    def do(folder):
        import jobs

        os.environ["NEMO_XTOKEN_CACHE"] = str(folder / "cache")
        for part in ("text", "student_tokenizer", "teacher_tokenizer"):
            with contextlib.suppress(FileExistsError):
                (folder / part).symlink_to((world.root / part).resolve())
        job = world.distillation(name, steps=STEPS, save_every=1, validate=2, dropout=0.1, tp=ranks)
        jobs.train(job.but(root=str(folder)))

    return Work(name, do, trained, ranks)


def caching(world, _):
    words = ["cache", f"teacher={world.teacher}", f"student={world.root}/student_tokenizer", f"paths={world.root}/text"]
    words += ["out=states", "dtype=fp32", "teacher_length=96", "student_length=64"]

    def result(folder):
        """Each record's tokens and states, in whichever file they are."""
        from nemo_xtoken.teachers.store.state_store import StateStore

        store = StateStore(folder / "states", None)
        records = [
            store.shard(int(n)).record(int(row)) for n, row in zip(store.table.shards, store.table.rows, strict=True)
        ]
        parts = [record.ids.tobytes() + record.stored.values.numpy().tobytes() for record in records]
        found = [hashlib.sha256(part).hexdigest() for part in parts]
        assert len(found) > 10
        return dict(zip(store.table.keys.tolist(), found, strict=True))

    return Work("cache", lambda folder: command(folder, *words), result)


def preparation(world, _):
    words = [f"{side}={world.root}/{side}_tokenizer" for side in ("student", "teacher")]
    words = ["prepare", *words, f"paths={world.root}/text", "out=prepared", "workers=2"]
    return Work("prepare", lambda folder: command(folder, *words), lambda folder: files(folder / "prepared"))


def export(world, _):
    do = lambda folder: command(folder, "export", f"run={world.student}", "out=hf", "overwrite=true")  # noqa: E731
    return Work("export", do, lambda folder: files(folder / "hf"))


def evaluation(world, tmp_path):
    from launcher import launch

    launch(command, tmp_path, "export", f"run={world.student}", "out=hf", folder=tmp_path / "logs")

    def do(folder):
        with open(folder / "bits.json", "w") as out, contextlib.redirect_stdout(out):
            command(folder, "bits", f"model={tmp_path}/hf", f"text={world.root}/text", "json=true")

    return Work("evaluate", do, lambda folder: json.loads((folder / "bits.json").read_text()))


KINDS = {
    "prepare": preparation,
    "train": lambda world, _: training(world, "train"),
    "train at TP=2": lambda world, _: training(world, "train2", 2),
    "cache": caching,
    "export": export,
    "evaluate": evaluation,
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_command_ends_alike_and_leaves_nothing(kind, world, tmp_path):
    counts = campaign(KINDS[kind](world, tmp_path), KILLS, tmp_path / "campaign", SEED)
    print(f"\n{kind}: {counts}")
    if RESULTS:
        written(RESULTS, kind, counts, SEED)
    assert counts.faults == []
    assert counts.kills == KILLS
    assert counts.compared > 0
