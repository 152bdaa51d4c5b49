"""What a loss does to a student that agrees with its teacher: its value and gradient there, and where descent leads."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from nemo_xtoken.certify.certify_config import CertifyConfig
from nemo_xtoken.certify.problem import Problem
from nemo_xtoken.certify.variants import Variant
from nemo_xtoken.losses.base import ModelOutput, TeacherSignal
from nemo_xtoken.losses.pair import VocabularyPair
from nemo_xtoken.losses.registry import chunk_selection, make_divergence
from nemo_xtoken.objective.terms import pass_over
from nemo_xtoken.parallel.head import FreeLogits

__all__ = ["Descent", "descend", "measure"]

#: Looks at a descent, beside the one at the start: more of them early, where most happens.
LOOKS = 12
#: A gradient of which nothing moves within any number of steps that one would make.
STILL = 1e-12


@dataclass(frozen=True)
class Descent:
    """One loss on K cases.

    Attributes:
        variant: the loss.
        steps: int ``[C]``, the steps of descent after which it was looked at; 0 first.
        values: float64 ``[C, K]``, the loss of each case; 0 for those that it leaves out.
        probability: float64 ``[C, K]``, that the student writes the right continuation.
        gradient: float64 ``[K]``, the norm of the gradient with respect to the free logits of a case, at the start.
        scored: bool ``[K]``, the cases that the loss compares at all.
        instead: for each case the token that the student finds most probable at its first position in the end, and its
            probability there.
    """

    variant: Variant
    steps: np.ndarray
    values: np.ndarray
    probability: np.ndarray
    gradient: np.ndarray
    scored: np.ndarray
    instead: tuple[tuple[str, float], ...]


def descend(problem: Problem, variant: Variant, config: CertifyConfig) -> Descent:
    """Plain gradient descent on the student's free logits, from where student and teacher agree.

    Every chunk has its own logits, so that one descent is that of each chunk alone.
    """
    loss = _Loss(problem, variant)
    looks = sorted({0, *np.geomspace(1, config.steps, LOOKS).round().astype(int).tolist()})
    values: list[Tensor] = []
    probability: list[Tensor] = []
    z = problem.student.clone()
    gradient = np.zeros(len(problem.cases))
    still = False
    for step in range(looks[-1] + 1):
        if not still:
            g = loss.gradient(z)
        if step in looks:
            values.append(loss.values())
            probability.append(probability[-1] if still else problem.probability(z))
        if still or step == looks[-1]:
            continue
        norms = problem.by_case(g.square().sum(1)).sqrt()
        if step == 0:
            gradient = norms.numpy()
        still = bool((norms < STILL).all())
        if not still:
            z -= config.rate * g
    curves = torch.stack(values).numpy(), torch.stack(probability).numpy()
    best, at = torch.softmax(z[problem.first_rows], dim=1).max(dim=1)
    names = [problem.pair.student.display(token) for token in at.tolist()]
    instead = tuple(zip(names, best.tolist(), strict=True))
    return Descent(variant, np.array(looks), *curves, gradient, loss.scored, instead)


def measure(problem: Problem, variant: Variant) -> tuple[Tensor, Tensor]:
    """``(values [K], gradient [T, V] by the student's logits)`` where both agree."""
    loss = _Loss(problem, variant)
    gradient = loss.gradient(problem.student)
    return loss.values(), gradient


class _Loss:
    """A loss of the registry on the problem, through the pass of a training step."""

    def __init__(self, problem: Problem, variant: Variant) -> None:
        self.problem = problem
        reduced = problem.pair
        matrix = None if variant.rule is None else reduced.matrices[variant.rule]
        pair = VocabularyPair(reduced.student, reduced.teacher, matrix, reduced.classes)
        divergence = make_divergence(variant.loss, pair, problem.student_shard, variant.options)
        selection = chunk_selection(variant.loss, pair)
        output = problem.teacher_output(divergence)
        self.head = FreeLogits(problem.student_shard)
        whole = TeacherSignal(output, problem.teacher_labels, problem.chunks, divergence, variant.config)
        # each case is selected by itself: some losses take chunks together that follow each other in a text
        parts = [
            replace(whole, chunks=chunk).selected(selection, problem.student_labels)
            for chunk in problem.chunks.split(1)
        ]
        together = replace(whole, chunks=torch.cat([part.chunks for part in parts]))
        taken = torch.tensor([len(part.chunks) for part in parts])
        #: Which cases the divergence takes: bool ``[K]``.
        self.scored = taken.numpy() > 0
        self._case = torch.arange(len(parts)).repeat_interleave(taken)
        start = ModelOutput(problem.student, self.head)
        self._pass = pass_over(start, problem.student_labels, [together], ce_weight=0.0)

    @torch.no_grad()
    def gradient(self, student: Tensor) -> Tensor:
        """``[T, V]``, the gradient of the sum over all cases with respect to these logits."""
        self._pass.student = ModelOutput(student, self.head)
        found = self._pass.accumulate(wanted=True, by_weight=False)
        assert found is not None
        return found.hidden

    def values(self) -> Tensor:
        """``[K]``: the value of each case where the gradient was taken last."""
        tau = self._pass.teachers[0][0].config.temperature
        zeros = self.problem.student.new_zeros(len(self.scored))
        terms = tau**2 * torch.cat([zeros[:0], *self._pass.terms[0]])
        return zeros.index_add_(0, self._case, terms)
