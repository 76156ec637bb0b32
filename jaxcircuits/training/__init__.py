"""Training of language models and sparse autoencoders."""
