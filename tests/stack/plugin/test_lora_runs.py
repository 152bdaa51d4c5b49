"""A student with LoRA adapters: what is trained, in every layout; checkpoints, exports, and what is refused."""

import json
import shutil

import pytest
import torch
from launcher import launch, start
from test_resume import records
from toy_models import logits, nemo_logits

from nemo_xtoken.errors import InputError

pytestmark = pytest.mark.usefixtures("nemo")

LORA = {"rank": 4, "alpha": 16.0}
STEPS = 4
#: Of a layer, those that can have an adapter.
LAYERS = ("mlp.linear_fc1", "mlp.linear_fc2", "self_attention.linear_proj", "self_attention.linear_qkv")
VOCABULARY = ["embedding.word_embeddings.weight", "output_layer.weight"]
RELATIVE = 1e-5
RECOMPUTE = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}


def adapters(targets=LAYERS, layers=2):
    return sorted(
        f"decoder.layers.{n}.{target}.adapter.linear_{side}.weight"
        for n in range(layers)
        for target in targets
        for side in ("in", "out")
    )


@pytest.fixture(scope="module")
def straight(world):
    """A run of four steps that nothing interrupts: ``(job, result)``."""
    from watchers import Changed, Weights

    job = world.distillation(
        "lora", steps=STEPS, save_every=2, validate=2, lr=1e-2, lora=LORA, watchers=(Changed(), Weights())
    )
    return job, world.run(job)[0]


# --- what is trained


def test_the_adapters_alone_are_trained(straight):
    job, result = straight
    assert result["changed"] == result["trained"] == adapters()
    assert result["of_teacher"] == []
    assert result["teacher_start"] == result["teacher_end"]
    held_out = [r["held_out_ce"] for r in records(job) if "held_out_ce" in r]
    assert len(held_out) == 3
    assert held_out[0] > held_out[1] > held_out[2]


def test_before_the_first_step_it_is_the_student_that_it_starts_from(world, straight):
    plain = world.distillation("lora_without", steps=1, validate=2)
    world.run(plain)
    first, other = (next(r for r in records(job) if "held_out_ce" in r) for job in (straight[0], plain))
    assert first == other


def test_targets_the_vocabulary_and_a_learned_w(world):
    """W is no layer of the student: it is learned beside the adapters as beside the student."""
    from watchers import Changed

    lora = LORA | {"targets": "linear_qkv", "embeddings": True}
    job = world.distillation(
        "lora_targets", steps=2, lr=1e-2, lora=lora, teacher_config={"learned": True}, watchers=(Changed(),)
    )
    [result] = world.run(job)
    learned = "learned_projections.of_teacher.logits"
    assert result["changed"] == sorted([*adapters(["self_attention.linear_qkv"]), *VOCABULARY, learned])


@pytest.fixture(scope="module")
def course(world):
    """``course(ranks, **settings)``: every rank's results of a step that goes on from two of one process: what the
    adapters begin with is drawn by each rank for itself, as Megatron draws random weights.  One step, since Adam turns
    rounding into steps where a gradient is about 0."""
    import jobs
    from watchers import Gradients, Totals

    begun = world.distillation(
        "lora_begun", steps=2, save_every=2, micro=4, lr=3e-2, distributed=False, lora=LORA, text={"pack": False}
    )
    world.run(begun)

    def run(ranks=1, **layout):
        name = "_".join(["lora", str(ranks), *layout])
        job = begun.but(name=name, steps=3, watchers=(Totals(), Gradients((2,))), **layout)
        if not job.folder.exists():
            shutil.copytree(begun.folder, job.folder)
        return launch(jobs.train, job, ranks=ranks, folder=world.root / "logs" / name)

    return run


@pytest.fixture(scope="module")
def one(course):
    return course()[0]


@pytest.mark.parametrize(
    ("ranks", "layout"),
    [
        pytest.param(2, {"tp": 2, "micro": 2}, id="tp2"),
        pytest.param(2, {"tp": 2, "micro": 2, "sequence_parallel": True}, id="tp2_sequence_parallel"),
        pytest.param(2, {"pp": 2, "micro": 1}, id="pp2"),
        pytest.param(2, {"cp": 2, "micro": 2}, id="cp2"),
        pytest.param(1, {"model": RECOMPUTE}, id="recompute"),
    ],
)
def test_a_layout_changes_nothing(one, course, ranks, layout):
    from watchers import assert_same

    assert sorted(one["gradients"][2]) == adapters()
    assert_same(one, course(ranks, **layout), (2,), RELATIVE)


