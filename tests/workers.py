from harness.workers import *  # noqa: F403
