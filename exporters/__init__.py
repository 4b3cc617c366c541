"""A view of a recording becomes one output format, one file a format."""
