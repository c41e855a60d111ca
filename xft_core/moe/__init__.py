"""The Mixture-of-Experts: router, balance loss, experts, and the block that takes an FFN's place."""
