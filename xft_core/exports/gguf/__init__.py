"""GGUF files, for llama.cpp and what builds on it: Ollama, LM Studio, llama-cpp-python."""
