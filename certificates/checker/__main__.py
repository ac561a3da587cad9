"""``python -m lipctrl.certificates.checker``: the same as ``lipctrl-check``."""

import sys

from lipctrl.certificates.checker.command import main

if __name__ == "__main__":
    sys.exit(main())
