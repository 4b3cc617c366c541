"""The ways in which kernels write numbers and pointers."""

from __future__ import annotations

from guest.words import Words

LITTLE_64 = Words("little", 8)
LITTLE_32 = Words("little", 4)
BIG_64 = Words("big", 8)
BIG_32 = Words("big", 4)
ALL_WORDS = (LITTLE_64, LITTLE_32, BIG_64, BIG_32)
