# SPDX-License-Identifier: Apache-2.0
"""What every test gets: strict device memory, and hypothesis that fails the same way twice."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# Memory is visible to the other side only after flush or invalidate, as on a board.
os.environ.setdefault("BBS_STRICT", "1")

settings.register_profile(
    "default",
    deadline=None,  # machines differ, and the first example may compile the engine
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("default")
