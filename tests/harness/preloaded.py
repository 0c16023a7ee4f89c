"""The modules and kernels of a service, loaded once by the fork server of `harness.process`."""

import sys

import pipeline.app.cli
import pipeline.app.commands.run
import pipeline.app.wiring  # noqa: F401
from pipeline.settings import Settings
from pipeline.thread_limits import limit_threads
from pipeline.warm_up import warm_up

if "pytest" not in sys.modules:  # pytest imports this file too, to look for doctests
    limit_threads(1)
    warm_up(Settings())
