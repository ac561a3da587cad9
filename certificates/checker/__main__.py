"""``python -m lipctrl.certificates.checker``: the same as ``lipctrl-check``."""

import sys

from lipctrl.certificates.checker.command import main

sys.exit(main())
