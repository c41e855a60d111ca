"""Instruction following by rule (IFEval; Zhou et al. 2023): nothing is run, and no model judges."""
