"""`python -m multilevel_sde` is the command line."""

import sys

from multilevel_sde.cli import main

sys.exit(main())
