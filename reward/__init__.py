"""Samples in, reward events out: answers, rules, scorers and at-k statistics."""
