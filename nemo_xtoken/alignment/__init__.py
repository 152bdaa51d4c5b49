"""Two tokenizations of one text, cut into chunks that cover the same bytes."""

from nemo_xtoken.alignment.aligner import Aligner

__all__ = ["Aligner"]
