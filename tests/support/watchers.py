"""Callbacks that look at a run and keep what they see as plain data."""

import hashlib
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import torch
from gradients import assert_same_gradients, main_gradients, named_parameters

from nemo_xtoken.plugin.nemo2.steps import DistillationSteps

__all__ = [
    "Buffers",
    "Changed",
    "DieInSave",
    "Gradients",
    "Masters",
    "Pause",
    "Poison",
    "Rates",
    "Totals",
    "Watcher",
    "Weights",
    "assert_same",
    "digest",
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
    """``gradients``: `main_gradients` of the given steps; ``added``: the names of those that autograd did not bring
    there."""

    def __init__(self, steps: tuple[int, ...]) -> None:
        super().__init__()
        self.steps = steps

    def on_megatron_step_end(self, step: Any, **_: Any) -> None:
        from megatron.core.utils import unwrap_model

        if step.forward_only or step.step_i not in self.steps:
            return
        module = unwrap_model(step.pl_module.module)
        found = main_gradients(module, step.pl_module.tokenizer.vocab_size)
        self.result.setdefault("gradients", {})[step.step_i] = found
        self.result["added"] = [
            name for name, p in named_parameters(module) if getattr(p, "grad_added_to_main_grad", False)
        ]


class Weights(Watcher):
    """``weights``: sha256 of this rank's parameters at the end; ``teacher_start``, ``teacher_end``: the teachers'."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.result["teacher_start"] = _teachers(pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.result["weights"] = digest(pl_module.module)
        self.result["teacher_end"] = _teachers(pl_module)


class Masters(Watcher):
    """Of a model in bfloat16 the optimizer's copies of its weights: ``kinds`` of copies, gradients and Adam's states;
    ``moved``, ``seen``: the shares of copies, and of weights, that a run changed; ``rounded``: whether the weights are
    the copies."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._before = [(p.detach().clone(), p.main_param.clone()) for p in _bare(pl_module).parameters()]

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        after = list(_bare(pl_module).parameters())
        pairs = list(zip(after, self._before, strict=True))
        total = sum(p.numel() for p in after)
        [inner] = [one.optimizer for one in trainer.optimizers[0].mcore_optimizer.chained_optimizers]
        states = [x for state in inner.state.values() for x in state.values()]
        tensors = [*(p.main_param for p in after), *(p.main_grad for p in after), *states]
        self.result["kinds"] = sorted({str(tensor.dtype) for tensor in tensors})
        self.result["moved"] = sum(int((p.main_param != old).sum()) for p, (_, old) in pairs) / total
        self.result["seen"] = sum(int((p != old).sum()) for p, (old, _) in pairs) / total
        self.result["rounded"] = all(torch.equal(p.reshape(-1), p.main_param.bfloat16()) for p in after)


def _teachers(pl_module: Any) -> list[str]:
    return [digest(teacher.model) for teacher in pl_module.teaching.teachers if hasattr(teacher, "model")]


class Changed(Watcher):
    """``changed``, ``trained``: the names of the student's parameters that changed, and that have a gradient, on this
    rank; ``of_teacher``: those of the teachers' parameters that are an adapter's."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._before = {name: p.detach().clone() for name, p in named_parameters(_bare(pl_module))}

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        after = dict(named_parameters(_bare(pl_module)))
        self.result["changed"] = sorted(n for n, p in after.items() if not torch.equal(p, self._before[n]))
        self.result["trained"] = sorted(name for name, p in after.items() if p.requires_grad)
        del self._before
        teachers = [teacher.model for teacher in pl_module.teaching.teachers if hasattr(teacher, "model")]
        self.result["of_teacher"] = [n for t in teachers for n, _ in t.named_parameters() if "adapter" in n]


def _bare(pl_module: Any) -> Any:
    from megatron.core.utils import unwrap_model

    return unwrap_model(pl_module.module)


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
    """Writes a file when the given number of steps is done, and waits until it is gone: for a signal from outside."""

    def __init__(self, step: int, file: Path) -> None:
        super().__init__()
        self.step, self.file = step, file

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            if trainer.is_global_zero:
                self.file.touch()
            trainer.strategy.barrier()
            while self.file.exists():
                time.sleep(0.01)


class DieInSave(Watcher):
    """Kills the process when the files of the checkpoint after ``step`` are half written."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        from megatron.core import dist_checkpointing

        save = dist_checkpointing.save

        def half(**kwargs: Any) -> Any:
            done = save(**kwargs)
            folder = kwargs["checkpoint_dir"]
            if trainer.global_step == self.step:
                for file in Path(folder).glob("*.distcp"):
                    os.truncate(file, file.stat().st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)
            return done

        dist_checkpointing.save = half


class DieInEvaluation(Watcher):
    """Kills the process when the evaluation after ``step`` begins."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


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
        content = parameter.detach().contiguous().reshape(-1).view(torch.uint8)  # numpy has no bf16
        found.update(name.encode() + content.numpy().tobytes())
    return found.hexdigest()


def assert_same(one: dict[str, Any], others: list[dict[str, Any]], steps: tuple[int, ...], relative: float) -> None:
    """Sums and gradients of one process are those of the ranks of another layout."""
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
    assert_same_gradients(one, others, steps, relative)
