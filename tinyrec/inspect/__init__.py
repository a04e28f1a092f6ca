"""Looking at the library from outside: gradient checks of every op and model; how a recurrent-depth model thinks, and
what a TTT learns while it reads."""

from .cases import Case, cases
from .gradients import Row, check_model, check_op, run_checks
from .recurrent_depth import exit_steps, path_independence, trajectories
from .ttt import eta, inner_losses, weight_path
