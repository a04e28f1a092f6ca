"""Looking at the library from outside: the gradient checks of every op."""

from .cases import Case, cases
from .gradients import Row, check_op, run_checks
