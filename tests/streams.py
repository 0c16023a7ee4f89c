from harness.streams import *  # noqa: F403
