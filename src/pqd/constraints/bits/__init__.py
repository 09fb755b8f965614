"""Bits where they pay: what each layer costs and loses at each width, and the best choice."""
