"""`kd-jax train`: the command; `kd_jax.training.launch` reads it, `kd_jax.training.loop` does the work.

Worker processes import the main module again, so this one imports nothing that they have no use for.
"""

import sys

if __name__ == "__main__":
    from data_pipeline.command_line import run_command
    from kd_jax.training.launch import main

    sys.exit(run_command(main))
