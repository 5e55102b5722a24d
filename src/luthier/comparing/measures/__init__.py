"""Measures: scores, their uncertainty, and what a fitted model cost and forgot."""
