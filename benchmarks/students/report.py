"""Tables, figure and the numbers in the documents, from the runs' files; whatever has not been run is said to be so."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nemo_xtoken.files import atomic_path, digest_of

from ..blocks import fill
from ..learning.statistics import estimate
from .claims import judged
from .plan import ARMS, BASELINES, LENGTHS, SETTINGS, TUNING_SEED
from .study import read_results

__all__ = ["DOCUMENTS", "FIGURE", "WORD", "blocks", "digest", "report"]

ROOT = Path(__file__).parents[2]
#: Where blocks of this word are filled in.
WORD = "students"
DOCUMENTS = (ROOT / "README.md", ROOT / "docs" / "learning.md")
FIGURE = ROOT / "docs" / "students.png"
NAMES = {
    "teacher": "the teacher", "none": "student, untrained", "ce": "cross-entropy alone", "gold": "GOLD", "uld": "ULD",
    "same_ce": "teacher's tokenizer, cross-entropy", "same_kl": "teacher's tokenizer, plain KL (ceiling)",
}  # fmt: skip
Results = Sequence[Mapping[str, Any]]


def report(results: Path) -> None:
    """Writes the figure, fills the documents, and prints the claims."""
    found = {name: read_results(results, name) for name in LENGTHS if name != "smoke"}
    made = blocks(found)
    fill(DOCUMENTS, WORD, made)
    draw(found, FIGURE)
    print(made["claims"])


def blocks(found: Mapping[str, Results]) -> dict[str, str]:
    """Every block by its name.

    Args:
        found: results by length.
    """
    made = {name: _setting(name, found) for name in SETTINGS}
    made["claims"] = "".join(_claims(length, results) for length, results in found.items() if results) or _NOTHING
    made["short"] = _short(found)
    made["continued"] = _continued(found)
    return made


_NOTHING = "*Nothing has been run yet: `python -m benchmarks.students`.*\n"


def digest(found: Mapping[str, Results]) -> str:
    """Of all results, for the figure."""
    return digest_of(json.dumps(found, sort_keys=True))[:16]


def _of(results: Results, setting: str) -> dict[str, dict[int, Mapping[str, Any]]]:
    """Runs by arm and seed, without those that chose the rate."""
    runs: dict[str, dict[int, Mapping[str, Any]]] = {}
    for result in results:
        if result["setting"] == setting and result["seed"] != TUNING_SEED:
            runs.setdefault(result["arm"], {})[result["seed"]] = result
    return {arm: runs[arm] for arm in ARMS if arm in runs}


def _written(values: Sequence[float], digits: int = 3) -> str:
    return estimate(values).written(1, digits)


def _setting(name: str, found: Mapping[str, Results]) -> str:
    parts = []
    for length, results in found.items():
        runs = _of(results, name)
        if any(arm not in BASELINES for arm in runs):
            parts += [_heading(name, length, results, runs), _table(name, runs), _missing(name, runs)]
    return "\n".join(parts) if parts else _NOTHING


def _heading(name: str, length: str, results: Results, runs: Mapping[str, Any]) -> str:
    trained = [run for arm in runs for run in runs[arm].values() if ARMS[arm].trained]
    whole = [run for run in trained if ARMS[run["arm"]].steps_share == 1] or trained
    tokens, size = (sorted({run[key] for run in whole}) for key in ("tokens", "bytes"))
    rates = {r["rate"]: _mean(r["bits"]) for r in results if r["setting"] == name and r["seed"] == TUNING_SEED}
    tried = ", ".join(f"{rate:g}: {bits:.3f}" for rate, bits in sorted(rates.items()))
    chosen = sorted({run["rate"] for run in trained})
    machine = trained[0]["machine"]
    seeds = max(len(of) for of in runs.values())
    return (
        f"`--length {length}`: {whole[0]['steps']} steps, {_range(tokens)} student tokens ({_range(size)} bytes) a "
        f"run, {seeds} seed{'s' if seeds > 1 else ''}, {machine['device']} in {machine['precision']}. Learning rate "
        f"{', '.join(f'{rate:g}' for rate in chosen)}, the best for cross-entropy alone of those tried (bits per byte "
        f"after {_tuning_steps(results, name)} steps: {tried}).\n"
    )


def _tuning_steps(results: Results, name: str) -> int:
    steps: set[int] = {r["steps"] for r in results if r["setting"] == name and r["seed"] == TUNING_SEED}
    return max(steps, default=0)


def _range(values: Sequence[int]) -> str:
    return f"{values[0]:,}" if values[0] == values[-1] else f"{values[0]:,} to {values[-1]:,}"


def _mean(bits: Mapping[str, float]) -> float:
    return sum(bits.values()) / len(bits)


def _table(name: str, runs: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> str:
    setting = SETTINGS[name]
    kinds = [*setting.trained, *setting.others]
    head = [
        "",
        *(f"**{kind}**" if kind in setting.trained else kind for kind in kinds),
        "tokens to cross-entropy's end",
    ]
    lines = [f"| {' | '.join([*head, 'CPU s a step', 'seeds'])} |", "|---|" + "---:|" * (len(kinds) + 3)]
    for arm, of in runs.items():
        cells = [_written([run["bits"][kind] for run in of.values()]) for kind in kinds]
        seconds = _written([run["cpu_seconds_a_step"] for run in of.values()], 1) if ARMS[arm].trained else ""
        lines.append(
            f"| {' | '.join([NAMES.get(arm, f'`{arm}`'), *cells, _reached(name, arm, runs), seconds, str(len(of))])} |"
        )
    return "\n".join(
        [*lines, "", "Bits per byte, less is better; **bold** kinds were trained on, the others never.", ""]
    )


def _reached(name: str, arm: str, runs: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> str:
    """The share of the tokens after which an arm was first measured at or below what cross-entropy ends with."""
    if arm == "ce" or not ARMS[arm].trained or "ce" not in runs:
        return ""
    shares = []
    for seed in sorted(runs[arm].keys() & runs["ce"].keys()):
        end = _mean(runs["ce"][seed]["looks"][-1]["bits"])
        run = runs[arm][seed]
        at = [look["step"] for look in run["looks"] if _mean(look["bits"]) <= end]
        shares.append(f"{100 * at[0] / runs['ce'][seed]['steps']:.0f}%" if at else "not reached")
    return ", ".join(shares)


def _missing(name: str, runs: Mapping[str, Any]) -> str:
    missing = [arm for arm in ARMS if arm not in runs and not (ARMS[arm].same and name != "compression")]
    return f"Not run yet: {', '.join(f'`{arm}`' for arm in missing)}.\n" if missing else ""


def _claims(length: str, results: Results) -> str:
    lines = [
        f"`--length {length}`:\n",
        "| | setting | claim | difference | seeds | p | |",
        "|---|---|---|---:|---:|---:|---|",
    ]
    for verdict in judged(results):
        claim, count = verdict.claim, len(verdict.values)
        mean = "" if verdict.mean is None else f"{verdict.mean:+.3f}"
        p = "" if verdict.p is None else f"{verdict.p:.4f}"
        if not count:
            word = "not run yet"
        elif verdict.p is None:
            word = ("so it is" if (verdict.mean or 0) < 0 else "**not so**") + " in this seed; not tested"
        else:
            word = "stands" if verdict.stands else "does not stand"
        lines.append(f"| {claim.name} | {claim.setting} | {claim.text} | {mean} | {count} | {p} | {word} |")
    return "\n".join([*lines, ""]) + "\n"


def _longest(found: Mapping[str, Results], name: str) -> dict[str, dict[int, Mapping[str, Any]]]:
    """The runs of the greatest length that has cross-entropy and another arm."""
    for results in reversed(list(found.values())):
        runs = _of(results, name)
        if len([arm for arm in runs if ARMS[arm].trained]) > 1 and "ce" in runs:
            return runs
    return {}


def _short(found: Mapping[str, Results]) -> str:
    """For the README: the means over kinds."""
    lines = [
        "| student | | tokens read | bits per byte, kinds trained on | kinds never trained on | seeds |",
        "|---|---|---:|---:|---:|---:|",
    ]
    size = len(lines)
    for name, setting in SETTINGS.items():
        for arm, of in _longest(found, name).items():
            if arm in ("teacher", "none", "ce", "prefix_kl", "gold", "same_kl"):
                means = [
                    _written([sum(run["bits"][k] for k in kinds) / len(kinds) for run in of.values()])
                    for kinds in (setting.trained, setting.others)
                ]
                read = max(run.get("tokens") or 0 for run in of.values())
                cells = [name, NAMES.get(arm, f"`{arm}`"), f"{read:,}" if read else "", *means, str(len(of))]
                lines.append(f"| {' | '.join(cells)} |")
    if len(lines) == size:
        return ""
    intro = "Pretrained students, the same text for all rows of a setting ([all figures](docs/learning.md)):"
    return "\n".join([intro, "", *lines, "", ""])


def _continued(found: Mapping[str, Results]) -> str:
    parts = []
    for name, setting in SETTINGS.items():
        runs = _longest(found, name)
        for prompt in setting.prompts if runs else ():
            parts.append(f"*{name}*, after `{_one_line(prompt)}`:\n")
            for arm, of in runs.items():
                said = of[min(of)]["continued"].get(prompt, "")
                parts.append(f"- {NAMES.get(arm, arm)}: `{_one_line(said)}`")
            parts.append("")
    return "\n".join(parts) + "\n" if parts else _NOTHING


def _one_line(text: str) -> str:
    return text.replace("\n", "⏎").replace("`", "'").replace("|", "¦")


def draw(found: Mapping[str, Results], path: Path) -> None:
    """Bits per byte of held-out text of the kinds trained on, over the tokens; nothing where nothing was run."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = {name: runs for name in SETTINGS if (runs := _longest(found, name))}
    if not shown:
        return
    figure = Figure(figsize=(4.6 * len(shown), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    for place, (name, runs) in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown.items(), strict=True):
        colors = dict(zip((arm for arm in ARMS if ARMS[arm].trained), _COLORS, strict=True))
        for arm, of in runs.items():
            run = of[min(of)]
            if not ARMS[arm].trained:
                if arm == "teacher":
                    place.axhline(
                        _mean(run["looks"][-1]["bits"]), color="#555555", linestyle="--", linewidth=1, label=arm
                    )
                continue
            each = run["tokens"] / run["steps"]
            points = [(look["step"] * each, _mean(look["bits"])) for look in run["looks"]]
            place.plot(*zip(*points, strict=True), "o-", markersize=3, color=colors[arm], label=arm)
        place.set(title=name, xlabel="student tokens", ylabel="bits per byte, kinds trained on")
        place.grid(alpha=0.3)
        place.legend(frameon=False, fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130, metadata={"Comment": digest(found)})


_COLORS = (
    "#d55e00", "#0072b2", "#cc79a7", "#009e73", "#e69f00", "#56b4e9", "#000000", "#8c564b", "#17becf", "#9467bd",
    "#7f7f7f", "#bcbd22", "#1f77b4", "#ff9896", "#2ca02c", "#aec7e8", "#c49c94",
)  # fmt: skip
