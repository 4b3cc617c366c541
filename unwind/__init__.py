"""A capture (registers and stack bytes) becomes a callchain; pure, so that live, saved and test captures take the same way."""
