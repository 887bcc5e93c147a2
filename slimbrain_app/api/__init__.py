"""The Python face: runs and images in, embeddings out, by the participant level's own verbs."""
