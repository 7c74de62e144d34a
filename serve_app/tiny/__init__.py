"""A CPU-sized checkpoint of the very classes that the real model uses, on disk in the real formats.

Its weights are random: it draws noise, but it loads, packs, schedules and decodes like the real one.
"""
