"""The command line and the wiring of the other packages. Nothing imports it."""
