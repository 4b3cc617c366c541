"""The gdb remote serial protocol as QEMU speaks it: bytes become replies, requests become bytes."""
