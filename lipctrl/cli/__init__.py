"""The command line: ``lipctrl VERB ...``, ``python -m lipctrl VERB ...`` or :func:`main`.

Exit codes: 0 done, or the claim holds; 1 it does not hold, or was refuted; 2 wrong usage or input; 3 unknown within the
budget; 130 interrupted. With ``--json`` exactly one JSON object goes to standard output; everything else goes to standard error.
Only the verb that was asked for is imported, so that ``--help`` is quick.
"""

from lipctrl.cli.command import main

__all__ = ["main"]
