"""A checkpoint of Bridge that is damaged, or brings code, is refused by all that read one; a run goes on by the fix."""

import json
import pickle
import shutil
import subprocess

import pytest
from launcher import launch, start

from nemo_xtoken.checksums import CHECKSUMS, find_damage
from nemo_xtoken.errors import InputError

pytestmark = pytest.mark.usefixtures("megatron", "bridge")


class Bomb:
    """Of which unpickling makes a file."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return open, (str(self.file), "w")


@pytest.fixture(scope="module")
def run(bridge_world):
    """The folder of a run of four steps with two checkpoints."""
    bridge_world.run("intact")
    return bridge_world.root / "runs" / "intact"


@pytest.fixture
def copied(run, bridge_world):
    """A copy of it, under another name: its newest checkpoint."""
    folder = bridge_world.root / "runs" / "copied"
    shutil.copytree(run, folder)
    yield folder / "checkpoints" / "iter_0000004"
    shutil.rmtree(folder)


def flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(bytes(data))


def refusals(root, checkpoint):
    """What each says that reads the checkpoint: as a start, as a teacher, for an export."""
    from bridge_jobs import Job, configured, on_cpu

    from nemo_xtoken.plugin.bridge.bridge_config import TeacherConfig
    from nemo_xtoken.plugin.bridge.bridge_conversion import export_model
    from nemo_xtoken.plugin.bridge.models import host_teacher
    from nemo_xtoken.training.teacher_settings import NamedTeacher

    on_cpu()
    teacher = NamedTeacher("teacher", TeacherConfig(path=checkpoint), None, "p_kl")
    said = []
    for read in (
        lambda: configured(*Job(root, "other", start=checkpoint.removeprefix(f"{root}/")).arguments()),
        lambda: host_teacher(teacher, None),
        lambda: export_model(checkpoint, f"{root}/exported/damaged"),
    ):
        try:
            read()
        except InputError as error:
            said.append(error.found)
    return said


def test_every_file_has_a_checksum(run):
    for checkpoint in sorted((run / "checkpoints").glob("iter_*")):
        parts = [json.loads(part.read_text())["files"] for part in (checkpoint / CHECKSUMS).glob("*.json")]
        named = sorted(name for part in parts for name in part)
        assert named == sorted(path.name for path in checkpoint.iterdir() if path.is_file())
        assert find_damage(checkpoint) is None


@pytest.mark.parametrize("file", ["__0_0.distcp", "run_config.yaml"])
def test_a_damaged_one_is_refused_and_the_fix_goes_on_from_the_one_before(bridge_world, copied, file):
    from bridge_jobs import Job, train

    root = str(bridge_world.root)
    flip(copied / file)
    [said] = launch(refusals, root, str(copied), folder=bridge_world.root / "logs" / "refusals")
    assert said == [f"{copied} is damaged: {file} is not as it was written"] * 3
    job = Job(root, "copied")
    [end] = start(train, job, folder=bridge_world.root / "logs" / "copied")
    assert isinstance(end.error, InputError), end.log[-3000:]
    assert end.error.found == said[0]
    subprocess.run(["bash", "-c", end.error.fix.partition("intact: ")[2]], check=True)
    records = bridge_world.run("copied")
    assert [record["step"] for record in records if "ce" in record] == [1, 2, 3, 4]
    assert find_damage(copied) is None


def test_no_code_of_a_checkpoint_runs(bridge_world, copied, tmp_path):
    shutil.rmtree(copied / CHECKSUMS)  # who brings code brings them as well
    bomb = tmp_path / "bomb"
    (copied / ".metadata").write_bytes(pickle.dumps(Bomb(bomb)))
    [said] = launch(refusals, str(bridge_world.root), str(copied), folder=bridge_world.root / "logs" / "code")
    assert len(said) == 3
    assert all("it names" in found for found in said)
    assert not bomb.exists()
