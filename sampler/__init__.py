"""The machine: remote protocol, QMP, halting and resuming, captures, the recorder loop, the guard."""
