"""Search and clustering of vectors and tags."""
