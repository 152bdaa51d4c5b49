"""A pair of vocabularies, and what losses take from it: W, the strict common set, the prefix classes, beginnings."""

from collections.abc import Callable
from functools import cached_property

from nemo_xtoken.errors import InputError
from nemo_xtoken.parallel.common_set import CommonSet
from nemo_xtoken.projection.byte_prefixes import BytePrefixes
from nemo_xtoken.projection.matrix import ProjectionMatrix
from nemo_xtoken.projection.prefixes import PrefixClasses
from nemo_xtoken.vocab.vocabulary import Vocabulary

__all__ = ["VocabularyPair"]


class VocabularyPair:
    """Two vocabularies; what belongs to both is made when a loss first takes it, and kept here.

    Args:
        student, teacher: the vocabularies.
        matrix: W, or what makes it; None: there is none, and losses that need one refuse the pair.
        classes: the prefix classes; by default made of the vocabularies (some seconds for two full ones).
    """

    def __init__(
        self,
        student: Vocabulary,
        teacher: Vocabulary,
        matrix: ProjectionMatrix | Callable[[], ProjectionMatrix] | None = None,
        classes: PrefixClasses | None = None,
    ) -> None:
        self.student, self.teacher = student, teacher
        self._matrix, self._classes = matrix, classes

    @cached_property
    def matrix(self) -> ProjectionMatrix:
        """W.

        Raises:
            InputError: there is none, or it cannot be made.
        """
        if self._matrix is None:
            raise InputError(
                f"no W between {self.student.name} and {self.teacher.name}",
                "a projection matrix, which this loss needs",
                "build it with `xtoken build`",
            )
        return self._matrix if isinstance(self._matrix, ProjectionMatrix) else self._matrix()

    @cached_property
    def strict(self) -> CommonSet:
        """The pairs of tokens with equal bytes or roles."""
        return CommonSet.strict(self.student, self.teacher)

    @cached_property
    def classes(self) -> PrefixClasses:
        """The classes on which models that agree on strings agree.

        Raises:
            InputError: the tokenizers have no token in common.
        """
        return self._classes or PrefixClasses.of(self.student, self.teacher)

    @cached_property
    def byte_prefixes(self) -> BytePrefixes:
        """Which student token begins a teacher's, by bytes."""
        return BytePrefixes(self.student, self.teacher)
