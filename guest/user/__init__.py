"""What the guest's kernel knows of its processes and their files becomes mappings, paths and file contents."""
