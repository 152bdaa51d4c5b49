"""Which micro-batch is launched ahead, and who gets it: the order alone, whatever launching is."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from nemo_xtoken.data.batch import Inputs

__all__ = ["NextInLine"]

Prepared = TypeVar("Prepared")
Given = TypeVar("Given")


class NextInLine(Generic[Prepared, Given]):
    """At most one micro-batch is launched before it is asked for, and that is the next of those announced.

    A micro-batch is known by its tokens, the tensor itself.  One that nobody announced, of held-out text, is left to
    the caller and changes nothing; announced ones that were passed over are forgotten.

    Args:
        prepare: makes the model's input; the host may wait in it.
        launch: runs the model; the host does not wait.
    """

    def __init__(self, prepare: Callable[[Inputs], Prepared], launch: Callable[[Inputs, Prepared], Given]) -> None:
        self._prepare, self._launch = prepare, launch
        self._due: deque[Inputs] = deque()
        self._ready: Prepared | None = None  # of the first that is due
        self._launched: tuple[Inputs, Given] | None = None

    def announce(self, sides: Sequence[Inputs]) -> None:
        """They will be asked for, after all that were announced before."""
        self._due.extend(sides)

    def take(self, side: Inputs) -> Given | None:
        """What has been launched for a micro-batch; None where nothing has."""
        if self._launched is not None and self._launched[0].tokens is side.tokens:
            (_, given), self._launched = self._launched, None
            return given
        if any(one.tokens is side.tokens for one in self._due):
            self._launched = self._ready = None
            while self._due.popleft().tokens is not side.tokens:
                pass
        return None

    def prepare(self) -> None:
        """The input of the next; before the student's forward pass, whose own input makes the host wait as well."""
        if self._due and self._ready is None and self._launched is None:
            self._ready = self._prepare(self._due[0])

    def launch(self) -> None:
        """The next, once its input is there."""
        if self._ready is not None and self._launched is None:
            side, ready = self._due.popleft(), self._ready
            self._ready = None
            self._launched = side, self._launch(side, ready)

    def clear(self) -> None:
        """Lets go of everything."""
        self._due.clear()
        self._ready = self._launched = None
