"""GGUF files, for llama.cpp and programs that build on it: Ollama, LM Studio, llama-cpp-python."""
