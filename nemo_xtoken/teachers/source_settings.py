"""What the user says about a source of states that is not a model in the run's own processes."""

from dataclasses import dataclass
from typing import Optional

from nemo_xtoken.errors import InputError

__all__ = ["CONTEXTS", "FORMATS", "FORMAT_BYTES", "SAMPLES", "CacheConfig", "ServiceConfig"]

#: Samples of the next token in a row of the format ``sampled``.
SAMPLES = 16
#: Bytes of a token's states by the format's name: for each number of the width, and beside them.  ``fp8`` has a scale;
#: ``sampled`` 3 bytes for the id of each sample and of the label, and 4 for the log-probability.
FORMAT_BYTES = {"bf16": (2, 0), "fp32": (4, 0), "fp8": (1, 4), "sampled": (0, 3 * (SAMPLES + 1) + 4)}
#: How states are stored; None in the settings: as they are, so that nothing is lost.
FORMATS = tuple(FORMAT_BYTES)
#: What a teacher had read before a position: the piece of the document that a sample holds, or all of the document.
CONTEXTS = ("piece", "document")


@dataclass
class CacheConfig:
    """States on disk: ``teacher.source=cached teacher.cache.folder=FOLDER``.

    Attributes:
        folder: where ``xtoken cache`` has written them.
        context: which states are good enough for a position.  ``piece``: those that a teacher beside the student would
            give, which reads a document from where its piece in a sample begins.  ``document``: also those of a teacher
            that has read more of the document before; it knows more, and pieces may be cut anywhere, so that the
            student, its tokenizer, lengths and the order of the data are free.
        format: of what is written: ``bf16``, ``fp32``, ``fp8`` with a scale for each token, or, by ``xtoken cache``
            alone, ``sampled``; by default the type of the states, which loses nothing.  What is read says itself how it
            is stored.
        open_files: of the cache that a process maps at a time.
        check: compare what is read with its checksum, the first time that a process reads it.
    """

    folder: Optional[str] = None
    context: str = "piece"
    format: Optional[str] = None
    open_files: int = 64
    check: bool = True

    def __post_init__(self) -> None:
        if self.context not in CONTEXTS:
            raise InputError(f"cache.context={self.context!r}", f"one of {', '.join(CONTEXTS)}", "choose one")
        if self.format is not None and self.format not in FORMATS:
            raise InputError(
                f"cache.format={self.format!r}", f"one of {', '.join(FORMATS)}", "choose one, or leave it out"
            )
        if self.open_files < 1:
            raise InputError(f"cache.open_files={self.open_files}", "at least 1", "correct it")


@dataclass
class ServiceConfig:
    """A teacher on other nodes, or in other processes: ``teacher.source=remote``, beside ``xtoken serve``.

    ``ahead`` is that of a teacher on disk as well.

    Attributes:
        folder: by which students and replicas find each other, on a file system that both see; it holds the keys of the
            service, and nobody but its owner may read it.
        ahead: steps whose states are asked for, or read from the files of a cache, before they are needed.
        silent: seconds without an answer, after which a replica counts as dead, and its requests go to others.
        slow: seconds that a batch may take before it goes to another replica as well.
        lost: seconds without any replica that lives, after which the run writes a checkpoint and ends, to be started
            again.
    """

    folder: Optional[str] = None
    ahead: int = 2
    silent: float = 20.0
    slow: float = 120.0
    lost: float = 600.0

    def __post_init__(self) -> None:
        for name, least in (("ahead", 0), ("silent", 1), ("slow", 1), ("lost", 0)):
            if getattr(self, name) < least:
                raise InputError(f"service.{name}={getattr(self, name)}", f"{least} or more", "correct it")
