"""What a finished model becomes outside of this package: code for transformers, stock architectures, GGUF files."""
