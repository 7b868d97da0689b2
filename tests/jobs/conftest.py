"""How hypothesis runs here."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# No time limits: these tests are about behaviour, and a busy machine can be slow.
settings.register_profile("sdbatch", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("sdbatch")
