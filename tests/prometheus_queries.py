from harness.prometheus import *  # noqa: F403
