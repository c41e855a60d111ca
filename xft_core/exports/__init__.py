"""Export finished models for use outside this package: code for transformers, stock architectures, GGUF files."""
