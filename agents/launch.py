"""The processes that ``accelerate launch --cpu --num_processes N`` does not start.

Without MPI, accelerate 1.15 starts a single process for ``--cpu``, whatever number was asked for. This one then gives
way to torch's launcher, which starts all of them; they talk through gloo.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import PurePath

import psutil
from accelerate.commands.launch import launch_command_parser
from accelerate.utils.environment import get_int_from_env, parse_flag_from_env

from search_gym.errors import OptionError

LAUNCHERS = ("launch", "launch.py", "accelerate-launch", "accelerate.commands.launch")
"""What stands before the launcher's options: ``accelerate launch``, ``accelerate-launch``, ``python -m ...``."""


def is_main_process() -> bool:
    """Whether no launcher gave this process a number, or gave it the first."""
    return get_int_from_env(("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK"), 0) == 0


def start_missing_processes(module: str, args: Sequence[str]) -> None:
    """Become the launcher of ``python -m module args``, if accelerate started one process where several were asked for.

    Raises:
        OptionError: they are to run on several machines, or their number is not in accelerate's command.
    """
    is_alone = get_int_from_env(("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"), -1) == -1
    # accelerate sets the port when there are to be several processes.
    if not (is_alone and parse_flag_from_env("ACCELERATE_USE_CPU") and "MASTER_PORT" in os.environ):
        return
    command = psutil.Process(os.getppid()).cmdline()
    first = next((i for i, word in enumerate(command) if PurePath(word).name in LAUNCHERS), None)
    if first is None:
        return
    asked = launch_command_parser().parse_args(command[first + 1 :])
    if asked.num_processes is None or (asked.num_machines or 1) > 1:
        raise OptionError(
            "expected accelerate launch --cpu with --num_processes and one machine, got num_processes="
            f"{asked.num_processes} and num_machines={asked.num_machines}; do: launch with --multi_gpu in place of "
            "--cpu, which works without GPUs too"
        )
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone")
    os.execv(sys.executable, [*launcher, "--nproc_per_node", str(asked.num_processes), "-m", module, *args])
