"""Callbacks that look at a run and keep what they see as plain data."""

import hashlib
import os
import re
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from torch import Tensor

from nemo_xtoken.plugin.nemo2.steps import DistillationSteps

__all__ = [
    "Buffers",
    "DieInSave",
    "Gradients",
    "Pause",
    "Poison",
    "Rates",
    "Totals",
    "Watcher",
    "Weights",
    "assert_same",
    "digest",
    "merge_stages",
]


class Watcher(pl.Callback):
    """Keeps ``result``, which goes back to the test."""

    def __init__(self) -> None:
        self.result: dict[str, Any] = {}


class Totals(Watcher):
    """``totals``: the sums of each step; ``used``: scale, weights and means of its distillation term."""

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        steps = next(c for c in trainer.callbacks if isinstance(c, DistillationSteps))
        self.result.setdefault("totals", []).append(dict(steps.totals))
        self.result.setdefault("used", []).append(dict(steps.used))


class Gradients(Watcher):
    """``gradients``: of the given steps, by the parameters' names in the whole model, put together over the
    tensor-parallel group and cut to the vocabulary, as numpy arrays; as Megatron leaves them for the optimizer."""

    def __init__(self, steps: tuple[int, ...]) -> None:
        super().__init__()
        self.steps = steps

    def on_megatron_step_end(self, step: Any, **_: Any) -> None:
        if step.forward_only or step.step_i not in self.steps:
            return
        model = step.pl_module
        found = {}
        for name, parameter in _named_parameters(model):
            found[name] = _whole(name, parameter, parameter.main_grad, model).numpy().copy()
        self.result.setdefault("gradients", {})[step.step_i] = found


class Weights(Watcher):
    """``weights``: sha256 of this rank's parameters at the end; ``teacher_start``, ``teacher_end``: the teachers'."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.result["teacher_start"] = [digest(teacher.model) for teacher in pl_module.teaching.teachers]

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.result["weights"] = digest(pl_module.module)
        self.result["teacher_end"] = [digest(teacher.model) for teacher in pl_module.teaching.teachers]


class Buffers(Watcher):
    """``parameters``, ``buffer``, ``optimizer``: the shapes in the model, in the gradient buffers, in the optimizer."""

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        ddp = pl_module.module
        sizes = lambda parameters: sorted(list(p.shape) for p in parameters)  # noqa: E731
        self.result["parameters"] = sizes(pl_module.parameters())
        self.result["buffer"] = sizes(p for b in ddp.buffers + ddp.expert_parallel_buffers for p in b.params)
        groups = [group for o in trainer.optimizers for group in o.mcore_optimizer.param_groups]
        self.result["optimizer"] = sizes(p for group in groups for p in group["params"])
        self.result["names"] = [name for name, _ in pl_module.named_modules()]
        self.result["frozen"] = not any(
            p.requires_grad for t in pl_module.teaching.teachers for p in t.model.parameters()
        )


class Rates(Watcher):
    """``rates``: of each step, the learning rate and weight decay of each parameter group by Megatron's multiple."""

    def on_megatron_step_end(self, step: Any, **_: Any) -> None:
        if not step.forward_only:
            groups = [group for o in step.trainer.optimizers for group in o.param_groups]
            found = {g["pre_lr_mult"]: (g["lr"], g["weight_decay"]) for g in groups if g["params"]}
            self.result.setdefault("rates", []).append(found)


class Pause(Watcher):
    """Writes a file when the given number of steps is done, and waits: for a signal from outside."""

    def __init__(self, step: int, file: Path, seconds: float) -> None:
        super().__init__()
        self.step, self.file, self.seconds = step, file, seconds

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            self.file.touch()
            time.sleep(self.seconds)


