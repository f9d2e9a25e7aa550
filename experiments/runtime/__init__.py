"""Devices, signals, compilation."""
