from harness.admin_tools import *  # noqa: F403
