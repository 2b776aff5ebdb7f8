"""Which pool images to keep: scores, clusterings and the exact balanced choice."""
