"""The report as Markdown, from the same values as its JSON."""

from collections.abc import Iterable
from typing import Any

from bench import markdown

__all__ = ["page", "verdict"]

#: Goals: of the time of the matrix products alone, and of waits for the device in a whole pass with few tiles.
MOST_OF_PRODUCTS = 1.6
MIB = 2**20


def verdict(report: dict[str, Any]) -> list[str]:
    """What the figures say, a sentence each; what is wrong begins with ``WRONG``."""
    found = []
    tests = report.get("kernel tests")
    if tests:
        counts = (
            f"{tests.get('tests', 0)} tests of the kernels, {tests.get('failures', 0) + tests.get('errors', 0)} failed"
        )
        found.append(counts if tests["status"] == 0 else f"WRONG: {counts}, status {tests['status']}")
    rows = report.get("values", [])
    bad = sorted({f"{row['loss']} ({row['kernels']}, {row['dtype']})" for row in rows if not row["good"]})
    if rows:
        found.append(f"WRONG: off from float64: {', '.join(bad)}" if bad else f"all {len(rows)} values are float64's")
    times = {(row["loss"], row["kernels"]): row["seconds"] for row in report.get("timings", [])}
    both = [name for name, kernels in times if kernels == "triton" and (name, "torch") in times]
    if both:
        faster = [name for name in both if times[name, "triton"] < times[name, "torch"]]
        found.append(f"Triton is faster for {len(faster)} of {len(both)} losses: {', '.join(faster) or 'none'}")
    products = report.get("references", {}).get("products", {}).get("seconds")
    if products and report["about"]["cuda"]:
        for name in sorted({name for name, _ in times}):
            best = min(seconds for (loss, _), seconds in times.items() if loss == name) / products
            if best > MOST_OF_PRODUCTS:
                found.append(f"{name} takes {best:.1f} times as long as its products; the goal is {MOST_OF_PRODUCTS}")
    found += [f"left out for want of time: {what}" for what in report.get("left out", [])]
    return found


def page(report: dict[str, Any]) -> str:
    """The whole page."""
    about = report["about"]
    parts = [
        f"# The losses on {about['device']}",
        report["machine line"],
        "",
        *(f"- {line}" for line in verdict(report)),
    ]
    parts += ["", markdown(("what", "is"), [[name, str(value)] for name, value in about.items()])]
    if "speed" in report:
        speed = report["speed"]
        parts += [
            "",
            f"Products of bfloat16: {speed['products'] / 1e12:.0f} TFLOP/s; copies: {speed['memory'] / 1e12:.2f} TB/s.",
        ]
    if "kernel tests" in report:
        parts += ["", "## Tests of the kernels", "", "```", report["kernel tests"]["said"].strip()[-1500:], "```"]
    if report.get("values"):
        parts += [
            "",
            "## Values",
            "",
            f"Against float64 on the CPU, relative; {report['values of']}.",
            "",
            _values(report["values"]),
        ]
    if report.get("timings"):
        parts += [
            "",
            "## Times",
            "",
            f"{report['timings of']}.",
            "",
            _timings(report),
            "",
            *_largest(report["timings"]),
        ]
    return "\n".join(parts) + "\n"


def _values(rows: Iterable[dict[str, Any]]) -> str:
    lines = [
        [
            r["loss"],
            r["dtype"],
            r["kernels"],
            *(f"{r[part]:.1e}" for part in ("value", "hidden", "weight")),
            "" if r["good"] else "WRONG",
        ]
        for r in rows
    ]
    return markdown(("loss", "type", "kernels", "value", "by hidden states", "by weight", ""), lines)


def _timings(report: dict[str, Any]) -> str:
    references, expected = report["references"], report["expected"]
    products, plain = (references[name].get("seconds") for name in ("products", "plain torch"))
    headings = ("loss", "kernels", "ms", "products", "Triton", "copies", "other", "launches", "waits", "MiB")
    lines = []
    for row in [*({"loss": name, "kernels": "", **r} for name, r in references.items()), *report["timings"]]:
        if "error" in row:
            lines.append([row["loss"], row["kernels"], row["error"], *[""] * 10])
            continue
        numbers = [row["seconds"], *(row["on_device"][kind] for kind in ("products", "triton", "copies", "other"))]
        cells = [row["loss"], row["kernels"], *(f"{1000 * number:.1f}" for number in numbers)]
        cells += [
            str(row["launches"]),
            str(row["waits"]),
            "?" if row["memory"] is None else f"{row['memory'] / MIB:,.0f}",
        ]
        cells += [f"{row['seconds'] / by:.2f}" if by else "" for by in (products, plain)]
        roof = expected.get(row["loss"]) if row["kernels"] == "torch" else None
        lines.append([*cells, f"{1000 * roof:.0f}" if roof else ""])
    return markdown((*headings, "of products", "of plain", "H100 on paper, ms"), lines)


def _largest(rows: Iterable[dict[str, Any]]) -> Iterable[str]:
    for row in rows:
        yield (
            f"{row['loss']}, {row['kernels']}: "
            + "; ".join(f"`{name}` {1000 * t:.2f} ms" for name, t in row["largest"])
            + "\n"
        )
