"""The guest's own storage: file systems inside disk images, initramfs archives, shared directories → contents of one file.

Read-only and without preparation. Everything here may block and is slow at times, so it runs in a process of its own
(``sampler/storage_worker.py``); it is the only place that imports dissect.* (see docs/decisions/storage-libraries.md).
"""
