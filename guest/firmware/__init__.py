"""What runs before and beneath a kernel: bytes of guest memory become names of firmware, boot loaders and decompressors."""
