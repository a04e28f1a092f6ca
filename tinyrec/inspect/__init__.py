"""Looking at the library from outside: gradient checks of every op and model; how a recurrent-depth model thinks."""

from .cases import Case, cases
from .gradients import Row, check_model, check_op, run_checks
from .recurrent_depth import exit_steps, path_independence, trajectories
