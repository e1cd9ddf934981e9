"""`python -m loraga.cli`."""

import sys

from . import main

sys.exit(main())