# --- checkpoints


def test_resumed_it_ends_the_same(world, straight):
    from watchers import Changed, Weights

    job, want = straight
    half = job.but(name="lora_halves", steps=2)
    world.run(half)
    [result] = world.run(half.but(steps=STEPS, watchers=(Changed(), Weights())))
    assert result["weights"] == want["weights"]
    assert result["changed"] == adapters()
    assert records(half)[-1] == records(job)[-1]


def test_a_checkpoint_of_one_rank_goes_on_on_two(world, straight):
    """With Adam's states."""
    job, _ = straight
    half = job.but(name="lora_on_two", steps=2, watchers=())
    world.run(half)
    world.run(half.but(steps=STEPS, tp=2), ranks=2)
    one, two = (records(run)[-1] for run in (job, half))
    assert two["held_out_ce"] == pytest.approx(one["held_out_ce"], rel=1e-4)


# --- exports


def _exports(job, folder):
    """The logits of the trained student, of its merged export, and of its adapters under PEFT; and the original's."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from nemo_xtoken.plugin.nemo2.conversion import export_model

    base = export_model(job.start, folder / "base")
    merged = export_model(job.folder, folder / "merged")
    alone = export_model(job.folder, folder / "adapter", adapter=str(base))
    size = json.loads((merged / "config.json").read_text())["vocab_size"]
    torch.set_num_threads(1)
    tokens = torch.randint(0, size, (2, 40), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        under_peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), alone)(tokens).logits
    return [
        *(x[..., :size] for x in (nemo_logits(job.last, tokens), logits(merged, tokens), under_peft)),
        logits(base, tokens),
        sorted(path.name for path in alone.iterdir()),
    ]


def test_exports_compute_what_was_trained(world, straight, tmp_path):
    """In float32.  A merged weight is rounded once, where its adapter's product was added to a row's, and transformers
    adds in another order than Megatron: some ten roundings on the way to a logit, each of 1e-7 of its size.  The bound
    is 1e-5 of the largest logit; what training has moved is a hundred times as much."""
    job, _ = straight
    [(trained, merged, peft, base, files)] = launch(_exports, job, tmp_path, folder=tmp_path / "logs")
    bound = 1e-5 * trained.abs().max()
    assert (trained - base).abs().max() > 100 * bound
    assert (merged - trained).abs().max() < bound
    assert (peft - trained).abs().max() < bound
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= set(files)
    assert "model.safetensors" not in files
    written = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (written["r"], written["lora_alpha"]) == (4, 16.0)
    assert written["target_modules"] == sorted(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )


# --- what is refused


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"lora": {}}, "this run with no LoRA, its checkpoint"),
        ({"lora": LORA | {"rank": 8}}, "this run with lora.rank=8, its checkpoint"),
        ({"name": "lora_random", "start": None}, "lora.rank=4 for a student that starts from no model"),
        ({"name": "lora_rank", "lora": LORA | {"rank": 3}, "tp": 2}, "lora.rank=3 with tensor_model_parallel_size=2"),
        ({"name": "lora_wide", "lora": LORA | {"rank": 64}}, "lora.rank=64 in a student whose hidden size is 48"),
        ({"name": "lora_start", "lora": {}, "start": "it"}, "has LoRA adapters beside its layers"),
        ({"name": "lora_teacher", "lora": {}, "teacher": "it"}, "teacher.path="),
    ],
)
def test_refused(world, straight, changes, found):
    import jobs

    job, _ = straight
    changes = {name: str(job.last) if value == "it" else value for name, value in changes.items()}
    if changes.get("teacher"):
        changes["loss"] = "same_tokenizer"
    job = job.but(steps=6, watchers=(), **changes)
    ranks = job.tp
    [end, *_] = start(jobs.train, job, ranks=ranks, folder=world.root / "logs" / "lora_refused")
    assert isinstance(end.error, InputError), end.log[-3000:]
    assert found in str(end.error)
