"""`python -m rlhf_lab` is the command `rlhf-lab`."""

import sys

from rlhf_lab.cli import main

sys.exit(main())
