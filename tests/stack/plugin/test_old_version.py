"""What version 0.1.0 wrote, on today's stack: its YAML, and a checkpoint as a teacher, a start, a run to go on with."""

import json
import shutil

import pytest
import yaml
from launcher import launch, start
from old_version import CHECKPOINT, FOLDER

pytestmark = pytest.mark.usefixtures("nemo")

SHAPE = {"num_layers": 1, "hidden_size": 2, "ffn_hidden_size": 4, "num_attention_heads": 1, "num_query_groups": 1}
SHAPE |= {"kv_channels": 2, "make_vocab_size_divisible_by": 4}


def _read(path):
    """Builds the whole run of a YAML file, the tokenizers and texts of its toy included."""
    import fiddle as fdl

    from nemo_xtoken.commands.run_config import config_from_dict
    from nemo_xtoken.objective.scale import ObjectiveConfig

    run = fdl.build(config_from_dict(yaml.safe_load(path.read_text()), str(path)))
    assert isinstance(run.keywords["objective"], ObjectiveConfig)
    teachers = [run.keywords.get("teacher"), *(run.keywords.get("teachers") or {}).values()]
    return run.func.__qualname__, run.keywords["trainer"].max_steps, [t.loss for t in teachers if t is not None]


@pytest.mark.parametrize(
    ("name", "result"),
    [
        ("xtoken_tiny", ("distill_tiny", 120, ["p_kl"])),
        ("xtoken_qwen3_llama1b", ("distill", 30000, ["p_kl"])),
        ("xtoken_phi4mini_llama3b_llama1b", ("distill", 30000, ["same_tokenizer", "h_kl"])),
    ],
)
def test_yaml_builds_the_run(name, result, tmp_path):
    [found] = launch(_read, FOLDER / f"{name}.yaml", folder=tmp_path, env={"NEMO_XTOKEN_CACHE": str(tmp_path)})
    assert found == result


def _context():
    from nemo_xtoken.plugin.nemo2.context import load_from_context, load_tokenizer

    config = load_from_context(CHECKPOINT, "model.config", "")
    return config.num_layers, config.hidden_size, load_tokenizer(CHECKPOINT, "", "").vocabulary.digest


def test_context_is_read(tmp_path):
    from nemo_xtoken.vocab.loading import load_vocabulary

    [found] = launch(_context, folder=tmp_path)
    assert found == (1, 2, load_vocabulary(CHECKPOINT / "context" / "student_tokenizer").digest)


@pytest.fixture
def job(tmp_path):
    """A job like that of the old run, in a folder of its own."""
    import jobs

    shutil.copytree(FOLDER / "text", tmp_path / "text")
    shutil.copytree(CHECKPOINT / "context" / "student_tokenizer", tmp_path / "student_tokenizer")
    return jobs.Job(
        str(tmp_path), "run", micro=1, batch=2, tied=True, schedule=True, teacher=str(CHECKPOINT), model=SHAPE,
        text={"held_out": 2}, teacher_config={"learned": True},
    )  # fmt: skip


def test_run_goes_on(job):
    """With its optimizer, its learned W, its place in the data, and the scale that follows from its last step.

    Its W was made by the default of that time, which has to be named today; no other W goes on in its place.
    """
    import jobs
    from watchers import Totals

    from nemo_xtoken.errors import InputError
    from nemo_xtoken.projection.build import ProjectionRule

    shutil.copytree(FOLDER / "run", job.folder)
    [end] = start(jobs.train, job.but(steps=3), folder=job.folder.parent / "logs")
    assert isinstance(end.error, InputError)
    assert "teacher.rule.overflow=empty" in str(end.error)
    job = job.but(teacher_config={"learned": True, "rule": ProjectionRule.named("whole")})
    before = [json.loads(line) for line in (job.folder / "history.jsonl").read_text().splitlines()]
    [seen] = launch(jobs.train, job.but(steps=3, watchers=(Totals(),)), folder=job.folder.parent / "logs")
    after = [json.loads(line) for line in (job.folder / "history.jsonl").read_text().splitlines()]
    assert after[:2] == before
    assert [record["step"] for record in after] == [1, 2, 3]
    assert len(seen["totals"]) == 1
    assert after[2]["scale"] == pytest.approx(before[1]["ce"] / before[1]["kd"], rel=1e-6)


def test_student_starts_from_it(job):
    """Its first cross-entropy is that of the old weights: the teacher, which has them as well, has nothing to add."""
    import jobs

    launch(jobs.train, job.but(steps=1, start=str(CHECKPOINT)), folder=job.folder.parent / "logs")
    [record] = [json.loads(line) for line in (job.folder / "history.jsonl").read_text().splitlines()]
    assert record["kd"] == pytest.approx(0, abs=1e-6)


def _export(folder):
    from nemo_xtoken.plugin.nemo2.conversion import export_model

    return export_model(CHECKPOINT, folder / "hf")


def test_it_is_exported(tmp_path):
    launch(_export, tmp_path, folder=tmp_path / "logs")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert (config["model_type"], config["hidden_size"], config["tie_word_embeddings"]) == ("llama", 2, True)
    assert (tmp_path / "hf" / "tokenizer.json").is_file()
