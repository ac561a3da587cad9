"""Write the table of plant names and digests that the checker reads: ``python -m lipctrl.envs.digest_table``.

The table lets the checker compare a certificate with a shipped plant by name without importing the plants.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import lipctrl.certificates.checker.graph as checker
from lipctrl.envs.registry import make_plant, shipped_plants

TABLE = Path(checker.__file__).resolve().with_name("plant_digests.json")


def digest_table() -> dict[str, str]:
    """Digest of each shipped plant, by name."""
    return {name: make_plant(name).digest for name in sorted(shipped_plants())}


def write_digest_table(path: Path = TABLE) -> None:
    """Write the table as JSON, atomically."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(digest_table(), indent=1, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(temporary, path)


if __name__ == "__main__":
    write_digest_table()
