"""One file for each command: options in, a sentence on stderr or data on stdout out."""
