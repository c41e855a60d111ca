"""Instruction data: reading, decontamination, prompt templates, tokens, packing. The stage is stages/prepare.py."""