class DieInSave(Watcher):
    """Kills the process when the files of the ``-last`` checkpoint after ``step`` are half written."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        from megatron.core import dist_checkpointing

        save = dist_checkpointing.save

        def half(**kwargs: Any) -> Any:
            done = save(**kwargs)
            folder = kwargs["checkpoint_dir"]
            if trainer.global_step == self.step and "-last" in str(folder):
                for file in Path(folder).glob("*.distcp"):
                    os.truncate(file, file.stat().st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)
            return done

        dist_checkpointing.save = half


class Poison(Watcher):
    """From ``step`` on (counted from 1): NaN in the teacher's weights, or in its output for one sample.

    ``sample``: the number of the poisoned sample.
    """

    def __init__(self, step: int, weight: bool) -> None:
        super().__init__()
        self.step, self.weight = step, weight

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.global_step + 1 != self.step:
            return
        teacher = pl_module.teaching.teachers[0]
        if self.weight:
            with torch.no_grad():
                next(teacher.model.decoder.parameters())[0] = float("nan")
            return
        form, pop, batches = teacher.form, teacher.tap.pop, []

        def note(batch: Any, layout: Any) -> Any:
            batches.append(batch)
            return form.model_inputs(batch, layout)

        def poisoned() -> Any:
            hidden, weight = pop()
            if len(batches) == 2:  # the second micro-batch, its last sample
                hidden.view(*batches[-1].tokens.shape, -1)[-1, 3, 0] = float("nan")
                self.result["sample"] = int(batches[-1].samples[-1])
                print("poisoned sample", self.result["sample"])
            return hidden, weight

        teacher.form = SimpleNamespace(**vars(form) | {"model_inputs": note})
        teacher.tap.pop = poisoned


def digest(model: torch.nn.Module) -> str:
    """sha256 of the parameters on this rank."""
    from megatron.core.utils import unwrap_model

    found = hashlib.sha256()
    for name, parameter in unwrap_model(model).named_parameters():
        found.update(name.encode() + parameter.detach().contiguous().numpy().tobytes())
    return found.hexdigest()


def _named_parameters(model: Any) -> Any:
    """``(name in the whole model, parameter)``: a stage numbers its layers from 0, a rank its experts."""
    from megatron.core import parallel_state
    from megatron.core.utils import unwrap_model

    module = unwrap_model(model.module)
    offset = module.decoder.layers[0].layer_number - 1
    experts = (model.config.num_moe_experts or 0) // parallel_state.get_expert_model_parallel_world_size()
    first = experts * parallel_state.get_expert_model_parallel_rank()
    for name, parameter in module.named_parameters():
        if model.config.share_embeddings_and_output_weights:  # the last stage has a copy under another name
            name = name.replace("output_layer.", "embedding.word_embeddings.")
        name = re.sub(r"layers\.(\d+)\.", lambda m: f"layers.{int(m[1]) + offset}.", name)
        yield re.sub(r"experts\.(\d+)\.", lambda m: f"experts.{int(m[1]) + first}.", name), parameter


def _whole(name: str, parameter: Tensor, value: Tensor, model: Any) -> Tensor:
    from megatron.core import parallel_state

    group = parallel_state.get_tensor_model_parallel_group()
    ranks = dist.get_world_size(group)
    if getattr(parameter, "tensor_model_parallel", False):
        parts = [torch.empty_like(value) for _ in range(ranks)]
        dist.all_gather(parts, value.contiguous(), group=group)
        if "linear_fc1" in name:  # each rank holds a part of the gate and one of the other half
            parts = [half for i in (0, 1) for half in [p.chunk(2)[i] for p in parts]]
        value = torch.cat(parts, dim=parameter.partition_dim)
    if "word_embeddings" in name or "output_layer" in name:
        size = model.tokenizer.vocab_size
        assert value.shape[0] > size, "the test wants a padded vocabulary"
        assert not value[size:].any(), "a gradient for padding"
        value = value[:size]
    return value


def merge_stages(ranks: list[dict[str, Any]], step: int) -> dict[str, Any]:
    """The gradients of a step from all ranks; what several ranks have must be the same."""
    import numpy as np

    whole: dict[str, Any] = {}
    for rank in ranks:
        for name, value in rank["gradients"][step].items():
            if name in whole:
                np.testing.assert_allclose(value, whole[name], rtol=1e-4, atol=1e-7, err_msg=name)
            whole.setdefault(name, value)
    return whole


def assert_same(one: dict[str, Any], others: list[dict[str, Any]], steps: tuple[int, ...], relative: float) -> None:
    """Sums and gradients of one process are those of the ranks of another layout."""
    import numpy as np
    import pytest

    for other in others:
        for step, (expected, found) in enumerate(zip(one["totals"], other["totals"], strict=True)):
            assert found.keys() == expected.keys()
            for name, value in expected.items():
                if name.startswith(("tokens", "chunks/", "statistic_tokens/")):
                    assert found[name] == value, f"{name} of step {step}"
                elif not name.startswith("exchange_bytes/"):  # of the layout, not of the result
                    assert found[name] == pytest.approx(value, rel=relative), f"{name} of step {step}"
        for step, (expected, found) in enumerate(zip(one["used"], other["used"], strict=True)):
            assert found == pytest.approx(expected, rel=relative), f"step {step}"
    for step in steps:
        expected, found = one["gradients"][step], merge_stages(others, step)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert np.linalg.norm(value) > 0, name
            off = np.linalg.norm(found[name] - value) / np.linalg.norm(value)
            assert off < relative, f"gradient of {name} at step {step}: {off:.1e}"
