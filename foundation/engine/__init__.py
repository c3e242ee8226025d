"""Jobs: their names, where they are computed, the files that hold them, and the run from flags to
files."""
