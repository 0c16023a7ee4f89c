from harness.learners import *  # noqa: F403
