from harness.apache_kafka import *  # noqa: F403
