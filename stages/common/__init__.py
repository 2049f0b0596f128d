"""What every stage needs and knows none of them: files, names, this machine, progress."""
