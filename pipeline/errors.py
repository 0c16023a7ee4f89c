"""Errors that a user can meet. A message says what, the value got, what was expected, what to do."""


class AfreshError(Exception):
    """Base of all errors that end a command; `exit_code` is what the process returns."""

    exit_code = 1


class UsageError(AfreshError):
    """Wrong use, wrong configuration, or no broker at start."""

    exit_code = 2


class BrokerLost(AfreshError):
    """The broker did not answer for longer than `kafka.broker_timeout_s`."""

    exit_code = 3


class SafetyLimit(AfreshError):
    """A safety limit was reached: too many dead letters, or figures that are not finite."""

    exit_code = 4


class CheckpointError(UsageError):
    """A checkpoint or journal can't be used with this topic, configuration or version."""


class OffsetsGone(CheckpointError):
    """Records that are needed are no longer in the topic, or the topic was recreated."""


class PublishFailed(AfreshError):
    """A batch's rankings or dead letters were not acknowledged; its offsets stay uncommitted."""

    exit_code = 3


class CommitRefused(AfreshError):
    """Offsets were not committed: the group is being rebalanced, or the broker did not answer in time.

    Nothing is lost: poll (which may tell the listener that partitions are revoked or lost) and commit again.
    """
