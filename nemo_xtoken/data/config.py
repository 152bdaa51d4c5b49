"""Every setting of the data, and what they make: training and held-out samples."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Optional

from nemo_xtoken.alignment.aligner import check_method
from nemo_xtoken.data.mixing import shares_of
from nemo_xtoken.data.prepare import clear_errors, prepare_pairs, survey_folder
from nemo_xtoken.data.prepared import PreparedDocuments, split_documents
from nemo_xtoken.data.sources import Reading, check_settings_used, resolve_sources
from nemo_xtoken.errors import InputError
from nemo_xtoken.files import digest_of, raise_open_files
from nemo_xtoken.limits import LONGEST_SEQUENCE, MOST_WORKERS
from nemo_xtoken.progress import say
from nemo_xtoken.sharing.first_process import ALONE, Launch, made_by_first
from nemo_xtoken.vocab import Vocabulary

if TYPE_CHECKING:
    from nemo_xtoken.data.dataset import DistillationDataset
    from nemo_xtoken.data.mixture import JoinedDataset, MixedDataset

    Samples = DistillationDataset | MixedDataset | JoinedDataset

__all__ = ["DataConfig", "SourceConfig", "Tokenization"]


@dataclass(frozen=True)
class Tokenization:
    """What the data has to know of a teacher: how it reads text, and how much of it a sample holds.

    Attributes:
        vocabulary: of its tokenizer.
        length: T_T; None: what the data's settings say.
    """

    vocabulary: Vocabulary
    length: Optional[int] = None


@dataclass
class SourceConfig:
    """One of several sources.  What it leaves out is as for all of them.

    Attributes:
        paths: its files and data sets.
        weight: its share of the samples, in proportion to the other sources' weights.
        held_out_paths: other data of its kind for validation.
        format, text_key, messages_key, tools_key, learn, text_split, split, indexed_tokenizer, on_error: see
            `DataConfig`.
    """

    paths: list[str] = field(default_factory=list)
    weight: float = 1.0
    held_out_paths: list[str] = field(default_factory=list)
    format: Optional[str] = None
    text_key: Optional[str] = None
    messages_key: Optional[str] = None
    tools_key: Optional[str] = None
    learn: Optional[str] = None
    text_split: Optional[str] = None
    split: Optional[str] = None
    indexed_tokenizer: Optional[str] = None
    on_error: Optional[str] = None


@dataclass
class DataConfig:
    """Text to samples.

    Attributes:
        paths: files (.txt, .jsonl, .json, .csv, .tsv, .parquet, .arrow, .idx; the first five also as .gz, .bz2, .zst,
            .xz), globs, folders of files, folders written by ``save_to_disk``, data sets of the Hugging Face hub as
            ``hf:owner/name[:configuration]``.
        student_length: T_S, input positions of a sample on the student's side.
        teacher_length: T_T, the same on the side of every teacher that has no length of its own; None: T_S.
        format: "text", or "chat": conversations, rendered by each side's own chat template; what is learned is what
            the assistant says (see learn).
        text_key: the column that holds the text (A.B: what is called B in the column A); .txt files need none.
        messages_key: for "chat" the column that holds the messages: a list of role and content (or from and value).
        tools_key: for "chat" the column that holds the tools that the assistant may call, where the data has one.
        learn: for "chat" what of the assistant's messages is learned: answers, reasoning (between ``<think>`` and
            ``</think>`` or in reasoning_content), calls of tools, with commas between them; the rest is context.
        chat_template: a file with the student's chat template (Jinja), where its tokenizer has none.
        text_split: what a document is in a .txt file: "file", "paragraph" (blank lines between) or "line".
        split: which split of a Hugging Face data set.
        indexed_tokenizer: the tokenizer that made the indexed data sets (.idx and .bin, of NeMo and Megatron) in paths.
        on_error: at a row that is no document (a line that is not JSON, a message with a picture): "refuse" the data,
            or "skip" the row and count it.  A conversation that a chat template cannot render is counted in any case.
        held_out: documents kept for validation: below 1 a fraction, from 1 on a number of texts.  0: none.
        held_out_paths: other data for validation, instead of held_out.
        pack: several documents in one sample, not attended across; False: one piece of one document each.  A text that
            does not fit is continued in the next sample; a conversation loses what a sample cannot hold.
        sources: instead of paths, several sources by name, whose samples are mixed by their weights; each goes through
            epochs of its own, and has its own documents held out.
        seed: of the split, the order of the documents and the order of the samples.
        align: "spans" (exact) or "dp" (the paper's dynamic programme, slow).
        workers: processes that tokenise and align while the data is prepared; 0: none beside this one.
        cache_dir: where prepared documents are kept; None: ``$NEMO_XTOKEN_CACHE`` or ``~/.cache/nemo_xtoken``.
        progress: show how far the preparation is.
    """

    paths: list[str] = field(default_factory=list)
    student_length: int = 4096
    teacher_length: Optional[int] = None
    format: str = "text"
    text_key: str = "text"
    messages_key: str = "messages"
    tools_key: str = "tools"
    learn: str = "answers,reasoning,calls"
    chat_template: Optional[str] = None
    text_split: str = "file"
    split: str = "train"
    indexed_tokenizer: Optional[str] = None
    on_error: str = "refuse"
    held_out: float = 0.0
    held_out_paths: list[str] = field(default_factory=list)
    pack: bool = True
    sources: dict[str, SourceConfig] = field(default_factory=dict)
    seed: int = 1234
    align: str = "spans"
    workers: int = 0
    cache_dir: Optional[str] = None
    progress: bool = True

    def __post_init__(self) -> None:
        for name, source in self.sources.items():
            if isinstance(source, Mapping):  # as a file or the command line may have it
                if unknown := set(source) - {f.name for f in dataclasses.fields(SourceConfig)}:
                    raise InputError(
                        f"sources.{name} has {', '.join(sorted(unknown))}",
                        f"only {', '.join(f.name for f in dataclasses.fields(SourceConfig))}",
                        "correct it",
                    )
                self.sources[name] = SourceConfig(**source)

    @property
    def lengths(self) -> tuple[int, int]:
        """T_S and T_T."""
        return self.student_length, self.student_length if self.teacher_length is None else self.teacher_length

    @property
    def reading(self) -> Reading:
        """What the documents are."""
        return Reading(
            self.format,
            self.text_key,
            self.messages_key,
            self.tools_key,
            self.learn,
            self.text_split,
            self.split,
            self.indexed_tokenizer,
            self.on_error,
        )

    def check(self) -> None:
        """Finds what is wrong without reading the data: for a preflight.

        Raises:
            InputError: a setting that cannot work, or no data at the paths.
        """
        if self.sources:
            shares_of({name: source.weight for name, source in self.sources.items()})
            for part in self.parts().values():
                part.check()
            return
        self.check_values()
        check_settings_used(
            [s for p in (self.paths, self.held_out_paths or self.paths) for s in resolve_sources(p, self.reading)]
        )
        self.template()

    def check_values(self) -> None:
        """Finds values that cannot work, without a look at any file.

        Raises:
            InputError: a length, a number of processes or documents, an aligner or a format that cannot be.
        """
        _ = self.reading  # has checks of its own
        check_method(self.align)
        for side, length in zip(("student", "teacher"), self.lengths, strict=True):
            if not 2 <= length <= LONGEST_SEQUENCE:
                raise InputError(
                    f"{side}_length={length}", f"a sequence of 2 to {LONGEST_SEQUENCE:,} tokens", f"set {side}_length"
                )
        if not 0 <= self.workers <= MOST_WORKERS:
            raise InputError(f"workers={self.workers}", f"from 0 to {MOST_WORKERS} processes", "correct workers")
        if self.held_out and self.held_out_paths:
            raise InputError("both held_out and held_out_paths", "one of them", "leave one of them out")
        if not 0 <= self.held_out < math.inf or (self.held_out >= 1 and self.held_out != int(self.held_out)):
            raise InputError(
                f"held_out={self.held_out}", "a fraction below 1, or a whole number of documents", "correct held_out"
            )

    def prepare(
        self, student: Vocabulary, teachers: Sequence[Vocabulary]
    ) -> tuple[list[PreparedDocuments], Optional[list[PreparedDocuments]]]:
        """Training and held-out documents of one source for each teacher, on disk; None where nothing is held out.

        Raises:
            InputError: see `check` and `nemo_xtoken.data.prepare.prepare_pairs`.
        """
        self.check()

        def prepared(paths: list[str]) -> list[PreparedDocuments]:
            return prepare_pairs(
                paths,
                student,
                teachers,
                self.align,
                reading=self.reading,
                chat_template=self.template(),
                workers=self.workers,
                cache_dir=self.cache_dir,
                progress=self.progress,
            )

        documents = prepared(self.paths)
        if self.held_out_paths:
            return documents, prepared(self.held_out_paths)
        if not self.held_out:
            return documents, None
        parts = {id(d): split_documents(d, self.held_out, self.seed) for d in documents}
        return [parts[id(d)][0] for d in documents], [parts[id(d)][1] for d in documents]

    def build(
        self,
        student: Vocabulary,
        teachers: Sequence[Tokenization],
        num_samples: Optional[int] = None,
        launch: Launch = ALONE,
    ) -> tuple["Samples", Optional["Samples"]]:
        """Training samples (``num_samples`` of them, through as many epochs as it takes) and one epoch held out.

        Args:
            teachers: at least one, whose tokenizer decides where documents are cut, also for a run that learns from
                the text alone.
            launch: the processes of the job, all of which call this; the first one does the work.

        Raises:
            InputError: see `prepare` and `nemo_xtoken.data.dataset.DistillationDataset`.
        """
        if not self.sources:
            training, held_out = self._built(student, teachers, "", launch)
            return training if num_samples is None else training.resized(num_samples), held_out
        from nemo_xtoken.data.mixture import JoinedDataset, MixedDataset

        self.check()
        built = {name: part._built(student, teachers, f"{name}, ", launch) for name, part in self.parts().items()}
        weights = {name: source.weight for name, source in self.sources.items()}
        mixed = MixedDataset({name: training for name, (training, _) in built.items()}, weights, num_samples)
        say(str(mixed), self.progress)
        held = {name: held_out for name, (_, held_out) in built.items() if held_out is not None}
        return mixed, JoinedDataset(held) if held else None

    def _built(
        self, student: Vocabulary, teachers: Sequence[Tokenization], name: str, launch: Launch
    ) -> tuple["DistillationDataset", Optional["DistillationDataset"]]:
        """Of one source, as `_build` makes it: in a job of several processes the first one does, the others wait."""
        raise_open_files()
        if launch.processes == 1:
            return self._build(student, teachers, name)
        from nemo_xtoken.data.dataset import DistillationDataset

        folder = survey_folder(self.cache_dir).parent / "samples"
        own, default = self.lengths
        lengths = [default if teacher.length is None else teacher.length for teacher in teachers]
        vocabularies = [teacher.vocabulary for teacher in teachers]

        def make() -> dict[str, Optional[str]]:
            with clear_errors(folder):
                made = self._build(student, teachers, name)
                return {
                    side: None if data is None else str(data.keep(folder))
                    for side, data in zip(("training", "held_out"), made, strict=True)
                }

        settings = dataclasses.replace(self, workers=0, progress=True)
        key = digest_of(
            repr(settings), student.digest, repr([(v.digest, n) for v, n in zip(vocabularies, lengths, strict=True)])
        )
        found = made_by_first(launch, folder, key, f"preparing text{f' ({name[:-2]})' if name else ''}", make)

        def opened(path: Optional[str]) -> Optional[DistillationDataset]:
            if path is None:
                return None
            return DistillationDataset.opened(Path(path), student, vocabularies, own, lengths, self.seed)

        training = opened(found["training"])
        assert training is not None
        return training, opened(found["held_out"])

    def _build(
        self, student: Vocabulary, teachers: Sequence[Tokenization], name: str
    ) -> tuple["DistillationDataset", Optional["DistillationDataset"]]:
        """Of one source: one epoch of training samples, and one held out; what they hold and what is left out is told.

        Args:
            name: of the source, before what is told of it.
        """
        from nemo_xtoken.data.dataset import DistillationDataset  # torch, which the preparation's processes do without

        vocabularies = [teacher.vocabulary for teacher in teachers]
        own, default = self.lengths
        lengths = [default if teacher.length is None else teacher.length for teacher in teachers]
        training, held_out = self.prepare(student, vocabularies)
        whole = self.format == "chat"

        def samples(documents: list[PreparedDocuments], what: str) -> DistillationDataset:
            made = DistillationDataset(
                documents, student, vocabularies, own, lengths, self.seed, None, self.pack, whole
            )
            say(f"{name}{what}: {made.report}", self.progress)
            return made

        return samples(training, "training"), None if held_out is None else samples(held_out, "held out")

    def parts(self) -> dict[str, "DataConfig"]:
        """The settings of each source, as if there were no other."""
        if self.paths or self.held_out_paths:
            raise InputError(
                "paths beside sources",
                "either",
                "name the paths of each source: sources.NAME.paths=PATHS, or leave them out",
            )
        parts = {}
        for name, source in self.sources.items():
            given = {key: value for key, value in vars(source).items() if value is not None and key != "weight"}
            part = dataclasses.replace(self, sources={}, **given)
            if part.format != "chat":
                part.chat_template = None
            parts[name] = part
        return parts

    def template(self) -> str | None:
        """The student's chat template, where one is given.

        Raises:
            InputError: no such file, or no conversations.
        """
        if self.chat_template is None:
            return None
        if self.format != "chat":
            raise InputError(
                f"chat_template={self.chat_template} for text", 'format="chat"', "set format=chat, or leave it out"
            )
        try:
            return Path(self.chat_template).expanduser().read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"chat_template={self.chat_template} cannot be read: {error}",
                "a file with a Jinja template",
                "correct the path",
            ) from error
