"""Looking at the library from outside: the gradient checks of every op and model."""

from .cases import Case, cases
from .gradients import Row, check_model, check_op, run_checks
