"""Checkpoints that are damaged, or bring code: none is used in silence, and no code runs without `trust`."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from launcher import launch, start

from nemo_xtoken.checksums import CHECKSUMS, find_damage
from nemo_xtoken.errors import InputError

pytestmark = pytest.mark.usefixtures("nemo")
EVIL = "evil_module_of_a_checkpoint"


class Touch:
    """A pickle that leaves a file when it is read."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


# --- code


def _objects(checkpoint, change):
    file = checkpoint / "context" / "io.json"
    content = json.loads(file.read_text())
    change(content["objects"])
    file.write_text(json.dumps(content))


def names(module, name):
    """Another class for the model's configuration."""

    def tamper(checkpoint, marker):
        def change(objects):
            [config] = [o for o in objects.values() if "<root>.model.config" in o.get("paths", [])]
            [target] = [item for item in objects[config["metadata"]["key"]]["items"] if "fn_or_cls" in item[0]]
            target[1] = {"type": "pyref", "module": module, "name": name}

        _objects(checkpoint, change)

    return tamper


def value(module, name):
    """A value of the model's configuration."""

    def tamper(checkpoint, marker):
        def change(objects):
            [config] = [o for o in objects.values() if "<root>.model.config" in o.get("paths", [])]
            config["items"][0][1] = {"type": "pyref", "module": module, "name": name}

        _objects(checkpoint, change)

    return tamper


def beside(checkpoint, marker):
    """An object that nothing refers to and that says it is in the configuration: NeMo imports its class."""
    kind = {"type": "pyref", "module": EVIL, "name": "Thing"}
    _objects(
        checkpoint,
        lambda objects: objects.update(x={"type": kind, "items": [], "paths": ["<root>.model.config.x"]}),
    )


def pickled(checkpoint, marker):
    """An object that NeMo reads from a pickle, because it has one item."""
    (checkpoint / "context" / "x").write_bytes(pickle.dumps(Touch(marker)))

    def change(objects):
        kind = {"type": "pyref", "module": "nemo_xtoken.plugin.nemo2.tokenizer", "name": "XTokenTokenizer"}
        objects["x"] = {"type": kind, "items": [["a", "x"]], "metadata": None, "paths": ["<root>.model.config.x"]}
        [config] = [o for o in objects.values() if "<root>.model.config" in o.get("paths", [])]
        config["items"][0][1] = {"type": "ref", "key": "x"}

    _objects(checkpoint, change)


def remote_code(checkpoint, marker):
    """A tokenizer that asks transformers to run code of its folder."""

    def change(objects):
        [tokenizer] = [o for o in objects.values() if "<root>.model.tokenizer" in o.get("paths", [])]
        tokenizer["items"].append(["Attr(name='trust_remote_code')", True])
        for o in objects.values():
            if "Attr" not in str(o["items"]) and "source" in str(o["items"]):
                o["items"].append(["Index(index=1)", "trust_remote_code"])

    _objects(checkpoint, change)


def metadata(checkpoint, marker):
    (checkpoint / "weights" / ".metadata").write_bytes(pickle.dumps(Touch(marker)))


def metadata_of_builtins(checkpoint, marker):
    program = f"cbuiltins\nexec\n(Vopen({str(marker)!r}, 'w')\ntR."
    (checkpoint / "weights" / ".metadata").write_bytes(program.encode())


def metadata_through_torch(checkpoint, marker):
    """By a function in a module that the classes of checkpoints are in."""
    program = f"ctorch.distributed.checkpoint.filesystem\nos.system\n(Vtouch {marker}\ntR."
    (checkpoint / "weights" / ".metadata").write_bytes(program.encode())


def an_object(checkpoint, marker):
    """One of the objects between the tensors, which torch reads without restriction."""
    from nemo_xtoken.plugin.safe_weights import read_metadata

    found = read_metadata(checkpoint / "weights")
    kinds = {type(kind).__name__ for kind in found.state_dict_metadata.values()}
    assert "BytesStorageMetadata" in kinds
    index = next(i for i in found.storage_data if "Bytes" in type(found.state_dict_metadata[i.fqn]).__name__)
    place = found.storage_data[index]
    data = pickle.dumps(Touch(marker))
    assert len(data) <= place.length
    with open(checkpoint / "weights" / place.relative_path, "r+b") as file:
        file.seek(place.offset)
        file.write(data.ljust(place.length, b"\0"))


def common(checkpoint, marker):
    import torch

    torch.save({"x": Touch(marker)}, checkpoint / "weights" / "common.pt")


