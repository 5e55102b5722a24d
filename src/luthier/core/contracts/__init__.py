"""Contracts: what a method of each axis defines."""
