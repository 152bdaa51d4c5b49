"""A training loop of Megatron-core alone, which calls the forward step and the callbacks as Bridge does."""

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from cpu_bridge import without_streams
from dense import chunk_losses, dense_w, projected_kl
from tokenizer_zoo import zoo

from nemo_xtoken.data.config import DataConfig, Tokenization
from nemo_xtoken.data.mixture import WholeBatches
from nemo_xtoken.objective.scale import ObjectiveConfig
from nemo_xtoken.plugin.bridge.batches import HeldOutBatches, StepBatches
from nemo_xtoken.plugin.bridge.bridge_config import TeacherConfig
from nemo_xtoken.plugin.bridge.forward_step import Distillation
from nemo_xtoken.projection.build import ProjectionRule, load_or_build
from nemo_xtoken.run.layout import ParallelSizes
from nemo_xtoken.run.records import SAMPLES, read_history
from nemo_xtoken.teachers.contract import TeacherHost
from nemo_xtoken.training import inputs
from nemo_xtoken.training.inputs import context_layout, model_inputs
from nemo_xtoken.training.teacher_settings import NamedTeacher
from nemo_xtoken.training.training_progress import TrainingProgress
from nemo_xtoken.training.watching.sample_settings import SampleConfig

LENGTHS, GLOBAL, MICRO = (32, 40), 4, 2
SHAPES = {"student": (2, 32), "teacher": (4, 48)}  # layers, hidden size


class _Here(TeacherConfig):
    def model(self, where="teacher"):
        return ("here",)


def _nowhere():
    """This teacher has no checkpoint."""
    raise NotImplementedError


