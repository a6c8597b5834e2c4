"""Operators on pairs of attention records: what the attention losses are made of."""
