"""The XFT method as plain PyTorch and transformers: directories in, directories out, no orchestration."""
