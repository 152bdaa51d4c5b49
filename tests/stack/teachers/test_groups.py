"""A second set of Megatron's groups: in force where it should be, and nowhere else."""

import pytest
from launcher import launch

pytestmark = pytest.mark.usefixtures("nemo")


def _sizes():
    from megatron.core import parallel_state as ps

    return (
        ps.get_tensor_model_parallel_world_size(),
        ps.get_pipeline_model_parallel_world_size(),
        ps.get_context_parallel_world_size(),
        ps.get_expert_model_parallel_world_size(),
        ps.get_data_parallel_world_size(),
    )


def _in_ranks():
    import torch.distributed as dist
    from megatron.core import parallel_state as ps

    from nemo_xtoken.teachers.groups import ParallelSizes, TeacherGroups
    from nemo_xtoken.training.cpu import runtime as cpu_runtime

    cpu_runtime.enable()
    dist.init_process_group("gloo")
    ps.initialize_model_parallel(2, context_parallel_size=2)
    before = dict(vars(ps))
    groups = TeacherGroups(ParallelSizes(pipeline=2, expert=2))
    made = [_sizes()]
    with groups.active():
        made.append(_sizes())
        buffer = ps.get_global_memory_buffer()
        ranks = dist.get_process_group_ranks(ps.get_pipeline_model_parallel_group())
        with groups.active():  # once more is the same
            made.append(_sizes())
        made.append(_sizes())
    made.append(_sizes())
    with pytest.raises(KeyError), groups.active():
        raise KeyError
    made.append(_sizes())
    same = all(vars(ps)[name] is value for name, value in before.items() if name != "_global_process_group_list")
    with pytest.raises(RuntimeError, match="not divisible"):
        TeacherGroups(ParallelSizes(tensor=3))
    made.append(_sizes())
    with groups.active():
        same &= ps.get_global_memory_buffer() is buffer
    dist.barrier()  # a rank that ends while another still connects to it resets the connection
    return made, ranks, same


def test_other_groups_hold_inside_alone(tmp_path):
    students, teachers = (2, 1, 2, 1, 1), (1, 2, 1, 2, 2)
    for rank, (made, ranks, same) in enumerate(launch(_in_ranks, ranks=4, folder=tmp_path)):
        assert made == [students, teachers, teachers, teachers, students, students, students]
        assert ranks == [rank % 2, rank % 2 + 2]
        assert same
