"""`train.py` on CPU processes as accelerate starts it on GPUs with FSDP, in two parts: `--max_steps` 3, then 6.

Without a GPU accelerate falls back to whole copies without a word, so the kind of the processes is set here. Both
parts share a process and its group, to spare the test a start.
"""

import sys

from accelerate import PartialState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor

if __name__ == "__main__":
    PartialState(cpu=True)
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    PartialState.destroy_process_group = lambda self, group=None: None
    from video_diffusion.training import command

    class ShardedRun(command.Run):
        """A run that fails where nothing is sharded."""

        def __init__(self, arguments):
            super().__init__(arguments)
            assert all(isinstance(parameter, DTensor) for parameter in self.learner.parameters())

    command.Run = ShardedRun
    for steps in ("3", "6"):
        code = command.main([*sys.argv[1:], "--max_steps", steps])
        if code:
            sys.exit(code)
