from harness.service import *  # noqa: F403
