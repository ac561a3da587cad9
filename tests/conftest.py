"""One thread per test process, no display, no network, and a hypothesis profile without deadlines."""

import os

for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")
os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")

import numpy as np  # noqa: E402
import pytest  # noqa: E402
from hypothesis import HealthCheck, Phase, settings  # noqa: E402

settings.register_profile("lipctrl", deadline=None, derandomize=True, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("explore", parent=settings.get_profile("lipctrl"), derandomize=False, max_examples=1000)
settings.register_profile("mutation", parent=settings.get_profile("lipctrl"), phases=(Phase.explicit, Phase.generate), max_examples=40)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "lipctrl"))


@pytest.fixture
def quiet():
    """Floats that overflow or are undefined say nothing of it, as where the checker runs."""
    with np.errstate(all="ignore"):
        yield
