"""The losses by their names.  What one needs and how it is made, its class says (`ChunkDivergence`)."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch

from nemo_xtoken.errors import InputError
from nemo_xtoken.imported import import_class
from nemo_xtoken.kernels.reference import TORCH
from nemo_xtoken.kernels.tile_kernels import TileKernels
from nemo_xtoken.losses.alm import ChunkLikelihood
from nemo_xtoken.losses.base import ChunkDivergence, ChunkLossConfig
from nemo_xtoken.losses.bpm import BytePrefixKL
from nemo_xtoken.losses.csd import CommonSupport
from nemo_xtoken.losses.gold import Gold
from nemo_xtoken.losses.h_kl import HybridKL
from nemo_xtoken.losses.nrl import NrlGold, NrlHybridKL, NrlProjectedKL
from nemo_xtoken.losses.options import DivergenceOptions
from nemo_xtoken.losses.p_kl import ProjectedKL
from nemo_xtoken.losses.pair import VocabularyPair
from nemo_xtoken.losses.prefix_kl import PrefixKL
from nemo_xtoken.losses.same_tokenizer import SameTokenizerKL
from nemo_xtoken.losses.sorted_l1 import UniversalLogitDistance
from nemo_xtoken.losses.strict_1to1 import StrictOneToOne
from nemo_xtoken.parallel.vocabulary_shard import VocabularyShard

__all__ = [
    "AUTO",
    "LOSSES",
    "DivergenceOptions",
    "check_options",
    "chunk_selection",
    "loss_named",
    "make_divergence",
    "register_loss",
]


#: The name that leaves the choice to the coverage audit.
AUTO = "auto"

LOSSES: dict[str, type[ChunkDivergence]] = {
    "p_kl": ProjectedKL,
    "prefix_kl": PrefixKL,
    "h_kl": HybridKL,
    "gold": Gold,
    "uld": UniversalLogitDistance,
    "strict_1to1": StrictOneToOne,
    "csd": CommonSupport,
    "bpm": BytePrefixKL,
    "alm": ChunkLikelihood,
    "same_tokenizer": SameTokenizerKL,
    "nrl_p_kl": NrlProjectedKL,
    "nrl_gold": NrlGold,
    "nrl_h_kl": NrlHybridKL,
}
#: The losses that the option ``nrl_compat`` of older files chooses, by the name beside it.
_NRL = {"p_kl": "nrl_p_kl", "gold": "nrl_gold", "h_kl": "nrl_h_kl"}


def register_loss(name: str, loss: type[ChunkDivergence]) -> None:
    """Gives a loss from outside of this package a name, in this process.

    In a run there is no need to: ``teacher.loss=package.module:Class`` names a class that Python can import.

    Raises:
        InputError: the name is taken or not an identifier, or the class is not a loss.
    """
    if not name.isidentifier() or name == AUTO or LOSSES.get(name, loss) is not loss:
        raise InputError(
            f"a loss named {name!r}",
            f"a name of letters, digits and _, other than {AUTO} and {', '.join(LOSSES)}",
            "choose another name",
        )
    LOSSES[name] = _checked(loss, name)


def loss_named(name: str) -> type[ChunkDivergence]:
    """The class of a loss: a row of `LOSSES`, or ``package.module:Class``, which is imported.

    Raises:
        InputError: the name is unknown, the module cannot be imported, or the class is not a loss.
    """
    if name in LOSSES:
        return LOSSES[name]
    if ":" not in name:  # "auto" is not a loss: it is resolved before
        raise InputError(
            f"loss={name!r}",
            f"{AUTO}, or one of {', '.join(LOSSES)}; or package.module:Class for a loss of your own",
            "choose one of these",
        )
    loss: type[ChunkDivergence] = import_class(name, ChunkDivergence, "loss")
    return loss


def _checked(found: Any, name: str) -> type[ChunkDivergence]:
    if not (isinstance(found, type) and issubclass(found, ChunkDivergence)):
        raise InputError(
            f"loss={name!r} is {found!r}",
            "a subclass of nemo_xtoken.losses.base.ChunkDivergence",
            "derive it from that class, or from ElementwiseDivergence",
        )
    return found


def check_options(name: str, options: DivergenceOptions, merge: str | None = None) -> Mapping[str, Any]:
    """Whether a loss has these options, whatever it compares; a value for each that it has.

    Args:
        merge: of the chunks; None: not known yet.

    Raises:
        InputError: there is no such loss, or it does not have an option or the merge.
    """
    if loss_named(name).merges is not None and merge not in (None, ChunkLossConfig().merge):
        raise InputError(f"merge={merge!r} with loss={name}", "its own merge", "leave chunks.merge out")
    return _values(name, options)


def _values(name: str, options: DivergenceOptions) -> Mapping[str, Any]:
    """A value for each option that the loss has.

    Raises:
        InputError: an option that it does not have.
    """
    loss = loss_named(name)
    if options.nrl_compat:
        raise InputError(
            f"nrl_compat=True with loss={name}",
            f"the losses of NeMo-RL by their own names: {', '.join(_NRL.values())}",
            f"set loss={_NRL[name]} and leave nrl_compat out" if name in _NRL else "leave nrl_compat out",
        )
    values = {}
    for option in fields(options):
        value = getattr(options, option.name)
        if option.name in loss.options:
            values[option.name] = loss.options[option.name] if value is None else value
        elif value != option.default:
            raise InputError(
                f"{option.name}={value!r} with loss={name}",
                f"a loss that has it ({', '.join(n for n, k in LOSSES.items() if option.name in k.options)})",
                f"leave {option.name} out or change the loss",
            )
    return values


def chunk_selection(name: str, pair: VocabularyPair) -> torch.nn.Module | None:
    """Which chunks a loss scores, see ``ChunkDivergence.selection``; None: all.

    Args:
        name: of a loss, not ``"auto"``.
    """
    return loss_named(name).selection(pair)


def make_divergence(
    name: str,
    pair: VocabularyPair,
    student: VocabularyShard,
    options: DivergenceOptions | None = None,
    kernels: TileKernels = TORCH,
) -> ChunkDivergence:
    """The loss of that name between a student and a teacher; it says how the teacher's output layer is to be laid out.

    Args:
        name: of a loss, not ``"auto"``: see ``choosing.resolve_loss``.
        pair: of vocabularies; with W for a loss that needs it.
        student: layout of the student's output layer.
        kernels: what goes over the tiles.

    Returns:
        a module on the CPU, without parameters; move it to the device of the models.  Its ``ownership`` is the order
        that the teacher's output layer must have (``parallel.ownership.reorder_rows``).

    Raises:
        InputError: there is no such loss, an option that it does not have, no W where it needs one, or vocabularies
            that are not those of the output layers.
    """
    loss, values = loss_named(name), _values(name, options or DivergenceOptions())
    loss.check(pair, values)
    if pair.student.size != student.size:
        raise InputError(
            f"a student tokenizer of {pair.student.size} tokens ({pair.student.name}), a model of {student.size}",
            "equal sizes",
            "give the model the tokenizer it was trained with",
        )
    return loss.of(pair, student, values, kernels)
