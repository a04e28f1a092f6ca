"""`python -m tinyrec` is the command `tinyrec`."""

import sys

from tinyrec.cli import main

sys.exit(main())
