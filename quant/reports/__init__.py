"""What a run did, what is in a file, and how two files differ."""
