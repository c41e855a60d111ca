"""Merges other than a mean with fixed shares: closed forms of the experts' statistics, and operators on their deltas."""
