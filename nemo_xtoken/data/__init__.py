"""Text in; student ids, the ids of every teacher, chunks and masks out."""

from typing import Any

from nemo_xtoken.data.config import DataConfig, SourceConfig, TeacherSide
from nemo_xtoken.data.prepare import prepare_documents, prepare_pairs
from nemo_xtoken.data.prepared import PreparedDocuments, split_documents

__all__ = [
    "DataConfig",
    "DistillationDataset",
    "PreparedDocuments",
    "SourceConfig",
    "TeacherSide",
    "collate",
    "prepare_documents",
    "prepare_pairs",
    "split_documents",
]


def __getattr__(name: str) -> Any:
    if name in ("DistillationDataset", "collate"):  # needs torch; the processes that align do not
        from nemo_xtoken.data import dataset

        return getattr(dataset, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