def modelopt(checkpoint, marker):
    (checkpoint / "weights" / "modelopt_state").mkdir()


CODE = {
    "a function": names("subprocess", "getoutput"),
    "a function of C": names("os", "system"),
    "eval": names("builtins", "eval"),
    "a module of its own": names(EVIL, "Thing"),
    "a way out of a module": names("nemo_xtoken.files", "os.system"),
    "a function of NeMo's": names("nemo.lightning.io", "load_context"),
    "a function of this package": names("nemo_xtoken.plugin.nemo2.context", "load_from_context"),
    "a private class": names("nemo_xtoken.plugin.nemo2.hf.session", "_OneProcess"),
    "a class of nemo_run": names("nemo_run", "Script"),
    "a value": value("shutil", "rmtree"),
    "a value that is a module": value("nemo_xtoken.files", "os"),
    "beside": beside,
    "a pickle": pickled,
    "remote code": remote_code,
    "metadata": metadata,
    "metadata of builtins": metadata_of_builtins,
    "metadata through torch": metadata_through_torch,
    "an object": an_object,
    "common.pt": common,
    "modelopt": modelopt,
}


def _exports(checkpoints, out):
    """What `export` says of each."""
    from nemo_xtoken.plugin.nemo2.conversion import export_model

    said = []
    for path in checkpoints:
        try:
            export_model(path, out)
            said.append("nothing")
            shutil.rmtree(out)
        except InputError as error:
            said.append(str(error))
        except BaseException as error:
            said.append(f"{type(error)}: {error}")
    return said


@pytest.fixture(scope="module")
def tampered(world):
    """Copies of the student's checkpoint without checksums, each changed in one way; what `export` says of them."""
    root = world.root / "tampered"
    (root / "path").mkdir(parents=True)
    (root / "path" / f"{EVIL}.py").write_text(f"open({str(root / 'imported')!r}, 'w')\nclass Thing: pass\n")
    sys.path.insert(0, str(root / "path"))
    copies = {"as it is": root / "as it is"}
    for name in CODE:
        copies[name] = root / name
    for name, copy in copies.items():
        shutil.copytree(world.student, copy, ignore=shutil.ignore_patterns(CHECKSUMS))
        if name in CODE:
            CODE[name](copy, root / "ran")
    [said] = launch(_exports, list(copies.values()), root / "out", folder=world.root / "logs" / "tampered")
    sys.path.remove(str(root / "path"))
    return root, dict(zip(copies, said, strict=True))


@pytest.mark.parametrize("name", CODE)
def test_no_code_of_a_checkpoint_runs(tampered, name):
    root, said = tampered
    assert "trust=true" in said[name]
    assert not (root / "ran").exists()
    assert not (root / "imported").exists()


def test_a_checkpoint_without_checksums_is_read(tampered):
    assert tampered[1]["as it is"] == "nothing"


def _as_teachers(jobs_):
    from test_bad_input import attempts

    return attempts([(job, 1, lambda arguments: None) for job in jobs_])


def test_a_teacher_and_a_start_run_no_code(world, tampered):
    root, _ = tampered
    of = [("teacher", "a function"), ("teacher", "metadata"), ("start", "a function"), ("start", "an object")]
    made = [world.distillation(f"evil{i}", **{side: str(root / name)}) for i, (side, name) in enumerate(of)]
    [found] = launch(_as_teachers, made, folder=world.root / "logs" / "evil")
    for error in found:
        assert isinstance(error, InputError), error
        assert "trust=true" in str(error)
    assert not (root / "ran").exists()


def _trusting(checkpoint):
    from nemo_xtoken.plugin.nemo2.checkpoints.intact import check_checkpoint
    from nemo_xtoken.plugin.nemo2.context import load_from_context

    check_checkpoint(Path(checkpoint), trust=True)
    return load_from_context(Path(checkpoint), "model.config", "", trust=True)


def test_what_is_trusted_runs(world, tmp_path):
    copy = shutil.copytree(world.student, tmp_path / "copy", ignore=shutil.ignore_patterns(CHECKSUMS))
    names("platform", "node")(copy, None)

    def change(objects):
        [config] = [o for o in objects.values() if "<root>.model.config" in o.get("paths", [])]
        config["items"] = []
        objects[config["metadata"]["key"]]["items"][1][1] = {"type": "ref", "key": "none"}
        objects["none"] = {
            "type": {"type": "pyref", "module": "builtins", "name": "tuple"},
            "items": [],
            "metadata": None,
        }

    _objects(copy, change)
    [answer] = launch(_trusting, copy, folder=tmp_path / "logs")
    import platform

    assert answer == platform.node()


