"""Instruction following, checked by rules (IFEval; Zhou et al. 2023): nothing is run, and no model judges."""
