"""Documents packed into one sequence do not see each other, by mask or by sequence lengths."""

import itertools
from types import SimpleNamespace

import pytest
import torch

from nemo_xtoken.data.batch import Inputs
from nemo_xtoken.errors import InputError
from nemo_xtoken.training import inputs

pytestmark = pytest.mark.usefixtures("nemo")


def batch(seed, b=3, length=17):
    """Samples of documents of random lengths, the end padded, as the collate function makes them."""
    random = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 99, (b, length), generator=random)
    documents = torch.full((b, length), -1, dtype=torch.int32)
    positions = torch.zeros(b, length, dtype=torch.int64)
    for sample in range(b):
        at = number = 0
        while at < length - sample:  # the first sample is full
            size = min(int(torch.randint(1, 7, (), generator=random)), length - sample - at)
            documents[sample, at : at + size] = number
            positions[sample, at : at + size] = torch.arange(size)
            at, number = at + size, number + 1
    return Inputs(tokens, positions, documents, torch.arange(b))


def given(made):
    """What the model gets."""
    return inputs.model_inputs(made, inputs.context_layout(made))


@pytest.mark.parametrize("seed", range(5))
def test_document_mask(seed):
    documents = batch(seed).documents
    mask = inputs.document_mask(documents)
    assert mask.shape == (3, 1, 17, 17)
    for sample in range(3):
        for query in range(17):
            for key in range(17):
                seen = key <= query and documents[sample, query] == documents[sample, key]
                assert bool(mask[sample, 0, query, key]) != seen


@pytest.mark.parametrize("seed", range(3))
def test_rows_of_the_mask(seed):
    documents = batch(seed).documents
    rows = torch.tensor([3, 16, 0, 7])
    assert torch.equal(inputs.document_mask(documents, rows), inputs.document_mask(documents)[:, :, rows])


def test_every_position_sees_itself():
    """A row that sees nothing would be NaN in the softmax, on padding too."""
    mask = inputs.document_mask(torch.full((1, 4), -1, dtype=torch.int32))
    assert not mask.diagonal(dim1=2, dim2=3).any()


def test_model_inputs_with_a_mask():
    made = batch(0)
    found = given(made)
    assert found["input_ids"] is made.tokens
    assert found["position_ids"] is made.positions
    assert torch.equal(found["attention_mask"], inputs.document_mask(made.documents))
    assert inputs.schedule_shape(3, 17) == (3, 17)


@pytest.mark.parametrize("seed", range(5))
def test_model_inputs_with_sequence_lengths(monkeypatch, seed):
    monkeypatch.setattr(inputs, "uses_packed_attention", lambda: True)
    made = batch(seed)
    found = given(made)
    starts, before = [], None
    for i in range(3 * 17):
        here = i // 17, int(made.documents.view(-1)[i])
        if here != before:
            starts.append(i)
        before = here
    packed = found["packed_seq_params"]
    expected = [*starts, 3 * 17]
    assert packed.qkv_format == "thd"
    assert packed.cu_seqlens_q.tolist() == packed.cu_seqlens_kv.tolist() == expected
    assert packed.cu_seqlens_q.dtype == torch.int32
    longest = max(b - a for a, b in itertools.pairwise(expected))
    assert packed.max_seqlen_q == packed.max_seqlen_kv == longest
    assert found["attention_mask"] is None
    assert torch.equal(found["input_ids"], made.tokens.view(1, -1))
    assert torch.equal(found["position_ids"], made.positions.view(1, -1))
    assert inputs.schedule_shape(3, 17) == (1, 51)


def test_a_document_of_one_token_after_another(monkeypatch):
    """Neighbours that both start at position 0 are still two sequences."""
    monkeypatch.setattr(inputs, "uses_packed_attention", lambda: True)
    documents = torch.tensor([[0, 1, 2, -1]], dtype=torch.int32)
    made = Inputs(torch.tensor([[5, 6, 7, 0]]), torch.tensor([[0, 0, 0, 0]]), documents, torch.tensor([0]))
    assert given(made)["packed_seq_params"].cu_seqlens_q.tolist() == [0, 1, 2, 3, 4]


