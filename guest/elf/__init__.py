"""ELF files of the guest's processes, whole or in pieces, become unwind rows, symbols and build IDs (gABI, psABIs)."""