# --- damage


def test_every_checkpoint_has_checksums_of_all_its_files(world):
    for path in map(Path, (world.student, world.teacher)):
        listed = {name for part in (path / CHECKSUMS).glob("*.json") for name in json.loads(part.read_text())["files"]}
        there = {f.relative_to(path).as_posix() for f in path.rglob("*") if f.is_file()}
        assert listed == {name for name in there if not name.startswith(CHECKSUMS)}
        assert find_damage(path) is None


def zero(path, size=65536):
    data = path.read_bytes()
    middle = len(data) // 2
    path.write_bytes(data[:middle] + bytes(min(size, len(data) - middle)) + data[middle + size :])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


DAMAGE = {
    "zeroed": ("weights/__0_0.distcp", zero),
    "a bit": ("weights/__0_1.distcp", flip),
    "cut": ("weights/__0_0.distcp", cut),
    "gone": ("weights/__0_1.distcp", Path.unlink),
    "metadata": ("weights/.metadata", flip),
    "metadata cut": ("weights/.metadata", cut),
    "common": ("weights/common.pt", flip),
    "context": ("context/io.json", cut),
}


@pytest.fixture(scope="module")
def damaged(world):
    root = world.root / "damaged_copies"
    copies = []
    for name, (file, spoil) in DAMAGE.items():
        copies.append(shutil.copytree(world.student, root / name))
        spoil(copies[-1] / file)
    for name in ("cut", "gone", "metadata cut"):  # sizes say so without checksums
        copies.append(shutil.copytree(root / name, root / f"{name}, no checksums"))
        shutil.rmtree(copies[-1] / CHECKSUMS)
    [said] = launch(_exports, copies, root / "out", folder=world.root / "logs" / "damaged")
    return dict(zip([copy.name for copy in copies], said, strict=True))


@pytest.mark.parametrize("name", [*DAMAGE, "cut, no checksums", "gone, no checksums", "metadata cut, no checksums"])
def test_a_damaged_checkpoint_is_not_exported(damaged, name):
    assert "is damaged: " in damaged[name]
    assert DAMAGE[name.partition(",")[0]][0] in damaged[name]


def test_a_damaged_teacher_is_refused(world, tmp_path):
    copy = shutil.copytree(world.teacher, tmp_path / "teacher")
    zero(copy / "weights" / "__0_0.distcp")
    [[error]] = launch(_as_teachers, [world.distillation("of_a_damaged", teacher=str(copy))], folder=tmp_path / "logs")
    assert isinstance(error, InputError), error
    assert "is damaged: weights/__0_0.distcp is not as it was written" in str(error)


def test_a_run_goes_on_from_the_newest_step_that_is_intact(world, tmp_path):
    import jobs
    from watchers import Totals

    job = world.job("spoiled", steps=2, save_every=2)
    world.run(job)
    kept = shutil.copytree(job.last, tmp_path / job.last.name)
    world.run(job.but(steps=4))
    newest, older = job.last, job.folder / "checkpoints" / kept.name
    assert (newest.name, older.name) == ("step_4", "step_2")
    if not older.exists():  # the run keeps one checkpoint
        kept.rename(older)
    os.utime(older / "weights")  # changed last, as after a copy
    os.utime(older)
    zero(newest / "weights" / "__0_0.distcp")
    again = job.but(steps=6, watchers=(Totals(),))
    [end] = start(jobs.train, again, folder=tmp_path / "logs")
    assert isinstance(end.error, InputError), end.log[-3000:]
    for word in (f"{newest} is damaged", f"intact is {older}", "mkdir -p"):
        assert word in str(end.error)
    command = str(end.error).partition("once the damaged one is away: ")[2]
    subprocess.run(["/bin/sh", "-c", command], check=True)
    [result] = launch(jobs.train, again, folder=tmp_path / "logs2")
    assert len(result["totals"]) == 4  # from step 2
    assert (job.folder / "damaged" / newest.name).is_dir()


# --- two processes


def test_two_processes_in_one_folder(world, tmp_path):
    import jobs

    from nemo_xtoken.occupied import FILE, Occupied

    job = world.job("twice", steps=1)
    with Occupied(job.folder):
        [end] = start(jobs.train, job, folder=tmp_path / "logs")
        assert isinstance(end.error, InputError), end.log[-3000:]
        assert f"is held by process {os.getpid()} on " in str(end.error)
        assert [path.name for path in job.folder.iterdir()] == [FILE]