def test_lengths_that_differ_are_announced(monkeypatch):
    def config(**settings):
        return SimpleNamespace(**{"context_parallel_size": 2, "num_moe_experts": None, **settings})

    def prepared(made):
        inputs.prepare_config(made)
        return getattr(made, "variable_seq_lengths", False)

    assert not prepared(config())  # a mask: nothing is padded
    monkeypatch.setattr(inputs, "uses_packed_attention", lambda: True)
    dense = config(moe_token_dispatcher_type="allgather")  # Megatron's default, which it refuses in a dense model too
    assert prepared(dense)
    assert dense.moe_token_dispatcher_type == "alltoall"
    assert not prepared(config(context_parallel_size=1))
    assert prepared(config(num_moe_experts=4, moe_token_dispatcher_type="alltoall"))
    with pytest.raises(InputError, match="allgather with context_parallel_size=2"):
        prepared(config(num_moe_experts=4, moe_token_dispatcher_type="allgather"))


def test_a_teacher_in_fp8(monkeypatch, tmp_path):
    """Its layers alone, where Transformer Engine is; what a checkpoint says of FP8 is the run's that wrote it."""
    from types import SimpleNamespace

    from megatron.core.enums import Fp8Recipe
    from megatron.core.transformer import TransformerConfig

    from nemo_xtoken.training.hosting.teacher_host import teacher_host
    from nemo_xtoken.training.teacher_settings import NamedTeacher, TeacherSettings

    def configs():
        sizes = {"num_layers": 2, "hidden_size": 16, "num_attention_heads": 2}
        return [TransformerConfig(**sizes, bf16=True, params_dtype=torch.bfloat16) for _ in range(2)]

    (tmp_path / "weights").write_bytes(b"weights")
    tokenizer = SimpleNamespace(vocab_size=64, vocabulary=SimpleNamespace(digest="t" * 64))
    monkeypatch.setenv("NEMO_XTOKEN_CACHE", str(tmp_path))

    def hosted(fp8, **more):
        teacher, student = configs()
        teacher.fp8 = "hybrid"
        settings = TeacherSettings(fp8=fp8, **more)
        settings.weight_files = lambda where: [tmp_path / "weights"]
        named = NamedTeacher("teacher", settings, tokenizer, "p_kl")
        host = teacher_host(named, teacher, student, torch.bfloat16, list, list)
        return teacher, student, host.fingerprint()

    with pytest.raises(InputError, match=r"teacher\.fp8=True"):
        hosted(True)
    monkeypatch.setattr(inputs, "engine_version", lambda: (2, 9))
    teacher, student, computed = hosted(True)
    assert (teacher.fp8, Fp8Recipe(teacher.fp8_recipe)) == ("e4m3", Fp8Recipe.tensorwise)
    assert student.fp8 is None
    assert hosted(False)[0].fp8 is None
    monkeypatch.setattr(inputs, "engine_version", lambda: None)
    asked = [hosted(fp8, source="remote")[2] for fp8 in (True, False)]  # here nothing of it is computed
    assert asked[0] == computed
    assert asked[0].differences(asked[1]).startswith("architecture ")


@pytest.mark.parametrize("lengths", [False, True])
def test_the_fused_softmax_is_off_where_a_mask_keeps_documents_apart(monkeypatch, lengths):
    """Megatron's causal kernel, which it would take, ignores the mask."""
    monkeypatch.setattr(inputs, "uses_packed_attention", lambda: lengths)
    config = SimpleNamespace(context_parallel_size=1, num_moe_experts=None, masked_softmax_fusion=True)
    inputs.prepare_config(config)
    assert config.masked_softmax_fusion is lengths
