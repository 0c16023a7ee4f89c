"""Read recorded event files."""
