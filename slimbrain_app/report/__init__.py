"""The report of a participant: one HTML page, made from records."""
