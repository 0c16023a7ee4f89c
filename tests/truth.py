from harness.truth import *  # noqa: F403
