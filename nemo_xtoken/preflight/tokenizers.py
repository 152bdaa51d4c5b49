"""Tokenizers against output layers, and W: whether it can be built, what it covers, and the loss that fits it."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from nemo_xtoken.errors import InputError
from nemo_xtoken.losses.options import DEFAULT_LOSS, recommend
from nemo_xtoken.preflight.findings import Finding, green, left_out, red, yellow
from nemo_xtoken.preflight.plan import Plan
from nemo_xtoken.run.run_checks import row_problems
from nemo_xtoken.run.spec import ModelSpec
from nemo_xtoken.run.values import PARTS_OF_TEACHER, made

if TYPE_CHECKING:
    from nemo_xtoken.losses.text_coverage import Parts
    from nemo_xtoken.vocab import Vocabulary

__all__ = ["projection", "vocabularies"]


def vocabularies(plan: Plan) -> Iterator[Finding]:
    """Every tokenizer can be read, and the output layer has a row for each of its ids."""
    from nemo_xtoken.vocab.loading import load_vocabulary

    for side in plan.sides:
        if side.tokenizer is None:
            if side.problem is None and not (side.path is None and plan.settings.makes_its_teacher):
                error = InputError(
                    f"no tokenizer for the {side.label}",
                    "its folder or hub name, or a checkpoint that names one",
                    f"set {side.tokenizer_name}=FOLDER",
                )
                yield red("vocabularies", error)
            continue
        try:
            known = plan.know(side, load_vocabulary(side.tokenizer))
        except InputError as error:
            yield red("vocabularies", error)
            continue
        if problems := list(row_problems(plan.run, [known])):
            yield from (red("vocabularies", problem) for problem in problems)
            continue
        size, own_rows = known.ids, known.config.get("vocab_size")
        rows, tensor = known.rows or 0, known.sizes.tensor
        share = f", {rows // tensor:,} on each of {tensor} ranks" if tensor > 1 else ""
        padded = f"{rows:,} rows{share}" if side.known or own_rows else "its output layer is not known"
        yield green("vocabularies", f"{side.label}: {size:,} ids in {side.tokenizer}; {padded}")


def projection(plan: Plan, side: ModelSpec, figures: dict[str, Any]) -> Iterator[Finding]:
    """W between the student and a teacher, its coverage, and whether the loss is the one that fits."""
    from nemo_xtoken.projection.audit import audit_coverage
    from nemo_xtoken.projection.build import load_or_build

    name = f"W, {side.label}"
    student, teacher = plan.student.vocabulary, side.vocabulary
    if student is None or teacher is None:
        yield left_out(name, "a tokenizer is not known")
        return
    config = plan.settings.teachers()[side.where]
    rule = made(PARTS_OF_TEACHER["rule"], config.get("rule") or {}, f"{side.where}.rule")
    given = config.get("projection")
    matrix = load_or_build(student, teacher, rule, given)
    # what loss=auto asks for: the same by every rule, whose exact rows are the same
    audit = audit_coverage(student, teacher, matrix if given is None else None)
    kinds, reached = matrix.coverage, int(matrix.reached.sum())
    found: dict[str, Any] = {**kinds, "reached": reached}
    figures.setdefault("projections", {})[side.label] = found
    pieces = kinds.get("multi", 0) + kinds.get("truncated", 0)
    text = (
        f"of {student.size:,} student tokens {kinds.get('exact', 0):,} are the teacher's, {pieces:,} are cut into its "
        f"tokens, {int(matrix.empty_rows.sum()):,} have none; W reaches {reached / max(teacher.size, 1):.0%} of its "
        f"{teacher.size:,}"
    )
    recommended = recommend(audit)
    found["recommended"] = recommended.loss
    loss = str(config.get("loss", DEFAULT_LOSS))
    resolved = recommended.loss if loss == "auto" else loss
    yield from _options(config, resolved, (student, teacher), plan.student.sizes.context, name)
    scored = _least_scored(resolved, (student, teacher))
    if scored is not None:
        kind, parts = scored
        found["scored in full"] = {kind: parts.share("full")}
        text += f"; of the student's tokens of sample {kind} {parts.share('full'):.0%} are scored in full"
        if (silent := parts.share("none")) > SILENT:
            change = f"set {side.where}.loss={DEFAULT_LOSS}, which scores all chunks"
            yield yellow(
                name, f"loss={loss} scores none of {silent:.0%} of the student's tokens of {kind}",
                "a teacher for most tokens", change,
            )  # fmt: skip
    chosen = loss if loss == resolved else f"{loss}, which is {resolved}"
    if loss == "auto" or _fits(loss, audit.finding):
        yield green(name, f"{text}; loss={chosen}")
    else:
        best = recommended.loss if audit.finding == "one tokenizer" else DEFAULT_LOSS
        change = f"set {side.where}.loss={best}"
        wanted = f"loss={best}" + ("" if best == recommended.loss else f"; of the paper's two {recommended.loss}")
        yield yellow(name, f"{text}. loss={loss}: {recommended.reason}", wanted, change)


def _options(
    config: Mapping[str, Any], loss: str, pair: "tuple[Vocabulary, Vocabulary]", context: int, name: str
) -> Iterator[Finding]:
    """What the run checks of a loss and its options; needs torch."""
    try:
        from nemo_xtoken.losses.choosing import check_loss
        from nemo_xtoken.losses.options import DivergenceOptions
    except ImportError as error:
        yield left_out(name, f"the options of loss={loss}, and whether it fits the pair: {error}")
        return
    options = {k: v for k, v in (config.get("options") or {}).items() if not k.startswith("_")}
    try:
        merge = (config.get("chunks") or {}).get("merge")
        check_loss(loss, *pair, DivergenceOptions(**options), merge, context)
    except TypeError as error:
        yield red(name, InputError(f"options: {error}", "a setting that a loss has", "correct its name"))
    except InputError as error:
        yield red(name, error)


#: The share of the student's tokens without a signal from the teacher from which a run is warned.
SILENT = 0.05


def _least_scored(loss: str, pair: "tuple[Vocabulary, Vocabulary]") -> "tuple[str, Parts] | None":
    """The sample text of which the loss scores the least; None: it scores all, or `_options` says what is wrong."""
    try:
        from nemo_xtoken.losses.pair import VocabularyPair
        from nemo_xtoken.losses.registry import loss_named
        from nemo_xtoken.losses.text_coverage import ENOUGH, least_scored_sample

        if loss_named(loss).every_position:
            return None
        kind, parts = least_scored_sample(VocabularyPair(*pair), loss)
    except (ImportError, InputError):
        return None
    return (kind, parts) if parts.share("full") < ENOUGH else None


def _fits(loss: str, finding: str) -> bool:
    """Whether the audit's finding is one that the loss suits; True where `_options` says that it cannot be told."""
    try:
        from nemo_xtoken.losses.registry import loss_named

        return finding in loss_named(loss).suits
    except (ImportError, InputError):
        return True
