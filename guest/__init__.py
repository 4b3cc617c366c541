"""Guest memory becomes knowledge: where the kernel is, its page tables, symbols and unwind tables."""
