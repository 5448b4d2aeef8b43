"""Reports about a run, about a file, and about the difference of two files."""
