from harness.clients import *  # noqa: F403