def _model(side: str, size: int, tp: int, pp: int) -> torch.nn.Module:
    """This rank's part of a GPT model whose weights depend on nothing but its side."""
    from megatron.core import parallel_state
    from megatron.core.models.gpt import GPTModel
    from megatron.core.transformer import TransformerConfig

    from nemo_xtoken.training.cpu.layers import layer_spec

    layers, hidden = SHAPES[side]
    config = TransformerConfig(
        num_layers=layers,
        hidden_size=hidden,
        num_attention_heads=4,
        normalization="RMSNorm",
        add_bias_linear=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        tensor_model_parallel_size=tp,
        pipeline_model_parallel_size=pp,
        sequence_parallel=tp > 1,
        pipeline_dtype=torch.float32,
        use_cpu_initialization=True,
        gradient_accumulation_fusion=False,
        calculate_per_token_loss=True,
        masked_softmax_fusion=False,
    )
    first, last = parallel_state.is_pipeline_first_stage(), parallel_state.is_pipeline_last_stage()
    rows = -(-size // 8) * 8
    model = GPTModel(
        config,
        layer_spec(config),
        rows,
        LENGTHS[1],
        pre_process=first,
        post_process=last,
        share_embeddings_and_output_weights=False,
        position_embedding_type="rope",
    )
    before = parallel_state.get_pipeline_model_parallel_rank() * (layers // pp)
    for name, parameter in model.named_parameters():
        _fill(f"{side}.{_whole_name(name, before)}", parameter, tp)
    return model


def _whole_name(name: str, before: int) -> str:
    parts = name.split(".")
    at = parts.index("layers") + 1 if "layers" in parts else None
    return name if at is None else ".".join([*parts[:at], str(int(parts[at]) + before), *parts[at + 1 :]])


def _fill(name: str, parameter: torch.nn.Parameter, tp: int) -> None:
    from megatron.core import parallel_state

    shape, axis = list(parameter.shape), getattr(parameter, "partition_dim", -1)
    sharded = getattr(parameter, "tensor_model_parallel", False) and tp > 1
    if sharded:
        shape[axis] *= tp
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
    whole = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.15
    whole = whole + 1 if "norm" in name else whole
    part = whole.chunk(tp, axis)[parallel_state.get_tensor_model_parallel_rank()] if sharded else whole
    with torch.no_grad():
        parameter.copy_(part)


def run(
    root: str, name: str, tp: int = 1, pp: int = 1, steps: int = 2, done: int = 0, dense: bool = False
) -> dict[str, Any]:
    """Steps of this rank, without an optimizer: their records, and the norm of the last step's gradients.

    Args:
        root: folder with ``text.txt``.
        done: steps before, of the run that this one goes on from.
        dense: of one rank, also the gradients, and those of `_dense`.
    """
    from megatron.core import parallel_state
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
    from megatron.core.num_microbatches_calculator import init_num_microbatches_calculator
    from megatron.core.pipeline_parallel import get_forward_backward_func
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    from nemo_xtoken.training.cpu import runtime as cpu_runtime

    torch.set_num_threads(1)
    cpu_runtime.enable()
    without_streams()
    dist.init_process_group("gloo")
    parallel_state.initialize_model_parallel(tp, pp)
    model_parallel_cuda_manual_seed(1)
    ranks = parallel_state.get_data_parallel_world_size()
    init_num_microbatches_calculator(dist.get_rank(), None, GLOBAL, MICRO, ranks)

    student, other = zoo()["llama"], zoo()["sp_bpe"]
    text = DataConfig([f"{root}/text.txt"], *LENGTHS, text_split="line", held_out=0.05, progress=False)
    samples, held_out = text.build(student, [Tokenization(other)], 4 * GLOBAL)
    model = _model("student", student.size, tp, pp)

    teacher = NamedTeacher(
        "teacher", _Here(loss="p_kl"), SimpleNamespace(vocabulary=other, vocab_size=other.size), "p_kl"
    )
    made = Distillation(
        student,
        [teacher],
        ObjectiveConfig(),
        StepBatches(samples, MICRO),
        HeldOutBatches(WholeBatches(held_out, GLOBAL), MICRO, GLOBAL),
        Path(root, name),
        lambda t, _: TeacherHost(
            t.label,
            t.config,
            other.size,
            None,
            ParallelSizes(tp, pp),
            ParallelSizes(tp, pp),
            inputs,
            lambda: _model("teacher", other.size, tp, pp).requires_grad_(False).eval(),
            torch.float32,
            _nowhere,
            _nowhere,
        ),
        TrainingProgress("training", done + steps, 1, dist.get_rank() == 0),
        samples=SampleConfig(count=2, prompt_tokens=8, new_tokens=4),
    )
    [module] = made.tap([model])
    config = module.config
    wrapped = DistributedDataParallel(config, DistributedDataParallelConfig(), module)
    config.finalize_model_grads_func = finalize_model_grads
    state = SimpleNamespace(step=done, consumed_train_samples=done * GLOBAL)
    settings = SimpleNamespace(train=SimpleNamespace(train_iters=done + steps))
    context = SimpleNamespace(model=[wrapped], state=SimpleNamespace(train_state=state, cfg=settings))
    shape = {"seq_length": LENGTHS[0], "micro_batch_size": MICRO, "num_microbatches": GLOBAL // MICRO // ranks}
    schedule = get_forward_backward_func()

    wrapped.train()
    made.on_train_start(context)
    shown: list[Any] = []
    for _ in range(steps):
        made.on_train_step_start(context)
        wrapped.zero_grad_buffer()
        shown = schedule(forward_step_func=made, data_iterator=made.train, model=[wrapped], forward_only=False, **shape)
        made.on_train_step_end(context)
        state.step, state.consumed_train_samples = state.step + 1, state.consumed_train_samples + GLOBAL
    wrapped.eval()
    made.on_eval_start(context)
    with torch.no_grad():
        for _ in range(len(made.held_out) // made.held_out.of_one):
            made.on_eval_step_start(context)
            schedule(forward_step_func=made, data_iterator=made.held_out, model=[wrapped], forward_only=True, **shape)
            made.on_eval_step_end(context)
    made.on_eval_end(context)
    result: dict[str, Any] = {"records": read_history(Path(root, name)), "shown": [_plain(one) for one in shown]}
    result["norm"] = _norm(module)
    result["said"] = Path(root, name, SAMPLES).read_text()
    if dense:
        result["gradients"] = {n: p.main_grad.clone().numpy() for n, p in module.named_parameters()}
        result["dense"] = _dense(samples, done + steps, result["records"], student, other)
    return result


def _plain(report: dict[str, torch.Tensor]) -> dict[str, list[float]]:
    return {name: value.tolist() for name, value in report.items()}


def _norm(module: torch.nn.Module) -> float:
    """Of the whole gradient, over all ranks."""
    from megatron.core import parallel_state

    total = torch.zeros((), dtype=torch.float64)
    for parameter in module.parameters():
        sharded = getattr(parameter, "tensor_model_parallel", False)
        if sharded or parallel_state.get_tensor_model_parallel_rank() == 0:
            total += parameter.main_grad.double().square().sum()
    dist.all_reduce(total)
    return float(total.sqrt()) / parallel_state.get_data_parallel_world_size() ** 0.5


def _dense(samples: Any, step: int, records: list[dict[str, Any]], student: Any, other: Any) -> dict[str, Any]:
    """The gradients of the same step by whole logits, dense float64 formulas and autograd, in one batch."""
    from nemo_xtoken.data.batch import collate

    batch = collate([samples[i] for i in range((step - 1) * GLOBAL, step * GLOBAL)])
    model, teacher = _model("student", student.size, 1, 1), _model("teacher", other.size, 1, 1).eval()
    [side] = batch.teachers
    z_s = model(**model_inputs(batch.student, context_layout(batch.student)))[..., : student.size].double()
    with torch.no_grad():
        z_t = teacher(**model_inputs(side, context_layout(side)))[..., : other.size].double()
    w = dense_w(load_or_build(student, other, ProjectionRule(), None), student.size, other.size)
    problem = {
        "student_labels": batch.student.labels,
        "teacher_labels": side.labels,
        "chunks": side.chunks,
    }
    ce, kd = chunk_losses(z_s, z_t, problem, lambda p_s, p_t: projected_kl(p_s, p_t, w), "chain_rule", 1.0)
    ce = ce / int((batch.student.labels != -100).sum())
    kd = kd / len(side.chunks)
    before = [r for r in records if r["step"] == step - 1 and "ce" in r]
    scale = before[0]["ce"] / before[0]["kd"] if before else 1.0
    (ce + scale * kd).backward()
    gradients = {name: p.grad.numpy() for name, p in model.named_parameters()}
    return {"ce": float(ce), "kd": float(kd), "gradients": gradients}
