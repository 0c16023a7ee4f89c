"""The edge out (the stage publish): where rankings, dead letters and replayed events go."""
