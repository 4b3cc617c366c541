"""The gdb engine: a real gdb halts and unwinds, guestprof records what it says (docs/gdb-engine.md)."""
