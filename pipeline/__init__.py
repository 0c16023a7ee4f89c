"""afresh's pure core and its loop; the folders are the stages, in the order in which an event goes."""
