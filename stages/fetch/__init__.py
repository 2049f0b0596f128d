"""Things fetched from elsewhere: files of the hub, wheels of the package index, rows of data sets."""
