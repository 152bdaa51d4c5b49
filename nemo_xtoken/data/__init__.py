"""Text in; student ids, the ids of every teacher, chunks and masks out."""

from typing import Any

from nemo_xtoken.data.config import DataConfig, SourceConfig, Tokenization
from nemo_xtoken.data.prepare import prepare_documents, prepare_pairs
from nemo_xtoken.data.prepared import PreparedDocuments, split_documents

__all__ = [
    "Batch",
    "DataConfig",
    "DistillationDataset",
    "PreparedDocuments",
    "Side",
    "SourceConfig",
    "TeacherSide",
    "Tokenization",
    "collate",
    "prepare_documents",
    "prepare_pairs",
    "split_documents",
]


def __getattr__(name: str) -> Any:
    # These need torch; the processes that align do not.
    if name in ("Batch", "Side", "TeacherSide", "collate"):
        from nemo_xtoken.data import batch

        return getattr(batch, name)
    if name == "DistillationDataset":
        from nemo_xtoken.data.dataset import DistillationDataset

        return DistillationDataset
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
