"""What is checked before Megatron-Bridge is asked, and the order of the batches that it gets; needs no Bridge."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from nemo_xtoken.data.batch import Batch, Side, TeacherSide
from nemo_xtoken.data.config import DataConfig
from nemo_xtoken.errors import InputError
from nemo_xtoken.plugin.bridge.batches import HeldOutBatches, MicroBatches, StepBatches
from nemo_xtoken.plugin.bridge.bridge_config import Data, Log, Restore, Resume, Student, TeacherConfig, Trainer
from nemo_xtoken.plugin.bridge.checkpoints import Checkpoint, _check_rotary
from nemo_xtoken.plugin.bridge.distill_bridge import configure
from nemo_xtoken.run.layout import check_virtual
from nemo_xtoken.teachers.output import HiddenStateTap
from nemo_xtoken.training.micro_batch import MicroBatch

ROOT = Path(__file__).parents[3]
TEXT = Data(DataConfig(paths=["text.txt"]))


def test_ranks_share_global_batches_and_go_on_behind_what_was_consumed():
    of_rank = [list(MicroBatches(26, 8, 2, rank, 2)) for rank in (0, 1)]
    assert of_rank == [[[8, 9], [12, 13], [16, 17], [20, 21]], [[10, 11], [14, 15], [18, 19], [22, 23]]]
    assert len(MicroBatches(26, 8, 2, 0, 2)) == 4


@pytest.fixture
def on_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: torch.device("cpu"))


class _Samples:
    def __len__(self):
        return 8

    def __getitem__(self, index):
        row, number = torch.tensor([[index]]), torch.tensor([index])
        side = Side(row, row, row, number, row, torch.zeros(1, 4, dtype=torch.int64), torch.zeros(1, 16))
        chunks = torch.zeros(index % 2, 5, dtype=torch.int64)
        return Batch(side, (TeacherSide(**vars(side), chunks=chunks, beginnings=chunks[:0]),))


@pytest.mark.usefixtures("on_cpu")
def test_a_step_gets_its_batches_at_once():
    batches = StepBatches(_Samples(), 2)
    batches.start(consumed=4, rank=0, ranks=1)
    fetched = batches.fetch(2)
    assert [batch.student.tokens.flatten().tolist() for batch in fetched] == [[4, 5], [6, 7]]
    assert fetched[0].teachers[0].chunks.tolist() == [[1, 0, 0, 0, 0]]
    batches.hand_out(map(MicroBatch, fetched))
    assert next(batches).batch is fetched[0]


@pytest.mark.usefixtures("on_cpu")
def test_held_out_batches_begin_again():
    batches = HeldOutBatches(_Samples(), 2, 4)
    batches.start(0, 1)
    assert (len(batches), batches.of_one) == (4, 2)
    seen = [[batch.student.tokens.flatten().tolist() for batch in batches.fetch()] for _ in range(3)]
    assert seen == [[[0, 1], [2, 3]], [[4, 5], [6, 7]], [[0, 1], [2, 3]]]
    batches.hand_out(map(MicroBatch, batches.fetch()))
    assert next(batches).batch.student.tokens.flatten().tolist() == [4, 5]


def test_checkpoints_are_told_apart(tmp_path):
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text("{}")
    for number in (9, 10):
        folder = tmp_path / "run" / f"iter_{number:07}"
        folder.mkdir(parents=True)
        (folder / "run_config.yaml").write_text("model: {}\n")
    assert Checkpoint.at(str(tmp_path / "hf"), "x") == Checkpoint(str(tmp_path / "hf"), False)
    newest = Checkpoint.at(str(tmp_path / "run"), "x")
    assert newest == Checkpoint(str(folder), True)
    assert newest.root("x") == str(tmp_path / "run")
    assert Checkpoint.at("Qwen/Qwen3-4B", "x") == Checkpoint("Qwen/Qwen3-4B", False)
    older = Checkpoint.at(str(tmp_path / "run" / "iter_0000009"), "x")
    with pytest.raises(InputError, match="the newest checkpoint of a run"):
        older.root("x")


@pytest.mark.parametrize(
    ("folders", "message"),
    [(("weights", "context"), "is a NeMo 2 checkpoint"), (("other",), "no checkpoint at teacher.path=")],
    ids=["NeMo 2", "nothing"],
)
def test_what_bridge_does_not_load_is_refused(tmp_path, folders, message):
    for name in folders:
        (tmp_path / "model" / name).mkdir(parents=True)
    with pytest.raises(InputError, match=message):
        Checkpoint.at(str(tmp_path / "model"), "teacher.path")


def test_a_run_that_does_not_resume_has_a_folder_of_its_own(tmp_path):
    """Bridge's clean-up keeps the highest iterations: with ``save_top_k=1`` those that are there, not the run's own."""
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text("{}")
    old = tmp_path / "runs" / "old" / "checkpoints" / "iter_0001000"
    old.mkdir(parents=True)
    (old / "run_config.yaml").write_text("model: {}\n")
    start = Resume(False, Restore(str(tmp_path / "hf")))
    taught = TeacherConfig(path=str(tmp_path / "hf"), loss="p_kl")
    log = Log(str(tmp_path / "runs"), "old")
    with pytest.raises(InputError, match=r"checkpoints in .*/runs/old and resume\.resume_if_exists=false") as found:
        configure(Student(), TEXT, Trainer(), taught, log=log, resume=start)
    assert "log.name=NAME" in found.value.fix


def test_all_that_is_missing_is_named_at_once():
    with pytest.raises(InputError) as found:
        configure(Student(), Data(), Trainer(), TeacherConfig())
    for part in ("resume.restore_config.path (the student)", "teacher.path (a teacher)", "data.text.paths (the text)"):
        assert part in found.value.found


@pytest.mark.parametrize(
    "rotary",
    [{"rope_theta": 1e5}, {"rope_parameters": {"rope_theta": 1e5, "rope_type": "default"}}],
    ids=["of transformers 4", "of transformers 5"],
)
def test_both_forms_of_a_rotary_embedding_are_read_by_the_installed_transformers(rotary):
    """By version 4 and by version 5, which the images with Megatron-Bridge have."""
    from nemo_xtoken.weights.configuration import configured, understood

    config = {"model_type": "llama", "hidden_size": 48, "num_attention_heads": 4, **rotary}
    read = configured(understood(config, "config.json"), "config.json")
    own = getattr(read, "rope_parameters", None) or {"rope_theta": getattr(read, "rope_theta", None)}
    assert own["rope_theta"] == 1e5


@pytest.mark.parametrize(
    ("config", "refused"),
    [
        ({"rope_theta": 1e5, "rope_scaling": None}, False),
        ({"rope_parameters": {"rope_theta": 1e5, "rope_type": "default"}}, True),
        (
            {"text_config": {"model_type": "llama", "rope_parameters": {"rope_theta": 1e5, "rope_type": "default"}}},
            True,
        ),
        ({}, False),
    ],
)
@pytest.mark.parametrize("version", ["4.57.6", "5.24.0"])
def test_a_rotary_embedding_that_transformers_4_would_not_see(config, refused, version, tmp_path, monkeypatch):
    import transformers

    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    monkeypatch.setattr(transformers, "__version__", version)
    if refused and version.startswith("4"):
        with pytest.raises(InputError, match=r"written by transformers 5, and transformers 4\.57\.6 is installed"):
            _check_rotary(str(tmp_path))
    else:
        _check_rotary(str(tmp_path))


@pytest.mark.usefixtures("megatron", "bridge")
def test_experts_that_bridge_would_load_as_those_of_the_first_rank_are_refused(monkeypatch):
    from megatron.bridge.models.conversion import model_bridge

    from nemo_xtoken.plugin.bridge.older_versions import check_experts

    own, grouped = (SimpleNamespace(num_moe_experts=4, moe_grouped_gemm=found) for found in (False, True))

    def as_before_0_5(models, config, param_name, vp_stage=None):
        return param_name

    monkeypatch.setattr(model_bridge, "_megatron_local_name_to_global", as_before_0_5)
    with pytest.raises(InputError, match="loads as those of the first rank on every rank"):
        check_experts(own, 2)
    for provider, ranks in ((grouped, 2), (own, 1), (SimpleNamespace(num_moe_experts=None), 2)):
        check_experts(provider, ranks)


def test_why_there_is_no_virtual_pipeline_is_said_in_the_document_too():
    with pytest.raises(InputError) as found:
        check_virtual(2)
    why = found.value.expected.removeprefix("1: ")
    assert "interleaved schedule" in why
    assert why in " ".join((ROOT / "docs" / "bridge.md").read_text().split())


def _with_interleaving(data_iterator):
    """Megatron's interleaved schedule over one chunk, as far as its checks."""
    from megatron.core.pipeline_parallel.schedules import forward_backward_pipelining_with_interleaving
    from megatron.core.transformer.transformer_config import TransformerConfig

    chunk = torch.nn.Linear(1, 1)
    chunk.config = TransformerConfig(num_layers=1, hidden_size=4, num_attention_heads=1)
    chunk.model_type = None
    one = SimpleNamespace(size=lambda: 1, rank=lambda: 0)
    forward_backward_pipelining_with_interleaving(
        forward_step_func=None, data_iterator=data_iterator, model=[chunk], num_microbatches=1, seq_length=1,
        micro_batch_size=1, p2p_communicator=SimpleNamespace(config=chunk.config),
        pg_collection=SimpleNamespace(tp=one, cp=one, pp=one, dp_cp=one, embd=None, pos_embd=None),
    )  # fmt: skip


def test_the_interleaved_schedule_takes_no_single_iterator(megatron):
    """Which is what the teacher's pass, the evaluation before the first step and the continuations hand over."""
    with pytest.raises(AssertionError, match="each model chunk to have a data iterator"):
        _with_interleaving(iter(()))


def test_a_chunk_without_the_output_layer_leaves_no_hidden_states():
    """Of which a rank of the last stage would have some, in a virtual pipeline."""
    output_layer, other_chunk = torch.nn.Linear(4, 8, bias=False), torch.nn.Linear(4, 4)
    tap = HiddenStateTap(output_layer, sequence_parallel=False)
    other_chunk(torch.zeros(2, 1, 4))
    with pytest.raises(RuntimeError, match="no forward pass has reached the output layer"):
        tap.pop()
