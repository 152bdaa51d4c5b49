"""What version 0.1.0 wrote: files that every later version has to read.

``fixtures/v0_1_0`` holds YAML of ``nemo llm distill --to-yaml`` (one as Megatron-Bridge has it), and
a run of two steps with a learned W and a dynamic scale, student and teacher of one layer and width 2, on ``text``.
"""

from pathlib import Path

__all__ = ["CHECKPOINT", "FOLDER", "YAML"]

FOLDER = Path(__file__).parent.parent / "fixtures" / "v0_1_0"
YAML = sorted(FOLDER.glob("*.yaml"))
CHECKPOINT = FOLDER / "run" / "checkpoints" / "step=1-last"
