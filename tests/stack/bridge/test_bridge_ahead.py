"""A teacher one micro-batch ahead under Megatron-Bridge: the same bits, as ``teachers/test_ahead_runs.py`` has them."""

import pytest
import torch

pytestmark = pytest.mark.usefixtures("megatron", "bridge")

STEPS, KEPT = 3, (1, 2, 3)
LAYOUTS = {
    "one": (1, 1, {}),
    "tensor": (2, 2, {"tensor_model_parallel_size": 2, "sequence_parallel": True}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_bits(bridge_world, layout):
    from nemo_xtoken.teachers.ahead.ahead_teacher import AheadTeacher

    ranks, micro, strategy = LAYOUTS[layout]
    launched = AheadTeacher._launch
    found = []
    for ahead in (False, True):

        def noted(teacher, *arguments):
            print("launched ahead")
            return launched(teacher, *arguments)

        AheadTeacher._launch = noted
        try:
            settings = {"micro": micro, "strategy": strategy, "steps": STEPS, "keep": KEPT, "teacher": {"ahead": ahead}}
            name = f"ahead_{layout}_{ahead}"
            found.append(bridge_world.courses(name, ranks, **settings))
        finally:
            AheadTeacher._launch = launched
        log = (bridge_world.root / "logs" / name / "log.0").read_text()
        # of each micro-batch of a data-parallel rank but the first
        assert log.count("launched ahead") == ahead * (STEPS * 4 // micro - 1)
    for plain, other in zip(*found, strict=True):
        records = [[{k: v for k, v in record.items() if k != "seconds"} for record in one["records"]]
                   for one in (plain, other)]  # fmt: skip
        assert records[0] == records[1]
        for step in KEPT:
            for name, gradient in plain["gradients"][step].items():
                assert torch.equal(torch.as_tensor(other["gradients"][step][name]), torch.as_tensor(gradient)), name
