"""`train.py` on CPU processes as accelerate starts it on GPUs with FSDP.

Without a GPU accelerate falls back to whole copies without a word, so the kind of the processes is set here.
"""

import sys

from accelerate import PartialState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor

if __name__ == "__main__":
    PartialState(cpu=True)
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    from video_diffusion.training import command

    class ShardedRun(command.Run):
        """A run that fails where nothing is sharded."""

        def __init__(self, arguments):
            super().__init__(arguments)
            assert all(isinstance(parameter, DTensor) for parameter in self.learner.parameters())

    command.Run = ShardedRun
    sys.exit(command.main(sys.argv[1:]))
