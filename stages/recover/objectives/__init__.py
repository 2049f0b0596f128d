"""What a recovery minimises: an objective a file, all of them in `registry`."""
