"""The Mixture-of-Experts: router, balance loss, experts, and the block that replaces an FFN."""
