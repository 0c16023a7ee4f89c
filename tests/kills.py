from harness.kills import *  # noqa: F403
