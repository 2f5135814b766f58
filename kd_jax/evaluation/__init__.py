"""Scoring networks on labelled cases: tables, summaries, pictures."""
